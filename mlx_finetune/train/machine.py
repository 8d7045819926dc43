"""What the machine does during a run: sampled beside the training (``hardware.sampling``), written between its steps.

A run that continues goes on counting the energy from the last sample in its journal, which was cut back to the
checkpoint: what a killed process used after that is not in it.
"""

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import replace

from mlx_finetune.events import Event
from mlx_finetune.hardware.metal import ENVIRONMENT_WINS, metal_settings
from mlx_finetune.hardware.sampling.sampler import Sampler
from mlx_finetune.journal import read_resources
from mlx_finetune.recipe.hardware import HardwareRecipe
from mlx_finetune.rundir import EVENTS, RunDir
from mlx_finetune.train.watch import Surroundings, Watch

Report = Callable[[int], None]


@contextmanager
def sampled_machine(
    run: RunDir, seconds: float, around: Surroundings, watch: Watch, emit: Callable[[Event], None]
) -> Generator[Report]:
    """A function that writes the newest sample, with the step it is given, if nobody has written it before.

    Power source, pressure and swap are those that ``watch`` has read. ``seconds`` 0 never looks.
    """
    sources = around.find_sources(run.path, seconds) if seconds else ()
    if not sources:
        yield lambda step: None
        return
    before = read_resources(run.file(EVENTS))
    with Sampler(sources, seconds=seconds, joules=before[-1].energy_joules if before else None) as sampler:

        def report(step: int) -> None:
            sample = sampler.take()
            if sample is not None:
                power, memory = watch.power, watch.memory
                emit(
                    replace(
                        sample,
                        step=step,
                        on_battery=power.on_battery,
                        battery_percent=power.percent,
                        pressure=memory.level,
                        swap_bytes=memory.swap_bytes,
                    )
                )

        yield report


def with_setting_reasons(reasons: Mapping[str, str], hardware: HardwareRecipe, around: Surroundings) -> dict[str, str]:
    """``reasons`` with those of the variables of this process, by key of [hardware], for resolved.toml.

    What was tuned keeps its own reason, unless the user's environment has decided otherwise.
    """
    found = metal_settings(hardware, around.environment, around.system, around.tuned)
    settings = {one.key: one.reason for one in found if one.reason}
    return settings | {
        key: reason for key, reason in reasons.items() if not settings.get(key, "").startswith(ENVIRONMENT_WINS)
    }
