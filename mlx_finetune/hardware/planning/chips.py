"""Apple's chips, and how fast one of them trains, for a Mac that is not here. Pure arithmetic, nothing is measured.

The table is that of MACOS.md section 2: FP32 TFLOPS and memory bandwidth of the full-size GPU of each name; a GPU with
fewer cores has its share of them. A training reaches 25 to 55 % of the peak (section 2.1), so a time from here is a
range of a factor of two. Where no trustworthy figure of a chip is known it is called not calibrated.
"""

import re
from dataclasses import dataclass

from mlx_finetune.errors import UsageError
from mlx_finetune.hardware.limits import GIB, Machine, working_set_share
from mlx_finetune.hardware.planning.ranges import Range
from mlx_finetune.hardware.planning.shapes import ModelShape, adapted_layers
from mlx_finetune.recipe.schema import LoraRecipe

#: Share of the FP32 peak that trainings reach: the least, the usual, the most (MACOS.md section 2.1).
LOW_SHARE, USUAL_SHARE, HIGH_SHARE = 0.25, 0.40, 0.55
ACTIVE_EXPERTS = 2  # of a mixture, for each token: what Mixtral uses; the table of shapes does not carry the number
EXAMPLE = "M4 Max 64GB"


@dataclass(frozen=True, slots=True)
class Chip:
    """A chip with its full-size GPU. ``cpu_cores`` counts performance (M5: super) and efficiency cores.

    ``smaller`` are the GPU cores and the GB of memory of the least Mac that Apple sells with a chip of this name.
    """

    name: str
    cpu_cores: tuple[int, int]
    gpu_cores: int
    tflops: float
    gigabytes_per_second: int
    smaller: tuple[int, int]
    has_bf16: bool
    is_calibrated: bool = True


CHIPS = (
    Chip("M1", (4, 4), 8, 2.6, 68, (7, 8), has_bf16=False),
    Chip("M1 Pro", (8, 2), 16, 5.2, 200, (14, 16), has_bf16=False),
    Chip("M1 Max", (8, 2), 32, 10.4, 400, (24, 32), has_bf16=False),
    Chip("M1 Ultra", (16, 4), 64, 21.0, 800, (48, 64), has_bf16=False),
    Chip("M2", (4, 4), 10, 3.6, 100, (8, 8), has_bf16=False),
    Chip("M2 Pro", (8, 4), 19, 6.8, 200, (16, 16), has_bf16=False),
    Chip("M2 Max", (8, 4), 38, 13.5, 400, (30, 32), has_bf16=False),
    Chip("M2 Ultra", (16, 8), 76, 27.2, 800, (60, 64), has_bf16=False),
    Chip("M3", (4, 4), 10, 4.1, 100, (8, 8), has_bf16=True),
    Chip("M3 Pro", (6, 6), 18, 7.4, 150, (14, 18), has_bf16=True),
    Chip("M3 Max", (12, 4), 40, 14.2, 400, (30, 36), has_bf16=True),
    Chip("M3 Ultra", (24, 8), 80, 28.4, 819, (60, 96), has_bf16=True, is_calibrated=False),
    Chip("M4", (4, 6), 10, 4.6, 120, (8, 16), has_bf16=True),
    Chip("M4 Pro", (10, 4), 20, 9.2, 273, (16, 24), has_bf16=True),
    Chip("M4 Max", (12, 4), 40, 18.4, 546, (32, 36), has_bf16=True),
    Chip("M5", (4, 6), 10, 5.7, 153, (8, 16), has_bf16=True),
    Chip("M5 Pro", (6, 12), 20, 11.4, 307, (16, 24), has_bf16=True, is_calibrated=False),
    Chip("M5 Max", (6, 12), 40, 22.8, 614, (32, 36), has_bf16=True, is_calibrated=False),
)


@dataclass(frozen=True, slots=True)
class Mac:
    """A Mac from the table: its chip, the GPU cores it has, and the machine as the plan sees it."""

    chip: Chip
    gpu_cores: int
    machine: Machine

    @property
    def tflops(self) -> float:
        """FP32 peak of a GPU with this many cores, 10^12 operations a second."""
        return self.chip.tflops * self.gpu_cores / self.chip.gpu_cores

    @property
    def name(self) -> str:
        """``M4 Max, 32 GPU cores, 36 GB``."""
        return f"{self.chip.name}, {self.gpu_cores} GPU cores, {self.machine.memory_bytes // GIB} GB"


def find_chip(name: str) -> Chip | None:
    """The chip of a name such as ``Apple M4 Max``; None where the table has none."""
    plain = " ".join(name.split()).casefold().removeprefix("apple ").removesuffix(" (virtual)")
    return next((chip for chip in CHIPS if chip.name.casefold() == plain), None)


_MAC = re.compile(r"(?:apple\s+)?(?P<family>m\d+)\s*(?P<kind>pro|max|ultra)?\b(?P<rest>.*)", re.IGNORECASE | re.DOTALL)
_CORES = re.compile(r"(\d+)[\s-]*(?:gpu[\s-]*)?cores?(?:\s*gpu)?", re.IGNORECASE)
_MEMORY = re.compile(r"(\d+)\s*(?:GB|GiB|G)\b", re.IGNORECASE)


def parse_mac(text: str) -> Mac:
    """``M4 Max 64GB`` or ``M4 Max 32-core 36GB``; the full-size GPU where no cores are given.

    Raises ``UsageError`` that lists the chips there are, or says what is missing.
    """
    match = _MAC.fullmatch(text.strip())
    chip = find_chip(f"{match['family']} {match['kind'] or ''}") if match else None
    if match is None or chip is None:
        known = ", ".join(one.name for one in CHIPS)
        raise UsageError(f"{text!r} is no Mac of the chip table", f'known: {known}; write for example "{EXAMPLE}"')
    cores, memory = _CORES.search(match["rest"]), _MEMORY.search(match["rest"])
    left = _MEMORY.sub("", _CORES.sub("", match["rest"], count=1), count=1).strip(" ,;/")
    if memory is None or left:
        what = f"does not say how much memory the {chip.name} has" if memory is None else f"has {left!r} in it"
        raise UsageError(f"{text!r} {what}", _example(chip))
    gpu_cores = int(cores[1]) if cores else chip.gpu_cores
    if gpu_cores not in (chip.smaller[0], chip.gpu_cores):
        message = f"the {chip.name} has {chip.smaller[0]} or {chip.gpu_cores} GPU cores, not {gpu_cores}"
        raise UsageError(message, _example(chip))
    gigabytes = int(memory[1])
    if not 8 <= gigabytes <= 1024:
        raise UsageError(f"no Mac with Apple silicon has {gigabytes} GB of memory", f'for example "{EXAMPLE}"')
    num_bytes = gigabytes * GIB
    working_set = round(working_set_share(num_bytes) * num_bytes)
    machine = Machine(True, num_bytes, working_set, f"Apple {chip.name}", gpu_cores)
    return Mac(chip, gpu_cores, machine)


def _example(chip: Chip) -> str:
    """A Mac that there is."""
    cores, gigabytes = chip.smaller
    return f'write for example "{chip.name} {cores}-core {gigabytes}GB"; without cores it has {chip.gpu_cores}'


def active_parameters(shape: ModelShape) -> int:
    """Parameters that one token goes through: of experts only those it is sent to."""
    idle = sum(one.inputs * one.outputs * max(0, one.copies - ACTIVE_EXPERTS) for one in shape.linears)
    return shape.num_parameters - shape.num_layers * idle


def flops_per_token(shape: ModelShape, lora: LoraRecipe | None, *, recompute: bool, num_reused: int = 0) -> float:
    """``2 N (1 + f + f [recomputation])``, f the share of blocks with an adapter; ``2 N (3 + [..])`` without one.

    An adapter needs the gradients of activations only; full training those of the weights too. ``num_reused`` blocks
    whose output is kept (``hardware.planning.kept_states``) are not computed. Attention scores are not counted
    (MACOS.md section 2.1).
    """
    passes = 3.0 + recompute
    if lora is not None:
        passes = 1 + adapted_layers(shape, lora) / shape.num_layers * (2 if recompute else 1)
    return 2 * active_parameters(shape) * (passes - num_reused / shape.num_layers)


def tokens_per_second(mac: Mac, flops: float) -> Range:
    """``share * TFLOPS * 1e12 / flops``: tokens through forward and backward in a second on ``mac``."""
    peak = mac.tflops * 1e12
    return Range(LOW_SHARE * peak / flops, USUAL_SHARE * peak / flops, HIGH_SHARE * peak / flops)
