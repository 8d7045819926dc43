"""The checkpoints of a run as numbers: factors, scale, updates, base weights. What ``load_series`` gives a program.

Nothing is loaded before it is asked for: opening a series reads a few small JSON files, ``factors`` two tensors, and
only ``base_weight`` loads the base model.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast, overload

import numpy as np
from numpy.typing import NDArray

from mlx_finetune import durable, rundir
from mlx_finetune.app.updates.geometry import Dense, Factored, Update
from mlx_finetune.errors import RunError, UsageError
from mlx_finetune.rundir import RunDir, checkpoint_step, find_run

if TYPE_CHECKING:
    from mlx_finetune.app.open import Opened

Kind = Literal["lora", "dora", "full"]
Floats = NDArray[np.float32]
#: An SVD of a matrix whose smaller side is at most this long is made without being asked for (0.1 s at 512).
SMALL = 512


@dataclass(frozen=True, slots=True)
class SavedStep:
    """What a checkpoint says of itself. ``loss`` is of the last training step, ``valid_loss`` of this step's
    evaluation; None where there is none."""

    step: int
    loss: float | None
    valid_loss: float | None
    folder: Path
    state: Mapping[str, object]


class SavedCheckpoint:
    """One checkpoint of a series; arrays are numpy, fp32, and read from its files each time."""

    def __init__(self, series: "Series", saved: SavedStep) -> None:
        self._series = series
        self.saved = saved
        self.step = saved.step
        self.loss = saved.loss
        self.valid_loss = saved.valid_loss
        self.folder = saved.folder

    @property
    def progress(self) -> float:
        """The share of the run's steps that are done here, 0 to 1: of all steps, where the run was extended."""
        return round(self.step / self._series.total_steps, 6)

    def __repr__(self) -> str:
        return f"<checkpoint of step {self.step} ({self.progress:.0%})>"

    @property
    def scale(self) -> float:
        """What multiplies A B: alpha / rank, or alpha / sqrt(rank) with rsLoRA. 1 for a fully trained model."""
        return 1.0 if self._series.kind == "full" else self._series.scale

    @property
    def paths(self) -> tuple[str, ...]:
        """The matrices that were trained, such as ``model.layers.0.self_attn.q_proj``, in the model's order."""
        return self._series.paths

    def factors(self, path: str) -> tuple[Floats, Floats]:
        """A (in, r) and B (r, out) of an adapted matrix. Raises ``UsageError`` where there are none."""
        if self._series.kind == "full":
            raise UsageError("every weight was trained: there are no factors", "ask for delta(path)")
        if path not in self.paths:
            raise UsageError(f"no matrix that was trained is called {path!r}", "series.paths lists them")
        a, b = _tensors(self.folder / rundir.MLX_WEIGHTS, (f"{path}.lora_a", f"{path}.lora_b"))
        return a, b

    def magnitude(self, path: str) -> Floats:
        """DoRA's ``m`` (out,). Raises ``UsageError`` for another adapter."""
        if self._series.kind != "dora":
            raise UsageError("only DoRA has magnitudes")
        return _tensors(self.folder / rundir.MLX_WEIGHTS, (f"{path}.m",))[0]

    def delta(self, path: str) -> Floats:
        """What training has added to the weight up to here: (out, in). DoRA and full training need the base for it."""
        return self.update(path, has_svd=False).dense()

    def update(self, path: str, *, has_svd: bool | None = None) -> Update:
        """``delta`` in the form it is stored in, with its norm, singular values and comparisons (``geometry``)."""
        series = self._series
        if path not in series.paths:
            raise UsageError(f"no matrix that was trained is called {path!r}", "series.paths lists them")
        if series.kind == "lora":
            a, b = self.factors(path)
            return Factored(a, b, self.scale)
        base = series.base_weight(path)
        if series.kind == "full":
            delta = _tensors(self.folder / rundir.MODEL_WEIGHTS, (f"{path}.weight",))[0] - base
        else:  # m (W + s (A B)^T) / ||W + s (A B)^T|| by rows, less W
            a, b = self.factors(path)
            adapted = base + self.scale * (a @ b).T
            delta = (self.magnitude(path) / np.linalg.norm(adapted, axis=1))[:, None] * adapted - base
        return Dense(delta, min(delta.shape) <= SMALL if has_svd is None else has_svd)


class Series(Sequence[SavedCheckpoint]):
    """The checkpoints of a run by rising step."""

    def __init__(self, run: RunDir, steps: Sequence[SavedStep]) -> None:
        self.run = run
        self._checkpoints = [SavedCheckpoint(self, saved) for saved in steps]
        self._config = durable.read_object_if_any(steps[-1].folder / rundir.ADAPTER_CONFIG)

    def __len__(self) -> int:
        return len(self._checkpoints)

    @overload
    def __getitem__(self, index: int) -> SavedCheckpoint: ...
    @overload
    def __getitem__(self, index: slice) -> list[SavedCheckpoint]: ...
    def __getitem__(self, index: int | slice) -> SavedCheckpoint | list[SavedCheckpoint]:
        return self._checkpoints[index]

    def __iter__(self) -> Iterator[SavedCheckpoint]:
        return iter(self._checkpoints)

    @property
    def total_steps(self) -> int:
        """How many steps the run was to have when it last saved."""
        total = self[-1].saved.state.get("total_steps")
        return total if isinstance(total, int) and total > 0 else max(1, self[-1].step)

    @property
    def kind(self) -> Kind:
        """lora, dora, or full where every weight is trained."""
        if not self._config:
            return "full"
        return "dora" if self._config.get("use_dora") else "lora"

    @cached_property
    def scale(self) -> float:
        """What multiplies A B."""
        parameters = self._config.get("lora_parameters")
        value = cast("dict[str, object]", parameters).get("scale") if isinstance(parameters, dict) else None
        if not isinstance(value, int | float):
            raise RunError(f"{self[-1].folder / rundir.ADAPTER_CONFIG} does not say the adapter's scale")
        return float(value)

    @cached_property
    def paths(self) -> tuple[str, ...]:
        """The matrices that were trained."""
        name, ending = (rundir.MODEL_WEIGHTS, ".weight") if self.kind == "full" else (rundir.MLX_WEIGHTS, ".lora_a")
        shapes = _shapes(self[-1].folder / name)
        found = [key.removesuffix(ending) for key, shape in shapes.items() if key.endswith(ending) and len(shape) == 2]
        return tuple(sorted(found, key=_natural))

    def base_weight(self, path: str) -> Floats:
        """The weight before training, (out, in), dequantised; the base model is loaded once, when first asked for."""
        first = self[0]
        if self.kind == "full" and first.step == 0:
            return _tensors(first.folder / rundir.MODEL_WEIGHTS, (f"{path}.weight",))[0]
        return self._opened_weight(path)

    def _opened_weight(self, path: str) -> Floats:
        from mlx_finetune.model.adapters.layers import dense_weight
        from mlx_finetune.model.adapters.lora import module_at

        opened = self._opened
        model = opened.model if opened.load_base is None else opened.load_base()
        module = module_at(model, path)
        module = getattr(module, "linear", module)
        if "scales" not in module:
            return np.array(module.weight.astype(_mx().float32))
        return np.array(dense_weight(module))

    @cached_property
    def _opened(self) -> "Opened":
        from mlx_finetune.hardware import blas

        blas.prepare()  # before mlx is imported
        from mlx_finetune.app.open import open_name

        return open_name(str(self[-1].folder), base=Path.cwd(), report=lambda _: None)


def load_series(run: str | Path) -> Series:
    """The checkpoints of ``run``, a run folder or a name under ``adapters/``, by rising step.

    Raises ``RunError`` where there is no such run or it has no checkpoint.
    """
    return open_series(find_run(str(run), base=Path.cwd()))


def open_series(found: RunDir) -> Series:
    """``load_series`` of a folder. Raises ``RunError``."""
    steps = [_read_step(folder) for folder in found.checkpoints()]
    if not steps:
        raise RunError(
            f"{found.path} has no checkpoint, so there is nothing to trace",
            "keep some: training.save_at = [0, 0.25, 0.5, 0.75, 1.0]",
        )
    kinds = {(step.folder / rundir.ADAPTER_CONFIG).is_file() for step in steps}
    if len(kinds) > 1:
        raise RunError(f"{found.path} has checkpoints of adapters and of whole models; they cannot be compared")
    return Series(found, steps)


def _read_step(folder: Path) -> SavedStep:
    state = durable.read_object_if_any(folder / rundir.TRAINER_STATE)
    if not state:
        raise RunError(f"{folder / rundir.TRAINER_STATE} cannot be read", "remove that checkpoint, or restore it")
    step = checkpoint_step(folder)
    history = state.get("log_history")
    entries = cast("list[dict[str, object]]", history) if isinstance(history, list) else []
    valid = next((entry["eval_loss"] for entry in reversed(entries) if "eval_loss" in entry), None)
    is_now = state.get("evaluated_step") == step
    loss = state.get("loss")
    return SavedStep(
        step=step,
        loss=loss if isinstance(loss, float) else None,
        valid_loss=valid if is_now and isinstance(valid, float) else None,
        folder=folder,
        state=state,
    )


def _natural(path: str) -> list[int | str]:
    """Blocks in order: numbers count as numbers. Alternating kinds, so that any two can be compared."""
    return [f"{int(part):09d}" if part.isdigit() else part for part in path.split(".")]


def _mx():
    import mlx.core as mx

    return mx


def _tensors(path: Path, names: Sequence[str]) -> list[Floats]:
    """Tensors of one safetensors file, fp32. Raises ``RunError``."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            return [file.get_tensor(name).astype(np.float32, copy=False) for name in names]
    except (OSError, SafetensorError) as error:
        raise RunError(f"{path} cannot be read: {error}", _moved(path)) from None


def _shapes(path: Path) -> Mapping[str, Sequence[int]]:
    """Shapes of the tensors of one safetensors file. Raises ``RunError``."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            return {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 - no mapping
    except (OSError, SafetensorError) as error:
        raise RunError(f"{path} cannot be read: {error}", _moved(path)) from None


def _moved(path: Path) -> str:
    return f"move {path.parent.name} out of the run, and the others are traced"
