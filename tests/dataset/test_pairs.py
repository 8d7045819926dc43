"""Rows of two answers: what they share, what is learned, and what becomes of those that do not fit."""

import itertools
import json

import numpy as np
import pytest
from conftest import shared
from tiny import write_tiny_model

from mlx_finetune.dataset.corpus import load_splits
from mlx_finetune.dataset.explain import explain
from mlx_finetune.dataset.pairs import longest_sequences, shared_length, tokenize_preferences
from mlx_finetune.dataset.template import refuse_empty
from mlx_finetune.dataset.token_rows import rows_of
from mlx_finetune.errors import DataError
from mlx_finetune.model.tokens.tokenizer import load_tokenizer
from mlx_finetune.recipe.data import DataRecipe


@pytest.fixture
def tokenizer(tiny_model):
    return load_tokenizer(tiny_model("llama"))


def data(path, **more):
    return DataRecipe.model_validate({"path": str(path), "val_split": 0.0, "test_split": 0.0, **more})


def read(tmp_path, tokenizer, rows, task="dpo", **more):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = data(path, **more)
    splits = load_splits(recipe, base=tmp_path, task=task)
    return tokenize_preferences(splits.train, tokenizer, recipe, task=task)


def parts(row, tokenizer):
    """Texts of prefix, first and second, and of the targets of each."""
    prefix, first, second = (int(value) for value in row.values[:3])
    cuts = (0, prefix, prefix + first, prefix + first + second)
    assert cuts[-1] == len(row.ids)
    texts = [tokenizer.decode(row.ids[a:b].tolist()) for a, b in itertools.pairwise(cuts)]
    learned = [tokenizer.decode(row.ids[a:b][row.loss_mask[a:b]].tolist()) for a, b in itertools.pairwise(cuts)]
    return texts, learned


def test_a_row_is_the_prompt_once_and_both_answers_with_their_end_marks(tmp_path, tokenizer):
    split = read(tmp_path, tokenizer, [{"prompt": "Why?", "chosen": "Because.", "rejected": "No."}])
    (row,) = split.rows
    texts, learned = parts(row, tokenizer)
    assert texts[0] == "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"
    assert learned == ["", "Because.<|im_end|>", "No.<|im_end|>"]
    assert row.values[3] == 1.0


def test_answers_that_begin_alike_are_learned_from_their_first_token_on(tmp_path, tokenizer):
    split = read(tmp_path, tokenizer, [{"prompt": "Why?", "chosen": "It is so.", "rejected": "It is not."}])
    _, learned = parts(split.rows[0], tokenizer)
    assert learned == ["", "It is so.<|im_end|>", "It is not.<|im_end|>"]


def test_only_the_answer_is_learned_of_a_long_conversation(tmp_path, tokenizer):
    turns = [
        {"role": "user", "content": "A?"},
        {"role": "assistant", "content": "An earlier answer."},
        {"role": "user", "content": "B?"},
    ]
    last = [{"role": "assistant", "content": text} for text in ("yes", "no")]
    rows = [{"prompt": turns, "chosen": last[0], "rejected": last[1]}]
    rows.append({"chosen": [*turns, last[0]], "rejected": [*turns, last[1]]})
    split = read(tmp_path, tokenizer, rows[:1])
    assert parts(split.rows[0], tokenizer)[1] == ["", "yes<|im_end|>", "no<|im_end|>"]
    again = read(tmp_path, tokenizer, rows[1:])
    assert np.array_equal(again.rows[0].ids, split.rows[0].ids)


def test_an_answer_of_several_turns_is_learned_whole(tmp_path, tokenizer):
    def answer(text):
        return [
            {"role": "assistant", "content": f"Let me see. {text}"},
            {"role": "user", "content": "And?"},
            {"role": "assistant", "content": f"So it is {text}."},
        ]

    split = read(tmp_path, tokenizer, [{"prompt": "Why?", "chosen": answer("one"), "rejected": answer("two")}])
    _, learned = parts(split.rows[0], tokenizer)
    assert learned[1] == "Let me see. one<|im_end|>So it is one.<|im_end|>"


def test_equal_answers_are_left_out_and_counted(tmp_path, tokenizer):
    rows = [{"prompt": "Why?", "chosen": "a", "rejected": "a"}, {"prompt": "Who?", "chosen": "a", "rejected": "b"}]
    split = read(tmp_path, tokenizer, rows)
    assert len(split.rows) == 1
    assert split.report.count("same_answers") == 1


@pytest.mark.parametrize("truncation", ["drop", "keep-end"])
def test_a_long_pair_is_dropped_or_loses_the_beginning_of_its_prompt(tmp_path, tokenizer, truncation):
    rows = [{"prompt": "word " * 30 + "Why?", "chosen": "Because.", "rejected": "No."}]
    split = read(tmp_path, tokenizer, rows, truncation=truncation, max_seq_length=60)
    if truncation == "drop":
        assert (len(split.rows), split.report.count("too_long")) == (0, 1)
        return
    (row,) = split.rows
    assert split.report.count("cut") == 1
    assert longest_sequences(rows_of(split.rows)).tolist() == [60]
    assert parts(row, tokenizer)[1] == ["", "Because.<|im_end|>", "No.<|im_end|>"]
    assert parts(row, tokenizer)[0][0].endswith("Why?<|im_end|>\n<|im_start|>assistant\n")


def test_an_answer_that_is_too_long_by_itself_is_never_cut(tmp_path, tokenizer):
    rows = [{"prompt": "Why?", "chosen": "because " * 30, "rejected": "No."}]
    split = read(tmp_path, tokenizer, rows, truncation="keep-end", max_seq_length=60)
    assert (len(split.rows), split.report.count("too_long")) == (0, 1)


def test_rows_say_what_their_loss_counts(tmp_path, tokenizer):
    rows = [{"prompt": f"{n}?", "chosen": "a", "rejected": "b", "weight": weight} for n, weight in enumerate((0.5, 3))]
    split = read(tmp_path, tokenizer, rows)
    assert sorted(row.values[3] for row in split.rows) == [0.5, 3.0]
    assert {row.weight for row in split.rows} == {1.0}


@pytest.mark.parametrize("weight", [-1, "much", True, 1e9])
def test_a_weight_that_is_none_is_an_error_with_its_place(tmp_path, tokenizer, weight):
    with pytest.raises(DataError, match="`weight` must be a number from 0"):
        read(tmp_path, tokenizer, [{"prompt": "Why?", "chosen": "a", "rejected": "b", "weight": weight}])


def test_an_answer_marked_good_or_bad_stands_beside_the_answer_of_another_row(tmp_path, tokenizer):
    rows = [{"prompt": f"Number {n}?", "completion": f"It is {n}.", "label": n != 1} for n in range(3)]
    split = read(tmp_path, tokenizer, rows, task="kto")
    learned = [parts(row, tokenizer)[1] for row in split.rows]
    assert [one[1] for one in learned] == [f"It is {n}.<|im_end|>" for n in range(3)]
    assert [one[2] for one in learned] == [f"It is {n}.<|im_end|>" for n in (1, 2, 0)]
    assert [row.values[4] for row in split.rows] == [1.0, 0.0, 1.0]


@pytest.mark.parametrize(("truncation", "outcome"), [("drop", "too_long"), ("keep-end", "cut")])
def test_a_marked_answer_behind_a_long_prompt_is_too_long_and_never_called_empty(
    tmp_path, tokenizer, truncation, outcome
):
    rows = [{"prompt": "Why? " * 60 + str(n), "completion": f"So {n}.", "label": n != 1} for n in range(3)]
    split = read(tmp_path, tokenizer, rows, task="kto", max_seq_length=48, truncation=truncation)
    assert {name: found.count for name, found in split.report.outcomes.items()} == {outcome: 3}
    assert len(split.rows) == (3 if outcome == "cut" else 0)
    assert all(parts(row, tokenizer)[1][1].startswith(f"So {n}.") for n, row in enumerate(split.rows))


def test_a_pair_whose_answers_have_one_fault_is_counted_once(tmp_path):
    bare = load_tokenizer(write_tiny_model(tmp_path / "bare", "llama", chat_template=False))
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    rows = [{"prompt": talk, "chosen": f"yes {n}", "rejected": "no"} for n in range(2)]
    split = read(tmp_path, bare, rows)
    assert split.report.count("refused") == 2


def test_what_leaves_no_row_is_said_with_the_first_rows_and_how_many_more(tmp_path, tokenizer):
    rows = [{"prompt": f"Why {n}?" + "?" * 90, "chosen": "a", "rejected": "b"} for n in range(30)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = data(tmp_path / "rows.jsonl", max_seq_length=32)
    examples = load_splits(recipe, base=tmp_path, task="dpo").train
    with pytest.raises(DataError) as caught:
        refuse_empty(tokenize_preferences(examples, tokenizer, recipe, task="dpo"), recipe, "train", None)
    assert len(caught.value.problems) == 5
    assert caught.value.problems[-1].message.endswith("(and 25 more like it)")


@pytest.mark.parametrize("task", ["sft", "kto"])
def test_pairs_are_refused_where_they_do_not_fit(tmp_path, tokenizer, task):
    with pytest.raises(DataError) as caught:
        read(tmp_path, tokenizer, [{"prompt": "Why?", "chosen": "a", "rejected": "b"}], task=task)
    assert "preference pairs" in caught.value.message


@pytest.mark.parametrize("truncation", ["drop", "keep-end"])
@pytest.mark.parametrize("task", ["dpo", "kto"])
def test_a_preview_shows_of_both_answers_what_is_trained_on(tmp_path, tokenizer, task, truncation):
    """Of a pair one of whose answers is too long nothing is, or both lose as much of their prompt."""
    texts = [
        ("Why?", "yes " * 30, "no"),
        ("Why is that? " * 4, "yes", "no no no"),
        ("Why?", "yes", "no"),
        ("a", "b", "b"),
    ]
    rows = [{"prompt": prompt, "chosen": chosen, "rejected": rejected} for prompt, chosen, rejected in texts]
    if task == "kto":
        rows = [{"prompt": prompt, "completion": chosen, "label": True} for prompt, chosen, _ in texts]
    keys = {"max_seq_length": 30, "truncation": truncation}
    split = read(tmp_path, tokenizer, rows, task, **keys)
    trained = {row.line: row for row in split.rows}
    examples = load_splits(data(tmp_path / "rows.jsonl"), base=tmp_path, task=task).train
    shown = list(explain(examples, tokenizer, data("-", **keys), task=task))
    assert len(trained) == 1 + (truncation == "keep-end") + (task == "kto")
    for line in range(1, 5):
        sequences = [[token for token in one.tokens if token.state != "cut"] for one in shown if one.line == line]
        assert len(sequences) == (2 if task == "dpo" else 1)
        kept = [[token.id for token in tokens] for tokens in sequences]
        if line not in trained:
            assert kept == [[]] * len(sequences)
            continue
        prefix, first = (int(value) for value in trained[line].values[:2])
        ids = trained[line].ids.tolist()
        assert kept == [ids[: prefix + first], ids[:prefix] + ids[prefix + first :]][: len(kept)]
        assert [token.state == "learned" for token in sequences[0]] == trained[line].loss_mask[
            : prefix + first
        ].tolist()


def test_the_prefix_ends_before_the_first_target():
    first = (np.array([1, 2, 3, 4, 5]), np.array([False, False, False, True, True]))
    second = (np.array([1, 2, 3, 4, 6]), np.array([False, False, False, True, True]))
    other = (np.array([1, 9, 3, 4, 6]), np.array([False, False, False, True, True]))
    assert shared_length(first, second) == 3
    assert shared_length(first, other) == 1


@pytest.mark.parametrize(
    ("name", "task", "count"),
    [
        ("dpo_en_demo.json", "dpo", 300),
        ("v1_dpo_demo.jsonl", "dpo", 10),
        ("kto_en_demo_200.json", "kto", 200),
    ],
)
def test_real_rows_of_other_tools_are_read(tokenizer, name, task, count):
    path = shared("data", "preference", name)
    recipe = data(path, max_seq_length=100_000)
    splits = load_splits(recipe, base=path.parent, task=task)
    assert len(splits.train) == count
    split = tokenize_preferences(splits.train[:40], tokenizer, recipe, task=task)
    assert len(split.rows) >= min(count, 38)
    assert not split.report.count("refused")
