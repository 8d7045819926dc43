"""A report in a real browser, from file://: it asks nobody, the console is empty, and it reads without JavaScript."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from browsers import Watch, open_browser
from pipeline_facts import evaluation, pipeline
from reported_runs import write_run

from mlx_finetune.monitor.pipeline.page import render
from mlx_finetune.monitor.report.write import write_report

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

HOSTILE = "</script><script>document.title='x'</script><img src=x onerror=alert(1)>\u202e\x1b[31m<a href=//example.org>"
Open = Callable[..., "Page"]


@pytest.fixture(scope="module")
def browser() -> "Iterator[Browser]":
    with open_browser() as browser:
        yield browser


@pytest.fixture
def open_report(browser: "Browser", tmp_path: Path) -> Iterator[Open]:
    """Opens the report of a run; afterwards only the page itself was asked for, and the console is empty."""
    opened: list[tuple[Page, Watch]] = []

    def open_it(text: Callable[[str], str] = str, *, width: int = 1280, height: int = 900, **options: object) -> "Page":
        path = write_report(write_run(tmp_path, text))
        context = browser.new_context(viewport={"width": width, "height": height}, **options)  # pyright: ignore[reportArgumentType]
        page = context.new_page()
        opened.append((page, Watch(page)))
        page.goto(path.as_uri())
        return page

    yield open_it
    for page, watch in opened:
        assert watch.foreign == [page.url.partition("#")[0]]
        assert watch.errors == []
        page.context.close()


def test_the_slider_shows_one_answer_beside_the_first_and_its_place_on_the_loss(open_report: Open) -> None:
    page = open_report()
    slider = page.locator("#frame-slider")
    first_prompt = page.locator(".prompt").first
    assert first_prompt.locator(".frame:visible h4").all_inner_texts() == [
        "before training",
        "step 40 lowest validation loss",
    ]
    slider.focus()
    page.keyboard.press("ArrowLeft")
    assert first_prompt.locator(".frame:visible h4").all_inner_texts() == ["before training", "step 20"]
    assert page.locator("output").inner_text() == "step 20 (1 of 2)"
    assert page.locator("#curves .cursor").first.get_attribute("d") == "M500.0 0V300"


def test_the_values_under_the_pointer_are_told(open_report: Open) -> None:
    page = open_report()
    memory = page.locator(".chart", has_text="Memory")
    memory.locator("svg").hover(position={"x": 2, "y": 20})
    said = memory.locator(".readout").inner_text()
    assert said.startswith("step 1: peak so far 2.0 GB, between steps 1.0 GB, process 1.1 GB")


def test_without_javascript_every_answer_can_be_read(open_report: Open) -> None:
    page = open_report(java_script_enabled=False)
    assert page.locator(".prompt").first.locator(".frame:visible").count() == 3
    assert not page.locator(".slider").is_visible()
    assert page.locator("time").first.inner_text() == "2026-09-21 14:13 UTC"


@pytest.mark.parametrize("width", [320, 390, 820, 1280])
def test_no_width_scrolls_the_page_sideways(width: int, open_report: Open) -> None:
    page = open_report(lambda text: text + " " + "x" * 300, width=width)
    assert page.evaluate("document.scrollingElement.scrollWidth") <= width


WIDER = """[...document.querySelectorAll('.scroll')].filter(box => box.scrollWidth > box.clientWidth + 1)
    .map(box => box.textContent.slice(0, 60))"""


@pytest.mark.parametrize("width", [390, 1200])
def test_every_table_is_whole_beside_the_page(width: int, open_report: Open) -> None:
    page = open_report(width=width)
    page.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true })")
    assert page.evaluate("document.querySelectorAll('.scroll').length") > 5
    assert page.evaluate(WIDER) == []


@pytest.mark.parametrize("width", [390, 1200])
def test_every_table_of_a_pipeline_is_whole(width: int, browser: "Browser") -> None:
    facts = pipeline(evaluation(3.0, 10), evaluation(3.5, 20))
    command = "sample {sft} --data sample.jsonl --out {folder} --answers 6 --temperature 1.0"
    stages = [
        replace(stage, record=replace(stage.record, name=f"a-name-that-is-long-{number}", kind="command", what=command,
                                      needs=("pretrain", "a-name-that-is-long"), was_skipped=True,
                                      fingerprint={"data files": "1f" * 32}))
        for number, stage in enumerate(facts.stages)
    ]  # fmt: skip
    page = browser.new_page(viewport={"width": width, "height": 900})
    page.set_content(render(replace(facts, stages=tuple(stages))))
    page.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true })")
    assert page.evaluate(WIDER) == []
    page.close()


def test_what_a_run_says_does_nothing(open_report: Open) -> None:
    page = open_report(lambda text: text + HOSTILE)
    assert page.title() == "tides - mlxft report"
    assert page.locator("img").count() == 0
    assert page.locator("a:not(nav a)").count() == 0


def test_dark_and_light_follow_the_system_and_paper_is_white(open_report: Open) -> None:
    page = open_report(color_scheme="dark")
    background = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(background)
    page.emulate_media(color_scheme="light")
    assert page.evaluate(background) != dark
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate(background) == "rgb(255, 255, 255)"
    assert not page.locator("nav").is_visible()


def test_every_curve_is_drawn(open_report: Open) -> None:
    page = open_report()
    strokes = page.evaluate("[...document.querySelectorAll('.line')].map(one => getComputedStyle(one).stroke)")
    assert len(strokes) >= 9
    assert "none" not in strokes
