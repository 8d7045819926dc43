"""``mlxft pipeline`` with real trainings of tiny models: two stages and an evaluation. Killing them is slow."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from conftest import ROOT
from small_runs import write_rows

from mlx_finetune.commands.pipeline import command
from mlx_finetune.durable import hash_file
from mlx_finetune.errors import RunError, UsageError

RECIPE = """
model = "{model}"
output_dir = "adapters/x"
[data]
path = "rows.jsonl"
max_seq_length = 64
val_split = 0.2
test_split = 0.2
[training]
max_steps = {steps}
batch_size = 2
learning_rate = 1e-3
eval_steps = 2
save_steps = 2
"""
PIPELINE = """
output_dir = "adapters/p"
[[stages]]
name = "full"
recipe = "full"
[[stages]]
name = "sft"
recipe = "lora.toml"
start_from = "full"
[[evaluations]]
name = "rows"
stages = ["full", "sft"]
data = "rows.jsonl"
tasks = ["loss"]
max_rows = 6
"""


def write_pipeline(folder: Path, model: Path, *, steps: int = 2) -> None:
    """The recipes, the rows and p.toml."""
    write_rows(folder / "rows.jsonl")
    text = RECIPE.format(model=model, steps=steps)
    (folder / "full.toml").write_text(text)
    (folder / "lora.toml").write_text(text + "[lora]\nrank = 4\ndropout = 0.1\n")
    (folder / "p.toml").write_text(PIPELINE)


def start(folder: Path, *arguments: str) -> "subprocess.Popen[str]":
    """``mlxft pipeline p.toml ARGUMENTS`` as a user starts it."""
    return subprocess.Popen(
        [sys.executable, "-m", "mlx_finetune", "pipeline", "p.toml", *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "TERM": "dumb"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def call(*arguments: str) -> Result:
    return CliRunner().invoke(command, ["p.toml", *arguments], standalone_mode=False)


def stages_of(result: Result) -> list[tuple[str, str]]:
    return [(one["name"], one.get("status", one.get("action"))) for one in json.loads(result.stdout)["stages"]]


def test_a_pipeline_runs_is_planned_skipped_looked_at_and_protected(
    tmp_path: Path, tiny_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_pipeline(tmp_path, tiny_model("llama"))
    planned = call("--dry-run", "--no-measure")
    assert not Path("adapters").exists()
    lines = planned.stdout.splitlines()
    assert lines[0] == "plan of p.toml into adapters/p"
    assert [line.split()[:2] for line in lines[3:] if line.startswith(("full", "sft"))] == [
        ["full", "runs"],
        ["sft", "runs"],
    ]
    assert "  planned with the model that full begins with" in lines
    assert stages_of(call("--dry-run", "--no-measure", "--json")) == [("full", "run"), ("sft", "run")]
    process = start(tmp_path)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    _check_table(out)
    assert [line for line in err.splitlines() if line.startswith(("stage ", "evaluating ", "next: "))] == [
        "stage 1 of 2, full: begins",
        "evaluating rows of full",
        "stage 2 of 2, sft: begins",
        "evaluating rows of sft",
        "next: mlxft chat adapters/p/sft",
    ]
    _check_report(Path("adapters/p"))
    _check_afterwards()


def _check_table(out: str) -> None:
    """Every stage, and every figure with its interval."""
    head, *rows = out.splitlines()
    assert head.split() == ["STAGE", "WHAT", "STATUS", "STEPS", "VALIDATION", "LOSS", "TIME", "SIZE"]
    assert [row.split()[0] for row in rows[:2]] == ["full", "sft"]
    assert "finished  2/2" in rows[0]
    figures = {row.split()[0]: row for row in rows[4:] if row.startswith(("full", "sft"))}
    assert {name: " to " in row for name, row in figures.items()} == {"full": True, "sft": True}


def _check_report(folder: Path) -> None:
    """One page that asks nobody for anything, with a link to the page of each stage; and the table as Markdown."""
    page = (folder / "report.html").read_text()
    assert 'href="full/report.html"' in page
    assert "http" not in page.replace("http-equiv", "")
    for name in ("full", "sft"):
        assert (folder / name / "report.html").is_file()
    assert "| sft | sft, 8.2k trained | finished |" in (folder / "report.md").read_text()
    before = json.loads((folder / "full" / "training_metrics.json").read_text())["best_eval_loss"]
    after = json.loads((folder / "sft" / "training_metrics.json").read_text())["first_eval_loss"]
    assert after == pytest.approx(before, abs=1e-5)  # it starts where the first one ended


def _check_afterwards() -> None:
    assert stages_of(call("--status", "--json")) == [("full", "finished"), ("sft", "finished")]
    again = call()
    assert (again.return_value, again.stderr.count("done before, skipped")) == (0, 2)
    assert "finished (skipped)" in again.stdout
    assert call("--dry-run", "--no-measure").stdout.splitlines()[-1] == "everything is done"
    with pytest.raises(RunError, match=r"would be replaced: sft \(training.max_steps: was 2, is now 3\)"):
        raise call("--set", "sft.training.max_steps=3").exception or AssertionError("nothing was refused")
    assert "needs --force" in call("--set", "sft.training.max_steps=3", "--dry-run", "--no-measure").stdout
    changed = ("--set", "sft.training.max_steps=3", "--only", "full")
    assert "\n  outdated: training.max_steps: was 2, is now 3\n" in call(*changed, "--dry-run", "--no-measure").stdout
    alone = call(*changed)
    assert alone.stderr.splitlines()[-3:-1] == [
        "sft is not as the file has it now: training.max_steps: was 2, is now 3",
        "to make that and what follows anew: mlxft pipeline p.toml --set sft.training.max_steps=3 --force",
    ]
    assert [line.count("(skipped)") for line in alone.stdout.splitlines()[1:3]] == [1, 0]
    with pytest.raises(UsageError, match="--dry-run and --status"):
        raise call("--status", "--dry-run").exception or AssertionError("nothing was refused")
    whole = Path("p.toml").read_text()
    Path("p.toml").write_text(whole.replace('"sft"', '"other"'))
    others = [("full", "finished"), ("other", "waiting")]
    assert stages_of(call("--status", "--json")) == others
    Path("p.toml").write_text(whole)
    assert stages_of(call("--status", "--json")) == [("full", "finished"), ("sft", "finished")]
    Path("adapters/p/report.html").write_text("mine")
    assert call().return_value == 0
    assert Path("adapters/p/report.html").read_text() == "mine"
    assert Path("adapters/p/report-2.html").is_file()


def test_a_stage_that_fails_is_named_with_its_reason_and_how_to_go_on(
    tmp_path: Path, tiny_model: Callable[..., Path]
) -> None:
    write_pipeline(tmp_path, tiny_model("llama"))
    process = start(tmp_path, "--set", "full.hardware.memory_limit=1 MB")
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (3, "")
    last = [line for line in err.splitlines() if line][-3:]
    assert last[0].startswith("error: stage full has failed: the training needs about ")
    assert last[1].startswith("hint: ")
    assert last[2] == "to go on: mlxft pipeline p.toml --set 'full.hardware.memory_limit=1 MB'"


def test_status_of_a_pipeline_that_never_ran_says_how_to_start_it(
    tmp_path: Path, tiny_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_pipeline(tmp_path, tiny_model("llama"))
    with pytest.raises(RunError, match="no pipeline has run in adapters/p"):
        raise call("--status").exception or AssertionError("nothing was refused")


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_stopped_or_killed_at_any_moment_it_ends_with_the_same_weights(
    tmp_path: Path, tiny_model: Callable[..., Path], how: signal.Signals
) -> None:
    """Again and again, a little later each time, in trainings, in evaluations and between them."""
    write_pipeline(tmp_path, tiny_model("llama"), steps=24)
    straight, cut = tmp_path, tmp_path / "cut"
    cut.mkdir()
    write_pipeline(cut, tiny_model("llama"), steps=24)
    process = start(straight)
    process.communicate(timeout=300)
    assert process.returncode == 0
    seconds, ended = 1.0, None
    for _ in range(60):
        process = start(cut)
        try:
            process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(how)
        _, err = process.communicate(timeout=120)
        ended = process.returncode
        if ended == 0:
            break
        if how != signal.SIGKILL:
            is_early = err in ("", "interrupted\n")  # before anything was decided
            assert is_early or ended == 128 + how, err
            assert is_early or err.splitlines()[-1] == "to go on: mlxft pipeline p.toml"
        seconds += 0.4
        _wait_for_orphans(cut)
    assert ended == 0
    for name in ("full/model/model.safetensors", "sft/adapter_model.safetensors"):
        assert hash_file(cut / "adapters/p" / name) == hash_file(straight / "adapters/p" / name)


def _wait_for_orphans(folder: Path) -> None:
    """A training whose parent was killed saves and leaves by itself."""
    from mlx_finetune.rundir import LOCK, lock_holder

    deadline = time.monotonic() + 60
    while any(lock_holder(path) is not None for path in folder.glob(f"adapters/p/**/{LOCK}")):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)
