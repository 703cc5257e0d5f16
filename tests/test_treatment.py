"""What diagnose and fix have to say: words with their digits, the sections on golden records, three renderers, hostile names."""

import json
import math
import re
from dataclasses import replace

import pytest

from perfscope import registry, sections
from perfscope import treatment as t
from perfscope.finding import Finding, Place, Trial
from perfscope.measure.stats import Interval
from perfscope.record import Round, Warned, from_dict, load, to_dict
from perfscope.report import fragments, render
from perfscope.report import sections as report_sections
from tests.records import cures, make
from tests.test_compare import columns
from tests.test_reports import LARGEST, ROOT, Page, plotly_figures

KINDS = ("diagnose", "fix")
OWN = {"diagnose": {"outcome", "findings", "asked", "turns"}, "fix": {"outcome", "cures", "cure_waterfall", "code_to_add", "proof", "numerics", "findings", "turns"}}


@pytest.fixture(scope="module")
def runs():
    return {k: load(ROOT / "tests" / "records" / f"{k}.json") for k in KINDS}


# ---------------------------------------------------------------- words

def test_worth_says_what_it_stands_on():
    known = Interval(-0.2, -0.21, -0.19)
    assert t.worth(Finding("p", "x", change=known, verdict="FASTER", saves=known, share=0.5)) == ("step -18 % (-18.9 to -17.3)", "quick look: FASTER")
    assert t.worth(Finding("p", "x", saves=Interval(0.1, 0.09, 0.11), share=0.5)) == ("saves 10 ±1 % of the step", "layer alone")
    assert t.worth(Finding("p", "x", share=0.57)) == ("at most 57 % of the step", "ceiling: all the time of the suspects")
    assert t.worth(Finding("p", "x")) == ("–", "cost unknown") == t.worth(Finding("p", "x", share=math.nan))
    assert t.worth(Finding("p", "x", change=Interval(math.nan, math.nan, math.nan), share=0.1))[0] == "at most 10 % of the step"


def test_a_change_without_an_interval_is_called_about():
    assert t.span(Interval(-0.2, -math.inf, math.inf)) == "~-18 %" and t.span(None) == "–"
    assert t.speed_up(Interval(-math.log(2), -math.inf, math.inf)) == "~2.0"


def test_speed_up_is_never_rounded_inwards():
    assert t.speed_up(Interval(-math.log(2.5), -math.log(2.5051), -math.log(2.4949))) == "2.50 (2.49 to 2.51)"
    assert t.speed_up(Interval(0.0, 0.0, 0.0)) == "1.00 (1.00 to 1.00)"


@pytest.mark.parametrize("fields, words", [
    ({"outcome": "kept", "verdict": "FASTER"}, ""),
    ({"outcome": "rejected", "verdict": "SLOWER", "change": Interval(0.0305, 0.028, 0.033)}, "c would cost you 3.1 % here (+2.84 to +3.36)"),
    ({"outcome": "rejected", "verdict": "SAME", "change": Interval(0.001, -0.004, 0.006)}, "c changes nothing that matters here: 0 % (-0.4 to +0.6)"),
    ({"outcome": "rejected", "verdict": "UNCLEAR", "reason": "it may be no change", "change": Interval(-0.1, -0.3, 0.1)},
     "c is UNCLEAR: -10 % (-25.9 to +10.5); it may be no change"),
    ({"outcome": "rejected", "verdict": "FASTER", "reason": "the numerics do not hold", "change": Interval(-0.1, -0.11, -0.09)},
     "c would save 10 % (-10.4 to -8.6), but is not kept: the numerics do not hold"),
    ({"outcome": "not-applicable", "error": "RuntimeError: no"}, "c is not applicable here: RuntimeError: no"),
    ({"outcome": "rejected", "reason": "b is kept already"}, "c was not tried: b is kept already"),
    ({"outcome": "interrupted"}, "c: interrupted")])
def test_what_came_of_a_cure(fields, words):
    assert t.said(Trial("c", **fields)) == words


def test_on_top_of_what_is_said():
    trial = Trial("c", ("a", "b"), "rejected", Interval(0.03, 0.02, 0.04), "SLOWER")
    assert t.said(trial).endswith("on top of a, b")


def test_places_beyond_the_third_are_counted():
    finding = Finding("p", "x", tuple(Place(f"m{i}", "saw") for i in range(7)))
    assert t.places(finding) == ["at m0: saw", "at m1: saw", "at m2: saw", "and 4 more"]
    assert t.places(Finding("p", "x", (Place("m", ""),))) == ["at m"] and t.places(Finding("p", "x")) == []


def test_each_process_speaks_for_itself(runs):
    final = runs["fix"].final
    own = t.by_process(final)
    assert len(own) == 3 and all(i.low < i.point < i.high for i in own)
    assert min(i.point for i in own) <= final.change.point <= max(i.point for i in own)
    assert t.by_process(Trial("c", processes=((Round(("before",), {"before": 1.0}),),))) == []


# ---------------------------------------------------------------- golden records

def test_golden_records_are_what_make_makes(runs):
    for kind in KINDS:
        assert to_dict(runs[kind]) == to_dict(getattr(cures, kind)()) and "synthetic" in json.dumps(to_dict(runs[kind]))
        assert to_dict(from_dict(type(runs[kind]), to_dict(runs[kind]))) == to_dict(runs[kind])


@pytest.mark.parametrize("kind", KINDS)
def test_every_section_says_something_and_none_fails(runs, kind):
    found = {f.name: f for f in fragments(runs[kind], {})}
    names = {name for name, _ in report_sections(kind)}
    assert OWN[kind] <= names and OWN[kind] <= set(found)
    assert not [f.name for f in found.values() if "could not be drawn" in f.html]


@pytest.mark.parametrize("kind", KINDS)
def test_the_page_is_well_formed_small_and_has_its_figures(runs, kind):
    page = render(runs[kind])
    Page(page)
    assert len(page.encode()) < LARGEST and len(plotly_figures(page)) >= (1 if kind == "diagnose" else 8)


@pytest.mark.parametrize("kind", KINDS)
def test_the_terminal_has_80_columns(runs, kind):
    assert columns(render(runs[kind], "terminal")) <= 80


def test_the_waterfall_adds_up(runs):
    steps = registry.load("reports", "cure_waterfall").steps
    rows = steps(runs["fix"])
    assert [r[0] for r in rows] == ["before", *runs["fix"].kept, "together", "after"] and rows[0][1] == "absolute" and rows[-1][1] == "total"
    assert sum(r[2] for r in rows[:-1]) == pytest.approx(rows[-1][2], abs=1e-9)
    exact = replace(runs["fix"], step_after=Interval(sum(r[2] for r in rows[:-2]) / 1e3, 0.0, 1.0))
    assert "together" not in [r[0] for r in steps(exact)]


def test_rejected_cures_are_told_and_not_in_the_waterfall(runs):
    page = render(runs["fix"])
    assert "pointwise_chains would cost you 3 % here" in page
    assert "pointwise_chains" not in [r[0] for r in registry.load("reports", "cure_waterfall").steps(runs["fix"])]


def test_failed_numerics_are_said_aloud(runs):
    first = runs["fix"].trials[0]
    bad = replace(first, outcome="rejected", reason="the numerics do not hold", numerics=replace(first.numerics, passed=False, text="gradients off by 0.5"))
    run = replace(runs["fix"], trials=(bad,))
    for format in ("terminal", "markdown", "html"):
        said = render(run, format).replace("\\", "").replace("\n  ", " ")
        assert "conv_not_channels_last: numerics failed: gradients off by 0.5" in said, format


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_record_still_reports(runs, kind):
    empty = type(runs[kind])("x", status="partial")
    for format in ("terminal", "markdown", "html"):
        assert "still going" in render(empty, format)


def hostile(value, evil=make.HOSTILE + "\x1b[31m"):
    """Every text of a record, evil."""
    if isinstance(value, str):
        return evil
    if isinstance(value, dict):
        return {k: hostile(v) for k, v in value.items()}
    return [hostile(v) for v in value] if isinstance(value, list) else value


@pytest.mark.parametrize("kind", KINDS)
def test_hostile_text_is_shown_as_text(runs, kind):
    data = hostile(to_dict(runs[kind]))
    for f in data.get("trials", []):
        f["outcome"], f["verdict"] = "kept", "FASTER"
    run = replace(from_dict(type(runs[kind]), data), kind=kind)
    page = render(run)
    assert "img" not in {tag for tag, _ in Page(page).tags} and "<script>alert" not in page
    assert not [f for f in plotly_figures(page) if "<script" in json.dumps(f["data"])]
    for format in ("terminal", "markdown"):
        assert "\x1b" not in render(run, format)
    assert "<script>" not in re.sub(r"```(python|sh)\n.*?\n```", "", render(run, "markdown"), flags=re.S)


def test_code_keeps_its_lines_everywhere():
    item = sections.Item("title", ("text",), "with a:\n    b = '<c>'\n")
    assert "with a:\n    b = &#x27;&lt;c&gt;&#x27;" in sections.blocks_html([item])
    assert "       with a:\n           b = '<c>'" in "\n".join(registry.load("reports", "terminal").item(item, lambda kind, text: text))
    assert registry.load("reports", "markdown").block(item)[-1] == "```python\nwith a:\n    b = '<c>'\n```"


def test_a_fence_cannot_be_ended_from_inside():
    assert registry.load("reports", "markdown").code("a\n```\nb", "python") == "````python\na\n```\nb\n````"


def test_a_wide_table_cuts_names_before_it_gives_up():
    terminal = registry.load("reports", "terminal")
    lines = terminal.grid(sections.Rows(("cure", "x"), (("n" * 90, "1"),)))
    assert len(lines) == 2 and columns("\n".join(lines)) <= 80 and "…" in lines[1] and lines[1].endswith("1")


def test_warnings_of_any_kind_are_shown(runs):
    run = replace(runs["fix"], warnings=(Warned("w", "something happened", "do this"),))
    assert "something happened" in render(run, "terminal")


def test_a_lead_in_wider_than_the_line_does_not_hang():
    lines = registry.load("reports", "terminal").wrap("one two", "x" * 100, " " * 90)
    assert "".join("".join(lines).split()) == "x" * 100 + "onetwo" and all(len(line) <= 80 for line in lines)
