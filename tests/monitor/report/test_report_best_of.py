"""The part of a report about a verifier's picks, from the file that mlxft eval --samples keeps."""

import json
import re
from pathlib import Path

from reported_runs import write_run

from mlx_finetune import rundir
from mlx_finetune.app.sampling.best_of import compare, to_json
from mlx_finetune.app.sampling.folder import Sample, SampledProblem
from mlx_finetune.monitor.report.facts import read_facts
from mlx_finetune.monitor.report.page import render
from mlx_finetune.rundir import RunDir


def problem(number: int) -> SampledProblem:
    drawn = tuple(
        Sample(number, 1 + i, "r:1", "?", "1", t, t == "1", t, "stop", 2, -1.0, 0.8) for i, t in enumerate("12")
    )
    return SampledProblem(number, "r:1", "?", "1", None, drawn)


def write_best_of(run: RunDir, samples: str, *, scorer: str = "verifier", **more: str) -> None:
    found = compare([problem(number) for number in range(40)], [[1.0, 0.0]] * 40, seed=0, scorer=scorer)
    facts = {
        "remark": "3 of 40 <b>known</b>",
        "name": "tested",
        "measured": "2026-11-26T20:00:00+00:00",
        "samples": samples,
        "step": 20,
        **more,
    }
    folder = run.file(rundir.BEST_OF)
    folder.mkdir()
    (folder / "tested.json").write_text(json.dumps(to_json(found, facts)))


def test_the_report_has_every_way_and_its_difference(tmp_path: Path):
    run = write_run(tmp_path)
    assert 'id="picks"' not in render(read_facts(run))
    write_best_of(run, "data/<b>sums</b>")
    page = render(read_facts(run))
    assert 'id="picks"' in page
    assert "verifier&#x27;s pick" in page or "verifier's pick" in page
    assert "3 of 40 &lt;b&gt;known&lt;/b&gt;" in page
    assert "40 of 40" in page
    assert "Of step 20, while the run" in page
    assert "+0.196 to +0.716" in page
    assert "<td>two answers to one problem</td><td>1.000</td><td>0.912 to 1.000</td>" in page
    assert "&lt;b&gt;sums" in page


def test_the_pick_of_a_reward_model_is_called_so(tmp_path: Path):
    run = write_run(tmp_path)
    write_best_of(run, "s", scorer="reward model")
    path = run.file(rundir.BEST_OF) / "tested.json"
    before = path.read_text().replace('"reward_model"', '"verifier"')  # as it was called in names of ways and keys
    before = before.replace('"reward model"', '"verifier"').replace('"scorer": "verifier"', '"scorer": "reward model"')
    for kept in (path.read_text(), before):
        path.write_text(kept)
        page = render(read_facts(run))
        assert "reward model&#x27;s pick" in page or "reward model's pick" in page
        assert re.search(r"reward model(&#x27;|')s best(</bdi>)?</td><td>0.500</td>", page)
        assert "reward model - random" in page
        assert "verifier - " not in page


def test_areas_without_an_interval_say_why_and_those_kept_before_are_read(tmp_path: Path):
    run = write_run(tmp_path)
    write_best_of(run, "s")
    path = run.file(rundir.BEST_OF) / "tested.json"
    kept = json.loads(path.read_text())
    kept["auc"] |= {"low": None, "high": None, "num_problems": 1}
    kept["auc_within"] |= {"low": 1.0, "high": 1.0}
    path.write_text(json.dumps(kept))
    page = render(read_facts(run))
    assert "<td>any two answers</td><td>1.000</td><td>no interval: one problem</td>" in page
    assert "<td>two answers to one problem</td><td>1.000</td><td>no interval: problems all alike</td>" in page


def test_a_comparison_kept_before_steps_were_noted_is_marked_where_the_run_went_on(tmp_path: Path):
    run = write_run(tmp_path)
    write_best_of(run, "s")
    path = run.file(rundir.BEST_OF) / "tested.json"
    kept = {key: value for key, value in json.loads(path.read_text()).items() if key != "step"}
    mark = "From before the run was trained further."
    for measured, is_older in (("2001-01-01T00:00:00+00:00", True), ("2126-01-01T00:00:00+00:00", False)):
        path.write_text(json.dumps(kept | {"measured": measured}))
        assert (mark in render(read_facts(run))) is is_older


def test_a_damaged_comparison_is_named(tmp_path: Path):
    run = write_run(tmp_path)
    write_best_of(run, "s")
    (run.file(rundir.BEST_OF) / "other.json").write_text("{}")
    page = render(read_facts(run))
    assert "best_of/other.json" in page
    assert "40 of 40" in page
