"""grpo: advantages and loss by hand, log-probabilities as sampled, a bandit that must be solved, exact resume."""

import json
import math
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from bandit import load, write_bandit, write_recipe
from mlx.utils import tree_flatten
from safetensors.numpy import load_file
from small_runs import course, train

from mlx_finetune import durable, rundir
from mlx_finetune.dataset.stream import Batch, Stream
from mlx_finetune.dataset.token_rows import rows_of
from mlx_finetune.dataset.tokens import Tokens
from mlx_finetune.errors import DataError, RecipeError
from mlx_finetune.events import Evaluated, RunFinished, StepDone
from mlx_finetune.hardware.planning import answering
from mlx_finetune.hardware.planning.answering import kept_answers_bytes
from mlx_finetune.journal import read_events
from mlx_finetune.model.adapters.lora import adapter_parameters, attach_adapter
from mlx_finetune.model.answers.batches import Request
from mlx_finetune.model.answers.sampling import Sampling
from mlx_finetune.model.inside.split import SplitModel
from mlx_finetune.model.tokens.tokenizer import load_tokenizer
from mlx_finetune.recipe.load import load_recipe
from mlx_finetune.recipe.schema import LoraRecipe, Recipe
from mlx_finetune.train.objective import Live, Living, Objective
from mlx_finetune.train.objectives.grpo.answers import Policy, Rollout
from mlx_finetune.train.objectives.grpo.policy import clipped_surrogate, grpo
from mlx_finetune.train.objectives.grpo.rollouts import Evaluations, Rollouts
from mlx_finetune.train.objectives.grpo.values import NUM_VALUES, advantages
from mlx_finetune.train.optim import AdamW
from mlx_finetune.train.ranks import Ranks
from mlx_finetune.train.step import Trainer


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


def trainer_of(folder: Path, how: str, **grpo_keys: object) -> Trainer:
    model = load(folder)
    attach_adapter(model, LoraRecipe.model_validate({"rank": 4}), seed=3)
    parameters = {name: value + 0.01 for name, value in sorted(adapter_parameters(model).items())}
    return Trainer(
        model,
        grpo(recipe_of(**grpo_keys)),
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
    return Living(load(tiny_model("llama")), tokenizer, recipe_of(), stream, rows_of(rows), 2, no_outputs)


def no_outputs(objective: Objective, batch: Batch) -> np.ndarray:
    """One update compares with nothing."""
    raise AssertionError(objective.name)


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


def test_a_long_prompt_is_read_once_for_all_answers_of_its_group(living, monkeypatch):
    """Short ones of equal length are read together in any case."""
    policy = Policy(living.model, living.tokenizer, living.recipe.grpo)
    shapes: list[tuple[int, ...]] = []
    model, call = type(living.model), type(living.model).__call__
    monkeypatch.setattr(model, "__call__", lambda *given, **more: shapes.append(given[1].shape) or call(*given, **more))
    prompt = tuple(range(5, 95)) * 2
    drawn = policy.draw([prompt] * 4, [1, 2, 3, 4])
    assert [shape for shape in shapes if shape[1] > 1] == [(1, len(prompt) - 1)]
    assert len({one.ids for one in drawn}) > 1


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


def test_padding_never_goes_past_learned_positions(living, tiny_model, monkeypatch):
    """MLX would read past the end of their table, and what stands there may be no number."""
    prompt = np.arange(500, dtype=np.int32) % 90 + 5
    row = Tokens(np.append(prompt, np.int32(7)), np.arange(501) == 500, "rows", 1)
    stream = Stream([row], batch_size=1, accumulation=1, packed_length=None, seed=1)
    recipe, model = recipe_of(max_tokens=300), load(tiny_model("gpt2"))
    long = replace(living, model=model, recipe=recipe, stream=stream, valid=rows_of([row]))
    policy = Policy(model, living.tokenizer, recipe.grpo)
    said = [Rollout(tuple(range(5, 5 + 13 - place)), "e" * place, 0.0) for place in range(4)]
    monkeypatch.setattr(policy, "draw", lambda prompts, seeds: said)
    monkeypatch.setattr(policy, "reward", lambda reference, answer: float(len(answer)))
    assert max(batch.tokens.shape[1] - 1 for batch in Rollouts(policy, long).share(0, 0, 1)) == 512


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
    assert sums[:2] / count == pytest.approx([0.75, 0.25])
    _, metrics = trainer.means(sums.tolist(), count)
    assert set(metrics) == {"reward", "answer_tokens"}  # an evaluation has no groups that could be left out


@pytest.mark.parametrize(
    ("reward", "answer", "says"), [("number", "twelve", "no number"), ("text", "...", "no word"), ("exact", "12", "")]
)
def test_answers_that_a_reward_cannot_compare_with_are_refused_before_anything_is_loaded(
    tmp_path, tiny_model, reward, answer, says
):
    rows = [{"prompt": "1 + 1 =", "completion": "2 two"}, {"prompt": "5 + 7 =", "completion": answer}]
    recipe = write_recipe(tmp_path, tiny_model("llama"), rows, steps=1)
    overrides = (f'grpo.rewards=["{reward}"]', "training.warmup_steps=0")
    if not says:
        train(recipe, overrides=overrides)
        return
    with pytest.raises(DataError, match=rf"rows\.jsonl:2: the answer says {says}, .* 2 of 4 rows") as caught:
        train(recipe, overrides=overrides)
    assert "grpo.rewards" in caught.value.hint


def test_the_two_armed_bandit_is_solved(tmp_path):
    model = write_bandit(tmp_path / "bandit")
    run = train(write_recipe(tmp_path, model, [{"prompt": "Pull:", "completion": "A"}], steps=24, rate=1e-3))
    events = [record.event for record in read_events(run.file(rundir.EVENTS))]
    rewards = [event.metrics["reward"] or 0.0 for event in events if isinstance(event, StepDone)]
    assert 0.2 < np.mean(rewards[:4]) < 0.8
    assert np.mean(rewards[-10:]) >= 0.95
    last = [event for event in events if isinstance(event, Evaluated)][-1]
    assert (last.loss, last.metrics["reward"], last.metrics["answer_tokens"]) == (0, 1, 1)
    (finished,) = [event for event in events if isinstance(event, RunFinished)]
    assert finished.planned.startswith("peak memory "), "it is compared with its plan"


#: A reward that some answers of a random model get and others do not, or nothing would be learned.
VARIED = 'grpo.rewards=["regex:[a-m]"]'


def norms(run: rundir.RunDir) -> list[float]:
    """The norm of the gradient of every step."""
    return [record[4] for record in course(run) if record[0] == "step"]


ROWS = [{"prompt": f"Say {number}:", "completion": "a"} for number in range(12)]


def test_a_killed_run_goes_on_bit_for_bit(tmp_path, tiny_model):
    keys = {"max_tokens": 3, "problems": 2, "steps": 4, "eval_steps": 2}
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    straight = train(write_recipe(tmp_path / "a", tiny_model("llama"), ROWS, **keys), overrides=(VARIED,))

    recipe = write_recipe(tmp_path / "b", tiny_model("llama"), ROWS, **keys)
    train(recipe, overrides=(VARIED,), kill_after=3)
    resumed = train(recipe, overrides=(VARIED,), resume=True)
    assert course(resumed) == course(straight)
    assert all(norm > 0 for norm in norms(straight))
    files = [load_file(run.path / "adapter_model.safetensors") for run in (straight, resumed)]
    assert all(np.array_equal(files[0][name], files[1][name]) for name in files[0])


E = 0.2
#: Ratio, advantage -> surrogate, its gradient for log pi (that of r A is r A), clipped or not.
SURROGATES = [
    (1.5, 0.75, 1.2 * 0.75, 0.0, True),
    (1.1, 0.75, 1.1 * 0.75, 1.1 * 0.75, False),
    (0.5, 0.75, 0.5 * 0.75, 0.5 * 0.75, False),
    (1.5, -0.25, -1.5 * 0.25, -1.5 * 0.25, False),
    (1.1, -0.25, -1.1 * 0.25, -1.1 * 0.25, False),
    (0.5, -0.25, -0.8 * 0.25, 0.0, True),
    (1.5, 0.0, 0.0, 0.0, False),
    (1.0, 0.75, 0.75, 0.75, False),
]


@pytest.mark.parametrize(("ratio", "advantage", "value", "slope", "is_clipped"), SURROGATES)
def test_the_surrogate_is_clipped_where_it_has_gone_too_far(ratio, advantage, value, slope, is_clipped):
    old, weight = mx.array([-1.3]), mx.array(advantage)
    new = old + math.log(ratio)
    found, clipped = clipped_surrogate(new, old, weight, E)
    assert found.item() == pytest.approx(value, abs=1e-6)
    assert clipped.item() is is_clipped
    plain = min(ratio * advantage, min(max(ratio, 1 - E), 1 + E) * advantage)
    assert value == pytest.approx(plain)
    gradient = mx.grad(lambda new: mx.sum(clipped_surrogate(new, old, weight, E)[0]))(new)
    assert gradient.item() == pytest.approx(slope, abs=1e-6)


def with_old(rows: list[Tokens], old: list[list[float]]) -> list[Tokens]:
    """The rows with log-probabilities of drawing for at most 5 tokens."""
    padded = [[*mine, *[0.0] * (5 - len(mine))] for mine in old]
    return [replace(row, values=(*row.values, *mine)) for row, mine in zip(rows, padded, strict=True)]


def log_probs_of(trainer: Trainer, row: Tokens) -> list[float]:
    logits = trainer._model(mx.array(row.ids[None, :-1]))[0].astype(mx.float32)
    logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    return [logprobs[place, int(row.ids[place + 1])].item() for place in range(1, len(row.ids) - 1)]


@pytest.mark.parametrize("how", ["graph", "block by block", pytest.param("compiled", marks=pytest.mark.slow)])
def test_the_clipped_loss_is_that_of_the_formula_on_every_path(tiny_model, how):
    trainer = trainer_of(tiny_model("llama"), how, updates=2)
    trainer.load_into_model()
    now = [log_probs_of(trainer, row) for row in ANSWERS]
    moved = [[0.0, -math.log(1.5), -0.05], [0.1], [math.log(2), 0.0, math.log(0.9), -0.5]]
    old = [[one + by for one, by in zip(mine, its, strict=True)] for mine, its in zip(now, moved, strict=True)]
    expected, clipped = 0.0, 0
    for row, its in zip(ANSWERS, moved, strict=True):
        for by in its:
            ratio, advantage = math.exp(-by), row.values[0]
            expected -= min(ratio * advantage, min(max(ratio, 0.8), 1.2) * advantage) / (8 * 5)
            clipped += (advantage > 0 and ratio > 1.2) or (advantage < 0 and ratio < 0.8)
    _, result = trainer.compute(batches_of(with_old(ANSWERS, old), 2), 0)
    assert result.loss == pytest.approx(expected, abs=1e-6)
    assert clipped == 2
    assert result.metrics["clipped_tokens"] == pytest.approx(2 / 8)
    assert "learned_tokens" not in result.metrics


def test_at_the_policy_that_drew_the_gradient_is_that_of_one_update(tiny_model):
    one = trainer_of(tiny_model("llama"), "block by block")
    gradients, _ = one.compute(batches_of(ANSWERS, 2), 0)
    old = [log_probs_of(one, row) for row in ANSWERS]
    several = trainer_of(tiny_model("llama"), "block by block", updates=2)
    again, result = several.compute(batches_of(with_old(ANSWERS, old), 2), 0)
    assert all(mx.allclose(gradients[name], again[name], atol=1e-6).item() for name in gradients)
    assert result.metrics["clipped_tokens"] == 0


def test_more_or_fewer_tokens_are_clipped(tiny_model):
    now = trainer_of(tiny_model("llama"), "graph")
    now.load_into_model()
    old = [[one + 0.15 for one in log_probs_of(now, row)] for row in ANSWERS]
    shares = []
    for clip in (0.1, 0.3):
        trainer = trainer_of(tiny_model("llama"), "graph", updates=2, clip=clip)
        _, result = trainer.compute(batches_of(with_old(ANSWERS, old), 2), 0)
        shares.append(result.metrics["clipped_tokens"])
    assert shares[0] > shares[1] == 0  # the ratio is 0.86


def test_an_evaluation_has_no_share_of_clipped_tokens(living, tiny_model, monkeypatch):
    policy = Policy(living.model, living.tokenizer, living.recipe.grpo)
    monkeypatch.setattr(policy, "reward", lambda reference, answer: 0.25)
    trainer = trainer_of(tiny_model("llama"), "graph", updates=2)
    sums, count = trainer.loss(Evaluations(policy, living)[0])
    loss, metrics = trainer.means(sums, count)
    assert loss == pytest.approx(0.75)
    assert set(metrics) == {"reward", "answer_tokens"}


@pytest.fixture
def several(living) -> Living:
    recipe = recipe_of(updates=3, rewards=("contains:e",))
    parameters = dict(tree_flatten(living.model.parameters()))
    trainer = Trainer(
        living.model,
        grpo(recipe),
        AdamW(0.9, 0.999, 1e-8, 0.0, frozenset()),
        parameters,
        seed=1,
        max_grad_norm=0.0,
        is_packed=False,
        is_compiled=False,
    )
    return replace(living, recipe=recipe, row_outputs=trainer.row_outputs)


def contents(batches: list[Batch]) -> list[tuple[object, object, tuple[int, ...], int]]:
    return [(one.tokens.tolist(), one.values.tolist(), one.rows, one.part) for one in batches]


def test_several_updates_learn_from_one_drawing(several):
    live = several_live(several)
    first = contents(live.stream.share(3, 0, 1))
    assert live.kept(3) == {}  # the next step draws
    assert contents(live.stream.share(4, 0, 1)) == contents(live.stream.share(5, 0, 1)) == first
    assert live.stream.rows(3) == live.stream.rows(5) == several.stream.rows(1)
    assert [live.stream.progress(step) for step in (3, 6)] == [several.stream.progress(step) for step in (1, 2)]
    assert live.stream.progress(3) < live.stream.progress(4) < live.stream.progress(6)
    assert contents(live.stream.share(6, 0, 1)) != first


def test_what_a_checkpoint_keeps_of_a_drawing_gives_its_batches_to_the_last_bit(several):
    live = several_live(several)
    drawn = contents(live.stream.share(3, 0, 1))
    kept = json.loads(json.dumps(live.kept(4)))
    resumed = several_live(several)
    resumed.restore(kept)
    several.model.update({"lm_head": {"weight": several.model["lm_head"]["weight"] * 0}})  # others would be drawn
    assert contents(resumed.stream.share(4, 0, 1)) == drawn
    two = [one for rank in (0, 1) for one in resumed.stream.share(5, rank, 2)]  # more ranks than drew it
    assert sorted(number for one in two for number in one.rows) == sorted(number for one in drawn for number in one[2])


def test_the_plan_has_room_for_what_a_checkpoint_keeps_of_a_drawing(several):
    live = several_live(several)
    drawn = live.stream.share(3, 0, 1)
    longest = max(len(several.stream.all_rows[number].ids) for number in range(len(several.stream.all_rows)))
    settings = several.recipe.grpo
    problems = len(several.stream.rows(1))
    recipe = several.recipe.model_copy(
        update={"training": several.recipe.training.model_copy(update={"batch_size": problems})}
    )
    kept = durable.encode_json(live.kept(4))
    assert drawn
    assert len(kept) <= kept_answers_bytes(recipe, longest + settings.max_tokens, 10_000)
    assert answering.NUM_VALUES == NUM_VALUES


class OneOfTwo(Ranks):
    """A rank that hears from the other what ``other`` says; what it says itself is in ``said``."""

    def __init__(self, rank: int, other: object = None) -> None:
        super().__init__(rank, 2)
        self.other, self.said = other, None

    def gather(self, value):
        self.said = json.loads(json.dumps(value))
        return [value, self.other] if self.rank == 0 else [self.other, value]


def test_every_rank_keeps_what_all_have_drawn(several):
    second = OneOfTwo(1, [])
    of_second = contents(several_live(replace(several, ranks=second)).stream.share(0, 1, 2))
    live = several_live(replace(several, ranks=OneOfTwo(0, second.said)))
    of_first = contents(live.stream.share(0, 0, 2))
    assert of_first != of_second
    resumed = several_live(several)
    resumed.restore(json.loads(json.dumps(live.kept(1))))
    assert [contents(resumed.stream.share(1, rank, 2)) for rank in (0, 1)] == [of_first, of_second]


def test_log_probabilities_of_drawing_are_those_of_the_training_forward(several):
    (*_, batch) = several_live(several).stream.share(0, 0, 1)
    split = SplitModel(several.model)
    for tokens, mask, values in zip(batch.tokens, batch.loss_mask, batch.values, strict=True):
        logits = split.logits(split.hidden(mx.array(tokens[None, :-1]), None)[0])
        logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        own = np.flatnonzero(mask[1:])
        assert values[NUM_VALUES : NUM_VALUES + len(own)] == pytest.approx(
            [logprobs[int(place), int(tokens[place + 1])].item() for place in own], abs=1e-4
        )
        assert not values[NUM_VALUES + len(own) :].any()


def several_live(living: Living) -> Live:
    live = grpo(living.recipe).live
    assert live is not None
    return live(living)


def test_room_is_made_for_a_checkpoint_with_the_answers_that_it_may_hold(tmp_path, tiny_model, monkeypatch):
    asked = []
    monkeypatch.setattr("mlx_finetune.train.checkpoints.contents.make_room", lambda _, size, **__: asked.append(size))
    recipe = write_recipe(tmp_path, tiny_model("llama"), ROWS, steps=2)
    for updates in (1, 2):
        train(recipe, overrides=(f"grpo.updates={updates}", VARIED, f"output_dir={tmp_path / str(updates)}"))
    assert asked[-1] > asked[0]


@pytest.mark.some(1)
@pytest.mark.parametrize("how", ["kill", "stop"])
def test_a_run_that_ends_between_two_updates_on_the_same_answers_goes_on_bit_for_bit(tmp_path, tiny_model, how):
    keys = {"max_tokens": 3, "problems": 2, "steps": 7, "eval_steps": 7}
    more = ("grpo.updates=3", VARIED, "training.learning_rate=0.05")
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    straight = train(write_recipe(tmp_path / "a", tiny_model("llama"), ROWS, **keys), overrides=more)
    recipe = write_recipe(tmp_path / "b", tiny_model("llama"), ROWS, **keys)
    train(recipe, overrides=more, kill_after=5 if how == "kill" else None, stop_after=5 if how == "stop" else None)
    run = train(recipe, overrides=more, resume=True)
    assert course(run) == course(straight)
    assert all(norm > 0 for norm in norms(straight))
    files = [load_file(one.path / "adapter_model.safetensors") for one in (straight, run)]
    assert all(np.array_equal(files[0][name], files[1][name]) for name in files[0])
    assert not (run.path / rundir.ROLLOUTS).exists()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("lora.dropout=0.1", "answers would be judged by another model"),
        ('grpo.rewards=["nummer"]', "there is no reward 'nummer'"),
        ("grpo.reward_weights=[1.0, 2.0]", "has 2 entries and `grpo.rewards` 1"),
        ("grpo.clip=0.3", "nothing is clipped"),
        ("data.packing=true", "answers are not packed"),
        ('task="sft"', "goes with the task grpo"),
    ],
)
def test_what_does_not_go_together_is_refused(tmp_path, override, message):
    path = write_recipe(tmp_path, Path("m"), [])
    with pytest.raises(RecipeError) as raised:
        load_recipe(path, (override,))
    assert any(message in problem.message for problem in raised.value.problems)


def test_little_capacity_is_the_default_and_a_rank_alone_means_what_it_means_in_other_tasks(tmp_path):
    path = write_recipe(tmp_path, Path("m"), [])
    assert load_recipe(path, ()).recipe.lora == LoraRecipe.model_validate({"rank": 4})
    path.write_text(path.read_text().replace("rank = 4\n", ""))
    assert load_recipe(path, ()).recipe.lora == LoraRecipe.model_validate({"rank": 8, "alpha": 16})
