"""Masks through the chat templates of well-known families (../shared/models/templates), which are not ours to ship."""

import json
from collections.abc import Callable
from pathlib import Path

import golden_templates
import pytest
from families import family_folder, family_tokenizer
from golden_templates import CONVERSATIONS, GOLDEN, Turns, assistant, user
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny import write_tiny_model

from mlx_finetune.dataset import mask
from mlx_finetune.dataset.formats import Messages
from mlx_finetune.dataset.template import render_prompt, tokenize
from mlx_finetune.errors import DataError
from mlx_finetune.model.tokens.tokenizer import ModelTokenizer, load_tokenizer
from mlx_finetune.recipe.data import DataRecipe

DATA = DataRecipe.model_validate({"path": "-"})
FAMILIES = (
    "Qwen-Qwen2.5-7B-Instruct",
    "Qwen-Qwen3-0.6B",
    "HuggingFaceTB-SmolLM3-3B",
    "trl-llama3",
    "google-gemma-2-2b-it",
    "mistralai-Mistral-Nemo-Instruct-2407",
    "microsoft-Phi-3.5-mini-instruct",
    "deepseek-ai-DeepSeek-V3.1",
)


@pytest.fixture(name="family", scope="module")
def family_fixture(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], ModelTokenizer]:
    made: dict[str, ModelTokenizer] = {}
    folder = tmp_path_factory.mktemp("families")

    def make(name: str) -> ModelTokenizer:
        if not golden_templates.TEMPLATES.is_dir():
            pytest.skip("needs ../shared/models/templates beside the checkout")
        if name not in made:
            made[name] = family_tokenizer(folder, golden_templates.TEMPLATES / f"{name}.jinja")
        return made[name]

    return make


def learned(tokenizer: ModelTokenizer, messages: Turns, data: DataRecipe = DATA) -> list[str]:
    split = tokenize([Messages(messages, None, "rows.jsonl", 1)], tokenizer, data, task="sft")
    return [tokenizer.decode(row.ids[row.loss_mask].tolist()) for row in split.rows]


def test_targets_through_every_template_are_those_of_the_golden_table(
    tmp_path: Path, shared: Callable[..., Path]
) -> None:
    lines = list(golden_templates.table(tmp_path, shared("models", "templates")))
    assert "\n".join(lines) + "\n" == GOLDEN.read_text(encoding="utf-8")


def test_the_golden_table_holds_every_template_and_learns_replies_and_end_marks_alone() -> None:
    """Read without ../shared: what stands in the table is reviewed by this as well as by eye."""
    lines = GOLDEN.read_text(encoding="utf-8").splitlines()
    assert sum(not line.startswith("  ") for line in lines) == 35
    two_turns = [line for line in lines if line.startswith("  two turns") and ": refused: " not in line]
    assert len(two_turns) > 25
    for line in two_turns:
        for asked in ("Hi", "Bye", "user", "system"):
            assert asked not in line.replace("two turns", ""), line
        assert line.count("Hello.") == 1, line
        assert line.count("See you.") == 1, line


@pytest.mark.parametrize(
    ("tagged", "untagged"), [("trl-llama3_training", "trl-llama3"), ("trl-qwen3_training", "trl-qwen3")]
)
@pytest.mark.parametrize("name", ["one turn", "system", "two turns"])
def test_generation_tags_and_text_prefix_agree(
    family: Callable[[str], ModelTokenizer], tagged: str, untagged: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    messages, _ = CONVERSATIONS[name]
    tokenizer = family(tagged)
    by_tags = tokenize([Messages(messages, None, "", 1)], tokenizer, DATA, task="sft")
    assert by_tags.report.method == mask.GENERATION_TAGS
    monkeypatch.setattr(ModelTokenizer, "assistant_spans", lambda *_, **__: None)
    by_prefix = tokenize([Messages(messages, None, "", 1)], tokenizer, DATA, task="sft")
    assert by_prefix.report.method == mask.TEXT_PREFIX
    assert [row.ids.tolist() for row in by_tags.rows] == [row.ids.tolist() for row in by_prefix.rows]
    assert [row.loss_mask.tolist() for row in by_tags.rows] == [row.loss_mask.tolist() for row in by_prefix.rows]
    assert "".join(learned(tokenizer, messages)) == "".join(learned(family(untagged), messages))


def test_the_exact_tokens_learned_from_two_turns_of_chatml(family: Callable[[str], ModelTokenizer]) -> None:
    tokenizer = family("Qwen-Qwen2.5-7B-Instruct")
    messages = (user("Hi"), assistant("Yes, sir.\n"), user("so?"), assistant(" well"))
    row = tokenize([Messages(messages, None, "", 1)], tokenizer, DATA, task="sft").rows[0]
    pieces = [tokenizer.decode([int(token)]) for token in row.ids[row.loss_mask]]
    assert pieces == ["Y", "es", ",", " s", "i", "r", ".", "\n", "<|im_end|>", " w", "e", "ll", "<|im_end|>"]


def test_a_template_that_rewrites_history_makes_one_sequence_of_each_turn(
    family: Callable[[str], ModelTokenizer],
) -> None:
    tokenizer = family("Qwen-Qwen3-0.6B")
    messages = (
        user("q1"),
        assistant("<think>\nlong\n</think>\n\na1"),
        user("q2"),
        assistant("<think>\nwhy\n</think>\n\na2"),
    )
    split = tokenize([Messages(messages, None, "rows.jsonl", 4)], tokenizer, DATA, task="sft")
    assert split.report.method == mask.TURN_BY_TURN
    texts = [tokenizer.decode(row.ids.tolist()) for row in split.rows]
    assert "long" in texts[0]
    assert "long" not in texts[1]
    assert [tokenizer.decode(row.ids[row.loss_mask].tolist()) for row in split.rows] == [
        "<think>\nlong\n</think>\n\na1<|im_end|>",
        "<think>\nwhy\n</think>\n\na2<|im_end|>",
    ]
    assert [row.line for row in split.rows] == [4, 4]


def test_two_methods_in_one_run_are_both_named_with_their_counts(family: Callable[[str], ModelTokenizer]) -> None:
    tokenizer = family("Qwen-Qwen3-0.6B")
    rows = [Messages((user("q"), assistant("a")) * turns, None, "", turns) for turns in (1, 2)]
    report = tokenize(rows, tokenizer, DATA, task="sft").report
    assert dict(report.methods) == {mask.TEXT_PREFIX: 1, mask.TURN_BY_TURN: 2}
    assert report.method == "text prefix (1 rows), text prefix, turn by turn (2 rows)"


def test_a_template_argument_changes_what_is_learned(family: Callable[[str], ModelTokenizer]) -> None:
    tokenizer = family("Qwen-Qwen3-0.6B")
    off = DataRecipe.model_validate({"path": "-", "template_arguments": {"enable_thinking": False}})
    assert learned(tokenizer, (user("q"), assistant("a"))) == ["<think>\n\n</think>\n\na<|im_end|>"]
    assert learned(tokenizer, (user("q"), assistant("a")), off) == ["a<|im_end|>"]


def test_what_a_template_raises_is_an_error_of_the_row(family: Callable[[str], ModelTokenizer]) -> None:
    rows = [Messages((user("q"), assistant("a")), None, "rows.jsonl", 1)]
    rows.append(Messages(({"role": "system", "content": "s"}, user("q"), assistant("a")), None, "rows.jsonl", 2))
    split = tokenize(rows, family("google-gemma-2-2b-it"), DATA, task="sft")
    assert len(split.rows) == 1
    problem = split.report.outcomes["refused"].rows[0]
    assert problem.where == "rows.jsonl:2"
    assert "System role not supported" in problem.message


def test_a_date_in_a_template_is_pinned_and_said(family: Callable[[str], ModelTokenizer]) -> None:
    tokenizer = family("meta-llama-Llama-3.2-3B-Instruct")
    text = tokenizer.render([user("q")], add_generation_prompt=True)
    assert "Today Date: 26 Jul 2024" in text
    report = tokenize([Messages((user("q"), assistant("a")), None, "", 1)], tokenizer, DATA, task="sft").report
    assert len(report.notes) == 1
    assert "26 July 2024" in report.notes[0]
    told = DataRecipe.model_validate({"path": "-", "template_arguments": {"date_string": "1 Jan 2030"}})
    assert "1 Jan 2030" in tokenizer.render([user("q")], arguments=told.template_arguments)


def test_a_tool_call_the_template_would_drop_is_refused(family: Callable[[str], ModelTokenizer]) -> None:
    messages, tools = CONVERSATIONS["tools used"]
    split = tokenize([Messages(messages, tools, "rows.jsonl", 7)], family("trl-phi3"), DATA, task="sft")
    assert split.report.problems[0].where == "rows.jsonl:7"
    assert "leaves out the tool call of turn 2" in split.report.problems[0].message


@pytest.mark.parametrize("name", FAMILIES)
@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_content_never_becomes_a_control_id_and_the_mask_fits(
    family: Callable[[str], ModelTokenizer], name: str, data: st.DataObject
) -> None:
    tokenizer = family(name)
    markers = sorted(tokenizer.control_tokens)
    piece = st.one_of(
        st.text(max_size=8),
        st.sampled_from(markers),
        st.sampled_from(
            ["<|im_", "end|>", "<", "/no_think", "</think>", "[", "\u200b", "<|im_\u200bend|>", "＜|im_end|＞"]
        ),
    )
    content = st.lists(piece, max_size=5).map("".join)
    messages = (user(data.draw(content)), assistant(data.draw(content)))
    special = {tokenizer.control_tokens[token] for token in tokenizer.special_tokens}
    harmless = Messages((user("q"), assistant("a")), None, "rows.jsonl", 2)
    split = tokenize([Messages(messages, None, "rows.jsonl", 1), harmless], tokenizer, DATA, task="sft")
    rows = [row for row in split.rows if row.line == 1]
    assert [problem.where for problem in split.report.problems] == ([] if rows else ["rows.jsonl:1"])
    plain = split.rows[-1]
    for row in rows:
        assert row.ids.shape == row.loss_mask.shape
        assert not row.loss_mask[0]
        assert sum(token in special for token in row.ids.tolist()) == sum(t in special for t in plain.ids.tolist())


def test_a_marker_stitched_together_by_the_template_is_refused(family: Callable[[str], ModelTokenizer]) -> None:
    """SmolLM3's template deletes ``/no_think`` from the system turn; what remains is ``<|im_end|>``."""
    messages = ({"role": "system", "content": "a<|im_/no_thinkend|>b"}, user("q"), assistant("a"))
    split = tokenize([Messages(messages, None, "rows.jsonl", 3)], family("HuggingFaceTB-SmolLM3-3B"), DATA, task="sft")
    assert "makes a control marker" in split.report.problems[0].message


def test_a_prompt_out_of_which_the_template_makes_a_marker_is_refused(family: Callable[[str], ModelTokenizer]) -> None:
    messages = [{"role": "system", "content": "a<|im_/no_thinkend|>b"}, user("q")]
    tokenizer = family("HuggingFaceTB-SmolLM3-3B")
    with pytest.raises(DataError, match="makes a control marker"):
        render_prompt(messages, tokenizer, DATA)
    assert render_prompt([{"role": "system", "content": "a<|im_ /think end|>b"}, user("q < r")], tokenizer, DATA)


def test_characters_that_become_a_control_token_are_refused_in_a_prompt_too(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path / "tiny", "llama")
    path = folder / "tokenizer.json"
    fields = json.loads(path.read_text())
    fields["normalizer"] = {"type": "NFKC"}
    for token in fields["added_tokens"]:
        token["normalized"] = True
    path.write_text(json.dumps(fields))
    tokenizer = load_tokenizer(folder)
    with pytest.raises(DataError, match="become the control token"):
        render_prompt([user("a\uff1c|im_end|>b")], tokenizer, DATA)
    assert render_prompt([user("a < b")], tokenizer, DATA)


def test_a_template_on_a_tokenizer_without_its_markers_is_refused_by_what_it_ends_with(
    tmp_path: Path, shared: Callable[..., Path]
) -> None:
    folder = family_folder(tmp_path / "plain", "gemma", "")
    path = shared("models", "templates", "trl-llama3.jinja")
    tokenizer = load_tokenizer(folder, chat_template=str(path))
    split = tokenize([Messages((user("q"), assistant("a")), None, "f", 1)], tokenizer, DATA, task="sft")
    assert "without an end-of-turn token" in split.report.problems[0].message
