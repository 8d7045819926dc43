"""The full-screen monitor: one run on the screen, others one key away. It reads journals and draws; it changes nothing.

Two looks a second at the journal's size; a frame a second where something is new, else the header's clock alone.
All panes are functions from a run to lines (``overview``, ``curves``, ...), so that what is seen can be tested without
a terminal. The terminal's own colours are used, on its own background. The mouse is left to the terminal, where it
selects text.
"""

import asyncio
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.events import Resize

from mlx_finetune.errors import MlxftError
from mlx_finetune.events import CheckpointSaved, RunFinished
from mlx_finetune.monitor.filmstrip import frames
from mlx_finetune.monitor.tui.blocks import Lines, fit, most, wrap
from mlx_finetune.monitor.tui.curves import ZOOMS
from mlx_finetune.monitor.tui.frame import PANES, header_line, keys_line, tabs_line
from mlx_finetune.monitor.tui.hands import Hands
from mlx_finetune.monitor.tui.listing import Listing
from mlx_finetune.monitor.tui.panes import FIRST, HELP, Looking, pane_lines
from mlx_finetune.monitor.tui.screen import LinesView
from mlx_finetune.monitor.tui.watched import Watched
from mlx_finetune.monitor.tui.words import end_of, state_of
from mlx_finetune.rundir import RunDir
from mlx_finetune.units import format_bytes

POLL_SECONDS = 0.5
FRAME_SECONDS = 0.9  # a little less than two looks
SPARING = 80  # a frame comes no sooner than after so many times what the last one has cost: 1.25 % of a core
WHOLE_SECONDS = 10.0  # between two frames while nothing happens, for what says how long ago it was
SLICE_SECONDS = 0.04  # of reading, after which keys are heard
LOADING_FRAME_SECONDS = 0.25
LIST_SECONDS = 2.0
MESSAGE_SECONDS = 12.0
FURTHER = "--extend 100"  # what is typed in the place of --resume where the run is finished


@dataclass(frozen=True, slots=True)
class Message:
    """A sentence above the keys; it stays until ``until``, or until the next key that says something itself."""

    text: str
    style: str = ""
    until: float = float("inf")
    is_question: bool = False


class MonitorApp(App[int]):
    """Watches ``run``; ``hands`` is what it can do. It leaves by itself when the run ends where ``until_end`` says so.

    ``clock`` is the time of day, ``ticks`` never goes back, ``cpu`` is the processor time of this process.
    """

    ENABLE_COMMAND_PALETTE = False
    CSS = """
    Screen { layout: vertical; }
    #body { height: 1fr; }
    #message { height: 0; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q,ctrl+c,ctrl+q", "leave", priority=True),
        Binding("tab,right", "pane(1)", priority=True),
        Binding("shift+tab,left", "pane(-1)", priority=True),
        *(Binding(str(number), f"show_pane('{name}')") for number, (name, _) in enumerate(PANES, 1)),
        Binding("up,k", "move(-1)"),
        Binding("down,j", "move(1)"),
        Binding("pageup", "page(-1)"),
        Binding("pagedown,space", "page(1)"),
        Binding("home,g", "move(-1000000)"),
        Binding("end,G", "move(1000000)"),
        Binding("comma", "answers(-1)"),
        Binding("full_stop", "answers(1)"),
        Binding("z", "zoom"),
        Binding("ctrl+z", "suspend_process"),
        Binding("s", "stop"),
        Binding("c", "save"),
        Binding("y", "yes"),
        Binding("n", "no"),
        Binding("escape", "no"),
        Binding("enter", "choose"),
        Binding("question_mark,h", "show_pane('help')"),
    ]

    def __init__(
        self,
        run: RunDir,
        hands: Hands,
        *,
        until_end: bool = False,
        clock: Callable[[], float] = time.time,
        ticks: Callable[[], float] = time.monotonic,
        cpu: Callable[[], float] = time.process_time,
    ) -> None:
        super().__init__(ansi_color=True)
        self.theme = "ansi-dark"  # the terminal's own colours; nothing here is drawn with the theme's
        self.title = "mlxft monitor"
        self._until_end = until_end
        self.has_seen_end = False  # of the run on the screen
        self._hands, self._clock, self._ticks, self._cpu = hands, clock, ticks, cpu
        self.watched = Watched(run, clock=ticks)
        self.listing = Listing(hands.list_runs)
        self._was_at_work = self.watched.is_at_work
        self.looking = Looking()
        self.message: Message | None = None
        self._hidden = 0
        self._save_asked_after: int | None = None  # how many checkpoints were known then
        self._next_frame = self._next_list = 0.0
        self._frame_time = self._frame_cpu = 0.0  # of the last whole frame
        self._is_composed = False
        self._is_stale = False  # something was read that is not drawn yet

    def compose(self) -> ComposeResult:
        """Header, panes, body, message, keys."""
        for name in ("header", "tabs", "body", "message", "keys"):
            yield LinesView(id=name)

    def on_mount(self) -> None:
        self._is_composed = True
        if not self.is_headless:  # from outside; Ctrl-C is a key here
            loop = asyncio.get_running_loop()
            loop.add_signal_handler(signal.SIGINT, self.exit, 0)
            loop.add_signal_handler(signal.SIGTERM, self.exit, 128 + signal.SIGTERM)
        self.app_resume_signal.subscribe(self, self.paint_again)
        self.set_interval(POLL_SECONDS, self.look)
        self.call_after_refresh(self.look)

    def on_resize(self, event: Resize) -> None:
        del event
        self.call_after_refresh(self.draw)

    def paint_again(self, resumed: object = None) -> None:
        """Every line, also those that did not change: after Ctrl-Z the terminal has forgotten them."""
        del resumed
        self.draw()
        for view in self.query(LinesView):
            view.refresh()

    def look(self) -> None:
        """Read what is new, and draw where that or the clock asks for it."""
        is_new = self.watched.advance(SLICE_SECONDS)
        now = self._ticks()
        if self.watched.is_loading:
            self.call_later(self.look)
            is_new = False
        if self.looking.pane == "runs" and now >= self._next_list:
            self.listing.look()
            self._next_list, is_new = now + LIST_SECONDS, True
        self._hear()
        self._is_stale = self._is_stale or is_new
        if now < self._next_frame or now - self._frame_time < SPARING * (self._cpu() - self._frame_cpu):
            return
        if self._is_stale or self._message_is_over() or now >= self._frame_time + WHOLE_SECONDS:
            self.draw()
        else:
            self._draw_header(self._clock(), self.size.width)

    def draw(self) -> None:
        """Bring every part of the screen up to date."""
        width, height = self.size
        if not width or not height or not self._is_composed:
            return
        now = self._clock()
        self._frame_time, self._frame_cpu, self._is_stale = self._ticks(), self._cpu(), False
        said = self._message_lines(width, height)
        self._view("message").styles.height = len(said)
        body_height = max(1, height - 3 - len(said))
        lines = pane_lines(self.looking, self.watched, self.listing, now, width=width, height=body_height)
        self._hidden = max(0, len(lines) - body_height)
        self.looking.offset = max(0, min(self.looking.offset, self._hidden))
        lines = lines[self.looking.offset :]
        self._draw_header(now, width)
        self._view("tabs").show([tabs_line(self.looking.pane, width=width)])
        self._view("body").show(lines)
        self._view("message").show(said)
        self._view("keys").show([keys_line(width=width, hidden_lines=max(0, len(lines) - body_height))])

    def _draw_header(self, now: float, width: int) -> None:
        """The line that changes with the clock."""
        seconds = LOADING_FRAME_SECONDS if self.watched.is_loading else FRAME_SECONDS
        self._next_frame = self._ticks() + seconds
        self._view("header").show([header_line(self.watched, now, width=width)])

    @property
    def _folder_name(self) -> str:
        """The run, as its folder is called."""
        return self.watched.run.path.name

    def _view(self, name: str) -> LinesView:
        return self.query_one(f"#{name}", LinesView)

    def _message_lines(self, width: int, height: int) -> Lines:
        """The message on as many lines as it needs, at most half of the screen; an old one is gone."""
        if self._message_is_over():
            self.message = None
        if self.message is None:
            return []
        style = f"bold {self.message.style}".strip()
        return [
            fit(line, width)
            for line in most(wrap(f" {self.message.text}", width, style=style), height // 2, width=width)
        ]

    def _message_is_over(self) -> bool:
        return self.message is not None and self._ticks() >= self.message.until

    def _close_question(self) -> None:
        """A question is answered by the next key or not at all."""
        if self.message is not None and self.message.is_question:
            self.message = None

    def say(self, text: str, style: str = "", *, seconds: float = MESSAGE_SECONDS) -> None:
        """Show a message."""
        self.message = Message(text, style, self._ticks() + seconds)
        self.draw()

    def _hear(self) -> None:
        """Tell when a checkpoint that was asked for is there, and when the run ends."""
        was_at_work, self._was_at_work = self._was_at_work, self.watched.is_at_work
        is_end = was_at_work and not self._was_at_work
        self.has_seen_end = (self.has_seen_end or is_end) and not self._was_at_work
        if is_end and self._until_end:
            self.exit(0)
        elif is_end and not self.watched.is_gone:
            end = end_of(self.watched)
            self.message, self._is_stale = Message(end.word, end.style), True
        saved = self.watched.summary.checkpoints
        if self._save_asked_after is not None and len(saved) > self._save_asked_after:
            self._save_asked_after = None
            self._told_saved(saved[-1])

    def _told_saved(self, saved: CheckpointSaved) -> None:
        self.say(f"step {saved.step} is saved: {saved.folder}, {format_bytes(saved.num_bytes)}", "green")

    def action_leave(self) -> None:
        """The training goes on."""
        self.exit(0)

    def action_pane(self, by: int) -> None:
        """The pane beside this one."""
        names = [name for name, _ in PANES]
        place = names.index(self.looking.pane) if self.looking.pane in names else 0
        self.action_show_pane(names[(place + by) % len(names)])

    def action_show_pane(self, name: str) -> None:
        """Another pane, from its top; the page of help closes with its own key."""
        self._close_question()
        is_closing = name == self.looking.pane == HELP
        self.looking.pane, self.looking.offset, self._next_list = FIRST if is_closing else name, 0, 0.0
        if name == "runs":
            self.listing.look()
            paths = [one.run.path for one in self.listing.glances]
            self.looking.chosen = paths.index(self.watched.run.path) if self.watched.run.path in paths else 0
        self.draw()

    def action_move(self, by: int) -> None:
        """Scroll, or choose another run."""
        self._close_question()
        if self.looking.pane == "runs":
            self.looking.chosen = max(0, min(len(self.listing.glances) - 1, self.looking.chosen + by))
            height = self._view("body").size.height
            self.looking.offset = max(0, self.looking.chosen + 3 - height)
        else:
            self.looking.offset += by
        self.draw()

    def action_page(self, by: int) -> None:
        """Scroll by what is seen."""
        self.action_move(by * max(1, self._view("body").size.height - 2))

    def action_answers(self, by: int) -> None:
        """The answers of another evaluation."""
        self._close_question()
        count = len(frames(self.watched.summary))
        place = count - 1 if self.looking.frame is None else self.looking.frame
        place = max(0, place + by)
        self.looking.frame = None if place >= count - 1 else place
        if self.looking.pane != "answers":
            self.looking.pane, self.looking.offset = "answers", 0
        self.draw()

    def action_zoom(self) -> None:
        """Curves over less of the run."""
        self._close_question()
        self.looking.zoom = (self.looking.zoom + 1) % len(ZOOMS)
        self.draw()

    def action_choose(self) -> None:
        """Show the chosen run."""
        if self.looking.pane == "runs" and self.listing.glances:
            self.switch_to(self.listing.glances[self.looking.chosen].run)

    def switch_to(self, run: RunDir) -> None:
        """Show another run from now on."""
        self.watched = Watched(run, clock=self._ticks)
        self._was_at_work, self.has_seen_end = self.watched.is_at_work, False
        self.looking, self.message, self._save_asked_after = Looking(), None, None
        self.look()
        self.draw()

    def action_stop(self) -> None:
        """Ask once; the answer is y or n."""
        if self._is_idle("there is nothing to stop"):
            return
        question = (
            f"Stop {self._folder_name}? It finishes its step, saves and leaves; it can be resumed.   y yes   n no"
        )
        self.message = Message(question, "yellow", is_question=True)
        self.draw()

    def _is_idle(self, what: str) -> bool:
        """Say ``what`` where the run is not at work."""
        if self.watched.is_at_work:
            return False
        self.say(f"{self._folder_name} is not at work ({state_of(self.watched).word}): {what}")
        return True

    def action_yes(self) -> None:
        """Yes to the question, else copy the command that resumes the run."""
        if self.message is not None and self.message.is_question:
            said = "asked to stop; it finishes its step, saves and leaves"
            self._try(self._hands.stop, f"{self._folder_name} was {said}")
            return
        command = self._hands.resume_command(self.watched.run)
        if not command:
            self.say("how this run was started is not recorded, so there is no command to resume it", "yellow")
            return
        said = "copied"
        if isinstance(self.watched.summary.outcome, RunFinished):
            command = f"{command.removesuffix('--resume')}{FURTHER}"
            said = "it is finished; this trains it further, and is copied"
        if not self._hands.copy(command):
            self.copy_to_clipboard(command)
            said = f"{said}, as far as this terminal lets programs copy"
        self.say(f"{said}: {command}", seconds=10 * MESSAGE_SECONDS)

    def action_no(self) -> None:
        """Close the question or message, or the page of help."""
        self.message = None
        if self.looking.pane == HELP:
            self.looking.pane = FIRST
        self.draw()

    def action_save(self) -> None:
        """Ask for a checkpoint after the step at hand."""
        self._close_question()
        if self._is_idle("there is nothing to save"):
            return
        summary = self.watched.summary
        if summary.paused is not None:
            self.say(f"it is paused, and everything up to step {summary.paused.step} is saved")
            return
        when = "the step at hand" if summary.step is not None else "the first step"
        if self._try(self._hands.save_now, f"asked for a checkpoint; it follows {when}, and the training goes on"):
            self._save_asked_after = len(summary.checkpoints)

    def _try(self, act: Callable[[RunDir], object], said: str) -> bool:
        """Act on the run, and say so or what stood in the way."""
        try:
            act(self.watched.run)
        except MlxftError as error:
            hint = f"; {error.hint}" if error.hint else ""
            self.say(f"{error.message}{hint}", "red")
            return False
        self.say(said)
        return True
