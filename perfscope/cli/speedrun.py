"""perfscope speedrun: trains to the target accuracy, N runs fixed in advance, and certifies time and accuracy."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Annotated

import typer

from perfscope.cli import complain
from perfscope.cli import options as o
from perfscope.cli.output import page, put, unused
from perfscope.errors import EXIT_INTERRUPTED, EXIT_OK, EXIT_REGRESSION, EXIT_UNSURE, PerfscopeError, UsageError

Recipe = Annotated[str, typer.Argument(metavar="RECIPE", help="NAME[:VARIANT][,field=value...], e.g. mnist, mnist_ladder:3 or cifar10,epochs=1.")]
Runs = Annotated[int, typer.Option(help="Runs, of every arm; fixed before the first. Default: 5, 40 with --certify, 6 pairs, 1 of each rung.")]
Certify = Annotated[bool, typer.Option("--certify", help="Certify that the mean is above the target (p < .01). Exit code 4 if it is not shown.")]
With = Annotated[list[str], typer.Option("--with", help="Switch a trick on, also as TRICK=VALUE; paired runs with and without it.")]
Without = Annotated[list[str], typer.Option(help="Switch a trick off; paired runs with and without it.")]
Ablate = Annotated[str, typer.Option(help="What each trick is worth: all, or names, e.g. tta,fused.")]
Ladder = Annotated[bool, typer.Option("--ladder", help="Every rung of the recipe's ladder, beside the published figures.")]
Before = Annotated[str, typer.Option(help="Confirm a fix: the recipe or workload before it, e.g. mnist_cnn. Goes with --after.")]
After = Annotated[str, typer.Option(help="The same after it, e.g. mnist_cnn,dtype=amp-bfloat16,fused=true.")]
Margin = Annotated[str, typer.Option(help="Accuracy that a fix may cost at most, e.g. 0.1%.")]
Holdout = Annotated[int, typer.Option(help="Evaluate on this many training images, which are then not trained on, instead of the test set.")]
Data = Annotated[str, typer.Option(help="Folder of the data set. Default: $PERFSCOPE_DATA, else it is downloaded.")]
Subset = Annotated[int, typer.Option(help="Only the first images of the data: a quick look, and the report says so.")]
Resume = Annotated[str, typer.Option(help="Go on with an interrupted run: its folder or run.json.")]
Budget = Annotated[str, typer.Option(help="Time for a ladder, e.g. 10m: rungs that do not fit are shortened by a stated factor.")]
Save = Annotated[str, typer.Option(help="Save the last run's weights, for --with transfer=FILE and --with distillation=FILE.")]
Dtype = Annotated[str, typer.Option(help="Instead of the recipe's: float32, half, bfloat16, amp-half or amp-bfloat16.")]


def command(recipe: Recipe = "mnist", runs: Runs = 0, certify: Certify = False, on: With = [], without: Without = [], ablate: Ablate = "",  # noqa: B006
            ladder: Ladder = False, before: Before = "", after: After = "", margin: Margin = "0.1%", holdout: Holdout = 0, data: Data = "",
            subset: Subset = 0, resume: Resume = "", budget: Budget = "", device: o.Device = "auto", dtype: Dtype = "", seed: o.Seed = 0,
            save: Save = "", out: o.Out = "", as_json: o.Json = False, quiet: o.Quiet = False) -> int:
    """Train to the target accuracy and certify time and accuracy over N runs; what a trick is worth; whether a fix holds.

    Writes run.json after every run, then report.html and report.md. Under torchrun it trains data-parallel.
    """
    from perfscope import options

    if certify and runs == 1:
        raise UsageError("one run certifies nothing: --certify takes at least 2", "For example: --runs 40")
    from perfscope.measure.ranks import leave, world
    from perfscope.provenance import new_id
    from perfscope.speedrun import Listener, speedrun
    from perfscope.speedruns.plan import Options, check

    wanted = check(Options(recipe=recipe, runs=runs, certify=certify, on=tuple(on), off=tuple(without), ablate=options.names(ablate), ladder=ladder,
                           before=before, after=after, margin=options.share(margin), holdout=holdout, data=data, subset=subset, device=device,
                           dtype=dtype, seed=seed, budget_s=options.seconds(budget) if budget else 0.0, resume=resume, save=save))
    rank, size = world()
    folder = Path(out) if out else folder_of(resume) if resume else unused(Path("runs") / new_id(recipe))
    try:
        with following(quiet or rank > 0) as (stage, run), contextlib.redirect_stdout(sys.stderr):
            record = speedrun(wanted, out=folder, run_id=folder.name, listener=Listener(stage, run))
    except KeyboardInterrupt:
        complain("interrupted", "No run was finished.")
        return EXIT_INTERRUPTED
    except PerfscopeError as e:
        if rank > 0:
            e.message = f"rank {rank} of {size}: {e.message}"
        raise
    leave()
    if rank > 0:
        return EXIT_OK
    show(record, folder, as_json)
    if record.status == "interrupted":
        complain("interrupted", f"{len(record.runs)} of {len(record.plan)} runs are in {folder / 'run.json'}; go on with: perfscope speedrun --resume {folder}")
        return EXIT_INTERRUPTED
    return code(record)


def folder_of(resume: str) -> Path:
    """The folder of the run to go on with."""
    return Path(resume) if Path(resume).is_dir() else Path(resume).parent


def code(record) -> int:
    """Exit code of a complete record: 4 where the question stays open, 1 where a fix makes it slower or worse."""
    if record.mode == "certify":
        return EXIT_OK if record.results[0].certified else EXIT_UNSURE
    if record.mode == "confirm":
        c = record.comparisons[0]
        if c.not_worse is False or c.verdict == "SLOWER":
            return EXIT_REGRESSION
        return EXIT_OK if c.not_worse and c.verdict in ("FASTER", "SAME") else EXIT_UNSURE
    if record.mode == "ablation" and len(record.arms) == 2:
        c = record.comparisons[0]
        told = c.accuracy.low > 0 or c.accuracy.high < 0
        return EXIT_OK if told and c.verdict != "UNCLEAR" else EXIT_UNSURE
    return EXIT_OK


def show(record, folder: Path, as_json: bool) -> None:
    """The record on stdout, report.html and report.md beside run.json."""
    from perfscope.report import report

    where, _ = page(record, folder)
    if where:
        report(record, folder / "report.md")
    put(record, as_json, f"open {where}" if where else f"perfscope report {folder}")


@contextlib.contextmanager
def following(quiet: bool):
    """Gives (stage, run): a live line with accuracy so far, time and runs left; plain lines where stderr is no terminal."""
    if quiet:
        yield (lambda text: None), (lambda record: None)
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    if not sys.stderr.isatty():
        yield (lambda text: print(f"  {text}", file=sys.stderr, flush=True)), (lambda record: print(f"  {so_far(record)}", file=sys.stderr, flush=True))
        return
    with Progress(TextColumn("{task.description}", markup=False), BarColumn(bar_width=14), TextColumn("{task.fields[far]}", markup=False),
                  TimeRemainingColumn(), console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("starting", total=None, far="")
        yield (lambda text: bar.update(task, description=text[:44])), (lambda record: bar.update(
            task, total=len(record.plan), completed=len(record.runs), far=so_far(record)))


def so_far(record) -> str:
    """The last run, and the mean of its arm so far: "99.11 % in 4.02 s; mean 99.08 %, 37 left"."""
    last = record.runs[-1]
    mean = record.results[last.arm].accuracy.point
    return f"{100 * last.accuracy:.2f} % in {record.seconds(last):.2f} s; mean {100 * mean:.2f} %, {len(record.plan) - len(record.runs)} left"
