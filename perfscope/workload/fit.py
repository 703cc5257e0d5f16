"""What fits: tries batch sizes once each, times them roughly, finds out-of-memory rows and the largest batch that fits."""

from __future__ import annotations

import gc
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Iterable

import torch

from perfscope.errors import PerfscopeError, WorkloadError
from perfscope.measure.machine import memory_now
from perfscope.measure.ranks import is_lost, lost
from perfscope.workload import feed
from perfscope.workload.step import Prepared, load_batches, make_variant, present_parts, traceback_text

CPU_STEP_S = 0.15               # on a CPU, the default's largest step takes about this long: three sizes get 20 rounds in a minute
CPU_LARGEST = 256
GPU_DEFAULT = (128, 256, 512, 1024)
ONE_CPU_STEP_S, ONE_GPU = 0.1, (64, 256, 512)   # the same for a single size: a diagnosis takes some 50 steps of it
SAFE = 0.9                      # of the memory that is free: what a CPU run may use before it counts as out of memory
TIMED_TRIALS = 3                # timed steps of a trial; the fastest counts
VERY_SLOW_S = 1.0               # a step this slow is tried once
SEARCH_S = 20.0                 # of steps in the search for the largest batch
STRIDE = 8                      # memory is extrapolated by at most this factor,
KNOWN_BYTES = 256 << 20         # unless a step took this much: what it takes whatever its size (some 20 MiB) counts for little then


@dataclass(frozen=True)
class Pilot:
    """One batch size tried: `step_s` of one step of the full training step, or why there is none."""

    batch_size: int
    status: str = "ok"          # ok out-of-memory
    step_s: float = 0.0
    error: str = ""
    bytes: int = 0              # of host memory that the step took, where known
    burst: int = 1              # steps that a sample has at least: more than 1 if workers load ahead


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception, or what perfscope's own one stands for, says that a device or the host ran out of memory."""
    if isinstance(error, PerfscopeError) and error.__context__ is not None:
        error = error.__context__
    if isinstance(error, (MemoryError, getattr(torch, "OutOfMemoryError", torch.cuda.OutOfMemoryError))):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and any(
        words in text for words in ("out of memory", "can't allocate memory", "not enough memory", "Cannot allocate memory",
                                    "Storage size calculation overflowed", "Invalid buffer size"))


def release() -> None:
    """Gives unused memory back, between batch sizes only: never while one is being measured."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def pilot(prepared: Prepared, batch_size: int, parts: Iterable[str]) -> Pilot:
    """Runs the full step once and then times it: the fastest of TIMED_TRIALS, unless one is enough to be called slow.

    A machine that is busy for a moment must not change the plan. Out of memory is a result; the model's own error a
    WorkloadError.
    """
    start_bytes = _host_bytes(reset=True)
    try:
        batches = load_batches(prepared, batch_size)
        variant = make_variant(prepared, batches, parts, parts)
        with variant:
            variant.step()
            _wait(prepared)
            fastest = float("inf")
            for _ in range(TIMED_TRIALS):
                begin = time.perf_counter()
                variant.step()
                _wait(prepared)
                fastest = min(fastest, time.perf_counter() - begin)
                if fastest > VERY_SLOW_S:
                    break
        return Pilot(batch_size, step_s=fastest, bytes=max(0, _host_bytes() - start_bytes), burst=feed.whole_bursts(1))
    except Exception as e:
        if not is_out_of_memory(e):
            raise own_error(e, batch_size) from None
        message = out_of_memory_text(e)
    release()
    return Pilot(batch_size, "out-of-memory", error=message)


def out_of_memory_text(error: BaseException) -> str:
    """The first line of an out-of-memory error, without the place in PyTorch's own source."""
    if isinstance(error, PerfscopeError) and error.__context__ is not None:
        error = error.__context__
    text = re.sub(r"^\[enforce fail at [^\]]*\][\s.]*", "", str(error)).strip()
    return text.splitlines()[0] if text else "out of memory"


def own_error(error: Exception, batch_size: int) -> Exception:
    """A failure of the workload's own step, as one clear error with the user's traceback."""
    if isinstance(error, PerfscopeError):
        return error
    if is_lost(error):
        return lost(error)
    if is_ours(error):
        return error                            # the command line calls it what it is: a bug of perfscope
    return WorkloadError(f"one training step at batch {batch_size} failed: {type(error).__name__}: {error}",
                         "This is the workload's own error; run one step of it by itself first.", traceback_text(error))


def is_ours(error: BaseException) -> bool:
    """Whether an error was raised by a line of perfscope itself, outside the built-in models."""
    import traceback

    package = Path(__file__).parents[1]
    frames = traceback.extract_tb(error.__traceback__)
    last = Path(frames[-1].filename) if frames else Path()
    return isinstance(error, (NameError, AttributeError)) and last.is_relative_to(package) and not last.is_relative_to(package / "models")


def _wait(prepared: Prepared) -> None:
    if prepared.device.type == "cuda":
        torch.cuda.synchronize(prepared.device)


def _host_bytes(reset=False) -> int:
    """Greatest resident bytes of this process since the last reset (Linux); 0 where that is not known."""
    try:
        if reset:
            with open("/proc/self/clear_refs", "w") as f:
                f.write("5")
        with open("/proc/self/status") as f:
            return next(int(line.split()[1]) * 1024 for line in f if line.startswith("VmHWM"))
    except (OSError, StopIteration, ValueError):
        return 0


def try_sizes(prepared: Prepared, sizes: Iterable[int], parts, free: Callable[[], int] | None = None,
              on_try: Callable[[int], None] = lambda size: None) -> list[Pilot]:
    """Tries the sizes from the smallest to the largest; beyond the first that does not fit, none is tried.

    On a CPU, where Linux kills a process that takes too much, a size whose memory (extrapolated from a smaller one that
    ran) is not free counts as out of memory without being tried.
    """
    done: list[Pilot] = []
    free = free or (lambda: memory_now(prepared.device))
    for size in sorted(sizes):
        last = done[-1] if done else None
        if last and last.status != "ok":
            done.append(Pilot(size, "out-of-memory", error=f"not tried: batch {last.batch_size} does not fit"))
            continue
        on_try(size)
        too_large = _too_large(prepared, size, last, parts, free) if prepared.device.type == "cpu" else ""
        done.append(Pilot(size, "out-of-memory", error=too_large) if too_large else pilot(prepared, size, parts))
    return done


def _too_large(prepared, size, last, parts, free) -> str:
    """Why a size cannot fit, "" if it can: its memory extrapolated in strides, each tried before the next."""
    if last is None and size <= 2 * STRIDE:
        return ""
    try:
        last = last or pilot(prepared, 2, parts)
        while last.status == "ok":
            following = size if last.bytes >= KNOWN_BYTES else min(size, last.batch_size * STRIDE)
            needed, available = last.bytes * following / last.batch_size, free()
            if needed > SAFE * available:
                return f"batch {following} needs about {needed / 2**30:.1f} GiB, extrapolated from batch {last.batch_size}; " \
                       f"{available / 2**30:.1f} GiB are free"
            if following == size:
                return ""
            last = pilot(prepared, following, parts)
    except WorkloadError:
        return ""                               # a model that takes no smaller batch than the one that was asked for
    return f"batch {last.batch_size} does not fit: {last.error}"


def default_sizes(prepared: Prepared, parts, on_try=lambda size: None) -> list[Pilot]:
    """The batch sizes that fit the device: 128 to 1024 on a GPU; on a CPU three powers of two up to a step of CPU_STEP_S."""
    if prepared.device.type == "cuda":
        return try_sizes(prepared, GPU_DEFAULT, parts, on_try=on_try)
    tried: dict[int, Pilot] = {}
    size = 1
    while size <= CPU_LARGEST:
        on_try(size)
        tried[size] = pilot(prepared, size, parts)
        if tried[size].status != "ok" or tried[size].step_s > CPU_STEP_S:
            break
        size *= 4 if tried[size].step_s < CPU_STEP_S / 16 else 2
    fitting = [s for s, p in tried.items() if p.status == "ok" and p.step_s <= CPU_STEP_S] or [min(tried)]
    top = max(fitting)
    wanted = sorted({max(1, top // 4), max(1, top // 2), top})
    return [tried.get(s) or pilot(prepared, s, parts) for s in wanted]


def one_size(prepared: Prepared) -> int:
    """The batch size of a diagnosis if none was asked for: 512 on a GPU, or what fits; on a CPU what takes up to ONE_CPU_STEP_S."""
    if prepared.device.type == "cuda":
        return max((p.batch_size for p in try_sizes(prepared, ONE_GPU, ("optimizer",)) if p.status == "ok"), default=8)
    pilots = default_sizes(prepared, present_parts(prepared, load_batches(prepared, 2)))
    return max((p.batch_size for p in pilots if p.step_s <= ONE_CPU_STEP_S), default=pilots[0].batch_size)


def largest_batch(prepared: Prepared, pilots: list[Pilot], parts) -> int | None:
    """The largest batch that fits, to about 6 %, where some size did not; None if all did, or none, or it would take too long.

    On a CPU, where the largest batch may take minutes, the rest of the way is extrapolated from the memory of what ran.
    """
    fits = [p for p in pilots if p.status == "ok"]
    fails = [p.batch_size for p in pilots if p.status != "ok"]
    if not fits or not fails:
        return None
    low, high, spent_s = max(fits, key=lambda p: p.batch_size), min(fails), 0.0
    on_cpu = prepared.device.type == "cpu"
    while high - low.batch_size > max(1, low.batch_size // 16):
        middle = min((low.batch_size + high) // 2, low.batch_size * STRIDE)
        if spent_s + 2 * low.step_s * middle / low.batch_size > SEARCH_S:
            fitting = int(SAFE * memory_now(prepared.device) * low.batch_size / low.bytes) if on_cpu and low.bytes else 0
            return min(max(fitting, low.batch_size), high - 1) if fitting else None
        if on_cpu and low.bytes * middle / low.batch_size > SAFE * memory_now(prepared.device):
            high = middle
            continue
        tried = pilot(prepared, middle, parts)
        spent_s += 2 * tried.step_s
        low, high = (tried, high) if tried.status == "ok" else (low, middle)
    return low.batch_size
