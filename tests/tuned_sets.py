"""Sets as mlxft tune would have kept them, for the tests of whoever reads them."""

from dataclasses import replace

from mlx_finetune.hardware.tuned import Tried, TunedSet, TunedSettings, system_name

MADE = 1795694400.0  # 26 Nov 2026, noon

TRIED = (
    Tried({"hardware.num_threads": 2}, {"hardware.num_threads": "halves"}, "kept", 3, 1.25, 0.03),
    Tried({"hardware.microbatch": 2}, {"hardware.microbatch": "4"}, "kept", 3, 1.1, 0.03),
    Tried({"hardware.microbatch": 1}, {"hardware.microbatch": "4"}, "slower", 1, 0.7, 0.02),
    Tried(
        {"training.gradient_checkpointing": True},
        {"training.gradient_checkpointing": "false"},
        "crashed",
        0,
        message="a library aborted the training process (SIGABRT)",
    ),
)


def tuned_set(**changes: object) -> TunedSet:
    """A set of two settings that were kept, one that was slower and one that crashed."""
    found = TunedSet(
        settings=TunedSettings(num_threads=2, batch_size=2),
        made=MADE,
        system=system_name(),
        mlxft="0.1.0",
        subject="smollm2-135m, 4 rows a step",
        seconds=192.4,
        tried=TRIED,
    )
    return replace(found, **changes)  # pyright: ignore[reportArgumentType]
