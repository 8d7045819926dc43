"""The full-screen monitor under a person's keys, and what happens to a run while it is watched."""

import asyncio
import math
import shutil
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from golden_screens import COMMAND, at_work, in_utc, monitor, screen, settled, write_runs
from screen_runs import START, STARTED, append, at_pace, evaluated, step, working_run, write_run
from textual.pilot import Pilot

from mlx_finetune.errors import RunError
from mlx_finetune.events import CheckpointSaved, Evaluated, Paused, Phase, RunFailed, RunFinished, RunStopped, Sampled
from mlx_finetune.monitor.tui.app import MonitorApp
from mlx_finetune.monitor.tui.hands import Hands
from mlx_finetune.rundir import EVENTS, LOCK, RunDir, take_lock

Scenario = Callable[[Pilot[int], MonitorApp], Awaitable[None]]


@pytest.fixture(autouse=True)
def utc() -> Iterator[None]:
    with in_utc():
        yield


@pytest.fixture
def demo(tmp_path: Path) -> RunDir:
    return write_runs(tmp_path)


def play(app: MonitorApp, scenario: Scenario, size: tuple[int, int] = (80, 24)) -> None:
    """Run the scenario against the app."""

    async def run() -> None:
        async with app.run_test(size=size) as pilot:
            await settled(pilot)
            await scenario(pilot, app)

    asyncio.run(run())


async def look_again(pilot: Pilot[int], app: MonitorApp) -> list[str]:
    """As if a second had gone by."""
    app.watched._next_look = 0.0
    app.look()
    return await settled(pilot)


def test_digits_tab_and_arrows_go_through_the_panes(demo: RunDir) -> None:
    seen: list[str] = []

    async def scenario(pilot: Pilot[int], app: MonitorApp) -> None:
        for key in ("2", "7", "tab", "shift+tab", "right", "right", "left", "4", "question_mark", "question_mark"):
            await pilot.press(key)
            seen.append(app.looking.pane)

    play(monitor(demo), scenario)
    assert seen == [
        "curves",
        "runs",
        "overview",
        "runs",
        "overview",
        "curves",
        "overview",
        "machine",
        "help",
        "overview",
    ]


def test_stop_asks_once_and_only_yes_stops(demo: RunDir) -> None:
    acts: list[str] = []

    async def scenario(pilot: Pilot[int], app: MonitorApp) -> None:
        for refusal in ("n", "escape"):
            await pilot.press("s")
            assert "Stop demo? It finishes its step, saves and leaves; it can be resumed." in " ".join(screen(app))
            await pilot.press(refusal)
            assert "Stop demo?" not in " ".join(screen(app))
        assert acts == []
        await pilot.press("s", "y")
        assert acts == ["stop demo"]
        assert "demo was asked to stop" in " ".join(await settled(pilot))
        await pilot.press("y")  # there is no question any more: this copies
        assert acts == ["stop demo"]

    with at_work(demo):
        play(monitor(demo, acts=acts), scenario)


def test_a_question_does_not_outlive_another_key(demo: RunDir) -> None:
    acts: list[str] = []

    async def scenario(pilot: Pilot[int], app: MonitorApp) -> None:
        await pilot.press("s", "2", "y")
        assert acts == []
        assert app.clipboard == COMMAND

    with at_work(demo):
        play(monitor(demo, acts=acts), scenario)


def test_a_checkpoint_is_asked_for_and_told_when_it_is_there(demo: RunDir) -> None:
    acts: list[str] = []

    async def scenario(pilot: Pilot[int], app: MonitorApp) -> None:
        await pilot.press("c")
        assert acts == ["save demo"]
        assert "asked for a checkpoint; it follows the step at hand" in " ".join(await settled(pilot))
        append(demo, at_pace([step(321), CheckpointSaved(321, "checkpoint-321", 42_000_000, 0.4)], start=START + 640))
        assert "step 321 is saved: checkpoint-321, 42.0 MB" in " ".join(await look_again(pilot, app))

    with at_work(demo):
        play(monitor(demo, acts=acts), scenario)


@pytest.mark.parametrize("key", ["s", "c"])
def test_a_run_that_is_not_at_work_cannot_be_asked(demo: RunDir, key: str) -> None:
    acts: list[str] = []

    async def scenario(pilot: Pilot[int], app: MonitorApp) -> None:
        await pilot.press(key, "y")
        assert acts == []
        await pilot.press(key)
        assert "demo is not at work (gone): there is nothing to" in " ".join(await settled(pilot))

    play(monitor(demo, acts=acts), scenario)


def test_in_a_pause_everything_is_saved_already(demo: RunDir) -> None:
    acts: list[str] = []
    append(demo, at_pace([Paused(320, "the battery is at 19%")], start=START + 640))

    async def scenario(pilot: Pilot[int], app: MonitorApp) -> None:
        await pilot.press("c")
        assert acts == []
        said = " ".join(await settled(pilot))
        assert "it is paused, and everything up to step 320 is saved" in said
        assert "paused" in said.split("step 320")[0]

    with at_work(demo):
        play(monitor(demo, acts=acts), scenario)


def test_what_stands_in_the_way_of_a_key_is_said_with_its_way_out(demo: RunDir) -> None:
    def refuse(run: RunDir) -> None:
        raise RunError(f"process 1 of {run.path.name} belongs to another user", "stop it there with: kill 1")

    app = MonitorApp(demo, Hands(lambda: [demo], refuse, refuse, lambda run: ""))

    async def scenario(pilot: Pilot[int], app: MonitorApp) -> None:
        await pilot.press("c")
        assert "belongs to another user; stop it there with: kill 1" in " ".join(await settled(pilot))
        await pilot.press("y")
        assert "no command to resume it" in " ".join(await settled(pilot))

    with at_work(demo):
        play(app, scenario)


def test_the_command_that_resumes_is_copied_and_shown_whole(demo: RunDir) -> None:
    async def scenario(pilot: Pilot[int], app: MonitorApp) -> None:
        await pilot.press("y")
        assert app.clipboard == COMMAND
        assert COMMAND in " ".join(" ".join(line.split()) for line in await settled(pilot))

    play(monitor(demo), scenario, size=(40, 16))


def test_a_finished_run_is_trained_further_not_resumed(demo: RunDir) -> None:
    async def scenario(pilot: Pilot[int], app: MonitorApp) -> None:
        await pilot.press("y")
        assert app.clipboard == COMMAND.replace("--resume", "--extend 100")
        assert "it is finished; this trains it further" in " ".join(await settled(pilot))

    play(monitor(RunDir(demo.path.parent / "haiku")), scenario)


@pytest.mark.parametrize("size", [(80, 24), (120, 40), (200, 50), (40, 12)])
def test_numbers_that_are_not_finite_are_said_and_break_nothing(tmp_path: Path, size: tuple[int, int]) -> None:
    import dataclasses

    bad = dataclasses.replace(step(3), loss=math.nan, grad_norm=math.inf)
    events = [STARTED, Evaluated(0, math.nan, 10, False, 0.1), step(1), step(2), bad]
    run = write_run(tmp_path / "run", at_pace([*events, Evaluated(3, math.inf, 10, False, 0.1)]), checkpoints=[3])

    async def scenario(pilot: Pilot[int], app: MonitorApp) -> None:
        for key in "1234567":
            await pilot.press(key)
            lines = await settled(pilot)
            assert lines[0].startswith(" run")
            assert key != "1" or "not finite" in " ".join(lines)

    with at_work(run):
        play(monitor(run), scenario, size=size)


def test_a_clipboard_of_the_machine_itself_comes_before_that_of_the_terminal(demo: RunDir) -> None:
    copied: list[str] = []

    def copy(text: str) -> bool:
        copied.append(text)
        return True

    app = MonitorApp(demo, Hands(lambda: [demo], print, print, lambda run: COMMAND, copy))

    async def scenario(pilot: Pilot[int], app: MonitorApp) -> None:
        await pilot.press("y")
        assert (copied, app.clipboard) == ([COMMAND], "")

    play(app, scenario)


def test_runs_are_listed_those_at_work_first_and_return_shows_one(demo: RunDir) -> None:
    async def scenario(pilot: Pilot[int], app: MonitorApp) -> None:
        await pilot.press("7")
        names = [line.split()[1 if "\u25b6" in line else 0] for line in (await settled(pilot))[3:6]]
        assert names == ["haiku", "demo", "loading"]  # at work first, then the latest
        await pilot.press("up", "up", "enter")
        assert app.watched.run.path.name == "haiku"
        assert (await settled(pilot))[0].split()[:2] == ["haiku", "finished"]
        await pilot.press("7", "down", "down", "down", "enter")
        lines = await settled(pilot)
        assert app.watched.run.path.name == "loading"
        assert lines[0].split()[:2] == ["loading", "gone"]

    haiku = RunDir(demo.path.parent / "haiku")
    with at_work(haiku):
        play(monitor(demo), scenario)


def test_another_size_is_drawn_at_once(demo: RunDir) -> None:
    async def scenario(pilot: Pilot[int], app: MonitorApp) -> None:
        for width, height in ((120, 40), (40, 12), (20, 6), (200, 60), (80, 24)):
            await pilot.resize_terminal(width, height)
            lines = await settled(pilot)
            assert len(lines) == height
            assert lines[0].startswith(" demo")
            assert "leave" in lines[-1] or width < 40

    play(monitor(demo), scenario)


@pytest.mark.parametrize(
    ("end", "word", "said"),
    [
        (RunFinished(321, "finished", 2.5, 1.25, 300, 1.25, 80.0, 16_000, 10**9, "", 300), "finished", "mlxft chat "),
        (RunStopped(321, 15), "stopped", "stopped after step 321; everything up to there is saved. y copies"),
        (RunFailed("the loss is not finite", "lower it", 1), "failed", "failed: the loss is not finite; lower it"),
        (step(322), "gone", "the training is gone without a word after step 322"),
    ],
)
def test_a_run_that_ends_while_it_is_watched_says_how(demo: RunDir, end: object, word: str, said: str) -> None:
    lock = take_lock(demo.file(LOCK))
    assert lock is not None

    async def scenario(pilot: Pilot[int], app: MonitorApp) -> None:
        import os

        assert "training" in (await settled(pilot))[0]
        append(demo, at_pace([step(321), end], start=START + 640))  # pyright: ignore[reportArgumentType]
        os.close(lock)
        lines = await look_again(pilot, app)
        assert word in lines[0]
        assert said in " ".join(lines)
        assert "left)" not in lines[0]
        await pilot.press("escape")
        assert said not in " ".join(await settled(pilot))

    play(monitor(demo), scenario, size=(120, 40))


def test_a_process_that_went_away_without_a_word_is_told(demo: RunDir) -> None:
    async def scenario(pilot: Pilot[int], app: MonitorApp) -> None:
        assert "gone" in (await settled(pilot))[0]

    play(monitor(demo), scenario)


def test_a_run_that_is_resumed_while_it_is_watched_goes_back_to_its_checkpoint(demo: RunDir) -> None:
    """Its journal is cut back to step 300, where it starts again."""
    import dataclasses

    lines = demo.file(EVENTS).read_bytes().splitlines(keepends=True)
    cut = next(place for place, line in enumerate(lines) if b'"checkpoint-300"' in line) + 1

    async def scenario(pilot: Pilot[int], app: MonitorApp) -> None:
        assert app.watched.summary.steps_done == 320
        demo.file(EVENTS).write_bytes(b"".join(lines[:cut]))
        append(demo, at_pace([dataclasses.replace(STARTED, first_step=300), step(301)], start=START + 700))
        await look_again(pilot, app)
        assert app.watched.summary.steps_done == 301
        assert app.watched.curves["lead"].xs[-2:] == [300, 301]
        assert "step 301/400" in screen(app)[0]

    with at_work(demo):
        play(monitor(demo), scenario)


def test_a_run_that_is_deleted_stays_on_the_screen_and_a_new_one_in_its_place_is_read(demo: RunDir) -> None:
    async def scenario(pilot: Pilot[int], app: MonitorApp) -> None:
        shutil.rmtree(demo.path)
        lines = await look_again(pilot, app)
        assert "deleted" in lines[0]
        assert "validation 1.4447" in " ".join(lines)
        write_run(demo.path, at_pace([STARTED, *evaluated(0, 0), step(1)]))
        lines = await look_again(pilot, app)
        assert "step 1/400" in lines[0]
        assert "1.4447" not in " ".join(lines)

    play(monitor(demo), scenario)


def test_a_run_that_is_prepared_shows_what_it_does(tmp_path: Path) -> None:
    run = write_run(tmp_path / "new", at_pace([Phase("download", "tiny", 10**7, 2 * 10**7, "bytes")]))

    async def scenario(pilot: Pilot[int], app: MonitorApp) -> None:
        lines = await settled(pilot)
        assert "preparing" in lines[0]
        assert "download tiny 10.0 MB of 20.0 MB" in " ".join(lines)
        assert "\u2501" in lines[0]

    with at_work(run):
        play(monitor(run), scenario)


HOSTILE = "[red]no[/red] \x1b[31mANSI\x1b[0m \u202eevil\u202c <b>\x07 [link=x]y"
CLEAN = "[red]no[/red]  [31mANSI [0m  evil  <b>  [link=x]y"


def test_text_of_others_is_shown_as_it_is_and_never_obeyed(tmp_path: Path) -> None:
    journal = [*working_run(steps=10), *at_pace([Sampled(10, HOSTILE, HOSTILE), Paused(10, HOSTILE)])]
    run = write_run(tmp_path / "[bold]x \x1b[31m", journal)

    async def scenario(pilot: Pilot[int], app: MonitorApp) -> None:
        header = (await settled(pilot))[0]
        assert header.startswith(" [bold]x  [31m  paused")
        for key in ("3", "5", "7"):
            await pilot.press(key)
            text = "\n".join(await settled(pilot))
            assert all(char == "\n" or char.isprintable() for char in text)
            if key != "7":
                assert CLEAN.split()[0] in text
                assert "[31mANSI [0m" in text
                assert "[link=x]y" in text

    with at_work(run):
        play(monitor(run), scenario, size=(120, 40))


def test_answers_are_stepped_through_evaluation_by_evaluation(demo: RunDir) -> None:
    async def scenario(pilot: Pilot[int], app: MonitorApp) -> None:
        seen: list[str] = []
        for key in ("3", "comma", "comma", "comma", "comma", "full_stop"):
            await pilot.press(key)
            seen.append((await settled(pilot))[2].split(" ──")[0])
        at = "── answers at step"
        assert seen == [
            f"{at} 300",
            f"{at} 200",
            f"{at} 100",
            "── answers before training",
            "── answers before training",
            f"{at} 100",
        ]

    play(monitor(demo), scenario)


def test_words_that_changed_are_marked_without_colours_too(demo: RunDir) -> None:
    async def scenario(pilot: Pilot[int], app: MonitorApp) -> None:
        await pilot.press("3")
        await settled(pilot)
        (line,) = [strip for strip in app.screen._compositor.render_strips() if "scatters" in strip.text]
        marked = "".join(segment.text for segment in line if segment.style and segment.style.underline)
        assert marked == "blue light the most"

    play(monitor(demo), scenario)


def test_zoom_leaves_out_the_first_steps(demo: RunDir) -> None:
    async def scenario(pilot: Pilot[int], app: MonitorApp) -> None:
        await pilot.press("2")
        whole = "\n".join(await settled(pilot))
        await pilot.press("z")
        half = "\n".join(await settled(pilot))
        assert "last half" in half
        assert "last half" not in whole
        await pilot.press("z", "z")
        assert "\n".join(await settled(pilot)) == whole

    play(monitor(demo), scenario)


def test_only_lines_that_change_are_drawn_again(demo: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """A frame that is the same as the one before asks the terminal for nothing."""
    from mlx_finetune.monitor.tui.screen import LinesView

    drawn: list[object] = []

    async def scenario(pilot: Pilot[int], app: MonitorApp) -> None:
        await settled(pilot)
        refresh = LinesView.refresh
        monkeypatch.setattr(
            LinesView,
            "refresh",
            lambda self, *regions, **more: (drawn.extend(regions), refresh(self, *regions, **more))[1],
        )
        app.draw()
        assert drawn == []
        append(demo, at_pace([step(321)], start=START + 640))
        await look_again(pilot, app)
        assert 0 < len(drawn) < 24

    play(monitor(demo), scenario)


def test_a_frame_that_costs_much_is_drawn_seldom(demo: RunDir) -> None:
    """A tenth of a second of processor time for each: the next comes after eight seconds, a key is answered at once."""
    now, spent = [1000.0], [0.0]
    drawn: list[float] = []

    class Slow(MonitorApp):
        def draw(self) -> None:
            drawn.append(now[0])
            super().draw()
            spent[0] += 0.1

    hands = Hands(lambda: [demo], print, print, lambda run: "")
    app = Slow(demo, hands, clock=lambda: START + 645, ticks=lambda: now[0], cpu=lambda: spent[0])

    async def scenario(pilot: Pilot[int], app: MonitorApp) -> None:
        drawn.clear()
        app.draw()
        for second in range(1, 21):
            now[0] = 1000.0 + second
            append(demo, at_pace([step(320 + second)], start=START + 640 + second))
            app.look()
        assert drawn == [1000.0, 1008.0, 1016.0]
        await pilot.press("2")
        assert drawn[-1] == 1020.0

    play(app, scenario)


@pytest.mark.parametrize("key", ["q", "ctrl+c", "ctrl+q"])
def test_leaving_touches_nothing(demo: RunDir, key: str) -> None:
    acts: list[str] = []
    before = {path: path.read_bytes() for path in demo.path.rglob("*") if path.is_file()}
    app = monitor(demo, acts=acts)

    async def scenario(pilot: Pilot[int], app: MonitorApp) -> None:
        await pilot.press(key)

    with at_work(demo):
        before[demo.file(LOCK)] = demo.file(LOCK).read_bytes()
        play(app, scenario)
        assert {path: path.read_bytes() for path in demo.path.rglob("*") if path.is_file()} == before
    assert (app.return_value, acts) == (0, [])
