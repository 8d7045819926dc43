"""Decisions and the order of work, with stand-ins for trainings: each writes what a run leaves, in no time."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from mlx_finetune.app.pipeline import planning
from mlx_finetune.app.pipeline.carry_out import Ended, Hands, Outcome, carry_out
from mlx_finetune.app.pipeline.decide import Selection, deciding
from mlx_finetune.app.pipeline.planning import most_more_bytes, plan_lines, plan_stages
from mlx_finetune.app.planning.plan import Plan
from mlx_finetune.durable import remove_tree
from mlx_finetune.errors import MlxftError, RecipeError, RunError, UsageError
from mlx_finetune.hardware.planning.ranges import Range
from mlx_finetune.monitor.pipeline.facts import read_pipeline
from mlx_finetune.recipe.load import LoadedRecipe
from mlx_finetune.recipe.pipeline.load import LoadedPipeline, Stage, load_pipeline
from mlx_finetune.recipe.pipeline.record import read_record, write_record
from mlx_finetune.rundir import CORRECTIONS, EVENTS, LOCK, LOG, MANIFEST, RUN_INFO, take_lock
from mlx_finetune.train.start.identity import recipe_identity
from mlx_finetune.units import format_bytes

PIPELINE = """
output_dir = "adapters/p"
[[stages]]
name = "full"
recipe = "full.toml"
[[stages]]
name = "lora"
recipe = "lora.toml"
start_from = "full"
[[stages]]
name = "draw"
command = "sample {lora} --data problems.jsonl --out {folder}/made"
[[stages]]
name = "more"
recipe = "lora.toml"
start_from = "lora"
set = ["data.path={draw}/made/rows.jsonl"]
[[evaluations]]
name = "rows"
stages = ["full", "lora"]
data = "rows.jsonl"
tasks = ["loss"]
"""
BODY = 'model = "m"\noutput_dir = "adapters/x"\n[data]\npath = "rows.jsonl"\n'
NAMES = ("model.safetensors", "adapter_model.safetensors")
ALL = ["full", "eval full", "lora", "eval lora", "draw", "more"]


@dataclass
class Pretend:
    """Does the work of hands at once, and keeps what was asked for. ``ends`` is how a part ends that does not finish;
    ``weights`` is what its result depends on."""

    done: list[str] = field(default_factory=list)
    ends: dict[str, Ended | MlxftError] = field(default_factory=dict)
    weights: dict[str, str] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)

    def train(self, stage: Stage, is_resumed: bool) -> Ended:
        self.done.append(f"{stage.name} again" if is_resumed else stage.name)
        assert (stage.folder / RUN_INFO).is_file() == is_resumed
        ended = self.ends.pop(stage.name, Ended(0))
        if isinstance(ended, MlxftError):
            raise ended
        status = "finished" if ended.exit_code == 0 else "stopped"
        stage.result.mkdir(parents=True, exist_ok=True)
        (stage.folder / RUN_INFO).write_text(json.dumps({"status": status}))
        if status == "finished":
            (stage.result / NAMES[stage.result == stage.folder]).write_text(self.weights.get(stage.name, stage.name))
        return ended

    def command(self, words: Sequence[str], log: Path | None) -> Ended:
        name = f"eval {Path(words[1]).name}" if words[0] == "eval" else "draw"
        self.done.append(name)
        ended = self.ends.pop(name, Ended(0))
        if isinstance(ended, MlxftError):
            raise ended
        if words[0] == "eval":
            (Path(words[1]) / "eval").mkdir(exist_ok=True)
            (Path(words[1]) / "eval" / f"{words[3]}.json").write_text("{}")
        else:
            assert log == Path("adapters/p/draw/log.txt")
            made = Path(words[-1])
            made.mkdir(exist_ok=True)
            (made / "samples.jsonl").write_text("all wrong")
            if rows := self.weights.get("draw", "rows"):
                (made / "rows.jsonl").write_text(rows)
        return ended


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("full.toml").write_text(BODY)
    Path("lora.toml").write_text(BODY + "[lora]\nrank = 4\n")
    Path("rows.jsonl").write_text('{"text": "a"}\n')
    Path("problems.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    Path("p.toml").write_text(PIPELINE)
    return tmp_path


def load(*overrides: str) -> LoadedPipeline:
    return load_pipeline(Path("p.toml"), overrides, here=Path.cwd())


def run(pretend: Pretend, *overrides: str, selection: Selection | None = None) -> Outcome:
    """One start of the pipeline; ``pretend.done`` is only of this one."""
    pretend.done.clear()
    pretend.said.clear()
    found = deciding(load(*overrides), selection or Selection(), recipe_identity, Path.cwd())
    return carry_out(found, Hands(pretend.train, pretend.command, pretend.said.append))


@pytest.fixture(name="done")
def done_fixture() -> Pretend:
    """A pipeline that has run to its end."""
    pretend = Pretend()
    assert run(pretend).exit_code == 0
    assert pretend.done == ALL
    return pretend


def test_a_second_start_does_nothing(done: Pretend) -> None:
    outcome = run(done)
    assert (outcome.exit_code, done.done) == (0, [])
    assert all(one.was_skipped for one in outcome.record.stages)
    assert done.said[0] == "stage 1 of 4, full: done before, skipped"


def test_another_folder_begins_anew_and_leaves_the_first_as_it_is(done: Pretend) -> None:
    before = Path("adapters/p/pipeline.json").read_bytes()
    done_elsewhere = Pretend()
    with pytest.raises(AssertionError):  # the stand-in insists on the folder of its log
        run(done_elsewhere, "output_dir=adapters/q")
    assert done_elsewhere.done == ["full", "eval full", "lora", "eval lora", "draw"]
    assert Path("adapters/p/pipeline.json").read_bytes() == before


@pytest.mark.parametrize(
    ("change", "names", "reason"),
    [
        (lambda: Path("rows.jsonl").write_text('{"text": "b"}\n'), "full", "the data files have changed: rows.jsonl"),
        (lambda: Path("full.toml").write_text(BODY + "[training]\nepochs = 2\n"), "full", "training.epochs: was "),
        (lambda: Path("problems.jsonl").write_text("other"), "draw", "command names have changed: problems.jsonl"),
        (
            lambda: Path("p.toml").write_text(PIPELINE.replace("{folder}/made", "-k 2 --out {folder}/made")),
            "draw",
            "command: was --out, is now --out -k 2 --out",
        ),
    ],
)
def test_a_changed_stage_is_not_replaced_unasked(done: Pretend, change, names: str, reason: str) -> None:
    change()
    with pytest.raises(RunError) as caught:
        run(done)
    assert done.done == []
    assert caught.value.message.startswith("what adapters/p holds would be replaced: ")
    assert f"{names} (" in caught.value.message
    assert reason in caught.value.message
    assert caught.value.hint == (
        "to replace it: mlxft pipeline p.toml --force; to keep it: mlxft pipeline p.toml --set "
        "output_dir=adapters/p-2; or undo the change"
    )


def test_what_has_changed_is_named_without_hashes(done: Pretend) -> None:
    done.weights["lora"] = "other weights"
    run(done, selection=Selection(only="lora", is_forced=True))
    with pytest.raises(RunError) as caught:
        run(done)
    assert "draw (the result of lora is another)" in caught.value.message


def test_force_replaces_what_changed_and_what_follows_from_it(done: Pretend) -> None:
    Path("full.toml").write_text(BODY + "[training]\nepochs = 2\n")
    done.weights |= {"full": "other weights", "lora": "others too"}
    assert run(done, selection=Selection(is_forced=True)).exit_code == 0
    assert done.done == ALL
    assert done.said[0].startswith("stage 1 of 4, full: replaced, because training.epochs: was ")
    assert "what it starts from is another" in done.said[3]
    assert run(done).exit_code == 0
    assert done.done == []


@pytest.mark.parametrize("stage", ["full", "draw"])
def test_what_was_to_be_replaced_is_there_again_where_the_new_start_came_to_nothing(done: Pretend, stage: str) -> None:
    before, log = read_record(Path("adapters/p")), Path("adapters/p", stage, LOG)
    assert before is not None
    log.write_text("first\n")
    Path("adapters/p/full", CORRECTIONS).write_text("put right\n")
    held = {path: path.read_bytes() for path in sorted(Path("adapters/p", stage).rglob("*")) if path.is_file()}
    done.ends[stage] = RunError("problems.jsonl:2 is no JSON", "mend it")
    outcome = run(done, selection=Selection(only=stage, is_forced=True))
    assert (outcome.where, outcome.message) == (f"stage {stage}", "problems.jsonl:2 is no JSON")
    assert {path: path.read_bytes() for path in held} == held
    assert done.said[-1] == f"adapters/p/{stage} is as it was before: nothing was made anew"
    assert not Path("adapters/p/.earlier").exists()
    after = read_record(Path("adapters/p"))
    assert after is not None
    assert after.stage(stage) == before.stage(stage)
    run(done)
    assert done.done == []


def test_what_was_replaced_waits_until_the_new_one_is_complete(done: Pretend) -> None:
    weights = Path("adapters/p/.earlier/lora/1", NAMES[1])
    done.ends["lora"] = Ended(130)
    again = Selection(only="lora", is_forced=True)
    run(done, selection=again)
    assert weights.read_text() == "lora"
    Path("adapters/p/lora/checkpoint-1").mkdir()
    Path("adapters/p/lora/checkpoint-1", MANIFEST).touch()
    done.ends["lora"] = RunError("no room", "make some")
    run(done, "lora.training.max_steps=7", selection=again)  # of the second, which came to nothing, the first is left
    assert json.loads(Path("adapters/p/lora", RUN_INFO).read_text()) == {"status": "stopped"}
    assert weights.read_text() == "lora"
    run(done, selection=again)
    assert done.done == ["lora again", "eval lora"]
    assert not Path("adapters/p/.earlier").exists()


def test_what_follows_is_skipped_where_the_same_bytes_came_out(done: Pretend) -> None:
    Path("full.toml").write_text(BODY + "[training]\nepochs = 2\n")
    run(done, selection=Selection(is_forced=True))
    assert done.done == ["full", "eval full"]


def test_keys_that_change_no_weight_are_no_reason(done: Pretend) -> None:
    Path("full.toml").write_text(BODY + '[training]\nkeep_checkpoints = 7\n[eval]\nprompts = ["a"]\n')
    Path("p.toml").write_text("# a comment\n" + PIPELINE)
    run(done)
    assert done.done == []


def test_keys_that_another_version_knows_are_no_change_while_they_have_their_defaults(done: Pretend) -> None:
    record = read_record(Path("adapters/p"))
    assert record is not None
    full = record.stage("full")
    assert full is not None
    older = {key: value for key, value in full.fingerprint.items() if key != "data.packing"}
    write_record(Path("adapters/p"), record.with_stage(replace(full, fingerprint=older | {"future": "null"})))
    run(done)
    assert done.done == []
    write_record(Path("adapters/p"), record.with_stage(replace(full, fingerprint=older | {"future": "7"})))
    with pytest.raises(RunError, match="future: was 7, is now not there"):
        run(done)


@pytest.mark.parametrize("code", [130, 143])
def test_a_stopped_stage_goes_on_where_it_was_and_nothing_is_done_twice(code: int) -> None:
    pretend = Pretend(ends={"lora": Ended(code)})
    outcome = run(pretend)
    assert (outcome.exit_code, outcome.where) == (code, "stage lora")
    assert pretend.done == ["full", "eval full", "lora"]
    status = [one.status for one in read_pipeline(Path("adapters/p")).stages]
    assert status == ["finished", "stopped", "waiting", "waiting"]
    assert run(pretend).exit_code == 0
    assert pretend.done == ["lora again", "eval lora", "draw", "more"]


def test_a_failure_ends_it_there_with_its_reason_and_a_refused_start_begins_anew() -> None:
    pretend = Pretend(ends={"lora": RunError("no room", "make some")})
    outcome = run(pretend)
    assert (outcome.exit_code, outcome.where, outcome.message, outcome.hint) == (
        1,
        "stage lora",
        "no room",
        "make some",
    )
    record = outcome.record.stage("lora")
    assert record is not None
    assert (record.status, record.message) == ("failed", "no room")
    assert run(pretend).exit_code == 0
    assert pretend.done == ["lora", "eval lora", "draw", "more"]


def test_a_process_that_was_killed_leaves_a_stage_that_goes_on(done: Pretend) -> None:
    record = read_record(Path("adapters/p"))
    assert record is not None
    lora = record.stage("lora")
    assert lora is not None
    write_record(Path("adapters/p"), record.with_stage(replace(lora, status="begun", result_sha256="")))
    assert [one.status for one in read_pipeline(Path("adapters/p")).stages][1] == "interrupted"
    run(done)
    assert done.done == []  # run.json says that it had finished: only the last word was missing
    write_record(Path("adapters/p"), record.with_stage(replace(lora, status="begun", result_sha256="")))
    Path("adapters/p/lora/run.json").write_text('{"status": "running"}')
    run(done)
    assert done.done == ["lora again"]


def test_a_signal_that_came_too_late_for_a_stage_keeps_its_result_and_begins_nothing_more() -> None:
    pretend = Pretend(ends={"full": Ended(0, stop_signal=2)})
    outcome = run(pretend)
    assert (outcome.exit_code, outcome.where, pretend.done) == (130, "stage full", ["full"])
    run(pretend)
    assert pretend.done == ALL[1:]


def test_a_failed_evaluation_ends_it_and_is_done_first_the_next_time() -> None:
    pretend = Pretend(ends={"eval lora": Ended(1, "out of rows", "give some")})
    outcome = run(pretend)
    assert (outcome.where, outcome.message) == ("the evaluation rows of stage lora", "out of rows")
    run(pretend)
    assert pretend.done == ["eval lora", "draw", "more"]


def test_a_missed_gate_is_a_result(done: Pretend) -> None:
    Path("adapters/p/lora/eval/rows.json").unlink()
    done.ends["eval lora"] = Ended(4)
    assert run(done).exit_code == 0


def test_an_evaluation_that_was_defined_otherwise_is_done_anew_and_the_old_figures_stay(done: Pretend) -> None:
    Path("p.toml").write_text(PIPELINE.replace('["loss"]', '["loss", "general"]'))
    Path("adapters/p/full/eval/rows.json").write_text('{"name": "rows", "verdict": 1}')
    run(done)
    assert done.done == ["eval full", "eval lora"]
    assert json.loads(Path("adapters/p/full/eval/rows-2.json").read_text()) == {"name": "rows-2", "verdict": 1}
    assert Path("adapters/p/full/eval/rows.json").read_text() == "{}"


def test_figures_that_the_pipeline_did_not_make_are_not_touched(done: Pretend) -> None:
    Path("p.toml").write_text(PIPELINE.replace('name = "rows"', 'name = "mine"'))
    Path("adapters/p/full/eval/mine.json").write_text("mine")
    done.ends["eval full"] = Ended(1, "holds another evaluation")
    assert run(done).message == "holds another evaluation"
    assert not Path("adapters/p/full/eval/mine-2.json").exists()


def test_a_stage_that_is_taken_out_of_the_file_is_known_when_it_comes_back(done: Pretend) -> None:
    without = PIPELINE[: PIPELINE.index('[[stages]]\nname = "more"')]
    Path("p.toml").write_text(without)
    outcome = run(done)
    assert [one.name for one in outcome.record.stages] == ["full", "lora", "draw"]
    assert outcome.record.evaluations == ()
    Path("p.toml").write_text(PIPELINE)
    run(done)
    assert done.done == []


def test_only_and_from_choose_and_force_repeats_what_they_name(done: Pretend) -> None:
    run(done, selection=Selection(only="lora"))
    assert done.done == []
    run(done, selection=Selection(only="lora", is_forced=True))
    assert done.done == ["lora", "eval lora"]
    run(done, selection=Selection(first="draw", is_forced=True))
    assert done.done == ["draw", "more"]


def test_a_start_that_names_stages_and_was_interrupted_goes_on_and_repeats_nothing(done: Pretend) -> None:
    again = Selection(first="lora", is_forced=True)
    done.ends["draw"] = Ended(130)
    assert run(done, selection=again).record.options == ("--from", "lora", "--force")
    assert done.done == ["lora", "eval lora", "draw"]
    assert run(done, selection=again).record.options == ()
    assert done.done == ["draw", "more"]
    run(done, selection=again)
    assert done.done == ["lora", "eval lora", "draw", "more"]  # that had come to its end: this is another start


def test_what_was_made_from_an_earlier_result_is_known_until_it_is_made_anew(done: Pretend) -> None:
    done.weights["lora"] = "other weights"
    assert run(done, selection=Selection(only="lora", is_forced=True)).record.outdated() == {
        "draw": "lora",
        "more": "lora",
    }
    assert run(done, selection=Selection(is_forced=True)).record.outdated() == {}
    assert done.done == ["draw", "more"]
    done.ends["full"] = Ended(130)
    outcome = run(done, selection=Selection(only="full", is_forced=True))
    assert set(outcome.record.outdated().items()) == {("lora", "full"), ("draw", "full"), ("more", "full")}
    run(done)
    assert done.done == ["full again", "eval full"]
    assert read_pipeline(Path("adapters/p")).record.outdated() == {}  # the same weights came out


def test_what_follows_from_a_stage_that_is_gone_or_was_trained_further_is_of_an_earlier_one(done: Pretend) -> None:
    def marks() -> dict[str, str]:
        return {one.record.name: one.mark for one in read_pipeline(Path("adapters/p")).stages}

    metrics = Path("adapters/p/full/training_metrics.json")
    metrics.write_text('{"result_step": 200}')
    run(done)
    assert set(marks().values()) == {""}
    metrics.write_text('{"result_step": 220}')
    later = ", of an earlier full"
    assert marks() == {"full": ", from before it was trained further", "lora": later, "draw": later, "more": later}
    metrics.write_text('{"result_step": 200}')
    remove_tree(Path("adapters/p/lora"))
    assert marks() == {"full": "", "lora": "", "draw": ", of an earlier lora", "more": ", of an earlier lora"}


def test_a_stage_that_took_nothing_of_what_changed_is_of_what_is_there_once_that_was_looked_at(done: Pretend) -> None:
    Path("adapters/p/draw/made/notes.txt").write_text("beside the rows")
    outcome = run(done)
    assert done.done == []
    assert outcome.record.outdated() == {}


def test_what_would_be_replaced_is_allowed_for_what_was_asked_for_alone(done: Pretend) -> None:
    Path("lora.toml").write_text(BODY + "[lora]\nrank = 8\n")
    with pytest.raises(RunError, match=r"to replace it: mlxft pipeline p\.toml --only lora --force; "):
        raise _refusal(done, Selection(only="lora"))
    with pytest.raises(
        RunError, match=r"to make them again from there on: mlxft pipeline p\.toml --from lora --force; "
    ):
        raise _refusal(done, Selection(first="full"))


def test_a_command_that_was_begun_otherwise_is_named_where_that_is_what_changed() -> None:
    pretend = Pretend()
    run(pretend, "full.training.max_steps=3")
    with pytest.raises(RunError, match=r"or start it as before: mlxft pipeline p\.toml --set full"):
        raise _refusal(pretend, Selection())
    Path("rows.jsonl").write_text('{"text": "b"}\n')
    with pytest.raises(RunError, match=r"or undo the change$"):  # that command would be refused too
        raise _refusal(pretend, Selection())


def _refusal(pretend: Pretend, selection: Selection) -> RunError:
    """The refusal, its hint being the message."""
    with pytest.raises(RunError) as caught:
        run(pretend, selection=selection)
    return RunError(caught.value.hint)


def test_a_refusal_on_the_way_does_not_propose_the_command_that_was_refused(done: Pretend) -> None:
    remove_tree(Path("adapters/p/full"))
    done.weights["full"] = "other weights"
    outcome = run(done)
    assert (outcome.where, outcome.goes_on) == ("stage lora", False)
    assert outcome.hint.startswith("to replace it: mlxft pipeline p.toml --force; ")


def test_a_stage_that_has_saved_nothing_is_changed_without_leave() -> None:
    pretend = Pretend(ends={"lora": Ended(130), "draw": Ended(1, "no such option")})
    run(pretend)
    Path("lora.toml").write_text(BODY + "[lora]\nrank = 8\n")
    (Path("adapters/p/lora") / NAMES[1]).unlink(missing_ok=True)
    run(pretend)
    assert pretend.done == ["lora", "eval lora", "draw"]
    remove_tree(Path("adapters/p/draw/made"))
    Path("adapters/p/draw/log.txt").write_text("what it said")
    Path("p.toml").write_text(PIPELINE.replace("{folder}/made", "-k 2 --out {folder}/made"))
    assert run(pretend).exit_code == 0
    assert pretend.done == ["draw", "more"]


def test_a_stage_needs_the_results_of_what_is_left_out() -> None:
    with pytest.raises(RunError) as caught:
        run(Pretend(), selection=Selection(only="lora"))
    assert caught.value.message == "lora takes the result of full, which is not there"
    assert caught.value.hint == "run that first: mlxft pipeline p.toml --only full"
    with pytest.raises(RunError) as caught:
        run(Pretend(), selection=Selection(only="draw"))
    assert caught.value.hint == (
        "run that first: mlxft pipeline p.toml --only full && mlxft pipeline p.toml --only lora"
    )
    with pytest.raises(UsageError, match="--from nope: there is no such stage"):
        run(Pretend(), selection=Selection(first="nope"))


def test_a_stage_whose_folder_was_removed_is_missed_before_anything_is_replaced(done: Pretend) -> None:
    remove_tree(Path("adapters/p/full"))
    with pytest.raises(RunError) as caught:
        run(done, selection=Selection(only="lora", is_forced=True))
    assert caught.value.message == "lora takes the result of full, which is not there"
    assert (Path("adapters/p/lora") / NAMES[1]).is_file()
    assert read_pipeline(Path("adapters/p")).stages[0].status == "removed"


def test_a_stage_left_out_is_taken_as_it_is_even_where_it_changed(done: Pretend) -> None:
    Path("full.toml").write_text(BODY + "[training]\nepochs = 2\n")
    run(done, selection=Selection(first="lora"))
    assert done.done == []


def test_what_the_pipeline_did_not_make_is_not_touched(here: Path) -> None:
    foreign = here / "adapters" / "p" / "full"
    foreign.mkdir(parents=True)
    (foreign / RUN_INFO).write_text('{"status": "finished"}')
    with pytest.raises(RunError, match=r"full .*adapters/p/full holds what this pipeline did not make"):
        run(Pretend())
    assert (foreign / RUN_INFO).is_file()


@pytest.mark.parametrize("name", ["notes.txt", "model.safetensors", "README.md", "run"])
@pytest.mark.parametrize("stage", ["full", "more"])
def test_a_folder_with_other_files_is_refused_before_anything_begins(here: Path, stage: str, name: str) -> None:
    foreign = here / "adapters" / "p" / stage
    foreign.mkdir(parents=True)
    (foreign / name).write_text("mine")
    pretend = Pretend()
    for selection in (Selection(), Selection(is_forced=True)):
        with pytest.raises(RecipeError) as caught:
            run(pretend, selection=selection)
        (problem,) = caught.value.problems
        assert problem.where == f"stage {stage}"
        assert problem.message == f"adapters/p/{stage} holds no run, but {name}, which this pipeline did not make"
        assert problem.hint.endswith("another folder: mlxft pipeline p.toml --set output_dir=adapters/p-2")
    assert pretend.done == []
    assert (foreign / name).read_text() == "mine"


def test_what_a_refused_start_and_a_removed_run_leave_is_in_nobodys_way(here: Path) -> None:
    for stage, names in {"full": (EVENTS, LOG, "recipe.toml"), "more": (CORRECTIONS,)}.items():
        (here / "adapters" / "p" / stage).mkdir(parents=True)
        for name in names:
            (here / "adapters" / "p" / stage / name).touch()
    assert run(Pretend()).exit_code == 0


@pytest.mark.parametrize(("stage", "name"), [("more", RUN_INFO), ("draw", "rows.jsonl")])
def test_what_lies_in_the_folder_of_a_later_stage_is_found_before_anything_begins(
    here: Path, stage: str, name: str
) -> None:
    foreign = here / "adapters" / "p" / stage
    foreign.mkdir(parents=True)
    (foreign / name).write_text("{}")
    pretend = Pretend()
    with pytest.raises(RunError, match=rf"{stage} \(adapters/p/{stage} holds what this pipeline did not make"):
        run(pretend)
    assert pretend.done == []


def test_a_run_with_something_of_somebody_is_not_replaced_even_by_force(done: Pretend) -> None:
    Path("adapters/p/full/notes.txt").write_text("mine")
    Path("full.toml").write_text(BODY + "[training]\nmax_steps = 7\n")
    with pytest.raises(RunError, match=r"also holds what no run wrote: notes\.txt"):
        run(done, selection=Selection(is_forced=True))
    assert done.done == []
    assert Path("adapters/p/full/notes.txt").read_text() == "mine"


@pytest.mark.parametrize("written", ["--data problems.jsonl", "--data=problems.jsonl"])
def test_a_file_that_a_command_reads_counts_however_it_is_written(written: str) -> None:
    Path("p.toml").write_text(PIPELINE.replace("--data problems.jsonl", written))
    pretend = Pretend()
    assert run(pretend).exit_code == 0
    Path("problems.jsonl").write_text('{"prompt": "c", "completion": "d"}\n')
    with pytest.raises(RunError, match=r"would be replaced: draw \("):
        run(pretend)


def test_a_result_that_somebody_changed_is_taken_and_one_that_is_gone_is_not_made_unasked(done: Pretend) -> None:
    Path("adapters/p/more/adapter_model.safetensors").write_text("trained further by hand")
    run(done)
    assert done.done == []
    assert done.said[-1] == "stage 4 of 4, more: done before, skipped; its result was changed since"
    Path("adapters/p/more/adapter_model.safetensors").unlink()
    with pytest.raises(RunError) as caught:
        run(done)
    assert caught.value.message == "what adapters/p holds would be replaced: more (its result is gone)"


def plan(selection: Selection | None = None) -> tuple[dict[str, str], str]:
    """Stage -> what a dry run says is done with it, and the lines behind the table."""

    def make(recipe: LoadedRecipe) -> Plan:
        raise MlxftError("no plan of a model that is not there")

    found = deciding(load(), selection or Selection(), recipe_identity, Path.cwd())
    planned = plan_stages(found, read_record(Path("adapters/p")), make)
    text = "\n".join(plan_lines(planned, found.pipeline))
    return {one.step.stage.name: one.words for one in planned}, text.rpartition("\n\n")[2]


def test_a_dry_run_decides_as_the_run_does_where_a_result_is_gone_or_was_changed(done: Pretend) -> None:
    assert plan() == (dict.fromkeys(("full", "lora", "draw", "more"), "done, skipped"), "everything is done")
    Path("adapters/p/lora", NAMES[1]).write_text("trained further by hand")
    assert plan()[0] == {
        "full": "done, skipped",
        "lora": "done, skipped",
        "draw": "needs --force",
        "more": "skipped, or needs --force",
    }
    Path("adapters/p/lora", NAMES[1]).unlink()
    assert plan(Selection(is_forced=True))[0] == {
        "full": "done, skipped",
        "lora": "replaced",
        "draw": "skipped, or replaced",
        "more": "skipped, or replaced",
    }


def test_a_dry_run_says_what_follows_from_a_stage_that_goes_on() -> None:
    run(Pretend(ends={"lora": Ended(130)}))
    words, text = plan()
    assert words == {"full": "done, skipped", "lora": "goes on", "draw": "runs", "more": "runs"}
    assert text.endswith("1 evaluation: rows of lora")


def test_what_goes_on_is_planned_with_the_steps_that_are_left() -> None:
    run(Pretend(ends={"lora": Ended(130)}))
    info = Path("adapters/p/lora", RUN_INFO)
    info.write_text(json.dumps({**json.loads(info.read_text()), "step": 30}))
    found = deciding(load(), Selection(), recipe_identity, Path.cwd())
    made = SimpleNamespace(
        resolved=SimpleNamespace(total_steps=40),
        forecast=SimpleNamespace(
            finish_seconds=Range(30.0, 40.0, 50.0), peak_bytes=Range(1, 1, 1), disk_bytes=Range(1, 1, 1)
        ),
        fits=True,
    )
    planned = plan_stages(found, read_record(Path("adapters/p")), lambda recipe: cast(Plan, made))
    goes_on = planned[1]
    assert (goes_on.steps_done, goes_on.seconds, planned[3].seconds) == (30, 10.0, None)
    (row,) = (line for line in plan_lines(planned, found.pipeline) if line.startswith("lora"))
    assert "  10 of 40  10.0 s (7.5 s to 12.5 s)  " in row


def planned_of(disk_bytes: float) -> Plan:
    forecast = SimpleNamespace(
        finish_seconds=None, peak_bytes=Range(1, 1, 1), disk_bytes=Range(disk_bytes, disk_bytes, disk_bytes)
    )
    return cast(Plan, SimpleNamespace(resolved=SimpleNamespace(total_steps=4), forecast=forecast, fits=True))


def test_a_dry_run_counts_what_is_replaced_beside_what_takes_its_place(
    done: Pretend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two stages that are made anew the first is gone when the second begins."""
    for name in ("lora", "more"):
        Path("adapters/p", name, "large").write_bytes(bytes(30_000))
    waits = Path("adapters/p/.earlier/lora/1")
    waits.mkdir(parents=True)
    (waits / "large").write_bytes(bytes(20_000))
    found = deciding(load("lora.training.max_steps=9"), Selection(), recipe_identity, Path.cwd())
    planned = plan_stages(found, read_record(Path("adapters/p")), lambda recipe: planned_of(40_000))
    todo = [one for one in planned if one.step.action != "skip"]
    held = {one.step.stage.name: one.held_bytes for one in todo}
    assert list(held) == ["lora", "draw", "more"]
    own = [one for one in Path("adapters/p/lora").rglob("*") if one.is_file()]
    assert held["lora"] == 20_000 + sum(one.stat().st_size for one in own)
    after_lora = 40_000 - held["lora"]
    assert most_more_bytes(todo) == max(40_000, after_lora + held["draw"], after_lora + 40_000)
    text = "\n".join(plan_lines(planned, found.pipeline))
    kept = format_bytes(sum(held.values()))
    assert f"\n40.0 kB of disk more while what is replaced ({kept}) is kept until it is made anew, " in text
    assert "more than is free" not in text
    monkeypatch.setattr(planning, "free_bytes", lambda folder: 100)
    size = format_bytes(held["lora"])
    assert plan(Selection(only="lora", is_forced=True))[1].splitlines()[-3:-1] == [
        f"{size} of disk more while what is replaced ({size}) is kept until it is made anew, 100 B are free",
        "that is more than is free: make room first, or do without what would be replaced: "
        "mlxft runs rm adapters/p/lora",
    ]


def test_what_goes_on_takes_no_more_than_what_is_missing() -> None:
    run(Pretend(ends={"lora": Ended(130)}))
    found = deciding(load(), Selection(), recipe_identity, Path.cwd())
    planned = plan_stages(found, read_record(Path("adapters/p")), lambda recipe: planned_of(40_000))
    assert planned[1].step.action == "resume"
    assert 0 < planned[1].held_bytes == 40_000 - planned[1].more_bytes


def test_a_dry_run_shows_evaluations_that_are_defined_otherwise_and_sums_what_stages_took(done: Pretend) -> None:
    Path("p.toml").write_text(PIPELINE.replace('["loss"]', '["loss", "general"]'))
    assert plan()[1].splitlines() == [
        "2 evaluations: rows of full, lora",
        *(
            f"rows of {stage} is evaluated anew, and the figures before are kept: "
            'tasks: was ["loss"], is now ["loss", "general"]'
            for stage in ("full", "lora")
        ),
    ]
    text = plan(Selection(only="draw", is_forced=True))[1]
    assert text.startswith("about ")
    assert text.splitlines()[0].endswith(" in all, without evaluations")


def test_missing_data_is_found_before_anything_begins() -> None:
    Path("rows.jsonl").unlink()
    pretend = Pretend()
    with pytest.raises(RecipeError) as caught:
        run(pretend)
    assert pretend.done == []
    problem = caught.value.problems[0]
    assert (problem.where, problem.message.startswith("there is no file ")) == ("stage full", True)


@pytest.mark.parametrize("change", [("lora.data.path=nowhere.jsonl",), ()])
def test_missing_rows_of_later_stages_and_of_evaluations_are_found_too(change: tuple[str, ...]) -> None:
    if not change:
        Path("p.toml").write_text(PIPELINE.replace('data = "rows.jsonl"', 'data = "nowhere.jsonl"'))
    pretend = Pretend()
    with pytest.raises(RecipeError, match=r"nowhere\.jsonl") as caught:
        run(pretend, *change)
    assert caught.value.problems[0].where == ("stage lora" if change else "evaluation rows")
    assert pretend.done == []
    assert not Path("adapters").exists()


def test_rows_that_a_command_did_not_make_are_missed_with_its_name_and_a_way_out() -> None:
    pretend = Pretend(weights={"draw": ""})
    outcome = run(pretend)
    assert (outcome.where, outcome.goes_on) == ("stage more", False)
    assert outcome.message == "draw has made no rows for it: there is no adapters/p/draw/made/rows.jsonl"
    assert outcome.hint.startswith("what it found is in adapters/p/draw/log.txt; give it easier problems")
    assert outcome.hint.endswith("in p.toml, then: mlxft pipeline p.toml --force")
    with pytest.raises(RecipeError) as refused:
        run(pretend)
    assert refused.value.problems[0].hint == outcome.hint
    pretend.weights = {}
    Path("problems.jsonl").write_text('{"prompt": "easier", "completion": "b"}\n')
    assert run(pretend, selection=Selection(is_forced=True)).exit_code == 0
    assert pretend.done == ["draw", "more"]


def test_a_pipeline_needs_a_folder_of_its_own(here: Path) -> None:
    (here / "file").touch()
    (here / "link").symlink_to("nowhere")
    (here / "run").mkdir()
    (here / "run" / RUN_INFO).write_text("{}")
    for folder, message in (
        ("file", "file is a file; output_dir must name a folder"),
        ("link", "link is a link to a folder that is not there"),
        ("run", "run holds a run, not a pipeline"),
    ):
        with pytest.raises(RunError) as caught:
            run(Pretend(), f"output_dir={folder}")
        assert caught.value.message == message


def test_one_process_at_a_time(done: Pretend) -> None:
    lock = take_lock(Path("adapters/p") / LOCK)
    assert lock is not None
    with pytest.raises(RunError, match="another process runs the pipeline"):
        run(done)


def test_a_damaged_record_is_not_written_over(done: Pretend) -> None:
    Path("adapters/p/pipeline.json").write_text("{")
    with pytest.raises(RunError, match=r"pipeline.json cannot be read"):
        run(done)
    assert Path("adapters/p/pipeline.json").read_text() == "{"
