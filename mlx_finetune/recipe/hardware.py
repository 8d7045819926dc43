"""[hardware]: what MLX and macOS are asked for, and how often the machine is looked at.

None of it is what is trained. ``compute_dtype``, ``microbatch``, ``num_threads``, ``tf32``, ``gpu_architecture`` and
``compile`` change the last bits of the arithmetic, the others no bit. What a variable of the environment says already
wins over the key of the same meaning (``hardware.metal``).
"""

from typing import Annotated, Literal

from pydantic import Field

from mlx_finetune.recipe.fields import Auto, Off, Section, SizeLimit

GPU_NAME = "^applegpu_g[0-9]{2}[a-z]$"
GpuName = Annotated[str, Field(pattern=GPU_NAME)]


class HardwareRecipe(Section):
    """[hardware]: compute type, limits and switches of MLX, and what is watched. "off" leaves a thing to MLX."""

    compute_dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="Type of the frozen weights and activations; auto is float32 on a CPU, float16 on M1 and M2, "
        "else bfloat16.",
    )
    memory_limit: SizeLimit = Field(
        "auto", description='MLX memory limit in bytes or as text such as "24 GB"; off is the one MLX has by itself.'
    )
    wired_limit: SizeLimit = Field(
        "auto", description="Memory that macOS keeps wired for the GPU (macOS 15 and later); off wires nothing."
    )
    cache_limit: SizeLimit = Field(
        "auto", description="Freed memory that MLX keeps for reuse; off keeps all of it, as MLX does by itself."
    )
    microbatch: Auto | Annotated[int, Field(ge=1, le=4096)] = Field(
        "auto",
        description="Rows (or packs) that go through the model at once, cut from or joined within a step, which keeps "
        "its rows; auto is training.batch_size, or what mlxft tune found to be faster.",
    )
    num_threads: Literal["auto", "halves"] | Annotated[int, Field(ge=1, le=1024)] = Field(
        "auto",
        description='On a CPU: "halves" computes a microbatch in two threads, half of it each; a number keeps it whole '
        "and gives its matrix products so many threads; auto is halves, or what mlxft tune found to be faster.",
    )
    relax_gpu_watchdog: Auto | bool = Field(
        "auto",
        description="Ask macOS for patience with long work on the GPU (AGX_RELAX_CDM_CTXSTORE_TIMEOUT=1); auto does.",
    )
    max_ops_per_buffer: Auto | Off | Annotated[int, Field(ge=1, le=100_000)] = Field(
        "auto",
        description="Operations after which MLX hands work to the GPU (MLX_MAX_OPS_PER_BUFFER); auto is what mlxft "
        "tune found, else MLX's 40 or 50.",
    )
    max_mb_per_buffer: Auto | Off | Annotated[int, Field(ge=1, le=1_000_000)] = Field(
        "auto",
        description="MiB of inputs after which MLX hands work to the GPU (MLX_MAX_MB_PER_BUFFER); auto is what mlxft "
        "tune found, else MLX's 40 or 50.",
    )
    residency_set_percent: Auto | Off | Annotated[int, Field(ge=1, le=100)] = Field(
        "auto",
        description="Share of the wired memory in one residency set, in percent (MLX_RESIDENCY_SET_MAX_PCT); auto is "
        "MLX's 5.",
    )
    fast_synch: Auto | bool = Field(
        "auto",
        description="Faster fences between processor and GPU (MLX_METAL_FAST_SYNCH, macOS 15 and later); auto is MLX's "
        "false.",
    )
    tf32: Auto | bool = Field(
        "auto",
        description="float32 products in reduced precision on the M5's neural accelerators (MLX_ENABLE_TF32); auto is "
        "MLX's true.",
    )
    gpu_architecture: Auto | GpuName = Field(
        "auto",
        description="The GPU that MLX takes this one for (MLX_METAL_GPU_ARCH): applegpu_g16s leaves the M5's neural "
        "accelerators unused; auto is the real one.",
    )
    compile: Auto | bool = Field(
        "auto",
        description="Let MLX compile functions; false is for finding faults (MLX_DISABLE_COMPILE), auto is true.",
    )
    sample_seconds: Annotated[float, Field(ge=0, le=3600)] = Field(
        5.0,
        description="Seconds between two looks at GPU, processor, memory, power and temperature; 0 never looks. More "
        "are left between them where that would take over 1 percent of a core.",
    )
    min_battery_percent: Annotated[int, Field(ge=0, le=100)] = Field(
        20,
        description="Charge at which a run on battery saves and waits for mains power, or for 5 percent more; 0 never "
        "waits.",
    )
