"""What kill_loop.py kills: the kinds of small runs, and the real training process that says which phase it is in.

The phase is one byte of shared memory, written on the way into and out of the functions in ``WRAPPED``: after a
SIGKILL it still says where the process died.
"""

import functools
import gc
import importlib
import json
import mmap
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from mlx_finetune.hardware import blas

ROOT = Path(__file__).resolve().parents[1]

RECIPE = """
model = "{model}"
output_dir = "run"
seed = 11
[data]
path = "{folder}/rows.jsonl"
chat_template = "{folder}/template.jinja"
max_seq_length = 64
val_split = 0.2
test_split = 0.0
[training]
max_steps = {steps}
batch_size = 2
learning_rate = 1e-2
eval_steps = 5
save_steps = 3
keep_checkpoints = 2
[eval]
prompts = ["Say something."]
max_new_tokens = 4
"""
TEMPLATE = (  # goes with every tokenizer that has an end-of-sequence token
    "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
LORA = ("lora.rank=4", "lora.alpha=8", "lora.dropout=0.2")
PACKED = ("data.packing=true", "training.gradient_accumulation_steps=2", "training.neftune_alpha=5.0")
#: Name of a kind of run -> what it sets in RECIPE. A later objective joins by one line.
KINDS = {
    "sft-lora": (*LORA, *PACKED),
    "full": ("data.packing=false", "training.gradient_accumulation_steps=2"),
    "pretrain": ("task=pretrain", "data.path={folder}/texts.jsonl", "training.save_at=[0.5]"),
    "rslora": (*LORA, "lora.use_rslora=true", "data.packing=false"),
    "dora": (*LORA, *PACKED, "lora.use_dora=true", "training.gradient_checkpointing=true"),
    "qlora": (*LORA, *PACKED, "quantize=4", "training.keep_best=false"),
}

PHASES = ("loading", "start", "resume", "training", "save", "rotate", "publish")
#: Module, function and the phase a trial is in while that function runs; resume is called start in a run's first one.
#: A name that is gone is an error at once.
WRAPPED = (
    ("mlx_finetune.train.child", "admit", "resume"),
    ("mlx_finetune.train.run", "_restored_state", "resume"),
    ("mlx_finetune.train.run", "discard_after", "resume"),
    ("mlx_finetune.train.run", "restore_trainer", "resume"),
    ("mlx_finetune.train.run", "write_decisions", "resume"),
    ("mlx_finetune.train.run", "run_loop", "training"),
    ("mlx_finetune.train.checkpoints.contents", "save_checkpoint", "save"),
    ("mlx_finetune.train.checkpoints.contents", "rotate", "rotate"),
    ("mlx_finetune.train.run", "_finish", "publish"),
)
T = TypeVar("T")


def wrap_phases(memory: mmap.mmap, *, resuming: bool) -> None:
    """Keep the number of the phase in byte 0 of ``memory`` and count the entries into each phase behind it."""
    for module_name, name, phase in WRAPPED:
        module = importlib.import_module(module_name)
        function = getattr(module, name)  # an AttributeError here: it was renamed, so mend WRAPPED
        phase = "start" if phase == "resume" and not resuming else phase
        setattr(module, name, _in_phase(function, memory, PHASES.index(phase)))


def _in_phase(function: Callable[..., T], memory: mmap.mmap, number: int) -> Callable[..., T]:
    @functools.wraps(function)
    def wrapped(*arguments: object, **options: object) -> T:
        before = memory[0]
        memory[0] = number
        memory[1 + number] = (memory[1 + number] + 1) % 256
        try:
            return function(*arguments, **options)
        finally:
            memory[0] = before

    return wrapped


def be_trial(memory: mmap.mmap, arguments: Sequence[str], log: Path) -> int:
    """Train in this process; its exit code. What it prints before it has its own log goes to ``log``."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        wrap_phases(memory, resuming="--resume" in arguments)
        from mlx_finetune.train import child

        return child.main(arguments)
    except BaseException:
        os.write(2, traceback.format_exc().encode())
        return 1


def map_phases(path: Path) -> mmap.mmap:
    """The shared bytes of a trial."""
    with path.open("r+b") as file:
        return mmap.mmap(file.fileno(), 1 + len(PHASES))


@dataclass(slots=True)
class Trial:
    """A started process; ``status`` is what waitpid says once it has ended."""

    pid: int
    memory: mmap.mmap
    started: float
    status: int | None = None
    phase_at_signal: int = 0

    def is_running(self) -> bool:
        """True until the process has ended."""
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.status = status if pid else None
        return self.status is None

    def send(self, number: signal.Signals) -> None:
        """Send a signal; where SIGKILL struck is read after the death, what else was sent may be heard later."""
        self.phase_at_signal = self.memory[0]
        if number == signal.SIGKILL:
            self.kill()
            self.phase_at_signal = self.memory[0]
        else:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill and wait for it, where it has not ended yet."""
        if self.status is None:
            os.kill(self.pid, signal.SIGKILL)
            self.status = os.waitpid(self.pid, 0)[1]

    def exit_code(self) -> int:
        """Of a process that has ended: its code, or minus the signal it died of."""
        assert self.status is not None, "it is still running"
        return os.waitstatus_to_exitcode(self.status)

    def entries(self, phase: str) -> int:
        """How often the process has entered ``phase``."""
        return self.memory[1 + PHASES.index(phase)]


def load_everything(cache: Path) -> None:
    """Import all that a trial needs and compute nothing with mlx, so that this process can be forked."""
    os.environ |= {
        "OPENBLAS_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "MLXFT_CACHE": str(cache),
    }
    blas.prepare()
    names = ("mlx_finetune.train.run", "mlx_finetune.train.child", "mlx_lm.models.llama", "encodings.unicode_escape")
    for name in names:
        importlib.import_module(name)
    if sys.platform == "linux":
        assert len(os.listdir("/proc/self/task")) == 1, "an import started a thread, which no forked trial would have"
    gc.freeze()


def write_inputs(folder: Path, model: Path | None, steps: int) -> None:
    """The recipe, its rows and texts, the chat template, and a random model where none is given."""
    from small_runs import write_rows
    from tiny import write_tiny_model

    model = model or write_tiny_model(folder / "model", "llama")
    write_rows(folder / "rows.jsonl")
    texts = ({"text": f"{number} times seven is {7 * number}, " * (1 + number % 4)} for number in range(24))
    (folder / "texts.jsonl").write_text("".join(json.dumps(text) + "\n" for text in texts))
    (folder / "template.jinja").write_text(TEMPLATE)
    (folder / "recipe.toml").write_text(RECIPE.format(model=model.resolve(), folder=folder, steps=steps))


def settings(kind: str, folder: Path) -> list[str]:
    """The command-line arguments that make the recipe of ``folder`` one of ``kind``."""
    return [part for text in KINDS[kind] for part in ("--set", text.format(folder=folder))]


def start_trial(shared: Path, log: Path, arguments: Sequence[str], *, fresh: bool) -> "Trial":
    """Start the training process with ``arguments``, forked from this one or as a ``fresh`` one."""
    shared.write_bytes(bytes(1 + len(PHASES)))
    memory, started = map_phases(shared), time.monotonic()
    if fresh:
        command = [sys.executable, __file__, str(shared), str(log), *arguments]
        return Trial(os.posix_spawn(sys.executable, command, os.environ), memory, started)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = be_trial(memory, arguments, log)
        finally:
            os._exit(code)
    return Trial(pid, memory, started)


if __name__ == "__main__":
    load_everything(Path(os.environ["MLXFT_CACHE"]))
    sys.exit(be_trial(map_phases(Path(sys.argv[1])), sys.argv[3:], Path(sys.argv[2])))
