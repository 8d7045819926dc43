"""``mlxft launch overnight``: choose several recipes, see that the machine can work all night, start, and look on.

The work is done by a process of its own (``queue``); this window starts it and shows it.
"""

import contextlib
import os
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from mlx_finetune.app.desktop.asking import choose_several, confirm, one_line
from mlx_finetune.app.desktop.desk import Cancelled, Desk
from mlx_finetune.app.desktop.next_steps import suggest
from mlx_finetune.app.desktop.overnight import night as nights
from mlx_finetune.app.desktop.overnight.power import check_power, offer_dark_display
from mlx_finetune.app.desktop.runs import read_state
from mlx_finetune.app.desktop.training.dialogue import choose_here
from mlx_finetune.app.desktop.training.starts import (
    Start,
    beside,
    bring_data,
    check_recipe_file,
    decide,
    offers,
    recipe_path,
    start_of,
    unfinished,
)
from mlx_finetune.errors import MlxftError, RunError, UsageError
from mlx_finetune.rundir import running_process

_START_SECONDS = 20.0  # for the process in the background to take its lock, on a machine with a lot to do
_LOOK_SECONDS = 0.5
INTERRUPTED = 130


def overnight(desk: Desk, given: Sequence[str]) -> int:
    """Choose, check, start, look on; the exit code. Raises ``MlxftError`` and ``Cancelled``."""
    if (folder := nights.night_at_work(desk.logs)) is not None:
        desk.say("\nA night is at work already; here it is.")
        return watch_night(desk, folder)
    starts = check_starts(desk, pick_starts(desk, given) if given else _left_over(desk) or pick_starts(desk, given))
    check_power(desk)
    if desk.can_ask and not confirm(desk, f"\nStart {_trainings(len(starts))}?"):
        raise Cancelled
    folder = nights.new_folder(desk.logs, desk.now())
    nights.write_night(folder, nights.Night(nights.items_of(starts), desk.now()))
    pid = desk.start(["launch", "overnight", "--queue", str(folder)], folder / nights.LOG)
    _wait_for_start(desk, folder)
    desk.say(f"\nThe night has begun (process {pid}). It does not need this window; Monitor shows it again.")
    offer_dark_display(desk)
    return watch_night(desk, folder)


def _trainings(count: int) -> str:
    return "this training now" if count == 1 else f"these {count} trainings now, one after another"


def _left_over(desk: Desk) -> Sequence[Start]:
    """What a night that broke off (a power cut, a restart) has left, if it is wanted now."""
    folder = nights.latest_night(desk.logs)
    night = nights.read_night(folder) if folder is not None else None
    if night is None or night.ended is not None or not night.remaining or not desk.can_ask:
        return []
    desk.say("\nThe last night broke off before its end:")
    for line in nights.summary_lines(night)[1:]:
        desk.say(line)
    if not confirm(desk, "Go on with what is left of it?"):
        return []
    starts = [item.start for item in night.remaining]
    return [decide(replace(one, is_resumed=False), read_state(one.run)) for one in starts]


def pick_starts(desk: Desk, given: Sequence[str]) -> Sequence[Start]:
    """Several trainings, in order: named, chosen or dragged in. Raises ``Cancelled`` and ``MlxftError``."""
    if given:
        return [_decided(desk, recipe_path(desk, one)) for one in given]
    if not desk.can_ask:
        raise UsageError("there is no terminal to ask on", "name the recipes: mlxft launch overnight RECIPE...")
    left, files = unfinished(desk), offers(desk)
    labels = [f"Go on with {start.name} ({read_state(start.run).words})" for start in left]
    labels += [offer.label for offer in files]
    picked = choose_several(desk, "What is to be trained tonight?", labels, paths="recipes")
    return [
        left[one]
        if isinstance(one, int) and one < len(left)
        else _decided(desk, check_recipe_file(desk, one) if isinstance(one, Path) else files[one - len(left)].path)
        for one in picked
    ]


def _decided(desk: Desk, recipe: Path) -> Start:
    return decide(*start_of(bring_data(desk, recipe)))


def check_starts(desk: Desk, starts: Sequence[Start]) -> Sequence[Start]:
    """Show each with its price in one line and leave out what cannot work; two never share a folder.

    Raises ``RunError`` where none is left.
    """
    good: list[Start] = []
    taken: set[Path] = set()
    desk.say("\nTonight:")
    for number, one in enumerate(starts, start=1):
        start = beside(one, taken) if one.run.path in taken else one
        problem = _problem(desk, start)
        if problem:
            desk.say(f"  {number}  {start.name}: left out, {problem}")
            continue
        taken.add(start.run.path)
        good.append(start)
        how = "goes on where it stopped" if start.is_resumed else f"from {one_line(str(start.recipe), 40)}"
        desk.say(f"  {number}  {start.name}: {how}")
    if not good:
        raise RunError("none of them can be trained", "mend what is said above, then double-click again")
    return good


def _problem(desk: Desk, start: Start) -> str:
    """Why a training would be refused, in one sentence; "" where nothing is known against it."""
    if running_process(start.run) is not None:
        return "it is at work already"
    if start.is_resumed:
        return ""
    ran = desk.read_mlxft(["plan", *start.plan_arguments, "--no-measure", "--json"])
    if ran.code == 0:
        return ""
    if ran.code == 3:
        return 'it does not fit into memory or on the disk; "Train" shows how to make it fit'
    errors = [line.removeprefix("error: ") for line in ran.err.splitlines() if line.startswith("error: ")]
    return one_line(errors[0], 200) if errors else f"its plan failed (code {ran.code})"


def _wait_for_start(desk: Desk, folder: Path) -> None:
    begin = desk.now()
    while nights.holder(folder) is None and not (folder / nights.SUMMARY).is_file():
        if desk.now() - begin > _START_SECONDS:
            raise RunError("the night could not be started", f"see why in {folder / nights.LOG}")
        desk.sleep(0.1)


def watch_night(desk: Desk, folder: Path) -> int:
    """Show one training after another until the night is over or the person leaves; then the summary."""
    shown = ""
    try:
        while nights.holder(folder) is not None:
            night = nights.read_night(folder)
            item = night.current if night is not None else None
            if night is None or item is None:
                desk.sleep(_LOOK_SECONDS)
                continue
            if item.run != shown:
                shown = item.run
                desk.say(f"\n{night.items.index(item) + 1} of {len(night.items)}: {item.start.name}")
            if running_process(item.start.run) is None:
                desk.sleep(_LOOK_SECONDS)  # it is still loading, or has just ended
                continue
            desk.mlxft(["monitor", item.run, "--until-end"])
            if running_process(item.start.run) is not None and (code := _leave(desk, folder, item.start)) is not None:
                return code
    except (Cancelled, KeyboardInterrupt):  # the night is a process of its own and has not heard it
        suggest(desk, monitor="to see the night again", stop="to end it with everything saved")
        return 0
    return tell_summary(desk, folder)


def _leave(desk: Desk, folder: Path, start: Start) -> int | None:
    """What a person wants who has left the view of a training at work; None to look on. Raises ``Cancelled``."""
    if not desk.can_ask:
        return 0
    labels = [
        "Leave it at work and close this window",
        f"Stop {start.name} safely, the next one follows",
        "Stop the whole night safely",
        "Watch on",
    ]
    picked = choose_here(desk, "The night is still at work.", labels)
    if picked == 0:
        raise Cancelled
    if picked == 1:
        desk.mlxft(["stop", str(start.run.path)])
    if picked == 2:
        return stop_night(desk, folder)
    return None


def stop_night(desk: Desk, folder: Path) -> int:
    """Ask the night to end: the training at work saves, no other follows. Waits for that."""
    if pid := nights.holder(folder):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
        desk.say(f"asked the night (process {pid}) to stop; its training finishes its step and saves ...")
    try:
        while nights.holder(folder) is not None:
            desk.sleep(_LOOK_SECONDS)
    except KeyboardInterrupt:
        desk.say("\nwaits no longer; the night was asked to stop and will")
        return INTERRUPTED
    return tell_summary(desk, folder)


def tell_summary(desk: Desk, folder: Path) -> int:
    """Print what became of the night, ring, and say what to double-click next; 1 where something failed."""
    night = nights.read_night(folder)
    if night is None:
        raise MlxftError(f"{folder} holds no night that can be read", "mlxft runs")
    desk.say("")
    for line in nights.summary_lines(night):
        desk.say(line)
    desk.say(f"This is also in {folder / nights.SUMMARY}, and all that was said in {nights.LOG} beside it.\a")
    (folder / nights.SEEN).touch()
    suggest(desk, test="to see what was learned", chat="to talk with one of them", train="to go on with the rest")
    return int(night.has_failed)


def unseen_night(desk: Desk) -> Path | None:
    """The last night, if it is over and nobody has seen its summary."""
    folder = nights.latest_night(desk.logs)
    if folder is None or nights.holder(folder) is not None or (folder / nights.SEEN).exists():
        return None
    return folder
