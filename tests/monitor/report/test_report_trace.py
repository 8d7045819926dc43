"""The trace in the report: verdicts first, then pictures; text of others stays text, and damage leaves a part out."""

import json
import re
from pathlib import Path

from reported_runs import words, write_run

from mlx_finetune import rundir
from mlx_finetune.monitor.report.facts import read_facts
from mlx_finetune.monitor.report.page import render
from mlx_finetune.rundir import RunDir

HOSTILE = "</script><img src=x onerror=alert(1)>\u202e"


def point(step: int, right: int) -> dict[str, object]:
    return {
        "step": step, "loss": 3.0 - step / 20, "token_rank": 40.0 - step, "num_right": right, "low": right / 10 - 0.1,
        "high": min(1.0, right / 10 + 0.1), "rank": 1.5, "margin": step / 10, "margin_low": step / 10 - 1,
        "margin_high": step / 10 + 1,
    }  # fmt: skip


def write_trace(run: RunDir, text: str = "colour", *, gap: float = 1e-8) -> None:
    folder = run.file(rundir.TRACE)
    folder.mkdir()
    steps = [
        {"step": step, "is_checkpoint": True, "reload_difference": gap, "is_reload_right": gap <= 1e-6, "loss": 1.0}
        for step in (0, 20, 40)
    ]
    category = {
        "name": text, "num_probes": 10, "chance": 0.25, "outcome": "learned", "step": 40, "before": 20,
        "course": [point(0, 2), point(20, 5), point(40, 10)],
        "sentence": f"{text}: learned between step 20 and step 40",
    }  # fmt: skip
    summary = {
        "kind": "lora", "probes": {"split": "test", "source": text, "count": 10}, "categories": [category],
        "steps": steps, "left_out": [text], "note": "Geometry is not a circuit.",
        "samples": [{"step": 0, "prompt": text, "answer": f"first {text}"}],
    }  # fmt: skip
    (folder / "trace.json").write_text(json.dumps(summary))
    layers = "step,layer,base_cka,previous_cka,lens_kl,base_kl\n" + "".join(
        f"{step},{block},{1 - step * block / 200},,{2 - 2 * block},{step / 10}\n"
        for step in (0, 20, 40)
        for block in (0, 1)
    )
    (folder / "layers.csv").write_text(layers)
    names = "step,path,layer,name,norm,relative_norm,effective_rank,stable_rank,previous_cosine,previous_overlap\n"
    (folder / "matrices.csv").write_text(
        names + "".join(f"{step},a.0.q_proj,0,q_proj,{step / 10},{step / 1000},2.5,1.5,,\n" for step in (0, 20, 40))
    )


def page_of(run: RunDir) -> str:
    return render(read_facts(run))


def test_the_trace_says_when_then_shows_the_course_and_the_geometry(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    assert 'id="trace"' not in page_of(run)
    write_trace(run)
    page = page_of(run)
    part = page[page.index('<section id="trace">') : page.index('<section id="tokens">')]
    text = words(part)
    assert "10 probes of data/" in text or "10 probes of colour , split test." in text
    assert "colour: learned between step 20 and step 40" in text
    assert text.index("learned between") < text.index("Right, colour") < text.index("Hidden states compared")
    assert text.index("Hidden states compared") < text.index("Size of the updates")
    assert "3 checkpoints reloaded with the loss saved, at most 1e-08 nats apart." in text
    assert "40 100 % 90 to 100 1.50 +4.00 +3.00 to +5.00 1.000 0" in text
    assert "q_proj 1 4.00 0.0400 2.50 1.50" in text
    assert "Geometry is not a circuit." in text
    assert part.count('data-across="block"') == 3
    titles = re.findall(r"<figcaption><b>([^<]+)", part)
    assert titles[:3] == ["Loss of the right answers", "Right, colour", "Margin, colour"]


def test_a_checkpoint_that_is_not_what_was_saved_is_said_in_the_report(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    write_trace(run, gap=1e-3)
    assert "Not what was saved. Checkpoints with another loss than they were saved with: steps 0, 20, 40." in words(
        page_of(run)
    )


def test_text_of_others_stays_text(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    write_trace(run, HOSTILE)
    page = page_of(run)
    assert "<img" not in page
    assert "&lt;img src=x" in page
    assert "\u202e" not in page


def test_damaged_tables_leave_their_pictures_out_and_a_damaged_summary_the_part(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    write_trace(run)
    folder = run.file(rundir.TRACE)
    (folder / "layers.csv").write_bytes(b"step,layer\nx,\xff\n")
    (folder / "matrices.csv").unlink()
    page = words(page_of(run))
    assert "learned between step 20 and step 40" in page
    assert "Hidden states compared" not in page
    (folder / "trace.json").write_text('{"kind": "lora"}')
    assert "learned between step" not in words(page_of(run))
