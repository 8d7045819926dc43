import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mlx_finetune.dataset.truncate import keep_end, shorter_conversations, split

BOS = 7


def row(ids: list[int], mask: list[int]) -> tuple[np.ndarray, np.ndarray]:
    return np.array(ids, np.int32), np.array(mask, np.bool_)


def test_keep_end_keeps_the_last_tokens_and_never_learns_the_first() -> None:
    ids, mask = keep_end(*row([1, 2, 3, 4], [0, 1, 1, 1]), 3, None)
    assert (ids.tolist(), mask.tolist()) == ([2, 3, 4], [False, True, True])


def test_keep_end_keeps_the_beginning_of_text_token() -> None:
    ids, mask = keep_end(*row([BOS, 2, 3, 4], [0, 1, 1, 1]), 3, BOS)
    assert (ids.tolist(), mask.tolist()) == ([BOS, 3, 4], [False, True, True])


def test_pieces_repeat_one_token_of_context_and_learn_every_target_once() -> None:
    pieces = [(ids.tolist(), mask.tolist()) for ids, mask in split(*row([1, 2, 3, 4, 5], [0, 1, 1, 1, 1]), 3, None)]
    assert pieces == [([1, 2, 3], [False, True, True]), ([3, 4, 5], [False, True, True])]


def test_pieces_begin_with_the_beginning_of_text_token_where_the_row_does() -> None:
    pieces = [ids.tolist() for ids, _ in split(*row([BOS, 2, 3, 4, 5, 6], [0, 1, 1, 1, 1, 1]), 3, BOS)]
    assert pieces == [[BOS, 2, 3], [BOS, 4, 5], [BOS, 6]]


@given(
    st.lists(st.tuples(st.integers(0, 50), st.booleans()), min_size=9, max_size=60), st.integers(8, 20), st.booleans()
)
def test_the_targets_of_the_pieces_are_those_of_the_row(
    tokens: list[tuple[int, bool]], length: int, starts_with_bos: bool
) -> None:
    ids = np.array([BOS if starts_with_bos else 51] + [token for token, _ in tokens], np.int32)
    mask = np.array([False] + [is_target for _, is_target in tokens])
    pieces = list(split(ids, mask, length, BOS))
    assert np.concatenate([i[m] for i, m in pieces]).tolist() == ids[mask].tolist()
    assert all(len(i) == len(m) <= length and not m[0] for i, m in pieces)


def test_turns_are_cut_from_the_front_and_the_system_turn_stays() -> None:
    turns = [{"role": role, "n": n} for n, role in enumerate(["system", "user", "assistant", "user", "assistant"])]
    shown = [[turn["n"] for turn in shorter] for shorter in shorter_conversations(turns)]
    assert shown == [[0, 3, 4], [3, 4]]


def test_a_single_exchange_has_no_turns_to_cut() -> None:
    assert list(shorter_conversations([{"role": "user"}, {"role": "assistant"}])) == []
