"""What a Mac needs for a night of work: mains power, no idle sleep, and a display that is dark (MACOS.md 1.5 and 3.3).

``caffeinate -is``, never ``-d``: a lit display is what provoked the GPU watchdog. ``-s`` counts on mains power only,
and a closed lid sleeps regardless.
"""

from collections.abc import Sequence

from mlx_finetune.app.desktop.asking import confirm
from mlx_finetune.app.desktop.desk import Cancelled, Desk
from mlx_finetune.hardware.system.power import Power, parse_power


def awake_command(pid: int) -> Sequence[str]:
    """What keeps a Mac awake until process ``pid`` ends."""
    return ["caffeinate", "-is", "-w", str(pid)]


def read_power(desk: Desk) -> Power | None:
    """Power source and charge from ``pmset``; None where there is none, so that nothing can be said."""
    ran = desk.program(["pmset", "-g", "batt"])
    return None if ran is None or ran.code else parse_power(ran.out)


def check_power(desk: Desk) -> None:
    """Say what a night on this machine needs; on battery, ask. Raises ``Cancelled``."""
    power = read_power(desk)
    if power is None:
        desk.say("\nThis machine is not kept awake by us; see to it that it does not sleep.")
        return
    desk.say("\nThe Mac is kept awake while it trains; its display may sleep, and should.")
    if power.percent is not None:
        desk.say("Leave the lid open: a closed lid puts a laptop to sleep, whatever is running.")
    if not power.on_battery:
        return
    charge = "" if power.percent is None else f" ({power.percent} %)"
    desk.say(f"\nwarning: it runs on its battery{charge}. That will not last, and it may fall asleep.")
    desk.say("hint: connect the charger now")
    if desk.can_ask and not confirm(desk, "Start anyway?", default=False):
        raise Cancelled


def offer_dark_display(desk: Desk) -> None:
    """Let the display sleep now, if wanted: training is safer beside a dark one."""
    if not desk.can_ask or read_power(desk) is None:
        return
    desk.say("\nA dark display keeps macOS from aborting work on the GPU. Any key lights it again.")
    if confirm(desk, "Let the display sleep now?", default=False):
        ran = desk.program(["pmset", "displaysleepnow"])
        if ran is None or ran.code:
            desk.say("It cannot be switched off from here; lower its brightness, or lock the screen.")
