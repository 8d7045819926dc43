"""Rows a second and peak memory of ``mlxft data check`` on JSONL conversations, without tokenising.

    python benchmarks/data_check_speed.py [--rows 200000] [--words 30]

Writes a file of conversations (system, user, assistant) with seeded random words into a temporary folder, checks it
in a process of its own, and prints one line. The promise: 20,000 rows a second, and at most 1 GB for 5 million rows.
"""

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from mlx_finetune.units import format_bytes


def write_rows(path: Path, num_rows: int, num_words: int) -> None:
    """``num_rows`` different conversations with about ``num_words`` words in each."""
    random_words = random.Random(7)
    words = [
        "".join(random_words.choices("abcdefghijklmnopqrstuvwxyz", k=length))
        for length in range(2, 9)
        for _ in range(300)
    ]
    with path.open("w", encoding="utf-8") as file:
        for number in range(num_rows):
            drawn = " ".join(random_words.choices(words, k=num_words))
            turns = [
                {"role": "system", "content": "You are helpful."},
                {"role": "user", "content": f"{number} {drawn[: len(drawn) // 3]}"},
                {"role": "assistant", "content": drawn[len(drawn) // 3 :]},
            ]
            file.write(json.dumps({"messages": turns}) + "\n")


def main() -> None:
    """Write, check, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000, help="conversations in the file (%(default)s)")
    parser.add_argument("--words", type=int, default=30, help="random words in each turn (%(default)s)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        write_rows(path, options.rows, options.words)
        start = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "mlx_finetune", "data", "check", str(path)], check=True, capture_output=True
        )
        seconds = time.perf_counter() - start
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        processor = usage.ru_utime + usage.ru_stime
        size = format_bytes(path.stat().st_size)
        print(f"{options.rows} rows, {size}: {options.rows / seconds:,.0f} rows/s by the clock, ", end="")
        print(f"{options.rows / processor:,.0f} by processor time; peak memory {format_bytes(peak)}")


if __name__ == "__main__":
    main()
