"""One server for all tests here that do not need another: two adapters of one tiny model, and the model itself."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from servers import Server, write_served_runs


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_model: Callable[..., Path]) -> Path:
    """A folder with the runs ``alpha`` and ``beta``."""
    folder = tmp_path_factory.mktemp("served")
    write_served_runs(folder, tiny_model("llama"))
    return folder


@pytest.fixture(scope="session")
def base_id(tiny_model: Callable[..., Path]) -> str:
    """What the base is called."""
    return tiny_model("llama").name


@pytest.fixture(scope="session")
def server(place: Path) -> Iterator[Server]:
    server = Server(place, "alpha", "beta", "--max-rows", "4", "--queue", "12", "--cors", "http://page.example:3000")
    yield server
    server.close()


@pytest.fixture(autouse=True)
def the_next_one_is_served(request: pytest.FixtureRequest) -> Iterator[None]:
    """Whatever a test sends, the server answers the next request."""
    yield
    if "server" in request.fixturenames:
        server = request.getfixturevalue("server")
        assert server.process.poll() is None, server.said()
        assert server.health()["status"] == "ok"
        assert server.chat(max_tokens=1)[0] == 200
