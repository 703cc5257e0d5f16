"""perfscope fix: applies cures one by one, keeps what an interleaved A/B proves, checks the numerics, gives the code to add."""

from __future__ import annotations

import contextlib
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from perfscope.cli import complain
from perfscope.cli import options as o
from perfscope.cli.output import kept, page, place, put
from perfscope.errors import EXIT_INTERRUPTED, EXIT_OK, EXIT_UNSURE, EnvironmentError_

PATCH = "fix.diff"

Budget = Annotated[str, typer.Option(help="Time for measuring, shared by all cures, e.g. 60s or 5m. Default: 3m.", show_default=False)]
Cures = Annotated[str, typer.Option(help="Only these, in this order, found or not: PROBE or PROBE:CANDIDATE.")]
Patch = Annotated[str, typer.Option("--patch", metavar="FILE", help="Write the change of your source file here, for git apply.")]
Confirm = Annotated[bool, typer.Option("--confirm", help="At the end train both to the target accuracy, in pairs.")]


def command(model: o.Model = "resnet9", batch: o.Size = "", dtype: o.Dtype = "float32", memory_format: o.MemoryFormat = "contiguous",
            compile: o.Compile = "off", cuda_graph: o.CudaGraph = False, device: o.Device = "auto", budget: Budget = "", cures: Cures = "",
            patch: Patch = "", confirm: Confirm = False, only: o.Only = "", suppress: o.Suppress = "", probes: o.Probes = None,
            baseline: o.Baseline = "", no_trace: o.NoTrace = False, no_look: o.NoLook = False, input: o.Input = "", classes: o.Classes = 0,
            seed: o.Seed = 0, out: o.Out = "", as_json: o.Json = False, quiet: o.Quiet = False) -> int:
    """Apply cures one by one, keep those that are FASTER in interleaved rounds of several processes and leave the numbers alone.

    Prints every trial, the whole stack against the original, and the code to add. Exit code 4 if a probe failed.
    """
    options = o.wanted(model, batch, dtype, memory_format, compile, cuda_graph, device, input, classes, seed)
    from perfscope.cli.progress import progress
    from perfscope.fix import fix
    from perfscope.options import names, seconds

    limit = {"budget_s": seconds(budget)} if budget else {}
    wish = o.asked(only, suppress, probes, baseline, no_trace, no_look)
    folder, run_id = place(out, model)
    try:
        with progress(quiet) as (stage, _), contextlib.redirect_stdout(sys.stderr):
            run = fix(model, options=options, asked=wish, cures=names(cures), out=folder, run_id=run_id, confirm=confirm, stage=stage, **limit)
    except KeyboardInterrupt:
        complain("interrupted", kept(folder, run_id) or "Nothing had been measured yet.")
        return EXIT_INTERRUPTED
    where, code = page(run, folder)
    diff, unwritten = "", None
    try:
        diff = written(run, folder, patch)
    except EnvironmentError_ as e:              # what was measured is shown all the same
        unwritten = e
    put(run, as_json, following(run, where, diff, options), where if diff else "")
    if unwritten:
        raise unwritten
    if run.status == "interrupted":
        complain("interrupted", kept(folder, run_id))
        return EXIT_INTERRUPTED
    return code if code != EXIT_OK else EXIT_UNSURE if run.status == "incomplete" else EXIT_OK


def written(run, folder: Path, patch: str) -> str:
    """The path of the patch: what --patch says, else beside run.json; "" if there is none, which is said if it was asked for."""
    if not run.patch:
        if patch:
            complain("there is no patch to write" + ("" if run.kept else ": no cure was kept"),
                     "The source of the model is not known, or has nothing that could be changed: add the lines by hand." if run.kept else "")
        return ""
    path = Path(patch) if patch else folder / PATCH
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(run.patch, encoding="utf-8")
    except OSError as e:
        raise EnvironmentError_(f"cannot write {path}: {e.strerror or e}",
                                f"The record has it: {folder / 'run.json'}. Give another path with --patch.") from e
    return str(path)


def following(run, where: str, diff: str, options) -> str:
    """The next useful command: to apply the patch, to see the proof, or to see what the step consists of."""
    if diff:
        return shlex.join(["git", "apply", diff])
    if run.kept and where:
        return f"open {where}"
    from perfscope.options import BUDGET_S
    from perfscope.provenance import command
    return command(replace(options, budget_s=BUDGET_S), verb="breakdown")
