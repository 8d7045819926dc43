"""The golden page tests/golden/report/tides.html: the report of the run in reported_runs.py.

Write it anew with ``PYTHONPATH=.:tests python tests/golden_report.py``, look at it in a browser and review the
difference; it refuses while the file has changes that are not committed.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from reported_runs import write_run

from mlx_finetune.monitor.report.facts import read_facts
from mlx_finetune.monitor.report.page import render

GOLDEN = Path(__file__).parent / "golden" / "report" / "tides.html"


def page(folder: Path) -> str:
    """The report of a run in ``folder``, which is called /home/you in it."""
    return render(read_facts(write_run(folder))).replace(str(folder), "/home/you")


if __name__ == "__main__":
    changed = subprocess.run(["git", "status", "--porcelain", "--", GOLDEN], capture_output=True, text=True, check=True)
    if changed.stdout.startswith((" M", "M")):
        sys.exit(f"{GOLDEN} has changes that are not committed")
    GOLDEN.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        GOLDEN.write_text(page(Path(folder)), "utf-8")
