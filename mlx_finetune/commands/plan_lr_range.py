"""``mlxft plan --lr-range``: a rate for the recipe, found by taking real steps with rising ones."""

import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import click

_WIDTH, _HEIGHT = 70, 10


def print_range(path: Path, overrides: Sequence[str], *, as_json: bool) -> int:
    """Try, print, and return the exit code."""
    from mlx_finetune.app.planning.lr_range import find_range, is_near, range_lines, rate_names, refuse_own_answers
    from mlx_finetune.app.tune.buffers import tuned_buffers
    from mlx_finetune.commands.checked import check_recipe
    from mlx_finetune.commands.opening import LoadingTalk
    from mlx_finetune.hardware.planning.lr_range import NUM_STEPS
    from mlx_finetune.monitor.tui.chart import Curve, draw_chart
    from mlx_finetune.recipe.load import load_recipe, naming_recipe
    from mlx_finetune.recipe.overrides import train_command

    with naming_recipe(path, overrides):
        loaded = load_recipe(path, overrides)
        check_recipe(loaded, Path.cwd())
        refuse_own_answers(loaded.recipe)
        talk = LoadingTalk()
        if not sys.stderr.isatty():
            click.echo(f"trying {NUM_STEPS} steps with rising learning rates ...", err=True)
        hardware = loaded.recipe.hardware.model_copy(update=tuned_buffers(loaded.recipe))
        try:
            found = find_range(path, overrides, talk, hardware=hardware)
        finally:
            talk.clear()
    if as_json:
        click.echo(json.dumps({"lr_range": found.to_json()}))
        return 0
    curve = Curve([(float(number), one.smoothed) for number, one in enumerate(found.points)], "")
    chart = draw_chart([curve], width=_WIDTH, height=_HEIGHT, x_names=rate_names(found.points))
    given = [part for one in overrides for part in ("--set", one)]
    sweep = shlex.join(["mlxft", "sweep", str(path), *given])
    for line in range_lines(found, [text.plain.rstrip() for text in chart], sweep):
        click.echo(line)
    if found.suggestion is not None:
        changed = [] if is_near(found) else [f"training.learning_rate={found.suggestion:.1e}"]
        click.echo(f"\nnext: {train_command(path, [*overrides, *changed], loaded.recipe.run_folder)}", err=True)
    return 0
