"""Progress on stderr: a live bar with the interval shrinking; plain lines where stderr is no terminal."""

from __future__ import annotations

import sys
from contextlib import contextmanager


@contextmanager
def progress(quiet: bool):
    """Gives (stage, rounds): what a Listener of perfscope.breakdown wants."""
    if quiet:
        yield (lambda text: None), (lambda batch_size, p: None)
        return
    try:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
    except ImportError:
        Progress = None
    if Progress is None or not sys.stderr.isatty():
        yield (lambda text: print(f"  {text}", file=sys.stderr, flush=True)), (lambda batch_size, p: None)
    else:                                       # markup=False: a model's name may hold brackets
        with Progress(TextColumn("{task.description}", markup=False), BarColumn(bar_width=18), TextColumn("{task.fields[width]}"),
                      TimeElapsedColumn(), console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task("starting", total=None, width="")

            def stage(text):
                bar.update(task, description=text[:40], total=None, width="")

            def rounds(batch_size, p):
                width = f"±{p.half_width:.1%} of the step" if p.half_width and p.half_width < 1 else ""
                bar.update(task, description=f"batch {batch_size}: round {p.rounds}", total=p.budget_s,
                           completed=min(p.elapsed_s, p.budget_s), width=width)
            yield stage, rounds
