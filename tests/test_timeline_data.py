"""data/timeline is what its README says: made by its script, held-out things held out, every answer in the form."""

import ast
import importlib.util
import json
import re
import sys
import tomllib
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import jsonschema
import pytest
from conftest import ROOT

from mlx_finetune.recipe.load import load_recipe

FOLDER = ROOT / "data" / "timeline"
SPLITS = ("train", "valid", "test")
RECIPES = ("timeline-dialogpt", "timeline-smollm2")


@pytest.fixture(scope="module")
def maker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_timeline", FOLDER / "make_timeline.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["make_timeline"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def phrases() -> dict[str, Any]:
    return tomllib.loads((FOLDER / "commentary.toml").read_text("utf-8"))


@pytest.fixture(scope="module")
def validator() -> jsonschema.Draft202012Validator:
    schema = json.loads((FOLDER / "timeline.schema.json").read_text("utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def rows(split: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (FOLDER / f"{split}.jsonl").read_text("utf-8").splitlines()]


def commentary(row: dict[str, Any]) -> str:
    return row["messages"][1]["content"]


def timeline(row: dict[str, Any]) -> list[dict[str, str]]:
    return json.loads(row["messages"][2]["content"])["timeline"]


def test_the_committed_files_are_what_the_script_writes(maker: ModuleType, tmp_path: Path) -> None:
    said: list[str] = []
    maker.main(["--out", str(tmp_path)], said.append)
    assert said == [f"395 train, 16 valid, 125 test rows in {tmp_path}\n"]
    for split in SPLITS:
        assert (tmp_path / f"{split}.jsonl").read_bytes() == (FOLDER / f"{split}.jsonl").read_bytes()


def test_the_script_needs_the_standard_library_alone() -> None:
    tree = ast.parse((FOLDER / "make_timeline.py").read_text("utf-8"))
    names = {
        name.split(".")[0]
        for node in ast.walk(tree)
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert names <= sys.stdlib_module_names


def test_a_larger_set_starts_with_the_smaller_one(maker: ModuleType, phrases: dict[str, Any]) -> None:
    small, large = maker.make(phrases, 300, 7), maker.make(phrases, 6000, 7)
    for split in SPLITS:
        assert large[split][: len(small[split])] == small[split]
    assert {split: len(large[split]) for split in SPLITS} == {"train": 5550, "valid": 150, "test": 300}


def test_twenty_thousand_pairs_are_all_different(maker: ModuleType, phrases: dict[str, Any]) -> None:
    made = maker.make(phrases, 20_000, 7)
    assert {split: len(rows) for split, rows in made.items()} == {"train": 18_800, "valid": 200, "test": 1000}
    assert len({row.commentary for rows in made.values() for row in rows}) == 20_000


def test_another_seed_makes_other_rows(maker: ModuleType, phrases: dict[str, Any]) -> None:
    one, other = (maker.make(phrases, 300, seed)["train"] for seed in (7, 8))
    assert {row.commentary for row in one}.isdisjoint(row.commentary for row in other)


def test_files_with_other_content_are_kept(maker: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    mine = tmp_path / "train.jsonl"
    mine.write_text("my own rows\n")
    with pytest.raises(SystemExit):
        maker.main(["--out", str(tmp_path)])
    assert "--force replaces it" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["train.jsonl"]
    assert mine.read_text() == "my own rows\n"
    maker.main(["--out", str(tmp_path), "--force"])
    assert mine.read_bytes() == (FOLDER / "train.jsonl").read_bytes()


def test_too_few_pairs_are_refused(maker: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        maker.main(["--pairs", "199", "--out", str(tmp_path)])
    assert "--pairs must be at least 200" in capsys.readouterr().err


def test_sizes_and_categories_are_those_of_the_readme() -> None:
    readme = (FOLDER / "README.md").read_text("utf-8")
    sizes = {split: str(len(rows(split))) for split in SPLITS}
    assert dict(re.findall(r"^\| (\w+)\.jsonl \| (\d+) ", readme, re.MULTILINE)) == sizes
    assert sum(map(int, sizes.values())) == 536
    counts = Counter(row["category"] for row in rows("test"))
    assert {name: int(count) for name, count in re.findall(r"^\| (seen|new \w+) \| (\d+) ", readme, re.MULTILINE)} == (
        counts
    )
    assert counts.total() - counts["seen"] >= 100
    assert {row["category"] for split in ("train", "valid") for row in rows(split)} == {"seen"}


def test_no_commentary_occurs_twice() -> None:
    texts = [commentary(row) for split in SPLITS for row in rows(split)]
    assert len(set(texts)) == len(texts)


def test_every_answer_is_compact_and_valid(validator: jsonschema.Draft202012Validator) -> None:
    for split in SPLITS:
        for row in rows(split):
            answer = row["messages"][2]["content"]
            value = json.loads(answer)
            validator.validate(value)
            assert json.dumps(value, separators=(",", ":")) == answer
            assert [turn["role"] for turn in row["messages"]] == ["system", "user", "assistant"]


@pytest.mark.parametrize(
    "value",
    [
        [],
        {},
        {"timeline": []},
        {"timeline": [{"ts": "1'", "event": "goal, A"}]},
        {"timeline": [{"ts": "1'", "event": "goal, A", "fan_sentiment": "joy", "note": ""}]},
        {"timeline": [{"ts": "1'", "event": "goal, A", "fan_sentiment": "bored"}]},
        {"timeline": [{"ts": "", "event": "goal, A", "fan_sentiment": "joy"}]},
        {"timeline": [{"ts": 1, "event": "goal, A", "fan_sentiment": "joy"}]},
        {"timeline": [{"ts": "1'", "event": "goal, A", "fan_sentiment": "joy"}], "more": 1},
        {"timeline": [{"ts": "1'", "event": "goal, A", "fan_sentiment": "joy"}] * 21},
    ],
)
def test_the_schema_refuses_what_is_no_timeline(validator: jsonschema.Draft202012Validator, value: Any) -> None:
    assert not validator.is_valid(value)


def test_the_schema_takes_one_to_twenty_events(validator: jsonschema.Draft202012Validator) -> None:
    event = {"ts": "1'", "event": "goal, A", "fan_sentiment": "joy"}
    assert all(validator.is_valid({"timeline": [event] * count}) for count in (1, 20))


def test_times_stand_in_the_text_in_their_order_and_names_word_for_word() -> None:
    for split in SPLITS:
        for row in rows(split):
            text, position = commentary(row), 0
            for event in timeline(row):
                position = text.index(event["ts"], position)
                kind, about = event["event"].split(", ", 1)
                assert about in text
                assert kind


def forms(text: str) -> str:
    """A clock with its numbers left out."""
    return re.sub(r"first|second|third|fourth|fifth", "WORD", re.sub(r"\d+(st|nd|rd|th)?", r"#\1", text))


def test_what_is_held_out_stands_in_no_training_row(phrases: dict[str, Any]) -> None:
    learned = [*rows("train"), *rows("valid")]
    text = "\n".join(map(commentary, learned))
    games = phrases["games"]
    assert {row["game"] for row in learned} == {name for name, game in games.items() if not game.get("is_held")}
    for game in games.values():
        leagues = game["leagues"] if game.get("is_held") else {"held": game["leagues"]["held"]}
        assert not [league for pool in leagues.values() for league in pool if league in text]
    for start in phrases["names"]["held"]["starts"]:
        assert not [end for end in phrases["names"]["held"]["ends"] if start + end in text]
    held = [phrase for kind in phrases["fans"].values() for phrase in kind["held"]]
    held += [plays for game in games.values() for event in game["events"].values() for plays in event.get("held", [])]
    held += phrases["noise"]["held"] + phrases["intros"]["held"]
    for phrase in held:
        pattern = re.sub(r"\\{\w+\\}", r"[\\w ]+", re.escape(phrase))
        assert not re.search(pattern, text, re.IGNORECASE), phrase


def test_each_category_of_the_test_holds_one_new_thing_in_every_row(phrases: dict[str, Any]) -> None:
    clocks = {forms(event["ts"]) for row in rows("train") for event in timeline(row)}
    held_games = {name for name, game in phrases["games"].items() if game.get("is_held")}
    fans = [phrase for kind in phrases["fans"].values() for phrase in kind["held"]]
    for row in rows("test"):
        category, text = row["category"], commentary(row)
        assert (row["game"] in held_games) == (category == "new game")
        is_new = {forms(event["ts"]) not in clocks for event in timeline(row)}
        assert is_new == {category == "new clock"}, row
        has_new_name = any(start in text for start in phrases["names"]["held"]["starts"])
        assert has_new_name == (category == "new league"), row
        if category != "new phrasing":
            assert not [phrase for phrase in fans if phrase.lower() in text.lower()]


def test_sentiments_are_even_and_every_kind_of_event_is_learned(phrases: dict[str, Any]) -> None:
    learned = [event for row in rows("train") for event in timeline(row)]
    counts = Counter(event["fan_sentiment"] for event in learned)
    assert set(counts) == set(phrases["fans"])
    assert min(counts.values()) > 0.15 * counts.total()
    kinds = {name for game in phrases["games"].values() if not game.get("is_held") for name in game["events"]}
    assert {event["event"].split(", ")[0] for event in learned} == kinds


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_of_the_timeline_asks_as_its_rows_do(name: str, phrases: dict[str, Any]) -> None:
    recipe = load_recipe(ROOT / "recipes" / f"{name}.toml").recipe
    assert recipe.data.path == "data/timeline"
    assert recipe.chat.system == phrases["system"]
    assert {row["messages"][0]["content"] for split in SPLITS for row in rows(split)} == {phrases["system"]}
    assert recipe.chat.temperature == 0
    assert recipe.eval.prompts
    assert set(recipe.eval.prompts).isdisjoint(commentary(row) for split in SPLITS for row in rows(split))
