"""The HTML page: one file that needs nothing else. Shell, styles, script, and plotly's own bundle, compressed.

The bundle comes from the installed plotly package at the moment the page is made; the browser unpacks it.
A content security policy forbids every request, so that the page stays offline whatever a section puts into it.
"""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path

from perfscope import facts
from perfscope.errors import EnvironmentError_
from perfscope.record import Run
from perfscope.sections import escape, pack

FORMAT = "html"
HERE = Path(__file__).parent
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:; font-src data:; "
    "base-uri 'none'; form-action 'none'"
)


@lru_cache(maxsize=1)
def bundle() -> str:
    """plotly.js of the installed package, packed (4.8 MB become 1.8). Raises EnvironmentError_ without plotly."""
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as e:
        raise EnvironmentError_(
            f"the HTML report needs plotly, and it cannot be imported: {e}",
            "Install it: pip install 'plotly>=6'. The terminal and Markdown reports (report.md) work without it.",
        ) from None
    return pack(get_plotlyjs())


def gather(body: str) -> tuple[str, str]:
    """(the body with numbers where the figures were, all figures as one packed JSON list): a fifth of their size."""
    found: list[str] = []

    def number(match: re.Match) -> str:
        found.append(match[1])
        return f'<script type="text/plain" class="figure">{len(found) - 1}</script>'

    return re.sub(r'<script type="application/json">(.*?)</script>', number, body, flags=re.S), pack(
        f"[{','.join(found)}]"
    )


def article(run: Run, fragments, number: int) -> str:
    """One run: its headline and its sections. The first run's anchors have no number."""
    tail = f"-{number}" if number else ""
    first, *rest = facts.headline(run)
    parts = "".join(
        f'<section id="{f.name}{tail}" class="of-{f.name}">'
        + (f"<h2>{escape(f.title)}</h2>" if f.title else "")
        + (f.html.replace('href="#warnings"', f'href="#warnings{tail}"') if tail else f.html)
        + "</section>"
        for f in fragments
    )
    started = run.provenance.started_utc[:16].replace("T", " ")
    facts_line = " · ".join([*rest, *([f"{started} UTC"] if started else [])])
    header = f'<header><h1>{escape(first)}</h1><p class="facts">{escape(facts_line)}</p></header>'
    return f'<article class="run" id="run{tail}">{header}{parts}</article>'


def render(runs, fragments, **_) -> str:
    """The whole page for one or more runs. Raises EnvironmentError_ without plotly."""
    bundle()                        # what is missing is said before the work
    made = [list(fragments(run)) for run in runs]
    body = "".join(article(run, found, i) for i, (run, found) in enumerate(zip(runs, made)))
    names = [facts.headline(run)[0] for run in runs]
    if len(runs) > 1:
        places = [(f"run{f'-{i}' if i else ''}", name) for i, name in enumerate(names)]
    else:
        places = [(f.name, f.title) for f in made[0] if f.title]
    return page(", ".join(names), body, places)


def page(title: str, body: str, places: list[tuple[str, str]]) -> str:
    """The shell around a body of safe HTML: navigation (anchor, text), styles, script, plotly. Raises EnvironmentError_ without plotly."""
    code = bundle()
    css, script = ((HERE / f"_page.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    body, figures = gather(body)
    menu = "".join(f'<a href="#{anchor}">{escape(text)}</a>' for anchor, text in places)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="generator" content="perfscope">
<title>{escape(title)} · perfscope</title>
<style>
{css}</style>
</head>
<body>
<nav><b>perfscope</b><div class="places">{menu}</div>
<button type="button" id="theme" aria-label="light or dark">◐</button></nav>
<p id="trouble" class="alarm" role="alert" hidden></p>
<noscript><p class="alarm">The figures, the sorting and the download need JavaScript; the numbers below do not.</p>
<style>.panel[hidden] {{ display: block }} .canvas {{ display: none }}</style></noscript>
<main>{body}</main>
<footer>Made by perfscope. No network request is made. Figures are drawn by plotly.js (MIT), carried inside.</footer>
<script type="application/octet-stream" id="figures">{figures}</script>
<script type="application/octet-stream" id="bundle">{code}</script>
<script>
{script}</script>
</body>
</html>
"""
