"""Requests a second of ``mlxft serve`` beside ``mlx_lm.server``: the same weights, the same questions, in one run.

    python benchmarks/serving.py [--clients 1,4,16] [--tokens 32] [--requests 2] [--repeats 3] [--extras]

Two servers with one folder of weights (SmolLM2-135M-Instruct in fp32) stay up for the whole run, each in a process of
its own that loads the same BLAS with the same number of threads; while one is asked the other sleeps. Each repeat asks
both, in an order that turns, with questions that no repeat asked before; what both know already is the beginning of the
template, which mlx_lm finds in its prompt cache. A client is a thread with one connection that asks one question after
the other. Greedy; a bias forbids the end marks, so that every answer has ``--tokens`` tokens. Ratios are those of one
repeat; so that a busy machine can be told from a slow server, processor time is printed too, per token of the answers.
``--extras`` adds rows: seeded draws (mlx_lm serves these one at a time), answers to a JSON Schema (it has none:
its free answers stand beside them) and two adapters in turn (it loads the model anew for each change).
"""

import argparse
import http.client
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parent.parent
QUESTIONS = ROOT.parent / "shared/data/alpaca/alpaca_2k.jsonl"
SCHEMA = {
    "type": "object",
    "properties": {"answer": {"type": "string"}, "sure": {"type": "boolean"}},
    "required": ["answer", "sure"],
    "additionalProperties": False,
}
#: mlx_lm's server after the same preparation of the process as ours.
THEIRS = "from mlx_finetune.hardware import blas; blas.prepare(); from mlx_lm.server import main; main()"
Fields = dict[str, Any]


class FailedError(Exception):
    """A request was not answered."""


@dataclass(frozen=True)
class Side:
    """A running server. ``adapt`` puts the i-th of two adapters into a request, where one is asked for."""

    name: str
    process: psutil.Process
    port: int
    token: str
    adapt: Callable[[int], Fields]


@dataclass(frozen=True)
class Rate:
    """What one repeat gave. ``processor`` is processor seconds of the server for each token of the answers."""

    requests: float
    tokens: float
    processor: float


@dataclass(frozen=True)
class Case:
    """What is asked: ``fields`` for ours, ``their_fields`` for mlx_lm; ``clients`` at once."""

    name: str
    clients: int
    fields: Fields
    their_fields: Fields
    has_adapters: bool = False


def main() -> None:
    """Read the options and measure."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument(
        "--clients", default="1,4,16", help="how many clients ask at once, with commas between the numbers"
    )
    options.add_argument("--tokens", type=int, default=32, help="tokens of each answer")
    options.add_argument("--requests", type=int, default=2, help="requests of each client in a repeat")
    options.add_argument("--repeats", type=int, default=3, help="how often each side is measured, in turns")
    options.add_argument("--threads", type=int, default=1, help="BLAS threads of each server")
    options.add_argument("--extras", action="store_true", help="seeds, a schema and two adapters, with 4 clients")
    options.add_argument("--work", type=Path, default=ROOT / "build/serving", help="where the weights are kept")
    given = options.parse_args()
    model, adapters = prepare(given.work)
    questions = read_questions()
    with tempfile.TemporaryDirectory() as place, started(given, Path(place), model, adapters) as sides:
        for case in cases(given):
            report(case, measure(case, sides, questions, given))


def cases(given: argparse.Namespace) -> Iterator[Case]:
    """The rows of the table, in order."""
    # Ours takes any ids; mlx_lm's bias makes its answers as long.
    fields = {"max_tokens": given.tokens, "temperature": 0, "logit_bias": {"0": -100, "2": -100}}
    for clients in map(int, given.clients.split(",")):
        yield Case(f"{clients} clients", clients, fields, fields)
    if given.extras:
        seeded = {**fields, "temperature": 0.8, "seed": 1}
        yield Case("4 clients, seeds", 4, seeded, seeded)
        form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA}}
        yield Case("4 clients, schema", 4, {**fields, "response_format": form}, fields)
        yield Case("4 clients, 2 adapters", 4, fields, fields, has_adapters=True)


def measure(
    case: Case, sides: Sequence[Side], questions: Iterator[str], given: argparse.Namespace
) -> Mapping[str, list[Rate]]:
    """Name of each side -> what each repeat gave."""
    rates: dict[str, list[Rate]] = {side.name: [] for side in sides}
    for repeat in range(given.repeats):
        asked = [[next(questions) for _ in range(given.requests)] for _ in range(case.clients)]
        for side in sides if repeat % 2 == 0 else sides[::-1]:
            rates[side.name].append(run(side, case, asked))
    return rates


def run(side: Side, case: Case, asked: Sequence[Sequence[str]]) -> Rate:
    """What all clients together get."""
    counts: list[int] = []
    failures: list[str] = []
    ready, connecting = threading.Barrier(case.clients + 1), threading.Lock()

    def client(number: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", side.port, timeout=600)
        try:
            with connecting:  # mlx_lm resets connections that come more than five at a time
                connection.connect()
                time.sleep(0.05)
        except OSError as error:
            failures.append(repr(error))
        ready.wait()
        for text in asked[number]:
            fields = case.fields if side.name == "mlxft" else case.their_fields
            body = {"messages": [{"role": "user", "content": text}], **fields}
            body |= side.adapt(number % 2) if case.has_adapters else side.adapt(-1)
            headers = {"content-type": "application/json", "authorization": f"Bearer {side.token}"}
            try:
                connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
                answer = connection.getresponse()
                said = answer.read()
            except OSError as error:
                failures.append(repr(error))
                break
            if answer.status == 200:
                counts.append(json.loads(said)["usage"]["completion_tokens"])
            else:
                failures.append(f"{answer.status} {said[:200]!r}")
        connection.close()

    threads = [threading.Thread(target=client, args=(number,)) for number in range(case.clients)]
    for thread in threads:
        thread.start()
    ready.wait()
    began, used = time.perf_counter(), processor_seconds(side)
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - began
    if failures:
        raise FailedError(f"{side.name}: {len(failures)} requests failed: {failures[0]}")
    used = processor_seconds(side) - used
    return Rate(len(counts) / seconds, sum(counts) / seconds, used / max(sum(counts), 1))


def processor_seconds(side: Side) -> float:
    """Of the server so far."""
    times = side.process.cpu_times()
    return times.user + times.system


def report(case: Case, rates: Mapping[str, list[Rate]]) -> None:
    """Medians of both, then the median and the least of the ratios repeat by repeat."""
    ours, theirs = rates["mlxft"], rates["mlx_lm"]
    by_clock = [a.requests / b.requests for a, b in zip(ours, theirs, strict=True)]
    by_processor = [b.processor / a.processor for a, b in zip(ours, theirs, strict=True)]
    sides = "   ".join(
        f"{name} {statistics.median(rate.requests for rate in of):5.2f} requests/s "
        f"{statistics.median(rate.tokens for rate in of):6.1f} tokens/s "
        f"{1e3 * statistics.median(rate.processor for rate in of):6.1f} ms/token"
        for name, of in rates.items()
    )
    print(f"{case.name:<22} {sides}   clock {_ratio(by_clock)}, processor {_ratio(by_processor)}", flush=True)


def _ratio(found: Sequence[float]) -> str:
    return f"{statistics.median(found):.2f}x (min {min(found):.2f})"


def read_questions() -> Iterator[str]:
    """Questions of one line, each once."""
    with QUESTIONS.open(encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            if not row["input"] and "\n" not in row["instruction"]:
                yield row["instruction"]


def prepare(work: Path) -> tuple[Path, Path]:
    """The model's folder, and a folder with ``adapters/one`` and ``adapters/two``, made once."""
    made = work / "model", work / "place"
    if not (made[0] / "model.safetensors").is_file() or not (made[1] / "adapters/two").is_dir():
        code = (
            "from mlx_finetune.hardware import blas; blas.prepare()\n"
            "import sys; from pathlib import Path; from race_rows import write_model\n"
            "from answering_runs import write_adapter, write_facts\n"
            "model, place = map(Path, sys.argv[1:])\n"
            "write_model(model)\n"
            "for seed, name in enumerate(('one', 'two'), 1):\n"
            "    write_facts(place / 'adapters' / name, model, chat={'temperature': 0.0})\n"
            "    write_adapter(place / 'adapters' / name, model, seed=seed)\n"
        )
        subprocess.run([sys.executable, "-c", code, *map(str, made)], env=environment(1), check=True)
    return made


def environment(threads: int) -> dict[str, str]:
    """Of every process here."""
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "tests", ROOT / "benchmarks")))
    return os.environ | {"PYTHONPATH": paths, "OPENBLAS_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}


@contextmanager
def started(given: argparse.Namespace, place: Path, model: Path, folder: Path) -> Generator[list[Side]]:
    """Both servers, warmed up."""
    rows = max(map(int, given.clients.split(",")))
    ours = ["-m", "mlx_finetune", "serve", "one", "two", "--port", "0", "--max-rows", str(rows), "--queue", "64"]
    ours += ["--token-file", str(place / "token")]
    port = free_port()
    theirs = ["-c", THEIRS, "--model", str(model), "--port", str(port), "--log-level", "ERROR"]
    processes = [
        subprocess.Popen(
            [sys.executable, *arguments],
            cwd=folder,
            env=environment(given.threads),
            stdout=subprocess.DEVNULL,
            stderr=(place / f"{index}.log").open("wb"),
        )
        for index, arguments in enumerate((ours, theirs))
    ]
    try:
        own = int(wait_for(lambda: re.search(r"127\.0\.0\.1:(\d+)", (place / "0.log").read_text()))[1])
        base = {"model": model.name}
        sides = [
            Side(
                "mlxft",
                psutil.Process(processes[0].pid),
                own,
                (place / "token").read_text().strip(),
                lambda index: {"model": ("one", "two")[index]} if index >= 0 else base,
            ),
            Side(
                "mlx_lm",
                psutil.Process(processes[1].pid),
                port,
                "none",
                lambda index: {"adapters": str(folder / "adapters" / ("one", "two")[index])} if index >= 0 else {},
            ),
        ]
        warm = Case("", 2, {"max_tokens": 4}, {"max_tokens": 4})
        for side in sides:
            wait_for(lambda side=side: answers(side, warm))
        yield sides
    finally:
        for process in processes:
            process.terminate()
            process.wait()


def answers(side: Side, case: Case) -> bool:
    """True once the server answers."""
    try:
        run(side, case, [["Hello."], ["Good morning."]])
    except FailedError:
        return False
    return True


def wait_for(holds: Callable[[], Any]) -> Any:
    """What ``holds`` returns as soon as it is true."""
    deadline = time.monotonic() + 300
    while not (found := holds()):
        if time.monotonic() > deadline:
            raise SystemExit("a server did not start")
        time.sleep(0.2)
    return found


def free_port() -> int:
    """A port that nobody listens at now."""
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


if __name__ == "__main__":
    main()
