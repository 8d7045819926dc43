"""What torch, transformers and PEFT say about the tiny T5s of tests/tiny_t5.py: imported where torch is there alone."""

# pyright: reportMissingImports=false
from pathlib import Path
from typing import Any

import numpy as np

from mlx_finetune.dataset.stream import Batch, make_batch
from mlx_finetune.dataset.tokens import Tokens

SHOWN = 24  # logits kept of each position
STEPS, RATE, DECAY, MAX_NORM = 5, 1e-3, 0.01, 0.5
EPSILON = 1e-4  # with 1e-8 Adam would take the sign of gradients that are nothing but rounding


def step_batches() -> list[Batch]:
    """Two microbatches of rows with two sides of differing lengths, and with padding."""
    rng = np.random.default_rng(8)
    rows: list[Tokens] = []
    for line, (num_prompt, num_answer) in enumerate(((20, 5), (7, 9), (31, 3), (12, 1)), start=1):
        parts = (rng.integers(3, 60, num_prompt), [1, 0], rng.integers(3, 60, num_answer), [1])
        ids = np.concatenate(parts).astype(np.int32)
        rows.append(Tokens(ids, np.arange(len(ids)) >= num_prompt + 2, "rows.jsonl", line))
    groups = ([[0], [1]], [[2], [3]])
    longest = [max(len(rows[one].ids) for (one,) in group) for group in groups]
    return [
        make_batch(rows, group, num_sequences=2, length=length + 3)
        for group, length in zip(groups, longest, strict=True)
    ]


def inputs() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Prompts (3, 40) padded with 0, their lengths (3,), and what the decoder reads (3, 9), from the start token on."""
    rng = np.random.default_rng(4)
    lengths = np.array([40, 23, 6])
    prompts = rng.integers(3, 60, (3, 40))
    prompts[np.arange(3), lengths - 1] = 1
    prompts[np.arange(40)[None] >= lengths[:, None]] = 0
    said = np.concatenate([np.zeros((3, 1), np.int64), rng.integers(3, 60, (3, 8))], axis=1)
    return prompts, lengths, said


def load_theirs(folder: Path) -> Any:
    """transformers' model of the folder, in evaluation mode."""
    import torch
    from transformers import T5ForConditionalGeneration

    return T5ForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()


def their_logits(model: Any) -> np.ndarray:
    """Logits (3, 9, V) of ``inputs``."""
    import torch

    prompts, lengths, said = inputs()
    mask = np.arange(prompts.shape[1])[None] < lengths[:, None]
    with torch.no_grad():
        arrays = {"input_ids": prompts, "attention_mask": mask.astype(np.int64), "decoder_input_ids": said}
        return model(**{name: torch.tensor(array) for name, array in arrays.items()}).logits.numpy()


def their_answers(model: Any) -> list[list[int]]:
    """Twelve greedy tokens for each prompt, alone and without padding."""
    import torch

    prompts, lengths, _ = inputs()
    answers = []
    for prompt, length in zip(prompts, lengths, strict=True):
        found = model.generate(torch.tensor(prompt[None, :length]), max_new_tokens=12, do_sample=False, num_beams=1)
        answers.append(found[0, 1:].tolist())
    return answers


def their_buckets() -> dict[str, list[int]]:
    """Buckets of the distances from -300 to 300 in both kinds of stack."""
    import torch
    from transformers.models.t5.modeling_t5 import T5Attention

    distances = torch.arange(-300, 301)
    return {
        name: T5Attention._relative_position_bucket(distances, bidirectional=name == "encoder").tolist()
        for name in ("encoder", "decoder")
    }


def their_losses(folder: Path, adapter: Path) -> tuple[list[float], dict[str, np.ndarray]]:
    """Five clipped steps of the adapter that PEFT reads from a folder, and the first gradients under PEFT's names."""
    import peft
    import torch

    model: Any = peft.PeftModel.from_pretrained(load_theirs(folder), str(adapter), is_trainable=True).eval()
    weights = {name: value for name, value in model.named_parameters() if value.requires_grad}
    optimizer = torch.optim.AdamW(weights.values(), lr=RATE, weight_decay=DECAY, eps=EPSILON)
    losses: list[float] = []
    first: dict[str, np.ndarray] = {}
    for _ in range(STEPS):
        optimizer.zero_grad()
        total, count = torch.tensor(0.0), 0
        for batch in step_batches():
            for ids, mask, segments in zip(batch.tokens, batch.loss_mask, batch.segment_ids, strict=True):
                start, end = int(mask.argmax()), int(np.count_nonzero(segments))
                prompt, labels = torch.tensor(ids[None, : start - 1]).long(), torch.tensor(ids[None, start:end]).long()
                total = total + model(input_ids=prompt, labels=labels).loss * labels.numel()
                count += labels.numel()
        loss = total / count
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights.values(), MAX_NORM)
        first = first or {name: value.grad.numpy().copy() for name, value in weights.items()}
        optimizer.step()
        losses.append(loss.item())
    return losses, first
