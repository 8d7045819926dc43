"""Is the truth inside the error bars of ``mlxft plan``? N short trainings, each planned first, then run.

    python benchmarks/plan_truth.py [--trials 20] [--first 0] [--results plan_truth.json] [--work FOLDER] [--small]

Trial K is made of the number K alone: data set, batch, accumulation, length, packing, adapted blocks, rank, what is
recomputed, evaluations. Of four trials two train SmolLM2-135M, one a random Llama of 8 blocks and width 256, one a tiny
model of another family; ``--small`` leaves SmolLM2 out. ``mlxft plan`` and ``mlxft train`` run as a person starts them.
Results are appended to a JSON file after each trial, and trials that are in it are not run again, so it can be stopped
and continued. All trials share one profile of the machine, which the runs correct, as a user's do; it lies in the work
folder. The last lines are the coverage: how often the truth lay inside, for all trials and for those in which other
programs left the processors mostly alone (no plan knows of what others will start after it).
"""

import argparse
import json
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import psutil
from safetensors.numpy import save_file

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from tiny import write_tiny_model  # noqa: E402

from mlx_finetune.model.sources.catalogue import cache_folder  # noqa: E402

SHARED = ROOT.parent / "shared"
FIGURES = ("peak_bytes", "step_seconds", "finish_seconds", "disk_bytes")
WANTED = 0.95
CALM_SHARE = 0.3  # of the processors, used by other programs
#: Data set -> file below ../shared/data (or in the repository), and the fields that are prompt and answer.
DATA = {
    "quickstart": (ROOT / "data/quickstart/train.jsonl", ("", "")),
    "alpaca": (SHARED / "data/alpaca/alpaca_2k.jsonl", ("instruction", "output")),
    "gsm8k": (SHARED / "data/gsm8k/train.jsonl", ("question", "answer")),
    "dialogsum": (SHARED / "data/dialogsum/train.jsonl", ("dialogue", "summary")),
}
NUM_ROWS = 120
FAMILIES = ("gemma", "gpt2", "qwen3", "gpt_neox", "llama")

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
truncation = "keep-end"
val_split = 0.06
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


def choose_model(number: int, work: Path, *, is_small: bool) -> str:
    """A catalogue name, or a folder with a random model, which is made where it is missing."""
    if number % 2 == 0 and not is_small:
        return "smollm2-135m"
    name = "middle" if number % 4 < 2 else FAMILIES[number // 4 % len(FAMILIES)]
    folder = work / name
    if not folder.is_dir():
        write_tiny_model(folder, "llama" if name == "middle" else name)
        if name == "middle":
            enlarge(folder)
    return str(folder)


def enlarge(folder: Path, *, layers: int = 8, hidden: int = 256, inner: int = 704) -> None:
    """Put a larger Llama with the same vocabulary into the place of the tiny one in ``folder``."""
    config = json.loads((folder / "config.json").read_text())
    config |= {"num_hidden_layers": layers, "hidden_size": hidden, "intermediate_size": inner, "head_dim": hidden // 8}
    config |= {"num_attention_heads": 8, "num_key_value_heads": 4, "tie_word_embeddings": True}
    rng = np.random.default_rng(0)

    def matrix(rows: int, columns: int) -> np.ndarray:
        return (rng.standard_normal((rows, columns)) * columns**-0.5).astype(np.float32)

    weights = {"model.embed_tokens.weight": matrix(config["vocab_size"], hidden)}
    weights["model.norm.weight"] = np.ones(hidden, np.float32)
    shapes = {"q": (hidden, hidden), "k": (hidden // 2, hidden), "v": (hidden // 2, hidden), "o": (hidden, hidden)}
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        for name in ("input_layernorm", "post_attention_layernorm"):
            weights[f"{prefix}{name}.weight"] = np.ones(hidden, np.float32)
        weights |= {f"{prefix}self_attn.{name}_proj.weight": matrix(*shape) for name, shape in shapes.items()}
        for name, shape in {"gate": (inner, hidden), "up": (inner, hidden), "down": (hidden, inner)}.items():
            weights[f"{prefix}mlp.{name}_proj.weight"] = matrix(*shape)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))


def make_trial(number: int, folder: Path, model: str) -> dict[str, object]:
    """Write recipe and rows of a trial; the values it was made of."""
    rng = random.Random(number)
    names = [name for name, (path, _) in DATA.items() if path.is_file()]
    is_real = model == "smollm2-135m"
    steps = rng.randint(4, 8) if is_real else rng.randint(20, 60)
    values: dict[str, object] = {
        "data": rng.choice(names),
        "model": model,
        "seed": number,
        "rank": rng.choice([4, 8, 16, 32]),
        "layers": rng.choice(['"all"', "16", "8"]) if is_real else '"all"',
        "dropout": rng.choice([0.0, 0.0, 0.1]),
        "length": rng.choice([128, 192, 256]),
        "packing": rng.choice(['"auto"', "true", "false"]) if "gpt2" not in model else '"auto"',
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


def run_trial(number: int, folder: Path, environment: Mapping[str, str], model: str) -> dict[str, object] | None:
    """Plan, train, compare; what came of it, None where no time was left to measure.

    Raises ``RuntimeError`` with the last words of a command that failed.
    """
    values = make_trial(number, folder, model)
    recipe = str(folder / "recipe.toml")
    began = time.monotonic()
    plan = json.loads(_mlxft(["plan", recipe, "--json"], environment))
    plan_seconds = time.monotonic() - began
    if plan["measured"] is None:
        return None
    began, busy, own = time.monotonic(), _busy_seconds(), _children_seconds()
    _mlxft(["train", recipe, "--json"], environment)
    wall = time.monotonic() - began
    own = _children_seconds() - own
    others = max(0.0, _busy_seconds() - busy - own) / wall / (os.cpu_count() or 1)
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
        "others_share": {"plan": plan["measured"]["others_share"], "train": round(others, 3)},
        "own_share": {"plan": plan["measured"]["own_share"], "train": round(own / wall, 3)},
        "num_timed": len(plan["measured"]["microbatches"]),
        "planned_runs_before": len(plan["corrections"]["time_ratios"]),
    }


def _busy_seconds() -> float:
    """Processor seconds that all programs have used since the start of the machine."""
    times = psutil.cpu_times()
    return sum(times[:8]) - times.idle - getattr(times, "iowait", 0.0)


def _children_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


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


def is_calm(result: Mapping[str, object]) -> bool:
    """True where other programs left most of the machine alone, while it was planned and while it was trained."""
    others = result["others_share"]
    assert isinstance(others, dict), "a result of run_trial"
    return max(others.values()) < CALM_SHARE


def show(result: Mapping[str, object]) -> None:
    """One line a figure."""
    print(f"trial {result['trial']}: {result['values']}")
    for figure in FIGURES:
        planned, truth = _planned(result, figure), _truth(result, figure)
        bar = f"{planned['low']:.4g} to {planned['high']:.4g}"
        inside = "inside" if is_inside(result, figure) else "OUTSIDE"
        miss = f"{truth / planned['expected'] - 1:+.1%}"
        print(f"  {figure:<15} planned {planned['expected']:.4g} ({bar}), was {truth:.4g} ({miss})  {inside}")


def at_equal_share(result: Mapping[str, object]) -> float:
    """Actual over planned time of a step, had training got the same share of a core as measuring did."""
    own = result["own_share"]
    assert isinstance(own, dict), "a result of run_trial"
    expected = _planned(result, "step_seconds")["expected"]
    return _truth(result, "step_seconds") / expected * min(1, own["train"]) / max(0.01, min(1, own["plan"]))


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
    equal = sorted(at_equal_share(one) for one in results)
    yield (
        f"a step at the same share of a core: actual over planned {statistics.median(equal):.2f} in the median, "
        f"{equal[0]:.2f} to {equal[-1]:.2f}"
    )


def main() -> int:
    """Run what is missing of the trials, then print the coverage of all that are in the file."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--trials", type=int, default=20, help="trainings to plan and run (%(default)s)")
    parser.add_argument("--first", type=int, default=0, help="number of the first of them (%(default)s)")
    parser.add_argument(
        "--results", type=Path, default=Path("plan_truth.json"), help="JSON file that is gone on with (%(default)s)"
    )
    parser.add_argument(
        "--work",
        type=Path,
        default=Path(tempfile.gettempdir()) / "mlxft-plan-truth",
        help="folder for models and runs (%(default)s)",
    )
    parser.add_argument("--small", action="store_true", help="without SmolLM2-135M")
    given = parser.parse_args()
    results = json.loads(given.results.read_text()) if given.results.is_file() else []
    done = {one["trial"] for one in results}
    environment = make_environment(given.work)
    for number in range(given.first, given.first + given.trials):
        if number in done:
            continue
        folder = given.work / f"trial-{number}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        model = choose_model(number, given.work, is_small=given.small)
        result = run_trial(number, folder, environment, model)
        if result is None:
            print(f"trial {number}: nothing was measured, the machine is too busy; run it again", flush=True)
            continue
        results.append(result)
        given.results.write_text(json.dumps(results, indent=1))
        show(results[-1])
        shutil.rmtree(folder, ignore_errors=True)
    calm = [one for one in results if is_calm(one)]
    for title, chosen in (("while the machine was busy or not", results), ("while it was calm", calm)):
        print(f"\n{title}:")
        for line in coverage(chosen) if chosen else ["no trial"]:
            print(line)
    enough = all(sum(is_inside(one, figure) for one in calm) >= WANTED * len(calm) for figure in FIGURES)
    return 0 if enough else 1


if __name__ == "__main__":
    sys.exit(main())
