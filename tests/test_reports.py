"""The report on every golden record: all sections, three renderers, the same numbers, nothing unescaped, no torch."""

import json
import re
import subprocess
import sys
import zlib
from base64 import b85decode
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from perfscope import facts, registry, sections
from perfscope.errors import EnvironmentError_, UsageError
from perfscope.measure.attribution import derive
from perfscope.measure.stats import Interval
from perfscope.record import BASE, PARTS, Run, from_dict, load, to_dict
from perfscope.report import fragments, render, report
from perfscope.report import sections as report_sections
from tests.records import make

ROOT = Path(__file__).parent.parent
RECORDS = {p.stem: p for p in sorted((ROOT / "tests" / "records").glob("*.json")) if p.stem not in ("diagnose", "fix")}     # see test_treatment
EXAMPLES = {p.stem: p for p in sorted((ROOT / "perfscope" / "examples").glob("*.json"))}
EVERY = {**RECORDS, **EXAMPLES}
LARGEST = 2_500_000
ANSI = re.compile(r"\x1b\[[0-9;]*m")


@pytest.fixture(scope="module")
def runs():
    return {name: load(path) for name, path in EVERY.items()}


@pytest.fixture(scope="module")
def pages(runs):
    return {name: render(run) for name, run in runs.items()}


class Page(HTMLParser):
    """Elements, their text, and whether they are closed in order."""

    VOID = {"meta", "br", "img", "link", "input", "hr"}

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.stack, self.tags, self.text, self.scripts = [], [], [], []
        self.feed(text)
        self.close()
        assert self.stack == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.stack.append(tag)

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        if self.stack[-1:] == ["script"]:
            self.scripts.append(data)
        elif self.stack[-1:] != ["style"]:
            self.text.append(data)


def unpack(text):
    return zlib.decompress(b85decode(text.strip().replace(",", "<"))).decode()


def packed(page, name):
    return unpack(re.search(rf'id="{name}">(.*?)</script>', page, re.S)[1])


def plotly_figures(page):
    return [f for views in json.loads(packed(page, "figures")) for f in views.values()]


def test_the_golden_records_are_there():
    assert set(RECORDS) == {"cpu", "gpu", "partial", "hostile"} and len(EXAMPLES) == 2
    assert all("synthetic" in json.dumps(to_dict(load(p))) for p in RECORDS.values())


def test_golden_records_are_what_derive_makes_of_their_samples(runs):
    for name in ("cpu", "gpu"):
        again = derive(runs[name])
        assert to_dict(again)["batches"] == to_dict(runs[name])["batches"]


@pytest.mark.parametrize("name", EVERY)
def test_every_section_renders_every_record(runs, name):
    for section, module in report_sections("breakdown"):
        text = module.render(runs[name])
        assert isinstance(text, str), section
        Page(f"<div>{text}</div>")


def test_every_section_says_something_about_a_full_record(runs):
    said = {f.name for name in ("cpu", "gpu") for f in fragments(runs[name], {})}
    assert said == {name for name, _ in report_sections("breakdown")}


def test_sections_are_for_their_kinds_only(runs):
    names = {name for name, _ in report_sections("something-else")}
    assert {"warnings", "provenance", "reproduce"} <= names and not {"verdict", "scaling"} & names
    for format in ("html", "terminal", "markdown"):
        assert render(replace(runs["cpu"], kind="something-else"), format)


@pytest.mark.parametrize("name", EVERY)
def test_page_is_well_formed_small_and_offline(pages, name):
    page = pages[name]
    assert len(page.encode()) <= LARGEST
    found = Page(page)
    assert not [a for _, attrs in found.tags for a in ("src", "srcset", "action") if a in attrs]
    assert all(a["href"].startswith("#") for tag, a in found.tags if tag == "a" and "href" in a)
    anchors = [a["id"] for _, a in found.tags if "id" in a]
    assert len(anchors) == len(set(anchors))
    assert {a["href"][1:] for tag, a in found.tags if tag == "a" and "href" in a} <= set(anchors)
    assert "could not be drawn:" not in "".join(found.text)


def test_a_large_record_still_makes_a_page_within_the_limit(runs, monkeypatch):
    monkeypatch.setattr(make, "short", lambda x: x)
    rng = make.random.Random(5)
    cost = {"base": 3e-3, "norm": 1e-3, "attention": 6e-4, "optimizer": 5e-4, "data": 1e-4}
    large = derive(
        replace(
            runs["gpu"],
            batches=tuple(make.batch(n, cost, 200, rng, every=True, gpu=True, memory=1 << 20) for n in (128, 256, 512)),
        )
    )
    page = render(large)
    assert len(page.encode()) <= LARGEST and '<a class="download"' in page
    larger = replace(
        large, batches=tuple(replace(b, batch_size=n * b.batch_size) for n in (1, 5, 7) for b in large.batches)
    )
    page = render(larger)
    assert len(page.encode()) <= LARGEST and '<a class="download"' not in page and "too large for this page" in page


@pytest.mark.parametrize("name", EVERY)
def test_plotly_accepts_every_figure(pages, name):
    go = pytest.importorskip("plotly.graph_objects")
    tokens = re.compile(r'"theme:\w+"')
    for figure in plotly_figures(pages[name]):
        go.Figure(json.loads(tokens.sub('"#123456"', json.dumps({k: figure[k] for k in ("data", "layout")}))))


def test_the_bundle_is_plotlys_own(pages):
    offline = pytest.importorskip("plotly.offline")
    assert packed(pages["partial"], "bundle") == offline.get_plotlyjs()


@pytest.mark.parametrize("name", ["cpu", "gpu", "hostile", "partial"])
def test_the_record_travels_in_the_page(pages, runs, name):
    body = re.search(r'data-record>.*?<script type="application/octet-stream">(.*?)</script>', pages[name], re.S)[1]
    assert to_dict(from_dict(Run, json.loads(unpack(body)))) == json.loads(
        json.dumps(to_dict(runs[name])).replace("\\ud800", "\\ud800")
    )


def test_hostile_text_stays_text(pages):
    page = pages["hostile"]
    found = Page(page)
    assert not any(tag in ("img", "iframe", "object", "embed") for tag, _ in found.tags)
    assert not [k for _, attrs in found.tags for k in attrs if k.startswith("on")]
    assert sum(tag == "script" for tag, _ in found.tags) == page.count("</script>")
    assert not any("alert(" in s for s in found.scripts)
    assert "<script>alert(1)</script>" in "".join(found.text)  # it is shown, as text
    assert "\x1b" not in page and "\u202e" not in page
    for figure in plotly_figures(page):  # plotly reads tags in its labels
        assert "<script" not in json.dumps(figure) and "<img" not in json.dumps(figure)


def test_embedded_json_cannot_end_a_script():
    text = sections.embed({"a": "</script><!--<script>&"})
    assert "<" not in text and "&" not in text and json.loads(text) == {"a": "</script><!--<script>&"}
    assert "<" not in sections.pack("</script>" * 100)


def width(text):
    import unicodedata

    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("color", [False, True])
def test_terminal_fits_in_80_columns(runs, name, color):
    text = render(runs[name], "terminal", color=color, next_command="perfscope diagnose " + "runs/long-name" * 9)
    bare = ANSI.sub("", text)
    assert max(map(width, bare.splitlines())) <= 80
    assert (bare == text) is not color and "\x1b" not in bare
    assert bare.splitlines()[-1].strip() and "next: perfscope diagnose" in bare


def test_terminal_says_the_next_command_by_itself(runs):
    assert render(runs["cpu"], "terminal").rstrip().endswith(f"next: perfscope report runs/{runs['cpu'].id} --open")


@pytest.mark.parametrize("name", EVERY)
def test_markdown_tables_are_well_formed(runs, name):
    text = render(runs[name], "markdown")
    tables = re.findall(r"(?:^\|.*\|$\n?)+", text, re.M)
    assert bool(tables) is bool(runs[name].batches)
    for table in tables:
        counts = {len(re.findall(r"(?<!\\)\|", line)) for line in table.strip().splitlines()}
        assert len(counts) == 1
    outside = re.sub(r"^(`{3,})sh\n.*?\n\1$", "", text, flags=re.S | re.M)
    assert "<script" not in outside and "@everyone" not in outside and "<img" not in outside


def squeezed(text):
    return re.sub(r"[\s\u00a0]+", " ", text)


@pytest.mark.parametrize("name", EVERY)
def test_the_three_renderers_say_the_same(runs, pages, name):
    run = runs[name]
    page = squeezed(" ".join(Page(pages[name]).text))
    terminal, markdown = render(run, "terminal"), render(run, "markdown").replace("\\", "")
    for row in facts.rows(run):
        for text in (page, terminal, markdown):
            assert str(row.batch.batch_size) in text
        for point, half in [row.step_ms, *row.shares.values()] if row.shares else []:
            shown = f"{point} ±{half}" if half else point
            assert shown in page and shown in markdown
            assert re.search(rf"(?<![\d.]){re.escape(point)}(?![\d.])", terminal) and (
                not half or f"±{half}" in terminal
            )
        for text in filter(
            None, ([row.floor_ms, row.efficiency] if row.shares else []) + ([row.note] if name != "hostile" else [])
        ):
            assert text in page and text in terminal and text in markdown
    if name != "hostile":
        for said in [
            facts.verdict(run),
            *(words for _, words in facts.scaling_words(run)),
            *(w.text for w in run.warnings),
            *(w.hint for w in run.warnings),
        ]:
            assert (
                squeezed(said) in page and squeezed(said) in squeezed(terminal) and squeezed(said) in squeezed(markdown)
            )


def test_a_residue_is_loud_everywhere(runs):
    run = replace(runs["cpu"], inspection=replace(runs["cpu"].inspection, residues={"base": {"aten::relu": 3}}))
    assert "residue: 3 x aten::relu" in render(run, "terminal")
    assert "**residue**: 3 × aten::relu" in render(run, "markdown").replace("\\", "")
    page = " ".join(Page(render(run)).text)
    assert (
        "Residue." in page
        and "1 operations ran in variants that should not have them" in page
        and "No residue" not in page
    )


def test_order_dependence_and_memory_are_told(runs, pages):
    gpu = runs["gpu"].parts[512]
    assert gpu["data"].depends_on_order and "data depends on order" in render(runs["gpu"], "terminal")
    assert "out of memory" in pages["gpu"] and "The largest batch that fits is 768" in pages["gpu"]


def test_article_is_drawn_for_its_models_or_on_request(runs, pages):
    assert 'id="article"' in pages["cpu"] and 'id="article"' not in pages["gpu"]
    assert 'id="article"' in render(runs["gpu"], article=True) and 'id="article"' not in render(
        runs["cpu"], article=False
    )


def test_the_examples_are_the_article_s_rows(runs):
    totals = {"before": (8.28, 7.47, 7.14, 6.91), "after": (6.96, 5.90, 5.29, 4.92)}  # REFERENCES section 1
    for when, total in totals.items():
        run = runs[f"myrtle3_2018_{when}"]
        assert facts.published(run) and "not measured by perfscope" in render(run, "terminal")
        for batch, seconds in zip(run.batches, total):
            assert batch.derived.step.point * 50_000 / batch.batch_size == pytest.approx(seconds, abs=1e-9)
            assert sum(p.share.point for p in batch.derived.parts.values()) == pytest.approx(1, abs=1e-12)


def test_several_runs_on_one_page(runs):
    page = render([runs["cpu"], runs["partial"]])
    anchors = [a["id"] for _, a in Page(page).tags if "id" in a]
    assert {"run", "run-1", "verdict", "verdict-1"} <= set(anchors) and len(anchors) == len(set(anchors))


def test_report_writes_what_the_name_says(runs, tmp_path):
    assert report(runs["hostile"], tmp_path).name == "report.html"
    assert report(runs["partial"], tmp_path / "new" / "r.md").read_text().startswith("### ")
    assert "batch" in report(runs["cpu"], tmp_path / "r.txt").read_text()
    with pytest.raises(UsageError, match="format"):
        report(runs["cpu"], tmp_path / "r.pdf")
    with pytest.raises(UsageError, match="no run"):
        render([])
    with pytest.raises(EnvironmentError_, match="cannot write"):
        report(runs["cpu"], tmp_path / "r.txt" / "below.md")


def test_a_broken_section_does_not_cost_the_report(runs, monkeypatch):
    chart = registry.load("reports", "chart")
    monkeypatch.setattr(chart, "render", lambda run: 1 / 0)
    page = render(runs["cpu"])
    assert "The section chart could not be drawn: ZeroDivisionError" in page and 'id="table"' in page


BLOCKED = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked!r}:
            raise ImportError(name + " is blocked")
sys.meta_path.insert(0, Block())
from perfscope import record
from perfscope.report import render
from perfscope.errors import EnvironmentError_
run = record.load({path!r})
render(run, "terminal"), render(run, "markdown")
try:
    print(len(render(run)))
except EnvironmentError_ as e:
    print(e.message, "|", e.hint)
assert not {{"torch", "numpy"}} & set(sys.modules)
"""


@pytest.mark.parametrize(
    "blocked, expected",
    [(("torch", "numpy"), r"^\d+$"), (("torch", "plotly"), r"needs plotly.*\|.*pip install 'plotly>=6'")],
)
def test_works_without_torch_and_says_so_without_plotly(blocked, expected):
    code = BLOCKED.format(blocked=blocked, path=str(RECORDS["cpu"]))
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.search(expected, done.stdout.strip())


@pytest.mark.parametrize("path", sorted((ROOT / "reports").glob("*.py")), ids=lambda p: p.name)
def test_sections_import_only_what_they_may(path):
    allowed = {
        "perfscope.facts",
        "perfscope.record",
        "perfscope.sections",
        "perfscope.measure.stats",
        "perfscope.errors",
        "perfscope.speedruns.words",
        "perfscope.finding",
        "perfscope.treatment",
        "perfscope.compare_text",
    }
    import ast

    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            names = [
                f"{node.module}.{a.name}" if node.module in ("perfscope", "perfscope.measure", "perfscope.speedruns") else node.module
                for a in node.names
            ]
        elif isinstance(node, ast.Import):
            names = [a.name for a in node.names]
        else:
            continue
        for name in names:
            assert name in allowed or name.split(".")[0] in sys.stdlib_module_names or name == "plotly.offline", name


def test_numbers_have_the_digits_that_the_interval_supports():
    assert sections.words(sections.share(Interval(0.5213, 0.519, 0.5236)), "%") == "52.1 ±0.3 %"
    assert sections.words(sections.scaled(Interval(1.6632, 1.62, 1.70)), "ms") == "1660 ±40 ms"
    assert sections.words(sections.share(Interval(0.13, float("-inf"), float("inf"))), "%") == "~13 %"
    assert sections.words(sections.share(None)) == "–"
    assert sections.figures(0.0004567) == "0.000457" and sections.figures(123456) == "123000"
    assert sections.amount(2.272e9, "FLOP") == "2.27 GFLOP" and sections.amount(3 * 2**30, "B", 1024) == "3.00 GiB"


def test_every_part_has_a_colour_of_its_own():
    found = [sections.colour(p) for p in (BASE, *PARTS)]
    assert len(set(found)) == len(found) and sections.colour("unheard of") == sections.GREY


def test_what_is_saved_is_last_in_not_the_ladder_s_share(runs):
    d = facts.focus(runs["gpu"]).derived
    norm = d.parts["norm"]
    assert abs(norm.last.point - norm.seconds.point) > norm.seconds.half_width  # an interaction was planted
    saved = sections.words(sections.scaled(norm.last), "ms")
    assert f"were it free, the step would be {saved} shorter" in facts.verdict(runs["gpu"])
    assert facts.saved(replace(norm, last=None)) == norm.seconds


def shaky(run, size, half):
    """The run with one batch size about which nearly nothing is known, and a fast one at that."""
    d = replace(run.batches[0].derived, half_width=half, samples_per_s=1e9)
    wild = {p: replace(v, share=Interval(29.0, -400.0, 500.0)) for p, v in d.parts.items()}
    return replace(
        run, batches=(replace(run.batches[0], batch_size=size, derived=replace(d, parts=wild)), *run.batches[1:])
    )


@pytest.mark.parametrize("half", [3.9, float("inf"), float("nan")])
def test_a_batch_size_of_which_little_is_known_is_not_the_verdict(runs, half):
    run = shaky(runs["cpu"], 2, half)
    assert facts.focus(run).batch_size == 16 and facts.verdict(run) == facts.verdict(runs["cpu"])
    assert "too little is known" in render(run, "terminal") and "too little is known" in render(run, "markdown")
    chart = plotly_figures(render(run, article=False))[0]
    assert (
        all("2" not in t["y"] for t in chart["data"])
        and "too little is known" in chart["layout"]["annotations"][0]["text"]
    )
    alone = replace(run, batches=run.batches[:1])
    assert facts.verdict(alone).startswith("Nothing can be said yet: batch 2 too little is known")
    assert 'id="chart"' not in render(alone)


def test_the_verdict_names_no_part_that_may_be_nothing(runs):
    batch = runs["cpu"].batches[-1]
    noise = {
        p: v if p == BASE else replace(v, share=Interval(0.02, -0.01, 0.05)) for p, v in batch.derived.parts.items()
    }
    run = replace(runs["cpu"], batches=(replace(batch, derived=replace(batch.derived, parts=noise)),))
    assert "No part besides the base can be told from noise" in facts.verdict(
        run
    ) and "were it free" not in facts.verdict(run)
