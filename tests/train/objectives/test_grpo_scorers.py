"""Rewards by a verifier or a reward model: scores as in mlxft eval, a policy follows them, others are refused."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from bandit import write_bandit, write_recipe
from safetensors.numpy import load_file
from small_runs import course, train

from mlx_finetune import rundir
from mlx_finetune.app.eval.subject import open_subject
from mlx_finetune.app.planning.plan import make_plan
from mlx_finetune.app.sampling.folder import Sample, SampledProblem
from mlx_finetune.app.sampling.judge import score
from mlx_finetune.errors import DataError, MlxftError, RecipeError
from mlx_finetune.events import Evaluated, StepDone
from mlx_finetune.hardware.limits import Machine
from mlx_finetune.hardware.safer import Safer
from mlx_finetune.journal import read_events
from mlx_finetune.model.heads.files import head_file, read_head
from mlx_finetune.model.heads.score import ScoreHead
from mlx_finetune.model.heads.scorer import Scorer, find_scorers
from mlx_finetune.recipe.load import load_recipe
from mlx_finetune.rundir import RunDir
from mlx_finetune.train import measure
from mlx_finetune.train.signals import StopRequest
from mlx_finetune.train.start.prepare import prepare

RECIPE = """
model = "{model}"
task = "{task}"
output_dir = "{output}"
seed = 5
[lora]
rank = 4
[data]
path = "{data}"
val_split = 0.0
test_split = 0.0
max_seq_length = 64
[training]
max_steps = 24
batch_size = 8
learning_rate = 1e-2
"""
PROMPT = "Pull:"
B_IS_RIGHT = [{"prompt": PROMPT, "completion": text, "label": text == "B"} for text in "AB"] * 8
B_IS_BETTER = [{"prompt": PROMPT, "chosen": "B", "rejected": "A"}] * 8


def scoring_run(folder: Path, model: Path, task: str, rows: Sequence[object]) -> RunDir:
    folder.mkdir(exist_ok=True)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = folder / f"{task}.toml"
    recipe.write_text(RECIPE.format(model=model, task=task, output=folder / task, data=folder / "rows.jsonl"))
    return train(recipe)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, tiny_model: Callable[..., Path]) -> dict[str, RunDir]:
    """A verifier and a reward model of a model with a chat template; the policy has none."""
    folder = tmp_path_factory.mktemp("scorers")
    rows = {"verifier": B_IS_RIGHT, "reward": B_IS_BETTER}
    return {task: scoring_run(folder / task, tiny_model("llama"), task, rows[task]) for task in rows}


def scorer_of(run: RunDir, kind: str) -> Scorer:
    (found,) = find_scorers([f"{kind}:{run.path}", "number"], base=run.path, report=lambda _: None)
    return found.load(compute_dtype="float32", on_gpu=False)


@pytest.mark.parametrize("kind", ["verifier", "reward"])
def test_scores_are_those_of_an_evaluation(runs, kind):
    answers = ["A", "B", "neither of them"]
    samples = tuple(
        Sample(0, place, "r:1", PROMPT, "B", text, False, text, "stop", 1, 0.0, 1.0)
        for place, text in enumerate(answers)
    )
    subject = open_subject(str(runs[kind].path), base=runs[kind].path, report=lambda _: None)
    ((expected,), _) = score(subject, [SampledProblem(0, "r:1", PROMPT, "B", None, samples)], lambda *_: None)
    asked = [(({"role": "user", "content": PROMPT},), text) for text in answers]
    found = scorer_of(runs[kind], kind).scores(asked)
    if kind == "verifier":
        expected = [1 / (1 + math.exp(-one)) for one in expected]
        assert found[1] > 0.7 > 0.3 > found[0]
    assert found == pytest.approx(expected, abs=1e-5)
    assert found[1] > found[0]


def test_what_the_template_cannot_hold_is_worth_the_least(runs):
    prompt = ({"role": "user", "content": PROMPT},)
    asked = [(prompt, "B"), (prompt, "B<|im_end|>"), (prompt, "A")]
    assert scorer_of(runs["verifier"], "verifier").scores(asked)[1] == 0
    by_reward = scorer_of(runs["reward"], "reward").scores(asked)
    assert by_reward[1] == min(0, by_reward[0], by_reward[2])


@pytest.fixture(scope="module")
def bandit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bandit(tmp_path_factory.mktemp("bandit"))


ROWS = [{"prompt": PROMPT, "completion": "A"}]  # its reference says A, and nobody looks at it


def rewarded(*names: str) -> str:
    return f"grpo.rewards={json.dumps(list(names))}"


def test_the_policy_comes_to_prefer_what_a_verifier_scores_high(tmp_path, bandit, runs):
    path = write_recipe(tmp_path, bandit, ROWS, steps=20, rate=1e-3)
    run = train(path, overrides=(rewarded(f"verifier:{runs['verifier'].path}"),))
    events = [record.event for record in read_events(run.file(rundir.EVENTS))]
    rewards = [event.metrics["reward"] or 0.0 for event in events if isinstance(event, StepDone)]
    assert rewards[0] < 0.6
    by_verifier = scorer_of(runs["verifier"], "verifier").scores([(({"role": "user", "content": PROMPT},), "B")])[0]
    assert np.mean(rewards[-5:]) == pytest.approx(by_verifier, abs=1e-3)
    last = [event for event in events if isinstance(event, Evaluated)][-1]
    assert last.loss == pytest.approx(1 - (last.metrics["reward"] or 0.0), abs=1e-6)
    assert last.metrics["reward"] == pytest.approx(by_verifier, abs=1e-3)


def test_a_verifier_that_has_changed_is_not_gone_on_with(tmp_path, bandit, tiny_model):
    verifier = scoring_run(tmp_path / "v", tiny_model("llama"), "verifier", B_IS_RIGHT)
    path = write_recipe(tmp_path, bandit, ROWS, steps=4)
    reward = rewarded(f"verifier:{verifier.path}")
    straight = course(train(path, overrides=(reward, f"output_dir={tmp_path / 'straight'}")))
    train(path, overrides=(reward,), kill_after=3)
    assert course(train(path, overrides=(reward,), resume=True)) == straight
    killed = (reward, f"output_dir={tmp_path / 'killed'}")
    train(path, overrides=killed, kill_after=3)
    found = read_head(verifier.path)
    assert found is not None
    (verifier.path / rundir.HEAD_WEIGHTS).write_bytes(head_file(ScoreHead(found[1] * 2, found[0])))
    with pytest.raises(MlxftError, match=r"a verifier or reward run of grpo\.rewards is another"):
        train(path, overrides=killed, resume=True)


def test_a_scorer_is_in_the_plan(tmp_path, bandit, runs):
    path = write_recipe(tmp_path, bandit, ROWS)
    machine = Machine(False, 64 * 10**9, 48 * 10**9, "a CPU")
    plain = make_plan(load_recipe(path, ()).recipe, base=tmp_path, machine=machine)
    scored = load_recipe(path, (rewarded(f"verifier:{runs['verifier'].path}"),)).recipe
    more = make_plan(scored, base=tmp_path, machine=machine).resolved.memory.weights - plain.resolved.memory.weights
    saved = load_file(runs["verifier"].path / rundir.MLX_WEIGHTS)
    assert more == plain.resolved.memory.weights + sum(value.nbytes for value in saved.values())  # of one architecture


def test_a_plan_times_the_scores_of_a_short_and_of_the_longest_answer(tmp_path, bandit, runs, monkeypatch):
    monkeypatch.setenv("MLXFT_CACHE", str(tmp_path / "cache"))
    rows = [{"prompt": f"Pull {number}:", "completion": "A"} for number in range(10)]
    loaded = load_recipe(
        write_recipe(tmp_path, bandit, rows),
        (rewarded(f"verifier:{runs['verifier'].path}", "exact"), "grpo.max_tokens=40"),
    )
    stop = StopRequest()
    prepared = prepare(
        loaded, base=tmp_path, decided=None, total_steps=None, safer=Safer(), emit=lambda _: None, stop=stop
    )
    assert prepared.score is not None
    short, longest = measure._time_scores(prepared) or (0.0, 0.0)
    assert 0 < short <= longest
    asked: list[tuple[str, int, int]] = []
    now = [0.0]

    def score(reward: str, answers: Sequence[tuple[str, str]]) -> list[float]:
        asked.append((reward, len(answers), len(answers[0][1])))
        now[0] += len(answers) * (0.1 if answers[0][1] == "1" else 0.5)
        return [0.0] * len(answers)

    monkeypatch.setattr(measure.time, "perf_counter", lambda: now[0])
    assert measure._time_scores(replace(prepared, score=score)) == pytest.approx((0.1, 0.5))
    assert [count for _, count, _ in asked] == [1, 6, 6], "as many as three seconds allow"
    assert {reward.partition(":")[0] for reward, _, _ in asked} == {"verifier"}, "a rule takes no time"
    assert asked[0][2] > 30
    assert measure._time_scores(replace(prepared, score=None)) is None


def test_a_problem_that_the_scorer_cannot_read_is_refused_by_its_line(tmp_path, bandit, runs):
    rows = [*ROWS, {"prompt": "Pull harder, please: " * 3, "completion": "A"}]
    path = write_recipe(tmp_path, bandit, rows)
    path.write_text(path.read_text().replace("max_seq_length = 64", "max_seq_length = 500"))
    with pytest.raises(DataError, match=r"rows\.jsonl:2: verifier:.* cannot read this problem: .* max_seq_length = 64"):
        train(path, overrides=(rewarded(f"verifier:{runs['verifier'].path}"),))


def refusal(tmp_path: Path, bandit: Path, reward: str) -> MlxftError:
    with pytest.raises(MlxftError) as raised:
        train(write_recipe(tmp_path, bandit, ROWS), overrides=(rewarded(reward),))
    return raised.value


def test_what_is_no_scorer_is_refused_in_one_sentence(tmp_path, bandit, runs):
    missing = refusal(tmp_path, bandit, "verifier:nowhere")
    assert "grpo.rewards names verifier:nowhere: 'nowhere' is not a run folder" in missing.message
    other = refusal(tmp_path, bandit, f"reward:{runs['verifier'].path}")
    assert other.message.endswith("is a run of task 'verifier'")
    assert other.hint == f"write verifier:{runs['verifier'].path}"
    talker = train(write_recipe(tmp_path, bandit, ROWS, steps=1), overrides=(f"output_dir={tmp_path / 'talker'}",))
    assert refusal(tmp_path, bandit, f"verifier:{talker.path}").message.endswith("is a run of task 'grpo'")
    info = json.loads(runs["verifier"].file(rundir.RUN_INFO).read_bytes())
    unfinished = RunDir(tmp_path / "unfinished")
    unfinished.path.mkdir()
    unfinished.file(rundir.RECIPE).write_text("")
    unfinished.file(rundir.RUN_INFO).write_text(json.dumps(info | {"status": "stopped"}))
    assert "has not finished" in refusal(tmp_path, bandit, f"verifier:{unfinished.path}").message


def test_a_scorer_without_a_name_is_a_slip_in_the_recipe(tmp_path, bandit):
    with pytest.raises(RecipeError) as raised:
        load_recipe(write_recipe(tmp_path, bandit, ROWS), (rewarded("verifier"),))
    assert any("needs a run behind a colon" in problem.message for problem in raised.value.problems)
