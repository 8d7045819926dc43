import json

import pytest
from click.testing import CliRunner

from mlx_finetune.app import doctor
from mlx_finetune.app.doctor import Finding
from mlx_finetune.cli import root
from mlx_finetune.commands.doctor import plain_lines

BLOCKER = Finding("blocker", "only 1.0 GB free", "mlxft models rm NAME")
WARNING = Finding("warning", "slow", "wait")


def test_plain_lines_end_with_the_next_command():
    lines = plain_lines({"Versions": [("python", "3.12.1")]}, [])
    assert lines == ["python          3.12.1", "Ready to train. Next: mlxft train recipes/quickstart.toml"]


def test_plain_lines_show_each_problem_with_its_command():
    lines = plain_lines({}, [BLOCKER, WARNING])
    assert lines == [
        "blocker: only 1.0 GB free",
        "  mend it: mlxft models rm NAME",
        "warning: slow",
        "  mend it: wait",
        "1 blocker to mend before training.",
    ]


def test_a_warning_does_not_keep_anyone_from_training():
    assert plain_lines({}, [WARNING])[-1] == "Ready to train (1 warning). Next: mlxft train recipes/quickstart.toml"


@pytest.mark.parametrize(("findings", "code"), [((), 0), ((WARNING,), 0), ((BLOCKER,), 3)])
def test_the_exit_code_is_3_for_a_blocker(monkeypatch: pytest.MonkeyPatch, findings: tuple[Finding, ...], code: int):
    monkeypatch.setattr(doctor, "measure_gflops", lambda: 100.0)
    monkeypatch.setattr(doctor, "find_problems", lambda _: findings)
    result = CliRunner().invoke(root, ["doctor", "--json"], standalone_mode=False)
    assert result.return_value == code
    report = json.loads(result.stdout)
    assert report["ok"] is (code == 0)
    assert report["gflops"] == 100.0
