"""grpo: advantages and loss by hand, log-probabilities as sampled, a bandit that must be solved, exact resume."""

import json
import math
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from small_runs import course, train
from tiny import write_tiny_model

from mlx_finetune import rundir
from mlx_finetune.dataset.stream import Batch, Stream
from mlx_finetune.dataset.token_rows import rows_of
from mlx_finetune.dataset.tokens import Tokens
from mlx_finetune.errors import RecipeError
from mlx_finetune.events import Evaluated, StepDone
from mlx_finetune.journal import read_events
from mlx_finetune.model.adapters.lora import adapter_parameters, attach_adapter
from mlx_finetune.model.answers.batches import Request
from mlx_finetune.model.answers.sampling import Sampling
from mlx_finetune.model.inside.split import SplitModel
from mlx_finetune.model.load import load_model
from mlx_finetune.model.sources.fetch import LocalModel
from mlx_finetune.model.tokens.tokenizer import load_tokenizer
from mlx_finetune.recipe.load import load_recipe
from mlx_finetune.recipe.schema import LoraRecipe, Recipe
from mlx_finetune.train.objective import Living
from mlx_finetune.train.objectives.grpo.policy import grpo
from mlx_finetune.train.objectives.grpo.rollouts import Evaluations, Policy, Rollouts
from mlx_finetune.train.objectives.grpo.values import NUM_VALUES, advantages
from mlx_finetune.train.optim import AdamW
from mlx_finetune.train.step import Trainer

RECIPE = """
model = "{model}"
task = "grpo"
output_dir = "{output}"
seed = 5
[lora]
rank = 4
[grpo]
rewards = ["exact"]
max_tokens = {max_tokens}
group_size = 8
[data]
train = "{data}"
valid = "{data}"
prompt_template = "none"
max_seq_length = 64
[training]
max_steps = {steps}
batch_size = {problems}
learning_rate = {rate}
warmup_steps = 0
lr_scheduler = "constant"
eval_steps = {eval_steps}
save_steps = 2
"""


def load(folder: Path):
    local = LocalModel("tiny", folder, "folder", None, "", None)
    return load_model(local, quantize=None, compute_dtype="float32", on_gpu=False).model


def recipe_of(**grpo_keys: object) -> Recipe:
    sections = {"rewards": ("exact",), "max_tokens": 5, "group_size": 4} | grpo_keys
    return Recipe.model_validate(
        {
            "model": "m",
            "output_dir": "o",
            "task": "grpo",
            "lora": {},
            "grpo": sections,
            "data": {"path": "-"},
            "seed": 3,
        }
    )


def write_recipe(folder: Path, model: Path, rows: list[dict[str, str]], **keys: object) -> Path:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = folder / "recipe.toml"
    values = {
        "output": folder / "run",
        "data": folder / "rows.jsonl",
        "max_tokens": 1,
        "problems": 1,
        "rate": 1e-2,
        "steps": 4,
    }
    path.write_text(RECIPE.format(**({"model": model, "eval_steps": 20} | values | keys)))
    return path


def test_advantages_are_rewards_above_the_mean_of_their_group():
    rewards = (1, 0, 0, 1, 0, 0, 0, 0)
    assert advantages(rewards, divide_by_sd=False) == [0.75, -0.25, -0.25, 0.75, -0.25, -0.25, -0.25, -0.25]
    assert advantages(rewards, divide_by_sd=True)[:2] == pytest.approx([1.73165, -0.57722], abs=1e-5)
    assert advantages([1, 1, 1], divide_by_sd=True) == [0, 0, 0]


def answered(ids: list[int], num_prompt: int, advantage: float, num_answers: float = 0) -> Tokens:
    values = [0.0] * NUM_VALUES
    values[:2] = advantage, num_answers
    numbers = np.array(ids, np.int32)
    return Tokens(numbers, np.arange(len(ids)) >= num_prompt, "rows", 1, values=tuple(values))


ANSWERS = [
    answered([5, 6, 7, 8, 9], 2, 0.75, 8),
    answered([5, 6, 9], 2, -0.25),
    answered([5, 6, 4, 4, 4, 4], 2, -0.5),
]


def trainer_of(folder: Path, how: str) -> Trainer:
    model = load(folder)
    attach_adapter(model, LoraRecipe.model_validate({"rank": 4}), seed=3)
    parameters = {name: value + 0.01 for name, value in sorted(adapter_parameters(model).items())}
    return Trainer(
        model,
        grpo(recipe_of()),
        AdamW(0.9, 0.999, 1e-8, 0.0, frozenset()),
        parameters,
        seed=1,
        max_grad_norm=0.0,
        is_packed=False,
        is_compiled=how == "compiled",
        is_blockwise=how == "block by block",
        split=SplitModel(model),
    )


def batches_of(rows: list[Tokens], size: int) -> list[Batch]:
    stream = Stream(rows, batch_size=len(rows), accumulation=1, packed_length=None, seed=1, microbatch=size)
    return stream.microbatches(0)


@pytest.mark.parametrize("how", ["graph", "block by block", pytest.param("compiled", marks=pytest.mark.slow)])
def test_the_loss_is_that_of_the_formula_on_every_path(tiny_model, how):
    trainer = trainer_of(tiny_model("llama"), how)
    _, result = trainer.compute(batches_of(ANSWERS, 2), 0)
    trainer.load_into_model()
    expected = 0.0
    for row in ANSWERS:
        logits = trainer._model(mx.array(row.ids[None, :-1]))[0].astype(mx.float32)
        logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        picked = [logprobs[place, int(row.ids[place + 1])].item() for place in range(1, len(row.ids) - 1)]
        expected -= row.values[0] * sum(picked) / (8 * 5)
    assert result.loss == pytest.approx(expected, abs=1e-6)
    assert result.num_targets == 8


def test_gradients_do_not_depend_on_how_a_step_is_cut(tiny_model):
    whole, _ = trainer_of(tiny_model("llama"), "graph").compute(batches_of(ANSWERS, 3), 0)
    cut, _ = trainer_of(tiny_model("llama"), "block by block").compute(batches_of(ANSWERS, 1), 0)
    assert all(mx.allclose(whole[name], cut[name], atol=1e-6).item() for name in whole)
    assert any(mx.any(mx.abs(value) > 1e-4).item() for value in whole.values())


@pytest.fixture
def living(tiny_model) -> Living:
    rows = [
        Tokens(np.array([5, 6, number, 40, 41], np.int32), np.arange(5) > 2, "rows", number) for number in range(50, 62)
    ]
    stream = Stream(rows, batch_size=3, accumulation=1, packed_length=None, seed=1, microbatch=2)
    tokenizer = load_tokenizer(tiny_model("llama"))
    return Living(load(tiny_model("llama")), tokenizer, recipe_of(), stream, rows_of(rows), 2)


def test_log_probabilities_of_drawn_answers_are_those_of_the_training_forward(living):
    policy = Policy(living.model, living.tokenizer, living.recipe.grpo)
    sampling = Sampling(temperature=1.0, top_p=1.0, top_k=0, max_tokens=5, seed=0)
    prompts = [tuple(range(5, 8 + number)) for number in range(4)]
    said = policy.say([Request(prompt, sampling, num_logprobs=1) for prompt in prompts])
    for prompt, one in zip(prompts, said, strict=True):
        ids = mx.array([[*prompt, *one.ids]])
        split = SplitModel(living.model)
        logits = split.logits(split.hidden(ids[:, :-1], None)[0])  # (T, V)
        logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        again = sum(logprobs[len(prompt) - 1 + place, token].item() for place, token in enumerate(one.ids))
        assert again == pytest.approx(one.logprob, abs=1e-3)
        assert len(one.ids) > 1


def test_a_step_draws_a_group_to_each_problem_and_the_same_again(living, monkeypatch):
    policy = Policy(living.model, living.tokenizer, living.recipe.grpo)
    monkeypatch.setattr(policy, "reward", lambda reference, answer: float(len(answer) % 2))
    rollouts = Rollouts(policy, living)
    drawn, again = rollouts.share(4, 0, 1), rollouts.share(4, 0, 1)
    assert [batch.tokens.tolist() for batch in drawn] == [batch.tokens.tolist() for batch in again]
    assert [batch.tokens.tolist() for batch in rollouts.share(5, 0, 1)] != [batch.tokens.tolist() for batch in drawn]
    values = np.concatenate([batch.values for batch in drawn])
    assert values[:, 1].sum() == 3 * 4  # answers, those of dropped groups included
    assert values[:, 0].sum() == pytest.approx(0)
    assert len(values) + values[:, 4].sum() == 12
    assert {row for batch in drawn for row in batch.rows} <= set(rollouts.rows(4))
    assert not rollouts.can_read_ahead


def test_groups_of_equal_rewards_are_dropped_and_counted(living, monkeypatch):
    policy = Policy(living.model, living.tokenizer, living.recipe.grpo)
    monkeypatch.setattr(policy, "reward", lambda reference, answer: 1.0)
    (batch,) = Rollouts(policy, living).share(0, 0, 1)
    assert len(batch.rows) == 1  # one answer stands for the step, and teaches nothing
    advantage, num_answers, missed, reward, dropped, tokens = batch.values[0]
    assert (advantage, num_answers, missed, reward, dropped) == (0, 12, 0, 12, 12)
    assert 12 <= tokens <= 60


@pytest.mark.parametrize(
    "keys",
    [
        {"group_size": 3},
        {"max_tokens": 2},
        {"temperature": 0.3},
        {"divide_by_sd": True},
        {"rewards": ("max_length:3",)},
        {"rewards": ("contains:e", "regex:[a-m]"), "reward_weights": (1.0, 0.25)},
    ],
)
def test_every_key_changes_what_is_learned(living, keys):
    def learned(recipe: Recipe) -> list[list[object]]:
        settings = recipe.grpo
        policy = Policy(living.model, living.tokenizer, settings)
        batches = Rollouts(policy, replace(living, recipe=recipe)).share(1, 0, 1)
        return [[batch.tokens.tolist(), batch.values[:, 0].tolist()] for batch in batches]

    plain = {"rewards": ("contains:e",)}
    assert learned(recipe_of(**plain)) == learned(recipe_of(**plain))
    assert learned(recipe_of(**plain)) != learned(recipe_of(**(plain | keys)))


def test_an_evaluation_is_the_reward_that_the_likeliest_answers_miss(living, tiny_model, monkeypatch):
    policy = Policy(living.model, living.tokenizer, living.recipe.grpo)
    monkeypatch.setattr(policy, "reward", lambda reference, answer: 0.25)
    trainer = trainer_of(tiny_model("llama"), "graph")
    sums, count = np.zeros(4), 0
    for batch in Evaluations(policy, living):
        found, number = trainer.loss(batch)
        sums, count = sums + found, count + number
    assert count == 12
    assert sums[:3] / count == pytest.approx([0.75, 0.25, 0])


def write_bandit(folder: Path) -> Path:
    """A model that says A or B to the prompt of the bandit, each about half of the time, and hardly anything else."""
    write_tiny_model(folder, "llama", chat_template=False)
    tokenizer = load_tokenizer(folder)
    prompt = tokenizer.encode("Pull:").ids
    (a,), (b,) = tokenizer.encode("A").ids, tokenizer.encode("B").ids
    model = load(folder)
    state = np.array(SplitModel(model).hidden(mx.array([prompt]), None)[0, -1], np.float64)
    along = state / (state @ state)
    across = np.random.default_rng(0).normal(size=len(state))
    across -= along * (across @ state)
    weights = load_file(folder / "model.safetensors")
    head = np.tile(-6 * along, (len(weights["lm_head.weight"]), 1))
    head[a], head[b] = 6 * along + 0.2 * across, 6 * along - 0.2 * across
    save_file(weights | {"lm_head.weight": head.astype(np.float32)}, folder / "model.safetensors", {"format": "pt"})
    return folder


def test_the_two_armed_bandit_is_solved(tmp_path):
    model = write_bandit(tmp_path / "bandit")
    run = train(write_recipe(tmp_path, model, [{"prompt": "Pull:", "completion": "A"}], steps=24, rate=1e-3))
    events = [record.event for record in read_events(run.file(rundir.EVENTS))]
    rewards = [event.metrics["reward"] or 0.0 for event in events if isinstance(event, StepDone)]
    assert 0.2 < np.mean(rewards[:4]) < 0.8
    assert np.mean(rewards[-10:]) >= 0.95
    last = [event for event in events if isinstance(event, Evaluated)][-1]
    assert (last.loss, last.metrics["reward"], last.metrics["answer_tokens"]) == (0, 1, 1)


ROWS = [{"prompt": f"Say {number}:", "completion": "a"} for number in range(12)]


def test_a_killed_run_goes_on_bit_for_bit(tmp_path, tiny_model):
    keys = {"max_tokens": 3, "problems": 2, "steps": 4, "eval_steps": 2}
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    straight = train(write_recipe(tmp_path / "a", tiny_model("llama"), ROWS, **keys))

    recipe = write_recipe(tmp_path / "b", tiny_model("llama"), ROWS, **keys)
    train(recipe, kill_after=3)
    resumed = train(recipe, resume=True)
    assert course(resumed) == course(straight)
    files = [load_file(run.path / "adapter_model.safetensors") for run in (straight, resumed)]
    assert all(np.array_equal(files[0][name], files[1][name]) for name in files[0])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("lora.dropout=0.1", "answers would be judged by another model"),
        ('grpo.rewards=["nummer"]', "there is no reward 'nummer'"),
        ("grpo.reward_weights=[1.0, 2.0]", "has 2 entries and `grpo.rewards` 1"),
        ("data.packing=true", "answers are not packed"),
        ('task="sft"', "goes with the task grpo"),
    ],
)
def test_what_does_not_go_together_is_refused(tmp_path, override, message):
    path = write_recipe(tmp_path, Path("m"), [])
    with pytest.raises(RecipeError) as raised:
        load_recipe(path, (override,))
    assert any(message in problem.message for problem in raised.value.problems)


def test_little_capacity_is_the_default(tmp_path):
    path = write_recipe(tmp_path, Path("m"), [])
    path.write_text(path.read_text().replace("rank = 4\n", ""))
    lora = load_recipe(path, ()).recipe.lora
    assert lora is not None
    assert (lora.rank, lora.alpha) == (8, 16)
    assert math.isclose(lora.scale, 2)
