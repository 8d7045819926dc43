"""What was tuned, as lines for a person and as plain values for ``--json``."""

from collections.abc import Iterator, Mapping, Sequence

from mlx_finetune.app.text import shorten
from mlx_finetune.hardware.tuned import KEYS, Tried, TunedSet, TunedSettings, shown_value
from mlx_finetune.units import format_seconds

LABEL_WIDTH = 8
LONGEST = 200
_FAILED = {"crashed": "crashed", "timed_out": "hung", "no_memory": "does not fit", "refused": "refused"}


def set_lines(found: TunedSet, *, has_tried: bool = True) -> Iterator[str]:
    """One set: when and with what it was measured, what was kept and, with ``has_tried``, what was tried."""
    what = shorten(f"{found.recipe or 'all recipes'}: {found.subject}", LONGEST)
    yield f"{'for':<{LABEL_WIDTH}}{what}"
    made = f"{found.date}, {format_seconds(found.seconds)}, {found.system}, mlxft {found.mlxft}"
    yield f"{'tuned':<{LABEL_WIDTH}}{made}" + (f"; {found.ended_early}" if found.ended_early else "")
    kept = [one for one in found.tried if one.verdict == "kept"]
    if kept:
        yield f"{'gain':<{LABEL_WIDTH}}{found.gain:.2f} times as fast as the defaults"
    else:
        yield f"{'gain':<{LABEL_WIDTH}}nothing was faster than the defaults beyond the noise, so they stay"
    others = [one for one in found.tried if has_tried and one.verdict != "kept"]
    for label, some in (("kept", kept), ("tried", others)):
        for one in some:
            yield f"{label:<{LABEL_WIDTH}}{tried_line(one)}"
            label = ""


def tried_line(one: Tried) -> str:
    """``hardware.microbatch = 2: 1.08 times as fast as 4 (noise 3%)``."""
    instead = " and ".join(dict.fromkeys(shown_value(value) for value in one.instead_of.values()))
    gain = "" if one.gain is None else f"{one.gain:.2f} times as fast as {instead}"
    noise, is_faster = f"{one.noise or 0:.0%}", (one.gain or 0) > 1 + (one.noise or 0)
    said = {
        "kept": f"{gain} (noise {noise})",
        "tie": f"{gain}, {'but not in each round' if is_faster else 'tie'} (noise {noise})",
        "slower": gain,
        "beaten": f"{gain}, but another was faster still",
        "unsafe": f"not safe, {one.message}",
        "unsure": ", ".join(part for part in (gain, one.message) if part),
    }.get(one.verdict, f"{_FAILED.get(one.verdict, one.verdict)}, {one.message}")
    return f"{settings_text(one.settings)}: {shorten(said, LONGEST)}"


def settings_text(settings: Mapping[str, object]) -> str:
    """``hardware.max_ops_per_buffer = max_mb_per_buffer = 100``, or each with its value."""
    names = [name if number == 0 else name.rpartition(".")[2] for number, name in enumerate(settings)]
    values = [shown_value(value) for value in settings.values()]
    if len(set(values)) == 1:
        return " = ".join([*names, values[0]])
    return ", ".join(f"{name} = {value}" for name, value in zip(names, values, strict=True))


def asked_text(settings: TunedSettings) -> str:
    """The same for settings that are about to be tried; "the defaults" where there are none."""
    named = {KEYS[name]: value for name, value in settings.values().items()}
    return settings_text(named) if named else "the defaults"


def sets_json(machine: str, system: str, sets: Mapping[str, TunedSet], stale: Sequence[str]) -> dict[str, object]:
    """Everything ``--show`` tells, as plain values. ``stale`` says why what was tuned is not used."""
    return {
        "machine": machine,
        "system": system,
        "stale": list(stale),
        "sets": [
            one.to_json()
            | {"gain": round(one.gain, 4), "is_used": one.system == system, "reasons": dict(one.with_reasons().reasons)}
            for one in sets.values()
        ],
    }
