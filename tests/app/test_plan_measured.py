"""``mlxft plan`` with its measuring process: real steps of a tiny model, the same in text and JSON, every end of it."""

import json
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from mlx_finetune.app.planning import measuring
from mlx_finetune.app.planning import plan as planning
from mlx_finetune.app.planning.measuring import measure
from mlx_finetune.app.planning.plan import Plan, make_plan, with_measured
from mlx_finetune.app.planning.plan_report import exact_bytes, plan_json, plan_lines, warning_lines
from mlx_finetune.cli import root
from mlx_finetune.errors import DoesNotFitError, MlxftError, RunError
from mlx_finetune.hardware.limits import Machine
from mlx_finetune.hardware.planning.chips import parse_mac
from mlx_finetune.hardware.planning.measured import Measured, ShapeCount, Timed
from mlx_finetune.hardware.planning.ranges import Range
from mlx_finetune.hardware.planning.rollouts import add_rollouts
from mlx_finetune.hardware.profile import Corrections
from mlx_finetune.recipe.hardware import HardwareRecipe
from mlx_finetune.recipe.load import load_recipe
from mlx_finetune.recipe.schema import Recipe
from mlx_finetune.units import format_bytes, format_energy, format_seconds, format_step

CPU = Machine(on_gpu=False, memory_bytes=16 * 10**9, working_set_bytes=0, chip="x86_64")
FOUND = Measured(
    startup_seconds=2.0,
    load_peak_bytes=10**8,
    peak_bytes=3 * 10**8,
    process_bytes=5 * 10**8,
    microbatches=(Timed(2, 32, 0.3, is_first=True), Timed(2, 32, 0.2), Timed(2, 64, 0.4)),
    update_seconds=0.01,
    validation=(Timed(2, 32, 0.1),),
    answer_seconds=None,
    shapes=(ShapeCount(2, 32, 5), ShapeCount(2, 64, 5)),
    valid_shapes=(ShapeCount(2, 32, 2),),
    total_steps=10,
    others_share=0.25,
    own_share=1.0,
    watts=20.0,
    seconds=5.0,
    is_cut_short=False,
)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLXFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(measuring, "BUDGET_SECONDS", 600)  # however busy the machine is
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"What is {n}?"},
                {"role": "assistant", "content": "It is " + "very " * (n % 7) + f"{n}."},
            ]
        }
        for n in range(100, 140)
    ]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


RECIPE = """model = "{model}"
output_dir = "adapters/x"
[lora]
rank = 4
[data]
path = "rows.jsonl"
test_split = 0.0
packing = false
[training]
max_steps = 10
batch_size = 2
gradient_accumulation_steps = 2
[eval]
prompts = ["Say something."]
max_new_tokens = 4
"""


@pytest.fixture
def written(tiny_model: Callable[..., Path]) -> str:
    Path("demo.toml").write_text(RECIPE.format(model=tiny_model("llama")))
    return "demo.toml"


def call(*arguments: str) -> Result:
    return CliRunner().invoke(root, list(arguments), standalone_mode=False)


def arithmetic(tiny_model: Callable[..., Path], **more: object) -> Plan:
    recipe = Recipe.model_validate(
        {
            "model": str(tiny_model("llama")),
            "output_dir": "adapters/x",
            "lora": {"rank": 4},
            "data": {"path": "rows.jsonl", "test_split": 0.0, "packing": False},
            "training": {"max_steps": 10, "batch_size": 2},
        }
        | more
    )
    return make_plan(recipe, base=Path.cwd(), machine=CPU)


# --- the whole command ---


def test_a_plan_measures_real_steps_and_leaves_nothing_in_the_folder(written: str, here: Path) -> None:
    before = sorted(path.name for path in here.iterdir())
    result = call("plan", written, "--json")
    assert result.return_value == 0, result.stderr
    values = json.loads(result.stdout)
    forecast, found = values["forecast"], values["measured"]
    assert forecast["source"] == "measured"
    assert found["total_steps"] == values["steps"]["total"] == 10
    assert sum(one["count"] for one in found["shapes"]) == 19  # 10 steps of two microbatches, one left in the last
    longest = max(found["shapes"], key=lambda one: one["length"])["length"]
    assert longest in [one["length"] for one in found["microbatches"]]
    assert forecast["peak_bytes"]["expected"] == max(found["peak_bytes"], found["load_peak_bytes"])
    for name in ("peak_bytes", "step_seconds", "finish_seconds", "disk_bytes"):
        assert 0 < forecast[name]["low"] <= forecast[name]["expected"] <= forecast[name]["high"]
    assert found["answer_seconds"] > 0
    assert sorted(path.name for path in here.iterdir()) == sorted({*before, "cache"})


def test_the_run_is_compared_with_its_plan_and_the_profile_learns(written: str) -> None:
    planned = json.loads(call("plan", written, "--json").stdout)["forecast"]
    trained = call("train", written, "--json")
    assert trained.return_value == 0, trained.stderr
    metrics = json.loads(Path("adapters/x/training_metrics.json").read_text())
    assert metrics["plan"]["is_measured"] is True
    assert metrics["plan"]["planned_peak_bytes"] == planned["peak_bytes"]["expected"]
    assert metrics["plan"]["planned_step_seconds"] == planned["step_seconds"]["expected"]
    assert metrics["plan"]["peak_bytes"] == metrics["peak_memory_bytes"]
    assert metrics["peak_memory_bytes"] == pytest.approx(planned["peak_bytes"]["expected"], rel=0.1)  # of 2 MB
    events = [json.loads(line) for line in Path("adapters/x/events.jsonl").read_text().splitlines()]
    assert re.fullmatch(
        r"peak memory [\d.]+ MB of [\d.]+ MB planned \([+-]\d+%\), \S+ m?s a step of \S+ m?s planned \([+-]\d+%\)",
        events[-1]["planned"],
    )
    assert json.loads(Path("cache/profile.json").read_text())["plans"] == {}


def test_a_plan_without_measuring_starts_no_process(written: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import subprocess

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    result = call("plan", written, "--no-measure", "--json")
    assert json.loads(result.stdout)["forecast"]["source"] == "arithmetic"
    assert json.loads(result.stdout)["forecast"]["step_seconds"] is None
    assert "not measured, and no run on this machine has told yet" in call("plan", written, "--no-measure").stdout


def test_a_damaged_profile_is_one_warning(written: str, here: Path) -> None:
    (here / "cache").mkdir()
    (here / "cache" / "profile.json").write_text("{")
    result = call("plan", written, "--no-measure")
    assert result.return_value == 0
    assert result.stderr.count("profile.json") == 1


# --- another Mac ---


def test_another_mac_is_planned_from_the_table(written: str) -> None:
    result = call("plan", written, "--predict", "M4 Max 32-core 36GB")
    assert result.return_value == 0
    assert result.stdout.startswith("plan of demo.toml for a Mac with M4 Max, 32 GPU cores, 36 GB")
    assert "from the chip table, a range of two" in result.stdout
    assert "there: mlxft train demo.toml" in result.stderr
    values = json.loads(call("plan", written, "--predict", "M4 Max 32-core 36GB", "--json").stdout)
    assert values["is_this_machine"] is False
    assert values["recipe"]["hardware"]["compute_dtype"] == "bfloat16"
    assert values["forecast"]["step_seconds"]["low"] < values["forecast"]["step_seconds"]["high"]
    assert "not calibrated" in call("plan", written, "--predict", "M5 Pro 48GB").stdout
    assert "not calibrated" not in call("plan", written, "--predict", "M5 48GB").stdout


def test_the_disk_of_another_mac_is_not_that_of_this_machine(written: str) -> None:
    page = call("plan", written, "--predict", "M4 16GB")
    assert re.search(r"a checkpoint .* at most$", page.stdout, re.MULTILINE)
    assert " free" not in page.stdout
    assert json.loads(call("plan", written, "--predict", "M4 16GB", "--json").stdout)["disk_bytes"]["free"] is None
    full = make_plan(load_recipe(Path(written)).recipe, base=Path.cwd(), machine=CPU, mac=parse_mac("M4 16GB"))
    assert replace(full, disk=replace(full.disk, free=0)).fits_disk
    assert not replace(full, mac=None, disk=replace(full.disk, free=0)).fits_disk


def test_an_unknown_mac_lists_what_is_known(written: str) -> None:
    result = call("plan", written, "--predict", "M9 64GB")
    assert isinstance(result.exception, MlxftError)
    assert result.exception.exit_code == 2
    assert "M1, M1 Pro" in result.exception.hint


# --- what does not fit ---

TIGHT = (
    *("--set", "training.batch_size=8", "--set", "training.gradient_checkpointing=false"),
    *("--set", "hardware.memory_limit=4000000"),
)


def test_fixes_are_numbered_ready_to_type_and_applied_with_their_number(written: str) -> None:
    result = call("plan", written, *TIGHT)
    assert result.return_value == 3
    fixes = json.loads(call("plan", written, *TIGHT, "--json").stdout)["fixes"]
    assert fixes
    for number, fix in enumerate(fixes, start=1):
        assert f"hint: {number}. {fix['options']}  (" in result.stderr
        fixed = call("plan", written, *TIGHT, "--no-measure", "--fix", str(number))
        assert fixed.return_value == 0, fixed.stderr
        assert f"next: {fix['command']}" in fixed.stderr
        assert fix["command"].startswith("mlxft train demo.toml --set ")
        as_json = call("plan", written, *TIGHT, "--no-measure", "--json", "--fix", str(number))
        assert json.loads(as_json.stdout)["command"] == fix["command"]
    assert f"mlxft plan demo.toml {' '.join(TIGHT)} --fix 1" in result.stderr


def test_a_number_that_is_no_fix_is_a_usage_error(written: str) -> None:
    result = call("plan", written, *TIGHT, "--fix", "9")
    assert isinstance(result.exception, MlxftError)
    assert result.exception.exit_code == 2


def test_a_fix_for_what_fits_changes_nothing(written: str) -> None:
    result = call("plan", written, "--no-measure", "--fix", "1")
    assert result.return_value == 0
    assert "it fits as it is" in result.stderr


def test_a_measured_peak_over_the_limit_does_not_fit_although_the_arithmetic_did(
    tiny_model: Callable[..., Path],
) -> None:
    plan = arithmetic(tiny_model, hardware={"memory_limit": 2 * 10**8})
    assert plan.fits
    measured = with_measured(plan, FOUND)
    assert not measured.fits
    assert measured.forecast.peak_bytes.expected == 3 * 10**8
    for fix in measured.fixes:
        assert fix.peak_bytes <= 2 * 10**8


# --- text and JSON ---


def shown(value: dict[str, float], show: Callable[[float], str]) -> str:
    found = Range.from_json(value)
    assert found is not None
    return found.text(show)


def test_text_and_json_agree(tiny_model: Callable[..., Path]) -> None:
    known = Corrections(memory_ratios=(1.1,) * 3, time_ratios=(1.2,) * 2)
    plan = with_measured(replace(arithmetic(tiny_model), corrections=known), FOUND)
    text = "\n".join(plan_lines(plan, name="x.toml"))
    values = json.loads(json.dumps(plan_json(plan)))
    forecast = values["forecast"]
    for part in (
        f"peak {shown(forecast['peak_bytes'], exact_bytes)} of {format_bytes(values['limits']['memory_bytes'])}: fits",
        f"{shown(forecast['step_seconds'], format_step)} a step, measured on this machine",
        f"{shown(forecast['finish_seconds'], format_seconds)} from start to end",
        f"{shown(forecast['joules'], format_energy)} at {values['measured']['watts']:.1f} W",
        f"{shown(forecast['disk_bytes'], exact_bytes)} when it has finished",
        f"the whole process took {format_bytes(values['measured']['process_bytes'])}",
        f"{len(values['measured']['microbatches'])} microbatches were timed in 5.0 s; other programs used 25% of",
        f"corrected by 2 planned runs on this machine: x {values['corrections']['time_factor']:.2f}",
        f"{values['steps']['total']} steps, {values['steps']['per_epoch']} in an epoch",
        f"{values['rows']['train']} rows to train on",
        f"half at most {values['tokens']['lengths']['median']}",
    ):
        assert part in text, part
    for bucket in values["tokens"]["lengths"]["histogram"]:
        if bucket["count"]:
            assert re.search(rf"{bucket['low']} - {bucket['high'] - 1} +{bucket['count']}  #", text)


def test_what_was_not_measured_for_want_of_time_is_said_and_the_plan_stays_as_it_was(
    tiny_model: Callable[..., Path],
) -> None:
    plan = arithmetic(tiny_model)
    busy = with_measured(plan, replace(FOUND, has_longest=False, is_cut_short=True, others_share=0.85, seconds=43.0))
    assert busy == replace(plan, warnings=busy.warnings)
    (said,) = (one for one in busy.warnings if one not in plan.warnings)
    assert "nothing was measured: the time for it was up after 43.0 s, before the longest rows" in said
    assert "other programs used 85% of the processors" in said
    slow = with_measured(plan, replace(FOUND, has_longest=False, others_share=0.0, startup_seconds=40.0))
    assert "(40.0 s to load)" in slow.warnings[-1]


def test_a_measuring_that_was_cut_short_is_said(tiny_model: Callable[..., Path]) -> None:
    for is_cut_short in (True, False):
        page = "\n".join(
            plan_lines(with_measured(arithmetic(tiny_model), replace(FOUND, is_cut_short=is_cut_short)), name="x")
        )
        assert ("timed in 5.0 s, and then the time for it was up" in page) == is_cut_short


def test_energy_is_never_invented(tiny_model: Callable[..., Path]) -> None:
    plan = with_measured(arithmetic(tiny_model), replace(FOUND, watts=None))
    assert "energy   not available: no power sensor here" in "\n".join(plan_lines(plan, name="x"))
    assert plan_json(plan)["forecast"]["joules"] is None  # pyright: ignore[reportIndexIssue]


def test_earlier_runs_correct_the_arithmetic_and_the_plan_says_so(tiny_model: Callable[..., Path]) -> None:
    recipe = arithmetic(tiny_model).recipe
    known = Corrections(memory_ratios=(1.5,) * 16, flops_per_second=(1e9,))
    plan = make_plan(recipe, base=Path.cwd(), machine=CPU, corrections=known)
    text = "\n".join(plan_lines(plan, name="x"))
    change = plan.resolved.peak_bytes - plan.resolved.memory.total
    line = next(one for one in text.splitlines() if "corrected by 16 runs on this machine" in one)
    assert line.endswith(f" +{format_bytes(change)}  all but the frozen weights x 1.38")
    assert change == pytest.approx(0.38 * (plan.resolved.memory.total - plan.resolved.memory.weights), rel=0.01)
    assert plan.forecast.peak_bytes.expected == plan.resolved.memory.corrected(known.memory_factor)
    assert "a step, from the speed of earlier runs on this machine" in text


def test_quantised_weights_save_nothing_on_a_cpu_and_the_page_says_why(tiny_model: Callable[..., Path]) -> None:
    asked, plain = arithmetic(tiny_model, quantize=4), arithmetic(tiny_model)
    stored = replace(plain, facts=replace(plain.facts, stored_bits=4))
    why = "4 bits a weight: on a CPU the same numbers are written out as float32, which saves no memory"
    for plan, is_said in ((asked, True), (stored, True), (plain, False), (with_measured(asked, FOUND), True)):
        page = "\n".join(plan_lines(plan, name="x"))
        assert (why in page) == is_said
        assert bool(re.search(r"frozen weights .* MB|frozen weights .* kB", page)) == (plan.measured is None)
        assert ("B  written out as float32" in page) == (is_said and plan.measured is None)


def test_every_limit_of_a_mac_has_its_reason_in_words(written: str) -> None:
    page = call("plan", written, "--predict", "M4 64GB").stdout
    assert "what Metal recommends, or what leaves macOS 15 %" in page
    assert not re.search(r"\bW\b", page.replace(" W,", ""))


def test_a_peak_near_the_limit_is_warned_about_with_ways_to_have_room(tiny_model: Callable[..., Path]) -> None:
    plan = with_measured(arithmetic(tiny_model, hardware={"memory_limit": 301 * 10**6}), FOUND)
    assert plan.fits
    assert plan.is_tight
    assert plan.fixes
    high = plan.forecast.peak_bytes.high / plan.forecast.peak_bytes.expected
    assert all(high * fix.peak_bytes <= 301 * 10**6 for fix in plan.fixes)
    lines = list(warning_lines(plan, command="mlxft plan x"))
    assert any("not at the upper end of the error bar, 309.0 MB" in line for line in lines)
    assert f"hint: 1. {plan.fixes[0].sentence()}" in lines
    assert "hint: for room to spare plan with one of them: mlxft plan x --fix 1" in lines
    assert any("hardware.memory_limit = 301.0 MB was asked for; left out it is" in line for line in lines)


def test_a_way_to_have_room_is_planned_with_its_number(written: str) -> None:
    roomy = ("--no-measure", "--json", "--set", "training.batch_size=8")
    peak = json.loads(call("plan", written, *roomy).stdout)["forecast"]["peak_bytes"]
    limit = f"hardware.memory_limit={round((peak['expected'] + peak['high']) / 2)}"
    tight = json.loads(call("plan", written, *roomy, "--set", limit).stdout)
    assert tight["fits"]
    assert tight["is_tight"]
    fixed = json.loads(call("plan", written, *roomy, "--set", limit, "--fix", "1").stdout)
    assert fixed["fits"]
    assert not fixed["is_tight"]
    assert fixed["command"] == tight["fixes"][0]["command"]


def test_a_limit_that_was_set_is_named_as_what_can_be_changed(written: str) -> None:
    result = call("plan", written, "--no-measure", "--set", "hardware.memory_limit=1MB")
    assert result.return_value == 3
    assert re.search(
        r"hardware.memory_limit = 1\.0 MB was asked for; left out it is .+ on this machine, where it fits",
        result.stderr,
    )
    assert "mlxft models list" not in result.stderr  # the tiny model is smaller than all in the list


def test_where_nothing_helps_a_smaller_model_is_named_only_where_there_is_one(
    tiny_model: Callable[..., Path],
) -> None:
    small = replace(CPU, memory_bytes=10**6)
    recipe = arithmetic(tiny_model).recipe
    lines = list(warning_lines(make_plan(recipe, base=Path.cwd(), machine=small), command="mlxft plan x"))
    assert (
        lines[-1] == "hint: no setting makes it fit, and no model of mlxft models list is smaller: it takes more memory"
    )
    large = recipe.model_copy(update={"model": "pythia-1.4b"})
    lines = list(warning_lines(make_plan(large, base=Path.cwd(), machine=small), command="mlxft plan x"))
    assert lines[-1] == "hint: no setting makes it fit; choose a smaller model: mlxft models list"


def test_a_limit_beyond_the_memory_of_the_machine_is_warned_about(tiny_model: Callable[..., Path]) -> None:
    plan = arithmetic(tiny_model, hardware={"memory_limit": 5 * 10**12})
    assert "hardware.memory_limit = 5.0 TB is more than the 16.0 GB of the whole machine; left out it is 12.8 GB" in (
        plan.warnings
    )
    assert not any("memory_limit" in one for one in arithmetic(tiny_model).warnings)


# --- every end of the measuring process ---


def ended(script: str) -> Measured:
    return measure(Path("demo.toml"), ["seed=3"], lambda _: None, command=[sys.executable, "-c", script])


def test_what_the_process_prints_last_is_the_result() -> None:
    line = json.dumps({"measured": FOUND.to_json()})
    given = ["--recipe", "demo.toml", "--budget", "600", "--set", "seed=3"]
    script = f"import sys; assert sys.argv[1:] == {given}; print({line!r})"
    assert ended(script) == FOUND


def test_it_is_measured_with_the_variables_that_the_training_gets() -> None:
    line = json.dumps({"measured": FOUND.to_json()})
    script = f"import os; assert os.environ['MLX_DISABLE_COMPILE'] == '1'; print({line!r})"
    hardware = HardwareRecipe.model_validate({"compile": False})
    command = [sys.executable, "-c", script]
    assert measure(Path("demo.toml"), [], lambda _: None, hardware=hardware, command=command) == FOUND


@pytest.mark.parametrize(
    ("script", "error", "message"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", DoesNotFitError, "ran out of memory"),
        ("raise MemoryError", DoesNotFitError, "ran out of memory"),
        ("import sys; sys.stderr.write('error: no\\nhint: yes\\n'); sys.exit(2)", RunError, "no"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", RunError, "crashed inside a library"),
        ("raise ValueError(7)", RunError, "ValueError: 7"),
        ("pass", RunError, "measuring the plan failed"),
    ],
)
def test_every_other_end_is_one_error_with_a_way_out(script: str, error: type[MlxftError], message: str) -> None:
    with pytest.raises(error) as caught:
        ended(script)
    assert message in caught.value.message
    assert caught.value.hint


def test_a_refusal_keeps_its_exit_code() -> None:
    with pytest.raises(RunError) as caught:
        ended("import sys; sys.stderr.write('error: no\\nhint: yes\\n'); sys.exit(2)")
    assert (caught.value.exit_code, caught.value.hint) == (2, "yes")


def test_a_program_that_is_not_there_is_an_error() -> None:
    with pytest.raises(RunError, match="cannot be started"):
        measure(Path("x.toml"), [], lambda _: None, command=["/nowhere/python"])


# --- what a plan refuses ---


def test_an_output_dir_that_is_a_file_is_refused_by_the_plan_too(written: str, here: Path) -> None:
    (here / "adapters").mkdir()
    (here / "adapters" / "x").write_text("a file")
    for arguments in (("plan", written), ("train", written, "--dry-run")):
        result = call(*arguments)
        assert isinstance(result.exception, RunError)
        assert "adapters/x is a file; output_dir must name a folder" in result.exception.message


def test_an_output_dir_below_a_file_is_refused(written: str, here: Path) -> None:
    (here / "adapters").write_text("a file")
    result = call("plan", written, "--no-measure")
    assert isinstance(result.exception, RunError)
    assert "adapters is a file" in result.exception.message


def test_data_beside_the_recipe_is_not_asked_for_on_the_hub(
    written: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "elsewhere").mkdir()
    monkeypatch.chdir(here / "elsewhere")
    for arguments in (("plan", f"../{written}"), ("train", f"../{written}", "--dry-run"), ("train", f"../{written}")):
        result = call(*arguments)
        assert isinstance(result.exception, MlxftError)
        assert "relative paths count from where mlxft is started" in result.exception.message
        assert str(here) in result.exception.hint


def test_the_time_says_which_run_scores_the_answers_and_whether_that_is_in_it(
    tiny_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "_scorer_bytes", lambda *_: 0)  # there is no such run
    rewards = ["number", "verifier:judge"]
    plan = arithmetic(tiny_model, task="grpo", grpo={"rewards": rewards, "max_tokens": 8, "updates": 2})
    silent = replace(plan, forecast=replace(plan.forecast, step_seconds=Range(1, 1, 1), finish_seconds=Range(9, 9, 9)))
    said = " ".join(plan_lines(silent, name="x"))
    assert "without the time" not in said, "nothing is known of a step that it could be part of"
    spoken = add_rollouts(silent.forecast, plan.resolved, None, 0, 0, on_gpu=False, assumed=(0.4, 0.1))
    told_all = " ".join(plan_lines(replace(silent, forecast=spoken), name="x"))
    assert "to say the answers, assumed: each has 60% of grpo.max_tokens, and a token takes what reading" in told_all
    assert "to learn from them, assumed: 70% of the groups teach, as their rewards differ; " in told_all
    assert "without the time for verifier:judge to score the answers; mlxft plan without --no-measure" in told_all
    unknown = replace(silent, forecast=add_rollouts(silent.forecast, plan.resolved, None, 0, 0, on_gpu=True))
    assert "score the answers and to say the answers, which is often most of it; mlxft plan" in " ".join(
        plan_lines(unknown, name="x")
    )
    told = replace(FOUND, drawing_seconds=(0.1, 0.05), score_seconds=(0.012, 1.5))
    spoken = with_measured(plan, Measured.from_json(json.loads(json.dumps(told.to_json()))))
    assert spoken.measured == told
    assert "in it: verifier:judge scores an answer in 12 ms to 1.50 s" in " ".join(plan_lines(spoken, name="x"))
    plain = with_measured(plan, replace(FOUND, drawing_seconds=(0.1, 0.05)))
    assert spoken.forecast.finish_seconds is not None
    assert plain.forecast.finish_seconds is not None
    assert spoken.forecast.finish_seconds.expected > plain.forecast.finish_seconds.expected + 10
    assert re.search(r"a checkpoint [\d.]+ kB and up to [\d.]+ kB for the answers between two updates; ", said)
    assert "between two updates" not in " ".join(plan_lines(arithmetic(tiny_model), name="x"))


def test_a_measured_plan_of_own_answers_has_the_memory_of_them_too(tiny_model: Callable[..., Path]) -> None:
    """A measured step learns the rows; nobody has said the answers of the run yet, which may be much longer."""
    plan = arithmetic(tiny_model, task="grpo", grpo={"max_tokens": 200})
    found = replace(FOUND, peak_bytes=10**6, load_peak_bytes=10**6)
    planned = with_measured(plan, found)
    assert planned.forecast.peak_bytes.expected == plan.resolved.peak_bytes > 10**6
    text = " ".join(plan_lines(planned, name="x"))
    assert "fits; by arithmetic, as no measured step has the answers of a run" in text
    assert "adapter, gradients, optimizer" in text
    assert with_measured(plan, FOUND).forecast.peak_bytes.expected == FOUND.peak_bytes
    rows = with_measured(arithmetic(tiny_model), found)
    assert rows.forecast.peak_bytes.expected == 10**6
    assert "fits; measured on the longest rows" in " ".join(plan_lines(rows, name="x"))
