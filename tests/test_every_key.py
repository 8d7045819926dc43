"""No key of a recipe is accepted and ignored: each one is flipped, and the run must come out another way.

Two runs are compared by what they did, never by what they wrote down about their settings: events without clock
times, the bytes of the result, the checkpoints that are left, or the error that was raised. A new key without an entry
here fails ``test_every_key_of_the_schema_is_flipped``.
"""

import hashlib
import json
import typing

import mlx.core as mx
import pytest
from small_runs import train, write_recipe, write_rows

from mlx_finetune import rundir
from mlx_finetune.errors import MlxftError
from mlx_finetune.events import RunStarted, StepDone, to_json
from mlx_finetune.journal import read_events
from mlx_finetune.recipe import schema

TEMPLATE = (
    "{% for m in messages %}<|im_start|>the {{ m['role'] }}{{ flavour }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>the assistant{{ flavour }}\n{% endif %}"
)
CLOCK_FIELDS = {
    "time",
    "seconds",
    "step_seconds",
    "train_seconds",
    "planned",
    "targets_per_second",
    "active_memory_bytes",
    "peak_memory_bytes",
    "memory_limit_bytes",
    "num_bytes",
    "run",
    "detail",
}
#: Key -> overrides that flip it (and what else the difference needs), and overrides both runs share.
FLIPS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "model": (("model={other_model}",), ()),
    "adapter": (("adapter={first_run}",), ()),
    "task": (("task=pretrain",), ("data.path={text}",)),
    "quantize": (("quantize=4",), ()),
    "seed": (("seed=12",), ()),
    "lora.rank": (("lora.rank=2",), ()),
    "lora.alpha": (("lora.alpha=9",), ()),
    "lora.dropout": (("lora.dropout=0.4",), ()),
    "lora.target_modules": (("lora.target_modules=attention",), ()),
    "lora.num_layers": (("lora.num_layers=1",), ()),
    "lora.use_dora": (("lora.use_dora=true",), ()),
    "lora.use_rslora": (("lora.use_rslora=true",), ()),
    "data.path": (("data.path={other_rows}",), ()),
    "data.corrections": (("data.corrections={corrections}",), ()),
    "data.corrections_weight": (("data.corrections_weight=3",), ("data.corrections={corrections}",)),
    "data.format": (("data.format=alpaca",), ()),
    "data.columns": (('data.columns={{messages = "talk"}}',), ()),
    "data.val_split": (("data.val_split=0.5",), ()),
    "data.test_split": (("data.test_split=0.3",), ()),
    "data.max_seq_length": (("data.max_seq_length=30",), ()),
    "data.max_target_length": (
        ("data.max_target_length=8",),
        ("model={t5}", "task=seq2seq", "data.packing=auto", "training.neftune_alpha=0"),
    ),
    "data.mask_prompt": (("data.mask_prompt=false",), ()),
    "data.packing": (("data.packing=false",), ()),
    "data.chat_template": (("data.chat_template={template}",), ()),
    "data.template_arguments": (('data.template_arguments={{flavour = "!"}}',), ("data.chat_template={template}",)),
    "data.truncation": (("data.truncation=keep-end",), ("data.max_seq_length=30",)),
    "training.learning_rate": (("training.learning_rate=2e-2",), ()),
    "training.optimizer": (("training.optimizer=lion",), ()),
    "training.epochs": (("training.epochs=2",), ()),
    "training.max_steps": (("training.max_steps=5",), ()),
    "training.max_minutes": (("training.max_minutes=1e-6",), ()),
    "training.batch_size": (("training.batch_size=1",), ()),
    "training.gradient_accumulation_steps": (("training.gradient_accumulation_steps=1",), ()),
    "training.lr_scheduler": (("training.lr_scheduler=linear",), ()),
    "training.warmup_steps": (("training.warmup_steps=3",), ()),
    "training.warmup_ratio": (("training.warmup_ratio=0.5",), ()),
    "training.min_lr_ratio": (("training.min_lr_ratio=0.5",), ()),
    "training.adam_beta1": (("training.adam_beta1=0.5",), ()),
    "training.adam_beta2": (("training.adam_beta2=0.5",), ()),
    "training.adam_epsilon": (("training.adam_epsilon=0.1",), ()),
    "training.weight_decay": (("training.weight_decay=1.0",), ()),
    "training.max_grad_norm": (("training.max_grad_norm=0.01",), ()),
    "training.neftune_alpha": (("training.neftune_alpha=10.0",), ()),
    "training.logging_steps": (("training.logging_steps=2",), ()),
    "training.eval_steps": (("training.eval_steps=1",), ()),
    "training.evals_per_epoch": (("training.evals_per_epoch=5",), ()),
    "training.save_steps": (("training.save_steps=1",), ()),
    "training.save_minutes": (("training.save_minutes=1e-9",), ()),
    "training.save_at": (("training.save_at=[0.5]",), ("training.keep_checkpoints=1", "training.save_steps=4")),
    "training.keep_checkpoints": (("training.keep_checkpoints=1",), ("training.save_steps=1",)),
    "training.keep_best": (("training.keep_best=false",), ("training.learning_rate=0.3", "training.eval_steps=1")),
    "training.early_stopping_patience": (
        ("training.early_stopping_patience=1",),
        ("training.learning_rate=10.0", "training.eval_steps=1"),
    ),
    "eval.prompts": (('eval.prompts=["Hello."]',), ()),
    "eval.max_new_tokens": (("eval.max_new_tokens=2",), ()),
    "chat.temperature": (("chat.temperature=3.0",), ()),
    "chat.top_p": (("chat.top_p=0.01",), ("chat.temperature=2.0",)),
    "chat.top_k": (("chat.top_k=1",), ("chat.temperature=2.0",)),
    "chat.min_p": (("chat.min_p=1.0",), ("chat.temperature=2.0",)),
    "chat.repetition_penalty": (("chat.repetition_penalty=5.0",), ("chat.temperature=0", "eval.max_new_tokens=8")),
    "chat.system": (('chat.system="Be brief."',), ()),
    "hardware.compute_dtype": (("hardware.compute_dtype=bfloat16",), ()),
    "hardware.microbatch": (("hardware.microbatch=1",), ()),
    "hardware.num_threads": (("hardware.num_threads=1",), ("data.packing=false",)),
}
#: Keys whose effect is shown by a test of its own.
ELSEWHERE = {
    "revision": "tests/model/sources/test_hub.py: the revision is what is fetched",
    "output_dir": "every test here: it is where the run goes",
    "data.train": "test_named_files_and_weighted_sources_change_the_rows",
    "data.valid": "test_named_files_and_weighted_sources_change_the_rows",
    "data.test": "tests/dataset/test_corpus.py: rows of the test file are nobody else's",
    "data.sources": "test_named_files_and_weighted_sources_change_the_rows",
    "data.prompt_template": "test_the_prompt_template_changes_what_a_base_model_sees",
    "data.text_template": "tests/train/objectives/test_scored.py: other tokens",
    "grpo.rewards": "tests/train/objectives/test_grpo.py: other rewards",
    "grpo.reward_weights": "tests/train/objectives/test_grpo.py: other rewards",
    "grpo.schema": "tests/train/objectives/test_grpo.py: other rewards",
    "grpo.group_size": "tests/train/objectives/test_grpo.py: other answers",
    "grpo.max_tokens": "tests/train/objectives/test_grpo.py: other answers",
    "grpo.temperature": "tests/train/objectives/test_grpo.py: other answers",
    "grpo.updates": "tests/train/objectives/test_grpo.py: several updates learn from one drawing",
    "grpo.clip": "tests/train/objectives/test_grpo.py: more or fewer tokens are clipped",
    "grpo.divide_by_sd": "tests/train/objectives/test_grpo.py: other advantages",
    "verifier.lm_loss_weight": "tests/train/objectives/test_scored.py: more or fewer losses",
    **dict.fromkeys(
        (
            *(f"scratch.{size}" for size in ("hidden_size", "num_layers", "num_heads", "num_kv_heads")),
            *(f"scratch.{size}" for size in ("intermediate_size", "context_length", "vocab_size", "tokenizer")),
            *(f"scratch.{shape}" for shape in ("tie_embeddings", "rope_theta", "attention_sinks")),
            *(f"scratch.{shape}" for shape in ("num_experts", "experts_per_token")),
        ),
        "tests/model/scratch/test_begin.py: each makes another model",
    ),
    "scratch.z_loss": "tests/train/objectives/test_scratch.py: other gradients",
    "scratch.balance_loss": "tests/train/objectives/test_scratch.py: other gradients",
    "data.documents": "tests/dataset/test_stretches.py: other documents",
    "training.gradient_checkpointing": "test_gradient_checkpointing_recomputes_the_blocks",
    "training.reuse_frozen_layers": "tests/train/test_frozen.py: computed once, and with true refused where impossible",
    "training.on_nonfinite": "tests/train/test_loop.py: stopped or skipped",
    "training.report_to": "tests/app/trackers/test_training.py: told, or refused where it is not installed",
    **dict.fromkeys(
        (f"preference.{key}" for key in schema.PreferenceRecipe.model_fields),
        "tests/train/objectives/test_preference_runs.py: each changes the weights, share_prompt what goes through",
    ),
    "eval.microscope_rows": "tests/train/test_microscope.py: measured, how many rows, or not",
    "eval.tasks": "tests/app/eval/test_evaluate.py: what is measured",
    "eval.max_rows": "tests/app/eval/test_evaluate.py: how many rows",
    "eval.gates": "tests/app/eval/test_evaluate.py: exit code 4",
    "eval.schema": "tests/app/eval/test_evaluate.py: a second figure, constrained",
    "eval.category": "tests/app/eval/test_evaluate.py: every figure split",
    "eval.references": "tests/app/eval/test_references.py: the best of several right answers",
    "eval.shots": "tests/app/eval/test_evaluate.py: one more side",
    "eval.labels": "tests/app/eval/test_evaluate.py: other classes",
    "eval.label_words": "tests/app/test_scored_runs.py: what the classes are called",
    "eval.label_question": "tests/app/test_scored_runs.py: another question",
    "eval.answer_tokens": "tests/app/eval/test_evaluate.py: the longest answer",
    "chat.max_tokens": "tests/app/test_open.py: the longest answer of chat and generate",
    "serve.endpoints": "tests/serving/test_tasks.py: addresses of the server",
    "hardware.memory_limit": "test_limits_are_handed_to_mlx",
    "hardware.wired_limit": "test_limits_are_handed_to_mlx",
    "hardware.cache_limit": "test_limits_are_handed_to_mlx",
    "hardware.min_battery_percent": "tests/train/test_pause.py: the charge from which a run waits",
    **dict.fromkeys(
        (
            "hardware.relax_gpu_watchdog",
            "hardware.max_ops_per_buffer",
            "hardware.max_mb_per_buffer",
            "hardware.residency_set_percent",
            "hardware.fast_synch",
            "hardware.tf32",
            "hardware.gpu_architecture",
            "hardware.compile",
        ),
        "tests/hardware/test_metal.py: each sets its variable, app/running/test_launch.py: in the training process",
    ),
    "hardware.sample_seconds": "tests/train/test_machine.py: how often the machine is looked at, and 0 never",
}


def schema_keys(model: type[schema.Section] = schema.Recipe, prefix=""):
    for name, field in model.model_fields.items():
        inner = [field.annotation, *typing.get_args(field.annotation)]
        section = next((kind for kind in inner if isinstance(kind, type) and issubclass(kind, schema.Section)), None)
        if section is not None and not prefix:
            yield from schema_keys(section, f"{name}.")
        else:
            yield prefix + name


def outcome(run):
    """What the run did, as a list of strings."""
    found = []
    for record in read_events(run.file(rundir.EVENTS)):
        fields = json.loads(to_json(record.event, 0))
        if fields["kind"] in ("phase", "notice"):
            continue
        found.append(json.dumps({key: value for key, value in fields.items() if key not in CLOCK_FIELDS}))
    found += [hashlib.sha256(run.file(name).read_bytes()).hexdigest() for name in (rundir.MLX_WEIGHTS,)]
    return [*found, *(path.name for path in run.checkpoints())]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("keys")
    write_rows(folder / "rows.jsonl", 20)
    write_rows(folder / "other.jsonl", 19)
    (folder / "template.jinja").write_text(TEMPLATE)
    turns = [{"role": "user", "content": "Where?"}, {"role": "assistant", "content": "There."}]
    (folder / "corrections.jsonl").write_text(json.dumps({"messages": turns}) + "\n")
    with (folder / "text.jsonl").open("w") as file:
        for index in range(20):
            file.write(json.dumps({"text": f"{index} green bottles " * (1 + index % 3)}) + "\n")
    return folder


@pytest.fixture(scope="module")
def run_with(folder, tiny_model, tiny_t5):
    """Run with overrides, or give the error's text; the same overrides are run once."""
    recipe = write_recipe(folder, tiny_model("llama"))
    names = {
        "other_model": tiny_model("llama", seed=1),
        "t5": tiny_t5(is_tied=True),
        "first_run": folder / "out-0",
        "other_rows": folder / "other.jsonl",
        "template": folder / "template.jinja",
        "text": folder / "text.jsonl",
        "corrections": folder / "corrections.jsonl",
    }
    done: dict[tuple[str, ...], list[str]] = {}

    def run(overrides):
        given = tuple(override.format(**names) for override in overrides)
        if given not in done:
            first = ("training.max_steps=4",) if not any("max_steps" in o or "epochs=" in o for o in given) else ()
            try:
                finished = train(recipe, overrides=(f"output_dir={folder / f'out-{len(done)}'}", *first, *given))
                done[given] = outcome(finished)
            except MlxftError as error:
                done[given] = [f"{type(error).__name__}: {error.message}"]
        return done[given]

    run(())
    return run


def test_every_key_of_the_schema_is_flipped():
    assert sorted(schema_keys()) == sorted([*FLIPS, *ELSEWHERE])


def test_the_same_recipe_gives_the_same_outcome(folder, tiny_model, run_with):
    again = train(
        write_recipe(folder, tiny_model("llama")),
        overrides=(f"output_dir={folder / 'again'}", "training.max_steps=4"),
    )
    assert outcome(again) == run_with(())


@pytest.mark.parametrize("key", FLIPS)
def test_flipping_a_key_changes_the_run(run_with, key):
    flip, shared = FLIPS[key]
    assert run_with(shared) != run_with((*shared, *flip))


def test_named_files_and_weighted_sources_change_the_rows(folder, tiny_model):
    def rows_seen(section):
        text = write_recipe(folder, tiny_model("llama")).read_text()
        path = folder / "sources.toml"
        path.write_text(text.replace(f'path = "{folder / "rows.jsonl"}"', section))
        out = f"output_dir={folder / hashlib.sha256(section.encode()).hexdigest()[:8]}"
        run = train(path, overrides=(out, "training.epochs=1", "data.val_split=0.0", "eval.prompts=[]"))
        started = next(r.event for r in read_events(run.file(rundir.EVENTS)) if isinstance(r.event, RunStarted))
        steps = [r.event for r in read_events(run.file(rundir.EVENTS)) if isinstance(r.event, StepDone)]
        return started.train_rows, started.valid_rows, sum(step.num_targets for step in steps)

    rows, other = folder / "rows.jsonl", folder / "other.jsonl"
    train_rows, valid_rows, targets = rows_seen(f'train = "{rows}"')
    assert (train_rows, valid_rows) == (20, 0)
    assert rows_seen(f'train = "{rows}"\nvalid = "{other}"')[:2] == (20, 19)
    twice = rows_seen(f'sources = [{{ path = "{rows}", weight = 2.0 }}]')
    assert twice == (20, 0, 2 * targets)


def test_the_prompt_template_changes_what_a_base_model_sees(folder, tiny_model, tmp_path):
    from tiny import write_tiny_model

    base = write_tiny_model(tmp_path / "base", "llama", chat_template=False)
    rows = tmp_path / "pairs.jsonl"
    pairs = [{"prompt": f"Number {index}?", "completion": str(index * 3)} for index in range(12)]
    rows.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    recipe = write_recipe(tmp_path, base)
    shared = (f"data.path={rows}", "training.max_steps=1", "data.max_seq_length=400")
    runs = [
        train(recipe, overrides=(*shared, f"data.prompt_template={name}", f"output_dir={tmp_path / name}"))
        for name in ("alpaca", "none")
    ]
    assert outcome(runs[0]) != outcome(runs[1])


def test_gradient_checkpointing_recomputes_the_blocks(folder, tiny_model, monkeypatch):
    from mlx_finetune.train.start import trainable

    recomputed = []

    def watched(model, *, recomputes):
        recomputed.append(recomputes)
        return goes(model, recomputes=recomputes)

    goes = trainable.goes_block_by_block
    monkeypatch.setattr(trainable, "goes_block_by_block", watched)
    recipe = write_recipe(folder, tiny_model("llama"))
    for value in ("false", "true"):
        overrides = (f"training.gradient_checkpointing={value}", f"output_dir={folder / value}")
        train(recipe, overrides=(*overrides, "training.max_steps=1", "eval.prompts=[]"))
    assert recomputed == [False, True]


def test_limits_are_handed_to_mlx(monkeypatch):
    from mlx_finetune.hardware.limits import Machine, plan_limits
    from mlx_finetune.hardware.metal import apply_limits

    given: dict[str, int] = {}
    for name in ("set_memory_limit", "set_cache_limit", "set_wired_limit"):
        monkeypatch.setattr(mx, name, lambda size, name=name: given.__setitem__(name, size))
    monkeypatch.setattr(mx.metal, "is_available", lambda: True)
    fields = {"memory_limit": "8 GB", "wired_limit": "5 GB", "cache_limit": "2 GB"}
    machine = Machine(on_gpu=True, memory_bytes=16 * 10**9, working_set_bytes=11 * 10**9, chip="Apple M4")
    apply_limits(plan_limits(schema.HardwareRecipe.model_validate(fields), machine, 10**9, {}))
    assert given == {"set_memory_limit": 8 * 10**9, "set_cache_limit": 2 * 10**9, "set_wired_limit": 5 * 10**9}
