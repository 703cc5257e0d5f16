"""A fake clock: steps of scripted cost on a fake device that works behind the host's back. No torch, no waiting.

    fake = FakeClock({"base": 0.010, "base+norm": 0.013}, drift=lambda t: 1 + 0.1 * t)
    measure_rounds([fake.timed("base"), fake.timed("base+norm")], clock=fake.clock(), ...)

A step takes `launch_s` of the host (it asks for work) and its cost of the device (it does the work, one after the
other); `synchronize` waits for the device. So a sample that forgot to synchronise would read only launch times.
Costs are multiplied by `drift(seconds since the start)`: a drifting clock, or a step function for throttling; by
exp(noise * N(0, 1)), seeded; and by the factor in `spikes[(name, i)]` for the i-th step of that name, from 0.
`interrupt_at=n` raises KeyboardInterrupt in the n-th thing that happens, whatever it is. `log` has them all.
"""

from __future__ import annotations

import math
import random
from typing import Callable

from perfscope.measure.clock import Clock, DeviceTimer
from perfscope.measure.rounds import Timed


class FakeClock:
    """Scripted time. `now_s` is the host's clock, `free_s` when the device will have finished."""

    def __init__(self, cost: dict[str, float], *, launch_s: float = 0.0, noise: float = 0.0, seed: int = 0,
                 drift: Callable[[float], float] = lambda t: 1.0, spikes: dict[tuple[str, int], float] | None = None,
                 interrupt_at: int | None = None, replay: dict[str, float] | None = None):
        self.cost, self.launch_s, self.noise, self.drift = cost, launch_s, noise, drift
        self.spikes, self.interrupt_at, self.replay_cost = spikes or {}, interrupt_at, replay or {}
        self.rng = random.Random(seed)
        self.now_s = self.free_s = 0.0
        self.marks: dict[str, float] = {}
        self.log: list[str] = []
        self.steps: dict[str, int] = {}
        self.inside: set[str] = set()           # variants that were entered and not left

    def happen(self, what: str) -> None:
        """Notes it; the place where Ctrl-C comes."""
        self.log.append(what)
        if self.interrupt_at is not None and len(self.log) == self.interrupt_at:
            raise KeyboardInterrupt

    def work(self, seconds: float) -> None:
        """Asks the device for work that takes this long."""
        self.now_s += self.launch_s
        self.free_s = max(self.free_s, self.now_s) + seconds

    def step(self, name: str) -> Callable[[], None]:
        def run() -> None:
            self.happen(f"step {name}")
            i = self.steps[name] = self.steps.get(name, -1) + 1
            noise = math.exp(self.noise * self.rng.gauss(0, 1)) if self.noise else 1.0
            self.work(self.cost[name] * self.drift(self.now_s) * noise * self.spikes.get((name, i), 1.0))
        return run

    def timed(self, name: str) -> Timed:
        def enter() -> None:
            self.inside.add(name)
            self.happen(f"enter {name}")

        def leave() -> None:
            self.happen(f"leave {name}")
            self.inside.discard(name)

        def replay() -> None:
            self.happen(f"replay {name}")
            self.work(self.replay_cost[name])

        return Timed(name, self.step(name), enter, leave, replay if name in self.replay_cost else None)

    def synchronize(self) -> None:
        self.happen("sync")
        self.now_s = max(self.now_s, self.free_s)

    def now_ns(self) -> int:
        return round(self.now_s * 1e9)

    def mark(self, which: str) -> Callable[[], None]:
        def place() -> None:
            self.happen(which)
            self.marks[which] = max(self.now_s, self.free_s)
        return place

    def clock(self, device: bool = False) -> Clock:
        """The clock to hand in; with `device` it has marks on the device's clock too."""
        timer = DeviceTimer(self.mark("start"), self.mark("stop"), lambda: self.marks["stop"] - self.marks["start"])
        return Clock(self.now_ns, self.synchronize, self.now_ns, timer if device else None, "fake")


class FakeNVML:
    """A scripted `pynvml` module: `clocks` are handed out one per read, the last one for ever.

    `missing` names functions that raise NotSupported, `init_error` what `nvmlInit` raises (the name of an error class).
    """

    class NVMLError(Exception):
        pass

    class NVMLError_LibraryNotFound(NVMLError):
        pass

    class NVMLError_NoPermission(NVMLError):
        pass

    class NVMLError_NotSupported(NVMLError):
        pass

    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0

    def __init__(self, sm: list[int] = (1980,), reasons: list[int] = (0,), missing: set[str] = frozenset(),
                 init_error: str = "", max_sm: int = 1980):
        self.sm, self.reason, self.missing = list(sm), list(reasons), missing
        self.init_error, self.max_sm = init_error, max_sm
        self.calls: list[str] = []

    def _call(self, name: str) -> None:
        self.calls.append(name)
        if name in self.missing:
            raise self.NVMLError_NotSupported("Not Supported")

    def nvmlInit(self):
        self.calls.append("nvmlInit")
        if self.init_error:
            raise getattr(self, self.init_error)(self.init_error)

    def nvmlShutdown(self):
        self.calls.append("nvmlShutdown")

    def nvmlDeviceGetHandleByUUID(self, uuid):
        self._call("nvmlDeviceGetHandleByUUID")
        return uuid

    def nvmlDeviceGetHandleByIndex(self, index):
        self._call("nvmlDeviceGetHandleByIndex")
        return index

    def nvmlDeviceGetClockInfo(self, handle, kind):
        self._call("nvmlDeviceGetClockInfo")
        if kind == self.NVML_CLOCK_MEM:
            return 3201
        return self.sm.pop(0) if len(self.sm) > 1 else self.sm[0]

    def nvmlDeviceGetMaxClockInfo(self, handle, kind):
        self._call("nvmlDeviceGetMaxClockInfo")
        return self.max_sm if kind == self.NVML_CLOCK_SM else 3201

    def nvmlDeviceGetPowerUsage(self, handle):
        self._call("nvmlDeviceGetPowerUsage")
        return 412_300

    def nvmlDeviceGetTemperature(self, handle, sensor):
        self._call("nvmlDeviceGetTemperature")
        return 61

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle):
        self._call("nvmlDeviceGetCurrentClocksThrottleReasons")
        return self.reason.pop(0) if len(self.reason) > 1 else self.reason[0]
