"""Where a command's record and page go, and what it prints of them: the same for breakdown, diagnose and fix."""

from __future__ import annotations

import json
import sys
from itertools import count
from pathlib import Path

from perfscope.cli import complain
from perfscope.errors import EXIT_ENVIRONMENT, EXIT_OK, EnvironmentError_, PerfscopeError


def place(out: str, model: str) -> tuple[Path, str]:
    """(the folder, the run's id): what --out says, else runs/ID, which nobody has yet."""
    from perfscope.provenance import new_id

    folder = Path(out) if out else unused(Path("runs") / new_id(model))
    return folder, new_id(model) if out else folder.name


def unused(folder: Path) -> Path:
    """The folder, or the same with a number if there is one already: two runs in one second are two runs."""
    names = (folder.with_name(f"{folder.name}-{n}") if n > 1 else folder for n in count(1))
    return next(f for f in names if not f.exists())


def kept(folder: Path, run_id: str) -> str:
    """Where this run's record is, in words; "" if none was written."""
    from perfscope.record import load

    try:
        return f"What was measured is in {folder / 'run.json'}" if load(folder).id == run_id else ""
    except PerfscopeError:
        return ""


def page(run, folder: Path) -> tuple[str, int]:
    """(the path of the HTML report beside run.json, the exit code); "" if none could be made, which is said on stderr.

    Without plotly the table still stands, so that is no error; a disk that takes no page is one.
    """
    from perfscope.report import report

    try:
        return str(report(run, folder / "report.html")), EXIT_OK
    except EnvironmentError_ as e:              # plotly is not on every machine that measures, and the disk may be full
        complain(f"no report was made: {e.message}", e.hint)
        return "", EXIT_ENVIRONMENT if isinstance(e.__cause__, OSError) else EXIT_OK


def put(run, as_json: bool, following: str, where: str = "") -> None:
    """The record on stdout, as JSON or as text that ends in the next command; `where`: of its page, if the next command is another."""
    from perfscope.record import to_dict
    from perfscope.report import render

    if as_json:
        json.dump(to_dict(run), sys.stdout, indent=1, allow_nan=False)
        print()
    else:
        sys.stdout.write(render(run, "terminal", color=sys.stdout.isatty(), next_command=following, page=where))
