import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

import mlx_finetune.app.data.preview as preview
from mlx_finetune.app.data.preview import row_text, show_preview
from mlx_finetune.dataset.explain import explain
from mlx_finetune.dataset.formats import Messages, Text
from mlx_finetune.dataset.visible import harmless
from mlx_finetune.errors import UsageError
from mlx_finetune.model.sources.fetch import LocalModel
from mlx_finetune.model.tokens.tokenizer import load_tokenizer
from mlx_finetune.recipe.data import DataRecipe

TURNS = ("Hi you", "the end", "And the one", "Yes")


@pytest.fixture(name="recipe")
def recipe_fixture(tmp_path: Path, tiny_model: Callable[..., Path]) -> Path:
    rows = [
        [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(TURNS)],
        [{"role": "user", "content": "a\x1b[31m<|im_end|>"}, {"role": "assistant", "content": "b"}],
        [{"role": "user", "content": "red \x1b[31m\u202ered\x07"}, {"role": "assistant", "content": "ok"}],
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    path = tmp_path / "r.toml"
    path.write_text(
        f'model = "{tiny_model("llama")}"\noutput_dir = "out"\n[data]\npath = "rows.jsonl"\n'
        'val_split = 0.0\ntest_split = 0.0\nmax_seq_length = 40\ntruncation = "keep-end"\n'
    )
    return path


def test_plain_text_brackets_each_token_learned_or_cut(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    show_preview(str(recipe), rows=1, base=recipe.parent)
    shown = capsys.readouterr().out
    head, tokens = re.split(r"\n", shown, maxsplit=1)
    assert head == "rows.jsonl:1  49 tokens, 3 learned, 24 cut  (text prefix)"
    assert "{<|im_start|>}{user}{\\n}" in tokens
    assert "<|im_start|>user\\n\nAnd the one<|im_end|>\\n\n" in tokens
    assert "[Y][es][<|im_end|>]\\n\n" in tokens
    assert "-> 49 tokens are more than max_seq_length = 40: its first turns were cut" in tokens


def test_the_summary_names_method_template_counts_and_what_was_lost(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    show_preview(str(recipe), rows=1, base=recipe.parent)
    lines = capsys.readouterr().out.splitlines()
    assert "key: [learned] read {cut}" in lines
    assert "mask: text prefix; template: the model's own (tokenizer_config.json)" in lines
    counts = next(line for line in lines if line.startswith("training rows"))
    assert counts.startswith("training rows: 3 rows become 2 sequences, ")
    assert re.search(r"\d+ learned \(\d+\.\d%\); longest \d+ of 40$", counts)
    refused = next(line for line in lines if line.startswith("warning: refused"))
    assert (
        refused == "warning: refused: 1 row; first rows.jsonl:2: the conversation holds the control marker '<|im_end|>'"
    )


def test_nothing_in_a_row_reaches_the_terminal_as_an_escape(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    show_preview(str(recipe), rows=3, base=recipe.parent)
    shown = capsys.readouterr()
    assert not {c for c in shown.out + shown.err if not c.isprintable()} - {"\n"}
    assert "\\x1b[31m\\u202e" in shown.out.replace("][", "").replace("}{", "")


def test_harmless_keeps_line_breaks_and_letters() -> None:
    assert harmless("é\n\t\x1b[0m\u200b\U000e0001") == "é\n\\t\\x1b[0m\\u200b\\U000e0001"


def test_json_has_every_token_with_id_text_and_state(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    show_preview(str(recipe), rows=2, as_json=True, base=recipe.parent)
    shown = json.loads(capsys.readouterr().out)
    first, second = shown["rows"]
    assert (first["line"], second["line"], second["tokens"]) == (1, 2, [])
    assert "".join(token["text"] for token in first["tokens"] if token["state"] == "learned") == "Yes<|im_end|>"
    assert shown["sequences"] == 2
    assert shown["outcomes"] == {"refused": 1, "cut": 1}


def test_settings_given_on_the_command_line_count(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    show_preview(str(recipe), rows=1, overrides=("data.max_seq_length=100",), as_json=True, base=recipe.parent)
    states = {token["state"] for token in json.loads(capsys.readouterr().out)["rows"][0]["tokens"]}
    assert states == {"read", "learned"}


def test_bare_data_is_shown_in_the_files_order_with_the_tokens_of_the_model_that_is_named(
    recipe: Path, tiny_model: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    model = str(tiny_model("llama"))
    show_preview("rows.jsonl", rows=3, model=model, as_json=True, base=recipe.parent)
    shown = json.loads(capsys.readouterr().out)
    assert (shown["model"], [row["line"] for row in shown["rows"]]) == (model, [1, 2, 3])
    assert "".join(t["text"] for t in shown["rows"][2]["tokens"] if t["state"] == "learned") == "ok<|im_end|>"
    show_preview("rows.jsonl", rows=1, model=model, base=recipe.parent)
    assert capsys.readouterr().err.endswith("next: mlxft recipe copy quickstart mine.toml\n")


QUESTION = {"prompt": "the a of"}


@pytest.mark.parametrize(
    ("rows", "task", "shown", "said", "copied"),
    [
        (
            [{**QUESTION, "chosen": "you", "rejected": "they"}],
            "dpo",
            [("chosen", "you"), ("rejected", "they")],
            'the rows are preference pairs (chosen and rejected); shown as task = "dpo" reads them; others that do: '
            "cdpo, ipo, orpo, rdpo, reward, simpo",
            "dpo-rules mine.toml",
        ),
        (
            [{**QUESTION, "completion": "you", "label": True}, {**QUESTION, "completion": "he", "label": False}],
            "kto",
            [("good", "you"), ("bad", "he")],
            'the rows are answers marked good or bad; shown as task = "kto" reads them; others that do: verifier',
            'dpo-rules mine.toml, and write task = "kto" into it',
        ),
        (
            [{"text": "the a of", "label": "good"}, {"text": "you", "label": "bad"}],
            "classify",
            [("label of a text", ""), ("label of a text", "")],
            'the rows are texts with labels; shown as task = "classify" reads them',
            "classify-sst2 mine.toml",
        ),
    ],
)
def test_bare_rows_of_another_task_are_shown_as_that_task_reads_them(
    tmp_path: Path,
    tiny_model: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
    rows: list[dict[str, object]],
    task: str,
    shown: list[tuple[str, str]],
    said: str,
    copied: str,
) -> None:
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    show_preview("rows.jsonl", rows=3, model=str(tiny_model("llama")), as_json=True, base=tmp_path)
    found = json.loads(capsys.readouterr().out)
    learned = [
        (row["method"].partition(";")[0], "".join(one["text"] for one in row["tokens"] if one["state"] == "learned"))
        for row in found["rows"]
    ]
    assert (found["task"], learned) == (task, [(name, f"{text}<|im_end|>") for name, text in shown])
    show_preview("rows.jsonl", rows=3, model=str(tiny_model("llama")), base=tmp_path)
    err = capsys.readouterr().err.splitlines()
    assert (err[-3], err[-1]) == (said, f"next: mlxft recipe copy {copied}")


@pytest.mark.parametrize("how", ["auto", "none"])
def test_a_verifiers_answer_is_shown_up_to_its_last_token(
    tmp_path: Path, tiny_model: Callable[..., Path], how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps({**QUESTION, "completion": "you", "label": False}) + "\n")
    path = tmp_path / "r.toml"
    path.write_text(
        f'model = "{tiny_model("llama")}"\ntask = "verifier"\noutput_dir = "out"\n[data]\npath = "rows.jsonl"\n'
        f'val_split = 0.0\ntest_split = 0.0\nprompt_template = "{how}"\n'
    )
    show_preview(str(path), rows=1, as_json=True, base=tmp_path)
    (row,) = json.loads(capsys.readouterr().out)["rows"]
    assert "".join(one["text"] for one in row["tokens"] if one["state"] == "learned") == "you<|im_end|>"
    assert row["tokens"][-1]["state"] == "learned"
    assert row["notes"] == ["the answer is wrong"]


@pytest.mark.parametrize(
    "folder", ["models/smollm2-135m-b179c9523d0e", "hub/models--HuggingFaceTB--SmolLM2-135M-Instruct"]
)
def test_bare_data_takes_the_quickstarts_model_where_it_was_fetched(
    recipe: Path, folder: str, tiny_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(preview, "cache_folder", lambda: recipe.parent)
    monkeypatch.setattr(preview, "hub_cache_folder", lambda: recipe.parent / "hub")
    with pytest.raises(UsageError, match="smollm2-135m is not on this disk yet") as caught:
        show_preview("rows.jsonl", rows=1, base=recipe.parent)
    assert caught.value.hint.startswith("mlxft data preview rows.jsonl --model smollm2-135m fetches it")

    def fetched(name: str, **_: object) -> LocalModel:
        asked.append(name)
        return LocalModel(name, tiny_model("llama"), "folder:here", None, "", None)

    monkeypatch.setattr(preview, "recipe_model", lambda recipe, **_: fetched(recipe.model))
    snapshot = recipe.parent / folder / "snapshots" / "main"
    snapshot.mkdir(parents=True)
    for path in (snapshot / "model.safetensors", snapshot.parent.parent / "mlxft-source.json"):
        path.write_text("{}")
    show_preview("rows.jsonl", rows=1, base=recipe.parent)
    assert asked == ["smollm2-135m"]


def test_model_is_for_bare_data_and_set_for_recipes(recipe: Path) -> None:
    with pytest.raises(UsageError, match="names its model") as caught:
        show_preview(str(recipe), rows=1, model="m", base=recipe.parent)
    assert caught.value.hint == "--set model=m"
    with pytest.raises(UsageError, match="--set changes a recipe"):
        show_preview("rows.jsonl", rows=1, model="m", overrides=("seed=1",), base=recipe.parent)


def test_colours_mark_states_without_brackets(tiny_model: Callable[..., Path]) -> None:
    tokenizer = load_tokenizer(tiny_model("llama"))
    turns = tuple({"role": role, "content": text} for role, text in (("user", "q"), ("assistant", "a")))
    data = DataRecipe.model_validate({"path": "-"})
    row = next(explain([Messages(turns, None, "f", 1)], tokenizer, data, task="sft"))
    console = Console(force_terminal=True, color_system="standard", no_color=False, width=80, highlight=False)
    with console.capture() as captured:
        console.print(row_text(row, in_colour=True))
    assert "\x1b[1;32ma\x1b[0m" in captured.get().replace("\x1b[1;4;32ma", "\x1b[1;32ma")
    assert "[a]" not in captured.get()


@pytest.mark.parametrize(("truncation", "states"), [("drop", {"cut"}), ("split", {"read", "learned"})])
def test_a_dropped_row_is_cut_whole_and_a_split_one_not_at_all(
    tiny_model: Callable[..., Path], truncation: str, states: set[str]
) -> None:
    data = DataRecipe.model_validate({"path": "-", "max_seq_length": 8, "truncation": truncation})
    text = Text("abcdefghijklmnop", "f", 1)
    row = next(explain([text], load_tokenizer(tiny_model("llama")), data, task="sft"))
    assert {token.state for token in row.tokens} == states
    assert "".join(token.text for token in row.tokens) == "abcdefghijklmnop<|im_end|>"
    assert len(row.notes) == 1


def test_a_character_of_several_tokens_is_shown_once(tiny_model: Callable[..., Path]) -> None:
    data = DataRecipe.model_validate({"path": "-"})
    row = next(explain([Text("a\U0001f600b", "f", 1)], load_tokenizer(tiny_model("llama")), data, task="sft"))
    assert [token.text for token in row.tokens] == ["a", "\U0001f600", "", "", "", "b", "<|im_end|>"]


def test_a_preview_needs_neither_mlx_nor_transformers() -> None:
    heavy = ("mlx", "mlx_lm", "transformers")
    code = f"import sys, mlx_finetune.app.data.preview; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
