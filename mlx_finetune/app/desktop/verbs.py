"""The shorter launchers: setup, monitor, chat, evaluate, test and stop. Each ends with what to double-click next."""

from collections.abc import Sequence
from pathlib import Path

from mlx_finetune.app.desktop.asking import choose, confirm
from mlx_finetune.app.desktop.desk import Desk
from mlx_finetune.app.desktop.launcher import Target, install
from mlx_finetune.app.desktop.next_steps import suggest
from mlx_finetune.app.desktop.overnight import night as nights
from mlx_finetune.app.desktop.overnight.dialogue import stop_night, tell_summary, unseen_night, watch_night
from mlx_finetune.app.desktop.runs import at_work, known_runs, label, pick_run, read_state
from mlx_finetune.app.desktop.training.dialogue import say_end, watch
from mlx_finetune.app.desktop.training.starts import FIRST
from mlx_finetune.errors import RunError
from mlx_finetune.recipe.gallery import find_recipe
from mlx_finetune.rundir import RunDir, find_run

BLOCKED = 3


def set_up(desk: Desk, target: Target, desktop: Path) -> int:
    """Look at the machine, put the launchers on the Desktop, fetch the first model; 3 where a blocker was found."""
    desk.say("The environment is ready. Is everything else?\n")
    code = desk.mlxft(["doctor"])
    if code == BLOCKED:
        desk.say("\nOne thing has to be mended first: the command for it stands above. Then double-click Setup again.")
        return code
    if desk.can_ask and confirm(desk, f"\nPut the launchers (Train, Monitor, Chat ...) into {desktop}?"):
        done = install(desktop, target)
        kept = [one.path.name for one in done if one.what == "foreign"]
        desk.say(f"{len(done) - len(kept)} launchers are in {desktop}")
        if kept:
            desk.say(f"Not written over, as these are not ours: {', '.join(kept)}")
    model = find_recipe(FIRST, Path()).model
    desk.say(f"\nFetching the first model, {model} (about 100 MB, once) ...")
    code = desk.mlxft(["models", "get", model])
    if code:
        desk.say("The model will be fetched when it is needed; everything else is set up.")
    suggest(desk, train="to train a first model in a few minutes")
    return code


def monitor(desk: Desk, given: Sequence[str]) -> int:
    """Show the night at work, else the training at work, else what became of the last one."""
    if not given:
        if (folder := nights.night_at_work(desk.logs)) is not None:
            return watch_night(desk, folder)
        running = at_work(desk)
        if running:
            return watch(desk, _one_of(desk, running, "Which training do you want to see?"))
        if (folder := unseen_night(desk)) is not None:
            return tell_summary(desk, folder)
        if not known_runs(desk):
            raise RunError("nothing has been trained here yet", 'double-click "Train" first')
    run = find_run(given[0], base=Path()) if given else known_runs(desk)[0]
    return watch(desk, run)


def _one_of(desk: Desk, runs: Sequence[RunDir], prompt: str) -> RunDir:
    if len(runs) == 1 or not desk.can_ask:
        return runs[0]
    picked = choose(desk, prompt, [label(run) for run in runs])
    assert isinstance(picked, int), "no path was asked for"
    return runs[picked]


def chat(desk: Desk, given: Sequence[str]) -> int:
    """A chat with a run. It gets the terminal as it is."""
    run = pick_run(desk, given, "Which run do you want to talk with?")
    code = desk.mlxft(["chat", str(run.path)])
    suggest(desk, train="to train further or on other data", evaluate="to measure what it learned")
    return code


def evaluate(desk: Desk, given: Sequence[str]) -> int:
    """What a run learned and forgot, in figures."""
    run = pick_run(desk, given, "Which run is to be measured?")
    desk.say(f"Measuring {label(run)}. Ctrl-C keeps what was measured; the next double-click goes on.\n")
    code = desk.mlxft(["eval", str(run.path)])
    suggest(desk, chat="to talk with it", train="to train further")
    return code


def stop(desk: Desk, given: Sequence[str]) -> int:
    """Let the training at work finish its step, save and leave; of a night, this one or all."""
    folder = None if given else nights.night_at_work(desk.logs)
    if folder is not None:
        labels = ["The whole night: this training saves, no other follows", "Only this training: the next one follows"]
        if not desk.can_ask or choose(desk, "A night is at work. What is to be stopped?", labels) == 0:
            return stop_night(desk, folder)
        night = nights.read_night(folder)
        item = night.current if night is not None else None
        if item is None:
            raise RunError("no training of this night is at work right now", "double-click again in a moment")
        run = RunDir(Path(item.run))
    elif given:
        run = find_run(given[0], base=Path())
    else:
        running = at_work(desk)
        if not running:
            desk.say("No training is at work here; there is nothing to stop.")
            suggest(desk, train="to start one")
            return 0
        run = _one_of(desk, running, "Which training is to be stopped?")
    code = desk.mlxft(["stop", str(run.path)])
    if read_state(run).kind == "running":
        return code
    return say_end(desk, run, code)
