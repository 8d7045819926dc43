"""What to double-click next: the last line of every launcher."""

from mlx_finetune.app.desktop.desk import Desk
from mlx_finetune.app.desktop.launcher import NAMES


def suggest(desk: Desk, **reasons: str) -> None:
    """``suggest(desk, test="to see its answers")`` says: Next: double-click "Test" to see its answers."""
    parts = [f'"{NAMES[verb]}" {reason}'.rstrip() for verb, reason in reasons.items()]
    desk.say(f"\nNext: double-click {', or '.join(parts)}.")
