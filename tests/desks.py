"""A desk for tests of dialogues: answers are given beforehand, what is said and run is remembered."""

import json
import os
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from mlx_finetune.app.desktop.desk import Cancelled, Desk, Ran
from mlx_finetune.events import RunStopped, to_json
from mlx_finetune.rundir import EVENTS, LOCK, MANIFEST, RUN_INFO, RunDir, take_lock


@dataclass
class FakeDesk:
    """``answers`` are the lines that are typed; when they have run out, Ctrl-D is.

    ``programs`` answers the Mac's own programs by their name: a ``Ran``, a list of them one after another, or None for
    one that is missing. ``commands`` does the same for ``mlxft`` by its first word: an exit code, a list of them, or a
    function of the arguments.
    """

    folder: Path
    answers: list[str] = field(default_factory=list)
    programs: dict[str, object] = field(default_factory=dict)
    commands: dict[str, object] = field(default_factory=dict)
    printed: dict[str, Ran] = field(default_factory=dict)
    has_dialogs: bool = False
    can_ask: bool = True
    said: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    ran: list[list[str]] = field(default_factory=list)
    called: list[list[str]] = field(default_factory=list)
    started: list[tuple[list[str], Path]] = field(default_factory=list)
    on_start: Callable[[Sequence[str], Path], None] = lambda arguments, log: None
    on_sleep: Callable[[], None] = lambda: None
    time: float = 1_800_000_000.0

    @property
    def text(self) -> str:
        return "\n".join(self.said)

    def desk(self) -> Desk:
        return Desk(
            folder=self.folder,
            mlxft=self._mlxft,
            read_mlxft=self._read,
            start=self._start,
            program=self._program,
            say=self.said.append,
            ask=self._ask,
            has_dialogs=self.has_dialogs,
            can_ask=self.can_ask,
            now=lambda: self.time,
            sleep=self._sleep,
        )

    def _ask(self, prompt: str) -> str:
        self.asked.append(prompt)
        if not self.answers:
            raise Cancelled
        return self.answers.pop(0)

    def _mlxft(self, arguments: Sequence[str]) -> int:
        self.called.append(list(arguments))
        answer = self.commands.get(arguments[0], 0)
        if isinstance(answer, list):
            answer = answer.pop(0)
        if callable(answer):
            answer = answer(arguments)
        return answer if isinstance(answer, int) else 0

    def _read(self, arguments: Sequence[str]) -> Ran:
        return self.printed.get(arguments[0], Ran(0, "{}", ""))

    def _start(self, arguments: Sequence[str], log: Path) -> int:
        self.started.append((list(arguments), log))
        self.on_start(arguments, log)
        return 4711

    def _program(self, command: Sequence[str]) -> Ran | None:
        self.ran.append(list(command))
        answer = self.programs.get(command[0])
        if isinstance(answer, list):
            answer = answer.pop(0)
        if callable(answer):
            answer = answer(command)
        assert answer is None or isinstance(answer, Ran)
        return answer

    def _sleep(self, seconds: float) -> None:
        self.time += seconds
        self.on_sleep()


RECIPE = '# {purpose}\nmodel = "smollm2-135m"\noutput_dir = "{output}"\n[data]\npath = "rows.jsonl"\n'


def write_recipe(folder: Path, name: str, *, output: str = "", purpose: str = "learns") -> Path:
    """``recipes/NAME.toml``, from ``folder``."""
    path = Path("recipes") / f"{name}.toml"
    (folder / "recipes").mkdir(exist_ok=True)
    (folder / path).write_text(RECIPE.format(purpose=purpose, output=output or f"adapters/{name}"))
    return path


def write_run(
    folder: Path, name: str, status: str, *, step: int = 4, overrides: Sequence[str] = (), time: float = 1.0
) -> RunDir:
    """A run that was started in ``folder`` from its recipe of the same name, with a checkpoint."""
    run = RunDir(Path("adapters") / name)
    path = folder / run.path
    (path / f"checkpoint-{step}").mkdir(parents=True)
    (path / f"checkpoint-{step}" / MANIFEST).write_text("{}")
    info = {"status": status, "step": step, "recipe_path": f"recipes/{name}.toml", "overrides": list(overrides)}
    (path / RUN_INFO).write_text(json.dumps(info | {"started_in": str(folder)}))
    (path / EVENTS).write_text(to_json(RunStopped(step, 15), time) + "\n")
    return run


@contextmanager
def at_work(run: RunDir) -> Generator[None]:
    """The run's lock is held while the block runs, as by a training."""
    lock = take_lock(run.file(LOCK))
    assert lock is not None
    try:
        yield
    finally:
        os.close(lock)
