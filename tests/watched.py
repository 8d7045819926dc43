"""A machine for tests of whatever watches one: clocks and sensors are set by hand, and nothing really waits."""

from collections.abc import Callable
from dataclasses import dataclass, field

from mlx_finetune.hardware.sensors import Memory, Power, Sensors
from mlx_finetune.train.watch import Clocks, Surroundings

MAINS = Power(on_battery=False, percent=50)
ROOMY = Memory(level="normal", swap_bytes=0)


@dataclass
class FakeMachine:
    """Clocks in seconds. ``later`` are actions by the time (of ``awake``) from which they are due, in that order."""

    power: Power = MAINS
    memory: Memory = ROOMY
    wall: float = 1_700_000_000.0
    continuous: float = 1000.0
    awake: float = 500.0
    num_power_readings: int = 0
    naps: list[float] = field(default_factory=list)
    later: list[tuple[float, Callable[[], None]]] = field(default_factory=list)

    def run(self, seconds: float) -> None:
        """Time goes by while the machine works."""
        self.wall, self.continuous, self.awake = self.wall + seconds, self.continuous + seconds, self.awake + seconds
        while self.later and self.awake >= self.later[0][0]:
            self.later.pop(0)[1]()

    def suspend(self, seconds: float) -> None:
        """Time goes by while the machine sleeps."""
        self.wall, self.continuous = self.wall + seconds, self.continuous + seconds

    def in_seconds(self, seconds: float, name: str, value: Power | Memory) -> None:
        """Let ``power`` or ``memory`` become ``value`` after that much time awake."""
        self.later.append((self.awake + seconds, lambda: setattr(self, name, value)))

    def around(self) -> Surroundings:
        """What a watch is given to see of it."""
        clocks = Clocks(lambda: self.wall, lambda: self.continuous, lambda: self.awake)
        return Surroundings(Sensors(self._read_power, lambda: self.memory), clocks, self._nap)

    def _read_power(self) -> Power:
        self.num_power_readings += 1
        return self.power

    def _nap(self, seconds: float) -> None:
        self.naps.append(seconds)
        self.run(seconds)
