"""What a person looks at: a pane, and where in it; and the lines of that pane."""

from dataclasses import dataclass

from mlx_finetune.monitor.tui.answers import answers_lines
from mlx_finetune.monitor.tui.blocks import Lines
from mlx_finetune.monitor.tui.curves import curves_lines
from mlx_finetune.monitor.tui.frame import PANES, help_lines
from mlx_finetune.monitor.tui.happened import checkpoints_lines, events_lines
from mlx_finetune.monitor.tui.listing import Listing, runs_lines
from mlx_finetune.monitor.tui.machine import machine_lines
from mlx_finetune.monitor.tui.overview import overview_lines
from mlx_finetune.monitor.tui.watched import Watched

HELP = "help"
FIRST = PANES[0][0]


@dataclass(slots=True)
class Looking:
    """``offset`` lines are scrolled away; ``frame`` is the evaluation whose answers are shown, None for the last;
    ``zoom`` a place in ``curves.ZOOMS``; ``chosen`` a line in the list of runs."""

    pane: str = FIRST
    offset: int = 0
    frame: int | None = None
    zoom: int = 0
    chosen: int = 0


def pane_lines(looking: Looking, watched: Watched, listing: Listing, now: float, *, width: int, height: int) -> Lines:
    """All lines of the pane, from its top; more than ``height`` where it has to be scrolled."""
    match looking.pane:
        case "curves":
            return curves_lines(watched, width=width, height=height, zoom=looking.zoom)
        case "answers":
            return answers_lines(watched.summary, width=width, chosen=looking.frame)
        case "machine":
            return machine_lines(watched, width=width, height=height)
        case "events":
            return events_lines(watched, width=width)
        case "checkpoints":
            return checkpoints_lines(watched, now, width=width)
        case "runs":
            return runs_lines(listing, looking.chosen, watched.run, now, width=width)
        case "help":
            return help_lines(width=width)
        case _:
            return overview_lines(watched, now, width=width, height=height, zoom=looking.zoom)
