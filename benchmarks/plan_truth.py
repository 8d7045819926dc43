"""Is the truth inside the error bars of ``mlxft plan``? N short trainings, each planned first, then run.

    python benchmarks/plan_truth.py [--trials 20] [--first 0] [--results plan_truth.json] [--work FOLDER] [--tiny]

Trial K is made of the number K alone: data set, batch, accumulation, length, packing, adapted blocks, rank, what is
recomputed, evaluations; every fourth trains a tiny random model, the others SmolLM2-135M. ``mlxft plan`` and ``mlxft
train`` run as a person starts them. Results are appended to a JSON file after each trial, and trials that are in it are
not run again, so it can be stopped and continued. All trials share one profile of the machine, which the runs correct,
as a user's do; it lies in the work folder. The last lines are the coverage: how often the truth lay inside.
"""

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from tiny import write_tiny_model

from mlx_finetune.model.catalogue import cache_folder

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
FIGURES = ("peak_bytes", "step_seconds", "finish_seconds", "disk_bytes")
WANTED = 0.95
#: Data set -> file below ../shared/data (or in the repository), and the fields that are prompt and answer.
DATA = {
    "quickstart": (ROOT / "data/quickstart/train.jsonl", ("", "")),
    "alpaca": (SHARED / "data/alpaca/alpaca_2k.jsonl", ("instruction", "output")),
    "gsm8k": (SHARED / "data/gsm8k/train.jsonl", ("question", "answer")),
    "dialogsum": (SHARED / "data/dialogsum/train.jsonl", ("dialogue", "summary")),
}
NUM_ROWS = 150

RECIPE = """
model = "{model}"
output_dir = "{folder}/run"
seed = {seed}
[lora]
rank = {rank}
num_layers = {layers}
dropout = {dropout}
[data]
path = "{folder}/rows.jsonl"
max_seq_length = {length}
packing = {packing}
val_split = 0.08
test_split = 0.0
[training]
max_steps = {steps}
batch_size = {batch}
gradient_accumulation_steps = {accumulation}
gradient_checkpointing = {recompute}
eval_steps = {eval_steps}
keep_checkpoints = {keep}
{eval}
"""


def make_trial(number: int, folder: Path, tiny: Path | None) -> dict[str, object]:
    """Write recipe and rows of a trial; the values it was made of."""
    rng = random.Random(number)
    names = [name for name, (path, _) in DATA.items() if path.is_file()]
    steps = rng.randint(4, 9) if tiny is None else rng.randint(10, 60)
    values: dict[str, object] = {
        "data": rng.choice(names),
        "model": "smollm2-135m" if tiny is None else str(tiny),
        "seed": number,
        "rank": rng.choice([4, 8, 16, 32]),
        "layers": rng.choice(['"all"', "16", "8"]) if tiny is None else '"all"',
        "dropout": rng.choice([0.0, 0.0, 0.1]),
        "length": rng.choice([128, 256, 384]),
        "packing": rng.choice(['"auto"', "true", "false"]),
        "steps": steps,
        "batch": rng.choice([1, 2, 4]),
        "accumulation": rng.choice([1, 1, 2]),
        "recompute": rng.choice(["false", "false", "true"]),
        "eval_steps": rng.choice([steps, max(2, steps // 2)]),
        "keep": rng.choice([1, 3]),
        "eval": rng.choice(["", '[eval]\nprompts = ["What is a tide?"]\nmax_new_tokens = 16']),
    }
    path, fields = DATA[str(values["data"])]
    (folder / "rows.jsonl").write_text("".join(_rows(path, fields, NUM_ROWS, rng)), encoding="utf-8")
    (folder / "recipe.toml").write_text(RECIPE.format(folder=folder, **values), encoding="utf-8")
    return values


def _rows(path: Path, fields: tuple[str, str], count: int, rng: random.Random) -> Iterator[str]:
    lines = path.read_text(encoding="utf-8").splitlines()
    prompt, answer = fields
    for line in rng.sample(lines, min(count, len(lines))):
        row = json.loads(line)
        if not prompt:
            yield line + "\n"
            continue
        text = f"{row[prompt]}\n{row.get('input', '')}".strip()
        yield json.dumps({"prompt": text, "completion": row[answer]}) + "\n"


def run_trial(number: int, folder: Path, environment: Mapping[str, str], tiny: Path | None) -> dict[str, object]:
    """Plan, train, compare; what came of it. Raises ``RuntimeError`` with the last words of a command that failed."""
    values = make_trial(number, folder, tiny)
    recipe = str(folder / "recipe.toml")
    began = time.monotonic()
    plan = json.loads(_mlxft(["plan", recipe, "--json"], environment))
    plan_seconds = time.monotonic() - began
    began = time.monotonic()
    _mlxft(["train", recipe, "--json"], environment)
    wall = time.monotonic() - began
    run = folder / "run"
    metrics = json.loads((run / "training_metrics.json").read_text())
    truth = {
        "peak_bytes": metrics["peak_memory_bytes"],
        "step_seconds": metrics["train_seconds"] / metrics["steps"],
        "finish_seconds": wall,
        "disk_bytes": sum(path.stat().st_size for path in run.rglob("*") if path.is_file()),
    }
    return {
        "trial": number,
        "values": values,
        "planned": {name: plan["forecast"][name] for name in FIGURES},
        "arithmetic_peak_bytes": plan["memory_bytes"]["total"],
        "truth": truth,
        "plan_seconds": round(plan_seconds, 1),
        "others_share": plan["measured"]["others_share"],
        "num_timed": len(plan["measured"]["microbatches"]),
        "planned_runs_before": len(plan["corrections"]["time_ratios"]),
    }


def _mlxft(arguments: list[str], environment: Mapping[str, str]) -> str:
    command = [sys.executable, "-m", "mlx_finetune", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=dict(environment), cwd=ROOT, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments)} ended with {done.returncode}: {done.stderr[-2000:]}")
    return done.stdout


def make_environment(work: Path) -> dict[str, str]:
    """The cache of the trials: the user's models, a profile of its own."""
    cache = work / "cache"
    cache.mkdir(parents=True, exist_ok=True)
    models = cache / "models"
    if not models.is_symlink() and (cache_folder() / "models").is_dir():
        models.symlink_to(cache_folder() / "models")
    return {**os.environ, "MLXFT_CACHE": str(cache)}


def is_inside(result: Mapping[str, object], figure: str) -> bool:
    """True where the truth lay within the error bar."""
    planned, truth = _planned(result, figure), _truth(result, figure)
    return planned["low"] <= truth <= planned["high"]


def _planned(result: Mapping[str, object], figure: str) -> dict[str, float]:
    planned = result["planned"]
    assert isinstance(planned, dict), "a result of run_trial"
    return planned[figure]


def _truth(result: Mapping[str, object], figure: str) -> float:
    truth = result["truth"]
    assert isinstance(truth, dict), "a result of run_trial"
    return truth[figure]


def show(result: Mapping[str, object]) -> None:
    """One line a figure."""
    print(f"trial {result['trial']}: {result['values']}")
    for figure in FIGURES:
        planned, truth = _planned(result, figure), _truth(result, figure)
        bar = f"{planned['low']:.4g} to {planned['high']:.4g}"
        inside = "inside" if is_inside(result, figure) else "OUTSIDE"
        miss = f"{truth / planned['expected'] - 1:+.1%}"
        print(f"  {figure:<15} planned {planned['expected']:.4g} ({bar}), was {truth:.4g} ({miss})  {inside}")


def coverage(results: list[dict[str, object]]) -> Iterator[str]:
    """How often the truth lay inside, how far plans missed, how wide the bars were."""
    yield f"{len(results)} trials"
    for figure in FIGURES:
        inside = sum(is_inside(one, figure) for one in results)
        misses = [abs(_truth(one, figure) / _planned(one, figure)["expected"] - 1) for one in results]
        widths = [_planned(one, figure)["high"] / max(1e-9, _planned(one, figure)["low"]) for one in results]
        verdict = "ok" if inside >= WANTED * len(results) else "TOO FEW"
        yield (
            f"{figure:<15} inside {inside}/{len(results)} {verdict}; median miss {statistics.median(misses):.1%}, "
            f"median bar high/low {statistics.median(widths):.2f}"
        )


def main() -> int:
    """Run what is missing of the trials, then print the coverage of all that are in the file."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--results", type=Path, default=Path("plan_truth.json"))
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "mlxft-plan-truth")
    parser.add_argument("--tiny", action="store_true", help="tiny models only")
    given = parser.parse_args()
    results = json.loads(given.results.read_text()) if given.results.is_file() else []
    done = {one["trial"] for one in results}
    environment = make_environment(given.work)
    tiny = given.work / "tiny"
    if not tiny.is_dir():
        write_tiny_model(tiny, "llama")
    for number in range(given.first, given.first + given.trials):
        if number in done:
            continue
        folder = given.work / f"trial-{number}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        is_tiny = given.tiny or number % 4 == 3
        results.append(run_trial(number, folder, environment, tiny if is_tiny else None))
        given.results.write_text(json.dumps(results, indent=1))
        show(results[-1])
        shutil.rmtree(folder, ignore_errors=True)
    print()
    for line in coverage(results):
        print(line)
    enough = all(sum(is_inside(one, figure) for one in results) >= WANTED * len(results) for figure in FIGURES)
    return 0 if enough else 1


if __name__ == "__main__":
    sys.exit(main())
