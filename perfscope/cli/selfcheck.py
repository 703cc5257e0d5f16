"""perfscope selfcheck: what this machine can see, by an A/A and a planted delay."""

from __future__ import annotations

import json
import math
import sys
from typing import Annotated

import typer

from perfscope.cli import options as o
from perfscope.errors import EXIT_INTERRUPTED, EXIT_OK, EXIT_UNSURE, UsageError

Json = Annotated[bool, typer.Option("--json", help="As JSON.")]
Budget = Annotated[str, typer.Option(help="Time for it, e.g. 20s.")]


def command(device: o.Device = "auto", budget: Budget = "20s", as_json: Json = False, quiet: o.Quiet = False) -> int:
    """Check this machine: time a step against itself and against itself with a known delay; say what can be seen here.

    The result is kept and goes into every record made on this machine. Exit code 4 if the step was called faster or slower
    than itself, or the delay was not found.
    """
    from perfscope.options import seconds

    budget_s = seconds(budget)
    if not budget_s > 0:
        raise UsageError("--budget is a time above zero", "For example: --budget 20s")
    from perfscope.cli import complain
    from perfscope.cli.progress import progress
    from perfscope.record import to_dict
    from perfscope.selfcheck import Listener, selfcheck

    try:
        with progress(quiet) as (stage, rounds):
            check = selfcheck(device, budget_s, Listener(stage, rounds))
    except KeyboardInterrupt:
        complain("interrupted: this selfcheck is not kept", "The result of an earlier one, if there is any, stays.")
        return EXIT_INTERRUPTED
    if as_json:
        json.dump({**to_dict(check), "words": check.words, "passed": check.passed}, sys.stdout, indent=1, allow_nan=False)
        print()
    else:
        print("\n".join(lines(check)))
    return EXIT_OK if check.passed else EXIT_UNSURE


def lines(check) -> list[str]:
    """The result in at most 80 columns."""
    from perfscope import registry
    from perfscope.measure.digits import format_change
    from perfscope.sections import scaled, share, words

    t = registry.load("reports", "terminal")
    out = t.wrap(f"{check.device_name or check.device} · {check.workload}, batch {check.batch_size}, {words(scaled(check.step), 'ms')} per step · "
                 f"{check.rounds} rounds ({check.stop})")
    plant = ("found" if check.agrees else "found, of another size") if check.found else "not found"
    out += ["", f"  the same step twice   {words(share(check.same), '%'):>14}   {check.same_verdict}",
            f"  a delay of {100 * check.planted:5.2f} %      {words(share(check.recovered), '%'):>14}   {plant}", ""]
    if math.isfinite(check.resolution):
        out += t.wrap(f"This machine sees changes of {format_change(check.resolution)} and more (80 % power, {check.rounds} rounds).")
    else:
        out += t.wrap(f"There were too few rounds to see anything: {check.rounds}, at least 6 are needed. → Give it more time: --budget 20s.", "", "  ")
    if not check.quiet:
        out += t.wrap("The step was called faster or slower than itself: do not trust small differences measured here now. By chance this "
                      "happens in about one of 20 checks. → Stop other work on this machine and check again.", "", "  ")
    if not check.found and math.isfinite(check.resolution):
        out += t.wrap("The delay was not found: this machine is too noisy, as it is now, for changes of that size. → Stop other work, or give "
                      "it more time: --budget 60s.", "", "  ")
    for w in check.warnings:
        out += [*t.wrap(f"{w.code}: {w.text.removeprefix(w.code + ': ')}", "", "  "), *(t.wrap(w.hint, "  → ", "    ") if w.hint else [])]
    return [*out, "", "next: perfscope breakdown --model resnet9"]
