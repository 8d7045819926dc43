"""How busy a Mac's GPU is and the memory in use for it, from the register of devices (``ioreg``). Never needs root.

A GPU that does nothing says 0; one that says nothing is None.
"""

import plistlib
import re
from collections.abc import Mapping, Sequence
from typing import cast
from xml.parsers.expat import ExpatError

from mlx_finetune.hardware.sampling.source import Figures
from mlx_finetune.hardware.system.programs import Runner

_IOREG = "/usr/sbin/ioreg"
_CLASS = ("-r", "-d", "1", "-w", "0", "-c", "IOAccelerator")
_BUSY, _MEMORY = "Device Utilization %", "In use system memory"
_END = r"(?=[,}\s])"  # a number at the end of a text may be cut short


def read_gpu(run: Runner) -> Figures:
    """``gpu_percent`` and ``gpu_memory_bytes``; the plain listing is asked for where the property list says nothing."""
    found = parse_gpu_plist(run([_IOREG, "-a", *_CLASS]) or "")
    if found == (None, None):
        printed = run([_IOREG, *_CLASS])
        found = parse_gpu_text(f"{printed}\n" if printed else "")
    return {"gpu_percent": found[0], "gpu_memory_bytes": found[1]}


def parse_gpu_plist(text: str) -> tuple[int | None, int | None]:
    """``(busy percent, bytes in use)`` in the output of ``ioreg -a``."""
    try:
        listing = plistlib.loads(text.encode("utf-8"), fmt=plistlib.FMT_XML)
    except (ExpatError, ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError):
        return None, None
    entries = cast(Sequence[object], listing) if isinstance(listing, list) else [listing]
    for entry in entries:
        if isinstance(entry, dict):
            node = cast(dict[str, object], entry)
            statistics = node.get("PerformanceStatistics")
            inner = cast(dict[str, object], statistics) if isinstance(statistics, dict) else {}
            found = _figures({**node, **inner})
            if found != (None, None):
                return found
    return None, None


def parse_gpu_text(text: str) -> tuple[int | None, int | None]:
    """The same in the plain output; the key with ``(driver)`` behind it is another one, and 0."""
    values: dict[str, object] = {}
    for name in (_BUSY, _MEMORY):
        match = re.search(rf'"{re.escape(name)}"\s*=\s*(\d{{1,18}}){_END}', text)
        values[name] = int(match[1]) if match else None
    return _figures(values)


def _figures(values: Mapping[str, object]) -> tuple[int | None, int | None]:
    busy, memory = (_number(values.get(name)) for name in (_BUSY, _MEMORY))
    return (busy if busy is not None and busy <= 100 else None), memory


def _number(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
