"""perfscope breakdown: where the step's time goes, per batch size."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

from perfscope.cli import complain
from perfscope.cli import options as o
from perfscope.cli.output import kept, page, place, put
from perfscope.errors import EXIT_INTERRUPTED, EXIT_OK, EXIT_UNSURE, EnvironmentError_, PerfscopeError, UsageError, WorkloadError


def command(model: o.Model = "resnet9", batch: o.Batch = "", dtype: o.Dtype = "float32", memory_format: o.MemoryFormat = "contiguous",
            compile: o.Compile = "off", cuda_graph: o.CudaGraph = False, device: o.Device = "auto", precision: o.Precision = None,
            budget: o.Budget = "60s", order: o.Order = "", parts: o.Parts = "", attribution: o.Attribution = "auto",
            input: o.Input = "", classes: o.Classes = 0, seed: o.Seed = 0, second_opinion: o.SecondOpinion = False,
            out: o.Out = "", as_json: o.Json = False, quiet: o.Quiet = False) -> int:
    """Take a training step apart: what norm, activation, attention, optimizer, data, ... cost, per batch size.

    Prints a table, writes run.json and report.html. Under torchrun it adds the communication part.
    """
    from perfscope import options

    wanted = options.check(options.Options(
        model=model, batch_sizes=options.sizes(batch), dtype=dtype, memory_format=memory_format, compile=compile, cuda_graph=cuda_graph,
        device=device, precision=options.share(precision) if precision is not None else None, budget_s=options.seconds(budget),
        order=options.names(order), parts=options.names(parts), attribution=attribution,
        input_shape=options.shape(input) if input else (), classes=classes, seed=seed, second_opinion=second_opinion))
    from perfscope.breakdown import Listener, breakdown
    from perfscope.cli.progress import progress
    from perfscope.measure.ranks import LOST, leave, world

    rank, size = world()
    folder, run_id = place(out, model)
    try:
        with progress(quiet or rank > 0) as (stage, rounds), contextlib.redirect_stdout(sys.stderr):    # the model's own prints
            run = breakdown(model, out=folder, run_id=run_id, options=wanted, listener=Listener(stage, rounds))
        if rank > 0:
            leave()
            return EXIT_OK
        code = show(run, folder, as_json)
        leave()
    except KeyboardInterrupt:
        if rank == 0:
            complain("interrupted", kept(folder, run_id) or "Nothing had been measured yet.")
        return EXIT_INTERRUPTED
    except PerfscopeError as e:
        if rank > 0:
            if e.message == LOST or isinstance(e, UsageError) and not isinstance(e, WorkloadError):
                return e.exit_code              # rank 0 says the same, or the rank that failed does
            e.message = f"rank {rank} of {size}: {e.message}"
        elif getattr(e, "run", None) is not None:   # measured, but it could not be saved
            show(e.run, None, as_json)
        else:
            e.hint = " ".join(filter(None, [e.hint, kept(folder, run_id)]))
        raise
    if run.status == "interrupted":
        complain("interrupted", kept(folder, run_id))
        return EXIT_INTERRUPTED
    if code == EXIT_OK and any(w.code == "precision-missed" for w in run.warnings):
        return EXIT_UNSURE
    return code


def show(run, folder: Path | None, as_json: bool) -> int:
    """The record as a table or JSON on stdout, and the HTML report beside run.json if there is a folder. Gives the exit code."""
    if not any(b.derived for b in run.batches):
        raise EnvironmentError_("nothing was measured: " + "; ".join(f"batch {b.batch_size}: {b.status} {b.error}" for b in run.batches),
                                "Try smaller batches: --batch 1,2,4")
    code, following = EXIT_OK, "make room, and run it again"
    if folder:
        where, code = page(run, folder)
        following = f"open {where}" if where else f"perfscope report {folder}"
    put(run, as_json, following)
    return code
