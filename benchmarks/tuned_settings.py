"""Settings beside the defaults, as many rounds as wanted: whether what `mlxft tune` kept is faster the next day, too.

    python benchmarks/tuned_settings.py [--recipe RECIPE] [--rounds 5] [hardware.microbatch=2 ...]

Without settings those that are kept on this machine. In each round a process with the defaults and one with the
settings take the same steps, in alternating order; the ratios are of the medians of a round's steps. Fastest and
median, and the largest difference of a loss.
"""

import argparse
import statistics
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlx_finetune.hardware.tuned import TunedSettings
    from mlx_finetune.recipe.schema import Recipe


def main() -> int:
    """Print a line for each round, then the ratios; 1 where there is nothing to compare or a process fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=Path, help="recipe whose model and rows are used; else a small model")
    parser.add_argument("--rounds", type=int, default=5, help="processes of each kind (%(default)s)")
    parser.add_argument("settings", nargs="*", help="KEY=VALUE of a recipe, in the place of what is kept")
    given = parser.parse_args()
    from mlx_finetune.app.tune.children import Report, run_trial
    from mlx_finetune.app.tune.subject import of_recipe, small_subject
    from mlx_finetune.hardware.tuned import NOTHING_TUNED
    from mlx_finetune.recipe.load import load_recipe

    loaded = load_recipe(given.recipe) if given.recipe else None
    with nullcontext(of_recipe(loaded)) if loaded else small_subject() as subject:
        recipe = load_recipe(subject.path, subject.overrides).recipe
        settings = _parse(given.settings) if given.settings else _kept(recipe)
        if settings == NOTHING_TUNED:
            sys.stderr.write("nothing that is faster is kept here: name settings, or run mlxft tune\n")
            return 1
        ratios: list[float] = []
        num_steps, largest = 0, 0.0
        for number in range(given.rounds + 1):
            order = (NOTHING_TUNED, settings) if number % 2 else (settings, NOTHING_TUNED)
            runs = {}
            for one in order:
                found = run_trial(subject, one, num_steps, 3600.0)
                if not isinstance(found, Report):
                    sys.stderr.write(f"{one.overrides() or 'defaults'}: {found.message}\n")
                    return 1
                runs[one] = found.run
                num_steps = num_steps or len(found.run.seconds)
            ours, theirs = runs[settings], runs[NOTHING_TUNED]
            largest = max(largest, *(abs(a - b) for a, b in zip(ours.losses, theirs.losses, strict=True)))
            if number:  # the first round warms up
                ratios.append(statistics.median(b / a for a, b in zip(ours.seconds, theirs.seconds, strict=True)))
                print(f"round {number}: {ratios[-1]:.3f} times as fast", flush=True)
    print(f"{' '.join(settings.overrides())}: {_summary(ratios)}; losses differ by at most {largest:.1e}")
    return 0


def _summary(ratios: Sequence[float]) -> str:
    return f"{min(ratios):.3f} at least, {statistics.median(ratios):.3f} in the median of {len(ratios)} rounds"


def _kept(recipe: "Recipe") -> "TunedSettings":
    from mlx_finetune.hardware.limits import read_machine
    from mlx_finetune.hardware.profile import FILE_NAME, read_profile, tuned_settings
    from mlx_finetune.model.sources.catalogue import cache_folder

    return tuned_settings(read_profile(cache_folder() / FILE_NAME), read_machine(), recipe)


def _parse(settings: Sequence[str]) -> "TunedSettings":
    from mlx_finetune.hardware.tuned import KEYS, TunedSettings

    names = {key: name for name, key in KEYS.items()}
    values = {names[key]: _value(text) for key, _, text in (one.partition("=") for one in settings)}
    return TunedSettings.from_json(values)


def _value(text: str) -> object:
    return {"true": True, "false": False}.get(text, int(text) if text.isdigit() else text)


if __name__ == "__main__":
    sys.exit(main())
