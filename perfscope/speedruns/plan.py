"""What a speedrun is asked for, the plan made of it before the first run, and what follows from the runs afterwards."""

from __future__ import annotations

import random
import shlex
from dataclasses import dataclass, fields, replace
from statistics import fmean, stdev
from typing import Any

from perfscope import tricks
from perfscope.speedruns import arms
from perfscope.speedruns.arms import Contender
from perfscope.errors import UsageError
from perfscope.measure import runs as over
from perfscope.measure.stats import t_interval, verdict, wilson
from perfscope.records.speedrun import Change, Planned, Record, Result

#: Runs (of every arm) where --runs does not say. 40: enough to certify a margin of 0.05 points at the spread of MNIST
#: (REFERENCES 3 has the same for CIFAR-10). 6: the fewest pairs with a signed-rank interval. 5: METHOD 14.4.
RUNS = {"runs": 5, "certify": 40, "ladder": 1, "ablation": 6, "confirm": 5}
LEAST_PAIRS = 5             # METHOD 14.4
MARGIN = 0.001              # of accuracy that a fix may cost: 0.1 point (REFERENCES 3)
COUNT_BATCH = 32            # images for counting FLOPs: what is counted is per image


@dataclass(frozen=True)
class Options:
    """One speedrun. `on`, `off`: tricks switched in a second arm beside the recipe as it is (with `certify`: in the only arm)."""

    recipe: str = "mnist"
    runs: int = 0                               # of every arm; 0: RUNS
    certify: bool = False
    on: tuple[str, ...] = ()                    # "cutout", "cutout=12"
    off: tuple[str, ...] = ()
    ablate: tuple[str, ...] = ()                # tricks, or "all": one arm without each
    ladder: bool = False
    before: str = ""
    after: str = ""
    margin: float = MARGIN
    holdout: int = 0
    data: str = ""
    subset: int = 0                             # only the first images: for tests, and said in the split
    synthetic: int = 0                          # random images: for tests of the path
    device: str = "auto"
    dtype: str = ""
    seed: int = 0
    budget_s: float = 0.0                       # of a ladder
    resume: str = ""
    save: str = ""
    count: bool = True

    @property
    def mode(self) -> str:
        """What kind of speedrun it is."""
        return ("ladder" if self.ladder else "confirm" if self.before or self.after else "ablation" if self.ablate or (
            (self.on or self.off) and not self.certify) else "certify" if self.certify else "runs")


def check(options: Options) -> Options:
    """The same options, or UsageError naming what is wrong."""
    o = options
    kinds = [name for name, given in (("--certify", o.certify), ("--ablate", o.ablate), ("--ladder", o.ladder),
                                      ("--before/--after", o.before or o.after)) if given]
    if len(kinds) > 1:
        raise UsageError(f"{' and '.join(kinds)} are different questions", "Ask one at a time.")
    if (o.ladder or o.before or o.after or o.ablate) and (o.on or o.off):
        raise UsageError("--with and --without go with a plain run or --certify", "For one recipe against another: --before and --after.")
    if bool(o.before) != bool(o.after):
        raise UsageError("--before and --after come together")
    if o.runs < 0 or (o.before and 0 < o.runs < LEAST_PAIRS):
        raise UsageError(f"--runs is at least {LEAST_PAIRS if o.before else 1}, not {o.runs}")
    if o.budget_s and not o.ladder:
        raise UsageError("--budget is for --ladder: a run's length is the recipe's, fixed in advance", "For shorter runs: perfscope speedrun RECIPE,epochs=0.5")
    if not 0 < o.margin < 1:
        raise UsageError("--margin is a share between 0 and 1", "For example: --margin 0.1%")
    if o.holdout < 0 or o.subset < 0:
        raise UsageError("--holdout and --subset are numbers of images")
    if o.dtype and o.dtype not in tricks.DTYPES:
        raise UsageError(f"there is no dtype {o.dtype!r}", f"Known: {', '.join(tricks.DTYPES)}")
    if not 0 <= o.seed < 2 ** 31:
        raise UsageError("--seed is a number from 0 to 2^31 - 1")
    return o


def contenders(options: Options) -> list[Contender]:
    """The arms that the options name. UsageError for what is not there or makes no sense."""
    o = check(options)
    if o.ladder:
        module, _, _ = arms.recipe(o.recipe)
        rungs = getattr(module, "LADDER", ())
        if not rungs:
            raise UsageError(f"{o.recipe} has no ladder", "Try: perfscope speedrun mnist --ladder")
        return [arms.contender(r, f"rung {r.partition(':')[2]}" if ":" in r else r, dtype=o.dtype) for r in rungs]
    if o.before:
        return [arms.contender(spec, word, within=o.recipe) for word, spec in (("before", o.before), ("after", o.after))]
    base = arms.contender(o.recipe, dtype=o.dtype)
    if o.ablate:
        names = [t for t in tricks.active(base.settings, base.recipe)] if o.ablate == ("all",) else list(o.ablate)
        made, refused = [base], []
        for name in names:
            try:
                made.append(arms.contender(o.recipe, f"without {name}", off=(name,), dtype=o.dtype))
            except UsageError as e:
                if o.ablate != ("all",):
                    raise
                refused.append(f"{name}: {e.message}")
        if len(made) == 1:
            raise UsageError(f"{o.recipe} uses no trick that can be switched off", "; ".join(refused))
        return made
    if not (o.on or o.off):
        return [base]
    words = ", ".join([f"with {t}" for t in o.on] + [f"without {t}" for t in o.off])
    changed = arms.contender(o.recipe, words, o.on, o.off, o.dtype)
    return [changed] if o.certify else [base, changed]


def plan(count: int, runs: int, seed: int, in_order: bool = False) -> tuple[Planned, ...]:
    """Rounds of equal seeds: every arm once per round, in a fresh random order (METHOD 4); a ladder from its first rung to its last."""
    shuffled, out = random.Random(seed), []
    for r in range(runs):
        order = list(range(count))
        if not in_order:
            shuffled.shuffle(order)
        out += [Planned(arm, seed + r, r) for arm in order]
    return tuple(out)


def method(options: Options, runs: int) -> dict[str, Any]:
    """The constants that went into it."""
    from perfscope.provenance import METHOD_VERSION

    return {"version": METHOD_VERSION, "runs": runs, "alpha": over.ALPHA, "margin": options.margin, "pass_rate": over.PASS_RATE,
            "clock": "from raw uint8 images on the device to predictions", "options": {f.name: getattr(options, f.name) for f in fields(options)}}


def command(options: Options, world_size: int = 1) -> str:
    """What to type to run it again."""
    start = ["perfscope"] if world_size == 1 else ["torchrun", "--nproc-per-node", str(world_size), "-m", "perfscope"]
    words, default = [*start, "speedrun", options.recipe], Options()
    for flag, value in (("--runs", options.runs), ("--before", options.before), ("--after", options.after), ("--ablate", ",".join(options.ablate)),
                        ("--holdout", options.holdout), ("--subset", options.subset), ("--dtype", options.dtype), ("--seed", options.seed),
                        ("--device", "" if options.device == default.device else options.device),
                        ("--budget", f"{options.budget_s:g}s" if options.budget_s else ""),
                        ("--margin", "" if options.margin == default.margin else f"{options.margin:g}")):
        words += [flag, str(value)] if value else []
    words += [w for t in options.on for w in ("--with", t)] + [w for t in options.off for w in ("--without", t)]
    return shlex.join(words + ["--certify"] * options.certify + ["--ladder"] * options.ladder)


def views(s: Any) -> float:
    """How many views of an evaluation image are looked at, in the mean."""
    more = {"off": 0, "flip": 1, "shift": 2, "flip+shift": 5}[s.tta]
    return 1 + more * s.tta_share


def counted(c: Contender, data) -> tuple:
    """The convolutions and matmuls of one training step of an arm's network, per image."""
    import torch.nn.functional as F

    from perfscope.measure.floor import count_layers
    from perfscope.tricks import images

    s = replace(c.settings, dtype="float32", norm_float=False, master=False, loss_scale=0.0)
    net = c.recipe.model(s).to(data.train_images.device)
    n = min(COUNT_BATCH, len(data.train_labels))
    x, y = images.prepare(data.train_images[:n], s).contiguous(), data.train_labels[:n]
    return count_layers(lambda: F.cross_entropy(net(x), y).backward(), n)


# ---------------------------------------------------------------- what follows

def derive(record: Record) -> Record:
    """The record with results and comparisons made of its runs."""
    results = tuple(_result(record, i) for i in range(len(record.arms)))
    return replace(record, results=results, comparisons=tuple(_changes(record)))


def _result(record: Record, arm: int) -> Result | None:
    trials, a = record.of(arm), record.arms[arm]
    if not trials:
        return None
    accuracy = [t.accuracy for t in trials]
    passed = sum(x >= record.target for x in accuracy)
    rate = wilson(passed, len(trials))
    seconds = over.median_interval([record.seconds(t) for t in trials])
    p = over.p_above(accuracy, record.target)
    complete = len(trials) == sum(step.arm == arm for step in record.plan)
    epochs = fmean(t.epochs for t in trials)
    flops = epochs * record.data.train * a.flops_step + record.data.test * _seen(a) * a.flops_forward
    return Result(len(trials), t_interval(accuracy), stdev(accuracy) if len(accuracy) > 1 else 0.0, p,
                  record.mode == "certify" and complete and p < record.alpha and not a.leaks, over.runs_to_certify(accuracy, record.target, record.alpha),
                  passed, rate, seconds, over.median_interval([t.wall_s for t in trials]), over.median_interval([t.cpu_s for t in trials]),
                  over.time_for_pass_rate(seconds.point, rate.point), epochs * record.data.train / seconds.point if seconds.point else 0.0, flops,
                  a.floor_s / seconds.point if a.floor_s and seconds.point else 0.0)


def _seen(arm) -> float:
    more = {"off": 0, "flip": 1, "shift": 2, "flip+shift": 5}.get(arm.settings.get("tta", "off"), 0)
    return 1 + more * arm.settings.get("tta_share", 1.0)


def _changes(record: Record) -> list[Change]:
    if record.mode not in ("ablation", "confirm"):
        return []
    margin = record.method.get("margin") if record.mode == "confirm" else None
    return [_change(record, 0, i, margin) for i in range(1, len(record.arms))]


def _change(record: Record, a: int, b: int, margin: float | None) -> Change:
    """Arm b against arm a over the seeds that both have run."""
    mine, theirs = ({t.seed: t for t in record.of(i)} for i in (a, b))
    seeds = [s for s in mine if s in theirs]
    accuracy = [[side[s].accuracy for s in seeds] for side in (mine, theirs)]
    time = over.time_change(*[[record.seconds(side[s]) for s in seeds] for side in (mine, theirs)])
    change = t_interval([y - x for x, y in zip(*accuracy)])
    told = change.low > 0 or change.high < 0
    found = Change(a, b, len(seeds), time, change, None if told else over.runs_to_settle(*accuracy), verdict(time, len(seeds)).word)
    if margin is None:
        return found
    _, not_worse, settle = over.non_inferior(*accuracy, margin)
    return replace(found, margin=margin, not_worse=not_worse, settle_margin=settle)
