"""Trains recipes to their target accuracy, N runs fixed in advance, and says what the runs show: `speedrun(...)`. Prints nothing.

The protocol (METHOD 14, REFERENCES 3). The clock starts with raw uint8 images and labels on the device and stops when the
predictions exist: normalisation, augmentation, whitening, making network and optimizer, training and evaluation are
inside. Import, reading, transfer, compilation and one run on random data, after which everything is made anew, are
outside and reported with the cold total. The plan (arms, seeds, order) is fixed and written before the first run; every
run of it counts, none stops early by itself. Arms of a comparison run in rounds of equal seeds, in random order.

On a GPU runs are compared by wall time; on a CPU by this process's CPU time, which others on the machine do not change
(both are kept, and with one thread on an idle machine they agree).
"""

from __future__ import annotations

import dataclasses
import gc
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Callable, Sequence

from perfscope import arms, speedrun_plan as planning
from perfscope.arms import Contender
from perfscope.errors import EnvironmentError_, UsageError
from perfscope.measure.clock import Clock, clock_for
from perfscope.measure.ranks import Ranks, join
from perfscope.provenance import new_id
from perfscope.record import Environment, Provenance, Warned, load, save
from perfscope.records.speedrun import DataInfo, Planned, Record, Trial
from perfscope.speedrun_plan import Options, derive

CURVE_POINTS = 40           # of a run that are kept: more than a plot of a hundred runs can show
WATCH_ROWS = 600
LADDER_STEPS = 30           # of the warm-up and of the trial that says how long a rung takes


@dataclass(frozen=True)
class Listener:
    """Who wants to know how it goes: `stage(text)` once per stage, `run(record)` after each run."""

    stage: Callable[[str], None] = lambda text: None
    run: Callable[[Record], None] = lambda record: None


@dataclass
class Log:
    """What a recipe's training tells: the curve, as it comes, and the trained network."""

    points: list[tuple[float, Any]] = field(default_factory=list)
    net: Any = None
    now_ns: Callable[[], int] = time.perf_counter_ns
    trained_ns: int | None = None

    def __call__(self, epoch: float, loss: Any) -> None:
        """A point of the curve; the loss may be a tensor on the device, read after the clock has stopped."""
        self.points.append((epoch, loss))

    def trained(self, net: Any) -> None:
        """The network as it is when training ends."""
        self.net, self.trained_ns = net, self.now_ns()


@dataclass(frozen=True)
class Times:
    """The clocks of a run: wall (synchronised with the device) and CPU time of this process. Injected, so that tests have their own."""

    clock: Clock
    cpu_ns: Callable[[], int] = time.process_time_ns


def speedrun(options: Options | str = Options(), *, out=None, listener: Listener = Listener(), run_id: str = "",
             contenders: Sequence[Contender] = (), times: Times | None = None, **named) -> Record:
    """Runs the plan of the options and gives the record.

    options     perfscope.speedrun_plan.Options, or its recipe ("mnist"); its other fields by name (runs=40, certify=True)
    out         folder for run.json, written after every run; None: nothing is written
    contenders  arms that are made already (perfscope.arms), in place of those that the options name

    Interrupted by Ctrl-C it gives what was run so far, with status "interrupted"; KeyboardInterrupt if that is nothing.
    Raises PerfscopeError for what the user can put right.
    """
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
    folder = _claimed(out) if out is not None and ranks.first else None
    return _run(record, made, data, device, ranks, options, folder, listener, times)


def _claimed(out) -> Path:
    from perfscope.breakdown import claim

    claim(Path(out))
    return Path(out)


def since_start() -> float:
    """Seconds since this process was started: importing Python, torch and perfscope. NaN where the system does not say."""
    try:
        ticks = float(Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()[19])
        import os
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

    import datetime
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
                made = shortened(made, data, record, ranks, options, times, listener)
                record = replace(record, arms=tuple(c.arm for c in made))
            made = [warmed(c, data, ranks, record.mode, times, listener) for c in made]
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
            counted, ceilings = count(made, data, device, listener)
            record = replace(record, arms=counted, ceilings=ceilings)
    first = record.seconds(record.runs[0]) if record.runs else 0.0
    put(status=status, watch=thinned(watch.columns), cold={**record.cold, "first_run_s": first},
        warnings=tuple(warnings(record, watch, ranks)))
    return record


def one(c: Contender, data, step: Planned, ranks: Ranks, times: Times) -> tuple[Trial, Log]:
    """One run of the plan, timed: from raw images on the device to predictions. Labels to evaluate by stay outside, unless the arm leaks."""
    visible = data if getattr(c.settings, "early_stop", 0) else replace(data, test_labels=None)
    log = Log(now_ns=times.clock.now_ns)
    gc.collect()
    was = gc.isenabled()
    gc.disable()
    try:
        ranks.gather(None)
        times.clock.synchronize()
        wall, cpu = times.clock.now_ns(), times.cpu_ns()
        predictions = c.recipe.train(visible, c.settings, step.seed, log, ranks).argmax(1)
        times.clock.synchronize()
        end = times.clock.now_ns()
        wall, cpu, evaluation = end - wall, times.cpu_ns() - cpu, (end - log.trained_ns if log.trained_ns else 0) / 1e9
    finally:
        if was:
            gc.enable()
    if len(predictions) != len(data.test_labels):
        raise UsageError(f"{c.arm.recipe} gave {len(predictions)} predictions for {len(data.test_labels)} images")
    correct = int((predictions == data.test_labels).sum())
    wall, cpu, points = (max(x) if i < 2 else x for i, x in enumerate(zip(*ranks.gather((wall / 1e9, cpu / 1e9, curve(log))))))
    epochs = log.points[-1][0] if log.points else c.settings.epochs
    return Trial(step.arm, step.seed, step.round, wall, cpu, correct, len(predictions), evaluation, float(epochs), averaged(points)), log


def curve(log: Log) -> list[tuple[float, float]]:
    """The curve as numbers, at most 40 points: each the mean loss since the one before, so that no step is left out."""
    points = [(float(e), float(v)) for e, v in log.points]
    size = max(1, -(-len(points) // CURVE_POINTS))
    parts = [points[i:i + size] for i in range(0, len(points), size)]
    return [(part[-1][0], sum(v for _, v in part) / len(part)) for part in parts]


def averaged(curves: Sequence[Sequence[tuple[float, float]]]) -> tuple[tuple[float, float], ...]:
    """The ranks' curves as one: each rank sees its part of a batch, the mean over the ranks is the batch's loss."""
    return tuple((points[0][0], sum(v for _, v in points) / len(points)) for points in zip(*curves))


def random_like(data, n_train: int | None = None, n_test: int | None = None):
    """Random images and labels in the shape of the data, to warm up with: nothing can be learnt from them."""
    import torch

    def made(images, labels, n):
        n = min(n or len(labels), len(labels))
        device = labels.device
        pictures = torch.randint(256, (n, *images.shape[1:]), dtype=torch.uint8, device=device)
        return pictures, torch.randint(int(data.train_labels.max()) + 1, (n,), device=device)

    (x, y), (tx, ty) = made(data.train_images, data.train_labels, n_train), made(data.test_images, data.test_labels, n_test)
    return replace(data, train_images=x, train_labels=y, test_images=tx, test_labels=ty)


def warmed(c: Contender, data, ranks: Ranks, mode: str, times: Times, listener: Listener) -> Contender:
    """The arm after its warm-up: one whole run on random data; of a ladder's rung, whose runs are long, some steps."""
    listener.stage(f"warming up {c.arm.name} on random data")
    settings, few = c.settings, None
    if mode == "ladder":
        few = min(len(data.train_labels), LADDER_STEPS * settings.batch)
        settings = replace(settings, epochs=min(1.0, settings.epochs))
    settings = replace(settings, early_stop=0.0) if getattr(settings, "early_stop", 0) else settings
    log = Log()
    t0 = time.perf_counter()
    c.recipe.train(replace(random_like(data, few), test_labels=None), settings, 10 ** 6, log, ranks)
    times.clock.synchronize()
    seconds = time.perf_counter() - t0
    parameters = sum(p.numel() for p in log.net.parameters()) if log.net is not None else 0
    share = settings.epochs * (few or len(data.train_labels)) / len(data.train_labels)
    return replace(c, arm=replace(c.arm, warm_up_s=seconds, warm_up_epochs=share, parameters=parameters))


def shortened(made: list[Contender], data, record: Record, ranks: Ranks, options: Options, times: Times, listener: Listener) -> list[Contender]:
    """A ladder within the budget: the epochs of each rung that would not fit into its equal share are cut by a stated factor.

    How long a rung takes is known from 30 steps on random data, after as many to warm up; before the first run.
    """
    if not options.budget_s:
        return made
    each, out = options.budget_s / len(record.plan), []
    for c in made:
        listener.stage(f"how long {c.arm.name} takes")
        few = min(len(data.train_labels), LADDER_STEPS * c.settings.batch)
        trial = replace(random_like(data, few, 256), test_labels=None)
        quick = replace(c.settings, epochs=1.0, early_stop=0.0)
        for _ in range(2):
            t0 = time.perf_counter()
            c.recipe.train(trial, quick, 0, Log(), ranks)
            times.clock.synchronize()
            seconds = time.perf_counter() - t0
        whole = ranks.agree(seconds) * c.settings.epochs * len(data.train_labels) / few
        factor = min(1.0, each / whole)
        factor = factor if factor == 1.0 else float(f"{factor:.2g}")
        settings = replace(c.settings, epochs=c.settings.epochs * factor)
        out.append(replace(c, settings=settings, arm=replace(
            c.arm, shortened=factor, settings={**c.arm.settings, "epochs": settings.epochs},
            changed={**c.arm.changed, **({"epochs": settings.epochs} if factor < 1 else {})})))
    return out


def scaling(record: Record, c: Contender, data, ranks: Ranks, times: Times) -> dict[str, float]:
    """One rank's time against all ranks' on the same work: every rank trains alone, at once, the slowest counts."""
    alone, _ = one(replace(c), data, Planned(0, record.plan[0].seed), Ranks(), times)
    solo = max(ranks.gather(alone.wall_s))
    both = record.results[0].wall.point
    if getattr(c.settings, "batch_per_rank", False):        # the ranks did the same number of steps on more images each
        solo, words = solo, "the step's batch grew with the ranks"
    else:
        words = "one batch split over the ranks"
    return {"ranks": ranks.size, "one_rank_s": solo, "all_ranks_s": both, "efficiency": solo / (ranks.size * both), "what": words}


def keep(net, path: str) -> None:
    """Saves the trained weights for --with transfer=FILE and --with distillation=FILE. EnvironmentError_ if it cannot be written."""
    import torch

    try:
        torch.save(net.state_dict(), path)
    except (OSError, RuntimeError) as e:
        raise EnvironmentError_(f"cannot write {path}: {e}", "Give another file with --save.") from None


# ---------------------------------------------------------------- after the runs

def count(made: list[Contender], data, device, listener: Listener) -> tuple[tuple, Any]:
    """(the arms with FLOPs and floors, the machine's ceilings): counted and measured after the last run, METHOD 13."""
    from perfscope.measure import floor
    from perfscope.measure.attribution import floor_seconds
    from perfscope.record import Inspection

    listener.stage("counting FLOPs, measuring this machine's ceilings")
    ceilings = {d: floor.ceilings(device, d) for d in {c.settings.dtype for c in made}}
    out, seen = [], {}
    for c in made:
        key = (c.arm.recipe, c.arm.workload, repr(dataclasses.replace(c.settings, epochs=1.0)))
        if key not in seen:
            seen[key] = planning.counted(c, data)
        layers = seen[key]
        forward, whole = floor.flops(layers)
        s, n = c.settings, len(data.train_labels)
        steps = s.epochs * n / min(s.batch, n)
        ceiling = ceilings[s.dtype]
        training = steps * floor_seconds(Inspection(layers=layers), ceiling, min(s.batch, n))
        seeing = len(data.test_labels) * planning.views(s) / s.eval_batch * floor_seconds(
            Inspection(layers=tuple(x for x in layers if x.direction == "forward")), ceiling, s.eval_batch)
        out.append(replace(c.arm, flops_forward=forward, flops_step=whole, floor_s=training + seeing))
    return tuple(out), ceilings[made[0].settings.dtype]


def thinned(columns: dict[str, list[float]]) -> dict[str, list[float]]:
    """The watch's columns, at most 600 rows."""
    return {k: v[::max(1, -(-len(v) // WATCH_ROWS))] for k, v in columns.items()}


def warnings(record: Record, watch, ranks: Ranks) -> list[Warned]:
    """What the reader must know."""
    from perfscope.measure import machine

    found = [watch.note, machine.throttled(watch.columns, None, watch.max_sm_mhz), machine.contended(watch.columns) if ranks.size == 1 else None]
    found = [replace(w, text=w.text.replace("Shares stay valid, milliseconds do not.", "Times are longer than they need be.").replace(
        "Intervals get wider and milliseconds longer; shares stay valid.", "Wall times are longer than on an idle machine; CPU times suffer less."))
        for w in found if w]
    for a in record.arms:
        found += [Warned("leak", f"{a.name} {words}", "Its accuracy is no certificate.") for words in a.leaks]
    if any(a.floor_s > r.time.point for a, r in zip(record.arms, record.results) if r and a.floor_s):
        found.append(Warned("efficiency-above-100", "a floor is above the measured time: the clock, the FLOP count or a ceiling is wrong",
                            "Do not use this run's efficiency."))
    return found


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
