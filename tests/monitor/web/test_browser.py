"""The page in a real browser: points arrive, nothing is lost, nothing of a run is obeyed, everything has a key."""

import dataclasses
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from browsers import Watch, open_browser
from journal import KILLED, STARTED, records, step, whole_run
from web_pages import add_records, write_journal, write_run
from web_server import Page as Server

from mlx_finetune.dataset.token_losses import Measured, Microscope, Row, Token, write_microscope
from mlx_finetune.events import Event, Notice, Phase, Resources, RunFailed, RunStarted, Sampled
from mlx_finetune.rundir import LOCK, RunDir, take_lock

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

HOSTILE = "</script><img src=x onerror=alert(1)><b>bold</b> \u202eright to left \x1b[31m"
Open = Callable[..., "Page"]


@pytest.fixture(scope="module")
def browser() -> "Iterator[Browser]":
    with open_browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One for all tests that do not end it; each writes a run of its own."""
    folder = tmp_path_factory.mktemp("shown")
    write_demo(folder, "demo")
    write_run(folder / "adapters", "other", whole_run())
    server = Server(folder, "demo")
    yield server
    server.close()


def write_demo(folder: Path, name: str) -> RunDir:
    """A run of 20 steps that is not at work."""
    return write_run(folder / "adapters", name, records(STARTED, *(step(n, 3.0 - n / 20) for n in range(1, 21))))


@pytest.fixture
def open_page(browser: "Browser", server: Server) -> Iterator[Open]:
    """Opens the page; afterwards no script has failed, no policy was broken and nobody else was asked."""
    contexts, watches = [], []

    def open_it(hash_: str = "", *, width: int = 1280, height: int = 900, link: str = "", **options) -> "Page":
        context = browser.new_context(viewport={"width": width, "height": height}, **options)
        context.set_default_timeout(15_000)
        contexts.append(context)
        page = context.new_page()
        watches.append(Watch(page))
        page.goto(link or server.link)
        page.wait_for_selector("#tabs a")
        if hash_:
            page.evaluate("hash => { location.hash = hash }", hash_)
        return page

    yield open_it
    for context in contexts:
        context.close()
    for watch in watches:
        assert [error for error in watch.errors if not error.startswith("Failed to load resource")] == []
        assert watch.foreign == []


def wait_for_step(page: "Page", number: int) -> None:
    page.wait_for_function("step => document.querySelector('.live')?.dataset.steps == step", arg=number)


def num_points(page: "Page") -> int:
    page.wait_for_function("() => document.querySelector('.live')?.dataset.points > 0")
    return int(page.locator(".live").get_attribute("data-points") or 0)


def test_points_arrive_and_reload_loses_none(server: Server, open_page: Open) -> None:
    run = write_demo(server.folder, "grows")
    page = open_page("#/live/grows")
    wait_for_step(page, 20)
    assert "token" not in page.url
    add_records(run, records(*(step(n, 1.5) for n in range(21, 26)), start=1_000_100.0))
    wait_for_step(page, 25)
    assert num_points(page) == 25
    page.reload()
    wait_for_step(page, 25)
    assert num_points(page) == 25
    assert page.locator(".numbers dd").first.inner_text() == "1.8366 \u2198"
    assert page.locator("canvas").count() >= 5


def test_a_resumed_run_corrects_its_curves(server: Server, open_page: Open) -> None:
    run = write_demo(server.folder, "resumed")
    page = open_page("#/live/resumed")
    wait_for_step(page, 20)
    resumed = RunStarted("demo", "tiny-llama", "sft", 5, 40, 20, 80, 8, 1_000, 50_000, "CPU", "float32")
    events: list[Event] = [STARTED, *(step(n, 2.0) for n in range(1, 6)), KILLED, resumed, step(6, 9.0)]
    write_journal(run, records(*events))
    wait_for_step(page, 6)
    assert num_points(page) == 6
    assert page.locator(".restart").inner_text() == KILLED.sentence


def test_the_page_says_when_its_server_is_gone_and_comes_back(tmp_path: Path, open_page: Open) -> None:
    run = write_demo(tmp_path, "demo")
    first = Server(tmp_path)
    page = open_page(link=first.link)
    wait_for_step(page, 20)
    first.close()
    page.wait_for_selector("#gone:not([hidden])")
    assert "The server of this page is gone" in page.locator("#gone").inner_text()
    add_records(run, records(step(21), start=1_000_100.0))
    again = Server(tmp_path, port=first.port)
    try:
        wait_for_step(page, 21)
        page.wait_for_selector("#gone", state="hidden")
        assert num_points(page) == 21
    finally:
        again.close()


def test_zooming_fetches_detail_and_keys_do_it_too(server: Server, open_page: Open) -> None:
    losses = [8.0 if number == 4321 else 1.0 + number % 7 / 10 for number in range(1, 6001)]
    big = RunStarted("big", "tiny-llama", "sft", 0, 6000, 20, 80, 8, 1_000, 50_000, "CPU", "float32")
    write_run(server.folder / "adapters", "big", records(big, *(step(n, loss) for n, loss in enumerate(losses, 1))))
    page = open_page("#/live/big")
    wait_for_step(page, 6000)
    assert num_points(page) < 2000
    plot = page.locator(".chart .plot").first
    box = plot.locator(".u-over").bounding_box()
    assert box is not None
    with page.expect_response(lambda answer: "from=" in answer.url) as detail:
        page.mouse.move(box["x"] + box["width"] * 0.7, box["y"] + 50)
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] * 0.75, box["y"] + 80, steps=4)
        page.mouse.up()
    xs, ys = detail.value.json()["curves"]["loss"]
    assert xs[ys.index(8.0)] == 4321
    assert len(xs) == xs[-1] - xs[0] + 1  # every step of it
    page.wait_for_function("() => document.querySelector('.live').dataset.zoom.startsWith('4')")
    plot.focus()
    page.keyboard.press("0")
    page.wait_for_function("() => document.querySelector('.live').dataset.zoom === ''")
    page.keyboard.press("+")
    page.wait_for_function("() => document.querySelector('.live').dataset.zoom.startsWith('15')")
    page.keyboard.press("ArrowRight")
    page.wait_for_function("() => document.querySelector('.live').dataset.zoom.startsWith('22')")
    page.get_by_role("button", name="Whole run").click()
    page.wait_for_function("() => document.querySelector('.live').dataset.zoom === ''")


def test_the_filmstrip_is_moved_by_keys(open_page: Open) -> None:
    page = open_page("#/answers/other")
    slider = page.get_by_role("slider")
    page.wait_for_function("() => document.querySelector('.filmstrip').dataset.step === '40'")
    slider.focus()
    page.keyboard.press("ArrowLeft")
    page.wait_for_function("() => document.querySelector('.filmstrip').dataset.step === '30'")
    assert "step 30" in (slider.get_attribute("aria-valuetext") or "")
    assert page.locator(".answers.wide mark").all_inner_texts() != []
    page.keyboard.press("Home")
    page.wait_for_function("() => document.querySelector('.filmstrip').dataset.step === '0'")
    page.wait_for_function("() => document.querySelector('.answers.wide .text').textContent === 'I do not know.'")


def test_two_runs_are_chosen_in_the_table_and_compared(open_page: Open) -> None:
    page = open_page("#/runs")
    page.get_by_role("checkbox", name="Compare demo").check()
    page.get_by_role("checkbox", name="Compare other").check()
    page.get_by_role("link", name="Compare two").click()
    page.wait_for_selector(".compare canvas")
    legend = page.locator(".compare .chart").first.locator(".key").all_inner_texts()
    assert [text.split("\n")[0].split()[0] for text in legend] == ["demo", "other"]
    assert page.locator(".compare .pairs").first.locator("tbody tr").count() == 2


def test_the_table_is_sorted_by_any_column(open_page: Open) -> None:
    page = open_page("#/runs")
    page.get_by_role("button", name="Run", exact=True).click()
    rising = page.locator(".runs tbody th").all_inner_texts()
    page.get_by_role("button", name="Run", exact=True).click()
    assert page.locator(".runs tbody th").all_inner_texts() == rising[::-1]
    assert rising.index("demo") < rising.index("other")
    assert page.locator("th[aria-sort]").get_attribute("aria-sort") == "descending"


def test_texts_of_a_run_stay_texts(server: Server, open_page: Open) -> None:
    name = "<img src=x onerror=alert(2)>"
    events: list[Event] = [STARTED, Notice("warning", HOSTILE, HOSTILE), Sampled(0, HOSTILE, HOSTILE), step(1)]
    write_run(server.folder / "adapters", name, records(*events))
    page = open_page(f"#/live/{name}")
    page.wait_for_selector(".warning")
    assert "<b>bold</b> \\u202eright to left \\u001b[31m" in page.locator(".warning").inner_text()
    assert page.locator("h1").inner_text() == name
    page.wait_for_selector(".side .answer")
    page.evaluate("name => { location.hash = '#/answers/' + encodeURIComponent(name) }", name)
    page.wait_for_selector(".wide .answer")
    assert "</script>" in page.locator(".wide .answer").inner_text()
    page.evaluate("location.hash = '#/runs'")
    page.wait_for_selector(".runs tbody tr")
    assert page.locator("main img, main b b, main script").count() == 0


def test_stopping_is_confirmed_and_needs_the_token(server: Server, open_page: Open) -> None:
    lock = take_lock(write_demo(server.folder, "works").file(LOCK))
    assert lock is not None
    page = open_page("#/live/works")
    page.get_by_role("button", name="Stop safely").click()
    dialog = page.get_by_role("dialog")
    page.keyboard.press("Escape")
    page.wait_for_selector("dialog", state="hidden")
    page.route(
        "**/stop", lambda route: route.fulfill(status=202, json={"asked": json.loads(route.request.post_data or "")})
    )
    page.get_by_role("button", name="Stop safely").click()
    with page.expect_request("**/stop") as asked:
        dialog.get_by_role("button", name="Stop safely").click()
    assert asked.value.headers["authorization"] == f"Bearer {server.token}"
    assert json.loads(asked.value.post_data or "") == {"confirm": True}
    asks_bare = "fetch('/api/runs/works/save', {method: 'POST', body: '{}'}).then(answer => answer.status)"
    assert page.evaluate(asks_bare) == 401
    os.close(lock)


def test_a_browser_without_the_token_is_asked_for_it(server: Server, browser: "Browser") -> None:
    page = browser.new_page()
    page.goto(server.address)
    page.get_by_label("Token or address").fill(server.link)
    page.get_by_role("button", name="Open").click()
    wait_for_step(page, 20)
    page.close()


def test_a_browser_that_was_opened_with_a_ticket_changes_it_at_once(server: Server, open_page: Open) -> None:
    page = open_page()
    page.evaluate("localStorage.clear()")
    page.route("**/api/ticket", lambda route: route.fulfill(json={"token": server.token}))
    with page.expect_request("**/api/ticket") as asked:
        page.evaluate("location.hash = '#ticket=abc'")
    assert json.loads(asked.value.post_data or "") == {"ticket": "abc"}
    page.wait_for_function("token => localStorage.getItem('mlxft-token') === token", arg=server.token)
    wait_for_step(page, 20)
    assert "ticket" not in page.url
    page.reload()
    wait_for_step(page, 20)


def test_nothing_scrolls_sideways_on_a_phone(server: Server, open_page: Open) -> None:
    name = "a-run-with-a-name-that-is-longer-than-a-phone-is-wide-and-has-no-place-to-break"
    long = "x" * 300
    events: list[Event] = [STARTED, Notice("warning", long, long), Sampled(0, long, long), step(1)]
    write_run(server.folder / "adapters", name, records(*events, RunFailed(long, long, 3)))
    page = open_page(width=360, height=740)
    for view in (f"live/{name}", f"answers/{name}", f"data/{name}", f"tokens/{name}", "runs", f"compare/{name}/other"):
        page.evaluate("view => { location.hash = '#/' + view }", view)
        page.wait_for_selector("main section")
        page.wait_for_timeout(400)
        assert page.evaluate("document.documentElement.scrollWidth") <= 360, view


def test_the_names_of_runs_can_be_read_on_a_phone(server: Server, open_page: Open) -> None:
    """A few letters a line are not to be read: the table scrolls in its frame instead."""
    page = open_page("#/runs", width=360, height=740)
    row = page.locator(".runs tbody tr", has=page.get_by_role("link", name="other", exact=True))
    row.wait_for()
    assert row.get_by_role("link").evaluate("link => link.getClientRects().length") == 1
    assert row.evaluate("row => row.clientHeight") < 60  # the model's name, in two lines at most


def test_the_verdicts_about_tokens_are_whole_words_on_a_phone(server: Server, open_page: Open) -> None:
    row = Row("rows.jsonl:3", (Token("Hi", False), Token("yes", True, 5.0, 0.1)))
    write_microscope(write_demo(server.folder, "lens"), Microscope((row,), Measured(model="tiny", step=7)))
    page = open_page("#/tokens/lens", width=360, height=740)
    word = page.locator(".verdicts th, .verdicts td:first-child").get_by_text("learned", exact=True)
    word.wait_for()
    assert word.evaluate("word => word.getClientRects().length") == 1
    assert word.evaluate("word => word.clientHeight || word.offsetHeight") < 32
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_the_last_figure_of_an_axis_has_room(server: Server, open_page: Open) -> None:
    """100,000 at the right edge was cut to 100,0."""
    write_run(server.folder / "adapters", "far", records(STARTED, step(1), step(50_000), step(100_000)))
    page = open_page("#/live/far")
    page.wait_for_selector(".plot .u-over")
    gap = "const plot = document.querySelector('.plot'), over = plot.querySelector('.u-over');"
    gap += " return plot.getBoundingClientRect().right - over.getBoundingClientRect().right"
    page.wait_for_function(f"() => {{ {gap} > 22 }}")  # a function: an expression is evaluated, which the page forbids


def test_colours_follow_the_system_and_the_switch(open_page: Open) -> None:
    page = open_page(color_scheme="dark")
    colour = "getComputedStyle(document.documentElement).backgroundColor"
    assert page.evaluate(colour) == "rgb(19, 20, 22)"
    switch = page.locator("#theme")
    switch.click()
    assert (switch.inner_text(), page.evaluate(colour)) == ("Light", "rgb(247, 247, 244)")
    page.reload()
    assert page.evaluate(colour) == "rgb(247, 247, 244)"


def test_everything_is_reached_by_the_tab_key_and_what_has_it_is_seen(server: Server, open_page: Open) -> None:
    add_records(write_demo(server.folder, "keys"), records(Resources(20, cpu_percent=10.0), start=1_000_100.0))
    page = open_page("#/live/keys")
    wait_for_step(page, 20)
    seen: list[str] = []
    for _ in range(40):
        page.keyboard.press("Tab")
        found = page.evaluate(
            "(() => { const e = document.activeElement, s = getComputedStyle(e);"
            " return [e.getAttribute('aria-label') || e.textContent.slice(0, 20) || e.id, s.outlineStyle] })()"
        )
        if found[0] and found[0].startswith("\n"):
            break
        seen.append(found[0])
        assert found[1] != "none", found
    for wanted in (
        "Skip to the content",
        "Live",
        "Answers",
        "Runs",
        "Colours",
        "Zoom in",
        "Last tenth",
        "Loss: each step",
    ):
        assert any(one.startswith(wanted) for one in seen), (wanted, seen)


def test_a_reward_takes_the_place_of_the_loss_when_the_run_starts(server: Server, open_page: Open) -> None:
    def drawn(number: int) -> Event:
        return dataclasses.replace(step(number, -0.01), metrics={"reward": number / 10})

    run = write_run(server.folder / "adapters", "rewarded", records(Phase("load", "tiny-llama")))
    page = open_page("#/live/rewarded")
    title = page.locator(".curves > figure b")
    title.wait_for()
    assert title.inner_text() == "Loss"
    started = dataclasses.replace(STARTED, task="grpo")
    add_records(run, records(started, *(drawn(number) for number in range(1, 11)), start=1_000_100.0))
    wait_for_step(page, 10)
    page.wait_for_function("() => document.querySelector('.curves > figure b').textContent === 'Reward'")
    titles = page.locator(".curves .grid figure b").all_inner_texts()
    assert titles[:2] == ["Validation loss", "Training loss"]
    assert "Answers a second" in titles
    assert "Reward" not in titles
    assert page.locator(".numbers dt").first.inner_text() == "reward, smoothed"
    assert page.locator(".numbers dd").first.get_attribute("data-trend") == "good"
