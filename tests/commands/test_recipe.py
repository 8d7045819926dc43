import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from conftest import ROOT

from mlx_finetune.cli import main, root
from mlx_finetune.recipe.describe import SCHEMA_NAME, schema_text


def run(*arguments: str) -> Result:
    return CliRunner().invoke(root, ["recipe", *arguments], standalone_mode=False)


def test_list_shows_name_model_task_and_purpose(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    lines = run("list").stdout.splitlines()
    assert len(lines) == len(list((ROOT / "recipes").glob("*.toml")))
    words = next(line for line in lines if line.startswith("pretrain-text")).split()
    assert words[:5] == ["pretrain-text", "smollm2-135m", "pretrain", "A", "model"]


def test_list_as_json_has_the_same_rows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    rows = json.loads(run("list", "--json").stdout)
    assert [row["name"] for row in rows] == [line.split()[0] for line in run("list").stdout.splitlines()]
    assert all({"name", "path", "model", "task", "purpose"} == set(row) for row in rows)


def test_show_prints_the_file_as_it_is():
    assert run("show", "quickstart").stdout == (ROOT / "recipes" / "quickstart.toml").read_text()


def test_schema_prints_the_schema():
    assert run("schema").stdout == schema_text()


def test_a_copy_can_be_checked_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    copied = run("copy", "quickstart", "mine.toml")
    assert copied.stdout.splitlines() == ["mine.toml", SCHEMA_NAME]
    assert copied.stderr.endswith("output_dir into mine.toml, then:\n      mlxft data check mine.toml\n")
    assert run("check", "mine.toml").stdout.startswith("ok: mine.toml: sft of smollm2-135m on data/quickstart")


def check(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[object, str, list[str]]:
    with pytest.raises(SystemExit) as caught:
        main(["recipe", "check", *arguments])
    captured = capsys.readouterr()
    return caught.value.code, captured.out, captured.err.splitlines()


def test_check_reports_every_file_and_leaves_with_2(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.chdir(tmp_path)
    Path("good.toml").write_text('model = "m"\noutput_dir = "o"\n[data]\npath = "d"\n')
    Path("bad.toml").write_text('model = "m"\noutput_dir = "o"\nsed = 1\n[data]\npath = "d"\n')
    code, out, err = check(capsys, "bad.toml", "good.toml", "absent.toml")
    assert (code, out) == (2, "ok: good.toml: sft of m on d, all weights, 1 epoch -> o\n")
    assert err == [
        "error: bad.toml:3: the top level has no key `sed`",
        "hint: did you mean `seed`?",
        "error: absent.toml: there is no such file",
        "hint: `mlxft recipe list` shows the recipes there are",
    ]


NAMED = """model = "m"
output_dir = "adapters/mine"
[data]
path = "d"
[eval]
tasks = ["json"]
gates = ["json_parses >= 0.5", "loss <= 2", "json_valid >= 0.9"]
[[serve.endpoints]]
path = "a"
schema = "nope.json"
[[serve.endpoints]]
path = "b"
schema = "b.json"
"""


def test_check_finds_schemas_that_are_not_there_and_gates_that_are_never_measured(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.chdir(tmp_path)
    Path("b.json").write_text('{"type": "object"}')
    Path("mine.toml").write_text(NAMED)
    code, out, err = check(capsys, "mine.toml")
    assert (code, out) == (2, "")
    assert [line for line in err if line.startswith("error")] == [
        "error: mine.toml:7: the gate `loss <= 2` is about loss, which [eval] does not measure",
        "error: mine.toml:7: the gate `json_valid >= 0.9` is about json_valid, which [eval] does not measure",
        f"error: mine.toml:10: the schema {tmp_path / 'nope.json'} cannot be read: No such file or directory",
    ]
    assert "measured are json_parses, json_fields; `tasks` and `schema` add others" in err[1]
    Path("nope.json").write_text("{}")
    code, _, err = check(capsys, "mine.toml", "--set", "eval.schema=b.json", "--set", 'eval.gates=["json_valid > 0"]')
    assert (code, err) == (0, [])
    code, _, err = check(capsys, "mine.toml", "--set", "eval.schema=gone.json")
    assert code == 2
    assert any(line.startswith("error: --set eval.schema=gone.json: the schema ") for line in err)


@pytest.mark.parametrize(
    "command",
    [
        "plan mine.toml",
        "plan mine.toml --lr-range",
        "train mine.toml",
        "sweep mine.toml",
        "tune mine.toml",
        "pipeline p.toml",
    ],
)
def test_nothing_begins_with_what_could_not_be_used_afterwards(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: str
):
    monkeypatch.chdir(tmp_path)
    Path("d").mkdir()
    Path("b.json").write_text("{}")
    Path("mine.toml").write_text(NAMED.replace('model = "m"', 'model = "adapters/first"'))
    Path("first.toml").write_text('model = "m"\noutput_dir = "adapters/first"\n[data]\npath = "d"\n')
    Path("p.toml").write_text('output_dir = "adapters/p"\n[[stages]]\nname = "one"\nrecipe = "mine.toml"\n')
    with pytest.raises(SystemExit) as caught:
        main(command.split())
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert "the gate `loss <= 2` is about loss" in said
    assert "there is no adapters/first yet, which this recipe takes from an earlier run" in said
    assert "make it: mlxft train first.toml" in said
    assert not Path("adapters").exists()


def test_check_reads_the_first_rows_of_each_file_that_is_there(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("mlx_finetune.commands.checked.MAX_ROWS", 3)
    Path("mine.toml").write_text(
        'model = "m"\noutput_dir = "adapters/x"\n[data]\ntrain = "a.jsonl"\nvalid = "b.jsonl"\n'
    )
    assert check(capsys, "mine.toml")[0] == 0  # the rows may come later
    Path("a.jsonl").write_text('{"text": "a"}\n' * 3 + "behind what is read\n")
    Path("b.jsonl").write_text('{"text": "a"}\n{"text": 7\n')
    code, _, err = check(capsys, "mine.toml", "--set", "task=pretrain")
    assert (code, [line for line in err if line.startswith("error")]) == (
        2,
        ["error: b.jsonl:2: not JSON: expecting ',' delimiter (column 11)"],
    )


def test_check_as_json_holds_every_problem(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.chdir(tmp_path)
    code, out, _ = check(capsys, "quickstart", "--json", "--set", "lora.rank=0")
    (row,) = json.loads(out)
    assert (code, row["file"], row["ok"], row["problems"][0]["where"]) == (2, "quickstart", False, "--set lora.rank=0")


def test_checking_a_recipe_imports_no_mlx_and_no_transformers():
    code = (
        "import sys\nfrom mlx_finetune.cli import root\n"
        f"root.main(['recipe', 'check', {str(ROOT / 'recipes' / 'quickstart.toml')!r}], standalone_mode=False)\n"
        "print([name for name in ('mlx', 'mlx_lm', 'transformers', 'numpy', 'rich') if name in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    assert out.stdout.splitlines()[-1] == "[]"
