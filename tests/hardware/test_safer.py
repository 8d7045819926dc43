"""What a run is resumed with after an abort: each step asks for less, says so, and ends where nothing is left."""

import pytest

from mlx_finetune.hardware.limits import Limits
from mlx_finetune.hardware.safer import Safer, next_safer
from mlx_finetune.recipe.schema import Recipe


def recipe(batch_size=4, gradient_checkpointing=False):
    training = {"batch_size": batch_size, "gradient_checkpointing": gradient_checkpointing}
    fields = {"model": "m", "output_dir": "o", "lora": {}, "data": {"path": "d"}, "training": training}
    return Recipe.model_validate(fields)


def ladder(need, **settings):
    """Every state from the first to the last, and what was said on the way."""
    states, said = [Safer()], []
    while (step := next_safer(recipe(**settings), states[-1], need)) is not None:
        states.append(step[0])
        said.append("; ".join(step[1]))
    return states[1:], said


def test_less_memory_halves_the_microbatch_first_then_recomputes_then_shrinks_the_cache():
    states, said = ladder("less_memory")
    assert [(s.pieces, s.recomputation, s.cache_share) for s in states] == [
        (2, False, 0.25),
        (4, False, 0.25),
        (4, True, 0.25),
        (4, True, 0.0625),
    ]
    assert said[0].startswith("half of a microbatch at a time, 2 times as many")
    assert "a quarter of what it was" in said[0]
    assert all(said)


@pytest.mark.parametrize(
    ("batch_size", "pieces"), [(1, []), (2, [2]), (3, [2, 3]), (6, [2, 4, 6])], ids=["1", "2", "3", "6"]
)
def test_a_microbatch_is_cut_until_each_row_is_alone(batch_size, pieces):
    states, _ = ladder("shorter_commands", batch_size=batch_size)
    assert [state.pieces for state in states] == pieces


def test_recomputation_is_not_offered_where_the_recipe_has_it():
    states, _ = ladder("less_memory", batch_size=1, gradient_checkpointing=True)
    assert [(state.recomputation, state.cache_share) for state in states] == [(False, 0.25), (False, 0.0625)]


def test_fewer_buffers_and_no_wiring_change_no_bit():
    for need in ("fewer_buffers", "no_wiring"):
        states, said = ladder(need)
        assert states, need
        assert all(state.is_bitwise for state in states)
        assert all(said)
    assert not Safer(pieces=2).is_bitwise
    assert not Safer(recomputation=True).is_bitwise


def test_it_comes_back_from_json_and_nonsense_is_the_default():
    state = Safer(4, True, 0.25, False)
    assert Safer.from_json(state.to_json()) == state
    assert Safer.from_json(None) == Safer()
    assert Safer.from_json({"pieces": -1, "recomputation": "yes", "cache_share": 9, "wired": 0}) == Safer()


def test_limits_and_reasons_say_what_is_done():
    limits = Limits(memory_bytes=100, wired_bytes=50, cache_bytes=40)
    assert Safer(cache_share=0.25, wired=False).limits(limits) == Limits(100, 0, 10)
    assert Safer().limits(limits) == limits
    assert Safer().reasons() == {}
    assert set(Safer(2, True, 0.25, False).reasons()) == {
        *("training.batch_size", "training.gradient_checkpointing", "hardware.cache_limit", "hardware.wired_limit")
    }
