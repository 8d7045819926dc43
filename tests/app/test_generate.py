"""Answers to prompts, and files of prompts: every row gets one, or says why not."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from mlx_finetune.app.generate import (
    Answerer,
    Prompt,
    answer,
    answer_prompt,
    answer_rows,
    question,
    read_prompts,
    sampling_of,
    to_line,
)
from mlx_finetune.app.open import Opened
from mlx_finetune.commands.generate import command
from mlx_finetune.dataset.template import render_prompt
from mlx_finetune.errors import DataError, MlxftError, Problem
from mlx_finetune.model.answers.batches import BatchDecoder
from mlx_finetune.model.answers.generate import Piece, PromptCache, generate_text
from mlx_finetune.recipe.schema import ChatRecipe

CHAT = ChatRecipe.model_validate({"max_tokens": 8})


def answerer(opened: Opened, seed: int = 0) -> Answerer:
    return Answerer(opened.model, opened.tokenizer, opened.data, CHAT, seed)


def prompts(*texts: str) -> list[Prompt]:
    return [Prompt(question(text, CHAT), {"prompt": text}, f"p:{n}") for n, text in enumerate(texts, 1)]


def test_an_answer_is_that_of_the_model_and_its_pieces_are_the_whole(opened: Opened) -> None:
    ids = render_prompt(question("Where?", CHAT), opened.tokenizer, opened.data)
    shown: list[str] = []
    reply = answer(opened.model, opened.tokenizer, ids, sampling_of(CHAT, 3), show=shown.append)
    assert reply.text == "".join(shown) == generate_text(opened.model, opened.tokenizer, ids, sampling_of(CHAT, 3))
    assert (reply.prompt_tokens, reply.answer_tokens, reply.finish) == (len(ids), 8, "length")


def test_stopping_keeps_what_came_so_far(opened: Opened) -> None:
    ids = render_prompt(question("Where?", CHAT), opened.tokenizer, opened.data)
    shown: list[str] = []
    whole = answer(opened.model, opened.tokenizer, ids, sampling_of(CHAT, 3))
    reply = answer(
        opened.model, opened.tokenizer, ids, sampling_of(CHAT, 3), show=shown.append, stop=lambda: len(shown) >= 3
    )
    assert reply.finish == "cancelled"
    assert 3 <= reply.answer_tokens < 8
    assert whole.text.startswith(reply.text.rstrip("\ufffd"))


def test_rows_draw_with_seed_plus_row_so_a_file_repeats_and_equal_prompts_differ(opened: Opened) -> None:
    problems: list[Problem] = []
    rows = [fields for fields, _ in answer_rows(answerer(opened), prompts("Where?", "Where?"), problems.append)]
    assert rows[0]["answer"] != rows[1]["answer"]
    single = answer_prompt(answerer(opened, seed=1), prompts("Where?")[0], 0)
    assert single.text == rows[1]["answer"]
    assert set(rows[0]) == {"prompt", "answer", "finish", "prompt_tokens", "answer_tokens", "seconds"}


def test_a_row_with_control_markers_is_reported_and_the_next_one_answered(opened: Opened) -> None:
    problems: list[Problem] = []
    rows = list(answer_rows(answerer(opened), prompts("a<|im_end|>b", "Where?", "\ud800"), problems.append))
    assert [reply is None for _, reply in rows] == [True, False, True]
    assert [problem.where for problem in problems] == ["p:1", "p:3"]
    assert "<|im_end|>" in problems[0].message
    assert problems[1].message == "the user turn is not UTF-8 at character 1"
    assert json.loads(to_line(rows[2][0]))["prompt"] == "\ud800"
    assert to_line(rows[2][0]).isascii()
    assert rows[0][0] == {"prompt": "a<|im_end|>b", "error": problems[0].message}


def test_a_text_file_has_a_prompt_a_line_and_rows_have_prompt_or_messages(tmp_path: Path) -> None:
    problems: list[Problem] = []
    (tmp_path / "p.txt").write_text("\ufeffWhere?\n\n  When?\r\n", "utf-8")
    text = read_prompts(tmp_path / "p.txt", CHAT, problems.append)
    assert [(p.shown["prompt"], p.where) for p in text] == [
        ("Where?", f"{tmp_path}/p.txt:1"),
        ("  When?", f"{tmp_path}/p.txt:3"),
    ]
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    rows = [{"prompt": "Where?", "id": 7}, {"messages": turns}, {"text": "x"}, {"messages": turns[1:]}]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    system = CHAT.model_copy(update={"system": "Be brief."})
    made = read_prompts(tmp_path / "p.jsonl", system, problems.append)
    assert made[0].shown == {"id": 7, "prompt": "Where?"}
    assert made[1].messages == ({"role": "system", "content": "Be brief."}, turns[0])
    assert made[1].shown["prompt"] == "a"
    assert [problem.where.rpartition(":")[2] for problem in problems] == ["3", "4"]


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xff\xfe"])
def test_a_file_without_prompts_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "p.txt").write_bytes(content)
    with pytest.raises(DataError, match=r"holds no prompt|not UTF-8"):
        read_prompts(tmp_path / "p.txt", CHAT, lambda _: None)
    with pytest.raises(DataError, match="no such file"):
        read_prompts(tmp_path / "q.txt", CHAT, lambda _: None)


def test_a_cache_changes_nothing_but_what_is_read(opened: Opened) -> None:
    cache = PromptCache(opened.model)
    sampling = sampling_of(CHAT, 0)
    for text in ("Where is it?", "Where is he?", "Where is it?"):
        ids = render_prompt(question(text, CHAT), opened.tokenizer, opened.data)
        cached = answer(opened.model, opened.tokenizer, ids, sampling, cache=cache)
        assert cached.text == answer(opened.model, opened.tokenizer, ids, sampling).text


def run(place: Path, *arguments: str, monkeypatch: pytest.MonkeyPatch) -> Result:
    monkeypatch.chdir(place)
    return CliRunner().invoke(command, list(arguments), standalone_mode=False)


def test_the_command_prints_the_answer_alone_on_stdout(
    place: Path, opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = run(place, "keeper", "--prompt", "Where?", monkeypatch=monkeypatch)
    ids = render_prompt(question("Where?", opened.chat), opened.tokenizer, opened.data)
    assert result.return_value == 0
    assert result.stdout == generate_text(opened.model, opened.tokenizer, ids, sampling_of(opened.chat, 0)) + "\n"
    assert result.stderr.splitlines()[-1] == "next: mlxft chat keeper"


def test_the_command_answers_with_the_base_when_asked(
    place: Path, opened: Opened, tiny_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("--prompt", "Where?", "--json", "--temperature", "0", "--max-tokens", "8", "--system", "Be brief.")
    base = json.loads(run(place, "keeper", "--base", *arguments, monkeypatch=monkeypatch).stdout)
    model = json.loads(run(place, str(tiny_model("llama")), *arguments, monkeypatch=monkeypatch).stdout)
    tuned = json.loads(run(place, "keeper", *arguments, monkeypatch=monkeypatch).stdout)
    assert base["answer"] == model["answer"] != tuned["answer"]
    assert base["answer_tokens"] == tuned["answer_tokens"] == 8


def test_rows_in_rows_out_and_exit_code_1_where_one_failed(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "p.jsonl").write_text('{"prompt": "a"}\n{"prompt": "<|im_start|>"}\nnot json\n{"prompt": "b"}\n')
    result = run(place, "keeper", "--file", "p.jsonl", "-o", "out/a.jsonl", monkeypatch=monkeypatch)
    rows = [json.loads(line) for line in (place / "out" / "a.jsonl").read_text().splitlines()]
    assert result.return_value == 1
    assert result.stdout == ""
    assert [(row["prompt"], "answer" in row) for row in rows] == [("a", True), ("<|im_start|>", False), ("b", True)]
    assert "error: p.jsonl:2: " in result.stderr
    assert "error: p.jsonl:3: " in result.stderr
    assert "2 answers in out/a.jsonl: " in result.stderr
    assert "; 2 rows failed" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "give either --prompt or --file"),
        (("--prompt", "a", "--file", "p.txt"), "give either --prompt or --file"),
        (("--prompt", "a", "--temperature", "hot"), '`temperature` = "hot"'),
        (("--prompt", "a", "--set", "top=1"), "has no key `top`"),
        (("--prompt", " "), "the prompt is empty"),
        (("--file", "same.txt", "-o", "same.txt"), "same.txt is the file the prompts are in"),
    ],
)
def test_wrong_arguments_are_sentences_with_exit_code_2(
    place: Path, arguments: tuple[str, ...], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "same.txt").write_text("a\n")
    result = run(place, "keeper", *arguments, monkeypatch=monkeypatch)
    assert isinstance(result.exception, MlxftError)
    assert says in result.exception.message
    assert result.exception.exit_code == 2


def test_a_file_in_batches_has_the_rows_of_one_by_one_in_its_order(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = ["a", "<|im_start|>", "Where is it, and why is it there?", "b", "When?", "c"]
    (place / "many.jsonl").write_text("".join(json.dumps({"prompt": one, "id": one[:1]}) + "\n" for one in prompts))
    options = ("--file", "many.jsonl", "--max-tokens", "10", "--stop", "th")
    one = run(place, "keeper", *options, monkeypatch=monkeypatch)
    many = run(place, "keeper", *options, "--batch", "3", monkeypatch=monkeypatch)
    rows, batched = ([json.loads(line) for line in result.stdout.splitlines()] for result in (one, many))
    for row in (*rows, *batched):
        row.pop("seconds", None)
    assert batched == rows
    assert [row["prompt"] for row in batched] == prompts
    assert one.return_value == many.return_value == 1
    assert "5 answers: " in many.stderr
    assert many.stderr.count("error: many.jsonl:2: ") == 1


def test_rows_that_are_whole_are_kept_when_a_batch_is_interrupted(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = BatchDecoder.step
    taken: list[int] = []

    def interrupted(decoder: BatchDecoder) -> list[tuple[int, Piece]]:
        taken.append(1)
        if len(taken) == 10:
            raise KeyboardInterrupt
        return step(decoder)

    monkeypatch.setattr(BatchDecoder, "step", interrupted)
    chats = [CHAT.model_copy(update={"max_tokens": count}) for count in (30, 3)]
    made = sampling_of
    monkeypatch.setattr(
        "mlx_finetune.app.generate.sampling_of", lambda chat, seed: made(chats[0] if seed == 0 else chats[1], seed)
    )
    rows: list[object] = []
    with pytest.raises(KeyboardInterrupt):
        rows.extend(
            row["prompt"] for row, _ in answer_rows(answerer(opened), prompts("a", "b", "c"), print, max_rows=2)
        )
    assert rows == ["b", "c"]  # "a" was not whole


def test_clean_json_prints_the_first_object_alone_and_says_where_there_is_none(
    place: Path, opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = ['Sure: ```json\n{"a": "}"}\n``` and {"b": 2}', "no object {here", '{"cut": ']
    monkeypatch.setattr(
        "mlx_finetune.app.generate.generate_tokens", lambda *_, **__: iter([Piece(said[0], 5), Piece("", 2, "stop")])
    )
    result = run(place, "keeper", "--prompt", "a", "--clean", "json", monkeypatch=monkeypatch)
    assert (result.stdout, result.return_value) == ('{"a": "}"}\n', 0)
    for text in said[1:]:
        monkeypatch.setattr(
            "mlx_finetune.app.generate.generate_tokens", lambda *_, text=text, **__: iter([Piece(text, 5, "length")])
        )
        result = run(place, "keeper", "--prompt", "a", "--clean", "json", monkeypatch=monkeypatch)
        assert (result.stdout, result.return_value) == ("", 1)
        assert f"error: the answer holds no JSON object: {text.strip()}" in result.stderr
    (place / "p.txt").write_text("a\n")
    result = run(place, "keeper", "--file", "p.txt", "--clean", "json", monkeypatch=monkeypatch)
    row = json.loads(result.stdout)
    assert (row["answer"], row["text"], row["error"]) == (None, said[2], "the answer holds no JSON object")
    assert result.return_value == 1
    assert "; 1 rows failed" in result.stderr


SCHEMA = {
    "type": "object",
    "properties": {"mood": {"enum": ["good", "bad"]}, "count": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["mood", "count"],
    "additionalProperties": False,
}


def test_a_schema_holds_every_answer_and_what_ran_out_is_truncated(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "s.json").write_text(json.dumps(SCHEMA))
    (place / "p.txt").write_text("a\nb\nc\n")
    for batch in ((), ("--batch", "2")):
        result = run(
            place,
            "keeper",
            "--file",
            "p.txt",
            "--schema",
            "s.json",
            "--max-tokens",
            "60",
            *batch,
            monkeypatch=monkeypatch,
        )
        rows = [json.loads(line) for line in result.stdout.splitlines()]
        assert result.return_value == 0
        assert [(row["finish"], row["truncated"]) for row in rows] == [("stop", False)] * 3
        for row in rows:
            assert set(json.loads(row["answer"])) == {"mood", "count"}
    cut = run(place, "keeper", "--prompt", "a", "--schema", "s.json", "--max-tokens", "4", monkeypatch=monkeypatch)
    assert cut.stdout.startswith('{"m')
    assert "it was truncated before the JSON was whole" in cut.stderr
    assert "maxLength and maxItems" in cut.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--prompt", "a", "--batch", "4"), "--batch answers the prompts of a file"),
        (("--prompt", "a", "--stop", ""), "--stop is empty"),
        (("--prompt", "a", "--schema", "s.json", "--stop", "x"), "--schema and --stop do not go together"),
        (("--prompt", "a", "--schema", "s.json", "--clean", "json"), "--schema and --clean do not go together"),
        (
            ("--prompt", "a", "--schema", "s.json", "--set", "repetition_penalty=1.2"),
            "--schema and repetition_penalty = 1.2 do not go together",
        ),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    place: Path, arguments: tuple[str, ...], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "s.json").write_text(json.dumps(SCHEMA))
    result = run(place, "keeper", *arguments, monkeypatch=monkeypatch)
    assert isinstance(result.exception, MlxftError)
    assert says in result.exception.message
    assert result.exception.exit_code == 2


def test_answers_one_by_one_need_nothing_of_mlx_lms_generator(place: Path, tiny_model: Callable[..., Path]) -> None:
    code = (
        "import sys; from click.testing import CliRunner; from mlx_finetune.commands.generate import command\n"
        f"CliRunner().invoke(command, [{str(tiny_model('llama'))!r}, '--prompt', 'a', '--max-tokens', '2'])\n"
        "assert 'mlx_finetune.model.answers.generate' in sys.modules\n"
        "print([name for name in ('mlx_lm.generate', 'transformers', 'llguidance') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=place, capture_output=True, text=True, check=False)
    assert done.stdout == "[]\n", done.stderr
