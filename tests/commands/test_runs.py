"""``mlxft runs``: the listing and the page of one run, and removal only after a yes."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from journal import HALVED, records, step, whole_run

from mlx_finetune.commands.generate import command as generate
from mlx_finetune.commands.runs import command, example_prompt
from mlx_finetune.errors import RunError, UsageError
from mlx_finetune.events import (
    Continued,
    Evaluated,
    Paused,
    Record,
    RunFinished,
    RunStarted,
    RunStopped,
    TimeJump,
    to_json,
)
from mlx_finetune.rundir import RunDir


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_run("finished", whole_run())
    started = RunStarted("stopped", "gpt2", "sft", 0, 100, 50, 8, 0, 10, 100, "CPU", "float32")
    write_run("stopped", records(started, step(1), step(2), RunStopped(2, 15)))
    write_run("killed", records(started, step(1)))
    return tmp_path


def write_run(name: str, journal: list[Record]) -> None:
    folder = Path("adapters") / name
    folder.mkdir(parents=True)
    lines = [to_json(record.event, record.time) for record in journal]
    (folder / "events.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
    (folder / "resolved.toml").write_text('model = "tiny-llama"\n[training]\nlearning_rate = 0.0002\n', "utf-8")


def call(*arguments: str) -> Result:
    return CliRunner().invoke(command, list(arguments))


def test_the_list_shows_status_steps_and_losses() -> None:
    result = call("list")
    rows = [line.split("  ") for line in result.stdout.splitlines()]
    table = {row[0]: [cell.strip() for cell in row if cell.strip()] for row in rows}
    assert table["NAME"] == ["NAME", "MODEL", "STATUS", "STEPS", "VALIDATION LOSS", "SIZE"]
    assert table["finished"][:5] == ["finished", "tiny-llama", "finished", "40/40", "2.5000 -> 1.2500"]
    assert table["stopped"][:5] == ["stopped", "gpt2", "stopped", "2/100", "- -> -"]
    assert table["killed"][2] == "interrupted"
    assert "next: mlxft runs show stopped" in result.stderr


def test_the_list_shows_the_loss_of_the_weights_in_the_folder() -> None:
    journal = [record for record in whole_run() if not isinstance(record.event, Evaluated | RunFinished)]
    worse = [
        Evaluated(0, 0.5, 100, True, 0.1),
        Evaluated(20, 0.7, 100, False, 0.1),
        Evaluated(40, 0.6, 100, False, 0.1),
    ]
    ended = RunFinished(40, "finished", 0.5, 0.5, 0, 0.6, 65.0, 12_345, 2 * 10**9, result_step=40)
    write_run("worse", [*journal, *records(*worse, ended)])
    (line,) = [line for line in call("list").stdout.splitlines() if line.startswith("worse ")]
    assert "0.5000 -> 0.6000" in line
    (facts,) = [run for run in json.loads(call("list", "--json").stdout) if run["name"] == "worse"]
    assert (facts["best_loss"], facts["result_loss"]) == (0.6, 0.6)


def test_runs_alone_is_the_list() -> None:
    assert call().stdout == call("list").stdout


def test_the_list_as_json_is_one_array() -> None:
    runs = json.loads(call("list", "--json").stdout)
    assert [run["name"] for run in runs] == ["finished", "killed", "stopped"]
    assert runs[0]["first_loss"] == 2.5
    assert runs[0]["best_loss"] == 1.25


def test_an_empty_folder_names_the_first_command(tmp_path: Path) -> None:
    result = call("list", str(tmp_path / "nothing"))
    assert result.stdout == ""
    assert "mlxft train RECIPE" in result.stderr


def test_show_prints_settings_losses_and_answers() -> None:
    text = call("show", "finished").stdout
    for line in (
        "settings",
        "  [training] learning_rate = 0.0002",
        "  step 30     1.2500  * best",
        "prompt: Hello?",
        "  step 30     Good day to you.",
        "warning: train: 3 of 83 rows are too long",
    ):
        assert line in text.splitlines(), line


def test_show_prints_texts_as_the_recipe_has_them() -> None:
    line = """prompts = ["14' - Jorrik heads in", "say \\"no\\""]"""
    Path("adapters/finished/resolved.toml").write_text(f'model = "m"\n[eval]\n{line}\n', "utf-8")
    assert f"  [eval] {line}" in call("show", "finished").stdout.splitlines()


def test_show_ends_with_what_can_be_done_with_the_run(tmp_path: Path) -> None:
    assert call("show", "killed").stderr.endswith("nothing was saved: the command that started it starts it anew\n")
    info = {"recipe_path": "my.toml", "started_in": str(tmp_path), "overrides": ["seed=3"]}
    Path("adapters/killed/run.json").write_text(json.dumps(info))
    assert call("show", "killed").stderr.endswith("to go on: mlxft train my.toml --set seed=3 --resume\n")
    Path("adapters/finished/adapter_config.json").write_text("{}")
    assert call("show", "finished").stderr.endswith("next: mlxft chat finished\n")


def test_the_prompt_of_an_example_is_the_first_of_the_recipe() -> None:
    folder = RunDir(Path("adapters/finished"))
    assert example_prompt(folder) == example_prompt(None) == "'Why is the sky blue?'"
    for written, shown in (
        ('["Who goes there?", "b"]', "'Who goes there?'"),
        ('["two\\nlines"]', example_prompt(None)),
    ):
        Path("adapters/finished/resolved.toml").write_text(f"[eval]\nprompts = {written}\n", "utf-8")
        assert example_prompt(folder) == shown


def test_generate_without_a_prompt_suggests_one_of_the_run() -> None:
    Path("adapters/finished/resolved.toml").write_text('[eval]\nprompts = ["Who?"]\n', "utf-8")
    for name, shown in (("finished", "'Who?'"), ("smollm2-135m", "'Why is the sky blue?'")):
        error = CliRunner().invoke(generate, [name]).exception
        assert isinstance(error, UsageError)
        assert error.hint == f"mlxft generate {name} --prompt {shown}"


def test_show_adds_up_pauses_and_sleep_where_there_were_any() -> None:
    low, sleep = Paused(1, "the battery is at 19%"), TimeJump(30.0, was_asleep=True)
    started = RunStarted("waited", "gpt2", "sft", 0, 100, 50, 8, 0, 10, 100, "CPU", "float32")
    write_run("waited", records(started, step(1), low, Continued(1, 40.0), low, Continued(1, 25.0), sleep, sleep))
    assert "paused for 1m 05s in all, the machine was asleep for 1m 00s" in call("show", "waited").stdout.splitlines()
    report = json.loads(call("show", "waited", "--json").stdout)
    assert (report["pause_seconds"], report["sleep_seconds"]) == (65.0, 60.0)
    assert "paused" not in call("show", "finished").stdout


def test_show_as_json_has_the_whole_curve() -> None:
    report = json.loads(call("show", "finished", "--json").stdout)
    assert len(report["losses"]) == 40
    assert report["losses"][0] == [1, 2.475]
    assert report["settings"]["training"] == {"learning_rate": 0.0002}
    assert report["outcome"]["best_step"] == 30


def test_show_tells_the_restarts() -> None:
    write_run("restarted", records(HALVED))
    assert "restarted once: the GPU ran out of memory" in call("show", "restarted").stdout.splitlines()
    (restart,) = json.loads(call("show", "restarted", "--json").stdout)["restarts"]
    assert (restart["cause"], restart["is_bitwise"]) == ("gpu_memory", False)


def test_an_unknown_run_is_answered_with_the_known_ones() -> None:
    result = call("show", "nope")
    assert isinstance(result.exception, RunError)
    assert result.exception.hint == "runs here: finished, killed, stopped"


def test_without_a_terminal_nothing_is_removed_unless_yes_is_given() -> None:
    refused = call("rm", "killed")
    assert isinstance(refused.exception, RunError)
    assert Path("adapters/killed").is_dir()
    assert call("rm", "killed", "stopped", "--yes").exit_code == 0
    assert [path.name for path in Path("adapters").iterdir()] == ["finished"]


def test_one_run_that_cannot_be_removed_keeps_all() -> None:
    Path("adapters/stopped/mine.txt").write_text("x")
    result = call("rm", "killed", "stopped", "--yes")
    assert isinstance(result.exception, RunError)
    assert Path("adapters/killed").is_dir()


def test_removing_a_run_names_its_corrections_and_leaves_them_unless_asked() -> None:
    path = Path("adapters/finished/corrections.jsonl")
    path.write_text('{"messages": []}\n{"messages": []}\n')
    assert "corrections.jsonl: 2 answers put right in chats" in call("show", "finished").stdout.splitlines()
    assert json.loads(call("show", "finished", "--json").stdout)["num_corrections"] == 2
    assert "put right" not in call("show", "killed").stdout
    asked = call("rm", "finished")
    assert isinstance(asked.exception, RunError)
    assert "2 corrections stay) is not removed without being asked" in asked.exception.message
    result = call("rm", "finished", "--yes")
    assert result.stderr.endswith(f"; its 2 corrections stay in {path.absolute()}\n")
    assert path.read_text().count("messages") == 2
    assert "is not a run folder" in str(call("rm", "finished", "--yes").exception)
    call("rm", "finished", "--yes", "--corrections")
    assert not path.parent.exists(), "corrections that were left can be removed later"
    Path("adapters/stopped/corrections.jsonl").write_text('{"messages": []}\n')
    assert "; its 1 correction stays in " in call("rm", "stopped", "--yes").stderr
    Path("adapters/killed/corrections.jsonl").write_text('{"messages": []}\n')
    assert "stay" not in call("rm", "killed", "--yes", "--corrections").stderr
    assert not Path("adapters/killed").exists()


def test_a_checkpoint_is_no_run_and_its_run_is_named() -> None:
    checkpoint = Path("adapters/finished/checkpoint-7")
    checkpoint.mkdir(exist_ok=True)
    (checkpoint / "run.json").write_text("{}")
    (checkpoint / "manifest.json").write_text("{}")
    for name in ("finished/checkpoint-7", str(checkpoint)):
        refused = call("show", name).exception
        assert isinstance(refused, RunError)
        assert refused.message == f"{name} is a checkpoint, not a run"
        assert refused.hint == f"name its run: {Path('adapters/finished').absolute()}"
