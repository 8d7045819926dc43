"""``mlxft launch train``: a recipe is chosen or made, its price shown, the training started and watched.

The training belongs to no window: it is started in a session of its own, and this window only shows it.
"""

import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from mlx_finetune.app.desktop.asking import ask_path, choose, confirm
from mlx_finetune.app.desktop.desk import Cancelled, Desk
from mlx_finetune.app.desktop.next_steps import suggest
from mlx_finetune.app.desktop.runs import has_result, known_runs, read_state
from mlx_finetune.app.desktop.training import guide
from mlx_finetune.app.desktop.training.price import first_fix, price_lines
from mlx_finetune.app.desktop.training.starts import (
    FIRST,
    Offer,
    Start,
    ask_how,
    bring_data,
    check_recipe_file,
    offers,
    recipe_path,
    start_of,
    unfinished,
)
from mlx_finetune.errors import UsageError
from mlx_finetune.rundir import REPORT, RunDir, running_process

DOES_NOT_FIT = 3
REPORT_SECONDS = 5.0
OWN_DATA = "My own data: make a recipe from a file or a folder"
OTHER_FILE = "Another recipe file"


def train(desk: Desk, given: Sequence[str]) -> int:
    """Choose, show, start, watch; the exit code. Raises ``MlxftError`` and ``Cancelled``."""
    start = pick_start(desk, given)
    if running_process(start.run) is not None:
        desk.say(f"\n{start.name} is at work already; here it is.")
        return watch(desk, start.run)
    if start.is_resumed:
        desk.say(f"\n{start.name} goes on where it stopped.")
    else:
        start = check_price(desk, start)
    desk.say(f"\nStarting {start.name}. Ctrl-C before its first step stops it.")
    code = desk.mlxft(["train", *start.arguments, "--detach"])
    if code:
        suggest(desk, train="again once that is mended")
        return code
    desk.say("\nThe training does not need this window: closing it changes nothing, and Monitor shows it again.")
    return watch(desk, start.run)


def pick_start(desk: Desk, given: Sequence[str]) -> Start:
    """What is to be trained: named, chosen, dragged in, made from a person's own data, or left unfinished.

    Raises ``Cancelled`` and ``MlxftError``.
    """
    if given:
        return _of_recipe(desk, recipe_path(desk, given[0]))
    if not desk.can_ask:
        raise UsageError("there is no terminal to ask on", "name the recipe: mlxft launch train RECIPE")
    left, files = unfinished(desk), offers(desk)
    if not known_runs(desk):
        first = _first_time(desk, files)
        if first is not None:
            return _of_recipe(desk, first)
    labels = [*(f"Go on with {start.name} ({read_state(start.run).words})" for start in left)]
    labels += [*(offer.label for offer in files), OWN_DATA, OTHER_FILE]
    picked = choose(desk, "What is to be trained?", labels, paths="a recipe")
    if isinstance(picked, Path):
        return _of_recipe(desk, check_recipe_file(desk, picked))
    if picked < len(left):
        return left[picked]
    if picked < len(left) + len(files):
        return _of_recipe(desk, files[picked - len(left)].path)
    if labels[picked] == OWN_DATA:
        return _of_recipe(desk, guide.make_recipe(desk))
    return _of_recipe(desk, check_recipe_file(desk, ask_path(desk, "Which recipe", "file")))


def _first_time(desk: Desk, files: Sequence[Offer]) -> Path | None:
    """The recipe for whoever trains for the first time; None where all of them are to be seen. Raises ``Cancelled``."""
    quickstart = next((offer for offer in files if offer.path.stem == FIRST and offer.state is not None), None)
    if quickstart is None:
        return None
    labels = [f"Try it out: {quickstart.purpose}", OWN_DATA, f"All {len(files)} recipes"]
    picked = choose(desk, "Nothing has been trained here yet. How do you want to begin?", labels, paths="a recipe")
    if isinstance(picked, Path):
        return check_recipe_file(desk, picked)
    return quickstart.path if picked == 0 else guide.make_recipe(desk) if picked == 1 else None


def _of_recipe(desk: Desk, recipe: Path) -> Start:
    start, state = start_of(bring_data(desk, recipe))
    return ask_how(desk, start, state)


def check_price(desk: Desk, start: Start) -> Start:
    """Say what it costs and ask; what does not fit is offered with the plan's own way to fit. Raises ``Cancelled``."""
    plan = ["plan", *start.plan_arguments, "--no-measure"]
    ran = desk.read_mlxft([*plan, "--json"])
    lines = price_lines(ran.out) if ran.code == 0 else []
    if not lines:  # its own words say best what is wrong
        desk.say("")
        code = desk.mlxft(plan)
        if code == DOES_NOT_FIT:
            return _made_to_fit(desk, start, first_fix(ran.out))
        if code:
            suggest(desk, train="again once that is mended")
            raise Cancelled
    else:
        desk.say(f"\n{start.name} will take on this machine:")
        for line in lines:
            desk.say(line)
        desk.say(f"  (all of it, with reasons: mlxft {shlex.join(plan)})")
    if desk.can_ask and not confirm(desk, "\nStart the training?"):
        raise Cancelled
    return start


def _made_to_fit(desk: Desk, start: Start, overrides: Sequence[str]) -> Start:
    if not overrides or not desk.can_ask or not confirm(desk, "\nChange it in the first of these ways?"):
        desk.say('It was not started. A smaller model fits: "Train", "My own data" lists those that do.')
        raise Cancelled
    return check_price(desk, replace(start, overrides=(*start.overrides, *overrides)))


def watch(desk: Desk, run: RunDir) -> int:
    """Show a run until it ends or the person leaves; then what to double-click. The exit code of the run's end."""
    while True:
        code = desk.mlxft(["monitor", str(run.path), "--until-end"])
        if running_process(run) is None:
            return say_end(desk, run, code)
        if not desk.can_ask:
            return code
        labels = [
            "Leave it at work and close this window",
            "Stop it safely: it finishes its step and saves",
            "Watch on",
        ]
        try:
            picked = choose_here(desk, f"{run.path.name} is still at work.", labels)
        except Cancelled:
            picked = 0
        if picked == 0:
            suggest(desk, monitor="to see it again", stop="to end it with everything saved")
            return 0
        if picked == 1:
            code = desk.mlxft(["stop", str(run.path)])
            return say_end(desk, run, code)


def choose_here(desk: Desk, prompt: str, labels: Sequence[str]) -> int:
    """A choice that is made in the window, where the person has just pressed a key. Raises ``Cancelled``."""
    picked = choose(replace(desk, has_dialogs=False), prompt, labels)
    assert isinstance(picked, int), "no path was asked for"
    return picked


def say_end(desk: Desk, run: RunDir, code: int) -> int:
    """What to do with a run that is not at work any more."""
    state = read_state(run)
    _say_report(desk, run)
    if state.kind == "finished":
        suggest(
            desk, test="to see its answers beside those of the base", chat="to talk with it", evaluate="to measure it"
        )
    elif has_result(run):
        suggest(desk, train="to go on with it", test="to see what it has learned so far")
    else:
        suggest(desk, train="to start it again")
    return code


def _say_report(desk: Desk, run: RunDir) -> None:
    """Where the run's page is. It is made after the end that is seen here, so it may take a moment."""
    page = run.file(REPORT)
    end = desk.now() + REPORT_SECONDS
    while has_result(run) and not page.is_file() and desk.now() < end:
        desk.sleep(0.2)
    if page.is_file():
        desk.say(f"\nCurves, answers and settings of {run.path.name} on one page for your browser:\n{page.resolve()}")
