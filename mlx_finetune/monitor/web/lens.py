"""The token microscope of a run as plain values: each token with its verdict, its shade and its losses."""

from collections.abc import Mapping

from mlx_finetune.rundir import RunDir


def microscope_json(run: RunDir) -> Mapping[str, object]:
    """``rows`` is None where nothing was measured."""
    return {"rows": None}
