"""Warm-up of one variant at one shape: build, allocator quiet, steady, and an alarm for drift. METHOD section 3."""

from __future__ import annotations

from typing import Any, Callable

from perfscope.measure import stats
from perfscope.measure.clock import Clock, steps_per_sample, timed_steps
from perfscope.record import Warned, WarmUp

BUILD_STEPS = 3         # METHOD 3.1: compile, cuDNN autotune, lazy handles
BUILD_STEPS_DDP = 11    # METHOD 3.1: DDP rebuilds its buckets and logs within the first 10
QUIET_STEPS = 3         # METHOD 3.2
WINDOW = 10             # METHOD 3.3: samples of each of the two neighbouring windows
TOLERANCE = 0.005       # METHOD 3.3: they agree in median to 0.5 %
CAP_S = 30.0            # METHOD 3.3
CAP_SHARE = 0.25        # of the budget, for all variants together: a quarter of it may go into getting warm
CAP_SHARE_CPU = 0.10    # a CPU has little to warm up, and its steps are too slow to fill windows of samples
DRIFT_SIGMA = 3.0       # METHOD 3.4


def cap(budget_s: float, variants: int, share: float = CAP_SHARE) -> float:
    """Seconds that one variant's warm-up may take out of the budget of its batch size (the build steps come on top)."""
    return min(CAP_S, share * budget_s / max(1, variants))


def cuda_allocations(device=None) -> Callable[[], int]:
    """A counter of what the caching allocator had to ask the driver for: device allocations and retries."""
    import torch

    def count() -> int:
        memory = torch.cuda.memory_stats(device)
        return memory.get("num_device_alloc", 0) + memory.get("num_alloc_retries", 0)

    return count


def warm_up(step: Callable[[], None], *, clock: Clock, build_steps: int = BUILD_STEPS, k: int | None = None,
            cap_s: float = CAP_S, allocations: Callable[[], int] | None = None,
            agree: Callable[[Any], Any] = lambda value: value) -> WarmUp:
    """Runs `step` until it is steady, or for `cap_s` seconds after the build steps, whichever is first.

    `k`: steps per sample of the steady phase; estimated if None. `allocations`: a counter that stands still once the
    allocator is quiet (`cuda_allocations`); None on a CPU. `agree(value)` gives rank 0's value on every rank, so that
    all take the same steps. The cap may be overrun by one sample.
    Gives the steps and seconds it took, `settled` (two neighbouring windows agreed), `drift_z` (Mann-Kendall over the
    samples that were kept), and in `extra`: `samples`, `dropped` (d of METHOD 3), `k`, `allocator_quiet`.
    """
    start = clock.wall_ns()
    steps = 0

    def counted() -> None:
        nonlocal steps
        steps += 1
        step()

    for _ in range(build_steps):
        counted()
    clock.synchronize()
    built = clock.wall_ns()
    in_time = lambda: agree((clock.wall_ns() - built) / 1e9 < cap_s)  # noqa: E731
    quiet = allocations is None or _quiet(counted, clock, allocations, in_time, agree)
    k = k or (steps_per_sample(counted, clock, agree=agree) if in_time() else 1)
    samples: list[float] = []
    dropped = None
    while dropped is None and in_time():
        samples.append(timed_steps(counted, k, clock))
        dropped = agree(stats.settled(samples, WINDOW, TOLERANCE))
    z = stats.mann_kendall(samples[dropped or 0:])
    return WarmUp(steps, (clock.wall_ns() - start) / 1e9, z, dropped is not None,
                  {"samples": len(samples), "dropped": dropped or 0, "k": k, "allocator_quiet": quiet})


def _quiet(step: Callable[[], None], clock: Clock, allocations: Callable[[], int], in_time: Callable[[], bool],
           agree: Callable[[Any], Any]) -> bool:
    """Steps until the counter stood still for QUIET_STEPS steps; False if time ran out before."""
    seen, still = allocations(), 0
    while still < QUIET_STEPS and in_time():
        step()
        clock.synchronize()
        now = allocations()
        still = agree(still + 1 if now == seen else 0)
        seen = now
    return still >= QUIET_STEPS


def drifting(name: str, warmup: WarmUp, batch_size: int | None = None) -> Warned | None:
    """The warning `still-drifting` if the end of the warm-up had a trend beyond 3 sigma, else None."""
    if abs(warmup.drift_z) <= DRIFT_SIGMA:
        return None
    direction = "slower" if warmup.drift_z > 0 else "faster"
    return Warned("still-drifting",
                  f"still-drifting: {name} was still getting {direction} after {warmup.seconds:.1f} s of warm-up "
                  f"({abs(warmup.drift_z):.1f} sigma). Pairing removes slow drift from shares, milliseconds belong to "
                  "the clock they were measured at.",
                  "Try: --budget 120, or let the machine come to rest first.", batch_size)
