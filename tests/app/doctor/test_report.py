"""Canaries: whatever must not leave this machine is planted wherever it can stand, and looked for in the report."""

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from doctor_facts import HEALTHY, HEALTHY_MAC, MODELS, answering

from mlx_finetune.app.doctor.environment import Environment
from mlx_finetune.app.doctor.finding import Finding
from mlx_finetune.app.doctor.redact import Person, make_redactor
from mlx_finetune.app.doctor.redact import Training as NoTraining
from mlx_finetune.app.doctor.report import make_report, read_person, write_report
from mlx_finetune.app.doctor.run_extract import redact_key
from mlx_finetune.errors import RunError
from mlx_finetune.events import (
    CheckpointSaved,
    Evaluated,
    Notice,
    Phase,
    Resources,
    Restarted,
    RunFailed,
    RunStarted,
    Sampled,
    StepDone,
)
from mlx_finetune.journal import EventWriter
from mlx_finetune.recipe.load import load_recipe
from mlx_finetune.recipe.resolve import render_resolved
from mlx_finetune.rundir import CORRECTIONS, EVENTS, LOG, RECIPE, RESOLVED, RUN_INFO, SAMPLES, RunDir

HOME, USER, HOST = "/Users/zzcanaryuser", "zzcanaryuser", "zzcanaryhost"
PERSON = Person(HOME, (USER, "Zz Canary"), (HOST,))
TOKENS = {
    "HF_TOKEN": "hf_ZZcanary0123456789abcdef",
    "OPENAI_API_KEY": "sk-ZZcanary0123456789abcdef",
    "WANDB_API_KEY": "0123456789abcdef0123456789abcdef01234567",
    "SOME_SECRET": "zzcanary plain words",
}
PROMPT = "zzcanary prompt: how do I keep bread fresh?"
ANSWER = "zzcanary answer\nin two lines"
ROW = "zzcanary row that stands in the training file and nowhere else"
VALID = "zzcanary row that stands in the validation file and nowhere else"
CORRECTED = "zzcanary answer that a person put right in a chat with the run"
MAIL = "zzcanary@example.org"
CANARIES = ("zzcanary", "ZZcanary", "0123456789abcdef0123456789abcdef01234567", "bread fresh", "Zz Canary")


def trained(base: Path) -> RunDir:
    """A run with a canary wherever training text, a name or a token can stand."""
    (base / "rows.jsonl").write_text(json.dumps({"text": ROW}) + "\n")
    (base / "held.txt").write_text(VALID + "\n")
    recipe = base / "mine.toml"
    recipe.write_text(
        f'model = "{HOME}/models/qwen"\noutput_dir = "adapters/mine"\n[lora]\n'
        f'[data]\ntrain = "rows.jsonl"\nvalid = "held.txt"\ncolumns = {{ text = "zzcanary column" }}\n'
        f'template_arguments = {{ greeting = "zzcanary hello" }}\n'
        f'[eval]\nprompts = ["{PROMPT}", "zzcanaryword"]\n[chat]\nsystem = "zzcanary system"\n'
    )
    run = RunDir(base / "adapters" / "mine")
    run.path.mkdir(parents=True)
    loaded = load_recipe(recipe)
    run.file(RECIPE).write_text(recipe.read_text())
    run.file(CORRECTIONS).write_text(json.dumps({"messages": [{"content": CORRECTED}]}) + "\n")
    run.file(RUN_INFO).write_text(json.dumps({"started_in": str(base)}))
    reasons = {"training.batch_size": f"the row '{ROW}' is long"}
    run.file(RESOLVED).write_text(render_resolved(loaded.recipe, reasons))
    run.file(SAMPLES).write_text(json.dumps({"step": 0, "prompt": PROMPT, "answer": ANSWER}) + "\n")
    run.file(LOG).write_text(
        f"{ROW}\nuser said: zzcanary free text\nTraceback (most recent call last):\n"
        f'  File "{HOME}/mlxft/x.py", line 3, in f\n    zz = "zzcanary code"\nKeyError: \'zzcanary key\'\n'
        f"ValueError: cannot make sense of {ROW}\nValueError: {CORRECTED}\nerror: {PROMPT} went wrong on {HOST}\n"
        f"warning: {TOKENS['HF_TOKEN']} of {MAIL}\nRuntimeError: [matmul] Last dimension of first input\n"
    )
    write = EventWriter(run.file(EVENTS), clock=time.time)
    for event in (
        RunStarted("mine", f"{HOME}/models/qwen", "sft", 0, 10, 5, 5, 1, 100, 200, HOST, "float32"),
        Phase("load", ROW),
        Sampled(0, PROMPT, ANSWER),
        StepDone(1, 0.1, 2.125, 1e-4, 1.0, 10, 12, 0.0, 1.5, 10.0, 3_000_000, 4_000_000),
        Resources(1, cpu_percent=97.123456, gpu_percent=None, pressure="normal"),
        Evaluated(1, 2.0, 10, is_best=True, seconds=1.0),
        CheckpointSaved(1, f"{HOME}/x", 5_000_000, 0.5),
        Notice("warning", f"the row '{ROW[:25]}' is long", MAIL),
        Restarted(1, 1, "memory", f"it met {VALID}", "smaller", is_bitwise=True),
        RunFailed(f"zz {ROW}", PROMPT, 1),
    ):
        write(event)
    write.close()
    return run


@pytest.fixture(name="text")
def text_fixture(tmp_path: Path) -> str:
    trained(tmp_path)
    facts = replace(
        HEALTHY,
        folders=(replace(MODELS, path=f"{HOME}/Library/Caches/mlxft"),),
        environment=Environment(f"{HOME}/mlxft/.venv", variables={"PYTHONPATH": f"{HOME}/x", "MLXFT_CACHE": HOST}),
    )
    findings = (
        Finding("warning", f"the run mine failed: {ROW}", f"cd {HOME} && mlxft train mine.toml --resume"),
        Finding("note", f"{HOME}/mlxft lies on {HOST}", "-"),
    )
    report = make_report(facts, findings, base=tmp_path, variables=TOKENS, person=PERSON, now=time.time())
    assert sum(report.counts.values()) > 10
    return report.text


def test_no_canary_is_in_the_report(text: str):
    for canary in (*CANARIES, *TOKENS.values(), MAIL, HOME, HOST):
        assert canary not in text, canary


def test_rows_are_found_from_the_folder_where_the_run_was_started(tmp_path: Path):
    run = trained(tmp_path)
    (tmp_path / "else" / "adapters").mkdir(parents=True)
    run.path.rename(tmp_path / "else" / "adapters" / "mine")
    report = make_report(HEALTHY, (), base=tmp_path / "else", variables=TOKENS, person=PERSON, now=time.time())
    assert "ValueError: " not in report.text
    assert report.text.count("[left out: it repeats a training row]") >= 2
    assert "zzcanary" not in report.text


def test_what_helps_is_in_the_report(text: str):
    for wanted in (
        "warning: [left out: it repeats a training row]",
        "mend it: cd ~ && mlxft train mine.toml --resume",
        "models           ~/Library/Caches/mlxft: 3.0 GB, 80.0 GB free",
        "processor        AMD EPYC, 2 cores",
        "PYTHONPATH=~/x",
        "step 1: loss 2.125, norm 1, 1.50 s, 3.0 MB, peak 4.0 MB",
        "started at step 0 of 10: sft, 5 rows, 100 of 200 parameters, float32",
        "the machine: step 1, cpu_percent 97.123, pressure normal",
        '  File "~/mlxft/x.py", line 3, in f',
        "KeyError: [quoted]",
        "RuntimeError: [matmul] Last dimension of first input",
        'model = "~/models/qwen"',
        'train = "rows.jsonl"',
        "prompts = [removed: 2 entries]",
        "system = [removed: ",
        "columns = [removed: 1 entries]",
        "rank = 16",
        'lr_scheduler = "cosine"',
        "Please read it before you send it.",
    ):
        assert wanted in text, wanted


def test_the_head_counts_what_was_taken_out(text: str):
    head = text[: text.index("## Findings")]
    assert "Taken out here: " in head
    assert " x home folder" in head
    assert " x line of the log" in head


def test_without_a_run_there_is_still_a_report(tmp_path: Path):
    report = make_report(HEALTHY, (), base=tmp_path, variables={}, person=PERSON, now=time.time())
    assert "## Newest run\n\nnone in the last days\n" in report.text
    assert "Taken out here: 4 x user." in report.text  # whose folders they are


def test_a_macs_own_answers_are_in_it_without_serial_numbers(tmp_path: Path, shared: Callable[..., Path]):
    def recorded(*parts: str) -> str:
        return shared("macos-fixtures", *parts).read_text("utf-8")

    answers = {
        "pmset -g batt": recorded("pmset", "batt_low.txt"),
        "pmset -g therm": recorded("pmset", "therm_throttled.txt"),
        "ioreg -r -d 1 -w 0 -c IOAccelerator": recorded("ioreg", "m1_8core.txt")
        + '\n  "IOPlatformSerialNumber" = "C02Z"\n',
    }
    report = make_report(
        HEALTHY_MAC, (), base=tmp_path, variables={}, person=PERSON, now=time.time(), run_tool=answering(answers)
    )
    told = report.text[report.text.index("## Answers of macOS") :]
    assert "  Now drawing from 'Battery Power'" in told
    assert "-InternalBattery-0 (id)" in told
    assert "CPU_Speed_Limit \t= 62" in told
    assert "PerformanceStatistics" in told
    assert "$ vm_stat\n  [no answer]\n" in told
    assert "C02Z" not in told
    assert "24182883" not in told
    assert (
        "## Answers of macOS"
        not in make_report(HEALTHY, (), base=tmp_path, variables={}, person=PERSON, now=time.time()).text
    )


def test_a_run_that_is_half_gone_is_no_reason_to_fail(tmp_path: Path):
    run = trained(tmp_path)
    for name in (RESOLVED, LOG, SAMPLES, RECIPE):
        run.file(name).unlink()
    run.file(EVENTS).write_bytes(b"\xff\x00{\n")
    report = make_report(HEALTHY, (), base=tmp_path, variables={}, person=PERSON, now=time.time())
    assert "checkpoints: none" in report.text


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("rank = 16  # as asked", "rank = 16  # as asked"),
        ("max_steps = 5  # 'a row'", "max_steps = 5  # [quoted]"),
        ('path = "a # b.jsonl"', 'path = "a # b.jsonl"'),
        ("# epochs is not set", "# epochs is not set"),
        ("[training]", "[training]"),
        ('system = ""', 'system = ""'),
        ('truncation = "keep-end"', 'truncation = "keep-end"'),
        ('target_modules = ["q_proj", "v_proj"]', 'target_modules = ["q_proj", "v_proj"]'),
        ('prompts = ["a b", "c"]', "prompts = [removed: 2 entries]"),
        ("stop = ['x']", "stop = [removed: 1 entries]"),
        ('sources = [{ path = "a.jsonl", weight = 0.5 }]', 'sources = [{ path = "a.jsonl", weight = 0.5 }]'),
        ('endpoints = [{ path = "x", prompt = "secret" }]', "endpoints = [removed: 1 entries]"),
        ("not toml at all", "[a line left out]"),
    ],
)
def test_a_line_of_a_recipe_keeps_numbers_names_and_known_words(line: str, shown: str):
    assert redact_key(line, make_redactor(PERSON, {}, NoTraining())) == shown


def test_every_text_of_a_recipe_that_is_no_name_is_removed():
    """The schema is asked for its keys, so that a new one with free text is found here."""
    from mlx_finetune.app.doctor.run_extract import NAMED
    from mlx_finetune.recipe.schema import Recipe

    redactor = make_redactor(PERSON, {}, NoTraining())
    schema = Recipe.model_json_schema()
    sections = [schema, *schema["$defs"].values()]
    keys = {key for section in sections for key in section.get("properties", {})}
    assert {"prompts", "system", "prompt", "columns", "path"} <= keys
    for key in keys - NAMED:
        for value in ('"zz canary"', '["zz canary"]', '{ a = "zz canary" }', '[{ path = "x", b = "zz canary" }]'):
            assert "canary" not in redact_key(f"{key} = {value}", redactor), key


def test_a_report_is_whole_and_never_written_over(tmp_path: Path):
    report = make_report(HEALTHY, (), base=tmp_path, variables={}, person=PERSON, now=time.time())
    first, second = (write_report(report, None, tmp_path) for _ in range(2))
    assert (first.name, second.name) == ("mlxft-doctor.txt", "mlxft-doctor-2.txt")
    assert first.read_text("utf-8") == report.text
    with pytest.raises(RunError, match="exists and is not written over"):
        write_report(report, first, tmp_path)
    with pytest.raises(RunError, match="cannot be written: Not a directory"):
        write_report(report, first / "x.txt", tmp_path)


def test_the_person_is_known_by_every_name_the_system_has(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("platform.node", lambda: "kitchen.local")
    person = read_person({"USER": "zed", "HOSTNAME": "pantry"})
    assert {"kitchen.local", "kitchen", "pantry"} <= set(person.hosts)
    assert "zed" in person.users
    assert person.home == str(Path.home())
    assert "" not in person.users + person.hosts
