"""From data to a recipe: what is written loads, whatever the data is called, and the model fits."""

from pathlib import Path

import pytest
from desks import FakeDesk

from mlx_finetune.app.desktop.desk import Cancelled, Ran
from mlx_finetune.app.desktop.training import guide
from mlx_finetune.errors import RunError
from mlx_finetune.hardware.limits import Machine
from mlx_finetune.model.sources.catalogue import CATALOGUE, find_entry
from mlx_finetune.recipe.load import load_recipe

MAC_8 = Machine(on_gpu=True, memory_bytes=8 * 2**30, working_set_bytes=int(0.66 * 8 * 2**30), chip="Apple M1")
MAC_64 = Machine(on_gpu=True, memory_bytes=64 * 2**30, working_set_bytes=int(0.81 * 64 * 2**30), chip="Apple M4 Max")
MAC_TINY = Machine(on_gpu=False, memory_bytes=10**9, working_set_bytes=10**9, chip="x")
DATA = [
    "rows.jsonl",
    "my rows.jsonl",
    "it's.jsonl",
    'q".jsonl',
    "ü 🚀.jsonl",
    "$(touch canary).jsonl",
    "a\\b.jsonl",
    "`x`.csv",
]


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeDesk:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(guide, "read_machine", lambda: MAC_64)
    return FakeDesk(tmp_path)


@pytest.mark.parametrize("name", DATA)
def test_the_recipe_loads_and_names_the_data(name: str, fake: FakeDesk, tmp_path: Path) -> None:
    (tmp_path / name).touch()
    fake.answers = [name, "", "mine", 'Why is "the sky" blue? \\ '.strip()]
    path = guide.make_recipe(fake.desk())
    assert path == Path("recipes/mine.toml")
    recipe = load_recipe(path).recipe
    assert (recipe.data.path, recipe.output_dir, recipe.model) == (name, "adapters/mine", "smollm2-135m")
    assert recipe.eval.prompts == ('Why is "the sky" blue? \\',)
    assert fake.called == [["data", "check", str(tmp_path / name)]]


def test_data_elsewhere_is_named_whole_and_large_models_are_quantised(fake: FakeDesk, tmp_path: Path) -> None:
    elsewhere = tmp_path.parent / f"{tmp_path.name} elsewhere"
    elsewhere.mkdir()
    index = [fit.entry.name for fit in guide.fits(MAC_64, [])].index("smollm2-1.7b") + 1
    fake.answers = [str(elsewhere), str(index), "", ""]
    recipe = load_recipe(guide.make_recipe(fake.desk())).recipe
    assert (recipe.data.path, recipe.quantize, recipe.eval.prompts) == (str(elsewhere), 4, ())
    assert recipe.training.learning_rate == pytest.approx(2e-4)


def test_data_that_cannot_be_used_is_asked_for_again(fake: FakeDesk, tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").touch()
    (tmp_path / "good.jsonl").touch()
    fake.commands = {"data": [1, 0]}
    fake.answers = ["bad.jsonl", "y", "good.jsonl", "1", "x", ""]
    assert load_recipe(guide.make_recipe(fake.desk())).recipe.data.path == "good.jsonl"
    fake.commands = {"data": 1}
    fake.answers = ["bad.jsonl", "n"]
    with pytest.raises(Cancelled):
        guide.make_recipe(fake.desk())


def test_nothing_is_written_over(fake: FakeDesk, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").touch()
    (tmp_path / "adapters" / "rows").mkdir(parents=True)
    for expected in ("rows-2", "rows-3"):
        fake.answers = ["rows.jsonl", "1", "", ""]
        assert guide.make_recipe(fake.desk()) == Path(f"recipes/{expected}.toml")
    fake.answers = ["rows.jsonl", "1", "../../Rows 2", ""]
    assert guide.make_recipe(fake.desk()) == Path("recipes/rows-2-2.toml")


def test_dialogs_pick_a_file_or_a_folder(fake: FakeDesk, tmp_path: Path) -> None:
    folder = tmp_path / "my data"
    folder.mkdir()
    fake.has_dialogs = True
    fake.programs = {"osascript": [Ran(0, "2  In a folder\n", ""), Ran(0, f"{folder}/\n", ""), Ran(0, "1  x\n", "")]}
    fake.answers = ["", ""]
    assert load_recipe(guide.make_recipe(fake.desk())).recipe.data.path == "my data"
    assert "choose folder" in fake.ran[1][2]


def test_models_that_do_not_fit_are_named_and_not_offered(fake: FakeDesk, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [fit.entry.name for fit in guide.fits(MAC_8, []) if fit.fits]
    assert names[0] == "smollm2-135m"
    assert "llama-3.1-8b" not in names
    assert "llama-3.1-8b" in [fit.entry.name for fit in guide.fits(MAC_64, []) if fit.fits]
    chat = [fit.entry.is_chat_model for fit in guide.fits(MAC_64, [])]
    assert chat == sorted(chat, reverse=True)
    assert len(chat) == len(CATALOGUE)
    monkeypatch.setattr(guide, "read_machine", lambda: MAC_TINY)
    (fake.folder / "rows.jsonl").touch()
    fake.answers = ["rows.jsonl"]
    with pytest.raises(RunError, match="none of the known models"):
        guide.make_recipe(fake.desk())


def test_a_label_says_size_download_and_memory() -> None:
    entry = find_entry("gemma-2b")
    assert entry is not None
    fit = guide.Fit(entry, 3 * 10**9, 10 * 10**9, is_here=False)
    assert fit.label == ("gemma-2b: 2.5B parameters, 3.0 GB of memory, 5.0 GB to fetch, base, gated")


@pytest.mark.parametrize(("text", "name"), [("Meine Übung!", "meine-bung"), ("...", "my-data"), ("A" * 99, "a" * 40)])
def test_a_name_needs_no_quotes(text: str, name: str) -> None:
    assert guide.slug(text) == name
