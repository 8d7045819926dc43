import pytest

from mlx_finetune.dataset.mask import target_mask
from mlx_finetune.dataset.tokens import Encoding
from mlx_finetune.errors import DataError

END, TEXT = 9, 1


def encoding(*tokens: tuple[str, int]) -> tuple[str, Encoding]:
    """Text and encoding of tokens given as (characters, id)."""
    offsets, at = [], 0
    for characters, _ in tokens:
        offsets.append((at, at + len(characters)))
        at += len(characters)
    return "".join(characters for characters, _ in tokens), Encoding([id_ for _, id_ in tokens], offsets)


def masked(
    tokens: list[tuple[str, int]], spans: list[tuple[int, int]], end_ids: frozenset[int] = frozenset({END})
) -> str:
    text, encoded = encoding(*tokens)
    mask = target_mask(text, encoded, spans, end_ids)
    return "|".join(characters for (characters, _), is_target in zip(tokens, mask, strict=True) if is_target)


def test_the_end_token_is_a_target_and_the_newline_after_it_is_not() -> None:
    tokens = [("ask", TEXT), ("a", TEXT), ("b", TEXT), ("<e>", END), ("\n", TEXT)]
    assert masked(tokens, [(3, 9)]) == "a|b|<e>"


def test_a_token_that_begins_before_the_span_is_not_a_target() -> None:
    tokens = [("as", TEXT), ("k: yes", TEXT), (" sir", TEXT), ("<e>", END)]
    assert masked(tokens, [(5, 15)]) == " sir|<e>"


def test_every_turn_is_learned_up_to_its_own_end_token() -> None:
    tokens = [
        ("q", TEXT),
        ("a", TEXT),
        ("<e>", END),
        ("\n", TEXT),
        ("q", TEXT),
        ("b", TEXT),
        ("<e>", END),
        ("\n", TEXT),
    ]
    assert masked(tokens, [(1, 6), (7, 12)]) == "a|<e>|b|<e>"


def test_of_two_end_tokens_only_the_first_is_learned() -> None:
    tokens = [("a", TEXT), ("<e>", END), ("\n", TEXT), ("<s>", END)]
    assert masked(tokens, [(0, 8)]) == "a|<e>"


def test_an_end_token_inside_a_turn_does_not_end_it() -> None:
    tokens = [("think", TEXT), ("<e>", END), ("say", TEXT), ("<e>", END)]
    assert masked(tokens, [(0, 14)]) == "think|<e>|say|<e>"


def test_a_span_that_closes_before_the_end_token_still_learns_it() -> None:
    tokens = [("q", TEXT), ("a", TEXT), ("<e>", END), ("\n", TEXT)]
    assert masked(tokens, [(1, 2)]) == "a|<e>"


def test_an_empty_answer_learns_its_end_token() -> None:
    tokens = [("q", TEXT), ("<e>", END), ("\n", TEXT)]
    assert masked(tokens, [(1, 5)]) == "<e>"


def test_a_turn_without_end_token_is_refused() -> None:
    text, encoded = encoding(("q", TEXT), ("answer", TEXT), ("\n", TEXT))
    with pytest.raises(DataError, match="without an end-of-turn token"):
        target_mask(text, encoded, [(1, 8)], frozenset({END}))


def test_a_turn_whose_words_go_on_after_the_end_token_is_refused() -> None:
    text, encoded = encoding(("q", TEXT), ("<e>", END), ("more", TEXT))
    with pytest.raises(DataError, match="without an end-of-turn token"):
        target_mask(text, encoded, [(1, 8)], frozenset({END}))


def test_without_end_ids_a_span_is_taken_whole() -> None:
    tokens = [("q", TEXT), ("a", TEXT), ("\n", TEXT)]
    assert masked(tokens, [(1, 3)], frozenset()) == "a|\n"


def test_a_character_of_several_tokens_is_learned_whole() -> None:
    encoded = Encoding([1, 1, 1, 1, END], [(0, 1), (1, 2), (1, 2), (1, 2), (2, 5)])
    assert target_mask("q\U0001f600<e>", encoded, [(1, 5)], frozenset({END})).tolist() == [
        False,
        True,
        True,
        True,
        True,
    ]
