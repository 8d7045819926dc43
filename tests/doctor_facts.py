"""Machines as the doctor sees them: a Linux machine and a Mac with nothing wrong, to be changed one fact at a time."""

from collections.abc import Callable, Mapping, Sequence

from mlx_finetune.app.doctor.environment import PACKAGES, Environment
from mlx_finetune.app.doctor.examine import Facts
from mlx_finetune.app.doctor.finding import Typed
from mlx_finetune.app.doctor.mac import MacState
from mlx_finetune.app.doctor.models import HubState
from mlx_finetune.app.doctor.places import Folder
from mlx_finetune.hardware.blas import BlasReport
from mlx_finetune.hardware.device import Device, Metal
from mlx_finetune.hardware.system.power import Power

GB = 10**9
LINUX = Device("linux", "Debian 12", "x86_64", "AMD EPYC", 2, 24 * GB, 20 * GB, False, Metal(False, "", "", None, None))
MAC = Device(
    "darwin",
    "macOS 15.6",
    "arm64",
    "Apple M4",
    10,
    16 * GB,
    8 * GB,
    False,
    Metal(True, "Apple M4", "applegpu_g16g", 11 * GB, 8_250_000_000),
    power=Power(on_battery=False, percent=None),
    power_mode="automatic",
)
#: The user works in the checkout and has not put its launcher on PATH.
TYPED = Typed(
    mlxft="./launchers/mlxft",
    python=".venv/bin/python",
    root="/Users/me/mlxft",
    is_own=True,
    base="/Users/me/mlxft",
    tools="/Users/me/mlxft/.venv/bin",
)
#: The user has installed the package into an environment of their own.
PACKAGE = Typed("mlxft", "/opt/env/bin/python", "", False, "/Users/me", "/opt/env/bin")
MODELS = Folder("models", "/home/me/.cache/mlxft", True, 3 * GB, 80 * GB, True)
HUB_CACHE = Folder("hub cache", "/home/me/.cache/huggingface/hub", True, 3 * GB, 80 * GB, True)
REACHED = HubState(problem="", has_token=False)
HEALTHY = Facts(
    typed=TYPED,
    versions=dict.fromkeys(PACKAGES, "1.0"),
    python="3.12.1",
    device=LINUX,
    blas=BlasReport(True, "/x/libopenblasp.so", True, "OpenBLAS was loaded before mlx"),
    gflops=155.0,
    mlx_error="",
    wheel_tag=None,
    folders=(MODELS, HUB_CACHE),
    environment=Environment("/Users/me/mlxft/.venv"),
    hub=REACHED,
    cached=("smollm2-135m",),
)
HEALTHY_MAC = Facts(
    typed=TYPED,
    versions=dict.fromkeys(PACKAGES, "1.0"),
    python="3.12.1",
    device=MAC,
    blas=BlasReport(False, None, False, "not needed"),
    gflops=2900.0,
    mlx_error="",
    wheel_tag="macosx_15_0_arm64",
    folders=(MODELS, HUB_CACHE),
    environment=Environment("/Users/me/mlxft/.venv"),
    hub=REACHED,
    cached=("smollm2-135m",),
    mac=MacState(
        display_sleep_minutes=10,
        sleep_minutes=1,
        throttled="",
        pressure="normal",
        swap_bytes=0,
        wired_limit_mb=0,
    ),
)


def answering(answers: Mapping[str, str]) -> Callable[[Sequence[str]], str | None]:
    """A runner that answers a command by the words after the program's path, such as ``pmset -g batt``; else None."""

    def run(command: Sequence[str]) -> str | None:
        typed = " ".join([command[0].rpartition("/")[2], *command[1:]])
        return next(
            (answer for start, answer in answers.items() if typed == start or typed.startswith(start + " /")), None
        )

    return run
