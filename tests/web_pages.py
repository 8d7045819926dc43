"""A page over journals that the test writes, with hands that note what they are asked."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from starlette.testclient import TestClient

from mlx_finetune.errors import RunError
from mlx_finetune.events import Record, to_json
from mlx_finetune.loopback.guard import Doors, Guard
from mlx_finetune.monitor.web.hands import Hands
from mlx_finetune.monitor.web.pages import Pages
from mlx_finetune.monitor.web.shelf import Shelf
from mlx_finetune.monitor.web.tickets import Tickets
from mlx_finetune.rundir import EVENTS, RunDir

TOKEN = "mlxft-" + "t" * 40
PORT = 8421


class Asked:
    """Hands that do nothing but remember; ``rows`` and ``comparison`` are what they answer."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []
        self.rows: Mapping[str, object] = {"rows": [], "splits": {"train": 0, "valid": 0, "test": 0}}
        self.comparison: Mapping[str, object] = {"recipe": [], "refusal": ""}
        self.settings: Mapping[str, object] = {"model": "tiny", "training": {"max_steps": 40}}

    def _note(self, what: str, run: RunDir) -> None:
        self.calls.append((what, run.path.name))
        if run.path.name == "refuses":
            raise RunError("no training is at work", "see how it ended")

    def _go_on(self, run: RunDir) -> str:
        return f"mlxft train {run.path.name}.toml --resume"

    def hands(self) -> Hands:
        """To be given to the page."""
        return Hands(
            stop=lambda run: self._note("stop", run),
            save_now=lambda run: self._note("save", run),
            go_on=self._go_on,
            copied=lambda command: f"cd here && {command}",
            rows=lambda run, split, first, count: {**self.rows, "asked": [split, first, count]},
            compare=lambda first, second: self.comparison,
            settings=lambda run: self.settings,
            num_bytes=lambda run: 1234,
        )


def write_run(folder: Path, name: str, records: Sequence[Record]) -> RunDir:
    """A run folder with nothing but its journal."""
    run = RunDir(folder / name)
    run.path.mkdir(parents=True, exist_ok=True)
    write_journal(run, records)
    return run


def write_journal(run: RunDir, records: Sequence[Record]) -> None:
    """Put these records in the place of the journal."""
    text = "".join(to_json(record.event, record.time) + "\n" for record in records)
    run.file(EVENTS).write_text(text, "utf-8")


def add_records(run: RunDir, records: Sequence[Record]) -> None:
    """Append to the journal, as a training does."""
    with run.file(EVENTS).open("a", encoding="utf-8") as file:
        for record in records:
            file.write(to_json(record.event, record.time) + "\n")


def make_pages(folder: Path, asked: Asked | None = None, *, chosen: str = "") -> Pages:
    """The application without its guard."""
    hands = (asked or Asked()).hands()
    return Pages(Shelf(folder, hands), hands, Tickets(TOKEN), chosen=chosen, version="0.0")


def make_client(pages: Pages, *, token: str = TOKEN) -> TestClient:
    """A client that shows the token, in front of the guard."""
    doors = Doors(port=PORT, token=TOKEN, open_paths=pages.open_paths)
    guarded = Guard(pages, doors, lambda line: None, is_quiet=True)
    headers = {"authorization": f"Bearer {token}"} if token else {}
    return TestClient(guarded, base_url=f"http://127.0.0.1:{PORT}", headers=headers)
