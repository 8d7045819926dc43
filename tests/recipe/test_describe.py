import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from mlx_finetune.recipe.describe import SCHEMA_NAME, allowed, json_schema, keys_of, property_schema, schema_text
from mlx_finetune.recipe.schema import section_names

TOMBI = Path(sys.executable).with_name("tombi")


@pytest.mark.parametrize("folder", ["mlx_finetune/recipe", "recipes"])
def test_the_written_schema_is_what_the_models_give_now(folder: str):
    # mlxft recipe schema > FILE writes it anew
    assert (ROOT / folder / SCHEMA_NAME).read_text(encoding="utf-8") == schema_text()


def test_every_key_has_a_sentence():
    for section in ((), *((name,) for name in section_names()), ("data", "sources", 0)):
        for key in keys_of(section):
            if key not in section_names():
                assert property_schema((*section, key))["description"].endswith((".", ")")), key


def test_there_is_no_null_because_toml_has_none():
    assert "null" not in json.dumps(json_schema())


@pytest.mark.parametrize(
    ("path", "phrase"),
    [
        (("quantize",), "4 or 8"),
        (("lora", "rank"), "a whole number from 1 to 1024"),
        (("lora", "dropout"), "a number of at least 0 and below 1"),
        (("training", "batch_size"), '"auto" or a whole number from 1 to 4096'),
        (("data", "sources", 0, "weight"), "a number above 0 and at most 100"),
        (
            ("data", "columns"),
            "a table whose values are text in quotes or a list of values, each text in quotes, not empty",
        ),
        (("lora",), "a table"),
    ],
)
def test_what_is_allowed_is_one_phrase(path: tuple[str | int, ...], phrase: str):
    assert allowed(path) == phrase


def lint(*paths: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [str(TOMBI), "lint", "--offline", *map(str, paths)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)


def test_an_editor_finds_nothing_in_the_recipes_we_ship():
    result = lint(*sorted((ROOT / "recipes").glob("*.toml")), folder=ROOT)
    assert result.returncode == 0, result.stdout + result.stderr


def test_an_editor_reports_what_the_loader_refuses(tmp_path: Path):
    (tmp_path / SCHEMA_NAME).write_text(schema_text())
    broken = tmp_path / "broken.toml"
    broken.write_text(
        f'#:schema {SCHEMA_NAME}\nmodel = "m"\noutput_dir = "o"\nlora_r = 3\n\n[data]\npath = "d"\n\n[training]\n'
        'learning_rat = 1.0\nepochs = "x"\noptimizer = "sgd"\n'
    )
    result = lint(broken, folder=tmp_path)
    report = result.stdout + result.stderr
    assert result.returncode != 0
    for line in (4, 10, 11, 12):
        assert f"broken.toml:{line}:" in report
