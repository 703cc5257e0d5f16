"""What this machine can see: `selfcheck()` times one step against itself, and against itself with a known delay.

METHOD section 15, last line. The A/A must not be called faster or slower, the planted delay (5 % of the step) must be
found, both from the same interleaved rounds as every other measurement. The result goes into the user's cache folder
and, by `last`, into every record that this machine makes. Importing this imports no torch; time is injected.
"""

from __future__ import annotations

import datetime
import json
import math
import os
import time
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any, Callable

from perfscope.errors import EnvironmentError_
from perfscope.measure import digits, machine, stats
from perfscope.measure.clock import Clock, clock_for, steps_per_sample, timed_steps
from perfscope.measure.rounds import LEAD_IN_STEPS, LEAD_IN_STEPS_CPU, Progress, Timed, measure_rounds
from perfscope.measure.stats import Interval
from perfscope.measure.warmup import cuda_allocations, warm_up
from perfscope.record import Environment, Round, Warned, from_dict, to_dict

SCHEMA = "perfscope/selfcheck/1"
PLANTED = 0.05              # of the step: half of what METHOD 15 V2 asks for, five times what METHOD 8 says matters
BUDGET_S = 20.0
TARGET = 0.005              # METHOD 6
WARM_SHARE = 0.2            # of the budget
DELAYS = 25                 # in a row, so that launches and the synchronisation vanish in the length of one
DELAY_KNOWN = 0.02          # METHOD 15 V3: a sleep is known to 2 %
SLEEP_CYCLES = 2_000_000    # about 1 ms at 2 GHz: long against a launch, so that the rate is the clock's
CPU_SUBJECT = ("mnist_cnn", 32)     # a step of a few milliseconds: many rounds in little time
CUDA_SUBJECT = ("resnet9", 256)     # the device is busy all the time, so a delay on it cannot hide in a launch gap


@dataclass(frozen=True)
class Subject:
    """What is checked: a step, its clock, and how to delay it.

    step    one training step, asynchronous on a device
    delay   delay(seconds) -> a function that makes the device (or the CPU) busy for that long
    """

    name: str
    batch_size: int
    step: Callable[[], Any]
    delay: Callable[[float], Callable[[], Any]]
    clock: Clock
    environment: Environment
    lead_in: int = LEAD_IN_STEPS
    allocations: Callable[[], int] | None = None
    watch: Callable[[], Any] | None = None      # -> a context manager with `columns`, as perfscope.measure.machine.watch


@dataclass(frozen=True)
class Listener:
    """Who wants to know how it goes: `stage(text)` once per stage, `rounds(batch_size, Progress)` after each round."""

    stage: Callable[[str], None] = lambda text: None
    rounds: Callable[[int, Progress], None] = lambda batch_size, progress: None


@dataclass(frozen=True)
class SelfCheck:
    """What was found. Changes and shares are fractions of the step, intervals 95 %."""

    when_utc: str
    device: str
    device_name: str
    machine: str                                # the key under which it is kept: hashes only
    workload: str
    batch_size: int
    step: Interval                              # seconds
    rounds: int
    steps_per_sample: int
    stop: str
    same: Interval                              # the step against itself: change, should hold 0
    same_verdict: str                           # must not be FASTER or SLOWER
    planted: float                              # the delay as a share of the step
    recovered: Interval                         # what was measured of it
    plant_verdict: str                          # should be SLOWER
    resolution: float                           # smallest change seen with 80 % power (METHOD 7)
    torch: str = ""
    wall_s: float = 0.0
    warnings: tuple[Warned, ...] = ()
    extra: dict = field(default_factory=dict)

    @property
    def quiet(self) -> bool:
        """The step is not called faster or slower than itself."""
        return self.same_verdict not in ("FASTER", "SLOWER")

    @property
    def found(self) -> bool:
        """The planted delay was seen."""
        return self.plant_verdict == "SLOWER"

    @property
    def agrees(self) -> bool:
        """What was measured of the delay is, within its interval, what was planted (which is known to 2 % of itself)."""
        slack = DELAY_KNOWN * self.planted
        return self.recovered.low - slack <= self.planted <= self.recovered.high + slack

    @property
    def passed(self) -> bool:
        return self.quiet and self.found

    @property
    def words(self) -> str:
        """The result in one sentence."""
        sees = f"sees changes of {digits.format_change(self.resolution)} and more" if math.isfinite(self.resolution) else "too few rounds to see anything"
        plant = f"a planted {100 * self.planted:.1f} % was {'found' if self.found else 'NOT found'}"
        return f"{sees}; {plant}; the same step twice is {self.same_verdict}"


def selfcheck(device: str = "auto", budget_s: float = BUDGET_S, listener: Listener = Listener(), *, subject: Subject | None = None,
              seed: int = 0, cache: Path | None = None) -> SelfCheck:
    """Measures an A/A and one plant on this machine, keeps the result in the user's cache folder, and gives it.

    `subject` replaces the built-in step (tests hand in a fake one), `cache` the file. Ctrl-C raises KeyboardInterrupt;
    a cache that cannot be written is a warning in the result, not an error.
    """
    begun = time.perf_counter()
    if subject is None:
        listener.stage("building the step")
        subject = built_in(device)
    listener.stage("warming up")
    step, clock = subject.step, subject.clock
    warm_up(step, clock=clock, cap_s=WARM_SHARE * budget_s, allocations=subject.allocations)
    k = steps_per_sample(step, clock)
    seconds = median(timed_steps(step, k, clock) for _ in range(5))
    delay = subject.delay(PLANTED * seconds)
    length = length_of(delay, clock)

    def delayed() -> None:
        step()
        delay()

    variants = [Timed("step", step), Timed("again", step), Timed("delayed", delayed)]
    listener.stage("the step, the same step again, and the step with a delay, in turns")
    with subject.watch() if subject.watch else nullcontext() as watched:
        measured = measure_rounds(variants, clock=clock, k=k, rng_seed=seed, budget_s=(1 - WARM_SHARE) * budget_s, target=TARGET,
                                  half_width=_half_width, lead_in=subject.lead_in,
                                  progress=lambda p: listener.rounds(subject.batch_size, p))
    if measured.stop == "interrupted":
        raise KeyboardInterrupt
    found = replace(judge(measured.rounds, length), stop=measured.stop, steps_per_sample=k, device=subject.environment.device,
                    device_name=subject.environment.device_name, machine=key(subject.environment), workload=subject.name,
                    batch_size=subject.batch_size, torch=str(subject.environment.software.get("torch", "")),
                    warnings=_warnings(subject, watched), wall_s=time.perf_counter() - begun)
    try:
        remember(found, cache)
    except EnvironmentError_ as e:
        found = replace(found, warnings=(*found.warnings, Warned("not-kept", e.message, e.hint)))
    return found


def length_of(delay: Callable[[], Any], clock: Clock) -> float:
    """Seconds of one delay."""
    return median(timed_steps(delay, DELAYS, clock) for _ in range(5))


def _changes(rounds) -> tuple[Interval, Interval]:
    """ln(again/step) and ln(delayed/step), paired by round; the delayed one against both others."""
    column = lambda name: [r.step_s[name] for r in rounds]  # noqa: E731
    both = [math.sqrt(r.step_s["step"] * r.step_s["again"]) for r in rounds]
    return stats.log_ratio(column("step"), column("again")), stats.log_ratio(both, column("delayed"))


def _half_width(rounds) -> float:
    return max(x.half_width for x in _changes(rounds))


def judge(rounds: tuple[Round, ...], delay_s: float) -> SelfCheck:
    """The SelfCheck of rounds with the variants step, again and delayed, and the length of the delay; the rest is blank."""
    same, plant = _changes(rounds)
    step = stats.seconds_interval([s for r in rounds for s in (r.step_s["step"], r.step_s["again"])])
    verdicts = [stats.verdict(x, len(rounds)).word for x in (same, plant)]
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    share = lambda x: Interval(*(math.expm1(v) if v < 700 else math.inf for v in (x.point, x.low, x.high)))  # noqa: E731
    return SelfCheck(now, "", "", "", "", 0, step, len(rounds), 0, "", share(same), verdicts[0], delay_s / step.point, share(plant), verdicts[1],
                     stats.mde(same.half_width))


def _warnings(subject: Subject, watched: Any) -> tuple[Warned, ...]:
    if watched is None:
        return ()
    gpu = subject.environment.device == "cuda"
    said = machine.throttled(watched.columns, max_clock=watched.max_sm_mhz) if gpu else machine.contended(watched.columns)
    return (said,) if said else ()


# ---------------------------------------------------------------- the built-in step and its delays

def built_in(device: str = "auto") -> Subject:
    """A small built-in training step on the device, with preloaded data."""
    from perfscope.workload import step as steps
    from perfscope.workload.resolve import resolve

    where = steps.check_device(device)
    gpu = where.type == "cuda"
    name, size = CUDA_SUBJECT if gpu else CPU_SUBJECT
    prepared = steps.prepare(resolve(name), device=where, keep_original=False)
    whole = steps.build(prepared, steps.load_batches(prepared, size), ("optimizer",), ("optimizer",))
    return Subject(name, size, whole.step, cuda_delay(where) if gpu else spin, clock_for(where), machine.fingerprint(where),
                   LEAD_IN_STEPS if gpu else LEAD_IN_STEPS_CPU, cuda_allocations(where) if gpu else None, lambda: machine.watch(where))


def spin(seconds: float) -> Callable[[], None]:
    """A busy wait of this length on the CPU: it ends on time, also where it was interrupted."""
    length, now = int(seconds * 1e9), time.perf_counter_ns

    def wait() -> None:
        end = now() + length
        while now() < end:
            pass
    return wait


def cuda_delay(device) -> Callable[[float], Callable[[], None]]:
    """delay(seconds) for a CUDA device: torch.cuda._sleep with as many cycles as its clock, measured now, makes of them."""
    import torch

    clock = clock_for(device)
    asleep = lambda cycles: length_of(lambda: torch.cuda._sleep(cycles), clock)  # noqa: E731
    asleep(SLEEP_CYCLES)
    rate = SLEEP_CYCLES / (asleep(2 * SLEEP_CYCLES) - asleep(SLEEP_CYCLES))     # the difference holds no launch
    return lambda seconds: lambda: torch.cuda._sleep(max(1, round(seconds * rate)))


# ---------------------------------------------------------------- kept for the records to come

def cache_file() -> Path:
    """Where results are kept: $XDG_CACHE_HOME/perfscope/selfcheck.json, or in ~/.cache."""
    home = os.environ.get("XDG_CACHE_HOME") or Path(os.path.expanduser("~")) / ".cache"
    return Path(home) / "perfscope" / "selfcheck.json"


def key(environment: Environment) -> str:
    """What a machine is known by: its GPU's hash, or its host's where there is no GPU in play."""
    return f"{environment.device}:{environment.device_hash or environment.host_hash}"


def _kept(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        machines = data["machines"] if data["schema"] == SCHEMA else {}
        return machines if isinstance(machines, dict) else {}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}                               # no cache, or not ours: as if there were none


def remember(check: SelfCheck, path: Path | None = None) -> Path:
    """Keeps a result as the last one of its machine, atomically. Raises EnvironmentError_ if that cannot be written."""
    path = path or cache_file()
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    data = {"schema": SCHEMA, "machines": {**_kept(path), check.machine: {**to_dict(check), "words": check.words, "passed": check.passed}}}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps(data, indent=1, allow_nan=False), encoding="utf-8")
        os.replace(part, path)
    except OSError as e:
        raise EnvironmentError_(f"the result of the selfcheck cannot be kept in {path}: {e.strerror or e}",
                                "Give another cache folder with XDG_CACHE_HOME.") from e
    return path


def last(environment: Environment, path: Path | None = None) -> dict[str, Any]:
    """What the last selfcheck found on the machine of an environment, JSON-ready, for its records; {} if there was none."""
    found = _kept(path or cache_file()).get(key(environment), {})
    try:
        from_dict(SelfCheck, found)
    except (TypeError, KeyError, ValueError):
        return {}
    return found
