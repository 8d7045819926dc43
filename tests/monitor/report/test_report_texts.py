"""The parts of a report about checkpoints and long texts: untrusted text, damaged files, older results."""

import json
from pathlib import Path

from reported_runs import write_run

from mlx_finetune import rundir
from mlx_finetune.monitor.report.facts import read_facts
from mlx_finetune.monitor.report.page import render
from mlx_finetune.rundir import RunDir

BAD = "<script>alert(1)</script>\u202e"


def figure(value: float) -> dict[str, object]:
    return {"value": value, "low": value - 0.1, "high": value + 0.1, "num_rows": 40, "num_right": None}


def course(name: str, measured: str, steps: int = 3) -> dict[str, object]:
    points = [
        {
            "step": 10 * number,
            "name": f"step {10 * number}",
            "figures": {key: figure(3.0 - 0.2 * number) for key in ("loss", "perplexity", "bits_per_byte")},
            "change": {"value": -0.2, "low": -0.3, "high": -0.1, "num_rows": 40, "p": 0.01} if number else None,
        }
        for number in range(steps)
    ]
    return {
        "name": name,
        "measured": measured,
        "what": "texts",
        "source": BAD,
        "split": "test",
        "num_rows": 40,
        "num_tokens": 1234,
        "num_bytes": 5678,
        "tokenizer": "abc",
        "how": "in windows of 64 with stride 32",
        "sentence": f"It fell. {BAD}",
        "points": points,
        "samples": [{"step": 10 * number, "prompt": BAD, "answer": f"{BAD} {number}"} for number in range(steps)],
    }


def experiment() -> dict[str, object]:
    loss = {"value": 2.0, "low": None, "high": None}
    return {
        "name": "context",
        "measured": "2026-11-26T00:00:00+00:00",
        "source": BAD,
        "context": 8,
        "num_texts": 1,
        "num_tokens": 24,
        "tokenizer": "abc",
        "sentence": BAD,
        "methods": ["full", BAD],
        "meaning": {"full": "every token", BAD: BAD},
        "buckets": [{"first": n + 1, "last": n + 8, "losses": {"full": loss, BAD: loss}} for n in (0, 8, 16)],
    }


def page_with(folder: Path, **files: object) -> str:
    run = write_run(folder)
    write(run, rundir.CHECKPOINT_EVALUATIONS, {name: one for name, one in files.items() if name != "context"})
    write(run, rundir.SINK_EXPERIMENTS, {name: one for name, one in files.items() if name == "context"})
    return render(read_facts(run))


def write(run: RunDir, folder: str, files: dict[str, object]) -> None:
    run.file(folder).mkdir(parents=True)
    for name, one in files.items():
        text = one if isinstance(one, str) else json.dumps(one)
        (run.file(folder) / f"{name}.json").write_text(text, "utf-8")


def test_text_of_others_is_shown_as_text(tmp_path: Path) -> None:
    page = page_with(tmp_path, test=course("test", "2026-11-26"), context=experiment())
    assert "<script>alert" not in page
    assert "\u202e" not in page
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") > 8
    assert '<section id="checkpoints">' in page
    assert '<section id="sinks">' in page
    assert "end of the context" in page


def test_texts_read_with_weights_that_are_gone_are_marked(tmp_path: Path) -> None:
    older = "Of step 20, while the run"
    assert older not in page_with(tmp_path / "same", context=experiment() | {"step": 40})
    assert page_with(tmp_path / "other", context=experiment() | {"step": 20}).count(older) == 1


def test_a_run_without_such_results_has_no_such_parts(tmp_path: Path) -> None:
    page = render(read_facts(write_run(tmp_path)))
    assert 'id="checkpoints"' not in page
    assert 'id="sinks"' not in page


def test_damaged_files_are_named_and_the_rest_is_shown(tmp_path: Path) -> None:
    page = page_with(tmp_path, test=course("test", "2026-11-26"), broken="{", context="[]")
    assert "eval/checkpoints/broken.json" in page
    assert "eval/sinks/context.json" in page
    assert "1,234 tokens, <bdi>in windows of 64 with stride 32</bdi>, tokenizer" in page


def test_the_newest_comes_first_and_old_ones_are_short(tmp_path: Path) -> None:
    files = {f"n{number}": course(f"n{number}", f"2026-11-{10 + number}") for number in range(6)}
    page = page_with(tmp_path, **files)
    assert page.index("<bdi>n5</bdi>") < page.index("<bdi>n2</bdi>") < page.index("2 older")
    assert page.index("2 older") < page.index("<bdi>n1</bdi>") < page.index("<bdi>n0</bdi>")


def test_a_long_course_shows_its_first_and_last_answers(tmp_path: Path) -> None:
    page = page_with(tmp_path, test=course("test", "2026-11-26", steps=100))
    strip = page.partition('class="strip"')[2].partition("</article>")[0]
    assert strip.count('class="frame"') == 30
    assert "before training" in strip
    assert "step 990" in strip
