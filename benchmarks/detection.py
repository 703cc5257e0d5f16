"""How well slow paths are found: every plant against every probe, and healthy steps against all of them.

    python -m benchmarks.detection [--out docs/evidence/cpu/detection.md] [--same]

Plants are the probes' own: on a CPU the disease is put into a small healthy step; where a CPU cannot have it, evidence made by
hand stands for it (marked "by hand"). Healthy trials are small networks of many widths, depths of batch and seeds. Prints the
confusion matrix by its entries off the diagonal, recall and precision with Wilson intervals, and false alarms in healthy trials. With
--same also whether each cure brings the planted step back to the healthy one's time (METHOD 15 V4), interleaved.
"""

from __future__ import annotations

import argparse
import platform
import sys
import time
from pathlib import Path

from perfscope import contract, probing, turns
from perfscope.measure import machine, stats
from perfscope.measure.digits import format_change

SIZES = {"conv": (8, 16, 24, 32, 48, 64), "transformer": (32, 64, 96)}
BATCHES = (4, 8, 16)
SEEDS = (0, 1, 2)
SAME_S = 6.0                # of rounds per cure


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


def same(name: str, module, found: dict) -> str:
    """The step with the plant and its cure against the healthy one, in turns."""
    w = contract.subject_of(module)

    def make(stack):
        return probing.apply(module.plant(w), stack, found) if stack else w
    lines = []
    for cure in probing.cure_names(name, module):
        if probing.costly(module, cure):
            continue
        t = turns.take_turns(make, {turns.BEFORE: (), "cured": (cure,)}, device="cpu", batch_size=contract.BATCH, budget_s=SAME_S, target=0.003,
                             max_rounds=200, keep_original=True)
        if not t.rounds:
            lines.append(f"{cure}: {t.errors or t.stop}")
            continue
        change = turns.changes(t.rounds, "cured")
        lines.append(f"{cure}: {stats.verdict(change, len(t.rounds)).word} {format_change(change.point)} ({len(t.rounds)} rounds)")
    return "; ".join(lines)


def main() -> int:
    """1 if a plant was missed or a healthy step raised an alarm."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.detection", description=__doc__.splitlines()[0])
    parser.add_argument("--out", help="also write the table, as Markdown")
    parser.add_argument("--same", action="store_true", help="also time every cure against the healthy step")
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
    trials = healthy()
    false = []
    for n, size, batch, seed in trials:
        seen, failed = fired(found, contract.evidence_of(contract.subject(n, size, seed), batch))
        false += [f"{n} {size}, batch {batch}, seed {seed}: {', '.join(seen)} {failed or ''}"] if seen or failed else []
    cpu = machine.cpu()
    lines += [f"# Detection: {len(found)} probes", "", f"`python -m benchmarks.detection`, {time.strftime('%Y-%m-%d')}, {cpu['cpu']}, {cpu['cores']} cores, "
              f"Python {platform.python_version()}; {time.process_time() - begin:.0f} s of CPU. No GPU: what a CPU cannot have is evidence made by hand.", "",
              f"- recall: {interval(hits, hits + misses)}", f"- precision (a probe fires where it should): {interval(hits, hits + alarms)}",
              f"- healthy steps with an alarm: {interval(len(false), len(trials))}", "", "| plant | on | found | others that fire | probes that fail |",
              "|---|---|---|---|---|", *(f"| {' | '.join(r)} |" for r in rows), "", *(f"- alarm: {f}" for f in false)]
    if args.same:
        lines += ["", "Planted and cured against the healthy step, interleaved (METHOD 15, V4):", ""]
        for name, module in found.items():
            if contract.plantable(module) and probing.cures(module):
                lines.append(f"- {same(name, module, found) or f'{name}: compiles, not timed here'}")
                print(lines[-1], file=sys.stderr, flush=True)
    text = "\n".join(lines) + "\n"
    print(text)
    if args.out:
        Path(args.out).parent.mkdir(parents=True, exist_ok=True)
        Path(args.out).write_text(text, encoding="utf-8")
    return 1 if misses or false else 0


if __name__ == "__main__":
    raise SystemExit(main())
