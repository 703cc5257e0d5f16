"""What a speedrun's record says, in words and rows: the same in every report. Standard library only."""

from __future__ import annotations

import math
from typing import Any

from perfscope.measure import digits
from perfscope.measure.stats import Interval
from perfscope.sections import DASH, Rows, amount, figures, percent, scaled, words

FINER = 20                  # two digits of a half-width: accuracies differ by less than a mean's error, and means get compared

#: Published anchors by data set: (name, seconds, accuracy or None, hardware). REFERENCES sections 1 to 4.
ANCHORS: dict[str, tuple[tuple[str, float, float | None, str], ...]] = {
    "mnist": (("PyTorch example", 172.0, 0.99185, "GTX 1660 Ti laptop"), ("stop at 99 %", 57.4, 0.9907, "GTX 1660 Ti laptop"),
              ("train_mnist_fast", 0.762, 0.99041, "GTX 1660 Ti laptop")),
    "cifar10": (("Myrtle, part 3", 154.0, 0.9406, "V100"), ("ResNet-9, part 4", 79.0, 0.9408, "V100"), ("Myrtle, part 8", 26.0, 0.94, "V100"),
                ("hlb-CIFAR10", 6.3, 0.94, "A100"), ("airbench94", 3.83, 0.9401, "A100"), ("airbench94 Muon", 2.59, 0.9401, "A100"),
                ("Hiverge", 2.015, 0.94008, "A100")),
}


def accuracy(interval: Interval, unit: bool = True) -> str:
    """An accuracy, or a difference of two, in per cent with its half-width: "99.026 ±0.046 %"; "~99.1 %" without an interval."""
    return points(interval.scaled(100)) + (" %" if unit else "")


def points(interval: Interval, sign: bool = False) -> str:
    """A number of points with its half-width, digits as the interval supports, three decimals at most."""
    half = interval.half_width
    if not math.isfinite(interval.point):
        return DASH
    if not math.isfinite(half):
        return f"~{interval.point:{'+' if sign else ''}.2f}"
    places = max(0, digits.decimals(half / FINER, 3))
    up = math.ceil(half * 10 ** places - 1e-9) / 10 ** places
    return f"{round(interval.point, places) + 0.0:{'+' if sign else ''}.{places}f} ±{up:.{places}f}"


def seconds(interval: Interval) -> str:
    """A median time with its half-width: "4.21 ±0.05 s"; "~4.2 s" where there are too few runs for an interval."""
    if not math.isfinite(interval.point):
        return DASH
    return words(scaled(interval, 1.0), "s") if math.isfinite(interval.half_width) else f"~{figures(interval.point)} s"


def ratio(change: Interval) -> str:
    """ln(b / a) as a change in per cent: "+12.3 [11.0, 13.7] %"."""
    if not math.isfinite(change.point):
        return DASH
    point = 100 * math.expm1(change.point)
    if not math.isfinite(change.half_width):
        return f"~{point:+.2g} %"
    low, high = (100 * math.expm1(x) for x in (change.low, change.high))
    places = max(0, min(2, digits.decimals((high - low) / 2, 2)))
    return f"{point:+.{places}f} [{low:.{places}f}, {high:.{places}f}] %"


def chance(p: float) -> str:
    """A p value: "p = 0.0031", "p < 1e-6"."""
    return "p not known" if not math.isfinite(p) else "p < 1e-6" if p < 1e-6 else f"p = {p:.2g}"


def clock(record: Any) -> str:
    """What the times are of."""
    return "CPU time" if record.clock == "cpu" else "wall time"


def verdict(record: Any) -> str:
    """The record in one sentence, or a few."""
    told = {"certify": certificate, "runs": certificate, "ladder": ladder, "ablation": ablation, "confirm": confirmation}[record.mode](record)
    if record.status != "complete":
        told = (f"{record.status.upper()} after {len(record.runs)} of {len(record.plan)} runs; they are kept: "
                f"perfscope speedrun --resume goes on. {told}")
    return told


def certificate(record: Any) -> str:
    """Whether the mean accuracy is above the target, and how sure that is."""
    r, arm = record.results[0], record.arms[0]
    if r is None:
        return "No run was finished."
    target, what = percent(record.target, 4), f"{accuracy(r.accuracy)} in the mean of {r.runs} runs"
    time = f"median {seconds(r.time)} of {clock(record)} a run"
    if r.certified:
        return f"CERTIFIED: {what} is above {target} ({chance(r.p_value)}, one-sided), {time}."
    if record.mode == "runs":
        return f"{what}, target {target} ({chance(r.p_value)}, one-sided), {time}. No certificate: that takes --certify, its number of runs fixed in advance."
    if arm.leaks:
        return f"NOT CERTIFIED: {what}, but it {arm.leaks[0]}."
    if record.status != "complete":
        return f"No certificate before the last run: {what} so far, {time}."
    more = f"A mean and a spread like these would take {r.more_runs} runs: start a new certificate with --runs {r.more_runs}." if r.more_runs else \
        "No number of runs would certify a mean like this."
    return f"NOT CERTIFIED: {what} is not above {target} beyond chance ({chance(r.p_value)}, bar {record.alpha:g}), {time}. {more}"


def ladder(record: Any) -> str:
    """From the first rung to the last one."""
    done = [(a, r) for a, r in zip(record.arms, record.results) if r]
    if len(done) < 2:
        return "No two rungs were finished."
    (first, slow), (last, fast) = done[0], done[-1]
    whole = all_epochs(record, record.arms.index(first))
    cut = f" (shortened to {percent(first.shortened)} of its epochs; in proportion, whole it is {figures(whole)} s)" if first.shortened < 1 else ""
    return (f"{len(done)} rungs, {clock(record)}: {first.recipe} took {figures(slow.time.point)} s{cut}, "
            f"{last.recipe} {figures(fast.time.point)} s at {accuracy(fast.accuracy)}.")


def ablation(record: Any) -> str:
    """The trick that is worth most, or the only one."""
    if not record.comparisons:
        return "No pair of runs was finished."
    if len(record.comparisons) == 1:
        c = record.comparisons[0]
        more = f" {c.settle} pairs would tell the difference in accuracy from 0." if c.settle else ""
        return (f"{record.arms[c.b].name}: accuracy {points(c.accuracy.scaled(100), True)} points, {clock(record)} {ratio(c.time)} over {c.pairs} pairs "
                f"of equal seeds ({c.verdict}).{more}")
    best = max(record.comparisons, key=lambda c: -c.accuracy.point)
    slow = max(record.comparisons, key=lambda c: c.time.point)
    pairs = min(c.pairs for c in record.comparisons)
    return (f"{len(record.comparisons)} tricks, {pairs} pairs of equal seeds each. Worth most in accuracy: {trick(record, best)} "
            f"({points(best.accuracy.scaled(-100), True)} points); in time: {trick(record, slow)} (without it {ratio(slow.time)}).")


def trick(record: Any, change: Any) -> str:
    """The name of what an arm leaves out or adds."""
    return record.arms[change.b].name.removeprefix("without ")


def confirmation(record: Any) -> str:
    """Faster or not, and whether the accuracy holds."""
    if not record.comparisons:
        return "No pair of runs was finished."
    c = record.comparisons[0]
    margin = f"{100 * c.margin:g} point{'s' if c.margin != 0.01 else ''}"
    held = {True: f"accuracy is not worse by more than {margin}", False: f"accuracy is WORSE by more than {margin}",
            None: f"whether accuracy is worse by more than {margin} is unclear"}[c.not_worse]
    more = f" {c.settle_margin} pairs would settle it." if c.not_worse is None and c.settle_margin else ""
    specs = "; ".join(f"{a.name}: {a.spec}" for a in record.arms)
    return (f"{c.verdict}: a full run takes {figures(math.exp(-c.time.point))} x less {clock(record)} ({ratio(c.time)}, by {c.time.extra.get('by', 't')}), "
            f"{c.pairs} pairs of equal seeds; {held} ({points(c.accuracy.scaled(100), True)} points).{more} {specs[:1].upper()}{specs[1:]}.")


# ---------------------------------------------------------------- rows

def arm_names(record: Any) -> list[str]:
    """The arms' names for a narrow table: "- tta" for "without tta"."""
    return [a.name.replace("without ", "- ") for a in record.arms]


def summary(record: Any) -> Rows:
    """One row per arm: accuracy, chance, pass rate, time."""
    head = ("", "runs", "accuracy %", "p", "passed", "median s", "s for 95 %")
    rows = []
    for name, r in zip(arm_names(record), record.results):
        if r is None:
            rows.append((name, "0", *[DASH] * 5))
            continue
        rows.append((name, str(r.runs), accuracy(r.accuracy, False), chance(r.p_value).removeprefix("p = ").removeprefix("p "), f"{r.passed}/{r.runs}",
                     seconds(r.time).removesuffix(" s"), figures(r.pass_time_s) if math.isfinite(r.pass_time_s) else "never"))
    return Rows(head, tuple(rows))


def certificate_rows(record: Any) -> Rows:
    """Everything that a certificate states about its arm, line by line."""
    a, r, data = record.arms[0], record.results[0], record.data
    floor = f"efficiency {percent(r.efficiency)} (floor {figures(a.floor_s)} s)" if r.efficiency else DASH
    rows = [("recipe", f"{a.recipe}{', changed: ' + ', '.join(f'{k}={v}' for k, v in a.changed.items()) if a.changed else ''}"),
            ("data", f"{data.name}: {data.split}"), ("runs", f"{r.runs} of {len(record.plan)} planned before the first; none was left out"),
            ("mean accuracy", f"{accuracy(r.accuracy)} (95 %), standard deviation {100 * r.spread:.3f} points"),
            ("one-sided p", f"{chance(r.p_value)} against {percent(record.target, 4)}, bar {record.alpha:g}"),
            ("pass rate", f"{r.passed} of {r.runs}: {100 * r.pass_rate.point:.0f} % [{100 * r.pass_rate.low:.0f}, {100 * r.pass_rate.high:.0f}] (Wilson)"),
            ("median time", f"{seconds(r.time)} ({clock(record)}); wall {seconds(r.wall)}, CPU {seconds(r.cpu)}"),
            ("time for 95 %", f"{figures(r.pass_time_s)} s until one of several runs has passed" if math.isfinite(r.pass_time_s) else "no run passed"),
            ("epochs", f"{figures(a.settings.get('epochs', 0))} of {data.train} images"), ("images per second", figures(r.images_per_s)),
            ("work", f"{amount(r.flops, 'FLOP')} a run, {amount(a.flops_step, 'FLOP')} per image; {floor}" if r.flops else DASH),
            ("outside the clock", outside(record)), ("clocks", clocks(record)), ("tricks", ", ".join(a.tricks))]
    if record.scaling:
        s = record.scaling
        rows.append(("ranks", f"{s['ranks']:g}: {figures(s['all_ranks_s'])} s against {figures(s['one_rank_s'])} s of one alone, scaling efficiency "
                              f"{percent(s['efficiency'])} ({s['what']})"))
    return Rows(("what", "value"), tuple(rows))


def clocks(record: Any) -> str:
    """What the machine did meanwhile: a GPU's clock and power, or who else used the cores."""
    seen = {k: sorted(x for x in v if isinstance(x, (int, float)) and math.isfinite(x)) for k, v in record.watch.items()}
    middle = {k: v[len(v) // 2] for k, v in seen.items() if v}
    told = [f"SM {middle['sm_mhz']:.0f} MHz" if "sm_mhz" in middle else "", f"{middle['power_w']:.0f} W" if "power_w" in middle else "",
            f"{middle['temp_c']:.0f} C" if "temp_c" in middle else "",
            f"other processes used {percent(middle['others'])} of the cores" if "others" in middle else "",
            f"the hypervisor took {percent(middle['steal'])}" if middle.get("steal") else ""]
    slow = [w.code for w in record.warnings if w.code == "throttled"]
    return ", ".join([t for t in told if t] + (["throttled"] if slow else [])) + (" (medians)" if any(told) else "") or DASH


def outside(record: Any) -> str:
    """What is not in the time, with the total of the first run in a cold process."""
    names = (("import_s", "import"), ("read_s", "reading"), ("transfer_s", "transfer"), ("warm_up_s", "warm-up on random data, compilation included"),
             ("first_run_s", "first run"))
    known = [(words, record.cold[k]) for k, words in names if isinstance(record.cold.get(k), (int, float)) and math.isfinite(record.cold[k])]
    return ", ".join(f"{words} {digits.format_seconds(s)}" for words, s in known) + f"; cold total {digits.format_seconds(sum(s for _, s in known))}"


def all_epochs(record: Any, arm: int) -> float:
    """Seconds of a rung with all its epochs: the training part divided by the factor it was shortened by, and the evaluation."""
    trials, r = record.of(arm), record.results[arm]
    share = sum(t.evaluation_s for t in trials) / sum(t.wall_s for t in trials)
    return r.time.point * ((1 - share) / record.arms[arm].shortened + share)


def ladder_rows(record: Any) -> Rows:
    """One row per rung, beside the published figures."""
    rows = []
    for i, (a, r) in enumerate(zip(record.arms, record.results)):
        p = a.published
        there = f"{figures(p['time_s'])} s" if p.get("time_s") else DASH
        if r is None:
            rows.append((a.name, DASH, DASH, DASH, there, DASH))
            continue
        whole = figures(all_epochs(record, i))
        epochs = f"{a.settings['epochs']:g}" + (f" (x {a.shortened:g})" if a.shortened < 1 else "")
        there += f", {100 * p['accuracy']:.2f} %" if p.get("accuracy") else ""
        rows.append((a.name, figures(r.time.point), epochs, accuracy(r.accuracy, False), whole, there))
    return Rows(("rung", "s", "epochs", "accuracy %", "s, whole", "published"), tuple(rows))


def worth(record: Any) -> list[Any]:
    """The comparisons of an ablation, the trick that is worth most accuracy first."""
    return sorted(record.comparisons, key=lambda c: c.accuracy.point)


def ablation_rows(record: Any) -> Rows:
    """What each trick is worth: points of accuracy lost and time gained without it, or the change that was asked about."""
    names = arm_names(record)
    heads = "without" if all(record.arms[c.b].name.startswith("without ") for c in record.comparisons) else ""
    rows = []
    for c in worth(record):
        told = c.accuracy.low > 0 or c.accuracy.high < 0
        name = record.arms[c.b].name.removeprefix("without ") if heads else names[c.b]
        settle = "told" if told else str(c.settle) if c.settle else "-"
        rows.append((name, points(c.accuracy.scaled(100), True), ratio(c.time), c.verdict, settle, str(c.pairs)))
    return Rows((heads, "accuracy, points", "time", "verdict", "to tell", "pairs"), tuple(rows))
