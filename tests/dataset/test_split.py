"""Sides by content: stable, and duplicates together."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_finetune.dataset.formats import Example, Instruction, Labelled, Messages, Preference, Text
from mlx_finetune.dataset.split import TEST, TRAIN, VALID, choose_sides, content_key, group_of, position

USER, ASSISTANT = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}


def text(content: str, line: int = 1) -> Text:
    return Text(content, "a.jsonl", line)


def test_the_key_of_a_text_is_fixed_for_good() -> None:
    # sha256(b"hello world"), first 8 bytes: a run resumed with a later version must find the same rows
    assert content_key(text("hello world")) == 0xB94D27B9934D3E08


def test_white_space_place_and_weight_do_not_count() -> None:
    assert content_key(Text("a  b\n\nc ", "x", 1)) == content_key(Text("a b c", "y", 9, 0.5))


def test_the_order_of_keys_does_not_count() -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": {"x": 1, "y": 2}}}
    other = {"function": {"arguments": {"y": 2, "x": 1}, "name": "f"}, "type": "function"}
    first = Messages(({"role": "assistant", "content": "", "tool_calls": (call,)},), None, "a", 1)
    second = Messages(({"role": "assistant", "tool_calls": (other,), "content": ""},), None, "a", 1)
    assert content_key(first) == content_key(second)


def test_every_part_of_an_example_counts() -> None:
    turns = (USER, ASSISTANT)
    examples: list[Example] = [
        text("q a"),
        Instruction("q", "", "a", "a", 1),
        Instruction("q", "a", "", "a", 1),
        Messages(turns, None, "a", 1),
        Messages((ASSISTANT, USER), None, "a", 1),
        Messages((USER, {**ASSISTANT, "reasoning_content": "r"}), None, "a", 1),
        Messages(turns, ({"name": "f"},), "a", 1),
        Preference((USER,), (ASSISTANT,), (USER,), None, "a", 1),
        Preference((USER,), (USER,), (ASSISTANT,), None, "a", 1),
        Labelled("q", "a", "a", 1),
        Labelled("q", 0, "a", 1),
    ]
    assert len({content_key(example) for example in examples}) == len(examples)


def test_shares_are_met_up_to_chance() -> None:
    sides = choose_sides([content_key(text(f"row {number}")) for number in range(20_000)], 0.1, 0.2)
    assert sides.count(VALID) == pytest.approx(2000, abs=4 * (20_000 * 0.09) ** 0.5)
    assert sides.count(TEST) == pytest.approx(4000, abs=4 * (20_000 * 0.16) ** 0.5)


def test_a_row_keeps_its_side_when_rows_are_added_or_reordered() -> None:
    keys = [content_key(text(f"row {number}")) for number in range(500)]
    before = dict(zip(keys, choose_sides(keys, 0.1, 0.1), strict=True))
    more = [*keys, *(content_key(text(f"new {number}")) for number in range(300))]
    random.Random(1).shuffle(more)
    after = dict(zip(more, choose_sides(more, 0.1, 0.1), strict=True))
    assert {key: after[key] for key in keys} == before


def test_equal_rows_are_on_one_side() -> None:
    keys = [content_key(text(f"row {number % 100}")) for number in range(1000)]
    sides = choose_sides(keys, 0.2, 0.2)
    assert len(set(zip(keys, sides, strict=True))) == 100


@given(
    contents=st.lists(st.integers(0, 2**64 - 1), max_size=12),
    val_split=st.sampled_from([0.0, 0.05, 0.5, 0.9]),
    test_split=st.sampled_from([0.0, 0.05]),
)
def test_small_sets_fill_every_wanted_side_and_training_first(
    contents: list[int], val_split: float, test_split: float
) -> None:
    sides = choose_sides(contents, val_split, test_split)
    side_of = dict(zip(contents, sides, strict=True))
    assert [side_of[key] for key in contents] == sides
    wanted = [TRAIN, *([VALID] if val_split else []), *([TEST] if test_split else [])]
    assert set(sides) == set(wanted[: len(set(contents))])


def test_the_lowest_positions_go_to_validation_in_a_small_set() -> None:
    keys = [int(share * 2**64) for share in (0.5, 0.9, 0.3, 0.7)]
    assert choose_sides(keys, 0.1, 0.0) == [TRAIN, TRAIN, VALID, TRAIN]
    assert position(keys[0]) == pytest.approx(0.5)


@given(
    contents=st.lists(
        st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 3)), max_size=16, unique_by=lambda one: one[0]
    ),
    val_split=st.sampled_from([0.0, 0.05, 0.5, 0.9]),
    test_split=st.sampled_from([0.0, 0.05]),
)
def test_training_keeps_a_row_of_every_label_and_the_other_sides_get_what_it_can_spare(
    contents: list[tuple[int, int]], val_split: float, test_split: float
) -> None:
    keys, labels = [key for key, _ in contents], [label for _, label in contents]
    sides = choose_sides(keys, val_split, test_split, labels)
    assert {label for label, side in zip(labels, sides, strict=True) if side == TRAIN} == set(labels)
    wanted = [*([VALID] if val_split else []), *([TEST] if test_split else [])]
    num_spare = len(keys) - len(set(labels))
    assert set(wanted[:num_spare]) <= set(sides)


def test_only_the_rows_of_a_label_that_would_be_held_out_whole_change_sides() -> None:
    keys = [content_key(text(f"row {number}")) for number in range(500)]
    before = choose_sides(keys, 0.1, 0.1)
    rare = [place for place, side in enumerate(before) if side == VALID][:2]
    labels = [int(place in rare) for place in range(500)]
    after = choose_sides(keys, 0.1, 0.1, labels)
    moved = max(rare, key=lambda place: keys[place])
    assert after == [TRAIN if place == moved else side for place, side in enumerate(before)]


def test_labels_are_groups_and_other_rows_are_one() -> None:
    assert [group_of(Labelled("q", 1, "a", 1)), group_of(Labelled("r", 1, "a", 2)), group_of(text("q"))] == [
        "1",
        "1",
        "",
    ]
