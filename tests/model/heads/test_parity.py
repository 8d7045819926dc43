"""A classifier on GPT-2 beside transformers' GPT2ForSequenceClassification: the same scores, padded and not."""

import json

import numpy as np
import pytest

from mlx_finetune.model.heads.score import HeadSpec, attach_head, first_weight
from mlx_finetune.model.heads.token_scores import ScoringModel
from mlx_finetune.model.inside.split import SplitModel
from mlx_finetune.model.load import load_model
from mlx_finetune.model.sources.fetch import LocalModel

ROWS = [np.arange(3, 3 + length, dtype=np.int32) for length in (9, 4, 1, 7)]
PAD = 0


@pytest.mark.parity
def test_scores_are_those_of_transformers(tiny_model, tmp_path):
    """T(1e-5), each row alone and all rows in one batch, padded on the right."""
    torch = pytest.importorskip("torch", reason="needs torch: pip install 'mlx-finetune[parity]'")
    from transformers import GPT2Config, GPT2ForSequenceClassification

    folder = tiny_model("gpt2")
    local = LocalModel("tiny", folder, "folder", None, "", None)
    model = load_model(local, quantize=None, compute_dtype="float32", on_gpu=False).model
    split, spec = SplitModel(model), HeadSpec("classify", 3, ("a", "b", "c"))
    weight = 10 * first_weight(spec, split.hidden_size, 3)
    attach_head(split, spec, weight)
    ours = ScoringModel(model).last(ROWS)
    config = GPT2Config.from_dict(json.loads((folder / "config.json").read_text()) | {"num_labels": 3})
    config.pad_token_id = PAD
    theirs = GPT2ForSequenceClassification.from_pretrained(folder, config=config).eval()
    theirs.score.weight.data = torch.tensor(np.array(weight))
    with torch.no_grad():
        alone = [theirs(torch.tensor(row[None].astype(np.int64))).logits.numpy()[0] for row in ROWS]
        padded = np.zeros((len(ROWS), 9), np.int64)
        for place, row in enumerate(ROWS):
            padded[place, : len(row)] = row
        mask = torch.tensor((padded != PAD).astype(np.int64))
        together = theirs(torch.tensor(padded), attention_mask=mask).logits.numpy()
    assert np.allclose(ours, np.stack(alone), rtol=1e-5, atol=1e-5)
    assert np.allclose(ours, together, rtol=1e-5, atol=1e-5)
