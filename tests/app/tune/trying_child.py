"""A process of mlxft tune that trains nothing: it ends as told. Run by test_children.py and test_tuning.py.

    python trying_child.py PLAN [arguments of mlx_finetune.train.trial]

PLAN is JSON: setting as ``KEY=VALUE`` (or ``VARIABLE=VALUE``, or "" for any) -> how it ends: ``speed`` (times as fast
as the default), ``how`` (crash, hang, kill, memory, refuse, silent, garbage) and ``losses``. The first match counts.
"""

import argparse
import json
import os
import resource
import signal
import sys
import time
from typing import Any

CASE = {
    "on_gpu": False,
    "is_full": False,
    "num_cores": 4,
    "compute_dtype": "float32",
    "batch_size": 4,
    "accumulation": 1,
    "microbatch": 4,
    "gradient_checkpointing": False,
    "num_threads": "halves",
    "fixed": [],
}
STEPS = (1.0, 2.0, 1.5)
LOSSES = [2.0, 1.9, 1.8, 1.7]


def main(plan: dict[str, dict[str, Any]], arguments: list[str]) -> int:
    """End as the plan says."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    for name in ("--recipe", "--steps", "--seconds", "--parent-pid"):
        parser.add_argument(name)
    asked = parser.parse_args(arguments)
    variables = [f"{name}={value}" for name, value in os.environ.items() if name.startswith("MLX_MAX")]
    given = [*asked.overrides, *variables, ""]
    told = next((end for key, end in plan.items() if key in given), {})
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    match told.get("how"):
        case "crash":
            sys.stderr.write(
                "libc++abi: terminating: [METAL] Command buffer execution failed: Impacting Interactivity\n"
            )
            sys.stderr.flush()
            os.abort()
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "hang":
            while True:
                time.sleep(1)
        case "memory":
            sys.stderr.write("error: the training needs about 9.0 GB, and the memory limit is 8.0 GB\n")
            return 3
        case "refuse":
            sys.stderr.write("error: there is no model 'x'\nhint: mlxft models list\n")
            return 1
        case "silent":
            return 0
        case "garbage":
            print('{"trial": {"run": 3}}')
            return 0
        case _:
            seconds = [one / float(str(told.get("speed", 1.0))) for one in STEPS]
            run = {"seconds": seconds, "losses": told.get("losses", LOSSES), "peak_bytes": 10**8, "limit_bytes": 10**9}
            print("an event of loading")
            print(json.dumps({"trial": {"run": run, "case": CASE, "others_share": 0.25}}))
            return 0
    return 1


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1]), sys.argv[2:]))
