"""The hostfile of ``mlx.launch``, and what each rank is told."""

import json
import socket
from pathlib import Path

import pytest

from mlx_finetune.app.running import hosts
from mlx_finetune.app.running.hosts import Host, Hosts, check_rdma, free_port, read_hostfile, remote_command
from mlx_finetune.errors import UsageError
from mlx_finetune.hardware.place import Place, read_place

MAC2 = {"ssh": "mac2.local", "ips": ["10.0.0.2"]}
HERE = {"ssh": "localhost", "ips": ["10.0.0.1", "10.1.0.1"]}
HOSTFILE = Path("hosts.json")
RDMA = [HERE | {"rdma": [None, "rdma_en2"]}, MAC2 | {"rdma": ["rdma_en2", None]}]


def write(folder: Path, content: object) -> Path:
    path = folder / "hosts.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_both_forms_of_a_hostfile_are_read(tmp_path: Path):
    both = (Host("localhost", ("10.0.0.1", "10.1.0.1")), Host("mac2.local", ("10.0.0.2",)))
    assert read_hostfile(write(tmp_path, [HERE, MAC2])) == Hosts(both)
    fields = {"backend": "jaccl", "envs": ["A=b=c"], "hosts": RDMA}
    over_rdma = (
        Host("localhost", both[0].ips, (None, "rdma_en2")),
        Host("mac2.local", both[1].ips, ("rdma_en2", None)),
    )
    assert read_hostfile(write(tmp_path, fields)) == Hosts(over_rdma, "jaccl", ("A=b=c",))


def test_an_address_as_the_name_need_not_be_repeated(tmp_path: Path):
    found = read_hostfile(write(tmp_path, [{"ssh": "127.0.0.1"}, {"ssh": "10.0.0.2"}]))
    assert [host.ips for host in found.hosts] == [("127.0.0.1",), ("10.0.0.2",)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("nonsense", "is no JSON"),
        ([], "lists no host"),
        ({"backend": "ring"}, "has no list of hosts"),
        ({"ssh": "127.0.0.1"}, "has no list of hosts"),
        ({}, "has no list of hosts"),
        (3, "has no list of hosts"),
        ({"hosts": HERE}, "has no list of hosts"),
        ([1, 2], "host 0 is 1, no object with"),
        ([HERE, "mac2.local"], "host 1 is 'mac2.local', no object with"),
        ([{"ips": ["10.0.0.1"]}], 'host 0 has no name, "ssh"'),
        ([HERE, {"ssh": 5}], 'host 1 has no name, "ssh"'),
        ([HERE, {"ssh": ""}], 'host 1 has no name, "ssh"'),
        (
            [HERE, {"ssh": "-oProxyCommand=touch x", "ips": ["10.0.0.2"]}],
            "begins with -, which ssh takes for an option",
        ),
        ([HERE, MAC2 | {"ips": "10.0.0.2"}], "\"ips\" of mac2.local are '10.0.0.2', no list of addresses"),
        ([HERE, MAC2 | {"ips": 5}], '"ips" of mac2.local are 5, no list of addresses'),
        ([HERE, MAC2 | {"ips": [5]}], '"ips" of mac2.local are [5], no list of addresses'),
        ([HERE, MAC2 | {"rdma": "rdma_en2"}], "\"rdma\" of mac2.local are 'rdma_en2', no list of devices"),
        ([MAC2, HERE], "the first host is mac2.local, but rank 0 runs here"),
        ([HERE, {"ssh": "mac2.local"}], 'mac2.local has no address in "ips"'),
        ({"hosts": [HERE, MAC2], "backend": "mpi"}, "not 'mpi'"),
        ({"hosts": [HERE, MAC2], "envs": ["A"]}, '"envs" are written NAME=VALUE'),
        ({"hosts": [HERE, MAC2], "envs": 3}, '"envs" are written NAME=VALUE'),
    ],
)
def test_a_hostfile_that_cannot_be_used_is_refused_with_a_way_out(tmp_path: Path, content: object, message: str):
    with pytest.raises(UsageError) as refused:
        read_hostfile(write(tmp_path, content))
    assert message in refused.value.message
    assert refused.value.hint


def test_a_hostfile_that_is_not_there(tmp_path: Path):
    with pytest.raises(UsageError, match="cannot be read: No such file"):
        read_hostfile(tmp_path / "none.json")


def test_each_rank_of_a_ring_is_told_its_number_and_all_addresses():
    ring = Hosts((Host("localhost", ("10.0.0.1",)), Host("mac2.local", ("10.0.0.2",))), envs=("A=b",))
    variables, files = ring.environment(1, 7000)
    assert variables == {"A": "b", "MLX_RANK": "1"}
    assert {name: json.loads(text) for name, text in files.items()} == {
        "MLX_HOSTFILE": [["10.0.0.1:7000"], ["10.0.0.2:7001"]]
    }


def test_ranks_over_rdma_are_told_their_devices():
    both = (Host("localhost", ("10.0.0.1",), (None, "rdma_en2")), Host("b", ("10.0.0.2",), ("rdma_en2", None)))
    rdma = Hosts(both, "jaccl-ring")
    variables, files = rdma.environment(0, 7000)
    assert variables == {"MLX_RANK": "0", "MLX_JACCL_COORDINATOR": "10.0.0.1:7000", "MLX_JACCL_RING": "1"}
    assert json.loads(files["MLX_IBV_DEVICES"]) == [[None, "rdma_en2"], ["rdma_en2", None]]


def test_ports_that_are_taken_are_passed_over(monkeypatch: pytest.MonkeyPatch):
    here, elsewhere = Host("localhost", ("127.0.0.1",)), Host("mac2", ("10.0.0.2",))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        monkeypatch.setattr(hosts, "FIRST_PORT", port - 1)
        monkeypatch.setattr(hosts, "PORT_STEP", 7)
        assert free_port(Hosts((elsewhere, here)), 0) == port - 1 + 7
        assert free_port(Hosts((elsewhere, here)), 1) == port - 1 + 7
        assert free_port(Hosts((here, elsewhere)), 1) == port - 1
        assert free_port(Hosts((here, here)), 3) == port - 1 + 3 * 7
        assert free_port(Hosts((here, here)), 20) == port - 1 + 7


def test_what_ssh_runs_is_quoted_twice_and_its_own_errors_are_heard():
    command = remote_command(Host("mac2"), ["python", "it's"], {"A": "b c"}, {"F": '["x"]'}, Path("/some where"))
    assert command[:6] == ["ssh", "-tt", "-o", "LogLevel=ERROR", "--", "mac2"]
    assert "/some where" in command[6]
    assert command[6].startswith("/bin/sh -c ")
    assert len(command) == 7


@pytest.mark.parametrize(
    ("system", "version"), [("linux", ""), ("darwin", "26.1"), ("darwin", "15.6.1"), ("darwin", "")]
)
def test_rdma_is_refused_where_the_system_has_none(system: str, version: str):
    over_rdma = Hosts((Host("localhost"), Host("mac2")), "jaccl")
    with pytest.raises(UsageError, match=r"macOS has from 26\.2 on") as refused:
        check_rdma(HOSTFILE, over_rdma, system, lambda _: version)
    assert '"backend"' in refused.value.hint
    check_rdma(HOSTFILE, Hosts(over_rdma.hosts), system, lambda _: version)


@pytest.mark.parametrize("version", ["26.2", "26.10.1", "27.0"])
def test_rdma_is_tried_where_the_system_has_it(tmp_path: Path, version: str):
    for backend in ("jaccl", "jaccl-ring"):
        hosts = read_hostfile(write(tmp_path, {"hosts": RDMA, "backend": backend}))
        check_rdma(HOSTFILE, hosts, "darwin", lambda _: version)


@pytest.mark.parametrize(
    ("hosts", "backend", "message"),
    [
        ([HERE, MAC2], "jaccl", 'localhost has 0 entries in "rdma" for 2 hosts'),
        ([RDMA[0], MAC2], "jaccl-ring", 'mac2.local has 0 entries in "rdma" for 2 hosts'),
        ([RDMA[0], MAC2 | {"rdma": [None, None]}], "jaccl", "mac2.local names no device towards another host"),
        ([RDMA[0], MAC2 | {"rdma": [None, None]}], "jaccl-ring", "mac2.local names no device towards another host"),
    ],
)
def test_rdma_without_its_devices_is_refused(tmp_path: Path, hosts: list[object], backend: str, message: str):
    found = read_hostfile(write(tmp_path, {"hosts": hosts, "backend": backend}))
    with pytest.raises(UsageError) as refused:
        check_rdma(HOSTFILE, found, "darwin", lambda _: "26.2")
    assert message in refused.value.message
    assert "mlx.distributed_config" in refused.value.hint


def place(tmp_path: Path, addresses: list[list[str]], rank: int) -> Place:
    return read_place({"MLX_RANK": str(rank), "MLX_HOSTFILE": str(write(tmp_path, addresses))})


def test_a_rank_knows_its_place_and_how_many_share_its_machine(tmp_path: Path):
    addresses = [["10.0.0.1:1"], ["10.0.0.2:2"], ["10.0.0.1:3"]]
    assert place(tmp_path, addresses, 0) == Place(0, 3, "ring", 2)
    assert place(tmp_path, addresses, 1) == Place(1, 3, "ring", 1)


def test_without_others_a_process_is_alone(tmp_path: Path):
    assert read_place({}) == Place()
    assert place(tmp_path, [["127.0.0.1:1"]], 0) == Place()
    assert read_place({"MLX_RANK": "0", "MLX_HOSTFILE": str(write(tmp_path, ""))}) == Place()  # mlx.launch -n 1
    assert read_place({"MLX_RANK": "0", "MLX_HOSTFILE": str(tmp_path / "none")}) == Place()


def test_places_that_other_launchers_tell(tmp_path: Path):
    mpi = {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_SIZE": "2"}
    assert read_place(mpi) == Place(1, 4, "mpi", 2)
    devices = str(write(tmp_path, [[None, "a"], ["a", None]]))
    assert read_place({"MLX_RANK": "1", "MLX_IBV_DEVICES": devices}) == Place(1, 2, "jaccl", 1)
    assert read_place({"MLX_RANK": "1", "MLX_WORLD_SIZE": "2"}).backend == "nccl"
