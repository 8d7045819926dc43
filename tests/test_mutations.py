"""The table of benchmarks/mutations.py still fits the code; running it takes minutes and is slow."""

import subprocess
import sys
from pathlib import Path

import pytest
from mutations import MUTATIONS, Mutation

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_every_mutation_finds_its_text_and_changes_it(mutation: Mutation) -> None:
    assert (ROOT / mutation.file).read_text("utf-8").count(mutation.old) == 1
    assert mutation.new != mutation.old
    assert [test for test in mutation.tests if not (ROOT / test).exists()] == []


@pytest.mark.slow
def test_no_safety_mechanism_can_be_removed_unnoticed() -> None:
    done = subprocess.run([sys.executable, str(ROOT / "benchmarks/mutations.py")], check=False, text=True)
    assert done.returncode == 0
