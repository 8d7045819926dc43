"""The whole of mlxft tune with real processes on a tiny model: everything is tried, and nothing of it is unsafe."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from small_runs import write_recipe

from mlx_finetune.app.tune.children import run_trial
from mlx_finetune.app.tune.session import Session
from mlx_finetune.app.tune.subject import of_recipe
from mlx_finetune.hardware.tune import ROUNDS
from mlx_finetune.hardware.tuned import Tried, TunedSettings
from mlx_finetune.recipe.load import load_recipe


class Silent:
    """Shows nothing."""

    def begin(self, settings: TunedSettings, round_number: int) -> None:
        """A process starts."""

    def settled(self, tried: Sequence[Tried]) -> None:
        """A stage is over."""


@pytest.mark.slow
def test_every_candidate_is_trained_and_learns_the_same(
    tiny_model: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLXFT_CACHE", str(tmp_path / "cache"))
    subject = of_recipe(load_recipe(write_recipe(tmp_path, tiny_model("llama"), packing="false")))
    session = Session(lambda *asked: run_trial(subject, *asked), Silent(), budget=3600.0)
    session.run()
    assert session.case is not None
    assert (session.case.batch_size, session.case.accumulation) == (2, 2)
    keys = {key for one in session.tried for key in one.settings}
    assert keys == {"hardware.num_threads", "hardware.microbatch", "training.gradient_checkpointing"}
    sizes = [one.settings.get("hardware.microbatch") for one in session.tried]
    assert [size for size in sizes if size is not None] == [1, 4]
    assert {one.verdict for one in session.tried} <= {"kept", "tie", "slower", "beaten"}
    assert all(one.gain is not None and 1 <= one.rounds <= ROUNDS for one in session.tried)
