"""From a person's own data to a recipe: pick the data, see it checked, pick a model that fits this machine, name it.

Which models fit is said roughly here (``needed_bytes``); the plan, which is shown before anything starts, says it
exactly.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mlx_finetune import durable
from mlx_finetune.app.desktop.asking import ask_path, ask_text, choose, confirm, one_line
from mlx_finetune.app.desktop.desk import Cancelled, Desk
from mlx_finetune.errors import RunError
from mlx_finetune.hardware.limits import Machine, memory_limit, read_machine
from mlx_finetune.model.sources.catalogue import (
    CATALOGUE,
    CatalogueEntry,
    cache_folder,
    cached_models,
    find_entry,
    hub_cache_folder,
)
from mlx_finetune.recipe.values import toml_value
from mlx_finetune.rundir import RunDir
from mlx_finetune.units import format_bytes, format_count

_LARGE = 1_000_000_000  # parameters from which on the base is quantised on a GPU
_SMALL = 300_000_000  # parameters up to which a higher learning rate is usual
_BITS_4 = 4.5  # bits of a weight in 4-bit groups of 64 (MACOS.md 2.1)


def make_recipe(desk: Desk) -> Path:
    """A new recipe under recipes/, from the desk's folder. Raises ``Cancelled``, and ``RunError`` where none fits."""
    data = _pick_data(desk)
    entry = _pick_model(desk, read_machine())
    name = _pick_name(desk, data)
    desk.say("\nA question that is answered before and after the training shows what it changes.")
    question = ask_text(desk, "Your question (Return: none): ")
    text = recipe_text(name, entry, _below(desk, data), question)
    path = Path("recipes") / f"{name}.toml"
    try:
        durable.make_folder(desk.folder / "recipes")
        durable.write_new(desk.folder / path, [text.encode("utf-8")])
    except OSError as error:
        raise RunError(f"{path} cannot be written: {error.strerror}") from error
    desk.say(f"\nWrote {path}. It is a text file: every key can be changed there.")
    return path


def _pick_data(desk: Desk) -> Path:
    """Data that a training would take."""
    desk.say(
        "\nYour data: one example a row, as JSON Lines, JSON, CSV or Parquet, or plain text; "
        "or a folder with train, valid and test files."
    )
    while True:
        kind = "file"
        if desk.has_dialogs:
            picked = choose(desk, "Where are your examples?", ["In a file", "In a folder with train, valid and test"])
            kind = "folder" if picked == 1 else "file"
        data = ask_path(desk, "The file or folder with your examples", kind)
        desk.say("")
        if desk.mlxft(["data", "check", str(data)]) == 0:
            return data
        if not confirm(desk, "\nThis data cannot be trained on as it is. Choose other data?"):
            raise Cancelled


@dataclass(frozen=True, slots=True)
class Fit:
    """A catalogue model beside the memory of this machine; ``is_here``: nothing has to be fetched."""

    entry: CatalogueEntry
    needed: int
    limit: int
    is_here: bool

    @property
    def fits(self) -> bool:
        """Roughly, with a tenth to spare."""
        return self.needed <= 0.9 * self.limit

    @property
    def label(self) -> str:
        """One line for the menu."""
        entry = self.entry
        size = f"{format_count(entry.num_parameters)} parameters"
        fetch = "is here" if self.is_here else f"{format_bytes(entry.hub_bytes)} to fetch"
        notes = [] if entry.is_chat_model else ["base"]
        notes += ["gated"] if entry.needs_approval else []
        return f"{entry.name}: {', '.join([size, f'{format_bytes(self.needed)} of memory', fetch, *notes])}"


def fits(machine: Machine, here: Sequence[CatalogueEntry]) -> Sequence[Fit]:
    """Every catalogue model, chat models first, smaller ones first."""
    limit = memory_limit(machine)
    found = [Fit(entry, needed_bytes(entry, machine), limit, entry in here) for entry in CATALOGUE]
    return sorted(found, key=lambda fit: (not fit.entry.is_chat_model, fit.entry.num_parameters))


def needed_bytes(entry: CatalogueEntry, machine: Machine) -> int:
    """Roughly what training an adapter takes: the frozen weights, a fifth more for layers at work, and 0.7 GB.

    On a GPU weights are 4-bit from a billion parameters on and 16-bit below, on a CPU 32-bit (E; the plan is exact).
    """
    bits = 32.0 if not machine.on_gpu else _BITS_4 if entry.num_parameters >= _LARGE else 16.0
    return round(1.2 * entry.num_parameters * bits / 8 + 0.7e9)


def _pick_model(desk: Desk, machine: Machine) -> CatalogueEntry:
    cached = list(cached_models(cache_folder(), hub_cache_folder()))
    here = [entry for model in cached if (entry := find_entry(model.name)) is not None]
    rows = fits(machine, here)
    good = [fit for fit in rows if fit.fits]
    if not good:
        raise RunError("none of the known models fits into the memory of this machine", "mlxft models list")
    large = [fit.entry.name for fit in rows if not fit.fits]
    desk.say("\nLarger models answer better, smaller ones train faster; the first is good to try things with.")
    desk.say("A base model has not learned to chat; a gated one needs an account at its maker's page.")
    too_large = f"; too large: {', '.join(large)}" if large else ""
    desk.say(f"This machine has {format_bytes(rows[0].limit)} for a training{too_large}.")
    picked = choose(desk, "Which model is to learn from it?", [fit.label for fit in good])
    assert isinstance(picked, int), "no path was asked for"
    return good[picked].entry


def _pick_name(desk: Desk, data: Path) -> str:
    """A name that no recipe and no run has yet."""
    suggested = free_name(desk.folder, slug(data.name.partition(".")[0]))
    typed = ask_text(desk, f"\nA name for it (Return: {suggested}): ")
    return free_name(desk.folder, slug(typed)) if typed else suggested


def slug(text: str) -> str:
    """``text`` as a name that needs no quotes anywhere: letters, digits and dashes."""
    return re.sub(r"[^A-Za-z0-9]+", "-", text).strip("-").lower()[:40].strip("-") or "my-data"


def free_name(folder: Path, name: str) -> str:
    """``name``, or with the first number that neither recipes/ nor adapters/ has."""
    number, found = 1, name
    while (folder / "recipes" / f"{found}.toml").exists() or (folder / "adapters" / found).exists():
        number += 1
        found = f"{name}-{number}"
    return found


def _below(desk: Desk, path: Path) -> str:
    """``path`` as it stands in a recipe: from the desk's folder where it lies below it, else absolute."""
    whole = path.absolute()
    return str(whole.relative_to(desk.folder)) if whole.is_relative_to(desk.folder) else str(whole)


def recipe_text(name: str, entry: CatalogueEntry, data: str, question: str) -> str:
    """The recipe as TOML, with a word on what to change first."""
    is_small = entry.num_parameters <= _SMALL
    is_quantized = entry.num_parameters >= _LARGE and "4bit" not in entry.hub_id
    quantize = (
        "quantize = 4                      # the frozen base takes a quarter of the memory\n" if is_quantized else ""
    )
    prompts = toml_value([question] if question else [])
    run = RunDir(Path("adapters") / name)
    return f"""# {entry.name} learns from {one_line(data, 60)}
#
# Run:       mlxft train recipes/{name}.toml
# Talk:      mlxft chat {name}
# Every key: docs/recipe.md, or mlxft recipe schema --markdown

model = {toml_value(entry.name)}
output_dir = {toml_value(str(run.path))}
{quantize}
[lora]
rank = 16                         # higher: learns more, larger file; 8 to 64 is usual
alpha = 32

[data]
path = {toml_value(data)}
max_seq_length = 1024             # memory grows with it; longer rows are left out and counted

[training]
learning_rate = {"1e-3" if is_small else "2e-4"}              # lower it where answers turn to nonsense
epochs = 2                        # passes over the rows; more learns more, until it repeats them by heart
evals_per_epoch = 2

[eval]
prompts = {prompts}
"""
