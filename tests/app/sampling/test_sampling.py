"""Answers drawn from a tiny random model: the same every time, whole after a kill, kept only where they are right."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from eval_runs import subject_of

from mlx_finetune.app.eval.subject import Subject
from mlx_finetune.app.sampling.draw import Drawing, Sampler, draw, prepare
from mlx_finetune.app.sampling.folder import LINES, Sample, SampledProblem, SamplesFile, read_problems
from mlx_finetune.app.sampling.rows import MOST_RIGHT, sft_rows, verifier_rows, write_rows
from mlx_finetune.dataset.corpus import load_splits
from mlx_finetune.errors import DataError, RunError
from mlx_finetune.recipe.data import DataRecipe
from mlx_finetune.rundir import LOG
from mlx_finetune.scoring.rules import is_right

DRAWING = Drawing(
    k=4, temperature=2.0, top_p=0.5, seed=3, at_once=5, max_rows=100, max_tokens=3, rule="exact"
)  # few tokens, likely ones only: some answers are drawn twice
NUM_PROBLEMS = 12


@pytest.fixture(scope="module")
def subject(place: Path) -> Subject:
    return subject_of(place)


def write_problems(path: Path, references: Sequence[str]) -> Path:
    rows = [{"prompt": f"Box {number}?", "completion": text} for number, text in enumerate(references)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def sampler_of(subject: Subject, path: Path, **changes: object) -> Sampler:
    return prepare(subject, replace(DRAWING, **changes), given=str(path), base=path.parent)


def sample(sampler: Sampler, folder: Path) -> Path:
    file = SamplesFile(folder, sampler.settings, per_problem=sampler.drawing.k + 1)
    draw(sampler, file, lambda _: None)
    file.close()
    return folder


@pytest.fixture(scope="module")
def solved(subject: Subject, tmp_path_factory: pytest.TempPathFactory) -> tuple[Sampler, Path]:
    """Problems whose reference is an answer that the model draws, and a sampling of them."""
    folder = tmp_path_factory.mktemp("solved")
    blind = sample(sampler_of(subject, write_problems(folder / "blind.jsonl", ["?"] * NUM_PROBLEMS)), folder / "blind")
    answers = [
        next((one.completion for one in problem.drawn if one.completion.strip()), "?")
        for problem in read_problems(blind)
    ]
    sampler = sampler_of(subject, write_problems(folder / "rows.jsonl", answers))
    return sampler, sample(sampler, folder / "out")


def test_every_problem_has_its_greedy_answer_and_k_drawn_ones(solved: tuple[Sampler, Path]):
    problems = read_problems(solved[1])
    assert [one.number for one in problems] == list(range(NUM_PROBLEMS))
    for problem in problems:
        assert problem.greedy is not None
        assert problem.greedy.temperature == 0
        assert [one.sample for one in problem.drawn] == [1, 2, 3, 4]
        assert all(one.temperature == 2.0 for one in problem.drawn)
        assert all(one.right == is_right("exact", problem.reference, one.completion) for one in problem.drawn)
        assert all(one.logprob < 0 < one.tokens <= 3 for one in problem.drawn)


def test_a_killed_sampling_goes_on_and_comes_out_bit_for_bit_the_same(solved: tuple[Sampler, Path], tmp_path: Path):
    sampler, whole = solved
    lines = (whole / LINES).read_bytes()
    assert len(sampler.groups) > 1
    ends = [place + 1 for place, octet in enumerate(lines) if octet == 10]
    for kept in (ends[len(ends) // 2] + 7, ends[-2], len(lines)):
        folder = tmp_path / str(kept)
        shutil.copytree(whole, folder)
        (folder / LINES).write_bytes(lines[:kept])
        assert (sample(sampler, folder) / LINES).read_bytes() == lines


def test_an_answer_depends_on_the_seed_and_its_own_problem_alone(
    subject: Subject, solved: tuple[Sampler, Path], tmp_path: Path
):
    everything = read_problems(solved[1])
    rows = (solved[1].parent / "rows.jsonl").read_text().splitlines()
    (tmp_path / "one.jsonl").write_text(rows[7] + "\n")
    alone = read_problems(sample(sampler_of(subject, tmp_path / "one.jsonl"), tmp_path / "alone"))
    assert [one.completion for one in alone[0].drawn] == [one.completion for one in everything[7].drawn]
    other = read_problems(sample(sampler_of(subject, tmp_path / "one.jsonl", seed=4), tmp_path / "other"))
    assert [one.completion for one in other[0].drawn] != [one.completion for one in everything[7].drawn]


def test_another_sampling_is_not_mixed_in(subject: Subject, solved: tuple[Sampler, Path]):
    other = sampler_of(subject, solved[1].parent / "rows.jsonl", temperature=1.0)
    with pytest.raises(RunError, match=r"other settings: temperature was 2\.0, is now 1\.0$"):
        SamplesFile(solved[1], other.settings, per_problem=5)
    elsewhere = dict(solved[0].settings) | {"rows_sha256": "0", "data_sha256": "0", "num_problems": 99}
    with pytest.raises(RunError, match=r"other settings: [a-z, ]*problems[a-z, ]*$") as caught:
        SamplesFile(solved[1], elsewhere, per_problem=5)
    assert caught.value.message.count("problems") == 1


def test_a_folder_with_other_things_takes_no_sampling(solved: tuple[Sampler, Path], tmp_path: Path):
    (tmp_path / "train.jsonl").write_text("mine")
    with pytest.raises(RunError, match=r"no folder of samples: it holds train\.jsonl"):
        SamplesFile(tmp_path, solved[0].settings, per_problem=5)
    assert [one.name for one in tmp_path.iterdir()] == ["train.jsonl"]


def test_the_log_of_a_stage_in_its_folder_is_no_other_thing(solved: tuple[Sampler, Path], tmp_path: Path):
    """A pipeline writes what ``mlxft sample`` prints to log.txt in ``{folder}``, before the first answer."""
    (tmp_path / LOG).touch()
    SamplesFile(tmp_path, solved[0].settings, per_problem=5).close()
    assert LOG in {one.name for one in tmp_path.iterdir()}


def test_every_row_kept_for_sft_is_right_and_stands_there_once(solved: tuple[Sampler, Path], tmp_path: Path):
    problems = [
        replace(one, drawn=tuple(replace(sample, finish="stop") for sample in one.drawn))  # a random model never stops
        for one in read_problems(solved[1])
    ]
    references = {str(problem.prompt): problem.reference for problem in problems}
    sft, verifier = write_rows(tmp_path, problems)
    rows = [json.loads(line) for file in (tmp_path / "sft").iterdir() for line in file.read_text().splitlines()]
    assert len(rows) == sft.num_train + sft.num_valid > 0
    assert all(is_right("exact", references[row["prompt"]], row["completion"]) for row in rows)
    assert len({(row["prompt"], row["completion"]) for row in rows}) == len(rows)
    labelled = [
        json.loads(line) for file in (tmp_path / "verifier").iterdir() for line in file.read_text().splitlines()
    ]
    assert len(labelled) == verifier.num_train + verifier.num_valid
    assert {row["label"] for row in labelled} == {True, False}
    assert all(is_right("exact", references[row["prompt"]], row["completion"]) is row["label"] for row in labelled)


def made(completions: Sequence[str], *, number: int = 0, finish: str = "stop") -> SampledProblem:
    """A problem whose right answer is yes."""
    drawn = tuple(
        Sample(number, place, "rows.jsonl:1", f"Is it {number}?", "yes", text, text == "yes", text, finish, 2, -1.0, 1)
        for place, text in enumerate(completions, 1)
    )
    return SampledProblem(number, "rows.jsonl:1", f"Is it {number}?", "yes", None, drawn)


def test_at_most_four_right_answers_of_a_problem_are_kept():
    drawn = [replace(made(["yes"]).drawn[0], completion=f"yes{' ' * number}") for number in range(6)]
    problem = replace(made(["yes"]), drawn=tuple(drawn))
    assert [row["completion"] for row in sft_rows(problem)] == [f"yes{' ' * number}" for number in range(MOST_RIGHT)]


def test_an_answer_that_was_cut_is_not_learned_but_judged():
    problem = made(["yes", "no"], finish="length")
    assert list(sft_rows(problem)) == []
    assert [(row["completion"], row["label"]) for row in verifier_rows(problem)] == [("yes", True), ("no", False)]


def test_a_conversation_becomes_messages():
    turns = [{"role": "system", "content": "Brief."}, {"role": "user", "content": "Is it?"}]
    problem = replace(made(["yes"]), prompt=turns)
    assert list(verifier_rows(problem)) == [
        {"messages": [*turns, {"role": "assistant", "content": "yes"}], "label": True}
    ]


def test_a_problem_is_on_one_side_with_all_of_its_answers(tmp_path: Path):
    problems = [made(["yes", "no", "maybe"], number=number) for number in range(60)]
    _, verifier = write_rows(tmp_path, problems)
    sides = {
        name: {
            json.loads(line)["prompt"] for line in (tmp_path / "verifier" / f"{name}.jsonl").read_text().splitlines()
        }
        for name in ("train", "valid")
    }
    assert not sides["train"] & sides["valid"]
    assert verifier.num_valid == 3 * len(sides["valid"]) > 0


def test_the_rows_are_read_as_training_reads_them(tmp_path: Path):
    write_rows(tmp_path, [made(["yes", "no"], number=number) for number in range(40)])
    splits = load_splits(DataRecipe.model_validate({"path": str(tmp_path / "sft")}), base=tmp_path)
    assert splits.format == "prompt-completion"
    assert len(splits.train) + len(splits.valid) == 40


def test_nothing_is_written_where_nothing_is_right(tmp_path: Path):
    sft, verifier = write_rows(tmp_path, [made(["no", "never"])])
    assert sft.folder is None
    assert not (tmp_path / "sft").exists()
    assert verifier.num_right == 0


@pytest.mark.parametrize(
    ("references", "rule", "message"),
    [
        (["4", "four"], "number", "finds no answer in the reference 'four'"),
        (["4"], None, None),
    ],
)
def test_a_reference_that_says_nothing_is_refused(
    subject: Subject, tmp_path: Path, references: list[str], rule: str | None, message: str | None
):
    path = write_problems(tmp_path / "rows.jsonl", references)
    if message is None:
        assert sampler_of(subject, path, rule=rule).rule == "number"
        return
    with pytest.raises(DataError, match=message):
        sampler_of(subject, path, rule=rule)


def test_a_problem_that_stands_there_twice_is_refused(subject: Subject, tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "A?", "completion": "1"}\n{"prompt": "A?", "completion": "2"}\n')
    with pytest.raises(DataError, match=r"rows.jsonl:2 asks the same as .*rows.jsonl:1"):
        sampler_of(subject, path)
