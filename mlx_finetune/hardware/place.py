"""Where this process stands among the ranks of a training, read from what started it. Standard library only.

``mlxft train --hostfile`` and ``mlx.launch`` tell each process its rank in the variables that mlx itself reads; nothing
is opened here, and a process without them is the only one.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

RANK = "MLX_RANK"
RING_FILE = "MLX_HOSTFILE"
JACCL_FILE = "MLX_IBV_DEVICES"
BLAS_THREADS = "OPENBLAS_NUM_THREADS"


@dataclass(frozen=True, slots=True)
class Place:
    """Rank ``rank`` of ``size``; ``num_local`` of them are on this machine. ``backend`` is mlx's name, "" alone."""

    rank: int = 0
    size: int = 1
    backend: str = ""
    num_local: int = 1


def read_place(environment: Mapping[str, str]) -> Place:
    """The place that ``environment`` tells. A list of hosts that cannot be read is one of one host."""
    rank = _number(environment.get(RANK))
    if rank is None:
        return _mpi_place(environment)
    for variable, backend in ((RING_FILE, "ring"), (JACCL_FILE, "jaccl")):
        hosts = _read_list(environment.get(variable))
        if len(hosts) > 1:
            return Place(rank, len(hosts), backend, _num_local(hosts, rank) if backend == "ring" else 1)
    size = _number(environment.get("MLX_WORLD_SIZE")) or 1
    return Place(rank, size, "nccl", size) if size > 1 else Place()


def blas_threads(place: Place) -> int | None:
    """BLAS threads for one of several ranks on a machine: its share of the cores. None where it has all of them.

    Threads of OpenBLAS wait by spinning, so two ranks with two threads each on two cores take turns (benchmarks/
    distributed.py).
    """
    if place.num_local <= 1:
        return None
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // place.num_local)


def _mpi_place(environment: Mapping[str, str]) -> Place:
    """The place that Open MPI or another launcher with PMI tells."""
    for prefix in ("OMPI_COMM_WORLD_", "PMI_"):
        rank, size = (_number(environment.get(prefix + name)) for name in ("RANK", "SIZE"))
        if rank is not None and size is not None and size > 1:
            local = _number(environment.get(f"{prefix}LOCAL_SIZE"))
            return Place(rank, size, "mpi", local or 1)
    return Place()


def _num_local(hosts: list[object], rank: int) -> int:
    """How many ranks of a ring have the address of this one."""
    addresses = [str(host[0]).rpartition(":")[0] if isinstance(host, list) and host else "" for host in hosts]
    return addresses.count(addresses[rank]) if 0 <= rank < len(addresses) else 1


def _read_list(path: str | None) -> list[object]:
    try:
        hosts = json.loads(Path(path).read_text("utf-8")) if path else []
    except (OSError, ValueError):
        return []
    return hosts if isinstance(hosts, list) else []


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdigit() else None
