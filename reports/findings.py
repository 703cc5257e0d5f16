"""The slow paths that were found: what each costs, where it shows and what was seen there, its cure, its code."""

from __future__ import annotations

from perfscope import treatment as t
from perfscope.finding import Finding
from perfscope.sections import Item, code_html, details, escape, pairs

TITLE = "Findings"
ORDER = 30
KINDS = ("diagnose", "fix")


def title(number: int, finding: Finding) -> str:
    """Its number, its probe, what it is worth and what that stands on."""
    gain, basis = t.worth(finding)
    return f"{number}. {finding.probe}: " + (basis if gain == t.DASH else f"{gain}, {basis}")


def below(finding: Finding) -> list[str]:
    """What is slow, and what its cure is."""
    return [finding.text + (f" ({t.suspects(finding)})" if t.suspects(finding) else "")]


def end(finding: Finding) -> list[str]:
    """The cure, or what to do by hand where `perfscope fix` cannot apply it; what limits it."""
    cure = [f"{'cure' if finding.curable else 'by hand'}: {finding.cure}"] if finding.cure else []
    return [*cure, *([f"note: {finding.note}"] if finding.note else [])]


def text(run) -> list:
    """An item per finding; those of the baseline in one line. For `fix` its trials say it."""
    if run.kind == "fix":
        return []
    new, known = ([f for f in run.findings if f.known is k] for k in (False, True))
    said = [Item(title(i + 1, f), (*below(f), *t.places(f), *end(f)), f.code) for i, f in enumerate(new)]
    return [*said, *([Item(f"known already: {', '.join(f.probe for f in known)}")] if known else [])]


def render(run) -> str:
    """Every finding with all its places and all that was seen, folded away."""
    return "".join(one(i + 1, f) for i, f in enumerate(run.findings))


def one(number: int, finding: Finding) -> str:
    """One finding as HTML."""
    known = " <small>known already</small>" if finding.known else ""
    items = [f"<li><code>{escape(p.where)}</code>{f': {escape(p.saw)}' if p.saw else ''}</li>" for p in finding.places]
    seen = f"<ul>{''.join(items[:t.PLACES])}</ul>" if items else ""
    seen += details(f"{len(items) - t.PLACES} more places", f"<ul>{''.join(items[t.PLACES:])}</ul>") if len(items) > t.PLACES else ""
    lines = "".join(f"<p>{escape(line)}</p>" for line in end(finding))
    more = details("What else was seen", pairs(finding.evidence)) if finding.evidence else ""
    return f"<h3>{escape(title(number, finding))}{known}</h3><p>{escape(below(finding)[0])}</p>{seen}{lines}{code_html(finding.code)}{more}"
