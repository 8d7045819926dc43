"""The files that a double-click opens, as a Mac's Terminal would run them: stand-in tools, a bare environment."""

import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_launchers import Checkout
from windows import MacTools, Window

from mlx_finetune.app.desktop.launcher import NAMES, Target, install, launcher_path, launcher_text

ROOT = Path(__file__).resolve().parent.parent
LAUNCHERS = ROOT / "launchers"
COMMANDS = [f"{name}.command" for name in NAMES.values()]
#: An app that shows how it was called, then does what ``DO`` says.
APP = """#!/bin/bash
printf '[%s]' "$@"; printf '\\nin [%s]\\n' "$PWD"
echo "path $PATH; ${PYTHONPATH-unset} ${PYTHONHOME-unset} ${VIRTUAL_ENV-unset} ${CONDA_PREFIX-unset} $PYTHONNOUSERSITE"
eval "${DO:-true}"
"""
HOSTILE = [
    "a b",
    "it's",
    'q"q',
    "Übung",
    "rocket 🚀",
    "$(touch canary)",
    "`touch canary`",
    "x;touch canary",
    "a\nb",
    "-n",
    "back\\slash",
    "100%s",
    "cafe\u0301",
    "n" * 255,
]


class Mac:
    """A home with an app in it, launchers on its Desktop, and the tools of a Mac."""

    def __init__(self, home: Path, name: str = "my app") -> None:
        self.home = home
        self.tools = MacTools(home)
        self.root = home / name
        (self.root / "adapters").mkdir(parents=True)
        self.app = self.root / "mlxft"
        self.app.write_text(APP)
        self.app.chmod(0o755)
        self.desktop = home / "Desktop"
        install(self.desktop, Target(self.root, self.app))
        self.environment = {"HOME": str(home), "TERM": "xterm-256color", "PATH": "/usr/bin:/bin"}
        self.environment |= {"MLXFT_TEST_PATH": str(self.tools.folder)}

    def launcher(self, verb: str = "train") -> Path:
        return launcher_path(self.desktop, verb)

    def run(self, *arguments: str, verb: str = "train", **more: str) -> "subprocess.CompletedProcess[str]":
        """Without a terminal, so that nothing waits for Return."""
        return subprocess.run(
            [self.launcher(verb), *arguments],
            env=self.environment | more,
            cwd=self.home,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def open(self, verb: str = "train", **more: str) -> Window:
        return Window([self.launcher(verb)], self.environment | more, self.home)


@pytest.fixture
def mac(tmp_path: Path) -> Mac:
    return Mac(tmp_path)


@pytest.fixture
def windows() -> Iterator[list[Window]]:
    opened: list[Window] = []
    yield opened
    for window in opened:
        window.close()


# What every script must be


def shell_files() -> list[Path]:
    return [LAUNCHERS / name for name in (*COMMANDS, "window", "mac", "mlxft", "setup", "check", "lock")]


def all_scripts(tmp_path: Path) -> list[Path]:
    """Those of the repository and one that was written for a Desktop."""
    written = tmp_path / "written.command"
    written.write_bytes(launcher_text("overnight", Target(tmp_path / "it's", tmp_path / 'q"q', ("-m", "mlx_finetune"))))
    return [*shell_files(), written]


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_both_shells_of_a_mac_can_read_them(shell: str, tmp_path: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    for path in all_scripts(tmp_path):
        done = subprocess.run([shell, "-n", path], capture_output=True, text=True, check=False)
        assert (path.name, done.stderr) == (path.name, "")


def test_shellcheck_has_nothing_to_say_about_them(tmp_path: Path) -> None:
    beside_python = Path(sys.executable).with_name("shellcheck")
    shellcheck = str(beside_python) if beside_python.exists() else shutil.which("shellcheck")
    if shellcheck is None:
        pytest.skip("shellcheck is not installed; it is in the dependency group dev")
    for path in all_scripts(tmp_path):
        text = path.read_text()
        shell = "bash" if "bash" in text.splitlines()[0] else "sh"
        done = subprocess.run([shellcheck, "-s", shell, path], capture_output=True, text=True, check=False)
        assert (path.name, done.stdout) == (path.name, "")


NOT_IN_BASH_3 = (
    r"declare -A|mapfile|readarray|\$\{\w+,|\$\{\w+\^|&>>|\|&|\[\[ -v|wait -n|printf '%\(|coproc|local -n"
    r"|\$EPOCH|\$'\\u"
)
EMPTY_ARRAY = r'"\$\{\w+\[@\]\}"'  # an empty one is an error under set -u in bash 3.2
NOT_BSD = (
    r"\b(timeout|flock|setsid|nproc|realpath|tac|shuf|numfmt)\b|sed -i|grep -P|readlink -f|date -d|stat -c|cp -t"
    r"|mktemp --|head -n -|xargs -r|sort -V|ls --|echo -e|mv -T|ln -r|find .*-printf"
)


def test_they_use_nothing_that_macos_lacks(tmp_path: Path) -> None:
    for path in all_scripts(tmp_path):
        for line in path.read_text().splitlines():
            code = "" if line.startswith("#") else line.split(" # ")[0]
            code = code.replace("/usr/bin/env", "")
            for pattern in (NOT_IN_BASH_3, EMPTY_ARRAY, NOT_BSD):
                assert not re.search(pattern, code), f"{path.name}: {line}"


@pytest.mark.parametrize(
    "line", ["declare -A x", "${x,,}", "a |& b", "[[ -v x ]]", "wait -n", "printf '%(%F)T'", "x &>> y"]
)
def test_the_search_for_newer_bash_finds_it(line: str) -> None:
    assert re.search(NOT_IN_BASH_3, line)


def test_the_launchers_of_the_repository_are_small_and_executable_and_call_mlxft() -> None:
    verbs = {f"{name}.command": verb for verb, name in NAMES.items()}
    assert sorted(path.name for path in LAUNCHERS.glob("*.command")) == sorted(COMMANDS)
    for name, verb in verbs.items():
        path = LAUNCHERS / name
        lines = path.read_text().splitlines()
        assert lines[0] == "#!/bin/bash"
        assert 3 <= len(lines) <= 10
        assert f'launchers/mlxft launch {verb} "$@"' in lines
        assert path.stat().st_mode & stat.S_IXUSR


# Those that mlxft launchers install writes


@pytest.mark.parametrize("verb", NAMES)
def test_each_calls_its_verb_in_its_folder_with_nothing_of_the_user_in_the_way(verb: str, mac: Mac) -> None:
    done = mac.run(
        "a b", "$x", verb=verb, PYTHONPATH="/p", PYTHONHOME="/h", VIRTUAL_ENV="/v", CONDA_PREFIX="/c", CDPATH="/"
    )
    assert done.returncode == 0
    assert f"\x1b]0;mlxft: {NAMES[verb]}\x07[launch][{verb}][a b][$x]\nin [{mac.root}]\n" in done.stdout
    assert f"path {mac.tools.folder}:/usr/bin:/bin:/usr/sbin:/sbin; unset unset unset unset 1\n" in done.stdout
    assert done.stdout.endswith("\nDone.\n")
    assert done.stderr == ""


def test_under_rosetta_it_starts_again_natively_once(mac: Mac) -> None:
    mac.tools.answer("sysctl.sysctl.proc_translated", "1\n")
    done = mac.run("a b")
    assert "[launch][train][a b]" in done.stdout
    assert [call for call in mac.tools.log if call[0] == "arch"] == [["arch", f"-arm64 /bin/bash {mac.launcher()} a b"]]


@pytest.mark.parametrize("answer", ["0\n", "", None])
def test_an_intel_mac_is_told_and_nothing_is_started(answer: str | None, mac: Mac) -> None:
    mac.tools.answer("sysctl.hw.optional.arm64", answer)
    done = mac.run()
    assert done.returncode == 64
    assert done.stdout == "\nThis Mac has an Intel processor. MLX needs an Apple silicon Mac (M1 or newer).\n"


def test_an_app_that_was_moved_is_told_with_the_way_out(mac: Mac) -> None:
    mac.root.rename(mac.home / "moved")
    done = mac.run()
    assert done.returncode == 66
    assert f"The app was moved or is not set up. Expected: {mac.app}\n" in done.stdout
    assert "./launchers/mlxft launchers install\n" in done.stdout


def test_a_folder_of_runs_that_was_moved_is_told(mac: Mac) -> None:
    install(mac.desktop, Target(mac.home / "gone", mac.app))
    (mac.home / "gone").rmdir()
    done = mac.run()
    assert (done.returncode, "in [" in done.stdout) == (66, False)
    assert f"was moved or cannot be opened. Expected: {mac.home / 'gone'}\n" in done.stdout


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        (0, "Done."),
        (1, "It stopped with code 1; the reason stands above."),
        (2, "It stopped with code 2; the reason stands above."),
        (3, "Something does not fit or has to be mended first (code 3); it stands above."),
        (4, "A gate of the evaluation was missed (code 4); the figures stand above."),
        (129, "It was interrupted. What was saved is kept; double-click again to go on."),
        (130, "It was interrupted. What was saved is kept; double-click again to go on."),
        (134, "It was aborted (code 134), perhaps by the GPU watchdog. Nothing is lost: double-click again."),
        (137, "It was killed (code 137), often as memory ran out. Close programs, double-click again."),
    ],
)
def test_every_exit_code_gets_a_sentence_and_stays(code: int, sentence: str, mac: Mac) -> None:
    done = mac.run(DO=f"exit {code}")
    assert done.returncode == code
    assert done.stdout.endswith(f"\n\n{sentence}\n")


def test_a_log_is_named_where_there_is_one(mac: Mac) -> None:
    assert mac.run(DO="exit 1").stdout.endswith("the reason stands above.\n")
    (mac.root / "logs").mkdir()
    assert f"the reason stands above. There is a log in {mac.root}/logs.\n" in mac.run(DO="exit 1").stdout


def test_an_abort_is_told_as_one(mac: Mac) -> None:
    assert "It was aborted (code 134)" in mac.run(DO="kill -ABRT $$").stdout


@pytest.mark.parametrize("name", HOSTILE)
def test_names_are_only_names(name: str, tmp_path: Path) -> None:
    mac = Mac(tmp_path, name)
    done = mac.run(name)
    assert done.returncode == 0
    assert f"[launch][train][{name}]\nin [{mac.root}]\n" in done.stdout
    assert not list(tmp_path.rglob("canary"))


def test_it_can_be_opened_through_a_link(mac: Mac) -> None:
    link = mac.home / "my link"
    link.symlink_to(mac.launcher())
    done = subprocess.run(
        [link], env=mac.environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True
    )
    assert "[launch][train]" in done.stdout


def test_the_window_stays_open_until_return(mac: Mac, windows: list[Window]) -> None:
    windows.append(mac.open(DO="exit 5"))
    windows[0].wait_for("It stopped with code 5")
    windows[0].wait_for("Press Return to close this window. ")
    assert windows[0].raw.startswith("\x1b]0;mlxft: Train\x07")
    assert windows[0].child.poll() is None
    windows[0].type("\n")
    assert windows[0].end() == 5


def test_ctrl_c_is_for_the_app_and_the_window_stays(mac: Mac, windows: list[Window]) -> None:
    windows.append(mac.open(DO="trap 'echo saved; exit 130' INT; echo ready; while :; do sleep 0.05; done"))
    windows[0].wait_for("ready")
    windows[0].type("\x03")
    windows[0].wait_for("saved")
    windows[0].wait_for("It was interrupted.")
    windows[0].answer("Press Return", "")
    assert windows[0].end() == 130


def test_ctrl_c_at_the_end_closes_the_window(mac: Mac, windows: list[Window]) -> None:
    windows.append(mac.open())
    windows[0].wait_for("Press Return")
    windows[0].type("\x03")
    windows[0].type("\n")
    assert windows[0].end() == 0


# Those of the repository


class DoubleClicked(Checkout):
    """A checkout whose launchers are opened as Finder does: from the home folder, with a bare PATH."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.add_python()
        self.environment |= {"PATH": "/usr/bin:/bin", "MLXFT_TEST_PATH": str(self.tools)}

    def click(self, path: Path, *arguments: str, **more: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [path, *arguments],
            env=self.environment | more,
            cwd=self.environment["HOME"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )


@pytest.fixture
def clicked(tmp_path: Path) -> DoubleClicked:
    return DoubleClicked(tmp_path)


@pytest.mark.parametrize("verb", NAMES)
def test_a_double_click_makes_the_environment_and_calls_the_verb(verb: str, clicked: DoubleClicked) -> None:
    done = clicked.click(clicked.root / "launchers" / f"{NAMES[verb]}.command", "a b")
    assert done.returncode == 0
    assert f"[launch]\n[{verb}]\n[a b]\nin {clicked.root}\n" in done.stdout
    assert "setup: done" in done.stderr
    assert done.stdout.endswith("\nDone.\n")


def test_a_link_on_the_desktop_finds_the_checkout(clicked: DoubleClicked, tmp_path: Path) -> None:
    (tmp_path / "Desk top").mkdir()
    (tmp_path / "Desk top" / "first").symlink_to("../my checkout/launchers/Train overnight.command")
    (tmp_path / "second").symlink_to(tmp_path / "Desk top" / "first")
    done = clicked.click(tmp_path / "second")
    assert f"[launch]\n[overnight]\nin {clicked.root}\n" in done.stdout
    assert clicked.click(tmp_path / "Desk top" / "first", CDPATH="/:/tmp").stdout == done.stdout


@pytest.mark.parametrize("name", HOSTILE)
def test_a_checkout_may_be_called_anything(name: str, clicked: DoubleClicked, tmp_path: Path) -> None:
    moved = clicked.root.rename(tmp_path / name)
    done = clicked.click(moved / "launchers" / "Chat.command")
    assert (done.returncode, f"[launch]\n[chat]\nin {moved}\n" in done.stdout) == (0, True)
    assert not list(tmp_path.rglob("canary"))


def test_without_a_python_the_sentence_says_what_to_install_and_click(clicked: DoubleClicked) -> None:
    (clicked.tools / "python3.12").unlink()
    done = clicked.click(clicked.root / "launchers" / "Setup.command", MLXFT_PYTHON="/no/such")
    assert done.returncode == 1
    assert "error: no working Python 3.11 to 3.14 was found at /no/such\n" in done.stderr
    assert "then double-click it again\n" in done.stderr
    assert "It stopped with code 1" in done.stdout


# launchers/mlxft and launchers/setup on a Mac


def on_a_mac(checkout: Checkout, **answers: str) -> Checkout:
    """``uname`` says Darwin, ``sysctl`` answers, ``arch`` runs the rest."""
    values = {"hw.optional.arm64": "1", "sysctl.proc_translated": "0"} | {
        k.replace("__", "."): v for k, v in answers.items()
    }
    cases = "".join(f"  {name}) echo {value} ;;\n" for name, value in values.items() if value)
    (checkout.tools / "uname").unlink(missing_ok=True)
    checkout.add_python("uname", "#!/bin/sh\necho Darwin\n")
    checkout.add_python("sysctl", f'#!/bin/sh\ncase $2 in\n{cases}  *) echo "unknown oid" >&2; exit 1 ;;\nesac\n')
    checkout.add_python("arch", '#!/bin/sh\necho "arch $*" >>"$LOG"\nshift\nexec "$@"\n')
    checkout.add_python()
    return checkout


@pytest.mark.parametrize("script", ["mlxft", "setup", "check"])
@pytest.mark.parametrize("value", ["0", ""])
def test_an_intel_mac_is_refused_before_anything_is_made(script: str, value: str, tmp_path: Path) -> None:
    checkout = on_a_mac(Checkout(tmp_path), hw__optional__arm64=value)
    code, out, err = checkout.run(script=script)
    assert (code, out) == (64, "")
    assert err.startswith("error: this Mac has an Intel processor; MLX needs Apple silicon (M1 or newer)\nhint: ")
    assert not (checkout.root / ".venv").exists()


def test_rosetta_is_left_once_with_the_same_arguments(tmp_path: Path) -> None:
    checkout = on_a_mac(Checkout(tmp_path), sysctl__proc_translated="1")
    becomes_native = "sed -i.old 's/translated) echo 1/translated) echo 0/' \"$SYSCTL\""
    native = f'#!/bin/sh\necho "arch $*" >>"$LOG"\nshift\n{becomes_native}\nexec "$@"\n'
    checkout.add_python("arch", native)
    code, out, _ = checkout.run("a b", "$x", SYSCTL=str(checkout.tools / "sysctl"))
    assert (code, out.startswith("[a b]\n[$x]\n")) == (0, True)
    assert checkout.logged("arch -arm64 /bin/sh") == 1


def test_rosetta_that_cannot_be_left_is_told_and_does_not_go_round_in_circles(tmp_path: Path) -> None:
    checkout = on_a_mac(Checkout(tmp_path), sysctl__proc_translated="1")
    code, out, err = checkout.run()
    assert (code, out, checkout.logged("arch")) == (1, "", 1)
    assert "error: this runs under Rosetta" in err
    assert 'untick "Open using Rosetta"' in err


@pytest.mark.parametrize(("installed", "words"), [(False, "are not needed, so cancel a dialog"), (True, "is too old")])
def test_a_mac_without_a_python_is_told_about_apples(installed: bool, words: str, tmp_path: Path) -> None:
    checkout = on_a_mac(Checkout(tmp_path))
    checkout.add_python("xcode-select", f"#!/bin/sh\nexit {0 if installed else 2}\n")
    code, _, err = checkout.run(MLXFT_PYTHON="/no/such/python")
    assert code == 1
    assert words in err
    assert "uv with: brew install uv" in err


def test_the_users_own_settings_for_uv_are_not_in_the_way(tmp_path: Path) -> None:
    checkout = on_a_mac(Checkout(tmp_path))
    uv = '#!/bin/sh\necho "uv ${UV_PYTHON-unset} ${UV_PYTHON_PREFERENCE-unset}" >>"$LOG"\nexit 1\n'
    checkout.add_python("uv", uv)
    checkout.run(UV_PYTHON="3.9", UV_PYTHON_PREFERENCE="only-system")
    assert "uv unset unset\n" in checkout.log.read_text()


def test_git_keeps_the_mode_of_the_launchers() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a checkout")
    listed = subprocess.run(
        ["git", "ls-files", "-s", "launchers/*.command"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout
    assert {line.split()[0] for line in listed.splitlines()} <= {"100755"}
    assert os.access(LAUNCHERS / "Train.command", os.X_OK)
