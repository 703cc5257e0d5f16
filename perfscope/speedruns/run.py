"""One run of a speedrun's plan, timed; the warm-up before it; what is counted and measured after the last one. Prints nothing."""

from __future__ import annotations

import dataclasses
import gc
import time
from dataclasses import dataclass, field, replace
from typing import Any, Callable, Sequence

from perfscope.speedruns import plan as planning
from perfscope.speedruns.arms import Contender
from perfscope.errors import EnvironmentError_, UsageError
from perfscope.measure.clock import Clock
from perfscope.measure.ranks import Ranks
from perfscope.record import Warned
from perfscope.records.speedrun import Planned, Record, Trial
from perfscope.speedruns.plan import Options

CURVE_POINTS = 40           # of a run that are kept: more than a plot of a hundred runs can show
WATCH_ROWS = 600
LADDER_STEPS = 30           # of the warm-up and of the trial that says how long a rung takes


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


def warmed(c: Contender, data, ranks: Ranks, mode: str, times: Times, stage: Callable[[str], None]) -> Contender:
    """The arm after its warm-up: one whole run on random data; of a ladder's rung, whose runs are long, some steps."""
    stage(f"warming up {c.arm.name} on random data")
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


def shortened(made: list[Contender], data, record: Record, ranks: Ranks, options: Options, times: Times, stage: Callable[[str], None]) -> list[Contender]:
    """A ladder within the budget: the epochs of each rung that would not fit into its equal share are cut by a stated factor.

    How long a rung takes is known from 30 steps on random data, after as many to warm up; before the first run.
    """
    if not options.budget_s:
        return made
    each, out = options.budget_s / len(record.plan), []
    for c in made:
        stage(f"how long {c.arm.name} takes")
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

def count(made: list[Contender], data, device, stage: Callable[[str], None]) -> tuple[tuple, Any]:
    """(the arms with FLOPs and floors, the machine's ceilings): counted and measured after the last run, METHOD 13."""
    from perfscope.measure import floor
    from perfscope.measure.attribution import floor_seconds
    from perfscope.record import Inspection

    stage("counting FLOPs, measuring this machine's ceilings")
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
