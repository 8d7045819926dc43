"""How busy other programs keep this machine while something is measured. No mlx."""

import time

import psutil


class Others:
    """The share of the processors that other programs use while this object is there."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._began = time.monotonic()
        self._before = self._look()

    def _look(self) -> tuple[float, float, float]:
        machine = psutil.cpu_times()
        own = self._process.cpu_times()
        total = sum(machine[: min(8, len(machine))])
        return total, total - machine.idle - getattr(machine, "iowait", 0.0), own.user + own.system

    def share(self) -> float:
        """0 to 1; counted in hundredths of a second by the system, so not below that."""
        total, busy, own = (now - before for now, before in zip(self._look(), self._before, strict=True))
        return min(1.0, max(0.0, (busy - own) / total)) if total > 0 else 0.0

    def own_share(self) -> float:
        """Processor time of this process over the time that went by."""
        return (self._look()[2] - self._before[2]) / max(1e-3, time.monotonic() - self._began)
