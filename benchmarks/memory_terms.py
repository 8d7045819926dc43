"""Measured peak memory of real training steps on a CPU beside the plan's: what ``hardware/*memory.py`` is held against.

    python benchmarks/memory_terms.py [--only TEXT] [--quick]

Each line is one fresh process: three steps on random tokens through a model of random weights, ``mx.get_peak_memory()``
of the largest step, the plan, their ratio; the worst come last. Exits with 1 where a plan is more than 5 % above or 3 %
below; of runs that draw answers (``--only grpo``) 10 % either way: their answers are as long as they may be, and which
of them end together is the model's choice.

Peaks depend on sizes and not on speed, with one exception: whether the two threads come to their loss, and to the
backward pass of a block, at the same time. In a long run they do sooner or later; in three steps beside
other work they may not, and the peak is up to 8 % lower then. So they are made to wait for each other there;
``--apart`` leaves them alone. Inside a block nothing waits: what is left of it are some 3 % between runs.
"""

import argparse
import gc
import importlib
import json
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
HIGHEST, LOWEST = 1.05, 0.97
HIGHEST_DRAWN, LOWEST_DRAWN = 1.10, 0.90


def _config(model_type: str, hidden: int, inner: int, blocks: int, heads: tuple[int, int], vocab: int, **more: Any):
    return {
        "model_type": model_type,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": blocks,
        "num_attention_heads": heads[0],
        "num_key_value_heads": heads[1],
        "head_dim": hidden // heads[0],
        "vocab_size": vocab,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": True,
    } | more


_NEOX = {"rotary_emb_base": 10000, "rotary_pct": 0.25, "layer_norm_eps": 1e-5}


def _gpt2(width: int, blocks: int, heads: int, vocab: int) -> dict[str, Any]:
    sizes = {"n_ctx": 1024, "n_positions": 1024, "n_embd": width, "n_head": heads, "n_layer": blocks}
    return {"model_type": "gpt2", "vocab_size": vocab, "layer_norm_epsilon": 1e-5, **sizes}


MODELS: dict[str, dict[str, Any]] = {
    "smollm2-135m": _config("llama", 576, 1536, 30, (9, 3), 49152),
    "llama-small": _config("llama", 256, 768, 6, (8, 2), 8000, tie_word_embeddings=False),
    "llama-wide": _config("llama", 512, 1792, 6, (16, 4), 32000, tie_word_embeddings=False),
    "qwen3": _config("qwen3", 512, 1536, 8, (8, 4), 30000, head_dim=128),
    "gemma": _config("gemma", 512, 2048, 6, (8, 1), 32000),
    "gpt2": _gpt2(768, 12, 12, 50257),
    "gpt2-exact": _gpt2(384, 6, 6, 8000) | {"activation_function": "gelu"},
    "gpt-neox-tanh": _config("gpt_neox", 512, 2048, 6, (8, 8), 50304, hidden_act="gelu_new", **_NEOX),
    "gpt-neox": _config("gpt_neox", 512, 2048, 6, (8, 8), 50304, **_NEOX),
    "tiny-llama": _config("llama", 128, 320, 3, (4, 2), 2000),
    "tiny-qwen3": _config("qwen3", 128, 320, 3, (4, 2), 2000),
    "tiny-gemma": _config("gemma", 128, 320, 3, (4, 1), 2000),
    "tiny-gpt2": _gpt2(128, 3, 4, 2000),
    "tiny-gpt-neox": _config("gpt_neox", 128, 512, 3, (4, 4), 2000, **_NEOX),
}


@dataclass(frozen=True, slots=True)
class Drawn:
    """A run of grpo: ``group_size`` answers to each problem of a batch, and ``valid`` more problems to evaluate by."""

    group_size: int
    max_tokens: int
    valid: int


@dataclass(frozen=True, slots=True)
class Setting:
    """One training. ``lora`` are the keys of [lora], None for full fine-tuning; ``documents`` a row makes it packed.

    Of a run that has ``drawn`` its answers, ``length`` is that of a prompt.
    """

    model: str
    batch: int
    length: int
    lora: dict[str, Any] | None = field(default_factory=dict[str, Any])
    recompute: bool = False
    accumulation: int = 1
    targets: float = 1.0
    documents: int = 1
    drawn: Drawn | None = None

    def __str__(self) -> str:
        task = "full" if self.lora is None else " ".join(f"{key}={value}" for key, value in self.lora.items()) or "lora"
        more = ["recomputed"] if self.recompute else []
        more += [f"accumulated {self.accumulation}"] if self.accumulation > 1 else []
        more += [f"targets {self.targets:.0%}"] if self.targets < 1 else []
        more += [f"packed {self.documents}"] if self.documents > 1 else []
        if (drawn := self.drawn) is not None:
            more = [f"grpo {drawn.group_size} answers of {drawn.max_tokens}", f"{drawn.valid} valid", *more]
        return f"{self.model} {self.batch}x{self.length} {task} {', '.join(more)}".strip()


SETTINGS = (
    Setting("smollm2-135m", 4, 128),
    Setting("smollm2-135m", 4, 128, recompute=True),
    Setting("smollm2-135m", 4, 256, {"num_layers": 16}),
    Setting("smollm2-135m", 4, 64, targets=0.5),
    Setting("smollm2-135m", 1, 256, {"num_layers": 4}),
    Setting("smollm2-135m", 3, 200, {"rank": 32}, recompute=True, accumulation=2),
    Setting("smollm2-135m", 2, 512, documents=5),
    Setting("smollm2-135m", 1, 1024, {"num_layers": 8}, recompute=True, documents=8),
    Setting("smollm2-135m", 2, 64, None),
    Setting("smollm2-135m", 1, 64, None),
    Setting("llama-small", 4, 256),
    Setting("llama-small", 1, 512, recompute=True),
    Setting("llama-small", 4, 256, {"use_dora": True}),
    Setting("llama-small", 2, 64, None),
    Setting("llama-small", 4, 512, None, accumulation=3),
    Setting("llama-small", 4, 512, None, recompute=True),
    Setting("llama-small", 1, 512, None, accumulation=3),
    Setting("llama-wide", 4, 96, {"num_layers": 1}, accumulation=2),
    Setting("llama-wide", 1, 300, {"rank": 128, "target_modules": ["q_proj", "v_proj"]}, accumulation=4),
    Setting("llama-wide", 8, 64, recompute=True, targets=0.3),
    Setting("smollm2-135m", 4, 128, {"dropout": 0.1, "num_layers": 16}),
    Setting("llama-small", 4, 256, {"rank": 16, "dropout": 0.1}),
    Setting("llama-small", 4, 256, {"dropout": 0.1}, recompute=True),
    Setting("llama-small", 4, 256, {"dropout": 0.1, "use_dora": True}),
    Setting("gpt2", 1, 200, {"dropout": 0.1}),
    Setting("gpt-neox", 4, 128, {"dropout": 0.1, "target_modules": "attention"}),
    Setting("tiny-gemma", 2, 512, {"dropout": 0.1}, recompute=True),
    Setting("qwen3", 2, 192),
    Setting("qwen3", 1, 1024, {"rank": 16, "target_modules": "attention"}),
    Setting("qwen3", 3, 256, {"rank": 64, "use_dora": True}, recompute=True),
    Setting("gemma", 4, 128),
    Setting("gemma", 4, 256, {"dropout": 0.1}, targets=0.05),
    Setting("gemma", 1, 700, {"target_modules": ["q_proj"]}),
    Setting("gemma", 4, 128, None, recompute=True),
    Setting("gpt2", 4, 200),
    Setting("gpt2", 4, 64, {"rank": 4, "num_layers": 4}, recompute=True),
    Setting("gpt2", 2, 128, None),
    Setting("gpt-neox", 1, 1536),
    Setting("gpt-neox", 4, 512, recompute=True),
    Setting("gpt-neox", 4, 64),
    Setting("gpt-neox", 2, 64, None),
    Setting("gpt-neox-tanh", 4, 256),
    Setting("gpt-neox", 4, 256, {"dropout": 0.1}),
    Setting("gpt2-exact", 4, 128),
    Setting("gpt2-exact", 1, 256, {"dropout": 0.1}, recompute=True),
    Setting("tiny-llama", 1, 512),
    Setting("tiny-llama", 2, 512, {"use_dora": True}, recompute=True),
    Setting("tiny-qwen3", 1, 384, {"num_layers": 2}, documents=3),
    Setting("tiny-gemma", 2, 512),
    Setting("tiny-gpt2", 1, 512, recompute=True),
    Setting("tiny-gpt-neox", 1, 512, None),
    Setting("tiny-llama", 4, 24, {}, drawn=Drawn(8, 48, 20)),
    Setting("tiny-llama", 16, 24, None, drawn=Drawn(4, 5, 40)),
    Setting("tiny-llama", 1, 24, {}, drawn=Drawn(4, 300, 0)),
    Setting("tiny-qwen3", 2, 200, {}, drawn=Drawn(8, 64, 4)),
    Setting("llama-small", 4, 60, {}, drawn=Drawn(4, 64, 8)),
    Setting("llama-small", 4, 60, None, accumulation=3, drawn=Drawn(4, 16, 16)),
    Setting("gpt-neox", 2, 40, {}, drawn=Drawn(8, 64, 16)),
    Setting("smollm2-135m", 1, 60, {}, drawn=Drawn(4, 64, 4)),
    Setting("smollm2-135m", 2, 60, {}, recompute=True, drawn=Drawn(8, 64, 16)),
    Setting("smollm2-135m", 1, 150, {"num_layers": 4}, recompute=True, drawn=Drawn(8, 64, 4)),
)


def measure(setting: Setting, *, num_steps: int, is_apart: bool) -> tuple[int, int]:
    """Measured and planned peak of one setting, bytes."""
    from mlx_finetune.hardware import blas

    blas.prepare()
    import mlx.core as mx

    from mlx_finetune.hardware.planning.memory import Layout, plan_memory
    from mlx_finetune.hardware.planning.shapes import read_shape
    from mlx_finetune.recipe.schema import LoraRecipe
    from mlx_finetune.train.objectives.next_token import next_token

    lora = None if setting.lora is None else LoraRecipe.model_validate(setting.lora)
    if setting.drawn is not None:
        return _measure_drawn(setting, setting.drawn, lora, num_steps)
    trainer, batch = _trainer(setting, lora, next_token("sft"))[0], _batch(setting)
    if not is_apart:
        _meet()
    gc.collect()
    mx.clear_cache()
    mx.reset_peak_memory()
    for step in range(num_steps):
        gradients, _ = trainer.compute([batch] * setting.accumulation, step)
        trainer.apply(gradients, learning_rate=1e-4, step=step)
        del gradients
    trainer.close()
    layout = Layout(setting.batch, setting.length, setting.accumulation, setting.targets, setting.documents > 1)
    shape = read_shape(MODELS[setting.model])
    planned = plan_memory(shape, lora, layout, value_bytes=4, stored_bits=None, recompute=setting.recompute)
    return mx.get_peak_memory(), planned.total


def _meet() -> None:
    """Make the two threads of ``train.both_cores`` begin their losses, and blocks' backward passes, together.

    Of one sequence in two parts the second part is a block ahead: there the first waits for what it has received.
    """
    from mlx_finetune.model.cpu.blockwise import Blockwise
    from mlx_finetune.model.cpu.context_parallel import PartCache

    patched: Any = Blockwise
    cache_type: Any = PartCache
    both = threading.Barrier(2)
    tail, backward, slopes_of_given = patched._tail, patched._backward, cache_type.slopes_of_given

    def tail_together(*args: Any) -> Any:
        if threading.current_thread() is not threading.main_thread():
            both.wait()
        return tail(*args)

    def backward_together(self: Any, index: int, visit: Any, *args: Any, **kwargs: Any) -> Any:
        is_first = visit.cache is not None and (visit.cache._part == 0 or index == len(self._blocks) - 1)
        if threading.current_thread() is not threading.main_thread() and not is_first:
            both.wait()
        if visit.cache is not None:
            visit.cache.is_lowest = index == self._lowest
        return backward(self, index, visit, *args, **kwargs)

    def slopes_together(self: Any) -> Any:
        slopes = slopes_of_given(self)
        if self._part == 0 and not self.is_lowest:
            both.wait()
        return slopes

    patched._tail, patched._backward, cache_type.slopes_of_given = tail_together, backward_together, slopes_together


def _measure_drawn(setting: Setting, drawn: Drawn, lora: Any, num_steps: int) -> tuple[int, int]:
    """The same of a run that draws its answers: an evaluation, and steps with all that the answers need."""
    import mlx.core as mx
    import numpy as np

    from mlx_finetune.dataset.stream import Stream
    from mlx_finetune.dataset.token_rows import TokenRows, rows_of
    from mlx_finetune.dataset.tokens import Tokens
    from mlx_finetune.hardware.limits import Machine
    from mlx_finetune.hardware.planning.auto import resolve_auto
    from mlx_finetune.hardware.planning.facts import Facts
    from mlx_finetune.hardware.planning.row_lengths import planned_lengths
    from mlx_finetune.hardware.planning.shapes import read_shape
    from mlx_finetune.recipe.schema import Recipe
    from mlx_finetune.train.objective import Living
    from mlx_finetune.train.objectives.grpo.policy import grpo

    values = {"model": "m", "output_dir": "o", "task": "grpo", "data": {"path": "d"}}
    training = {"batch_size": setting.batch, "gradient_accumulation_steps": setting.accumulation}
    training |= {"gradient_checkpointing": setting.recompute, "max_steps": num_steps}
    answers = {"rewards": ["regex:[02468]$"], "group_size": drawn.group_size, "max_tokens": drawn.max_tokens}
    recipe = Recipe.model_validate(values | {"grpo": answers, "training": training, "lora": setting.lora})
    rng, config = np.random.default_rng(0), MODELS[setting.model]

    def problems(count: int) -> TokenRows:
        lengths = rng.integers(setting.length // 2, setting.length + 1, count)
        ids = [rng.integers(0, config["vocab_size"], length).astype(np.int32) for length in lengths]
        return rows_of([Tokens(one, np.arange(len(one)) + 1 == len(one), "", 1) for one in ids])

    rows, valid = problems(setting.batch * setting.accumulation), problems(drawn.valid)
    facts = Facts(
        planned_lengths(rows, recipe, config["model_type"]),
        read_shape(config),
        Machine(False, 64 * 10**9, 0, "a CPU"),
        "every answer has a reward of its own",
        num_valid=drawn.valid,
    )
    resolved = resolve_auto(recipe, facts)
    trainer, model = _trainer(setting, lora, grpo(recipe))
    stream = Stream(rows, batch_size=setting.batch, accumulation=setting.accumulation, packed_length=None, seed=0)
    tokenizer: Any = _Numbers()
    live = grpo(recipe).live
    assert live is not None
    live = live(Living(model, tokenizer, resolved.recipe, stream, valid, resolved.microbatch, trainer.row_outputs))
    gc.collect()
    mx.clear_cache()
    mx.reset_peak_memory()
    for batch in live.valid_batches:
        trainer.loss(batch)
    for step in range(num_steps):
        gradients, _ = trainer.compute(live.stream.share(step, 0, 1), step)
        trainer.apply(gradients, learning_rate=1e-6, step=step)
        del gradients
    trainer.close()
    return mx.get_peak_memory(), resolved.memory.total


class _Numbers:
    """A tokenizer for random tokens: their numbers, and no end mark."""

    stop_token_ids: tuple[int, ...] = ()
    start_token_id = None

    def decode(self, ids: list[int], *, skip_special_tokens: bool = True) -> str:
        del skip_special_tokens
        return "".join(f" {one}" for one in ids)


def _trainer(setting: Setting, lora: Any, objective: Any) -> tuple[Any, Any]:
    """A trainer as the command builds it on a CPU, and the model of random weights that it trains."""
    import mlx.core as mx

    from mlx_finetune.model.adapters.lora import adapter_parameters, attach_adapter, full_parameters
    from mlx_finetune.model.files.repairs import repair_activation
    from mlx_finetune.train.optim import AdamW, decayed_names
    from mlx_finetune.train.step import Trainer

    config = MODELS[setting.model]
    family = importlib.import_module(f"mlx_lm.models.{config['model_type']}")
    model = family.Model(family.ModelArgs.from_dict(config))
    repair_activation(model, config)
    mx.eval(model.parameters())
    model.freeze()
    if lora is None:
        parameters = full_parameters(model)
    else:
        attach_adapter(model, lora, seed=0)
        parameters = adapter_parameters(model)
    optimizer = AdamW(0.9, 0.999, 1e-8, 0.01, decayed_names(parameters))
    trainer = Trainer(
        model,
        objective,
        optimizer,
        parameters,
        seed=0,
        max_grad_norm=1.0,
        is_packed=setting.documents > 1,
        is_compiled=False,
        is_blockwise=True,
        keeps_products=not setting.recompute,
    )
    mx.eval(trainer.parameters, trainer.state)
    return trainer, model


def _batch(setting: Setting) -> Any:
    """Random tokens, a share of them targets, in documents of one length."""
    import numpy as np

    from mlx_finetune.dataset.stream import Batch

    rng = np.random.default_rng(0)
    size = (setting.batch, setting.length + 1)
    tokens = rng.integers(0, MODELS[setting.model]["vocab_size"], size).astype(np.int32)
    mask = rng.random(size) < setting.targets
    segments = np.arange(size[1]) * setting.documents // size[1] + 1
    segment_ids = np.tile(segments.astype(np.int32), (setting.batch, 1))
    return Batch(tokens, mask, segment_ids, (0,), is_packed=setting.documents > 1)


def main() -> int:
    """Measure every setting in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="settings whose line contains this")
    parser.add_argument("--quick", action="store_true", help="every fourth setting")
    parser.add_argument("--steps", type=int, default=3, help="steps of a setting (%(default)s)")
    parser.add_argument("--apart", action="store_true", help="do not make the halves meet")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one is not None:
        print(json.dumps(measure(SETTINGS[given.one], num_steps=given.steps, is_apart=given.apart)))
        return 0
    chosen = [number for number, setting in enumerate(SETTINGS) if given.only in str(setting)]
    rows: list[tuple[float, str]] = []
    is_good = True
    print(f"{'measured MB':>12}{'planned MB':>12}{'ratio':>8}  setting")
    for number in chosen[:: 4 if given.quick else 1]:
        command = [sys.executable, __file__, "--one", str(number), "--steps", str(given.steps)]
        command += ["--apart"] if given.apart else []
        done = subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        measured, planned = json.loads(done.stdout.splitlines()[-1])
        ratio = planned / measured
        is_drawn = SETTINGS[number].drawn is not None
        is_good &= LOWEST_DRAWN <= ratio <= HIGHEST_DRAWN if is_drawn else LOWEST <= ratio <= HIGHEST
        line = f"{measured / 1e6:12.1f}{planned / 1e6:12.1f}{ratio:8.3f}  {SETTINGS[number]}"
        rows.append((ratio, line))
        print(line, flush=True)
    rows.sort()
    print(f"\n{len(rows)} settings; lowest and highest:\n{rows[0][1]}\n{rows[-1][1]}")
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main())
