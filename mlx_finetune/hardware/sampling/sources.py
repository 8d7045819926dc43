"""All sources of this machine, with how often each is asked: what changes slowly or costs more, less often."""

import os
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from mlx_finetune.hardware.sampling.energy import Monitor, energy_sources, open_monitor
from mlx_finetune.hardware.sampling.gpu import read_gpu
from mlx_finetune.hardware.sampling.host import (
    Processor,
    read_disk,
    read_footprint,
    read_memory,
    read_resident,
    read_temperature,
    read_throttling,
)
from mlx_finetune.hardware.sampling.source import Source
from mlx_finetune.hardware.system.programs import Runner, find_program, run_program

SLOW_SECONDS = 30.0
FOOTPRINT_SECONDS = 60.0  # it walks through all the memory of the process


def system_sources(
    folder: Path,
    *,
    seconds: float,
    environment: Mapping[str, str],
    system: str = sys.platform,
    run: Runner = run_program,
    monitor: Monitor | None = None,
) -> tuple[Source, ...]:
    """Sources for a run in ``folder`` that is looked at every ``seconds``; where two tell a figure the later counts.

    On a Mac each look starts two programs (``ioreg``, ``vm_stat``), every sixth ``pmset`` too, every twelfth
    ``footprint``. ``monitor`` is the chip's where it is not given.
    """
    everywhere = (
        Source("processor", Processor().read),
        Source("memory", partial(read_memory, system, run)),
        Source("disk", partial(read_disk, folder), SLOW_SECONDS),
        Source("process", read_resident),
    )
    if system != "darwin":
        return (*everywhere, Source("temperature", read_temperature, SLOW_SECONDS))
    return (
        *everywhere,
        Source("footprint", partial(read_footprint, os.getpid(), run), FOOTPRINT_SECONDS),
        *_energy(monitor, environment, seconds),
        Source("gpu", partial(read_gpu, run)),
        Source("heat", partial(read_throttling, run), SLOW_SECONDS),
    )


def _energy(monitor: Monitor | None, environment: Mapping[str, str], seconds: float) -> Sequence[Source]:
    return energy_sources(monitor or open_monitor(), find_program("macmon", environment), seconds=seconds)
