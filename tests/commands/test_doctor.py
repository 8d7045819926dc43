import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from doctor_facts import HEALTHY, HEALTHY_MAC

from mlx_finetune.app.doctor import examine
from mlx_finetune.app.doctor.finding import Finding
from mlx_finetune.cli import root
from mlx_finetune.commands.doctor import plain_lines

BLOCKER = Finding("blocker", "only 1.0 GB free", "mlxft models rm NAME")
WARNING = Finding("warning", "slow", "wait")
NOTE = Finding("note", "the display never sleeps", "pmset displaysleepnow")
CHECKOUT = Path(__file__).resolve().parents[2]


@pytest.fixture(name="machine")
def machine_fixture(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A healthy machine in an empty folder, asked in no time."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(examine, "examine", lambda *_: HEALTHY)
    return tmp_path


def doctor(*arguments: str):
    return CliRunner().invoke(root, ["doctor", *arguments], standalone_mode=False)


def test_plain_lines_end_with_the_next_command():
    lines = plain_lines({"Versions": [("python", "3.12.1")]}, [], "Ready to train. Next: mlxft train x")
    assert lines == ["python           3.12.1", "Ready to train. Next: mlxft train x"]


def test_plain_lines_show_each_problem_with_its_command():
    assert plain_lines({}, [BLOCKER, WARNING, NOTE], "end") == [
        "blocker: only 1.0 GB free",
        "  mend it: mlxft models rm NAME",
        "warning: slow",
        "  mend it: wait",
        "note: the display never sleeps",
        "  type: pmset displaysleepnow",
        "end",
    ]


@pytest.mark.parametrize(("findings", "code"), [((), 0), ((WARNING, NOTE), 0), ((BLOCKER, WARNING), 3)])
def test_the_exit_code_is_3_for_a_blocker(
    monkeypatch: pytest.MonkeyPatch, machine: Path, findings: tuple[Finding, ...], code: int
):
    monkeypatch.setattr(examine, "find_problems", lambda _: findings)
    result = doctor("--json")
    assert result.return_value == code
    report = json.loads(result.stdout)
    assert report["ok"] is (code == 0)
    assert report["gflops"] == 155.0
    assert len(report["problems"]) == len(findings)
    assert doctor().return_value == code


def test_a_recipe_is_loaded_before_the_machine_is_asked(machine: Path):
    result = CliRunner().invoke(root, ["doctor", "gone.toml"], standalone_mode=False)
    assert "there is no such file" in str(result.exception)


def test_a_recipe_is_the_next_thing_to_train(monkeypatch: pytest.MonkeyPatch, machine: Path):
    monkeypatch.setattr(examine, "examine", lambda *_: HEALTHY_MAC)
    (machine / "my recipe.toml").write_text(
        'model = "smollm2-135m"\noutput_dir = "adapters/mine"\n[data]\npath = "rows.jsonl"\n'
    )
    result = doctor("my recipe.toml")
    assert result.stdout.splitlines()[-1] == "Ready to train. Next: ./launchers/mlxft train 'my recipe.toml'"


def test_the_report_goes_to_a_file_of_its_own_each_time_and_says_what_is_in_it(machine: Path):
    for name in ("mlxft-doctor.txt", "mlxft-doctor-2.txt"):
        result = doctor("--report")
        assert f"report: {machine / name}" in result.stderr
        assert "Please read it before you send it" in result.stderr
        assert "## Findings\n\nnone\n" in (machine / name).read_text("utf-8")
    assert "Ready to train" in doctor("--report", "mine.txt").stdout
    assert (machine / "mine.txt").is_file()


def test_json_stays_json_beside_a_report(machine: Path):
    assert json.loads(doctor("--json", "--report").stdout)["ok"] is True


def test_a_report_never_writes_over_a_file(machine: Path):
    recipe = machine / "mine.toml"
    recipe.write_text("precious")
    result = CliRunner().invoke(root, ["doctor", "--report", "mine.toml"], standalone_mode=False)
    assert "exists and is not written over" in str(result.exception)
    assert recipe.read_text() == "precious"


def test_a_report_can_go_to_stdout(machine: Path):
    result = doctor("--report", "-")
    assert result.stdout.count("# mlxft doctor report") == 1
    assert list(machine.iterdir()) == []


def test_a_folder_that_takes_no_file_is_an_error_with_a_way_out(machine: Path):
    result = CliRunner().invoke(root, ["doctor", "--report", "no/such/folder.txt"], standalone_mode=False)
    assert "cannot be written: No such file or directory" in str(result.exception)


def run_doctor(folder: Path, code: str = "", **variables: str) -> "subprocess.CompletedProcess[str]":
    """``mlxft doctor`` in a process of its own that first runs ``code``."""
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT), "HOME": str(folder), **variables}
    start = f"import sys\n{code}\nfrom mlx_finetune.cli import main\nmain(['doctor'])"
    return subprocess.run(
        [sys.executable, "-c", start], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.some(2)
@pytest.mark.parametrize("module", ["mlx", "huggingface_hub", "transformers", "mlx_lm"])
def test_it_works_without_what_it_is_to_look_for(tmp_path: Path, module: str):
    done = run_doctor(tmp_path, f"sys.modules['{module}'] = None")
    assert done.stderr == ""
    assert ("blocker: mlx does not work" in done.stdout) is (module == "mlx")
    assert done.returncode == (3 if module == "mlx" else 0)


@pytest.mark.parametrize("module", ["psutil", "pydantic", "platformdirs"])
def test_what_the_doctor_itself_needs_is_a_blocker_when_it_is_gone(tmp_path: Path, module: str):
    done = run_doctor(tmp_path, f"sys.modules['{module}'] = None")
    assert (done.returncode, done.stderr) == (3, "")
    assert done.stdout.startswith("blocker: the environment is damaged: ")
    assert module in done.stdout
    assert "  mend it: " in done.stdout


@pytest.mark.skipif(os.getuid() == 0, reason="root may look into every folder")
def test_a_cache_that_cannot_be_read_is_told(tmp_path: Path):
    cache = tmp_path / "cache"
    cache.mkdir(mode=0)
    done = run_doctor(tmp_path, MLXFT_CACHE=str(cache))
    cache.chmod(stat.S_IRWXU)
    assert (done.returncode, done.stderr) == (3, "")
    assert f"blocker: {cache} cannot be looked into: Permission denied" in done.stdout
