"""Clocks: the host's around synchronised steps, the device's own beside it. METHOD section 1.

Time is injected everywhere: whatever measures takes a `Clock`, and tests hand in a fake one. Torch is imported
only inside `cuda_clock`.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any, Callable

from perfscope.errors import EnvironmentError_

SAMPLE_S = 0.020        # METHOD 2: >> the 0.5 us resolution of a CUDA event, >= 1e4 calls of the timer
ESTIMATE_STEPS = 5      # METHOD 2
ESTIMATE_SLOW_S = 0.2   # a step slower than this fills a sample ten times over: one look at it is enough


def _nothing() -> None:
    pass


@dataclass(frozen=True)
class DeviceTimer:
    """Two marks on the device's own clock. Call `seconds()` only after a synchronisation."""

    start: Callable[[], None]
    stop: Callable[[], None]
    seconds: Callable[[], float]


@dataclass(frozen=True)
class Clock:
    """What measuring needs to know about time.

    now_ns       the clock that samples are measured with, nanoseconds, monotonic
    synchronize  returns when the device has finished all that was asked of it
    wall_ns      what budgets and own costs are counted in; the same as now_ns unless that one is not wall time
    device       marks on the device's clock, on the current stream; None where there is no device
    name         "wall", "cuda", "process" or "fake": for the record
    """

    now_ns: Callable[[], int]
    synchronize: Callable[[], None] = _nothing
    wall_ns: Callable[[], int] = time.perf_counter_ns
    device: DeviceTimer | None = None
    name: str = "wall"


def cpu_clock() -> Clock:
    """Wall time on a CPU: nothing to synchronise, no device clock."""
    return Clock(time.perf_counter_ns)


def process_clock() -> Clock:
    """CPU time of this process, all threads together: blind to what others do on a busy machine.

    For validation on shared machines (METHOD 15, V2) only: it cannot see waiting, and two threads count twice.
    Budgets still run on wall time.
    """
    return Clock(time.process_time_ns, name="process")


def cuda_clock(device=None) -> Clock:
    """Wall time, synchronised with one CUDA device, and a pair of CUDA events on its current stream.

    Raises EnvironmentError_ where there is no CUDA device.
    """
    import torch

    if not torch.cuda.is_available():
        raise EnvironmentError_("there is no CUDA device that torch can use",
                                "Use --device cpu, or look at `nvidia-smi`.")
    device = torch.device("cuda" if device is None else device)
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    timer = DeviceTimer(
        start=lambda: begin.record(torch.cuda.current_stream(device)),
        stop=lambda: end.record(torch.cuda.current_stream(device)),
        seconds=lambda: begin.elapsed_time(end) / 1e3,      # milliseconds in torch
    )
    return Clock(time.perf_counter_ns, lambda: torch.cuda.synchronize(device), device=timer, name="cuda")


def clock_for(device) -> Clock:
    """The clock of a torch device, or of its name: "cpu", "cuda", "cuda:1"."""
    return cuda_clock(device) if str(device).startswith("cuda") else cpu_clock()


def timed_steps(step: Callable[[], None], n: int, clock: Clock) -> float:
    """Seconds per step over n steps, synchronised at both ends, nothing else inside."""
    clock.synchronize()
    t0 = clock.now_ns()
    for _ in range(n):
        step()
    clock.synchronize()
    return (clock.now_ns() - t0) / n / 1e9


def step_seconds(step: Callable[[], None], clock: Clock, agree: Callable[[Any], Any] = lambda value: value) -> float:
    """A rough estimate of one step: from 5 steps after a first one, or from that one alone if it takes over 0.2 s.

    `agree(value)` gives rank 0's value on every rank, so that all take the same number of steps.
    """
    first = agree(timed_steps(step, 1, clock))
    return first if first > ESTIMATE_SLOW_S else agree(timed_steps(step, ESTIMATE_STEPS, clock))


def steps_per_sample(step: Callable[[], None], clock: Clock, target_s: float = SAMPLE_S,
                     agree: Callable[[Any], Any] = lambda value: value) -> int:
    """k, the steps of one sample: the least that fill `target_s`, at least 1 (METHOD 2).

    To be called once per batch size, on the warmed-up full step; all variants then share k.
    """
    seconds = step_seconds(step, clock, agree)
    return max(1, math.ceil(target_s / seconds)) if seconds > 0 else 1
