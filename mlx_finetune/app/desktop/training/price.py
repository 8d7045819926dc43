"""What a training will cost, in five lines: from the plan's JSON, for whoever does not want to read all of it."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import cast

from mlx_finetune.units import counted, format_bytes, format_seconds

Fields = Mapping[str, object]


def price_lines(printed: str) -> Sequence[str]:
    """The lines; empty where ``printed`` is not a plan as ``mlxft plan --json`` prints it."""
    try:
        return list(_lines(cast(Fields, json.loads(printed))))
    except (ValueError, KeyError, TypeError, AttributeError):
        return []


def first_fix(printed: str) -> Sequence[str]:
    """The settings of the first way to make it fit that the plan knows, as KEY=VALUE; empty without one."""
    try:
        fixes = cast(list[Fields], json.loads(printed)["fixes"])
        return [f"{key}={value}" for key, value in cast(Fields, fixes[0]["settings"]).items()]
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        return []


def _lines(plan: Fields) -> Iterator[str]:
    model, forecast, disk = _table(plan, "model"), _table(plan, "forecast"), _table(plan, "disk_bytes")
    rows, steps = _number(_table(plan, "rows"), "train"), _number(_table(plan, "steps"), "total")
    yield f"  learns    {counted(round(rows), 'example')} in {counted(round(steps), 'step')}"
    peak, limit = _number(_table(forecast, "peak_bytes"), "expected"), _number(_table(plan, "limits"), "memory_bytes")
    yield f"  memory    about {format_bytes(peak)} of {format_bytes(limit)}"
    yield f"  time      {_time(forecast.get('finish_seconds'))}"
    yield f"  disk      {format_bytes(_number(disk, 'needed'))} of {format_bytes(_number(disk, 'free'))} free"
    if not model["is_here"]:
        yield f"  first     the model {model['name']} is fetched, once"
    for warning in cast(list[object], plan["warnings"]):
        yield f"  warning   {warning}"


def _time(seconds: object) -> str:
    if not isinstance(seconds, dict):
        return "not known yet: the first steps will tell"
    ranges = cast(Fields, seconds)
    low, expected, high = (format_seconds(_number(ranges, key)) for key in ("low", "expected", "high"))
    return f"about {expected} ({low} to {high}) on this machine"


def _table(fields: Fields, key: str) -> Fields:
    found = fields[key]
    if not isinstance(found, dict):
        raise KeyError(key)
    return cast(Fields, found)


def _number(fields: Fields, key: str) -> float:
    found = fields[key]
    if not isinstance(found, int | float):
        raise KeyError(key)
    return found
