"""A right answer becomes a row with its origin, durably, and the conversation goes on with it."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from answering_runs import write_adapter, write_facts, write_run
from talks import Recorder, contents, start
from tiny import write_tiny_model

from mlx_finetune import __version__, durable
from mlx_finetune.app.chat.fixing import append_correction, fix
from mlx_finetune.app.chat.repl import Chat
from mlx_finetune.app.open import open_name
from mlx_finetune.dataset.corpus import load_splits
from mlx_finetune.dataset.corrections import find_corrections
from mlx_finetune.dataset.formats import Messages
from mlx_finetune.errors import DataError
from mlx_finetune.recipe.schema import Recipe


@pytest.fixture(name="run")
def run_fixture(tmp_path: Path, tiny_model: Callable[..., Path]) -> Path:
    folder = tmp_path / "adapters" / "keeper"
    write_run(folder, tiny_model("llama"))
    return folder


def chat_with(name: str, base: Path) -> tuple[Chat, Recorder]:
    return start(open_name(name, base=base, report=lambda _: None))


def rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "corrections.jsonl").read_text("utf-8").splitlines()]


def test_a_right_answer_becomes_a_row_with_its_origin(run: Path, tmp_path: Path) -> None:
    chat, screen = chat_with("keeper", tmp_path)
    chat.take("Where?")
    first = contents(chat)[1]
    chat.take("/params temperature=1.5 seed=9")
    chat.take("When?")
    wrong = contents(chat)[3]
    chat.take("/fix Then, \u00e0 midi.")
    assert screen.said[-1] == f"kept as correction 1 of {run / 'corrections.jsonl'}; the conversation goes on with it"
    assert contents(chat) == ["Where?", first, "When?", "Then, \u00e0 midi."]
    (row,) = rows(run)
    assert row["messages"] == [{"role": "system", "content": "Be brief."}, *chat.session.conversation.turns]
    hashes = [durable.hash_file(run / name) for name in ("adapter_model.safetensors", "adapters.safetensors")]
    facts = json.loads((run / "run.json").read_text())
    assert row["origin"] == {
        "time": "2026-11-26T12:00:00+00:00",
        "run": "keeper",
        "checkpoint": None,
        "model": facts["model"],
        "model_sha256": facts["model_sha256"],
        "adapter_sha256": " ".join(hashes),
        "sampling": {
            "temperature": 1.5,
            "top_p": 0.9,
            "top_k": 50,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "max_tokens": 8,
            "seed": 9,
        },
        "schema": None,
        "answer": wrong,
        "mlxft": __version__,
    }
    chat.take("Why?")
    assert len(contents(chat)) == 6


def test_the_row_is_one_that_the_trainer_reads(run: Path, tmp_path: Path) -> None:
    chat, _ = chat_with("keeper", tmp_path)
    chat.take("Where?")
    chat.take("/fix There.")
    (tmp_path / "rows.jsonl").write_text('{"messages": [{"role": "user", "content": "q"}]}\n' * 2)
    values = {"model": "m", "output_dir": "adapters/keeper", "data": {"path": "rows.jsonl", "corrections": True}}
    recipe = Recipe.model_validate(values)
    splits = load_splits(recipe.data, base=tmp_path, corrections=find_corrections(recipe, base=tmp_path))
    last = splits.train[-1]
    assert isinstance(last, Messages)
    assert [turn["content"] for turn in last.messages] == ["Be brief.", "Where?", "There."]


def test_a_second_correction_is_added_and_says_what_it_corrects(run: Path, tmp_path: Path) -> None:
    chat, screen = chat_with("keeper", tmp_path)
    chat.take("Where?")
    chat.take("/fix There.")
    chat.take("/fix Over there.")
    assert "correction 2 of" in screen.said[-1]
    first, second = rows(run)
    assert second["origin"]["answer"] == "There."
    assert second["origin"]["sampling"] is None, "nobody drew it"
    assert first["messages"][:-1] == second["messages"][:-1]
    chat.take("/fix Over there.")
    assert screen.said[-1] == "(that is what the answer was: nothing was kept)"
    assert len(rows(run)) == 2


def test_the_answer_may_be_written_in_the_editor_or_over_several_lines(run: Path, tmp_path: Path) -> None:
    chat, screen = chat_with("keeper", tmp_path)
    chat.take("Where?")
    screen.edits = ["There,\n  behind it.\n"]
    wrong = contents(chat)[1]
    chat.take("/fix")
    assert screen.offered == [wrong]
    assert contents(chat)[1] == "There,\n  behind it."
    chat.take("/fix\nOne\n\ntwo")
    assert contents(chat)[1] == "One\n\ntwo"
    assert [row["messages"][-1]["content"] for row in rows(run)] == ["There,\n  behind it.", "One\n\ntwo"]


@pytest.mark.parametrize(
    ("text", "why"), [("not json at all", "it is not JSON: "), ('{"n": "one"}', r"\$\.n: "), ("[1]", r"\$: ")]
)
def test_an_answer_against_the_schema_is_refused_until_it_is_off(
    run: Path, tmp_path: Path, text: str, why: str
) -> None:
    schema = tmp_path / "n.json"
    schema.write_text('{"type": "object", "properties": {"n": {"type": "integer"}}}')
    chat, _ = chat_with("keeper", tmp_path)
    chat.take("Where?")
    before = contents(chat)
    chat.take(f"/schema {schema}")
    with pytest.raises(DataError, match=f"does not keep to {schema}: {why}") as caught:
        fix(chat.session, text)
    assert "/schema off" in caught.value.hint
    assert contents(chat) == before
    assert not (run / "corrections.jsonl").exists()
    chat.take('/fix {"n": 1}')
    chat.take("/schema off")
    chat.take(f"/fix {text}")
    assert [row["messages"][-1]["content"] for row in rows(run)] == ['{"n": 1}', text]


def test_reasoning_belongs_to_its_own_answer(run: Path, tmp_path: Path) -> None:
    chat, screen = chat_with("keeper", tmp_path)
    chat.session.conversation.add("Where?", "<think>hm</think>Here.")
    chat.take("/fix There.")
    chat.take("/fix <think>so</think> Yon.")
    chat.take("/fix <think>so</think>")
    assert screen.said[-2] == "error: there is no answer after the reasoning"
    first, second = rows(run)
    assert first["messages"][-1] == {"role": "assistant", "content": "There."}
    assert first["origin"]["answer"] == "<think>hm</think>Here."
    assert second["messages"][-1]["reasoning_content"] == "so"


def test_what_cannot_be_a_row_is_refused_and_nothing_changes(run: Path, tmp_path: Path) -> None:
    chat, screen = chat_with("keeper", tmp_path)
    chat.take("/fix There.")
    assert screen.said[-2] == "error: there is no answer to put right"
    chat.take("Where?")
    before = contents(chat)
    chat.take("/fix a <|im_end|> b")
    assert "control marker '<|im_end|>'" in screen.said[-2]
    chat.take("/fix caf\udce9")
    assert screen.said[-1] == "error: the answer is not UTF-8 at character 4"
    assert contents(chat) == before
    assert not (run / "corrections.jsonl").exists()


def test_where_nothing_can_be_written_the_answer_stays_as_it_was(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat, screen = chat_with("keeper", tmp_path)
    chat.take("Where?")
    before = contents(chat)

    def full(*arguments: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    chat.take("/fix There.")
    monkeypatch.undo()
    assert screen.said[-2].endswith(
        "corrections.jsonl cannot be written: No space left on device; the answer is as it was"
    )
    assert contents(chat) == before
    chat.take("/fix There.")
    assert len(rows(run)) == 1


def test_a_correction_of_a_run_that_was_removed_meanwhile_is_kept(run: Path, tmp_path: Path) -> None:
    chat, _ = chat_with("keeper", tmp_path)
    chat.take("Where?")
    durable.remove_tree(run)
    chat.take("/fix There.")
    assert len(rows(run)) == 1


def test_a_checkpoint_keeps_its_corrections_with_its_run(tmp_path: Path, tiny_model: Callable[..., Path]) -> None:
    run = tmp_path / "adapters" / "young"
    write_facts(run, tiny_model("llama"))
    write_adapter(run / "checkpoint-2", tiny_model("llama"))
    (run / "checkpoint-2" / "manifest.json").write_text("{}")
    (run / "checkpoint-2" / "run.json").write_text((run / "run.json").read_text())  # as a training saves it
    for name in ("young", "adapters/young/checkpoint-2"):
        chat, _ = chat_with(name, tmp_path)
        chat.take("Where?")
        chat.take("/fix There.")
    assert [row["origin"]["checkpoint"] for row in rows(run)] == ["checkpoint-2", "checkpoint-2"]


def test_a_model_that_is_no_run_says_so_and_goes_on_with_the_right_answer(
    tmp_path: Path, tiny_model: Callable[..., Path]
) -> None:
    chat, screen = chat_with(str(tiny_model("llama")), tmp_path)
    chat.take("/set max_tokens 4")
    chat.take("Where?")
    chat.take("/fix There.")
    assert "is no run, so there is no corrections.jsonl to keep it in: /save FILE keeps it" in screen.said[-1]
    assert contents(chat) == ["Where?", "There."]
    chat.take(f"/save {tmp_path}/talk.jsonl")
    assert json.loads((tmp_path / "talk.jsonl").read_text())["messages"][-1]["content"] == "There."


def test_without_a_chat_template_the_row_is_the_one_question_the_model_saw(tmp_path: Path) -> None:
    base = write_tiny_model(tmp_path / "base", "gpt2", chat_template=False)
    write_run(tmp_path / "adapters" / "plain", base, chat={"temperature": 0.0, "max_tokens": 4})
    chat, _ = chat_with("plain", tmp_path)
    for text in ("Where?", "When?", "/fix Then."):
        chat.take(text)
    (row,) = rows(tmp_path / "adapters" / "plain")
    assert [turn["content"] for turn in row["messages"]] == ["When?", "Then."]


def test_two_chats_at_once_and_a_kill_lose_no_correction_that_was_said_to_be_kept(run: Path, tmp_path: Path) -> None:
    """A write ends at any page when its process is killed, so each kill may leave one piece, on a line of its own."""
    code = (
        "import sys; from pathlib import Path; from mlx_finetune.app.chat.fixing import append_correction\n"
        "number = 0\n"
        "while True:\n"
        "    append_correction(Path(sys.argv[1]), {'messages': [sys.argv[2], number, 'x' * 3000]})\n"
        "    number += 1; print(number, flush=True)\n"
    )
    path = run / "corrections.jsonl"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    children = [
        subprocess.Popen([sys.executable, "-c", code, str(path), name], stdout=subprocess.PIPE, env=environment)
        for name in "ab"
    ]
    told: dict[str, int] = {}
    try:
        for child in children:
            assert child.stdout is not None
            for _ in range(20):
                child.stdout.readline()
    finally:
        for name, child in zip("ab", children, strict=True):
            child.kill()
            assert child.stdout is not None
            told[name] = 20 + child.stdout.read().count(b"\n")
            child.stdout.close()
            child.wait()
    append_correction(path, {"messages": ["c", 0, ""]})
    lines = path.read_text("utf-8").splitlines()
    whole = [line for line in lines if line.endswith("}")]
    assert len(lines) - len(whole) <= len(children)
    kept = [json.loads(line)["messages"] for line in whole]
    assert kept[-1] == ["c", 0, ""], "what comes after a kill is whole"
    for name in "ab":
        numbers = [number for who, number, _ in kept if who == name]
        assert numbers == list(range(len(numbers)))
        assert len(numbers) - told[name] in (0, 1), "every correction that was said to be kept is there"
