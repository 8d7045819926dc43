"""``mlxft tune``: measure settings on this machine and keep the fastest safe ones."""

import json
import shlex
import sys
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:  # imported inside the functions: help must stay cheap (benchmarks/help_cost.py)
    from mlx_finetune.app.tune.session import Session
    from mlx_finetune.app.tune.subject import Subject
    from mlx_finetune.hardware.limits import Machine
    from mlx_finetune.hardware.tuned import Tried, TunedSet, TunedSettings

INTERRUPTED_EXIT = 130
BUSY_SHARE = 0.1  # of the processors, from which on other programs are named
_CLEAR_LINE = "\r\x1b[K"


@click.command()
@click.argument("recipe", type=click.Path(path_type=Path), required=False)
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change one key, e.g. quantize=4.")
@click.option("--show", is_flag=True, help="Show what is kept, since when, and how much faster it was.")
@click.option("--reset", is_flag=True, help="Forget it: the defaults count again.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(recipe: Path | None, overrides: tuple[str, ...], show: bool, reset: bool, as_json: bool) -> int:
    """Measure this machine, at most five minutes, and keep the fastest settings that are safe.

    Recipes use them wherever they say "auto". With RECIPE its own model and rows are measured, and what is found
    counts for recipes of the same model and shapes; without, a small model. Settings may change how numbers are
    rounded, never what is learned. Ctrl-C keeps what was settled before.
    """
    from mlx_finetune.errors import UsageError

    if show and reset:
        raise UsageError("--show and --reset do not go together", "leave out one of them")
    if overrides and recipe is None:
        raise UsageError("--set changes a recipe, and none is named", "mlxft tune RECIPE --set KEY=VALUE")
    if show:
        return _show(recipe, overrides, as_json=as_json)
    if reset:
        return _reset(recipe, overrides, as_json=as_json)
    return _tune(recipe, overrides, as_json=as_json)


def _tune(recipe: Path | None, overrides: Sequence[str], *, as_json: bool) -> int:
    from mlx_finetune.app.tune.children import run_trial
    from mlx_finetune.app.tune.session import Session

    machine = _this_machine()
    with _alone(), _subject(recipe, overrides) as subject:
        talk = _Talk()
        session = Session(lambda *asked: run_trial(subject, *asked, tick=talk.tick), talk)
        talk.session = session
        _warn_before()
        code = 0
        try:
            session.run()
        except KeyboardInterrupt:
            from mlx_finetune.app.tune.keep import INTERRUPTED

            code, session.ended_early = INTERRUPTED_EXIT, INTERRUPTED
        finally:
            talk.clear()
        return _finish(session, subject, machine, code, as_json=as_json)


def _finish(session: "Session", subject: "Subject", machine: "Machine", code: int, *, as_json: bool) -> int:
    """Keep what was found and tell it."""
    import time

    from mlx_finetune.app.tune.keep import found_set, keep

    if not session.has_compared:
        click.echo(f"{session.ended_early} before anything could be compared; nothing was changed", err=True)
        click.echo(
            "hint: tune again when other programs are quiet, or for a smaller recipe: mlxft tune RECIPE", err=True
        )
        return code or 1
    found = found_set(session, subject, made=time.time())
    kept = keep(_profile_path(), machine, subject.key, found)
    was_seen = sys.stdout.isatty() and sys.stderr.isatty() and kept is found  # what was tried, as it was settled
    _print(machine, {subject.key: kept}, as_json=as_json, has_tried=not was_seen)
    if kept is not found:
        click.echo(f"{found.ended_early}; what was tuned on {kept.date} stays, it was no slower", err=True)
    if session.others_share >= BUSY_SHARE:
        words = f"other programs used {session.others_share:.0%} of the processors"
        click.echo(f"warning: {words}; tune again when it is quiet", err=True)
    if not as_json:
        following = f"mlxft plan {shlex.quote(str(subject.recipe))}" if subject.recipe else "mlxft plan RECIPE"
        click.echo(f"\nnext: {following}   # its reasons name what is used", err=True)
        click.echo("to forget it: mlxft tune --reset", err=True)
    return code


def _show(recipe: Path | None, overrides: Sequence[str], *, as_json: bool) -> int:
    from mlx_finetune.hardware.profile import machine_key, read_profile
    from mlx_finetune.hardware.tuned import stale_sentences, system_name

    machine = _this_machine()
    profile = read_profile(_profile_path())
    name = machine_key(machine)
    sets = profile.tuned.get(name, {})
    if recipe is not None:
        key = _key(recipe, overrides)
        sets = {one: found for one, found in sets.items() if one == key}
    stale = stale_sentences(profile.tuned, name, system_name())
    if profile.warning:
        click.echo(f"warning: {profile.warning}", err=True)
    _print(machine, sets, as_json=as_json, stale=stale)
    named = f" {shlex.quote(str(recipe))}" if recipe is not None else ""
    for sentence in stale:
        click.echo(f"warning: {sentence}: it is not used any more; tune again: mlxft tune", err=True)
    if not sets and not as_json:
        click.echo(f"nothing was tuned here yet{f' for{named}' if named else ''}", err=True)
        click.echo(f"next: mlxft tune{named}", err=True)
    return 0


def _reset(recipe: Path | None, overrides: Sequence[str], *, as_json: bool) -> int:
    from mlx_finetune.hardware.profile import forget_tuned, machine_key
    from mlx_finetune.units import counted

    key = None if recipe is None else _key(recipe, overrides)
    with _alone():
        count = forget_tuned(_profile_path(), machine_key(_this_machine()), key)
    if as_json:
        click.echo(json.dumps({"forgotten": count}))
    elif count:
        click.echo(f"forgot {counted(count, 'set')}: the defaults count again", err=True)
    else:
        click.echo("nothing was kept, so nothing was forgotten", err=True)
    return 0


def _print(
    machine: "Machine",
    sets: "Mapping[str, TunedSet]",
    *,
    as_json: bool,
    stale: Sequence[str] = (),
    has_tried: bool = True,
) -> None:
    from mlx_finetune.app.tune.show import set_lines, sets_json
    from mlx_finetune.hardware.profile import machine_key
    from mlx_finetune.hardware.tuned import system_name

    name = machine_key(machine)
    if as_json:
        click.echo(json.dumps(sets_json(name, system_name(), sets, stale), ensure_ascii=False))
        return
    for number, one in enumerate(sets.values()):
        if number:
            click.echo()
        for line in set_lines(one, has_tried=has_tried):
            click.echo(line)


class _Talk:
    """What goes on: one line that is overwritten, in a terminal, and one for each candidate that is settled."""

    def __init__(self) -> None:
        self.session: Session | None = None
        self._is_terminal = sys.stderr.isatty()
        self._now = ""
        self._shown = ""

    def begin(self, settings: "TunedSettings", round_number: int) -> None:
        """A process starts."""
        from mlx_finetune.app.tune.show import asked_text

        which = f"round {round_number}: " if round_number else "getting ready: "
        self._now = f"{which}{asked_text(settings)}"
        self.tick()

    def tick(self) -> None:
        """Time has passed."""
        if not self._is_terminal or self.session is None:
            return
        import shutil

        from mlx_finetune.app.text import shorten

        elapsed, budget = int(self.session.elapsed), int(self.session.budget)
        clock = f"{elapsed // 60}:{elapsed % 60:02d} of at most {budget // 60}:{budget % 60:02d}"
        line = shorten(f"tuning, {clock}, {self._now}", max(20, shutil.get_terminal_size().columns - 1))
        if line != self._shown:
            click.echo(f"{_CLEAR_LINE}{line}", err=True, nl=False)
            self._shown = line

    def settled(self, tried: "Sequence[Tried]") -> None:
        """A stage is over."""
        from mlx_finetune.app.tune.show import tried_line

        self.clear()
        for one in tried:
            click.echo(f"{'kept' if one.verdict == 'kept' else 'tried':<8}{tried_line(one)}", err=True)

    def clear(self) -> None:
        """Take the overwritten line away."""
        if self._is_terminal:
            click.echo(_CLEAR_LINE, err=True, nl=False)
            self._shown = ""


@contextmanager
def _subject(recipe: Path | None, overrides: Sequence[str]) -> "Generator[Subject]":
    from mlx_finetune.app.tune.subject import of_recipe, small_subject

    if recipe is None:
        with small_subject() as subject:
            yield subject
        return
    from mlx_finetune.commands.checked import check_recipe
    from mlx_finetune.recipe.load import load_recipe, naming_recipe

    with naming_recipe(recipe, overrides):
        loaded = load_recipe(recipe, overrides)
        check_recipe(loaded, Path.cwd())
        yield of_recipe(loaded)


@contextmanager
def _alone() -> Generator[None]:
    """Two that measure at once would measure each other. Raises ``RunError`` where another one is at work."""
    import os

    from mlx_finetune import durable, rundir
    from mlx_finetune.errors import RunError
    from mlx_finetune.model.sources.catalogue import cache_folder

    durable.make_folder(cache_folder())
    lock = rundir.take_lock(cache_folder() / "tune.lock")
    if lock is None:
        raise RunError("another mlxft tune is at work on this machine", "wait for its end")
    try:
        yield
    finally:
        os.close(lock)


def _warn_before() -> None:
    """What would make the figures those of another machine."""
    from mlx_finetune.hardware.sensors import system_sensors
    from mlx_finetune.rundir import list_runs, running_process

    for run in list_runs(Path("adapters")):
        if running_process(run) is not None:
            click.echo(f"warning: {run.name} is being trained: beside it everything measured is slower", err=True)
            click.echo(f"hint: Ctrl-C, and tune again when it has ended (mlxft monitor {run.name})", err=True)
    if system_sensors().read_power().on_battery:
        click.echo("warning: on battery, where a laptop may be slower than on mains power", err=True)


def _key(recipe: Path, overrides: Sequence[str]) -> str:
    from mlx_finetune.hardware.tuned import recipe_key
    from mlx_finetune.recipe.load import load_recipe

    return recipe_key(load_recipe(recipe, overrides).recipe)


def _this_machine() -> "Machine":
    from mlx_finetune.commands.plan import this_machine

    return this_machine()


def _profile_path() -> Path:
    from mlx_finetune.commands.plan import profile_path

    return profile_path()
