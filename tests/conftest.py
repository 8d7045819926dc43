"""Fixtures for every test: a fast BLAS before mlx, no network, caches in a temporary folder, tiny models, ../shared."""

import atexit
import os
import shutil
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from mlx_finetune.hardware import blas

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # started in the background: our children would ignore Ctrl-C too
    signal.signal(signal.SIGINT, signal.default_int_handler)

# One thread: the matrices are tiny, and two threads on a busy machine wait for each other (0.2 instead of 60 GFLOP/s).
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
blas.prepare()  # before any test module imports mlx

os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
os.environ |= {"HF_HUB_DISABLE_TELEMETRY": "1", "TOKENIZERS_PARALLELISM": "false", "NO_COLOR": "1"}
if "MLXFT_CACHE" not in os.environ:
    os.environ["MLXFT_CACHE"] = tempfile.mkdtemp(prefix="mlxft-tests-")
    atexit.register(shutil.rmtree, os.environ["MLXFT_CACHE"], ignore_errors=True)

ROOT = Path(__file__).resolve().parent.parent
# Processes of tests run this checkout, also where the environment is that of another one (a linked worktree).
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
SHARED = ROOT.parent / "shared"


def shared(*parts: str) -> Path:
    """A path in ``../shared`` beside the checkout; the test is skipped, visibly, where that is absent."""
    path = SHARED.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"needs ../shared/{'/'.join(parts)} beside the checkout")
    return path


@pytest.hookimpl(tryfirst=True)  # before -m looks at the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """``some(n)``: of a test's cases, n that lie evenly among them are for every run, and the others are ``slow``."""
    families: dict[str, list[pytest.Item]] = {}
    for item in items:
        if item.get_closest_marker("some"):
            families.setdefault(item.nodeid.partition("[")[0], []).append(item)
    for cases in families.values():
        marker = cases[0].get_closest_marker("some")
        assert marker
        for index in others_of(len(cases), *marker.args):
            cases[index].add_marker("slow")


def others_of(num_cases: int, num_kept: int) -> set[int]:
    """Indices of the cases beside the first and those at even distances from it."""
    return set(range(num_cases)) - {index * num_cases // num_kept for index in range(num_kept)}


@pytest.fixture(name="shared")
def shared_fixture() -> Callable[..., Path]:
    """``shared(*parts)`` for tests that rather take it as an argument than import it."""
    return shared


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """``tiny_model(model_type, seed=0)``: folder of a random 2-layer model; made once, so never write into it."""
    from tiny import write_tiny_model

    made: dict[tuple[str, int], Path] = {}

    def make(model_type: str, *, seed: int = 0) -> Path:
        if (model_type, seed) not in made:
            folder = tmp_path_factory.mktemp(f"tiny-{model_type}")
            made[model_type, seed] = write_tiny_model(folder, model_type, seed=seed)
        return made[model_type, seed]

    return make


@pytest.fixture(scope="session")
def tiny_t5(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """``tiny_t5(is_tied=True)``: folder of a random T5 with two blocks a stack; made once, so never write into it."""
    from tiny_t5 import write_tiny_t5

    made: dict[bool, Path] = {}

    def make(*, is_tied: bool) -> Path:
        if is_tied not in made:
            made[is_tied] = write_tiny_t5(tmp_path_factory.mktemp("tiny-t5"), is_tied=is_tied)
        return made[is_tied]

    return make
