"""Trains recipes to their target accuracy, N runs fixed in advance, and says what the runs show: `speedrun(...)`. Prints nothing.

The protocol (METHOD 14, REFERENCES 3). The clock starts with raw uint8 images and labels on the device and stops when the
predictions exist: normalisation, augmentation, whitening, making network and optimizer, training and evaluation are
inside. Import, reading, transfer, compilation and one run on random data, after which everything is made anew, are
outside and reported with the cold total. The plan (arms, seeds, order) is fixed and written before the first run; every
run of it counts, none stops early by itself. Arms of a comparison run in rounds of equal seeds, in random order.

On a GPU runs are compared by wall time; on a CPU by this process's CPU time, which others on the machine change far less:
beside processes that used 73 % of two cores, runs of one thread took 3.06 to 3.13 s of CPU time and 5.8 s on the wall
(docs/evidence has such runs). Both are kept; with one thread on an idle machine they agree.
"""

from __future__ import annotations

import datetime
import os
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Callable, Sequence

from perfscope.speedruns import arms, plan as planning
from perfscope.speedruns.arms import Contender
from perfscope.errors import UsageError
from perfscope.measure.clock import clock_for
from perfscope.measure.ranks import Ranks, join
from perfscope.provenance import new_id
from perfscope.record import Environment, Provenance, load, save
from perfscope.records.speedrun import DataInfo, Record
from perfscope.speedruns.plan import Options, derive
from perfscope.speedruns.run import Times, count, keep, one, scaling, shortened, thinned, warmed, warnings


@dataclass(frozen=True)
class Listener:
    """Who wants to know how it goes: `stage(text)` once per stage, `run(record)` after each run."""

    stage: Callable[[str], None] = lambda text: None
    run: Callable[[Record], None] = lambda record: None


def speedrun(options: Options | str = Options(), *, out=None, listener: Listener = Listener(), run_id: str = "",
             contenders: Sequence[Contender] = (), times: Times | None = None, **named) -> Record:
    """Runs the plan of the options and gives the record.

    options     perfscope.speedruns.plan.Options, or its recipe ("mnist"); its other fields by name (runs=40, certify=True)
    out         folder for run.json, written after every run; None: nothing is written
    contenders  arms that are made already (perfscope.speedruns.arms), in place of those that the options name

    Interrupted by Ctrl-C it gives what was run so far, with status "interrupted"; KeyboardInterrupt if that is nothing.
    Raises PerfscopeError for what the user can put right.
    """
    from perfscope.breakdown import claim, remove_empty
    from perfscope.measure import machine
    from perfscope.workload.step import check_device

    options = replace(Options(recipe=options) if isinstance(options, str) else options, **named)
    device = check_device(options.device)
    ranks = join(device.type)
    device = check_device(options.device)
    times = times or Times(clock_for(device))
    cold = {"import_s": since_start()}
    if options.resume:
        record, made, options = resumed(options)
        same_machine(record, machine.fingerprint(device, world_size=ranks.size))
        out = out if out is not None else Path(options.resume)
    else:
        record, made = None, list(contenders) or planning.contenders(options)
    data, spent = read(made[0].recipe.DATASET if record is None else record.data.name, options, device, times, listener)
    if record is None:
        record = begin(options, made, data, run_id, device, ranks)
    elif (record.data.split, record.data.train, record.data.test) != (data.split, len(data.train_images), len(data.test_images)):
        raise UsageError(f"this run was made with other data ({record.data.split})", "Give the same --data.")
    record = replace(record, cold={**cold, **spent}, status="partial", environment=machine.fingerprint(device, world_size=ranks.size))
    folder = (Path(out) if Path(out).suffix != ".json" else Path(out).parent) if out is not None and ranks.first else None
    new = claim(folder)
    try:
        return _run(record, made, data, device, ranks, options, folder, listener, times)
    except BaseException:
        remove_empty(new)
        raise


def since_start() -> float:
    """Seconds since this process was started: importing Python, torch and perfscope. NaN where the system does not say."""
    try:
        ticks = float(Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()[19])
        return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, AttributeError):
        return float("nan")


def read(name: str, options: Options, device, times: Times, listener: Listener) -> tuple[Any, dict[str, float]]:
    """(the data set on the device, seconds of reading and of transfer)."""
    from perfscope.workload import datasets

    listener.stage(f"reading {name}")
    t0 = time.perf_counter()
    if options.synthetic:
        data = datasets.synthetic(name, options.synthetic, max(64, options.synthetic // 4), options.seed)
    else:
        data = datasets.load(name, options.data or None, options.holdout, stage=listener.stage)
    if options.subset:
        n = options.subset
        data = replace(data, train_images=data.train_images[:n], train_labels=data.train_labels[:n],
                       test_images=data.test_images[:n], test_labels=data.test_labels[:n], split=f"the first {n} images of: {data.split}")
    t1 = time.perf_counter()
    data = data.to(device)
    times.clock.synchronize()
    return data, {"read_s": t1 - t0, "transfer_s": time.perf_counter() - t1}


def begin(options: Options, made: Sequence[Contender], data, run_id: str, device, ranks: Ranks) -> Record:
    """The record before its first run: arms, plan, where it comes from."""
    from perfscope.measure import machine

    started = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    origin = Provenance(started, tuple(sys.argv), planning.command(options, ranks.size), machine.versions(),
                        machine.git_state(Path(__file__).parent), options.seed)
    if options.mode == "certify" and made[0].arm.leaks:
        raise UsageError(f"{made[0].arm.name} cannot be certified: it {made[0].arm.leaks[0]}", "Leave --certify out to run it all the same.")
    runs = options.runs or planning.RUNS[options.mode]
    return Record(run_id or new_id(made[0].arm.recipe), mode=options.mode, provenance=origin, method=planning.method(options, runs),
                  data=DataInfo(data.name, data.split, data.source, len(data.train_images), len(data.test_images)),
                  target=made[0].recipe.TARGET, clock="cpu" if device.type == "cpu" else "wall", arms=tuple(c.arm for c in made),
                  plan=planning.plan(len(made), runs, options.seed, options.mode == "ladder"))


def resumed(options: Options) -> tuple[Record, list[Contender], Options]:
    """A record that was interrupted, its arms, and its options. UsageError if it is complete, or no speedrun."""
    record = load(options.resume)
    if not isinstance(record, Record):
        raise UsageError(f"{options.resume} is the record of a {record.kind}, not of a speedrun")
    if len(record.runs) >= len(record.plan):
        raise UsageError(f"{options.resume} is complete: {len(record.runs)} of {len(record.plan)} runs",
                         "More runs than were planned would be a choice made after looking: start a new one with --runs.")
    before = record.method.get("options", {})
    kept = {k: before[k] for k in ("holdout", "subset", "synthetic", "seed") if isinstance(before.get(k), int) and not getattr(options, k)}
    return record, [arms.again(a) for a in record.arms], replace(options, **kept, data=options.data or str(before.get("data", "")))


def same_machine(record: Record, now: Environment) -> None:
    """UsageError if the rest of the runs would be of another machine, torch or number of ranks: they are not one sample."""
    was = record.environment
    pairs = [("machine", was.host_hash, now.host_hash), ("device", was.device_name, now.device_name), ("number of ranks", was.world_size, now.world_size),
             ("torch", was.software.get("torch"), now.software.get("torch")), ("number of threads", was.hardware.get("threads"), now.hardware.get("threads"))]
    changed = [f"{what} ({a} -> {b})" for what, a, b in pairs if a != b]
    if changed:
        raise UsageError(f"this run was begun on another {', '.join(changed)}: its runs would not be one sample", "Start a new one.")


# ---------------------------------------------------------------- running

def _run(record: Record, made: list[Contender], data, device, ranks: Ranks, options: Options, folder: Path | None, listener: Listener,
         times: Times) -> Record:
    from perfscope.measure import machine

    started = time.perf_counter()

    def put(**changes) -> None:
        nonlocal record
        record = derive(replace(record, **changes, provenance=replace(record.provenance, wall_s=time.perf_counter() - started)))
        if folder is not None and record.runs:
            save(record, folder / "run.json")

    status = "interrupted"
    with machine.watch(device) as watch:
        try:
            if record.mode == "ladder" and not record.runs:
                made = shortened(made, data, record, ranks, options, times, listener.stage)
                record = replace(record, arms=tuple(c.arm for c in made))
            made = [warmed(c, data, ranks, record.mode, times, listener.stage) for c in made]
            record = replace(record, arms=tuple(c.arm for c in made), cold={**record.cold, "warm_up_s": sum(c.arm.warm_up_s for c in made)})
            for step in record.plan[len(record.runs):]:
                listener.stage(f"run {len(record.runs) + 1} of {len(record.plan)}: {made[step.arm].arm.name}, seed {step.seed}")
                trial, log = one(made[step.arm], data, step, ranks, times)
                put(runs=(*record.runs, trial))
                listener.run(record)
            status = "complete"
            if options.save and ranks.first:
                keep(log.net, options.save)
        except KeyboardInterrupt:
            if not record.runs:
                raise
    if status == "complete":
        if ranks.size > 1:
            put(scaling=scaling(record, made[0], data, ranks, times))
        if ranks.first and options.count:
            counted, ceilings = count(made, data, device, listener.stage)
            record = replace(record, arms=counted, ceilings=ceilings)
    first = record.seconds(record.runs[0]) if record.runs else 0.0
    put(status=status, watch=thinned(watch.columns), cold={**record.cold, "first_run_s": first},
        warnings=tuple(warnings(record, watch, ranks)))
    return record


# ---------------------------------------------------------------- confirming a fix

def confirm(before: Any, after: Any, pairs: int = 5, margin: float = planning.MARGIN, *, recipe: str = "", numerics_unchanged: bool = False,
            **named) -> Record | None:
    """Trains both to the end, `pairs` times with equal seeds in turn: is `after` faster, and not worse by more than `margin`?

    before, after  specs ("mnist_cnn", "mnist_cnn,dtype=amp-bfloat16,fused=true", "mnist:published"), or Contenders: for a
                   Workload arms.from_workload(workload, dtype=..., memory_format=..., fused=...)
    recipe         the one that trains workloads; left out: by their input shape
    named          what speedrun takes: data, device, seed, out, listener, ...

    The verdict is comparisons[0]: `time` (ln after / before), `accuracy` (after - before), `not_worse` (METHOD 14.4: the
    interval's low end is above -margin). None, "waived", where the numerics are unchanged. UsageError for under 5 pairs, or
    for workloads that no recipe can train (say that the confirmation was not possible, and why).
    """
    if numerics_unchanged:
        return None
    if pairs < planning.LEAST_PAIRS:
        raise UsageError(f"a confirmation takes at least {planning.LEAST_PAIRS} pairs, not {pairs}")
    made = []
    for name, x in (("before", before), ("after", after)):
        if isinstance(x, str):
            x = arms.contender(x, within=recipe) if arms.known(x.split(",")[0]) else arms.from_workload(x, recipe)
        made.append(replace(x, arm=replace(x.arm, name=name)))
    if made[0].recipe.DATASET != made[1].recipe.DATASET:
        raise UsageError(f"before trains on {made[0].recipe.DATASET}, after on {made[1].recipe.DATASET}: they cannot be compared")
    options = Options(recipe=recipe or made[0].arm.recipe, before=made[0].arm.spec or "before", after=made[1].arm.spec or "after", runs=pairs, margin=margin)
    return speedrun(options, contenders=made, **named)
