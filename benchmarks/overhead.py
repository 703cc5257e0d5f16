"""What perfscope itself costs (issue 2, bar 4): start-up, a breakdown beside its steps, one override, the report.

    python -m benchmarks.overhead
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

MOST_RATIO, MOST_HELP_S, MOST_PAGE_BYTES, MOST_OWN_SHARE = 1.3, 0.25, 2.5e6, 0.01


def child_cpu_s(*argv: str) -> float:
    """CPU seconds of a command, start-up of Python included."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *argv], stdout=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def breakdown_ratio(model: str, folder: str) -> tuple[float, float, object]:
    """(wall time of a breakdown / time inside its steps, greatest own share of a variant, the run).

    Steps are all that were run for the user's sake: timed, lead-in, warm-up and the trial of each batch size. Start-up
    is left out: importing torch, and the process that counts operations, most of which is importing torch again.
    """
    from perfscope.breakdown import breakdown

    begin = time.perf_counter()
    run = breakdown(model, out=folder)
    wall = time.perf_counter() - begin - run.own_cost.get("inspection_s", 0)
    steps = run.own_cost["trial_s"] + sum(b.own_cost["timed_s"] + b.own_cost["lead_in_s"] + sum(w.seconds for w in b.warmup.values())
                                          for b in run.batches)
    own = max(g.overhead_share for b in run.batches for g in b.guards.values())
    return wall / steps, own, run


def main() -> int:
    """Prints each figure beside its bar; 1 if one is missed."""
    failed = 0

    def line(what: str, value: float, bar: float, unit: str = "") -> None:
        nonlocal failed
        failed += value > bar
        print(f"{what:<66} {value:8.4g}{unit:<3} bar {bar:g}{unit}{'' if value <= bar else '  MISSED'}", flush=True)

    child_cpu_s("-m", "perfscope", "--help")
    line("perfscope --help, CPU time, best of 5", min(child_cpu_s("-m", "perfscope", "--help") for _ in range(5)), MOST_HELP_S, " s")
    with tempfile.TemporaryDirectory() as folder:
        import torch  # noqa: F401

        for model in ("resnet9", "mnist_cnn"):
            ratio, own, run = breakdown_ratio(model, folder)
            line(f"breakdown {model}: wall time over time inside steps", ratio, MOST_RATIO)
            line(f"breakdown {model}: own work inside a timed step, worst variant", own, MOST_OWN_SHARE)
        from perfscope.report import report
        from perfscope.workload.block import price_of_override

        page = report(run, Path(folder) / "report.html")
        line("report.html", page.stat().st_size / 1e6, MOST_PAGE_BYTES / 1e6, " MB")
        print(f"{'one overridden operator call':<66} {price_of_override('cpu') * 1e6:8.4g} us")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
