"""A tiny verifier that has learned which answer is right picks it, and what it picked is kept in its run."""

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from small_runs import train

from mlx_finetune import rundir
from mlx_finetune.app.eval.subject import Subject, open_subject
from mlx_finetune.app.sampling.folder import FORMAT_VERSION, LINES, SETTINGS, Sample
from mlx_finetune.app.sampling.judge import Judged, judge
from mlx_finetune.errors import RunError, UsageError
from mlx_finetune.recipe.schema import Recipe

RECIPE = """
model = "{model}"
task = "verifier"
output_dir = "{output}"
[lora]
rank = 4
[data]
path = "{data}"
prompt_template = "{template}"
max_seq_length = 64
[training]
max_steps = 40
batch_size = 8
learning_rate = 1e-2
"""
COLOURS = ("red", "blue", "green", "grey")  # red is right


def write_samples(folder: Path, num_problems: int = 30, first: int = 500) -> Path:
    """Four answers to each problem, the right one in turn at every place; the greedy one is wrong.

    The verifier has learned from the questions about boxes below 40; here these have a space more.
    """
    folder.mkdir(parents=True)
    settings = {"format_version": FORMAT_VERSION, "name": "m", "rule": "exact", "k": 4, "num_problems": num_problems}
    (folder / SETTINGS).write_text(json.dumps(settings))
    with (folder / LINES).open("w") as file:
        for number in range(num_problems):
            answers = ["blue", *(COLOURS[(place + number) % 4] for place in range(4))]
            for place, text in enumerate(answers):
                prompt = f"Colour of {'' if number + first >= 40 else ' '}box {number + first}?"
                one = Sample(
                    number, place, f"r:{number}", prompt, "red", text, text == "red", text, "stop", 2, -1.0, 0.8
                )
                file.write(json.dumps(asdict(one)) + "\n")
    return folder


@pytest.fixture(scope="module", params=["auto", "none"])
def verifier(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tiny_model: Callable[..., Path]
) -> Subject:
    """A run of the chat template or of plainly joined texts."""
    folder = tmp_path_factory.mktemp(request.param)
    rows = [
        {"prompt": f"Colour of box {number}?", "completion": text, "label": text == "red"}
        for number in range(40)
        for text in (COLOURS[0], COLOURS[1 + number % 3])
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = folder / "recipe.toml"
    keys = {"model": tiny_model("llama"), "output": folder / "run", "data": folder / "rows.jsonl"}
    recipe.write_text(RECIPE.format(**keys, template=request.param))
    train(recipe)
    return open_subject(str(folder / "run"), base=folder, report=lambda _: None)


def judged_of(verifier: Subject, samples: Path) -> Judged:
    return judge(verifier, samples, out=None, step=lambda *_: None)


@pytest.mark.some(1)
def test_its_pick_is_right_where_a_random_one_seldom_is(verifier: Subject, tmp_path: Path):
    judged = judged_of(verifier, write_samples(tmp_path / "samples"))
    ways = {one.name: one.value for one in judged.found.ways}
    assert ways == {"greedy": 0, "random": 0.25, "majority": pytest.approx(0.25, abs=0.02), "verifier": 1, "oracle": 1}
    difference = judged.found.compared[0]
    assert (difference.first, difference.second, difference.value, difference.is_sure) == (
        "verifier",
        "random",
        0.75,
        True,
    )
    assert judged.found.told_apart is not None
    assert judged.found.told_apart.value == 1
    assert judged.unscored == {}


def test_what_was_found_is_kept_in_its_run_and_never_replaced_by_another(verifier: Subject, tmp_path: Path):
    samples = write_samples(tmp_path / "kept")
    assert verifier.run is not None
    folder = verifier.run.file(rundir.BEST_OF)
    first = judged_of(verifier, samples)
    again = judged_of(verifier, samples)
    assert first.path == again.path == folder / "kept"
    saved = json.loads((folder / "kept.json").read_text())
    assert saved["ways"][3]["name"] == "verifier"
    scores = [json.loads(line) for line in (folder / "kept.scores.jsonl").read_text().splitlines()]
    assert len(scores) == 120
    right, wrong = ([one["score"] for one in scores if one["right"] is side] for side in (True, False))
    assert sum(right) / len(right) > sum(wrong) / len(wrong)
    other = judged_of(verifier, write_samples(tmp_path / "elsewhere" / "kept", num_problems=12))
    assert other.path == folder / "kept-2"
    assert json.loads((folder / "kept.json").read_text()) == saved


def test_answers_without_a_score_are_counted_by_the_reason(verifier: Subject, tmp_path: Path):
    samples = write_samples(tmp_path / "samples", num_problems=12)
    path = samples / LINES
    answers = [json.loads(line) for line in path.read_text().splitlines()]  # five of each problem, the first is greedy
    for number, text in enumerate(["so " * 400, "no " * 500, "a<|im_end|>b"]):
        for place in (1, 2):
            answers[5 * number + place]["completion"] = text
    path.write_text("".join(json.dumps(answer) + "\n" for answer in answers))
    judged = judged_of(verifier, samples)
    limit = verifier.data.max_seq_length
    markers = [reason for reason in judged.unscored if "control marker '<|im_end|>'" in reason]
    assert judged.unscored == {
        f"longer than the model's max_seq_length = {limit}": 4,
        markers[0]: 2,
    }


def test_a_model_without_a_verdict_is_refused(place: Path, tmp_path: Path):
    subject = open_subject("keeper", base=place, report=lambda _: None)
    with pytest.raises(UsageError, match="gives no verdict"):
        judge(subject, write_samples(tmp_path / "samples"), out=None, step=lambda *_: None)


def test_a_folder_without_samples_is_refused(verifier: Subject, tmp_path: Path):
    with pytest.raises(RunError, match="holds no sampled answers"):
        judge(verifier, tmp_path, out=None, step=lambda *_: None)


def test_a_reward_model_is_called_so_in_all_that_is_kept_and_one_kept_before_is_renewed(
    verifier: Subject, tmp_path: Path
):
    assert verifier.recipe is not None
    reward = replace(verifier, recipe=verifier.recipe.model_copy(update={"task": "reward"}))
    samples, out = write_samples(tmp_path / "s", 12), tmp_path / "out"
    judged = judge(reward, samples, out=out, step=lambda *_: None)
    kept = json.loads((out / "s.json").read_text())
    assert (kept["scorer"], kept["ways"][3]["name"], "verifier" in kept) == ("reward model", "reward model", False)
    assert kept["reward_model"] == verifier.opened.name
    assert {key.removeprefix("reward_model_") for key in kept if key.startswith("reward_model_")} == set(
        reward.hashes()
    )
    before = {name.replace("reward_model", "verifier", 1): value for name, value in kept.items()}
    (out / "s.json").write_text(json.dumps(before))
    assert judge(reward, samples, out=out, step=lambda *_: None).path == judged.path


def test_a_sampling_that_was_interrupted_is_refused_with_how_to_go_on(verifier: Subject, tmp_path: Path):
    samples = write_samples(tmp_path / "samples", num_problems=12)
    settings = json.loads((samples / SETTINGS).read_text())
    (samples / SETTINGS).write_text(json.dumps(settings | {"num_problems": 30}))
    with pytest.raises(RunError, match="12 of 30 problems are there") as refused:
        judge(verifier, samples, out=tmp_path / "out", step=lambda *_: None)
    assert f"--out {samples}" in refused.value.hint
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("first", "num_problems", "num_measured", "num_learned", "remark"),
    [
        (500, 12, 12, 0, ""),
        (0, 30, 30, 30, "30 of 30 problems are among the rows that taught this verifier: these figures flatter it"),
        (39, 11, 10, 1, "1 of 11 problems is among the rows that taught this verifier and left out"),
        (39, 10, 10, 1, "1 of 10 problems is among the rows that taught this verifier: these figures flatter it"),
    ],
)
def test_problems_that_taught_the_verifier_are_counted_and_left_out_where_others_are_enough(
    verifier: Subject, tmp_path: Path, first: int, num_problems: int, num_measured: int, num_learned: int, remark: str
):
    out = tmp_path / "out"
    judged = judge(verifier, write_samples(tmp_path / "s", num_problems, first), out=out, step=lambda *_: None)
    assert judged.found.num_problems == num_measured
    assert judged.remark.startswith(remark)
    assert bool(judged.remark) is bool(remark)
    saved = json.loads((out / "s.json").read_text())
    assert (saved["num_learned"], saved["num_sampled"], saved["remark"]) == (num_learned, num_problems, judged.remark)
    assert len((out / "s.scores.jsonl").read_text().splitlines()) == 4 * num_measured


def test_problems_that_taught_what_the_verifier_began_as_are_left_out_too(verifier: Subject, tmp_path: Path):
    samples = write_samples(tmp_path / "s", 30, 500)
    asked = [{"prompt": f"Colour of box {number}?", "completion": "red"} for number in range(500, 504)]
    (tmp_path / "taught.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    data = {"path": str(tmp_path / "taught.jsonl"), "val_split": 0.5, "test_split": 0.0}
    earlier = Recipe.model_validate({"model": "m", "output_dir": "sft", "data": data})
    (tmp_path / "sft").mkdir()
    (tmp_path / "sft" / rundir.RUN_INFO).write_text(json.dumps({"resolved": earlier.model_dump(mode="json")}))
    assert verifier.recipe is not None
    later = replace(verifier, recipe=verifier.recipe.model_copy(update={"adapter": str(tmp_path / "sft")}))
    judged = judge(later, samples, out=tmp_path / "out", step=lambda *_: None)
    assert (judged.found.num_problems, judged.remark[:15]) == (26, "4 of 30 problem")


def test_a_verifier_whose_rows_are_gone_or_unknown_is_judged_with_a_word_of_doubt(verifier: Subject, tmp_path: Path):
    assert verifier.recipe is not None
    gone = verifier.data.model_copy(update={"path": str(tmp_path / "gone.jsonl")})
    recipe = verifier.recipe.model_copy(update={"data": gone})
    for subject, remark in (
        (replace(verifier, recipe=recipe), "cannot be told: "),
        (replace(verifier, run=None, recipe=None), "is not known here"),
        (replace(verifier, trained_data_sha256="other"), "data has changed since"),
    ):
        judged = judge(subject, write_samples(tmp_path / remark, 12), out=tmp_path / "out", step=lambda *_: None)
        assert remark in judged.remark
        assert judged.found.num_problems == 12
