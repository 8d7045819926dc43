"""A run folder with everything a report can tell of, always the same; ``text`` may turn every string into worse."""

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from mlx_finetune import rundir
from mlx_finetune.dataset.card import DataCard, SplitCard, card_json
from mlx_finetune.dataset.stats import even_histogram, summarize_lengths
from mlx_finetune.dataset.token_losses import Measured, Microscope, Row, Token, write_microscope
from mlx_finetune.dataset.tokens import Outcome
from mlx_finetune.errors import Problem
from mlx_finetune.events import (
    CheckpointSaved,
    Continued,
    Evaluated,
    Event,
    Notice,
    Paused,
    Resources,
    Restarted,
    RunFinished,
    RunStarted,
    Sampled,
    StepDone,
    TimeJump,
    to_json,
)
from mlx_finetune.recipe.values import toml_value
from mlx_finetune.rundir import RunDir

Turn = Callable[[str], str]

START = 1_790_000_000.0
STARTED = RunStarted(
    "adapters/tides", "tiny-llama", "sft", 0, 40, 20, 80, 12, 1_000, 50_000, "CPU", "float32", 3 * 10**9
)


def same(text: str) -> str:
    return text


def write_run(folder: Path, text: Turn = same, *, name: str = "tides") -> RunDir:
    """The run in ``folder/adapters/NAME``."""
    run = RunDir(folder / "adapters" / name)
    run.path.mkdir(parents=True)
    write_events(run, events(text))
    _write_texts(run, text)
    (run.path / rundir.DATA_CARD).write_text(json.dumps(card_json(card(text))), "utf-8")
    _write_info(run, text)
    (run.path / rundir.EVALUATIONS).mkdir()
    (run.path / rundir.EVALUATIONS / "test.json").write_text(json.dumps(evaluation(text)), "utf-8")
    older = evaluation(text) | {"name": text("older"), "measured": "2026-09-22T09:00:00+00:00", "is_whole": False}
    (run.path / rundir.EVALUATIONS / "older.json").write_text(json.dumps(older), "utf-8")
    (run.path / rundir.EVALUATIONS / "broken.json").write_text("{", "utf-8")
    checkpoint = run.checkpoint(40)
    checkpoint.mkdir()
    (checkpoint / rundir.MANIFEST).write_bytes(b"{}")
    (run.path / rundir.MLX_WEIGHTS).write_bytes(b"w" * 4000)
    tokens = (
        Token(text("The"), is_target=False),
        Token(text(" sea"), True, 3.0, 0.2),
        Token(text("."), True, 0.1, 2.5),
    )
    rows = (Row(text("valid.jsonl:1"), tokens, (text("cut at the end"),)),)
    write_microscope(run, Microscope(rows, Measured(text("tiny-llama"), step=40)))
    return run


def write_events(run: RunDir, listed: Sequence[Event]) -> None:
    """One event every second."""
    lines = [to_json(event, START + place) for place, event in enumerate(listed)]
    (run.path / rundir.EVENTS).write_text("".join(f"{line}\n" for line in lines), "utf-8", errors="surrogatepass")


def events(text: Turn = same) -> list[Event]:
    """40 steps: a restart at 20, a pause at 25, a sleep, resources, answers at 0, 20 and 40, a warning."""
    prompt, other = text("What are tides?"), text("Two lines,\nplease.")
    found: list[Event] = [
        Notice("warning", text("train: 3 of 83 rows are too long"), text("mlxft data check RECIPE")),
        Notice("info", text("37 % of 4000 tokens are learned")),
        replace(STARTED, model=text("tiny-llama"), device=text("CPU")),
        Evaluated(0, 2.5, 100, is_best=True, seconds=0.1),
        *_answers(0, (prompt, text("I do not know that.")), (other, text("Hello"))),
    ]
    for number in range(1, 41):
        found.append(step(number))
        if number in (20, 40):
            found.append(Evaluated(number, 2.5 - number / 20, 100, is_best=True, seconds=0.1))
            found.append(CheckpointSaved(number, f"checkpoint-{number}", 4000, 0.1))
            answer = text(f"Tides are the {'fall' if number == 20 else 'rise and fall'} of the sea.")
            found += _answers(number, (prompt, answer), (other, text("Hello")))
        if number == 20:
            message, change = text("the GPU ran out of memory"), text("half of a microbatch at a time")
            found.append(Restarted(20, 1, "gpu_memory", message, change, is_bitwise=False))
        if number == 25:
            found += [Paused(25, text("the battery is low")), Continued(25, 120.0), TimeJump(600.0, was_asleep=True)]
        if number % 10 == 0:
            found.append(_resources(number, text))
    planned = text("peak memory 1.58 GB of 1.58 GB planned (+0%)")
    return [*found, RunFinished(40, "finished", 2.5, 0.5, 40, 0.5, 65.0, 12_345, 2 * 10**9, planned, 40)]


def step(number: int) -> StepDone:
    """One step of a curve that falls and has noise."""
    loss = 0.5 + 2.0 * math.exp(-number / 15) + 0.1 * math.sin(number * 12.9898)
    norm = 25.0 if number == 7 else 0.5 + 0.3 * math.sin(number)
    rate = 2e-4 * min(1.0, number / 10)
    return StepDone(number, number / 20, loss, rate, norm, 400, 500, 0.06, 0.5, 800.0 - number, 10**9, 2 * 10**9)


def _answers(number: int, *pairs: tuple[str, str]) -> list[Event]:
    return [Sampled(number, prompt, answer) for prompt, answer in pairs]


def _resources(number: int, text: Turn) -> Resources:
    return Resources(
        number,
        cpu_percent=90.0 + number / 10,
        memory_used_bytes=4 * 10**9,
        process_bytes=10**9 + 10**7 * number,
        pressure=text("warn") if number == 30 else "normal",
        watts=20.0,
        energy_joules=40.0 * number,
        throttled=text("the processor") if number == 40 else "",
        on_battery=number == 20,
    )


def _write_texts(run: RunDir, say: Turn) -> None:
    def text(words: str) -> str:  # a recipe is UTF-8
        return say(words).encode("utf-8", "replace").decode("utf-8")

    def comment(words: str) -> str:  # as recipe.resolve writes it: TOML takes no control character in one
        return f"  # {''.join(c if c.isprintable() else ' ' for c in text(words))}"

    asked = f"model = {toml_value(text('tiny-llama'))}\n"
    data = f"[data]\npath = {toml_value(text('data/tides'))}\n"
    resolved = [
        f"{asked}seed = 3\n{data}# valid is not set",
        f"packing = false{comment('on a CPU padding is cut off')}",
        "columns = {}\n[training]\nlearning_rate = 0.0002",
        f"batch_size = 4{comment('4 fit into memory')}",
        f"[eval]\nprompts = [{toml_value(text('a  # b'))}]\n",
    ]
    (run.path / rundir.RECIPE).write_text(f"{comment('my recipe').lstrip()}\n{asked}{data}", "utf-8")
    (run.path / rundir.RESOLVED).write_text("\n".join(resolved), "utf-8")


def _write_info(run: RunDir, text: Turn) -> None:
    info = {
        "format_version": 1,
        "created": "2026-09-21T14:13:20+00:00",
        "model": text("tiny-llama"),
        "model_source": text("hub"),
        "revision": text("main"),
        "license": text("apache-2.0"),
        "recipe_path": text("recipes/tides.toml"),
        "overrides": [f"training.learning_rate={text('0.0002')}"],
        "resolved": {"seed": 3, "data": {"path": text("data/tides")}, "training": {"max_grad_norm": 1.0}},
        "identity": {
            "data_sha256": text("d" * 64),
            "model_sha256": text("e" * 64),
            "tokenizer_sha256": text("f" * 64),
            "adapter_sha256": "",
            "versions": {"mlx": text("0.32.4"), text("python"): "3.11"},
        },
    }
    (run.path / rundir.RUN_INFO).write_text(json.dumps(info), "utf-8")


def card(text: Turn = same) -> DataCard:
    """80 rows to train on, of which three were left out, 12 for validation."""
    lost = {"too_long": Outcome(3, (Problem(text("train.jsonl:7"), text("it has 900 tokens")),))}
    long = [20 + place for place in range(80)]
    train = SplitCard(
        83,
        1600,
        summarize_lengths(long, "tokens"),
        even_histogram(long),
        text("text prefix"),
        text("its own"),
        (text("a note on the mask"),),
        lost,
        {text("data/tides/train.jsonl"): 80},
    )
    lengths = summarize_lengths([30] * 12, "tokens")
    valid = SplitCard(
        12, 200, lengths, even_histogram([30] * 12), "text prefix", "", (), {}, {text("data/tides/valid.jsonl"): 12}
    )
    problem = Problem(text("train.jsonl:9"), text("it has no answer"), text("write one"))
    return DataCard({"train": train, "valid": valid}, (problem,), 1)


def evaluation(text: Turn = same) -> dict[str, object]:
    """eval/test.json with two measures, a category, a gate, changed rows and one that failed."""
    right = {
        "name": "exact_match",
        "title": text("exactly right"),
        "is_higher_better": True,
        "is_tested": True,
        "is_better": True,
        "is_worse": False,
        "sides": {
            "base": {"value": 0.2, "low": 0.1, "high": 0.4, "num_rows": 50, "num_right": 10},
            text("tuned"): {"value": 0.8, "low": 0.7, "high": 0.9, "num_rows": 50, "num_right": 40},
        },
        "change": {
            "value": 0.6,
            "low": 0.4,
            "high": 0.8,
            "num_rows": 50,
            "p": 0.001,
            "p_holm": 0.002,
            "is_factor": False,
        },
    }
    wider = {"value": 31.0, "low": None, "high": None, "num_rows": 1, "num_right": None}
    factor = {"value": 1.1, "low": 1.03, "high": 1.2, "num_rows": 12, "p": 0.02, "p_holm": 0.04, "is_factor": True}
    general = right | {"title": text("perplexity, general text"), "sides": {"base": wider}, "change": factor}
    general |= {"is_better": False, "is_worse": True}
    changed = {"where": text("test.jsonl:3"), "question": text("When?"), "before": 0.0, "after": 1.0}
    changed |= {"base_answer": text("Never."), "tuned_answer": text("Twice a day.")}
    return {
        "name": text("test"),
        "measured": "2026-09-22T10:00:00+00:00",
        "data": {"source": text("data/tides"), "split": text("test"), "num_rows": 50, "num_held_out": 50},
        "verdict": {"outcome": "learned", "sentence": text("It learned it: 40 of 50 right, was 10 of 50.")},
        "measures": [right, general],
        "lead": text("exactly right"),
        "is_whole": True,
        "categories": [{"name": text("moon"), "num_rows": 9, "measures": [right]}],
        "gained": [changed],
        "lost": [changed],
        "gates": [{"gate": text("exact_match >= 0.5"), "value": 0.8, "is_met": True}],
        "failed": [{"where": text("test.jsonl:9"), "message": text("too long"), "hint": ""}],
    }


def words(page: str) -> str:
    """The text of a page that is wide, without pictures: names of columns beside each cell are for narrow ones."""
    text = re.sub(r"<(style|script|svg)\b.*?</\1>|<span class=\"name\">.*?</span>", "", page, flags=re.DOTALL)
    return " ".join(re.sub(r"<[^>]+>", " ", text).split())
