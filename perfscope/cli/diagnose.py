"""perfscope diagnose: the slow paths of a training step, ranked by what their cures bring, each with evidence, cure and code."""

from __future__ import annotations

import contextlib
import sys
from typing import Annotated

import typer

from perfscope.cli import complain
from perfscope.cli import options as o
from perfscope.cli.output import kept, page, place, put
from perfscope.errors import EXIT_INTERRUPTED, EXIT_OK, EXIT_REGRESSION, EXIT_UNSURE, UsageError

FailOnNew = Annotated[bool, typer.Option("--fail-on-new", help="Exit code 1 if there is a finding that --baseline does not have.")]


def command(model: o.Model = "resnet9", batch: o.Size = "", dtype: o.Dtype = "float32", memory_format: o.MemoryFormat = "contiguous",
            compile: o.Compile = "off", cuda_graph: o.CudaGraph = False, device: o.Device = "auto", only: o.Only = "", suppress: o.Suppress = "",
            probes: o.Probes = None, baseline: o.Baseline = "", fail_on_new: FailOnNew = False, no_trace: o.NoTrace = False, no_look: o.NoLook = False,
            input: o.Input = "", classes: o.Classes = 0, seed: o.Seed = 0, out: o.Out = "", as_json: o.Json = False, quiet: o.Quiet = False) -> int:
    """Name the slow paths of a training step, ranked by what their cures bring, each with evidence, cure and code.

    Gains are of a quick look: `perfscope fix` proves them. Exit code 4 if a probe failed, 1 with --fail-on-new if something is new.
    """
    options = o.wanted(model, batch, dtype, memory_format, compile, cuda_graph, device, input, classes, seed)
    if fail_on_new and not baseline:
        raise UsageError("--fail-on-new needs to know what is not new", "Give an earlier diagnosis: --baseline runs/ID")
    from perfscope.cli.progress import progress
    from perfscope.diagnose import diagnose

    wish = o.asked(only, suppress, probes, baseline, no_trace, no_look)
    folder, run_id = place(out, model)
    try:
        with progress(quiet) as (stage, _), contextlib.redirect_stdout(sys.stderr):     # what private probes print
            run = diagnose(model, options=options, asked=wish, out=folder, run_id=run_id, stage=stage)
    except KeyboardInterrupt:
        complain("interrupted", "Nothing had been measured yet.")
        return EXIT_INTERRUPTED
    where, code = page(run, folder)
    put(run, as_json, following(run, options, wish, folder), where)
    if run.status == "interrupted":
        complain("interrupted", kept(folder, run_id))
        return EXIT_INTERRUPTED
    if run.failed:
        complain(f"incomplete: {', '.join(run.failed)} failed", "The others were asked. Leave it out with --suppress, or report it with run.json.")
    if fail_on_new and any(not f.known for f in run.findings):
        return EXIT_REGRESSION
    return code if code != EXIT_OK else EXIT_UNSURE if run.status == "incomplete" else EXIT_OK


def following(run, options, wish, folder) -> str:
    """The next useful command: to prove the cures, or where nothing has a cure, to see what the step consists of."""
    if any(f.curable and not f.known for f in run.findings):
        return o.again("fix", options, wish)
    return o.again("breakdown", options, type(wish)())
