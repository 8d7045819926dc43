"""Documents packed into one row get the log-probabilities they have alone."""

import mlx.core as mx
import numpy as np
import pytest
from random_models import VOCAB, make_model

from mlx_finetune.errors import ModelError
from mlx_finetune.model.inside.segments import SegmentMask, check_packable, is_packed, segment_caches


def log_probs(logits: mx.array, tokens: mx.array) -> np.ndarray:
    picked = mx.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0]
    return np.array(picked - mx.logsumexp(logits, axis=-1))


@pytest.mark.parametrize("name", ["llama", "sliding llama", "gemma", "gpt_neox"])
def test_packed_documents_have_the_log_probs_they_have_alone(name: str) -> None:
    model = make_model(name)
    rng = np.random.default_rng(0)
    documents = [rng.integers(0, VOCAB, length) for length in (7, 1, 11, 5)]
    pad = np.zeros(3, int)
    tokens = mx.array(np.concatenate([*documents, pad])[None])
    ids = np.repeat([1, 2, 3, 4, 0], [7, 1, 11, 5, 3])[None].astype(np.int32)

    packed = log_probs(model(tokens[:, :-1], cache=segment_caches(model, mx.array(ids[:, :-1]))), tokens[:, 1:])
    plain = log_probs(model(tokens[:, :-1]), tokens[:, 1:])

    start = 0
    for document in documents:
        alone = mx.array(document[None])
        if len(document) > 1:
            expected = log_probs(model(alone[:, :-1]), alone[:, 1:])[0]
            np.testing.assert_allclose(packed[0, start : start + len(document) - 1], expected, rtol=0, atol=1e-5)
            if start > 0:  # without the mask it would not hold, so the comparison above can fail
                assert np.abs(plain[0, start : start + len(document) - 1] - expected).max() > 1e-2
        start += len(document)


def test_no_document_gets_a_gradient_from_another() -> None:
    model = make_model("llama")
    tokens = mx.array([[5, 6, 7, 8, 9, 10]])
    caches = segment_caches(model, mx.array([[1, 1, 1, 2, 2, 2]]))
    inner = model.model

    def last_logit(embedded: mx.array) -> mx.array:
        return inner(tokens, cache=caches, input_embeddings=embedded)[0, -1].sum()

    gradient = mx.grad(last_logit)(inner.embed_tokens(tokens))
    assert mx.all(gradient[0, :3] == 0).item()
    assert mx.all(mx.any(gradient[0, 3:] != 0, axis=-1)).item()


def test_the_mask_is_causal_block_diagonal_and_windowed() -> None:
    mask = SegmentMask(mx.array([[1, 1, 1, 2, 2, 0]]))
    expected = [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [0, 0, 0, 1, 0, 0],
        [0, 0, 0, 1, 1, 0],
        [0, 0, 0, 0, 0, 1],
    ]
    assert np.array(mask.make_mask(6, return_array=True))[0, 0].astype(int).tolist() == expected
    windowed = np.array(mask.make_mask(6, window_size=2))
    assert windowed.shape == (1, 1, 6, 6)
    assert windowed[0, 0, 2].tolist() == [False, True, True, False, False, False]


def test_the_same_holds_inside_a_compiled_function() -> None:
    model = make_model("llama")
    tokens, ids = mx.array([[5, 6, 7, 8, 9, 10]]), mx.array([[1, 1, 1, 2, 2, 2]])

    def forward(tokens: mx.array, ids: mx.array) -> mx.array:
        return model(tokens, cache=segment_caches(model, ids))

    np.testing.assert_allclose(mx.compile(forward)(tokens, ids), forward(tokens, ids), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("row", "expected"),
    [([1, 1, 1, 1], False), ([1, 1, 0, 0], False), ([0, 0, 0, 0], False), ([1, 1, 2, 0], True), ([0, 1, 1, 0], True)],
)
def test_padding_at_the_end_is_not_packing(row: list[int], expected: bool) -> None:
    assert is_packed(np.array([[1, 1, 1, 1], row])) is expected


def test_unpacked_rows_need_no_cache() -> None:
    assert segment_caches(make_model("llama"), None) is None


@pytest.mark.parametrize("name", ["llama", "sliding llama", "gemma", "gpt_neox"])
def test_models_with_rotary_positions_can_be_packed(name: str) -> None:
    check_packable(make_model(name))


def test_learned_positions_and_recurrent_layers_are_refused_by_name() -> None:
    with pytest.raises(ModelError, match=r"gpt2 model cannot be packed: it has learned positions \(model\.wpe\)"):
        check_packable(make_model("gpt2"))
    with pytest.raises(ModelError, match="mamba model cannot be packed: its layers carry state") as caught:
        check_packable(make_model("mamba"))
    assert "packing = false" in caught.value.hint
