"""The machines of a training on more than one: the hostfile of ``mlx.launch``, and how a rank is started on each.

The first host is this machine: rank 0 writes the run folder here. The others are started through ssh, in the folder
of the same name and with the Python of the same path, like ``mlx.launch`` does. Backends: ring (TCP) and jaccl (RDMA
over Thunderbolt 5). Never imports mlx; opens no connection itself but to see which ports are free.
"""

import contextlib
import json
import os
import shlex
import socket
import stat
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from mlx_finetune.errors import UsageError
from mlx_finetune.hardware.place import BLAS_THREADS, JACCL_FILE, RANK, RING_FILE
from mlx_finetune.hardware.system.programs import Runner, run_program

FIRST_PORT = 32323  # that of mlx.launch
PORT_STEP = 100
MAX_PORT_TRIES = 20
BACKENDS = ("ring", "jaccl", "jaccl-ring")
_RDMA_SINCE = (26, 2)
_EXAMPLE = '[{"ssh": "localhost", "ips": ["10.0.0.1"]}, {"ssh": "mac2.local", "ips": ["10.0.0.2"]}]'
_RDMA_EXAMPLE = (
    '{"backend": "jaccl", "hosts": [{"ssh": "localhost", "ips": ["10.0.0.1"], "rdma": [null, "rdma_en2"]}, '
    '{"ssh": "mac2.local", "ips": ["10.0.0.2"], "rdma": ["rdma_en2", null]}]}'
)


@dataclass(frozen=True, slots=True)
class Host:
    """One rank's machine: its name for ssh, its addresses, and for jaccl its RDMA device towards each other host."""

    ssh: str
    ips: tuple[str, ...] = ()
    rdma: tuple[object, ...] = ()

    @property
    def is_here(self) -> bool:
        """True where ``ssh`` names this machine."""
        own = socket.gethostname()
        return self.ssh in ("127.0.0.1", "localhost", "::1", own, own.partition(".")[0], f"{own}.local")


@dataclass(frozen=True, slots=True)
class Hosts:
    """All ranks in order. ``envs`` are ``NAME=VALUE`` for each of them."""

    hosts: tuple[Host, ...]
    backend: str = "ring"
    envs: tuple[str, ...] = ()

    @property
    def num_ranks(self) -> int:
        """How many processes train together."""
        return len(self.hosts)

    def environment(self, rank: int, port: int) -> tuple[dict[str, str], dict[str, str]]:
        """Variables of one rank, and those that name a file, each with what has to be in it."""
        variables = dict(entry.split("=", 1) for entry in self.envs) | {RANK: str(rank)}
        if self.backend == "ring":
            numbered = ((host, port + number) for number, host in enumerate(self.hosts))
            return variables, {RING_FILE: json.dumps([[f"{host.ips[0]}:{number}"] for host, number in numbered])}
        variables["MLX_JACCL_COORDINATOR"] = f"{self.hosts[0].ips[0]}:{port}"
        if self.backend == "jaccl-ring":
            variables["MLX_JACCL_RING"] = "1"
        return variables, {JACCL_FILE: json.dumps([host.rdma for host in self.hosts])}


def read_hostfile(path: Path) -> Hosts:
    """The hosts in a hostfile of ``mlx.launch``: a list of ``{"ssh", "ips", "rdma"}``, or an object with it as "hosts".

    Raises ``UsageError`` for one that cannot be used.
    """
    try:
        found = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}", "name a hostfile of mlx.launch") from error
    except ValueError as error:
        raise UsageError(f"{path} is no JSON: {error}", f"for example: {_EXAMPLE}") from error
    fields = cast(dict[str, object], found) if isinstance(found, dict) else {"hosts": found}
    entries = fields.get("hosts")
    if not isinstance(entries, list):
        raise UsageError(f"{path} has no list of hosts", f"for example: {_EXAMPLE}")
    hosts = tuple(_host(path, number, entry) for number, entry in enumerate(cast(list[object], entries)))
    envs = fields.get("envs") or []
    variables = tuple(str(entry) for entry in cast(list[object], envs)) if isinstance(envs, list) else (str(envs),)
    found_hosts = Hosts(hosts, str(fields.get("backend") or "ring"), variables)
    _check(path, found_hosts)
    return found_hosts


def _host(path: Path, number: int, entry: object) -> Host:
    """One entry. A name that is an address need not be repeated. Raises ``UsageError``."""
    example = f"for example: {_EXAMPLE}"
    if not isinstance(entry, dict):
        raise UsageError(f'{path}: host {number} is {entry!r}, no object with "ssh" and "ips"', example)
    fields = cast(dict[str, object], entry)
    name = fields.get("ssh")
    if not isinstance(name, str) or not name:
        raise UsageError(f'{path}: host {number} has no name, "ssh"', example)
    if name.startswith("-"):
        raise UsageError(f"{path}: the name {name!r} begins with -, which ssh takes for an option", example)
    ips, rdma = fields.get("ips") or [], fields.get("rdma") or []
    if not isinstance(ips, list) or not all(isinstance(one, str) for one in cast(list[object], ips)):
        raise UsageError(f'{path}: "ips" of {name} are {ips!r}, no list of addresses', example)
    if not isinstance(rdma, list):
        raise UsageError(f'{path}: "rdma" of {name} are {rdma!r}, no list of devices', f"for example: {_RDMA_EXAMPLE}")
    addresses = tuple(cast(list[str], ips))
    if not addresses and name.replace(".", "").isdigit():
        addresses = (name,)
    return Host(name, addresses, tuple(cast(list[object], rdma)))


def _check(path: Path, hosts: Hosts) -> None:
    if not hosts.hosts:
        raise UsageError(f"{path} lists no host", f"for example: {_EXAMPLE}")
    if hosts.backend not in BACKENDS:
        raise UsageError(
            f"{path}: mlxft starts the backends {', '.join(BACKENDS)} itself, not {hosts.backend!r}",
            f"start it so: mlx.launch --hostfile {path} --backend {hosts.backend} mlxft train RECIPE",
        )
    if not hosts.hosts[0].is_here:
        raise UsageError(
            f"{path}: the first host is {hosts.hosts[0].ssh}, but rank 0 runs here and writes the run folder here",
            'put this machine first: {"ssh": "localhost", "ips": [its address for the others]}',
        )
    without = [host.ssh for host in hosts.hosts if not host.ips]
    if hosts.num_ranks > 1 and without:
        raise UsageError(f'{path}: {", ".join(without)} has no address in "ips"', f"for example: {_EXAMPLE}")
    if any("=" not in entry for entry in hosts.envs):
        raise UsageError(f'{path}: "envs" are written NAME=VALUE', 'for example: "envs": ["MLX_METAL_FAST_SYNCH=1"]')


def check_rdma(path: Path, hosts: Hosts, system: str = sys.platform, run: Runner = run_program) -> None:
    """Refuse RDMA where this system has none or devices are missing: ranks would wait for it without a word.

    Raises ``UsageError``.
    ``system`` and ``run`` are this machine's in all but tests.
    """
    if hosts.backend == "ring" or hosts.num_ranks == 1:
        return
    version = (run(["/usr/bin/sw_vers", "-productVersion"]) or "") if system == "darwin" else ""
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if numbers < _RDMA_SINCE:
        here = f"macOS {version}" if version else system
        raise UsageError(
            f"the backend {hosts.backend} is RDMA over Thunderbolt 5, which macOS has from 26.2 on; this is {here}",
            'use the ring, over any cable: leave out "backend"',
        )
    _check_devices(path, hosts)


def _check_devices(path: Path, hosts: Hosts) -> None:
    """Refuse a host without a device towards the others."""
    hint = f"mlx.distributed_config --over thunderbolt writes it; for example: {_RDMA_EXAMPLE}"
    for number, host in enumerate(hosts.hosts):
        if len(host.rdma) != hosts.num_ranks:
            count = f"{len(host.rdma)} entries"
            raise UsageError(f'{path}: {host.ssh} has {count} in "rdma" for {hosts.num_ranks} hosts', hint)
        towards = [bool(device) for other, device in enumerate(host.rdma) if other != number]
        if not (all(towards) if hosts.backend == "jaccl" else any(towards)):
            raise UsageError(f'{path}: {host.ssh} names no device towards another host in "rdma"', hint)


def free_port(hosts: Hosts, process: int) -> int:
    """The first of as many ports as ranks, where those on this machine are free. Raises ``UsageError``.

    Without another machine, which may have a firewall, each ``process`` begins to look elsewhere: two trainings that
    start in the same second would both find the same ones free.
    """
    here = [number for number, host in enumerate(hosts.hosts) if host.is_here]
    turn = process % MAX_PORT_TRIES if len(here) == hosts.num_ranks else 0
    for number in range(turn, turn + MAX_PORT_TRIES):
        port = FIRST_PORT + PORT_STEP * (number % MAX_PORT_TRIES)
        if all(_is_free(hosts.hosts[rank].ips[0], port + rank) for rank in here):
            return port
    address = hosts.hosts[0].ips[0]
    raise UsageError(f"no port from {FIRST_PORT} on is free on {address}", "is that an address of this machine?")


def _is_free(address: str, port: int) -> bool:
    with contextlib.suppress(OSError), socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((address, port))
        return True
    return False


def remote_command(
    host: Host, command: Sequence[str], variables: Mapping[str, str], files: Mapping[str, str], folder: Path
) -> list[str]:
    """``ssh`` with everything that starts ``command`` in ``folder`` on ``host``. The end of ssh is a SIGHUP there."""
    script = [f"cd {shlex.quote(str(folder))}"]
    for name, content in files.items():
        script += [f"{name}=$(mktemp)", f'printf %s {shlex.quote(content)} > "${name}"', f"export {name}"]
    script += [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]
    script.append(f"exec {shlex.join(command)}")
    return ["ssh", "-tt", "-o", "LogLevel=ERROR", "--", host.ssh, shlex.join(["/bin/sh", "-c", " && ".join(script)])]


def passed_on(environment: Mapping[str, str]) -> dict[str, str]:
    """The user's own choices about computing that count on every machine."""
    names = ("MLX_", "AGX_", BLAS_THREADS)
    return {name: value for name, value in environment.items() if name.startswith(names)}


def fill_stdin() -> None:
    """Fill the pipe that stdin is, on Linux: ``mlx.launch`` then sleeps, where it else uses up a core and more.

    It waits with ``select`` for the pipe to take input, and an empty one always does: 1.3 cores for two ranks (mlx
    0.32.4, 2 cores, November 2026; 0.02 with full pipes). Nobody reads the pipe. On a Mac it cannot be filled from this
    end; start ranks with --hostfile there.
    """
    with contextlib.suppress(OSError):
        if not stat.S_ISFIFO(os.fstat(0).st_mode):
            return
        descriptor = os.open("/proc/self/fd/0", os.O_WRONLY | os.O_NONBLOCK)
        try:
            while os.write(descriptor, bytes(4096)):
                pass
        finally:
            os.close(descriptor)
