"""perfscope report: an HTML page, a table or Markdown from records; needs neither torch nor the machine that measured."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, Optional

import typer

from perfscope.errors import EXIT_OK, RecordError, UsageError

EXAMPLES = Path(__file__).parent.parent / "examples"
FORMATS = ("html", "markdown", "terminal")

Runs = Annotated[list[str], typer.Argument(metavar="RUN...", help="run.json, its folder, or an example: article.")]
Out = Annotated[str, typer.Option(help="File to write; - for stdout. Default: report.html beside the run; terminal and markdown go to stdout.")]
Format = Annotated[str, typer.Option(help="html, markdown or terminal. Default: by the end of --out, else html.")]
Article = Annotated[Optional[bool], typer.Option("--with-article/--no-article", help="Draw the article's chart beside the run's own.")]
Open = Annotated[bool, typer.Option("--open", help="Show the page in the browser.")]


def command(runs: Runs, out: Out = "", format: Format = "", article: Article = None, open_page: Open = False) -> int:
    """Make a report of one run or several: one HTML page that works offline, a terminal table, or Markdown.

    Prints the path of the page. `perfscope report article` shows the published figures that this project started from.
    """
    if format and format not in FORMATS:
        raise UsageError(f"there is no report format {format!r}", f"Known: {', '.join(FORMATS)}")
    from perfscope.record import load
    from perfscope.report import SUFFIXES, render, report
    from perfscope.sections import plain

    files = [f for name in runs for f in find(name)]
    records = [load(f) for f in files]
    options = {} if article is None else {"article": article}
    format = format or SUFFIXES.get(Path(out).suffix.lower(), "") or "html"
    if open_page and (format != "html" or out == "-"):
        raise UsageError("--open shows an HTML page in the browser", "Leave --open out, or give --format html and a file.")
    if out == "-" or format != "html" and not out:
        if format == "terminal":
            options |= {"color": sys.stdout.isatty(), "next_command": shlex.join(["perfscope", "report", *map(plain, runs)])}
        sys.stdout.write(render(records, format, **options))
        return EXIT_OK
    page = report(records, out or beside(runs, files), format, **options)
    print(page)
    if open_page and not show(page):
        print(f"perfscope: no browser could be started; open {page} yourself", file=sys.stderr)
    return EXIT_OK


def find(name: str) -> list[Path]:
    """The records behind an argument: a path, or the name of an example that comes with perfscope."""
    if Path(name).exists():
        return [Path(name)]
    example = examples().get(name)
    if example:
        return example
    raise RecordError(f"there is no record at {name}", "Give a run.json, or the folder that holds one. "
                      f"Examples that come with perfscope: {', '.join(examples()) or 'none'}")


def examples() -> dict[str, list[Path]]:
    """Name -> records that come with perfscope; `article` is the published breakdown, before and after its fix."""
    found = {p.stem: [p] for p in sorted(EXAMPLES.glob("*.json"))}
    article = [EXAMPLES / f"myrtle3_2018_{when}.json" for when in ("before", "after")]
    return {**({"article": article} if all(p.exists() for p in article) else {}), **found}


def beside(names: list[str], files: list[Path]) -> Path:
    """Where the page goes by default: beside a single run, in the current folder for several or for an example."""
    if len(files) > 1 or files[0].parent == EXAMPLES:
        return Path("report.html" if len(names) > 1 else f"{Path(names[0]).stem}.html")
    if files[0].is_dir():
        return files[0] / "report.html"
    return files[0].with_name("report.html" if files[0].name == "run.json" else f"{files[0].stem}.html")


def show(page: Path) -> bool:
    """Opens the page in the browser; whether one could be started."""
    import webbrowser

    try:
        return webbrowser.open(page.resolve().as_uri())
    except (webbrowser.Error, OSError):
        return False
