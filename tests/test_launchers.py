"""The launchers with stub tools on PATH: a checkout of three files, a Python that only pretends, no network, no pip."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LAUNCHERS = ROOT / "launchers"
TOOLS = ("sh", "cat", "cksum", "cp", "date", "dirname", "mkdir", "mv", "readlink", "rm", "sed", "sleep", "tee", "uname")
SCRIPTS = ["mlxft", "setup", "check", "lock"]

#: Pretends to be Python: can make an environment, whose own python pretends to be pip and logs what it is asked for.
PYTHON = """#!/bin/sh
case "$*" in
  *"import ensurepip"*) exit 0 ;;
  *"-m venv"*)
    for folder; do :; done
    mkdir -p "$folder/bin"
    printf '%s\\n' "venv" >>"$LOG"
    cp "$0" "$folder/bin/python"
    printf '#!%s/bin/python\\n' "$PWD/$folder" >"$folder/bin/activate"
    printf 'command = %s\\n' "$PWD/$folder" >"$folder/pyvenv.cfg"
    ;;
  *"-m pip install --quiet"*)
    folder=$(dirname "$0")
    cp "$MLXFT_STUB" "$folder/mlxft"
    ;;
  *"-m pip install"*)
    printf '%s\\n' "pip $*" >>"$LOG"
    sleep "${SLOW:-0}"
    [ -z "${NO_NETWORK:-}" ] || { echo "ERROR: No matching distribution found for mlx"; exit 1; }
    echo "  Downloading mlx-0.0-any.whl (12.5 MB)"
    ;;
  *"import mlx.core"*) exit "${BROKEN:-0}" ;;
  "-I - "*) cat >/dev/null; printf '%s\\n' "paths" >>"$LOG" ;;
esac
"""
#: Pretends to be .venv/bin/mlxft: shows the arguments, one a line in brackets, the folder and the environment.
MLXFT = """#!/bin/sh
for argument; do printf '[%s]\\n' "$argument"; done
printf 'in %s\\n' "$PWD"
printf 'path %s\\n' "${PYTHONPATH-unset} ${PYTHONHOME-unset} ${VIRTUAL_ENV-unset} ${CONDA_PREFIX-unset}"
exit "${CODE:-0}"
"""
SHIM = "#!/bin/sh\necho 'pyenv: python3.12: command not found' >&2\nexit 127\n"


class Checkout:
    """A checkout with nothing in it but launchers and lock files, and a PATH with nothing but the tools it may use."""

    def __init__(self, root: Path) -> None:
        self.root = root / "my checkout"
        self.tools = root / "tools"
        self.log = root / "log"
        for folder in (self.root / "requirements", self.tools):
            folder.mkdir(parents=True)
        shutil.copytree(LAUNCHERS, self.root / "launchers")
        for name in ("run.txt", "dev.txt"):
            (self.root / "requirements" / name).write_text(f"{name} 1\n")
        write_script(root / "mlxft-stub", MLXFT)
        for name in TOOLS:
            (self.tools / name).symlink_to(shutil.which(name) or "/missing")
        self.environment = {
            "PATH": str(self.tools),
            "HOME": str(root),
            "LOG": str(self.log),
            "MLXFT_STUB": str(root / "mlxft-stub"),
        }

    def add_python(self, name: str = "python3.12", content: str = PYTHON) -> Path:
        return write_script(self.tools / name, content)

    def start(self, *arguments: str, script: str = "mlxft", cwd: Path | None = None, **extra: str):
        return subprocess.Popen(
            [self.root / "launchers" / script, *arguments],
            env={**self.environment, **extra},
            cwd=cwd or self.root,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(
        self, *arguments: str, script: str = "mlxft", cwd: Path | None = None, **extra: str
    ) -> tuple[int, str, str]:
        process = self.start(*arguments, script=script, cwd=cwd, **extra)
        out, err = process.communicate(timeout=30)
        return process.returncode, out, err

    def logged(self, word: str) -> int:
        return sum(line.startswith(word) for line in self.log.read_text().splitlines()) if self.log.exists() else 0


def write_script(path: Path, content: str) -> Path:
    path.write_text(content)
    path.chmod(0o755)
    return path


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


@pytest.fixture
def ready(checkout: Checkout) -> Checkout:
    checkout.add_python()
    assert checkout.run()[0] == 0
    checkout.log.unlink()
    return checkout


@pytest.mark.parametrize("shell", ["dash", "bash"])
@pytest.mark.parametrize("script", SCRIPTS)
def test_the_scripts_are_clean_in_every_shell_there_is(shell: str, script: str):
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    assert subprocess.run([shell, "-n", LAUNCHERS / script], capture_output=True, check=False).stderr == b""


@pytest.mark.parametrize("script", SCRIPTS)
def test_shellcheck_has_nothing_to_say(script: str):
    program = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if program is None:
        pytest.skip("shellcheck is not installed")
    done = subprocess.run([program, "-s", "sh", LAUNCHERS / script], capture_output=True, text=True, check=False)
    assert done.stdout == ""


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_scripts_use_no_tool_or_syntax_that_a_mac_lacks(script: str):
    text = (LAUNCHERS / script).read_text()
    for absent in (
        "[[",
        "&>",
        "|&",
        "timeout ",
        "flock ",
        "setsid ",
        "nproc",
        "sed -i",
        "grep -P",
        "readlink -f",
        "date -d",
    ):
        code = "\n".join(line.split(" #")[0] for line in text.splitlines() if not line.startswith("#"))
        assert absent not in code


@pytest.mark.parametrize("script", [*(f"launchers/{name}" for name in SCRIPTS), ".ci/run"])
def test_the_scripts_can_be_executed(script: str):
    assert os.access(ROOT / script, os.X_OK)


def test_arguments_pass_through_untouched(ready: Checkout):
    arguments = [
        "train",
        "a b",
        "",
        "it's",
        'say "no"',
        "$HOME `id` $(id)",
        "*",
        "--set",
        "x=ü 日本",
        "line\nbreak",
        "-n",
        "\\",
    ]
    code, out, err = ready.run(*arguments)
    assert code == 0
    assert out.startswith("".join(f"[{argument}]\n" for argument in arguments) + "in ")
    assert err == ""


def test_the_exit_code_and_the_current_folder_pass_through(ready: Checkout, tmp_path: Path):
    code, out, _ = ready.run(cwd=tmp_path, CODE="130")
    assert code == 130
    assert f"in {tmp_path}\n" in out


def test_it_can_be_called_through_links(ready: Checkout, tmp_path: Path):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "first").symlink_to(ready.root / "launchers" / "mlxft")
    (tmp_path / "bin" / "second").symlink_to("first")
    done = subprocess.run(
        [tmp_path / "bin" / "second", "hello"], env=ready.environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("[hello]\n")


def test_another_environment_of_the_user_does_not_disturb(ready: Checkout):
    _, out, _ = ready.run(PYTHONPATH="/elsewhere", PYTHONHOME="/usr", VIRTUAL_ENV="/other", CONDA_PREFIX="/conda")
    assert "path unset unset unset unset\n" in out


def test_a_ready_environment_is_used_at_once_and_in_silence(ready: Checkout):
    _, _, err = ready.run()
    assert err == ""
    assert not ready.log.exists()


def test_the_first_call_makes_the_environment_and_names_what_is_large(checkout: Checkout):
    checkout.add_python()
    code, out, err = checkout.run("hello")
    assert (code, out.splitlines()[0]) == (0, "[hello]")
    assert "setup: making the environment in .venv" in err
    assert "setup:   Downloading mlx-0.0-any.whl (12.5 MB)" in err
    assert (checkout.root / ".venv" / "bin" / "mlxft").exists()
    assert not (checkout.root / ".venv.part").exists()
    assert not (checkout.root / ".venv.lock").exists()
    assert "--require-hashes -r requirements/run.txt" in checkout.log.read_text()


def test_a_shim_that_only_fails_is_passed_over(checkout: Checkout):
    checkout.add_python("python3.12", SHIM)
    checkout.add_python("python3.13", SHIM)
    checkout.add_python("python3.11")
    assert checkout.run()[0] == 0


def test_a_working_python_behind_a_shim_of_the_same_name_is_found(checkout: Checkout, tmp_path: Path):
    (tmp_path / "shims").mkdir()
    write_script(tmp_path / "shims" / "python3.12", SHIM)
    checkout.add_python("python3.12")
    code, _, err = checkout.run(PATH=f"{tmp_path / 'shims'}:{checkout.tools}")
    assert (code, "setup: done" in err) == (0, True)
    assert f"or once: alias mlxft='{checkout.root}/launchers/mlxft'" in err


def test_a_chosen_python_that_does_not_work_is_named(checkout: Checkout):
    checkout.add_python("python3.12")
    code, _, err = checkout.run(MLXFT_PYTHON="/no/such/python")
    assert code == 1
    assert "error: no working Python 3.11 to 3.14 was found at /no/such/python\nhint: " in err


def test_without_a_network_the_error_is_one_sentence_with_pips_own_reason(checkout: Checkout):
    checkout.add_python()
    code, out, err = checkout.run(NO_NETWORK="1")
    assert (code, out) == (1, "")
    assert "setup:   No matching distribution found for mlx\n" in err
    assert "error: the packages could not be installed\nhint: check the network" in err
    assert not (checkout.root / ".venv").exists()
    assert checkout.run()[0] == 0


def test_an_index_that_does_not_answer_is_called_that(checkout: Checkout):
    checkout.add_python(content=PYTHON.replace('echo "ERROR', 'echo "WARNING: Retrying (Retry(total=4)"; echo "ERROR'))
    _, _, err = checkout.run(NO_NETWORK="1")
    assert "error: the package index cannot be reached\nhint: check the network and pip's settings" in err
    assert (checkout.root / ".venv.part" / "setup.log").exists()


UV = """#!/bin/sh
printf 'uv %s\\n' "$*" >>"$LOG"
for last; do :; done
[ "$1" != venv ] || { mkdir -p "$last/bin"; cp "$PYTHON_STUB" "$last/bin/python"; }
"""


def test_a_mac_with_uv_gets_a_managed_native_python(checkout: Checkout, tmp_path: Path):
    (checkout.tools / "uname").unlink()
    checkout.add_python("uname", "#!/bin/sh\necho Darwin\n")
    checkout.add_python("uv", UV)
    python = write_script(tmp_path / "managed-python", PYTHON)
    assert checkout.run("hello", PYTHON_STUB=str(python))[0] == 0
    made, installed = [line for line in checkout.log.read_text().splitlines() if line.startswith("uv ")]
    assert "--managed-python --python cpython-3.12-macos-aarch64-none" in made
    assert installed == "uv pip install --python .venv.part/bin/python --require-hashes -r requirements/run.txt"


def test_an_environment_that_does_not_import_is_not_used(checkout: Checkout):
    checkout.add_python()
    code, _, err = checkout.run(BROKEN="1")
    assert code == 1
    assert "error: the new environment does not work\n" in err
    assert not (checkout.root / ".venv").exists()


def lose_the_stamp(checkout: Checkout) -> None:
    (checkout.root / ".venv" / "stamp-run").unlink()


def lose_the_command(checkout: Checkout) -> None:
    (checkout.root / ".venv" / "bin" / "mlxft").unlink()


def lose_python(checkout: Checkout) -> None:
    (checkout.root / ".venv" / "bin" / "python").unlink()
    (checkout.root / ".venv" / "bin" / "python").symlink_to("/gone/python3.12")


def leave_a_half_made_one(checkout: Checkout) -> None:
    (checkout.root / ".venv").rename(checkout.root / ".venv.part")


def change_the_lock(checkout: Checkout) -> None:
    (checkout.root / "requirements" / "run.txt").write_text("run.txt 2\n")


def move_the_checkout(checkout: Checkout) -> None:
    moved = checkout.root.with_name("moved")
    checkout.root.rename(moved)
    checkout.root = moved


@pytest.mark.parametrize(
    "damage",
    [lose_the_stamp, lose_the_command, lose_python, leave_a_half_made_one, change_the_lock, move_the_checkout],
)
def test_a_damaged_or_outdated_environment_is_made_anew(ready: Checkout, damage: Callable[[Checkout], None]):
    damage(ready)
    code, out, _ = ready.run("hello")
    assert (code, out.splitlines()[0]) == (0, "[hello]")
    assert ready.logged("venv") == 1
    assert sorted(path.name for path in ready.root.glob(".venv*")) == [".venv"]
    assert ready.run()[2] == ""


def test_two_calls_at_once_make_one_environment(checkout: Checkout):
    checkout.add_python()
    calls = [checkout.start("a", SLOW="0.3"), checkout.start("b", SLOW="0.3")]
    results = [(call.communicate(timeout=30)[0].splitlines()[0], call.returncode) for call in calls]
    assert results == [("[a]", 0), ("[b]", 0)]
    assert checkout.logged("venv") == 1


def test_the_lock_of_a_process_that_is_gone_is_taken_over(checkout: Checkout):
    checkout.add_python()
    gone = subprocess.Popen(["true"])
    gone.wait()
    (checkout.root / ".venv.lock").mkdir()
    (checkout.root / ".venv.lock" / "pid").write_text(f"{gone.pid}\n")
    code, _, err = checkout.run()
    assert (code, "waiting" in err) == (0, False)
    assert sorted(path.name for path in checkout.root.glob(".venv*")) == [".venv"]


def test_an_interrupted_setup_leaves_no_lock_behind(checkout: Checkout):
    checkout.add_python()
    process = checkout.start(script="setup", SLOW="0.5")
    deadline = time.monotonic() + 10
    while not checkout.logged("pip") and time.monotonic() < deadline:
        time.sleep(0.02)
    process.terminate()
    process.communicate(timeout=30)
    assert process.returncode == 143
    assert not (checkout.root / ".venv.lock").exists()
    assert checkout.run()[0] == 0


def test_check_adds_the_development_tools_to_the_same_environment(ready: Checkout):
    code, _, err = ready.run("dev", script="setup")
    assert (code, ready.logged("venv"), ready.logged("pip")) == (0, 0, 1)
    assert "adding the development tools" in err
    assert "-r requirements/dev.txt" in ready.log.read_text()
    assert ready.run("dev", script="setup") == (0, "", "")
    assert ready.run()[2] == ""


def test_check_runs_all_stages_and_names_the_first_that_failed(ready: Checkout):
    assert ready.run("dev", script="setup")[0] == 0
    binaries = ready.root / ".venv" / "bin"
    write_script(binaries / "ruff", '#!/bin/sh\necho "ruff $*"\n[ "$1" = format ]\n')
    write_script(binaries / "basedpyright", "#!/bin/sh\necho types\nexit 1\n")
    write_script(binaries / "python", '#!/bin/sh\necho "tests $*"\n')
    code, out, err = ready.run("-k", "one thing", script="check")
    assert code == 1
    assert "ruff format --check ." in out
    assert "== format passed" in out
    assert "== lint FAILED" in out
    assert "== types FAILED" in out
    assert "tests -m pytest -n 2 -k one thing" in out
    assert 'error: the stage "lint" failed' in err


def test_check_passes_where_every_stage_passes(ready: Checkout):
    assert ready.run("dev", script="setup")[0] == 0
    for name in ("ruff", "basedpyright", "python"):
        write_script(ready.root / ".venv" / "bin" / name, "#!/bin/sh\nexit 0\n")
    code, out, err = ready.run(script="check")
    assert (code, err) == (0, "")
    assert out.splitlines()[-1].startswith("all stages passed, ")


def test_ci_runs_the_check_and_nothing_else():
    lines = (ROOT / ".ci" / "run").read_text().splitlines()
    assert [line for line in lines if "launchers" in line] == ["exec ./launchers/check"]
