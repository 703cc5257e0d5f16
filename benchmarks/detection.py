"""How well slow paths are found: every plant against every probe, and healthy steps against all of them.

    python -m benchmarks.detection [--out docs/evidence/cpu/detection.md] [--same]

Plants are the probes' own: on a CPU the disease is put into a small healthy step; where a CPU cannot have it, evidence made by
hand stands for it (marked "by hand"). Healthy trials are small networks of many widths, depths of batch and seeds. Prints the
confusion matrix by its entries off the diagonal, recall and precision with Wilson intervals, and false alarms in healthy trials. With
--same also whether the best cure of each probe brings the planted step back to the healthy one's time (METHOD 15 V4), interleaved.
"""

from __future__ import annotations

import argparse
import inspect
import platform
import random
import sys
import time
from collections import Counter
from functools import partial
from pathlib import Path

import torch

from perfscope import contract, probing, turns
from perfscope.measure import machine, stats
from perfscope.measure.clock import cpu_clock
from perfscope.measure.digits import format_change
from perfscope.measure.rounds import LEAD_IN_STEPS, Timed, measure_rounds
from perfscope.workload import feed

SIZES = {"conv": (8, 16, 24, 32, 48, 64), "transformer": (32, 64, 96)}
BATCHES = (4, 8, 16)
SEEDS = (0, 1, 2)
# Of --same. Samples are short, so that what else runs on the machine meets both sides of a round; A/A on 2 busy cores: +-0.3 % after 16 builds
STEPS, ROUNDS, WARM_STEPS = 4, 50, 2
LOADED_STEPS, LOADED_ROUNDS = 16, 20    # with an input pipeline: its workers are started anew for every sample, which takes 0.1 s and more
LEAST_BUILDS, MOST_BUILDS, WIDE = 8, 40, 0.003
MOST_S, LOADED_MOST_S = 25.0, 100.0     # per probe, of wall time
#: Cures that are not the best of their probe: why by nature
SECOND = {"channels_last_harmful:contiguous": "the convolutions are faster in channels_last",
          "layout_breaker:convert": "it converts back what the other leaves as it is",
          "loading_in_step:workers": "each batch comes from another process, through shared memory",
          "optimizer_single_tensor:foreach": "an operator per line of the optimizer, where fused is one for all"}


def healthy() -> list[tuple[str, int, int, int]]:
    """(subject, size, batch, seed) of every healthy trial: 81 of them."""
    return [(n, size, batch, seed) for n, sizes in SIZES.items() for size in sizes for batch in BATCHES for seed in SEEDS]


def fired(found: dict, evidence) -> tuple[list[str], dict[str, str]]:
    """(the probes that fire on this evidence, those that fail)."""
    findings, failed, _ = probing.detect(found, evidence)
    return list(dict.fromkeys(f.probe for f in findings)), failed


def interval(k: int, n: int) -> str:
    """k of n with Wilson's interval."""
    w = stats.wilson(k, n)
    return f"{k} of {n} ({100 * w.low:.1f} to {100 * w.high:.1f} %)" if n else "0 of 0"


def same(name: str, module, found: dict) -> tuple[str, str]:
    """(verdict on the best cure, line): the step with the plant and each of its cures against the healthy step, in turns.

    Two steps of the same code differ by up to 1 % by where their memory lies and which was made first: so they are made anew, in
    turned order, and the unit of the interval is such a pair, not a round.
    """
    make, changes, failed, begin = versions(name, module, found), {}, {}, time.monotonic()
    if not make:
        return "", f"{name}: compiles, not timed here"
    loaded = make[turns.BEFORE]().data is not None
    steps, most, budget_s = (LOADED_STEPS, LOADED_ROUNDS, LOADED_MOST_S) if loaded else (STEPS, ROUNDS, MOST_S)
    for build in range(MOST_BUILDS):
        rounds, errors = one_build(make, build, steps, most, 2 * budget_s / LEAST_BUILDS)
        failed |= errors
        for cure in set(make) - {turns.BEFORE} - set(failed):
            changes.setdefault(cure, []).append(turns.changes(rounds, cure).point)
        best = min((stats.t_interval(c) for c in changes.values()), key=lambda t: t.high, default=None)
        if best is None or build + 1 >= LEAST_BUILDS and (best.half_width < WIDE or time.monotonic() - begin > budget_s):
            break
    seen = {cure: stats.verdict(stats.t_interval(c), len(c)) for cure, c in changes.items()}
    best = min(seen, key=lambda cure: seen[cure].change.high, default=None)
    words = [f"{cure}: {v.word} {format_change(v.change.point)} ({100 * v.change.low:+.1f} to {100 * v.change.high:+.1f}, {len(changes[cure])} builds)"
             + (f", not its best cure: {SECOND.get(cure, 'here')}" if cure != best else "")
             for cure, v in sorted(seen.items(), key=lambda item: item[0] != best)]
    words += [f"{cure}: {said}" for cure, said in failed.items()]
    against = inspect.getdoc(module.healthy) if hasattr(module, "healthy") else ""
    return seen[best].word if best else "FAILED", "; ".join(words) + (f". Healthy is: {' '.join(against.split())}" if against else "")


def versions(name: str, module, found: dict) -> dict:
    """Version -> function that makes its workload: the healthy one, and one for each cure that does not compile."""
    def cured(cure):
        return probing.apply(module.plant(contract.subject_of(module)), (cure,), found)
    cures = [c for c in probing.cure_names(name, module) if not probing.costly(module, c)]
    return {turns.BEFORE: partial(contract.healthy_of, module), **{c: partial(cured, c) for c in cures}} if cures else {}


def one_build(make: dict, build: int, steps: int, most: int, budget_s: float):
    """(rounds of the versions made anew, version -> its error)."""
    clock, timed, errors = cpu_clock(), [], {}
    names = random.Random(build).sample(list(make), len(make))
    for version in names:
        try:
            v = turns.ready(make[version](), torch.device("cpu"), contract.BATCH, 0, True)
            with v.entered():
                for _ in range(WARM_STEPS):
                    v.step()
            feed.quiet()
        except Exception as e:
            if version == turns.BEFORE:
                raise
            errors[version] = turns.said(e)
            continue
        timed.append(Timed(version, v.step, v.enter, v.leave))
    measured = measure_rounds(timed, clock=clock, k=steps, rng_seed=build, budget_s=budget_s, target=0.0,
                              half_width=lambda rounds: 1 / len(rounds), lead_in=LEAD_IN_STEPS, max_rounds=most)
    return measured.rounds, errors


def main() -> int:
    """1 if a plant was missed or a healthy step raised an alarm."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.detection", description=__doc__.splitlines()[0])
    parser.add_argument("--out", help="also write the table, as Markdown")
    parser.add_argument("--same", action="store_true", help="also time every cure against the healthy step: some 10 minutes")
    args = parser.parse_args()
    found, begin, lines = probing.probes(), time.process_time(), []
    hits = misses = alarms = 0
    rows = []
    for name, module in found.items():
        also = set(getattr(module, "ALSO", ()))
        for case, evidence in contract.ill_cases(name, module).items():
            seen, failed = fired(found, evidence)
            others = [n for n in seen if n != name]
            wrong = [n for n in others if n not in also]
            hits, misses, alarms = hits + (name in seen), misses + (name not in seen), alarms + len(wrong)
            rows.append((name, "by hand" if case == "example" else "CPU", "yes" if name in seen else "MISSED",
                         ", ".join(f"{n}{'' if n in wrong else ' (goes with it)'}" for n in others) or "none", "; ".join(failed) or ""))
            print(rows[-1], file=sys.stderr, flush=True)
    trials, counterparts = healthy(), [n for n, module in found.items() if hasattr(module, "healthy")]
    false = []
    for n, size, batch, seed in trials:
        seen, failed = fired(found, contract.evidence_of(contract.subject(n, size, seed), batch))
        false += [f"{n} {size}, batch {batch}, seed {seed}: {', '.join(seen)} {failed or ''}"] if seen or failed else []
    for n in counterparts:
        seen, failed = fired(found, contract.evidence_of(contract.healthy_of(found[n])))
        seen = [s for s in seen if s not in getattr(found[n], "ALSO", ())]
        false += [f"the healthy counterpart of {n}'s plant: {', '.join(seen)} {failed or ''}"] if seen or failed else []
    cpu = machine.cpu()
    lines += [f"# Detection: {len(found)} probes", "", f"`python -m benchmarks.detection`, {time.strftime('%Y-%m-%d')}, {cpu['cpu']}, {cpu['cores']} cores, "
              f"Python {platform.python_version()}; {time.process_time() - begin:.0f} s of CPU. No GPU: what a CPU cannot have is evidence made by hand.", "",
              f"- recall: {interval(hits, hits + misses)}", f"- precision (a probe fires where it should): {interval(hits, hits + alarms)}",
              f"- healthy steps with an alarm: {interval(len(false), len(trials) + len(counterparts))}", "",
              "| plant | on | found | others that fire | probes that fail |", "|---|---|---|---|---|", *(f"| {' | '.join(r)} |" for r in rows), "", *(f"- alarm: {f}" for f in false)]
    if args.same:
        lines += ["", "Planted and cured against the healthy step, interleaved (METHOD 15, V4), the interval over pairs of steps made anew. "
                  "\"Healthy is\": where the plant adds more than the disease, what the healthy step has in its place.", ""]
        verdicts, at = Counter(), len(lines)
        torch.set_num_threads(1)                # the step is too small for more, and they add noise
        for name, module in found.items():
            if contract.plantable(module) and probing.cures(module):
                word, said = same(name, module, found)
                verdicts[word] += bool(word)
                lines.append(f"- {said}")
                print(lines[-1], file=sys.stderr, flush=True)
        lines[at:at] = [f"By each probe's best cure: {', '.join(f'{n} {word}' for word, n in verdicts.most_common() if word)}.", ""]
    text = "\n".join(lines) + "\n"
    print(text)
    if args.out:
        Path(args.out).parent.mkdir(parents=True, exist_ok=True)
        Path(args.out).write_text(text, encoding="utf-8")
    return 1 if misses or false else 0


if __name__ == "__main__":
    raise SystemExit(main())
