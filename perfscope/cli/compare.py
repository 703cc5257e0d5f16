"""perfscope compare: one run against another, with verdicts; for people, pull requests and scripts."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from perfscope.errors import EXIT_OK, EXIT_REGRESSION, EXIT_UNSURE, UsageError

FORMATS = ("terminal", "markdown", "json")
FAIL_ON = ("", "slower")

A = Annotated[str, typer.Argument(metavar="A", help="The run before: run.json, or its folder.")]
B = Annotated[str, typer.Argument(metavar="B", help="The run after.")]
FailOn = Annotated[str, typer.Option("--fail-on", help="slower: exit 1 if B is slower at any batch size, 4 if that is unclear.")]
Format = Annotated[str, typer.Option(help="terminal, markdown or json.")]
Json = Annotated[bool, typer.Option("--json", help="The same as --format json.")]
Smallest = Annotated[str, typer.Option(help="The smallest change that matters, e.g. 1%.")]


def command(a: A, b: B, fail_on: FailOn = "", format: Format = "terminal", as_json: Json = False, smallest: Smallest = "1%") -> int:
    """Compare two runs: FASTER, SLOWER, SAME or UNCLEAR per batch size, with intervals, and what changed in each part.

    Same workload, method version and device: ratios. Another device: shares, efficiency and canary-normalised times only.

    Exit codes: 0, or with --fail-on slower: 1 slower, 4 unclear or not comparable in time, 0 faster or the same.
    """
    format = "json" if as_json else format
    for what, value, known in (("format", format, FORMATS), ("--fail-on", fail_on, FAIL_ON)):
        if value not in known:
            raise UsageError(f"there is no {what} {value!r}", f"Known: {', '.join(k for k in known if k)}")
    from perfscope.compare import compare
    from perfscope.compare_text import to_json, to_markdown, to_terminal
    from perfscope.options import share

    found = compare(a, b, share(smallest))
    if format == "json":
        print(to_json(found))
    elif format == "markdown":
        print(to_markdown(found), end="")
    else:
        print(to_terminal(found, color=sys.stdout.isatty()), end="")
    return exit_code(found) if fail_on else EXIT_OK


def exit_code(found) -> int:
    """Of `--fail-on slower`: scripts can tell "slower" from "unsure"."""
    return {"SLOWER": EXIT_REGRESSION, "UNCLEAR": EXIT_UNSURE}.get(found.word, EXIT_OK)
