"""A sequence in two parts: where it may be cut, and what happens when one part fails."""

import threading

import mlx.core as mx
import pytest

from mlx_finetune.model.cpu.context_parallel import ContextPart, Link, PartCache, can_divide, parts_of
from mlx_finetune.model.inside.split import SplitModel
from tests.random_models import make_model


@pytest.mark.parametrize("model_type", ["llama", "sliding llama", "gemma", "gpt2", "gpt_neox"])
def test_families_that_keep_keys_and_values_can_be_divided(model_type):
    assert can_divide(SplitModel(make_model(model_type)))


def test_layers_with_a_state_are_left_whole():
    assert not can_divide(SplitModel(make_model("mamba")))


def test_a_model_that_reads_more_than_keys_of_a_cache_is_left_whole(monkeypatch):
    """Positions that start at 0 in the second part, whatever the cache says."""
    split = SplitModel(make_model("llama"))
    assert can_divide(split)
    monkeypatch.setattr(PartCache, "offset", property(lambda self: 0, lambda self, value: None), raising=False)
    assert not can_divide(split)


@pytest.mark.parametrize("num_positions", [64, 180, 2048])
def test_the_second_part_is_shorter_because_its_queries_see_more(num_positions):
    split = SplitModel(make_model("llama"))
    first, second = parts_of([split, split], num_positions)
    assert first.cut == second.cut
    assert num_positions / 2 <= first.cut < num_positions * 0.75
    tokens = mx.arange(num_positions)[None]
    assert mx.array_equal(mx.concatenate([first.own(tokens), second.own(tokens)], axis=1), tokens)


def test_what_is_exchanged_stands_in_the_order_of_the_parts():
    split = SplitModel(make_model("llama"))
    parts = parts_of([split, split], 100)
    hidden, slopes = mx.random.normal((1, 100, 4)), mx.random.normal((2, 1, 100, 4))
    mx.eval(hidden, slopes)  # streams belong to threads
    results = {}

    def run(part: ContextPart) -> None:
        results[part.number] = (part.gather(part.own(hidden)), part.scatter_sum(slopes[part.number]))
        mx.eval(results[part.number])

    threads = [threading.Thread(target=run, args=(part,)) for part in parts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    for part in parts:
        whole, summed = results[part.number]
        assert mx.array_equal(whole, hidden)
        assert mx.array_equal(summed, part.own(slopes[0] + slopes[1]))


def test_what_is_handed_on_does_not_keep_the_array_that_it_is_a_view_of():
    """Keys of a fused product: 3 MB, of which a third is wanted by the other part."""
    link = Link()
    mx.synchronize()
    before = mx.get_active_memory()
    whole = mx.zeros((1, 256, 3 * 1024))
    mx.eval(whole)
    link.put(0, [whole[..., :1024].reshape(1, 256, 4, 256).swapaxes(1, 2)])
    del whole
    (kept,) = link.get(1)
    assert kept.shape == (1, 4, 256, 256)
    assert mx.get_active_memory() - before <= 1.1 * kept.nbytes


@pytest.mark.parametrize("failing", [0, 1])
def test_an_error_of_one_part_reaches_the_other(failing):
    link = Link()
    with pytest.raises(MemoryError), link.telling(failing):
        raise MemoryError
    with pytest.raises(MemoryError):
        link.get(1 - failing)
