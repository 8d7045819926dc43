"""Small real runs for the tests, inside this process: a tiny random model, every kind of noise switched on."""

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mlx_finetune.events import Evaluated, Event, Sampled, StepDone
from mlx_finetune.hardware.safer import Safer
from mlx_finetune.hardware.sensors import Memory, Power, Sensors
from mlx_finetune.journal import EventWriter, read_events
from mlx_finetune.recipe.load import load_recipe
from mlx_finetune.rundir import EVENTS, RunDir
from mlx_finetune.train.run import train_run
from mlx_finetune.train.signals import StopRequest
from mlx_finetune.train.start.admission import Request, admit
from mlx_finetune.train.watch import Surroundings, system_clocks

RECIPE = """
model = "{model}"
output_dir = "{output}"
seed = 11
[lora]
rank = 4
alpha = 8
dropout = 0.2
[data]
path = "{data}"
max_seq_length = 64
packing = {packing}
val_split = 0.2
test_split = 0.0
[training]
max_steps = 6
batch_size = 2
gradient_accumulation_steps = 2
learning_rate = 1e-2
eval_steps = 2
save_steps = 2
neftune_alpha = 5.0
[eval]
prompts = ["Say something."]
max_new_tokens = 4
"""


#: A machine on mains with all its memory, whatever the one is like that runs the tests.
CALM = Surroundings(Sensors(lambda: Power(False, None), lambda: Memory("normal", 0)), system_clocks(), time.sleep)


class Killed(BaseException):
    """Stands for SIGKILL: nothing after it runs but what the operating system would do."""


def write_rows(path: Path, num_rows: int = 24) -> Path:
    """Short conversations of differing lengths."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        for index in range(num_rows):
            turns = [
                ("user", f"What is {index} and {index * 7}?"),
                ("assistant", "sum " * (index % 5) + str(index * 8)),
            ]
            file.write(json.dumps({"messages": [{"role": role, "content": text} for role, text in turns]}) + "\n")
    return path


def write_recipe(folder: Path, model: Path, *, name: str = "run", packing: str = "true", extra: str = "") -> Path:
    """A recipe beside its rows; the run goes to ``folder/NAME``."""
    data = folder / "rows.jsonl"
    if not data.exists():
        write_rows(data)
    path = folder / f"{name}.toml"
    text = RECIPE.format(model=model, output=folder / name, data=data, packing=packing)
    for line in extra.splitlines():
        key = line.split("=")[0].strip()
        text = "\n".join(old for old in text.splitlines() if not (key and old.startswith(f"{key} ")))
    path.write_text(
        text + "\n" + extra + "\n" if extra.startswith("[") else text.replace("[training]", f"[training]\n{extra}")
    )
    return path


def train(
    recipe: Path,
    *,
    overrides: tuple[str, ...] = (),
    resume: bool = False,
    fork: bool = False,
    extend: int | None = None,
    stop_after: int | None = None,
    kill_after: int | None = None,
    restarts: tuple[Mapping[str, object], ...] = (),
    safer: Safer | None = None,
    around: Surroundings = CALM,
    on_event: Callable[[Event, StopRequest], None] | None = None,
) -> RunDir:
    """Run to the end, or until a signal (``stop_after``) or a kill (``kill_after``) right after that step's event.

    ``on_event`` is called after every event was written.
    """
    request = Request(recipe, overrides, resume, fork, extend, restarts, safer)
    loaded = load_recipe(recipe, overrides)
    admission = admit(RunDir(Path(loaded.recipe.output_dir)), request)
    stop = StopRequest()
    writer = EventWriter(admission.run.file(EVENTS), clock=time.time)

    def emit(event):
        writer(event)
        if on_event is not None:
            on_event(event, stop)
        if isinstance(event, StepDone) and event.step == stop_after:
            stop.request(2)
        if isinstance(event, StepDone) and event.step == kill_after:
            raise Killed

    try:
        train_run(loaded, request, admission, stop, emit, base=recipe.parent, around=around)
    except Killed:
        pass
    finally:
        writer.close()
        admission.release()
    return admission.run


def course(run: RunDir) -> list[tuple[Any, ...]]:
    """What a run reports and must repeat to the last bit: losses, rates, norms, evaluations and answers, in order."""
    found: list[tuple[Any, ...]] = []
    for record in read_events(run.file(EVENTS)):
        event = record.event
        if isinstance(event, StepDone):
            found.append(("step", event.step, event.loss, event.learning_rate, event.grad_norm, event.num_targets))
        elif isinstance(event, Evaluated):
            found.append(("evaluation", event.step, event.loss, event.is_best))
        elif isinstance(event, Sampled):
            found.append(("sample", event.step, event.answer))
    return found
