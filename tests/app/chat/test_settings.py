"""/params changes several settings or none; /schema holds answers to a schema until it is switched off."""

import json
from pathlib import Path

import pytest
from talks import contents, start

from mlx_finetune.app.open import Opened

SCHEMA = {
    "type": "object",
    "properties": {"place": {"enum": ["here", "there"]}, "n": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["place", "n"],
    "additionalProperties": False,
}


@pytest.fixture(name="schema")
def schema_fixture(tmp_path: Path) -> Path:
    path = tmp_path / "my place.json"
    path.write_text(json.dumps(SCHEMA))
    return path


def test_params_shows_every_setting_with_its_meaning_and_what_was_changed(opened: Opened) -> None:
    chat, screen = start(opened)
    chat.take("/params")
    names = [line.split(" = ")[0].strip() for line in screen.said]
    assert names == [*(name for name in opened.chat.model_dump() if name != "system"), "seed", "schema"]
    assert screen.said[0].split("  ")[1:] == ["temperature = 0.0", *screen.said[0].split("  ")[2:]]
    assert screen.said[0].endswith("0 always takes the likeliest token.")
    assert screen.said[-1].split("  ")[1].strip() == "schema = off"
    chat.take("/params top_p=0.5 seed=3")
    screen.said.clear()
    chat.take("/params")
    assert [line for line in screen.said if "was" in line] == [
        next(line for line in screen.said if line.endswith("Smallest set of tokens with this mass. (was 0.9)"))
    ]


def test_params_changes_several_settings_at_once(opened: Opened) -> None:
    chat, screen = start(opened)
    chat.take("/params temperature=0.2 top-p=0.9 'max_tokens=3' seed=7")
    session = chat.session
    assert (session.chat.temperature, session.chat.top_p, session.chat.max_tokens, session.seed) == (0.2, 0.9, 3, 7)
    assert screen.said == ["temperature = 0.2", "top_p = 0.9", "max_tokens = 3", "seed = 7"]


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ("temperature=11", "error: `temperature` = 11: input should be less than or equal to 10"),
        ("temperatur=1", "error: [chat] has no key `temperatur`"),
        ("temperature", "error: /params temperature: a setting is NAME=VALUE"),
        ("temperature=", "error: /params temperature=: a setting is NAME=VALUE"),
        ("seed=-1", "error: `seed` = -1: a whole number from 0 to 2147483647"),
        ("system=x", "error: /params does not change the system message"),
    ],
)
def test_one_bad_setting_changes_none(opened: Opened, bad: str, says: str) -> None:
    chat, screen = start(opened)
    before = (chat.session.chat, chat.session.seed)
    chat.take(f"/params top_p=0.3 seed=9 {bad} top_k=2")
    assert (chat.session.chat, chat.session.seed) == before
    assert screen.said[0] == says
    assert chat.failures == 1


def test_answers_are_held_to_a_schema_until_it_is_off(opened: Opened, schema: Path) -> None:
    chat, screen = start(opened)
    chat.take("/schema")
    assert screen.said[-1] == "answers are free; /schema FILE holds them to a JSON Schema"
    chat.take(f"/schema '{schema}'")
    assert screen.said[-1] == f"answers are held to {schema}; /schema off frees them"
    for settings in ("temperature=0 max_tokens=60", "temperature=3 max_tokens=60"):
        chat.take(f"/params {settings}")
        chat.take("Where?")
        answer = json.loads(contents(chat)[-1])
        assert answer["place"] in ("here", "there")
        assert 0 <= answer["n"] <= 9
    assert chat.failures == 0
    chat.take("/schema off")
    chat.take("/set temperature 0")
    chat.take("Where?")
    with pytest.raises(ValueError, match=r"."):
        json.loads(contents(chat)[-1])


def test_an_answer_that_is_cut_is_said_to_be_no_whole_json(opened: Opened, schema: Path) -> None:
    chat, screen = start(opened)
    chat.take(f"/schema '{schema}'")
    chat.take("/set max_tokens 2")
    chat.take("Where?")
    assert screen.said[-1] == "(the JSON is not whole: cut after 2 tokens; /set max_tokens 4 allows more)"


def test_compare_holds_both_answers_to_the_schema(opened: Opened, schema: Path) -> None:
    chat, screen = start(opened)
    for text in (f"/schema '{schema}'", "/set max_tokens 60", "/compare Where?"):
        chat.take(text)
    assert "".join(screen.pieces).count('{"place":"') == 2


def test_a_file_that_is_no_schema_leaves_the_one_before(opened: Opened, schema: Path, tmp_path: Path) -> None:
    chat, screen = start(opened)
    chat.take(f"/schema '{schema}'")
    grammar = chat.session.grammar
    (tmp_path / "bad.json").write_text('{"type": "objekt"}')
    (tmp_path / "no.json").write_text("{")
    for name in ("bad.json", "no.json", "missing.json"):
        chat.take(f"/schema {tmp_path / name}")
        assert name in screen.said[-1] or name in screen.said[-2]
    chat.take("/schema a b")
    assert chat.failures == 4
    assert (chat.session.grammar, chat.session.schema) == (grammar, schema)


def test_a_schema_and_a_repetition_penalty_are_refused_whichever_comes_first(opened: Opened, schema: Path) -> None:
    chat, screen = start(opened)
    chat.take(f"/schema '{schema}'")
    for command in ("/set repetition_penalty 1.1", "/params top_k=3 repetition_penalty=1.1"):
        chat.take(command)
        assert "do not go together" in screen.said[-2]
    assert (chat.session.chat.repetition_penalty, chat.session.chat.top_k) == (1.0, 50)
    chat.take("/schema off")
    chat.take("/set repetition_penalty 1.1")
    chat.take(f"/schema '{schema}'")
    assert chat.session.grammar is None
    assert screen.said[-1] == "hint: /set repetition_penalty 1, or /schema off"
