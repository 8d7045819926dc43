import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from families import family_folder
from tiny import CHATML, write_tokenizer

from mlx_finetune.dataset.formats import (
    Example,
    Instruction,
    Labelled,
    Messages,
    Preference,
    Text,
    detect_format,
    to_example,
)
from mlx_finetune.dataset.read import read_rows
from mlx_finetune.dataset.template import refuse_empty, render_prompt, tokenize
from mlx_finetune.dataset.tokens import TokenizedSplit
from mlx_finetune.errors import DataError, Problem
from mlx_finetune.model.tokens.tokenizer import ModelTokenizer, load_tokenizer
from mlx_finetune.recipe.data import DataRecipe


@pytest.fixture(name="chat", scope="module")
def chat_fixture(tmp_path_factory: pytest.TempPathFactory) -> ModelTokenizer:
    folder = tmp_path_factory.mktemp("chat")
    write_tokenizer(folder)
    return load_tokenizer(folder)


@pytest.fixture(name="base", scope="module")
def base_fixture(tmp_path_factory: pytest.TempPathFactory) -> ModelTokenizer:
    folder = tmp_path_factory.mktemp("base")
    write_tokenizer(folder, chat_template=False)
    return load_tokenizer(folder)


@pytest.fixture(name="bos", scope="module")
def bos_fixture(tmp_path_factory: pytest.TempPathFactory) -> ModelTokenizer:
    """A base model whose tokenizer puts <s> before every text, as Llama's and Gemma's do."""
    folder = family_folder(tmp_path_factory.mktemp("bos") / "t", "mistral", "")
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    bos = next(token["id"] for token in content["added_tokens"] if token["content"] == "<s>")
    content["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [bos], "tokens": ["<s>"]}},
    }
    path.write_text(json.dumps(content))
    return load_tokenizer(folder)


def settings(**keys: object) -> DataRecipe:
    return DataRecipe.model_validate({"path": "-", **keys})


def run(tokenizer: ModelTokenizer, *examples: Example, task: str = "sft", **keys: object) -> TokenizedSplit:
    return tokenize(examples, tokenizer, settings(**keys), task=task)


def texts(tokenizer: ModelTokenizer, split: TokenizedSplit) -> list[tuple[str, str]]:
    """Each row whole, and what is learned of it."""
    return [(tokenizer.decode(r.ids.tolist()), tokenizer.decode(r.ids[r.loss_mask].tolist())) for r in split.rows]


def talk(*contents: str, line: int = 1) -> Messages:
    roles = ("user", "assistant")
    turns = tuple({"role": roles[n % 2], "content": content} for n, content in enumerate(contents))
    return Messages(turns, None, "rows.jsonl", line)


def refusal(split: TokenizedSplit, outcome: str = "refused") -> Problem:
    return split.report.outcomes[outcome].rows[0]


# Text


def test_text_is_learned_with_an_end_token_and_without_its_first_token(base: ModelTokenizer) -> None:
    assert texts(base, run(base, Text("So be it", "f", 1))) == [("So be it<|endoftext|>", "o be it<|endoftext|>")]


def test_text_begins_with_the_token_its_tokenizer_puts_there(bos: ModelTokenizer) -> None:
    assert texts(bos, run(bos, Text("So", "f", 1))) == [("<s>So</s>", "So</s>")]


def test_markers_a_text_row_brings_along_are_not_doubled_but_counted(bos: ModelTokenizer) -> None:
    split = run(bos, Text("<s>So</s>", "f", 1), Text("So", "f", 2))
    assert split.rows[0].ids.tolist() == split.rows[1].ids.tolist()
    assert split.report.count("doubled_marker") == 1
    assert refusal(split, "doubled_marker").where == "f:1"


def test_a_marker_inside_a_text_row_is_refused_with_its_place(base: ModelTokenizer) -> None:
    split = run(base, Text("one<|endoftext|>two", "f.txt", 3), Text("x y", "f.txt", 4))
    assert refusal(split) == Problem(
        "f.txt:3",
        "the text holds the control marker '<|endoftext|>'",
        "write it in other words; text that is already rendered belongs in rows with messages",
    )
    assert len(split.rows) == 1


def test_half_of_a_surrogate_pair_is_refused_and_not_a_crash(chat: ModelTokenizer) -> None:
    split = run(chat, talk("a \ud800", "b", line=2), talk("a", "b"))
    assert refusal(split).where == "rows.jsonl:2"


# Instructions


def test_an_instruction_goes_through_the_chat_template_without_a_system_turn(chat: ModelTokenizer) -> None:
    split = run(chat, Instruction("Add.", "1 2", "3", "f", 1))
    whole = "<|im_start|>user\nAdd.\n\n1 2<|im_end|>\n<|im_start|>assistant\n3<|im_end|>\n"
    assert texts(chat, split) == [(whole, "3<|im_end|>")]


def test_an_instruction_goes_through_alpacas_prompt_in_a_base_model(base: ModelTokenizer) -> None:
    split = run(base, Instruction("Add.", "1 2", "3", "f", 1))
    whole, learned = texts(base, split)[0]
    assert whole.endswith("### Instruction:\nAdd.\n\n### Input:\n1 2\n\n### Response:\n3<|endoftext|>")
    assert learned == "3<|endoftext|>"
    assert split.report.method == "prompt template"
    assert split.report.template == "alpaca"


def test_a_prompt_template_that_is_asked_for_counts_for_a_chat_model_too(chat: ModelTokenizer) -> None:
    split = run(chat, Instruction("Hello ", "", "you", "f", 1), prompt_template="none")
    assert texts(chat, split) == [("Hello you<|im_end|>", "you<|im_end|>")]
    prompt = render_prompt([{"role": "user", "content": "Hello "}], chat, settings(prompt_template="none"))
    assert split.rows[0].ids[: len(prompt)].tolist() == prompt  # not with " you" as one token across the border


def test_text_after_the_answer_in_a_prompt_file_is_learned(base: ModelTokenizer, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("Q {instruction} A {output} END")
    data = settings(prompt_template="p.txt")
    split = tokenize([Instruction("q", "", "a", "f", 1)], base, data, task="sft", base=tmp_path)
    assert texts(base, split) == [("Q q A a END<|endoftext|>", "a END<|endoftext|>")]


def test_one_question_and_answer_need_no_chat_template(base: ModelTokenizer) -> None:
    assert texts(base, run(base, talk("q", "a"), prompt_template="none")) == [("qa<|endoftext|>", "a<|endoftext|>")]


def test_more_turns_without_a_chat_template_are_refused_with_the_way_out(base: ModelTokenizer) -> None:
    with pytest.raises(DataError, match="the only row cannot be used") as caught:
        refuse_empty(run(base, talk("q", "a", "q", "a")), settings(), "", None)
    assert "has no chat template" in caught.value.problems[0].message
    assert "instruction-tuned" in caught.value.problems[0].hint


# Masks


def test_without_mask_prompt_every_token_but_the_first_is_learned(chat: ModelTokenizer) -> None:
    row = run(chat, talk("q", "a"), mask_prompt=False).rows[0]
    assert row.loss_mask.tolist() == [False] + [True] * (len(row.ids) - 1)


def test_pretraining_learns_conversations_whole(chat: ModelTokenizer) -> None:
    split = run(chat, talk("q", "a"), task="pretrain")
    assert split.report.num_targets == split.report.num_tokens - 1


def test_a_trailing_user_turn_is_read_and_not_learned(chat: ModelTokenizer) -> None:
    assert texts(chat, run(chat, talk("q", "a", "thanks")))[0][1] == "a<|im_end|>"


def test_a_conversation_without_an_answer_is_dropped_and_counted(chat: ModelTokenizer) -> None:
    split = run(chat, talk("q", "a"), talk("only a question", line=9))
    assert len(split.rows) == 1
    assert refusal(split, "no_target").where == "rows.jsonl:9"


def test_a_template_that_writes_no_end_of_turn_is_refused(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    (tmp_path / "t.jinja").write_text(
        "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    split = run(load_tokenizer(tmp_path, chat_template=str(tmp_path / "t.jinja")), talk("q", "no"))
    assert "without an end-of-turn token (it ends in 'no\\n')" in refusal(split).message


def test_tags_that_mark_nothing_are_refused(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    (tmp_path / "t.jinja").write_text(CHATML + "{% if false %}{% generation %}{% endgeneration %}{% endif %}")
    split = run(load_tokenizer(tmp_path, chat_template=str(tmp_path / "t.jinja")), talk("q", "yes"))
    assert "tags of the chat template mark nothing" in refusal(split).message


def test_an_assistant_turn_with_the_templates_own_markers_is_refused(chat: ModelTokenizer) -> None:
    split = run(chat, talk("q", "a"), talk("q", "a<|im_end|>\n<|im_start|>user\nmore", line=5))
    assert refusal(split).where == "rows.jsonl:5"
    assert "'<|im_end|>'" in refusal(split).message


def test_markers_in_tools_are_refused(chat: ModelTokenizer) -> None:
    rows = Messages(talk("q", "a").messages, ({"name": "f", "description": "<|im_end|>"},), "rows.jsonl", 6)
    split = run(chat, talk("q", "a"), rows)
    assert refusal(split).where == "rows.jsonl:6"
    assert refusal(split).message == "`tools` holds the control marker '<|im_end|>'"


def test_preference_and_label_rows_are_refused_by_name(chat: ModelTokenizer) -> None:
    with pytest.raises(DataError, match="f:1: preference rows"):
        run(chat, Preference((), (), (), None, "f", 1))
    with pytest.raises(DataError, match="f:2: label rows"):
        run(chat, Labelled("t", "l", "f", 2))


# Length


def test_a_row_of_exactly_the_longest_length_stays(chat: ModelTokenizer) -> None:
    length = len(run(chat, talk("question", "answer")).rows[0].ids)
    assert run(chat, talk("question", "answer"), max_seq_length=length).report.count("too_long") == 0
    split = run(chat, talk("question", "answer", line=3), talk("q", "a"), max_seq_length=length - 1)
    assert len(split.rows) == 1
    assert refusal(split, "too_long") == Problem(
        "rows.jsonl:3", f"{length} tokens are more than max_seq_length = {length - 1}: dropped"
    )


def test_keep_end_cuts_whole_turns_and_keeps_the_system_turn(chat: ModelTokenizer) -> None:
    turns = ({"role": "system", "content": "s"}, *talk("long " * 20, "first", "q", "last").messages)
    split = run(chat, Messages(turns, None, "f", 1), truncation="keep-end", max_seq_length=60)
    assert texts(chat, split) == [
        (
            "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\nlast<|im_end|>\n",
            "last<|im_end|>",
        )
    ]
    assert refusal(split, "cut").message.endswith("its first turns were cut")


def test_keep_end_cuts_tokens_where_one_exchange_is_too_long(chat: ModelTokenizer) -> None:
    split = run(chat, talk("long " * 40, "end"), truncation="keep-end", max_seq_length=20)
    assert len(split.rows[0].ids) == 20
    assert texts(chat, split)[0][1] == "end<|im_end|>"
    assert "tokens were cut at the front" in refusal(split, "cut").message


def test_split_learns_every_target_of_a_text_once(base: ModelTokenizer) -> None:
    text = "".join(chr(97 + n % 26) for n in range(50))
    whole = run(base, Text(text, "f", 1)).rows[0]
    split = run(base, Text(text, "f", 1), truncation="split", max_seq_length=8)
    learned = np.concatenate([row.ids[row.loss_mask] for row in split.rows])
    assert learned.tolist() == whole.ids[whole.loss_mask].tolist()
    assert max(len(row.ids) for row in split.rows) == 8
    assert split.report.count("split") == 1


def test_a_piece_without_target_is_dropped_and_counted(chat: ModelTokenizer) -> None:
    split = run(chat, talk("x" * 40, "a"), truncation="split", max_seq_length=16)
    assert [learned for _, learned in texts(chat, split)] == ["a<|im_end|>"]
    assert split.report.count("no_target") == 3


# Report, order, weights


def test_the_report_counts_what_was_handed_on(chat: ModelTokenizer) -> None:
    split = run(chat, talk("q", "a"), talk("question", "answer"))
    report = split.report
    assert (report.num_examples, report.num_rows) == (2, 2)
    assert report.num_tokens == sum(len(row.ids) for row in split.rows)
    assert report.num_targets == sum(row.loss_mask.sum() for row in split.rows)
    assert report.longest == len(split.rows[1].ids)
    assert report.target_share == pytest.approx(report.num_targets / report.num_tokens)
    assert report.template == "the model's own (tokenizer_config.json)"


def test_rows_keep_their_order_place_and_weight(chat: ModelTokenizer) -> None:
    examples = [Messages(talk("q", str(n)).messages, None, "rows.jsonl", n + 1, n / 10) for n in range(600)]
    seen: list[tuple[int, int]] = []
    split = tokenize(examples, chat, settings(), task="sft", progress=lambda done, total: seen.append((done, total)))
    assert [(row.line, row.weight) for row in split.rows] == [(n + 1, n / 10) for n in range(600)]
    assert seen == [(256, 600), (512, 600), (600, 600)]


def test_only_the_first_problems_are_kept_and_all_are_counted(chat: ModelTokenizer) -> None:
    split = run(chat, talk("q", "a"), *(talk("<|im_end|>", "a", line=n) for n in range(50)))
    assert split.report.count("refused") == 50
    assert len(split.report.outcomes["refused"].rows) == 5


def test_no_examples_make_no_rows(chat: ModelTokenizer) -> None:
    assert run(chat).rows == ()


# Prompts of chat and generation


def test_a_prompt_is_the_beginning_of_the_row_that_was_learned(chat: ModelTokenizer) -> None:
    row = run(chat, talk("q", "a")).rows[0]
    prompt = render_prompt([{"role": "user", "content": "q"}], chat, settings())
    assert row.ids[: len(prompt)].tolist() == prompt
    assert not row.loss_mask[: len(prompt)].any()
    assert row.loss_mask[len(prompt)]


def test_a_base_models_prompt_is_the_beginning_of_the_row_too(bos: ModelTokenizer) -> None:
    row = run(bos, Instruction("Do.", "", "done", "f", 1)).rows[0]
    prompt = render_prompt([{"role": "user", "content": "Do."}], bos, settings())
    assert row.ids[: len(prompt)].tolist() == prompt


def test_a_marker_in_a_prompt_is_refused(chat: ModelTokenizer) -> None:
    with pytest.raises(DataError, match="holds the control marker '<\\|im_end\\|>'"):
        render_prompt([{"role": "user", "content": "x<|im_end|>"}], chat, settings())


@pytest.mark.parametrize("content", [[{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "ab"])
def test_text_parts_are_joined(chat: ModelTokenizer, content: object) -> None:
    ids = render_prompt([{"role": "user", "content": content}], chat, settings())
    assert chat.decode(ids) == "<|im_start|>user\nab<|im_end|>\n<|im_start|>assistant\n"


def test_a_picture_in_a_prompt_is_refused(chat: ModelTokenizer) -> None:
    with pytest.raises(DataError, match="no text"):
        render_prompt([{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}], chat, settings())


# Real files


@pytest.mark.parametrize(
    ("parts", "columns", "num_rows"),
    [
        (("alpaca", "alpaca_2k.jsonl"), {}, 300),
        (("alpaca", "alpaca_en_demo.json"), {}, 300),
        (("dolly", "dolly_prompt_answer.jsonl"), {"prompt": "prompt", "completion": "answer"}, 151),
        (("gsm8k", "train.jsonl"), {"prompt": "question", "completion": "answer"}, 300),
        (("chat", "identity.json"), {}, 91),
        (("mlx_lora_wikisql", "valid.jsonl"), {}, 100),
        (("mlx_wwdc25", "train.jsonl"), {}, 300),
        (("extraction", "e2e_dev.csv"), {"prompt": "mr", "completion": "ref"}, 300),
    ],
)
def test_real_files_become_rows_without_a_loss(
    chat: ModelTokenizer, shared: Callable[..., Path], parts: tuple[str, ...], columns: dict[str, str], num_rows: int
) -> None:
    problems: list[Problem] = []
    rows = list(read_rows(shared("data", *parts), report=problems.append))
    format = detect_format(rows, columns)
    examples = [to_example(row, format, columns) for row in rows[:300]]
    split = run(chat, *examples, max_seq_length=100_000)
    assert problems == []
    assert (len(split.rows), dict(split.report.outcomes)) == (num_rows, {})
    row = split.rows[-1]
    assert chat.decode(row.ids[row.loss_mask].tolist()).endswith("<|im_end|>")


@pytest.mark.parametrize("name", ["glaive_toolcall_en_180.json", "reason_tool_use_demo_50.jsonl"])
def test_tool_conversations_are_rendered_whole(tmp_path: Path, shared: Callable[..., Path], name: str) -> None:
    from families import family_tokenizer

    tokenizer = family_tokenizer(tmp_path, shared("models", "templates", "trl-qwen3.jinja"))
    rows = list(read_rows(shared("data", "chat", name), report=lambda problem: pytest.fail(str(problem))))
    format = detect_format(rows)
    rows = rows[:60]
    examples = [to_example(row, format) for row in rows]
    split = run(tokenizer, *examples, max_seq_length=1_000_000)
    assert split.report.num_rows >= len(rows) - split.report.count("refused") - split.report.count("no_target")
    assert {row.line for row in split.rows} | {
        int(problem.where.rpartition(":")[2]) for problem in split.report.problems
    } == {row.line for row in rows}
    assert any("<tool_call>" in tokenizer.decode(row.ids[row.loss_mask].tolist()) for row in split.rows)
    assert split.report.count("refused") <= len(rows) // 10
