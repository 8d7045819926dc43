"""Who may start in a run folder: nothing that could be continued is overwritten, nothing else stands in the way."""

import json
import os

import pytest

from mlx_finetune import durable, rundir
from mlx_finetune.errors import RunError
from mlx_finetune.recipe.schema import Recipe
from mlx_finetune.rundir import RunDir
from mlx_finetune.train.start.admission import Request, admit, check_output, check_recipe
from mlx_finetune.train.start.identity import recipe_identity


@pytest.fixture
def refused_once(tmp_path):
    """What a start leaves that ended before anything was decided: a misspelt model, a missing data file."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / rundir.EVENTS).write_text('{"kind": "run_failed", "time": 1.0}\n')
    (folder / rundir.LOG).write_text("error: there is no such model\n")
    return RunDir(folder)


def test_a_start_that_failed_before_it_began_does_not_block_the_next(refused_once, tmp_path):
    admission = admit(refused_once, Request(tmp_path / "recipe.toml"))
    admission.release()
    assert (admission.checkpoint, admission.run_info) == (None, None)
    assert refused_once.file(rundir.EVENTS).read_bytes() == b"", "the journal of a new run begins with that run"


def test_a_start_that_failed_before_it_began_cannot_be_continued(refused_once, tmp_path):
    with pytest.raises(RunError, match="holds no run to continue"):
        admit(refused_once, Request(tmp_path / "recipe.toml", resume=True))
    assert refused_once.file(rundir.EVENTS).read_bytes(), "a refusal changes nothing"


def test_what_a_killed_first_start_left_behind_is_swept_and_nothing_of_a_folder_that_holds_no_run(
    refused_once, tmp_path
):
    part = refused_once.path / ".recipe.toml.123.part"
    part.touch()
    admit(refused_once, Request(tmp_path / "r.toml")).release()
    assert not part.exists()
    theirs = tmp_path / "theirs" / ".film.part"
    theirs.parent.mkdir()
    theirs.touch()
    admit(RunDir(theirs.parent), Request(tmp_path / "r.toml")).release()
    assert theirs.exists()


def test_a_continuation_of_nothing_makes_no_folder(tmp_path):
    with pytest.raises(RunError, match="holds no run to continue"):
        admit(RunDir(tmp_path / "adapters" / "none"), Request(tmp_path / "recipe.toml", resume=True))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("status", "said", "hint"),
    [
        ("finished", "(finished, step 6)", "train it further with --extend 100, choose another output_dir"),
        ("stopped", "(stopped, step 6)", "continue it with --resume, choose another output_dir"),
        ("running", "(interrupted, step 6)", "continue it with --resume, choose another output_dir"),
    ],
)
def test_a_run_that_is_there_is_refused_with_the_way_that_goes_on(refused_once, tmp_path, status, said, hint):
    info = {"format_version": rundir.FORMAT_VERSION, "status": status, "step": 6}
    refused_once.file(rundir.RUN_INFO).write_text(json.dumps(info))
    with pytest.raises(RunError) as refused:
        admit(refused_once, Request(tmp_path / "recipe.toml"))
    assert refused.value.message.endswith(f"already holds a run {said}")
    assert refused.value.hint.startswith(hint)


def test_checkpoints_without_their_run_are_not_overwritten(refused_once, tmp_path):
    checkpoint = refused_once.checkpoint(3)
    checkpoint.mkdir()
    (checkpoint / rundir.MANIFEST).write_text("{}")
    with pytest.raises(RunError, match=r"run\.json cannot be read"):
        admit(refused_once, Request(tmp_path / "recipe.toml"))


def test_a_folder_where_another_process_trains_is_refused_with_the_commands_for_it(refused_once, tmp_path):
    first = admit(refused_once, Request(tmp_path / "recipe.toml"))
    with pytest.raises(RunError, match=rf"another process \({os.getpid()}\) is training in") as refused:
        admit(refused_once, Request(tmp_path / "recipe.toml"))
    path = refused_once.path
    assert refused.value.hint == f"watch it with: mlxft monitor {path}, stop it with: mlxft stop {path}"
    first.release()


@pytest.mark.parametrize(
    ("supervisor", "is_refused"), [(os.getpid(), True), (os.getppid(), False)], ids=["other", "own"]
)
def test_between_two_processes_the_folder_belongs_to_the_supervisor(refused_once, tmp_path, supervisor, is_refused):
    held = rundir.take_lock(refused_once.file(rundir.SUPERVISOR))
    assert held is not None
    refused_once.file(rundir.SUPERVISOR).write_text(f"{supervisor}\n")
    if is_refused:
        with pytest.raises(RunError, match=rf"another process \({supervisor}\) is training in"):
            admit(refused_once, Request(tmp_path / "recipe.toml"))
    else:
        admit(refused_once, Request(tmp_path / "recipe.toml")).release()
    os.close(held)
    assert rundir.running_process(refused_once) is None, "a refusal leaves no lock behind"


FIELDS = {"model": "m", "output_dir": "run", "data": {"path": "rows.jsonl"}}


def test_another_recipe_is_refused_before_the_journal_of_a_run_is_touched(tmp_path):
    run = RunDir(tmp_path / "run")
    run.path.mkdir()
    recipe = Recipe.model_validate(FIELDS)
    info = {
        "format_version": rundir.FORMAT_VERSION,
        "status": "finished",
        "identity": {"recipe": recipe_identity(recipe)},
    }
    durable.write_json(run.file(rundir.RUN_INFO), info)
    changed = Recipe.model_validate(FIELDS | {"seed": 9})
    for request, is_refused in ((Request(tmp_path, extend=5), True), (Request(tmp_path, fork=True), False)):
        admission = admit(run, request)
        check_recipe(admission, recipe, request)
        if is_refused:
            with pytest.raises(RunError, match="seed: was 0, is now 9"):
                check_recipe(admission, changed, request)
        else:
            check_recipe(admission, changed, request)
        admission.release()


@pytest.mark.parametrize(
    ("fields", "is_refused"),
    [
        ({"model": "base", "output_dir": "base"}, True),
        ({"model": "run/model", "output_dir": "run"}, True),
        ({"model": "base", "output_dir": "link"}, True),
        ({"adapter": "tuned", "output_dir": "./tuned", "lora": {}}, True),
        ({"model": "base", "output_dir": "base/adapters/mine"}, False),
        ({"model": "base", "output_dir": "run"}, False),
        ({"model": "org/base", "output_dir": "run"}, False),
    ],
)
def test_nothing_is_written_where_the_training_reads_from(tmp_path, fields, is_refused):
    for name in ("base", "run/model", "tuned"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "base")
    recipe = Recipe.model_validate(FIELDS | fields)
    if is_refused:
        with pytest.raises(RunError, match="is read from"):
            check_output(recipe, tmp_path)
    else:
        check_output(recipe, tmp_path)


@pytest.mark.parametrize("name", [rundir.LOCK, rundir.EVENTS])
def test_a_link_in_the_place_of_a_runs_file_is_refused_and_what_it_names_is_untouched(refused_once, tmp_path, name):
    outside = tmp_path / "outside"
    outside.write_text("mine\n")
    refused_once.file(name).unlink(missing_ok=True)
    refused_once.file(name).symlink_to(outside)
    with pytest.raises(RunError, match="a link or no regular file"):
        admit(refused_once, Request(tmp_path / "recipe.toml"))
    assert outside.read_text() == "mine\n"


def test_leftovers_of_a_dead_process_are_swept_and_other_peoples_files_stay(refused_once, tmp_path):
    ours = (".run.json.77.part", ".checkpoint-4.77.part", ".trash-checkpoint-2.77")
    theirs = (".video.part", ".trash-of-mine", "notes.7.part")
    for name in (*ours, *theirs):
        (refused_once.path / name).write_text("")
    admit(refused_once, Request(tmp_path / "recipe.toml")).release()
    names = {path.name for path in refused_once.path.iterdir()}
    assert names.isdisjoint(ours)
    assert names.issuperset(theirs)


@pytest.mark.parametrize("name", ["README.md", "recipe.toml", "samples.jsonl", "tokenizer.json", "checkpoint-3/old"])
def test_a_folder_with_files_that_a_run_would_write_over_is_refused_and_left_as_it_is(tmp_path, name):
    folder = tmp_path / "mine"
    (folder / name).parent.mkdir(parents=True)
    (folder / name).write_text("mine")
    (folder / "rows.jsonl").write_text("also mine")
    with pytest.raises(RunError, match=f"holds no run, but {name.split('/')[0]}, which a run would write over"):
        admit(RunDir(folder), Request(tmp_path / "recipe.toml"))
    assert sorted(path.name for path in folder.iterdir()) == sorted(["rows.jsonl", name.split("/")[0]])
    assert (folder / name).read_text() == "mine"


def test_somebody_elses_events_are_no_journal(tmp_path):
    (tmp_path / rundir.EVENTS).write_text('{"event": "click"}\n')
    with pytest.raises(RunError, match=r"holds no run, but events\.jsonl"):
        admit(RunDir(tmp_path), Request(tmp_path / "recipe.toml"))


def test_other_peoples_files_that_no_run_writes_are_no_obstacle(tmp_path):
    (tmp_path / "rows.jsonl").write_text("mine")
    (tmp_path / ".DS_Store").write_text("")
    admit(RunDir(tmp_path), Request(tmp_path / "recipe.toml")).release()
