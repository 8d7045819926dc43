"""Names of the files in a run folder, and finding runs and checkpoints.

Nothing is found by modification time: checkpoints sort by the step in their name, and one without a manifest does
not count. How files are written is in ``durable``.
"""

import contextlib
import fcntl
import os
import re
import shlex
import signal
import stat
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import cast

from mlx_finetune import durable
from mlx_finetune.errors import RunError

FORMAT_VERSION = 1

RECIPE = "recipe.toml"
RESOLVED = "resolved.toml"
EVENTS = "events.jsonl"
SAMPLES = "samples.jsonl"
METRICS = "training_metrics.json"
LOG = "log.txt"
LOCK = ".lock"  # held by the training process, with its process id
SUPERVISOR = ".supervisor"  # held by the process that starts it again after a crash
SAVE_SIGNAL = signal.SIGUSR1  # asks the process that holds LOCK for a checkpoint after the step at hand
RUN_INFO = "run.json"
CARD = "README.md"
DATA_CARD = "data_card.json"  # rows, lengths and what was left out, as the training saw them
REPORT = "report.html"
MICROSCOPE = "microscope.json"  # the loss of every token of some rows, base and adapter
CORRECTIONS = "corrections.jsonl"  # answers that a person put right in a chat; chats add to it, training only reads it
MANIFEST = "manifest.json"
TRAINER_STATE = "trainer_state.json"
OPTIMIZER = "optimizer.safetensors"
ROLLOUTS = "rollouts.json"  # in a checkpoint between two updates on the same answers: these answers
ADAPTER_CONFIG = "adapter_config.json"
PEFT_WEIGHTS = "adapter_model.safetensors"
MLX_WEIGHTS = "adapters.safetensors"
HEAD_WEIGHTS = "head.safetensors"  # a score head, beside an adapter or a fully trained model
MODEL_FOLDER = "model"  # a fully trained model
MODEL_WEIGHTS = "model.safetensors"  # in that folder, and in each of its checkpoints
EVALUATIONS = "eval"  # a folder: NAME.json, NAME.csv and NAME.rows.jsonl of each evaluation
BEST_OF = "best_of"  # a folder: NAME.json, NAME.csv and NAME.scores.jsonl of each comparison of sampled answers
CHECKPOINT_EVALUATIONS = "eval/checkpoints"  # in it: the same of every checkpoint of the run
SINK_EXPERIMENTS = "eval/sinks"  # in it: NAME.json and NAME.csv of texts longer than the trained context
TRACKERS = "trackers"  # a folder: NAME.json, NAME.log and NAME/ of each tracker of training.report_to
PIPELINE = "pipeline.json"  # in the folder of a pipeline, whose stages are run folders below it
PIPELINE_REPORT = "report.md"  # beside a REPORT of the same: the table across stages
TRACE = "trace"  # a folder: trace.json, CSV files and steps/ of mlxft trace
SCHEMAS = "schemas"  # a folder: PATH.json for each endpoint of [serve]

_CHECKPOINT = re.compile(r"checkpoint-(\d+)")
#: Everything that a run writes into its folder, by name; what is only there for a moment by pattern.
_RUN_FILES = frozenset(
    {
        *(
            RECIPE,
            RESOLVED,
            EVENTS,
            SAMPLES,
            METRICS,
            LOG,
            LOCK,
            SUPERVISOR,
            RUN_INFO,
            DATA_CARD,
            CARD,
            REPORT,
            MICROSCOPE,
            CORRECTIONS,
            MODEL_FOLDER,
            EVALUATIONS,
            BEST_OF,
            TRACKERS,
            TRACE,
            SCHEMAS,
        ),
        *(
            ADAPTER_CONFIG,
            PEFT_WEIGHTS,
            MLX_WEIGHTS,
            HEAD_WEIGHTS,
            "tokenizer.json",
            "tokenizer_config.json",
            "tokenizer.model",
        ),
        *("special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt", "chat_template.jinja"),
        *("chat_template.json", "generation_config.json", "config.json"),
    }
)
_MOST_NAMED = 20  # runs in a sentence
_NEXT_REPORT = re.compile(r"report-\d+\.html")  # beside one that somebody has edited
_MOMENTARY = re.compile(r"\.trash-.*|\.checkpoint-.*|\..*\.part|\.DS_Store")


@dataclass(frozen=True, slots=True)
class RunDir:
    """A run folder; it need not exist yet."""

    path: Path

    def file(self, name: str) -> Path:
        """The path of one of the names above inside this folder."""
        return self.path / name

    def checkpoint(self, step: int) -> Path:
        """Folder of the checkpoint taken after ``step`` optimizer steps."""
        return self.path / f"checkpoint-{step}"

    def checkpoints(self) -> Sequence[Path]:
        """Committed checkpoints (those with a manifest), by rising step. Their contents are not verified here."""
        return [path for path in self.checkpoint_folders() if (path / MANIFEST).is_file()]

    def checkpoint_folders(self) -> Sequence[Path]:
        """Everything that has a checkpoint's name, by rising step, with a manifest or without."""
        entries = self.path.iterdir() if self.path.is_dir() else ()
        found = [(int(match.group(1)), entry) for entry in entries if (match := _CHECKPOINT.fullmatch(entry.name))]
        return [path for _, path in sorted(found)]

    @property
    def name(self) -> str:
        """What a user types for this run: its name where it lies under adapters/, else its path; quoted for a shell."""
        return shlex.quote(self.path.name if self.path.parent == Path("adapters") else str(self.path))

    @property
    def pipeline(self) -> Path | None:
        """The folder of the pipeline that this run is a stage of; None where it is none."""
        return self.path.parent if (self.path.parent / PIPELINE).is_file() else None

    @property
    def label(self) -> str:
        """Its name in a list, with that of its pipeline in front: ``pipeline-scratch/sft``."""
        return self.path.name if self.pipeline is None else f"{self.pipeline.resolve().name}/{self.path.name}"

    def is_run(self) -> bool:
        """True where a training has been started in this folder; a checkpoint has a copy of run.json and is none."""
        if self.file(MANIFEST).is_file():
            return False
        return self.file(RUN_INFO).is_file() or self.file(EVENTS).is_file()


def run_info(run: RunDir) -> dict[str, object]:
    """run.json; empty where there is none, or none that can be read."""
    return durable.read_object_if_any(run.file(RUN_INFO))


def task_of(run: RunDir) -> str:
    """The task that run.json names; "" where it does not tell."""
    settings = run_info(run).get("resolved")
    return str(cast(dict[str, object], settings).get("task", "")) if isinstance(settings, dict) else ""


def checkpoint_step(path: Path) -> int:
    """The step in the name of a checkpoint folder."""
    return int(path.name.rpartition("-")[2])


def weights_step(run: RunDir) -> int | None:
    """The step of the weights that a run's name stands for: its result, else its newest checkpoint; None without."""
    step = durable.read_object_if_any(run.file(METRICS)).get("result_step")
    newest = run.checkpoints()[-1:]
    return step if isinstance(step, int) else checkpoint_step(newest[0]) if newest else None


def of_other_step(step: int | None, now: int | None) -> str:
    """``of step 60, while the run's weights are of step 2,060`` of what was measured before; "" of the same weights."""
    return (
        ""
        if step is None or now is None or step == now
        else f"of step {step:,}, while the run's weights are of step {now:,}"
    )


def check_folder(path: Path, option: str = "output_dir") -> None:
    """Refuse a folder that cannot be made or written to, before anything is made. Raises ``RunError``.

    ``option`` is how the user named it.
    """
    other = f"choose another {option}"
    if path.is_symlink() and not path.exists():
        raise RunError(f"{path} is a link to a folder that is not there", other)
    nearest = next(parent for parent in (path, *path.absolute().parents) if os.path.lexists(parent))
    if not nearest.is_dir():
        where = f"{path} is a file" if nearest == path else f"{path} cannot be made: {nearest} is a file"
        raise RunError(f"{where}; {option} must name a folder", other)
    if not os.access(nearest, os.W_OK):
        raise RunError(f"{nearest} cannot be written to", other)


def free_folder(folder: Path) -> Path:
    """A folder beside ``folder`` that is not there yet: ``mine-2``."""
    number = 2
    while folder.with_name(f"{folder.name}-{number}").exists():
        number += 1
    return folder.with_name(f"{folder.name}-{number}")


def beside_run(folder: Path) -> list[str]:
    """What a command that trains into ``folder`` has to set so that it does not meet the run there; else nothing."""
    run = RunDir(folder)
    return [f"output_dir={free_folder(folder)}"] if run.file(RUN_INFO).exists() or run.checkpoint_folders() else []


def folder_bytes(path: Path) -> int:
    """Bytes of the regular files in a folder and below; links are not followed. 0 where there is nothing."""
    total = 0
    for folder, _, files in os.walk(path):
        for name in files:
            with contextlib.suppress(OSError):  # another process may be moving files here
                found = (Path(folder) / name).lstat()
                total += found.st_size if stat.S_ISREG(found.st_mode) else 0
    return total


def is_report(name: str) -> bool:
    """True for the name of a report inside a run folder; one that somebody has edited keeps its own."""
    return name == REPORT or bool(_NEXT_REPORT.fullmatch(name))


def next_report(number: int) -> str:
    """The name of the report beside an edited one: ``report-2.html``."""
    return REPORT if number == 1 else f"report-{number}.html"


def is_run_file(name: str) -> bool:
    """True for a name that a run gives to a file or folder directly inside its own."""
    return name in _RUN_FILES or any(pattern.fullmatch(name) for pattern in (_CHECKPOINT, _NEXT_REPORT, _MOMENTARY))


def find_run(name: str, *, base: Path) -> RunDir:
    """The run folder for a path, or for a name under ``adapters/`` of ``base``.

    Raises ``RunError`` with the names of the runs there, without that which this process is about to begin.
    """
    for candidate in (Path(name).expanduser(), base / name, base / "adapters" / name):
        run = RunDir(candidate)
        if run.is_run():
            return run
        if run.file(MANIFEST).is_file() and (of := RunDir(candidate.resolve().parent)).is_run():
            raise RunError(f"{name} is a checkpoint, not a run", f"name its run: {of.path}")
    refuse_pipeline(name, base=base)
    near, known = runs_like(name, base=base)
    hint = f"did you mean {' or '.join(near)}?" if near else known
    raise RunError(f"{name!r} is not a run folder and no run under adapters/ has that name", hint)


def runs_like(name: str, *, base: Path) -> tuple[list[str], str]:
    """The runs under ``adapters/`` of ``base`` with nearly that name, and a sentence about those there are.

    Without that which this process is about to begin. A stage of a pipeline may be named without the pipeline.
    """
    others = [run for run in list_all_runs(base / "adapters") if lock_holder(run.file(LOCK)) != os.getpid()]
    labels = [run.label for run in others]
    short = Path(name).name
    near = [run.label for run in others if run.path.name == short] or get_close_matches(name, labels, 2)
    near = near or get_close_matches(short, labels, 2)
    if not labels:
        return [], "there is no run under adapters/ here; mlxft train RECIPE starts one"
    more = f" and {len(labels) - _MOST_NAMED} more (mlxft runs list)" if len(labels) > _MOST_NAMED else ""
    return near, f"runs here: {', '.join(labels[:_MOST_NAMED])}{more}"


def find_pipeline(name: str, *, base: Path) -> Path | None:
    """The folder of the pipeline of that path, or of that name under ``adapters/`` of ``base``; None where none is."""
    candidates = (Path(name).expanduser(), base / name, base / "adapters" / name)
    return next((path for path in candidates if (path / PIPELINE).is_file()), None)


def refuse_pipeline(name: str, *, base: Path, among: Callable[[RunDir], bool] = lambda run: True) -> None:
    """Raises ``RunError`` where ``name`` is a pipeline: with its stages ``among`` which one is to be named."""
    folder = find_pipeline(name, base=base)
    if folder is None:
        return
    runs = [run for run in list_runs(folder) if among(run)]
    at_work = [run for run in runs if running_process(run) is not None]
    is_short = folder.parent.resolve() == (base / "adapters").resolve()
    names = ", ".join(run.label if is_short else str(run.path) for run in at_work or runs)
    which = f"name the stage at work: {names}" if at_work else f"name one of its stages: {names}"
    hint = f"{which}; " if runs else ""
    raise RunError(f"{name} is a pipeline, not a run", f"{hint}about all of it: mlxft report {shlex.quote(name)}")


def list_runs(folder: Path) -> Sequence[RunDir]:
    """The runs directly inside ``folder``, by name; empty where there is no such folder."""
    if not folder.is_dir():
        return []
    return [RunDir(entry) for entry in sorted(folder.iterdir()) if RunDir(entry).is_run()]


def list_all_runs(folder: Path) -> Sequence[RunDir]:
    """The same with the stages of the pipelines in ``folder``, each pipeline's by their names."""
    if not folder.is_dir():
        return []
    pipelines = [entry for entry in sorted(folder.iterdir()) if (entry / PIPELINE).is_file()]
    return [*list_runs(folder), *(run for pipeline in pipelines for run in list_runs(pipeline))]


def take_lock(path: Path) -> int | None:
    """The open descriptor that holds the lock ``path``, with our process id in it; None where another process has it.

    Whoever asks ``lock_holder`` has the lock for an instant, hence a few tries. Raises ``RunError`` where the file
    system knows no locks.
    """
    descriptor = durable.open_lock(path)
    for tries_left in reversed(range(10)):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if not tries_left:
                os.close(descriptor)
                return None
            time.sleep(0.02)
        except OSError as error:
            os.close(descriptor)
            raise RunError(
                f"{path} cannot be locked: {error.strerror}", "choose an output_dir on a local disk"
            ) from error
    durable.cut(path, descriptor, 0)
    durable.append(path, descriptor, f"{os.getpid()}\n".encode())
    return descriptor


def lock_holder(path: Path) -> int | None:
    """Id of the process that holds the lock ``path`` (0: it has not written it yet), None where nobody does."""
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        written = os.read(descriptor, 32).strip()
        return int(written) if written.isdigit() else 0
    finally:
        os.close(descriptor)
    return None


def running_process(run: RunDir) -> int | None:
    """Id of the process to ask for a stop: the supervisor, else the training process; None where neither is there."""
    supervisor = lock_holder(run.file(SUPERVISOR))
    return lock_holder(run.file(LOCK)) if supervisor is None else supervisor


def busy(run: RunDir) -> RunError:
    """The refusal of a second process in a run folder."""
    pid = running_process(run)
    return RunError(
        f"another process ({pid or 'unknown'}) is training in {run.path}",
        f"watch it with: mlxft monitor {run.name}, stop it with: mlxft stop {run.name}",
    )
