"""The process of ``mlxft plan --lr-range``: real steps that leave no trace, and every end of it for a person."""

import json
import math
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import bandit
import mlx.core as mx
import pytest
from click.testing import CliRunner
from small_runs import write_recipe

from mlx_finetune.app.planning import lr_range as running
from mlx_finetune.app.planning.lr_range import find_range, range_lines, rate_names
from mlx_finetune.cli import root
from mlx_finetune.errors import DoesNotFitError, Interrupted, MlxftError, RunError, UsageError
from mlx_finetune.hardware.planning.lr_range import NUM_STEPS, RangeFound, RangePoint, most_steps
from mlx_finetune.hardware.safer import Safer
from mlx_finetune.recipe.hardware import HardwareRecipe
from mlx_finetune.recipe.load import load_recipe
from mlx_finetune.train.lr_range import main, range_test
from mlx_finetune.train.signals import StopRequest
from mlx_finetune.train.start.prepare import Prepared, prepare


@pytest.fixture
def prepared(tmp_path: Path, tiny_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Prepared:
    monkeypatch.setenv("MLXFT_CACHE", str(tmp_path / "cache"))
    loaded = load_recipe(write_recipe(tmp_path, tiny_model("llama"), packing="false"))
    stop = StopRequest()
    return prepare(loaded, base=tmp_path, decided=None, total_steps=None, safer=Safer(), emit=lambda _: None, stop=stop)


def test_weights_and_moments_are_afterwards_what_they_were(prepared: Prepared) -> None:
    trainer = prepared.trainer
    before = {name: mx.array(value) for name, value in (trainer.parameters | trainer.state).items()}
    done: list[int] = []
    found = range_test(prepared, StopRequest(), done.append, num_steps=12)
    assert found.is_at_end, "the rows are few and the model is small, so that the loss still falls and it goes on"
    assert done == list(range(1, len(found.points) + 1))
    assert len(found.points) == 18
    assert [point.rate for point in found.points] == pytest.approx([10 ** (-6 + 4 * k / 11) for k in range(18)])
    assert len({point.loss for point in found.points}) == 18
    assert found.times_seen == round(prepared.stream.progress(18), 2) > 0
    costs: list[float] = []  # of the rows of each step with the weights of before
    for step in range(18):
        sums = [trainer.loss(batch) for batch in prepared.stream.microbatches(step)]
        costs.append(sum(one[0] for one, _ in sums) / sum(count for _, count in sums))
    assert found.points[0].smoothed == pytest.approx(sum(costs) / 18 + found.points[0].loss - costs[0])
    assert len(set(costs)) > 1
    for name, value in (trainer.parameters | trainer.state).items():
        assert mx.array_equal(value, before[name]), name
    again, _ = trainer.compute(prepared.stream.microbatches(0), 0)
    assert all(mx.all(mx.isfinite(value)).item() for value in again.values())
    trainer.close()


def test_pairs_are_compared_with_the_policy_before_the_test(
    tmp_path: Path, tiny_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLXFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("mlx_finetune.train.lr_range.range_test", partial(range_test, num_steps=12))
    rows = [{"prompt": f"What is {n}?", "chosen": str(n), "rejected": "No. " * (1 + n % 4)} for n in range(30)]
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = ["task=dpo", f"data.path={pairs}", "data.packing=auto", "lora.dropout=0", "training.neftune_alpha=0"]
    recipe = write_recipe(tmp_path, tiny_model("llama"))
    assert main(["--recipe", str(recipe), *(part for one in settings for part in ("--set", one))]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])["lr_range"]
    assert found["points"][0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert found["times_seen"] > 1


def test_a_signal_ends_it_between_two_steps_and_restores(prepared: Prepared) -> None:
    stop = StopRequest()
    before = {name: mx.array(value) for name, value in prepared.trainer.parameters.items()}
    with pytest.raises(Interrupted):
        range_test(prepared, stop, lambda done: stop.request(2) if done == 2 else None, num_steps=12)
    assert all(mx.array_equal(value, before[name]) for name, value in prepared.trainer.parameters.items())
    prepared.trainer.close()


FOUND = RangeFound(tuple(RangePoint(1e-6 * 1.2**k, 2.0, 2.0 - k / 100) for k in range(50)), 2e-4, True, 12.0)


def child(code: str) -> list[str]:
    return [sys.executable, "-c", f"import sys, json\n{code}"]


def ask(code: str) -> RangeFound:
    return find_range(
        Path("r.toml"), (), lambda _: None, hardware=HardwareRecipe.model_validate({}), command=child(code)
    )


def test_what_the_process_says_last_is_the_result() -> None:
    said = json.dumps({"lr_range": FOUND.to_json()})
    assert ask(f"print({said!r})") == FOUND


@pytest.mark.parametrize(
    ("code", "kind", "words"),
    [
        ("pass", RunError, "trying learning rates failed"),
        ("sys.stderr.write('error: no such model\\nhint: look\\n'); sys.exit(2)", MlxftError, "no such model"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", DoesNotFitError, "ran out of memory"),
    ],
)
def test_every_other_end_is_one_error(code: str, kind: type[MlxftError], words: str) -> None:
    with pytest.raises(kind, match=words):
        ask(code)


def test_the_lines_name_the_rate_and_compare_the_recipes() -> None:
    lines = "\n".join(range_lines(FOUND, ["##"], "mlxft sweep x"))
    assert FOUND.suggestion is not None
    assert f"training.learning_rate = {FOUND.suggestion:.1e}" in lines
    assert "a third of that rate; the recipe's 2.0e-04 is lower by 12 times" in lines
    nothing = RangeFound(FOUND.points[:3], 2e-4, False, 1.0)
    assert "no rate is suggested" in "\n".join(range_lines(nothing, [], ""))


def test_powers_of_ten_are_named_as_rates_are() -> None:
    names = rate_names([RangePoint(1e-2, 2.0, 2.0), RangePoint(1e-1, 2.0, 2.0), RangePoint(1.0, 2.0, 2.0)])
    assert list(names.values()) == ["1e-02", "1e-01", "1e+00"]


def test_where_the_loss_still_falls_the_lines_cannot_tell_and_suggest_no_rate() -> None:
    lines = "\n".join(range_lines(replace(FOUND, has_diverged=False), [], "mlxft sweep a.toml --set seed=1"))
    assert f"cannot tell: the smoothed loss still fell at {FOUND.points[-1].rate:.1e}" in lines
    assert "short runs at several rates tell more: mlxft sweep a.toml --set seed=1" in lines
    assert "training.learning_rate" not in lines


def test_it_goes_no_further_where_the_loss_rose_before_the_highest_rate(
    prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RangeFound, "is_at_end", property(lambda _: False))
    assert len(range_test(prepared, StopRequest(), lambda _: None, num_steps=12).points) == 12
    prepared.trainer.close()


def test_a_curve_over_few_rows_is_said_to_show_what_is_learned_by_heart() -> None:
    few, many = (replace(FOUND, times_seen=times) for times in (25.0, 1.2))
    assert "each was seen 25 times, so the curve shows how fast they are learned by heart" in "\n".join(
        range_lines(few, [], "")
    )
    assert "by heart" not in "\n".join(range_lines(many, [], ""))
    assert RangeFound.from_json(json.loads(json.dumps(few.to_json()))) == few


def test_a_task_that_learns_from_its_own_answers_is_refused_before_anything_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_model: Callable[..., Path]
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": "1 + 1 =", "completion": "2"}]
    recipe = bandit.write_recipe(tmp_path, tiny_model("llama"), rows)
    for changed, start in (((), "1e-05, the default for adapters"), (("--set", "lora="), "1e-06, the default for ")):
        said = CliRunner().invoke(root, ["plan", str(recipe), "--lr-range", *changed], standalone_mode=False)
        assert said.output == ""
        assert isinstance(said.exception, UsageError)
        assert "grpo learns from its own answers" in said.exception.message
        assert said.exception.hint.startswith(f"start with training.learning_rate = {start}")


def test_the_command_prints_a_curve_and_the_next_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_model: Callable[..., Path]
) -> None:
    recipe = write_recipe(tmp_path, tiny_model("llama"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLXFT_CACHE", str(tmp_path / "cache"))
    asked: list[tuple[str, ...]] = []

    def find(path: Path, overrides: tuple[str, ...], *_: object, **__: object) -> RangeFound:
        asked.append(tuple(overrides))
        return FOUND

    monkeypatch.setattr(running, "find_range", find)
    result = CliRunner().invoke(
        root, ["plan", str(recipe), "--lr-range", "--set", "lora.rank=2"], standalone_mode=False
    )
    assert asked == [("lora.rank=2",)]
    assert "suggested: training.learning_rate" in result.stdout
    drawn = result.stdout.splitlines()[2:13]
    assert drawn[0].startswith("  smoothed loss over the learning rate; ")
    losses = [float(line.partition("\u2524")[0]) for line in drawn if "\u2524" in line]
    smoothed = [point.smoothed for point in FOUND.points]
    assert len(losses) >= 2
    assert min(smoothed) - 0.5 <= losses[-1] < losses[0] <= max(smoothed) + 0.5
    assert drawn[-1].split() == ["1e-06", "1e-05", "1e-04", "1e-03"]  # up to 7.6e-03
    assert f"--set lora.rank=2 --set training.learning_rate={FOUND.suggestion:.1e}" in result.stderr
    machine = CliRunner().invoke(root, ["plan", str(recipe), "--lr-range", "--json"], standalone_mode=False)
    assert RangeFound.from_json(json.loads(machine.stdout)["lr_range"]) == FOUND
    refused = CliRunner().invoke(root, ["plan", str(recipe), "--lr-range", "--no-measure"], standalone_mode=False)
    assert isinstance(refused.exception, MlxftError)
    assert not (tmp_path / "run").exists()


def test_a_recipe_whose_rate_is_near_enough_is_trained_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_model: Callable[..., Path]
) -> None:
    recipe = write_recipe(tmp_path, tiny_model("llama"))
    monkeypatch.chdir(tmp_path)
    assert FOUND.suggestion is not None
    near = replace(FOUND, recipe_rate=2 * FOUND.suggestion)
    monkeypatch.setattr(running, "find_range", lambda *_, **__: near)
    result = CliRunner().invoke(root, ["plan", str(recipe), "--lr-range"], standalone_mode=False)
    assert "is near enough to it" in result.stdout
    assert result.stderr.endswith(f"next: mlxft train {recipe}\n")


@pytest.mark.slow
def test_the_whole_command_takes_real_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_model: Callable[..., Path]
) -> None:
    recipe = write_recipe(tmp_path, tiny_model("llama"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLXFT_CACHE", str(tmp_path / "cache"))
    result = CliRunner().invoke(root, ["plan", str(recipe), "--lr-range", "--json"], standalone_mode=False)
    found = RangeFound.from_json(json.loads(result.stdout)["lr_range"])
    assert len(found.points) in (NUM_STEPS, NUM_STEPS + 25, most_steps()) or found.has_diverged
    assert not (tmp_path / "run").exists()
