"""The prompts of [eval], answered by the weights at hand: one line of samples.jsonl and one event for each."""

import json
import os
from collections.abc import Callable
from pathlib import Path

from mlx_finetune import durable
from mlx_finetune.dataset.template import render_prompt
from mlx_finetune.events import Phase, Sampled
from mlx_finetune.hardware.blas import single_threaded
from mlx_finetune.model.answers.generate import Sampling, generate_tokens
from mlx_finetune.model.inside.parts import check_ids
from mlx_finetune.train.signals import StopRequest
from mlx_finetune.train.start.prepare import Prepared
from mlx_finetune.train.start.rows import Emit


def prompt_answerer(path: Path, prepared: Prepared, stop: StopRequest, emit: Emit) -> Callable[[int], bool]:
    """A function of the step that answers every prompt; False, with none of them recorded, when a signal cut it short.

    Draws use the recipe's [chat] settings and seed and nothing of the training's randomness.
    """
    recipe = prepared.recipe
    system = [{"role": "system", "content": recipe.chat.system}] if recipe.chat.system else []
    prompts = [
        (prompt, render_prompt([*system, {"role": "user", "content": prompt}], prepared.tokenizer, recipe.data))
        for prompt in recipe.eval.prompts
    ]
    for prompt, ids in prompts:
        check_ids(prepared.model, ids, f"the prompt {prompt[:60]!r}")  # now, not at the first evaluation
    sampling = Sampling(
        temperature=recipe.chat.temperature,
        top_p=recipe.chat.top_p,
        top_k=recipe.chat.top_k,
        min_p=recipe.chat.min_p,
        repetition_penalty=recipe.chat.repetition_penalty,
        max_tokens=recipe.eval.max_new_tokens,
        seed=recipe.seed,
    )

    def answer(step: int) -> bool:
        answers: list[tuple[str, str, int]] = []
        prepared.model.eval()  # a step leaves it in training mode
        for number, (prompt, ids) in enumerate(prompts):
            emit(Phase("answer", detail=prompt, done=number, total=len(prompts), unit="prompts"))
            with single_threaded():
                pieces = list(
                    generate_tokens(
                        prepared.model, prepared.tokenizer, ids, sampling, stop=lambda: bool(stop.signal_number)
                    )
                )
            if stop.signal_number:
                return False
            answers.append((prompt, "".join(piece.text for piece in pieces), len(pieces)))
        for prompt, text, num_tokens in answers:
            _append(path, {"step": step, "prompt": prompt, "answer": text, "num_tokens": num_tokens})
            emit(Sampled(step, prompt, text))
        return True

    return answer


def _append(path: Path, fields: dict[str, object]) -> None:
    descriptor = durable.open_append(path)
    try:
        durable.append(path, descriptor, json.dumps(fields, ensure_ascii=False).encode() + b"\n")
    finally:
        os.close(descriptor)
