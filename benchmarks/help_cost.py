"""What help costs: `mlxft --help` and each subcommand's help, against `python -c pass`. Last line: the worst ratio.

Run it with the environment's own Python: `.venv/bin/python benchmarks/help_cost.py [--rounds 15]`. The commands take
turns, so that a busy machine slows all of them alike; the ratio is between the fastest rounds, and the medians are
shown beside them. Needed: at most 6.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

LIMIT = 6.0
MLXFT = str(Path(sys.executable).with_name("mlxft"))


def measure(commands: Mapping[str, Sequence[str]], rounds: int) -> dict[str, list[float]]:
    """Seconds each command took, in every round; one round before them is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for counted in [False, *[True] * rounds]:
        for name, command in commands.items():
            begin = time.perf_counter()
            subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=True)
            if counted:
                seconds[name].append(time.perf_counter() - begin)
    return seconds


def main() -> int:
    """Print the table; 1 where the worst ratio is over the limit."""
    parser = argparse.ArgumentParser(description="Cost of each help text against python -c pass.")
    parser.add_argument("--rounds", type=int, default=15, help="starts of each command (%(default)s)")
    rounds = parser.parse_args().rounds
    from mlx_finetune.cli import COMMANDS

    commands = {"python -c pass": [sys.executable, "-c", "pass"], "mlxft --help": [MLXFT, "--help"]}
    commands |= {f"mlxft {name} --help": [MLXFT, name, "--help"] for name in COMMANDS}
    os.environ.pop("PYTHONPATH", None)
    seconds = measure(commands, rounds)
    base = min(seconds["python -c pass"])
    worst = 0.0
    print(f"{'command':<24} {'fastest':>9} {'median':>9} {'ratio':>6}")
    for name, times in seconds.items():
        ratio = min(times) / base
        worst = max(worst, ratio)
        print(f"{name:<24} {min(times) * 1e3:6.1f} ms {statistics.median(times) * 1e3:6.1f} ms {ratio:6.2f}")
    print(f"worst ratio: {worst:.2f}, needed: at most {LIMIT:.0f}")
    return 0 if worst <= LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())
