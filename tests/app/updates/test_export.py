"""load_series() and the export give what an outside analysis needs, and overwrite nothing."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file

import mlx_finetune
from mlx_finetune import rundir
from mlx_finetune.app.updates.export import export_series
from mlx_finetune.errors import RunError, UsageError


def test_a_series_gives_steps_factors_scale_and_updates(run):
    series = mlx_finetune.load_series(run.path)
    assert [checkpoint.step for checkpoint in series] == [0, 3, 6]
    assert [round(checkpoint.progress, 2) for checkpoint in series] == [0, 0.5, 1]
    assert series[0].valid_loss is not None
    assert series[-1].loss is not None
    path = series.paths[0]
    a, b = series[-1].factors(path)
    assert (a.shape[1], b.shape[0], series[-1].scale) == (4, 4, 2.0)
    np.testing.assert_allclose(series[-1].delta(path), 2.0 * (a @ b).T, atol=1e-6)
    assert not series[0].delta(path).any()
    assert series.base_weight(path).shape == series[-1].delta(path).shape
    assert len(series[1:]) == 2
    with pytest.raises(UsageError, match="only DoRA"):
        series[0].magnitude(path)
    with pytest.raises(UsageError, match=r"no matrix that was trained is called 'model\.nope'"):
        series[0].delta("model.nope")
    with pytest.raises(UsageError, match=r"no matrix that was trained is called 'model\.nope'"):
        series[0].factors("model.nope")
    with pytest.raises(RunError, match="is not a run folder"):
        mlx_finetune.load_series(run.path / "nothing")


def test_the_progress_of_an_extended_run_is_the_share_of_all_its_steps(run, tmp_path):
    shutil.copytree(run.path, tmp_path / "run")
    for step, total in ((0, 3), (3, 3), (6, 6)):  # as --extend 3 leaves them
        path = tmp_path / "run" / f"checkpoint-{step}" / rundir.TRAINER_STATE
        state = json.loads(path.read_text()) | {"total_steps": total, "progress": step / total}
        path.write_text(json.dumps(state))
    assert [checkpoint.progress for checkpoint in mlx_finetune.load_series(tmp_path / "run")] == [0, 0.5, 1]


@pytest.mark.parametrize("dense", [False, True])
def test_an_export_can_be_read_without_us(run, tmp_path, dense):
    series = mlx_finetune.load_series(run.path)
    files = export_series(series, tmp_path / "out", dense=dense)
    assert [file.name for file in files] == [*(f"updates-{step}.safetensors" for step in (0, 3, 6)), "series.json"]
    index = json.loads(files[-1].read_text())
    assert index["form"] == ("dense" if dense else "factored")
    for entry, checkpoint in zip(index["checkpoints"], series, strict=True):
        tensors = load_file(tmp_path / "out" / entry["file"])
        for path, facts in index["matrices"].items():
            if dense:
                update = tensors[f"{path}.delta"]
            else:
                update = index["scale"] * (tensors[f"{path}.lora_a"] @ tensors[f"{path}.lora_b"]).T
            assert list(update.shape) == facts["shape"]
            np.testing.assert_allclose(update, checkpoint.delta(path), atol=1e-6)
        assert entry["step"] == checkpoint.step


def test_nothing_is_overwritten_and_nothing_put_into_a_run(run, tmp_path):
    series = mlx_finetune.load_series(run.path)
    (tmp_path / "mine").write_text("x")
    with pytest.raises(UsageError, match="is there already and not an empty folder"):
        export_series(series, tmp_path, dense=False)
    with pytest.raises(UsageError, match="lies inside the run"):
        export_series(series, run.path / "updates", dense=False)
