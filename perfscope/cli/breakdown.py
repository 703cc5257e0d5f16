"""perfscope breakdown: where the step's time goes, per batch size."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from perfscope.cli import options as o
from perfscope.errors import EXIT_INTERRUPTED, EXIT_UNSURE, PerfscopeError, UsageError


def command(model: o.Model = "resnet9", batch: o.Batch = "", dtype: o.Dtype = "float32", memory_format: o.MemoryFormat = "contiguous",
            compile: o.Compile = "off", cuda_graph: o.CudaGraph = False, device: o.Device = "auto", precision: o.Precision = None,
            budget: o.Budget = "60s", order: o.Order = "", parts: o.Parts = "", attribution: o.Attribution = "auto",
            input: o.Input = "", classes: o.Classes = 0, seed: o.Seed = 0, out: o.Out = "", as_json: o.Json = False,
            quiet: o.Quiet = False) -> int:
    """Take a training step apart: what norm, activation, attention, optimizer, data, ... cost, per batch size.

    Prints a table, writes run.json and report.html. Under torchrun it adds the communication part.
    """
    from perfscope import options

    wanted = options.check(options.Options(
        model=model, batch_sizes=options.sizes(batch), dtype=dtype, memory_format=memory_format, compile=compile, cuda_graph=cuda_graph,
        device=device, precision=options.share(precision) if precision is not None else None, budget_s=options.seconds(budget),
        order=options.names(order), parts=options.names(parts), attribution=attribution,
        input_shape=options.shape(input) if input else (), classes=classes, seed=seed))
    from perfscope.breakdown import Listener, breakdown, new_id
    from perfscope.cli.progress import progress
    from perfscope.measure.ranks import leave, world

    rank, size = world()
    run_id = new_id(model)
    folder = Path(out) if out else Path("runs") / run_id
    try:
        with progress(quiet or rank > 0) as (stage, rounds):
            run = breakdown(model, out=folder, run_id=run_id, options=wanted, listener=Listener(stage, rounds))
    except PerfscopeError as e:
        if rank > 0:
            e.message = f"rank {rank} of {size}: {e.message}"
        if getattr(e, "run", None) is not None:     # measured, but it could not be saved
            show(e.run, None, as_json)
        raise
    if rank > 0:
        leave()
        return 0
    show(run, folder, as_json)
    leave()
    if run.status == "interrupted":
        print(f"perfscope: interrupted; what was measured is in {folder / 'run.json'}", file=sys.stderr)
        return EXIT_INTERRUPTED
    if any(w.code == "precision-missed" for w in run.warnings):
        return EXIT_UNSURE
    return 0


def show(run, folder: Path | None, as_json: bool) -> None:
    """The record as a table or JSON on stdout, and the HTML report beside run.json if there is a folder."""
    from perfscope.errors import EnvironmentError_
    from perfscope.record import to_dict
    from perfscope.report import render, report

    try:
        following = f"open {report(run, folder / 'report.html')}" if folder else "make room, and run it again"
    except EnvironmentError_ as e:              # plotly is not on every machine that measures
        following = f"perfscope report {folder}   (on a machine with plotly: {e.message})"
    if as_json:
        json.dump(to_dict(run), sys.stdout, indent=1, allow_nan=False)
        print()
    elif any(b.derived for b in run.batches):
        print(render(run, "terminal", color=sys.stdout.isatty(), next_command=following))
    else:
        raise UsageError("nothing was measured: " + "; ".join(f"batch {b.batch_size}: {b.status} {b.error}" for b in run.batches)
                         if run.batches else "nothing was measured")
