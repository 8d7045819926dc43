"""Who may start in a run folder: nothing that could be continued is overwritten, nothing else stands in the way."""

import pytest

from mlx_finetune import rundir
from mlx_finetune.errors import RunError
from mlx_finetune.recipe.schema import Recipe
from mlx_finetune.rundir import RunDir
from mlx_finetune.train.start.admission import Request, admit, check_recipe
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


def test_checkpoints_without_their_run_are_not_overwritten(refused_once, tmp_path):
    checkpoint = refused_once.checkpoint(3)
    checkpoint.mkdir()
    (checkpoint / rundir.MANIFEST).write_text("{}")
    with pytest.raises(RunError, match=r"run\.json cannot be read"):
        admit(refused_once, Request(tmp_path / "recipe.toml"))


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
    rundir.write_json(run.file(rundir.RUN_INFO), info)
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
