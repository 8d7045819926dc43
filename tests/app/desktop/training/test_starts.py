"""How a recipe is started: nothing that was trained is overwritten, nothing that was begun is forgotten."""

from pathlib import Path

import pytest
from desks import FakeDesk, at_work, write_recipe, write_run

from mlx_finetune.app.desktop.runs import known_runs, label, pick_run, read_state
from mlx_finetune.app.desktop.training import starts
from mlx_finetune.app.desktop.training.starts import Start
from mlx_finetune.errors import RecipeError, RunError, UsageError
from mlx_finetune.recipe.load import load_recipe
from mlx_finetune.rundir import RunDir


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeDesk:
    monkeypatch.chdir(tmp_path)
    return FakeDesk(tmp_path)


def test_a_run_is_new_at_work_finished_or_unfinished(fake: FakeDesk, tmp_path: Path) -> None:
    assert read_state(RunDir(Path("adapters/none"))).kind == "none"
    assert read_state(write_run(tmp_path, "a", "finished")).words == "finished"
    assert read_state(write_run(tmp_path, "b", "stopped", step=12)).words == "stopped at step 12"
    killed = write_run(tmp_path, "c", "running")
    assert read_state(killed).kind == "unfinished"
    with at_work(killed):
        assert read_state(killed).words == "at work"
    killed.file("run.json").write_text("{")
    assert read_state(killed).kind == "unfinished"


def test_the_quickstart_is_offered_first_then_what_is_new_then_what_was_trained(fake: FakeDesk, tmp_path: Path) -> None:
    for name in ("quickstart", "alpha", "beta"):
        write_recipe(tmp_path, name, purpose=f"{name} learns")
    write_run(tmp_path, "alpha", "finished")
    (tmp_path / "recipes" / "broken.toml").write_text("modle = 3\n")
    found = {offer.path.stem: offer.label for offer in starts.offers(fake.desk()) if not offer.path.is_absolute()}
    assert list(found) == ["quickstart", "beta", "alpha", "broken"]
    assert found["alpha"] == "alpha (finished) - alpha learns"
    assert found["broken"] == "broken (has mistakes) - "


def test_what_was_left_unfinished_goes_on_with_its_own_settings(fake: FakeDesk, tmp_path: Path) -> None:
    write_recipe(tmp_path, "a")
    write_run(tmp_path, "a", "stopped", overrides=["seed=5"])
    (start,) = starts.unfinished(fake.desk())
    assert start.arguments == ["recipes/a.toml", "--set", "seed=5", "--resume"]
    (tmp_path / "recipes" / "a.toml").unlink()
    (start,) = starts.unfinished(fake.desk())
    assert start.arguments[0] == "adapters/a/recipe.toml"


def test_a_run_of_another_folder_is_left_to_it(fake: FakeDesk, tmp_path: Path) -> None:
    run = write_run(tmp_path, "a", "stopped")
    run.file("run.json").write_text(run.file("run.json").read_text().replace(str(tmp_path), "/elsewhere"))
    assert starts.unfinished(fake.desk()) == []


def test_a_finished_run_stays_and_the_next_gets_a_name_of_its_own(fake: FakeDesk, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, "a")
    write_run(tmp_path, "a", "finished")
    (tmp_path / "adapters" / "a-2").mkdir()
    start = starts.ask_how(fake.desk(), *starts.start_of(recipe))
    assert start.run.path == Path("adapters/a-3")
    assert load_recipe(start.recipe, start.overrides).recipe.run_folder == start.run.path
    assert not start.is_resumed


def test_an_unfinished_run_is_asked_about(fake: FakeDesk, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, "a")
    write_run(tmp_path, "a", "stopped")
    fake.answers = ["1", "2"]
    assert starts.ask_how(fake.desk(), *starts.start_of(recipe)).arguments == ["recipes/a.toml", "--resume"]
    assert starts.ask_how(fake.desk(), *starts.start_of(recipe)).run.path == Path("adapters/a-2")


@pytest.mark.parametrize("name", ["it's", "ü 🚀", '"q"', "$(touch canary)", "a=b", "x\\y", "[1]"])
def test_a_name_beside_another_survives_the_override(name: str, fake: FakeDesk, tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text('model = "smollm2-135m"\n[data]\npath = "rows.jsonl"\n')
    start = starts.beside(Start(path, RunDir(Path("adapters") / name)))
    assert load_recipe(path, start.overrides).recipe.output_dir == f"adapters/{name}-2"


def test_what_is_dragged_in_by_mistake_is_named(fake: FakeDesk, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").touch()
    for given, message in (
        (tmp_path, "is a folder"),
        (tmp_path / "rows.jsonl", "is not a recipe"),
        (tmp_path / "x.toml", "no recipe"),
    ):
        with pytest.raises(UsageError, match=message):
            starts.check_recipe_file(fake.desk(), given)
    with pytest.raises(UsageError, match="there is no recipe `nothing`"):
        starts.recipe_path(fake.desk(), "nothing")
    with pytest.raises(RecipeError):
        starts.start_of(Path("nothing.toml"))


def test_a_recipe_is_named_from_here_and_never_like_an_option(fake: FakeDesk, tmp_path: Path) -> None:
    write_recipe(tmp_path, "a")
    (tmp_path / "-n.toml").write_text((tmp_path / "recipes" / "a.toml").read_text())
    assert starts.recipe_path(fake.desk(), "a") == Path("recipes/a.toml")
    assert starts.recipe_path(fake.desk(), str(tmp_path / "recipes" / "a.toml")) == Path("recipes/a.toml")
    start, _ = starts.start_of(starts.check_recipe_file(fake.desk(), Path("-n.toml")))
    assert start.arguments == [str(tmp_path / "-n.toml")]


def test_runs_to_choose_from_are_those_that_can_answer_the_latest_first(fake: FakeDesk, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="nothing has been trained here yet"):
        pick_run(fake.desk(), [], "Which?")
    old, new = write_run(tmp_path, "z", "finished", time=10.0), write_run(tmp_path, "a", "stopped", time=20.0)
    empty = write_run(tmp_path, "empty", "failed", time=30.0)
    (empty.path / "checkpoint-4" / "manifest.json").unlink()
    assert [run.path.name for run in known_runs(fake.desk())] == ["empty", "a", "z"]
    fake.answers = ["2"]
    assert pick_run(fake.desk(), [], "Which?") == old
    assert fake.said[1:] == ["  1  a (stopped at step 4)", "  2  z (finished)"]
    assert label(new) == "a (stopped at step 4)"
    assert pick_run(fake.desk(), ["z"], "Which?") == old
    fake.answers = [""]
    with at_work(new):
        assert pick_run(fake.desk(), [], "Which?") == old
    assert fake.said[-2:] == ["  1  z (finished)", "  2  a (at work)"]
