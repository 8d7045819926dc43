"""Ways to pick an answer, compared on made-up samples whose figures can be worked out by hand."""

import csv
import io
import json

import pytest

from mlx_finetune.app.sampling.best_of import compare, csv_text, lines, to_json
from mlx_finetune.app.sampling.folder import Sample, SampledProblem
from mlx_finetune.errors import RunError


def problem(number: int, drawn: list[str], greedy: str = "1") -> SampledProblem:
    """A problem whose right answer is 1."""

    def one(place: int, text: str) -> Sample:
        found = text if text.isdigit() else None
        return Sample(
            number, place, f"r:{number}", "?", "1", text, text == "1", found, "stop", 3, -1.0, float(place > 0)
        )

    samples = tuple(one(place, text) for place, text in enumerate(drawn, 1))
    return SampledProblem(number, f"r:{number}", "?", "1", one(0, greedy), samples)


PROBLEMS = [
    problem(0, ["1", "2", "2", "1"], greedy="2"),  # a tie: the first said wins
    problem(1, ["2", "1", "2", "3"]),
    problem(2, ["x", "3", "x", "3"]),
    problem(3, ["1", "1", "1", "x"]),
]
SCORES = [[0.1, 0.2, 0.3, 0.9], [0.1, 0.8, 0.2, 0.3], [0.5, 0.1, 0.2, 0.3], [0.1, 0.2, 0.3, 0.9]]


def test_each_way_has_its_share_of_the_problems():
    found = {one.name: one.value for one in compare(PROBLEMS, SCORES, seed=0).ways}
    assert found == {
        "greedy": 3 / 4,
        "random": pytest.approx((2 / 4 + 1 / 4 + 0 + 3 / 4) / 4),
        "majority": 2 / 4,
        "verifier": 2 / 4,
        "oracle": 3 / 4,
    }


def test_differences_are_paired():
    many = [problem(number, ["1", "2"]) for number in range(40)]
    found = compare(many, [[1.0, 0.0]] * 40, seed=0)
    against_random = next(one for one in found.compared if (one.first, one.second) == ("verifier", "random"))
    assert against_random.value == 0.5
    assert (against_random.low, against_random.high) == pytest.approx((0.196, 0.716), abs=1e-3), "40 alike prove little"
    assert against_random.is_sure
    blind = compare(PROBLEMS, SCORES, seed=0).compared[0]
    assert not blind.is_sure


def test_of_n_answers_the_figures_run_from_the_random_pick_to_the_oracle():
    found = compare(PROBLEMS, SCORES, seed=0)
    ways = {one.name: one.value for one in found.ways}
    assert [one.n for one in found.at_n] == [1, 2, 4]
    assert found.at_n[0].any_right == pytest.approx(ways["random"])
    assert found.at_n[0].best_scored == pytest.approx(ways["random"])
    assert found.at_n[-1].any_right == pytest.approx(ways["oracle"])
    assert found.at_n[-1].best_scored == pytest.approx(ways["verifier"])


def test_answers_that_say_nothing_are_counted():
    assert compare(PROBLEMS, None, seed=0).nothing_found == pytest.approx(3 / 16)


def test_without_a_verifier_it_has_no_place_in_the_comparison():
    found = compare(PROBLEMS, None, seed=0)
    assert "verifier" not in {one.name for one in found.ways}
    assert all("verifier" not in (one.first, one.second) for one in found.compared)


def test_an_unfinished_sampling_is_not_compared():
    with pytest.raises(RunError, match="r:1 has 3 answers and r:0 4"):
        compare([PROBLEMS[0], problem(1, ["1", "1", "1"])], None, seed=0)


def test_text_csv_and_json_say_the_same():
    found = compare(PROBLEMS, SCORES, seed=0)
    rows = {row["figure"]: float(row["value"]) for row in csv.DictReader(io.StringIO(csv_text(found)))}
    plain = json.loads(json.dumps(to_json(found, {"samples": "here"})))
    assert rows["random"] == pytest.approx(0.375)
    assert [one["value"] for one in plain["ways"]] == pytest.approx([rows[one["name"]] for one in plain["ways"]])
    text = "\n".join(lines(found))
    assert ["verifier's", "pick", "2/4"] in [line.split()[:3] for line in text.splitlines()]
    assert plain["at_n"][0] == {"n": 1, "any_right": pytest.approx(0.375), "verifier": pytest.approx(0.375)}
    reward = compare(PROBLEMS, SCORES, seed=0, scorer="reward model")
    rewarded = "\n".join(lines(reward))
    as_json = json.loads(json.dumps(to_json(reward, {})))
    said = [rewarded, csv_text(reward), json.dumps(as_json)]
    assert not [one for one in said if "verifier" in one]
    assert [one["name"] for one in as_json["ways"]][-2:] == ["reward model", "oracle"]
    assert as_json["at_n"][0]["reward_model"] == pytest.approx(0.375)
    assert "reward model - random," in csv_text(reward)
    assert "reward model's best of 4," in csv_text(reward)
    assert "reward model's pick" in rewarded
    assert "reward model - majority" in rewarded
    assert "verifier - random" in text
    assert "18.8 % say nothing" in text
    assert {name: plain[name]["value"] for name in ("auc", "auc_within", "told_apart")} == pytest.approx(
        {"auc": 30.5 / 60, "auc_within": 5 / 10, "told_apart": 1.5 / 3}
    )
    assert [rows[name] for name in ("auc", "auc_within")] == pytest.approx([30.5 / 60, 0.5], abs=1e-6)
    assert ["any", "two", "answers", "0.508"] in [line.split()[:4] for line in text.splitlines()]
    assert "unsure: the interval holds 0.5" in next(line for line in text.splitlines() if line.startswith("any two"))
    alone = compare(PROBLEMS, None, seed=0)
    assert (alone.areas, "AUC" in "\n".join(lines(alone))) == ([], False)


@pytest.mark.parametrize(
    ("scores", "said"), [([0.0, 1.0], "below chance: wrong answers score higher"), ([1.0, 0.0], "")]
)
def test_a_verifier_that_prefers_wrong_answers_is_told(scores: list[float], said: str):
    many = [problem(number, ["1", "2"]) for number in range(40)]
    line = next(one for one in lines(compare(many, [scores] * 40, seed=0)) if one.startswith("two to one problem"))
    assert line[31:].strip().partition("   ")[2] == said


def test_areas_of_one_problem_have_no_interval_and_say_why():
    found = compare([problem(0, ["1", "2"])], [[0.0, 1.0]], seed=0)
    assert [line.split("   ")[-1] for line in lines(found)[-5:-2]] == ["no interval: one problem"] * 3
    assert json.loads(json.dumps(to_json(found, {})))["auc_within"]["low"] is None
    assert "auc_within,0.000000,,,1" in csv_text(found)


@pytest.mark.parametrize("drawn", [["2"], ["1"], ["1", "2"]])
def test_problems_that_are_all_alike_do_not_claim_certainty(drawn: list[str]):
    found = compare([problem(number, drawn, greedy="2") for number in range(5)], None, seed=0)
    assert all(one.low <= one.value <= one.high and one.high - one.low > 0.3 for one in (*found.ways, *found.compared))
