"""report, compare, env, selfcheck and list on the command line: exit codes, messages, 80 columns, nothing heavy imported."""

import json
import re
import subprocess
import sys
from dataclasses import replace

import pytest

from perfscope.cli import main
from perfscope.errors import EXIT_ENVIRONMENT, EXIT_REGRESSION, EXIT_UNSURE, EXIT_USAGE
from perfscope.record import PARTS, BASE, save
from perfscope.selfcheck import selfcheck
from tests.fakes import FakeClock
from tests.records import make
from tests.test_compare import build, columns, scaled
from tests.test_selfcheck import subject


def call(capsys, *argv) -> tuple[int, str, str]:
    code = main([str(a) for a in argv])
    done = capsys.readouterr()
    return code, done.out, done.err


def complains(capsys, *argv, code=EXIT_USAGE) -> str:
    """The one message of a command that fails: no output, no stack trace, a next step."""
    got, out, err = call(capsys, *argv)
    assert got == code and out == "" and "Traceback" not in err
    assert err.startswith("perfscope: ") and "\n  -> " in err
    return err


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Records: a, its equal, a slower and a noisy one, each in its folder."""
    place, run = tmp_path_factory.mktemp("runs"), build()
    wide = build(noise=0.3, seed=2)
    for name, record in {"a": run, "same": replace(run, id="same"), "slow": scaled(run, 1.05), "fast": scaled(run, 0.9), "wide": wide, "wider": scaled(wide, 1.02),
                         "elsewhere": replace(run, environment=replace(run.environment, device_name="CPU Y"))}.items():
        save(record, place / name / "run.json")
    return place


BAD = {"truncated": '{"schema": "perfscope/run/1", "id": ', "foreign": '{"traceEvents": []}', "newer": '{"schema": "perfscope/run/9", "id": "x"}',
       "list": "[1, 2]", "damaged": '{"schema": "perfscope/run/1", "id": 7}', "empty": ""}
SAID = {"truncated": "not whole JSON", "foreign": "not a perfscope record", "newer": "newer perfscope", "list": "not a perfscope record", "damaged": "damaged",
        "empty": "not whole JSON"}


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("command", ["report", "compare"])
def test_a_bad_record_is_one_message(capsys, folder, tmp_path, kind, command):
    bad = tmp_path / "run.json"
    bad.write_text(BAD[kind])
    assert SAID[kind] in complains(capsys, command, *([folder / "a"] if command == "compare" else []), bad)
    bad.write_bytes(b"\xff\xfe\x00")
    assert "not UTF-8" in complains(capsys, command, *([folder / "a"] if command == "compare" else []), bad)


def test_no_record_there(capsys, folder):
    assert "there is no record at nowhere" in complains(capsys, "compare", folder / "a", "nowhere")
    err = complains(capsys, "report", "nowhere")
    assert "there is no record at nowhere" in err and "article" in err


# ---------------------------------------------------------------- compare

@pytest.mark.parametrize("b, code", [("slow", EXIT_REGRESSION), ("same", 0), ("fast", 0), ("elsewhere", EXIT_UNSURE)])
def test_fail_on_slower(capsys, folder, b, code):
    assert call(capsys, "compare", folder / "a", folder / b)[0] == 0
    assert call(capsys, "compare", folder / "a", folder / b, "--fail-on", "slower")[0] == code


def test_unsure_is_not_slower(capsys, folder):
    code, out, _ = call(capsys, "compare", folder / "wide", folder / "wider", "--fail-on", "slower")
    assert code == EXIT_UNSURE and "UNCLEAR" in out


def test_the_smallest_change_on_the_command_line(capsys, folder):
    assert call(capsys, "compare", folder / "a", folder / "slow", "--fail-on", "slower", "--smallest", "8%")[0] == 0
    assert "not a share" in complains(capsys, "compare", folder / "a", folder / "slow", "--smallest", "much")
    assert "0 % and 100 %" in complains(capsys, "compare", folder / "a", folder / "slow", "--smallest", "150%")


def test_formats_of_compare(capsys, folder):
    a, b = folder / "a", folder / "slow"
    _, text, _ = call(capsys, "compare", a, b)
    assert columns(text) <= 80 and text.splitlines()[-1].strip().endswith("slow") and "next: perfscope report" in text
    _, page, _ = call(capsys, "compare", a, b, "--format", "markdown")
    assert page.startswith("### ") and "| 4 |" in page
    _, data, _ = call(capsys, "compare", a, b, "--json")
    assert json.loads(data) == json.loads(call(capsys, "compare", a, b, "--format", "json")[1])
    assert "terminal, markdown, json" in complains(capsys, "compare", a, b, "--format", "pdf")
    assert "slower" in complains(capsys, "compare", a, b, "--fail-on", "faster")


def test_compare_wants_two_runs(capsys, folder):
    assert "--help" in complains(capsys, "compare", folder / "a")


def test_a_hostile_record_in_a_message(capsys, folder):
    err = complains(capsys, "compare", folder / "a", make.HERE / "hostile.json")
    assert "\x1b" not in err and "\u202e" not in err


# ---------------------------------------------------------------- report

def test_the_page_goes_beside_the_run_and_its_path_is_printed(capsys, folder):
    pytest.importorskip("plotly")
    code, out, _ = call(capsys, "report", folder / "a")
    page = folder / "a" / "report.html"
    assert code == 0 and out == f"{page}\n" and page.read_text().startswith("<!")
    assert call(capsys, "report", folder / "a" / "run.json")[1] == f"{page}\n"
    other = save(make.cpu(), folder / "other" / "mine.json")
    assert call(capsys, "report", other)[1] == f"{other.with_name('mine.html')}\n"


def test_several_runs_go_into_one_page_here(capsys, folder, tmp_path, monkeypatch):
    pytest.importorskip("plotly")
    monkeypatch.chdir(tmp_path)
    assert call(capsys, "report", folder / "a", folder / "slow")[1] == "report.html\n"
    assert (tmp_path / "report.html").stat().st_size > 1e6


def test_the_article_by_its_name(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = call(capsys, "report", "article", "--format", "terminal")
    assert code == 0 and "before the fix" in out and "after the fix" in out and columns(out) <= 80
    pytest.importorskip("plotly")
    assert call(capsys, "report", "article")[1] == "article.html\n" and (tmp_path / "article.html").exists()
    (tmp_path / "article").mkdir()                                     # a folder of that name is what was meant
    assert "there is no record at article" in complains(capsys, "report", "article")


def test_terminal_and_markdown_go_to_stdout_or_a_file(capsys, folder, tmp_path):
    _, text, _ = call(capsys, "report", folder / "a", "--format", "terminal")
    assert columns(text) <= 80 and "norm" in text and "\x1b" not in text and f"report {folder / 'a'}" in text.replace("\n  ", "")
    _, page, _ = call(capsys, "report", folder / "a", "--format", "markdown")
    assert page.startswith("### resnet9")
    file = tmp_path / "deep" / "report.md"
    assert call(capsys, "report", folder / "a", "--out", file)[1] == f"{file}\n" and file.read_text() == page
    assert call(capsys, "report", folder / "a", "--out", "-", "--format", "markdown")[1] == page


def test_bad_options_of_report(capsys, folder, tmp_path):
    assert "html, markdown, terminal" in complains(capsys, "report", folder / "a", "--format", "pdf")
    assert "--open" in complains(capsys, "report", folder / "a", "--format", "markdown", "--open")
    complains(capsys, "report")
    (tmp_path / "file").write_text("")
    assert "cannot write" in complains(capsys, "report", folder / "a", "--out", tmp_path / "file" / "x.md", code=EXIT_ENVIRONMENT)


def test_the_article_beside_the_run_only_if_wanted(capsys, folder, tmp_path):
    pytest.importorskip("plotly")
    sizes = {}
    for flag in ("--with-article", "--no-article"):
        call(capsys, "report", folder / "a", "--out", tmp_path / "x.html", flag)
        sizes[flag] = "Beside the article" in (tmp_path / "x.html").read_text()
    assert sizes == {"--with-article": True, "--no-article": False}


@pytest.mark.parametrize("works", [True, False])
def test_open_shows_the_page(capsys, folder, tmp_path, monkeypatch, works):
    pytest.importorskip("plotly")
    import webbrowser
    seen = []
    monkeypatch.setattr(webbrowser, "open", lambda url: seen.append(url) or works)
    code, out, err = call(capsys, "report", folder / "a", "--open", "--out", tmp_path / "x.html")
    assert code == 0 and seen == [(tmp_path / "x.html").as_uri()] and ("no browser" in err) != works


# ---------------------------------------------------------------- list

def test_list_describes_everything(capsys):
    code, out, _ = call(capsys, "list")
    assert code == 0 and columns(out) <= 80
    data = json.loads(call(capsys, "list", "all", "--json")[1])
    assert set(data["parts"]) == {BASE, *PARTS}
    from perfscope.options import DTYPES
    assert set(data["dtypes"]) == set(DTYPES)
    from perfscope import registry
    assert set(registry.names("models")) <= set(data["models"]) and set(registry.names("reports")) == set(data["sections"])
    assert all(text for rows in data.values() for text in rows.values())
    assert {"resnet50:b", "gpt2:tiny"} <= set(data["models"])


def test_list_of_one_kind_or_of_nothing(capsys):
    _, out, _ = call(capsys, "list", "dtypes")
    assert "bfloat16" in out and "resnet9" not in out
    assert "models, recipes, tricks, parts, probes, sections, dtypes, all" in complains(capsys, "list", "unicorns")


def test_every_listed_variant_is_the_models_own():
    torch = pytest.importorskip("torch")
    from perfscope import registry
    from perfscope.cli.list import variants
    assert torch and {n: variants(n) for n in registry.names("models")} == {n: tuple(registry.load("models", n).VARIANTS) for n in registry.names("models")}


# ---------------------------------------------------------------- env and selfcheck

@pytest.fixture
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "perfscope" / "selfcheck.json"


def test_env_says_what_is_there_and_what_is_missing(capsys, cache, monkeypatch):
    import perfscope.cli.env as env
    monkeypatch.setattr(env, "_there", lambda name: name not in ("plotly", "timm"))
    code, out, _ = call(capsys, "env", "--device", "cpu")
    assert code == 0 and columns(out) <= 80
    assert "plotly: no HTML report" in out and "timm: no --model timm:NAME" in out and "transformers:" not in out
    assert "selfcheck: never run" in out and "next: perfscope selfcheck" in out
    data = json.loads(call(capsys, "env", "--device", "cpu", "--json")[1])
    assert data["software"]["torch"] and data["hardware"]["cores"] >= 1 and data["selfcheck"] == {}
    assert {"plotly", "timm"} <= {m["what"] for m in data["missing"]} and all(m["costs"] and m["get"] for m in data["missing"])


def test_env_on_a_device_that_is_not_there(capsys, cache, monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "CUDA was asked for" in complains(capsys, "env", "--device", "cuda", code=EXIT_ENVIRONMENT)
    assert "no device" in complains(capsys, "env", "--device", "abacus")
    assert any(m["what"] == "CUDA" for m in json.loads(call(capsys, "env", "--json")[1])["missing"])


def fake_selfcheck(monkeypatch, **script):
    """The command's selfcheck on a fake machine, with everything else as it is."""
    import perfscope.selfcheck as module

    def on_a_fake(device, budget_s, listener):
        return selfcheck(device, budget_s, listener, subject=subject(FakeClock({"a": 0.010}, **script)))
    monkeypatch.setattr(module, "selfcheck", on_a_fake)


def test_selfcheck_on_a_quiet_machine(capsys, cache, monkeypatch):
    fake_selfcheck(monkeypatch, noise=0.004)
    code, out, err = call(capsys, "selfcheck")
    assert code == 0 and columns(out) <= 80 and cache.exists()
    assert re.search(r"This machine sees changes of 0\.\d+ % and more", out) and "found" in out and "warming up" in err
    assert out.splitlines()[-1] == "next: perfscope breakdown --model resnet9"
    data = json.loads(call(capsys, "selfcheck", "--json", "--quiet")[1])
    assert data["passed"] is True and data["plant_verdict"] == "SLOWER"


def test_selfcheck_on_a_noisy_machine_is_unsure(capsys, cache, monkeypatch):
    fake_selfcheck(monkeypatch, noise=0.8, seed=1)
    code, out, err = call(capsys, "selfcheck", "--budget", "4s", "--quiet")
    assert code == EXIT_UNSURE and "not found" in out and "too noisy" in out and err == ""


def test_selfcheck_that_sees_nothing_in_time(capsys, cache, monkeypatch):
    fake_selfcheck(monkeypatch, noise=0.004)
    code, out, _ = call(capsys, "selfcheck", "--budget", "0.05", "--quiet")
    assert code == EXIT_UNSURE and "too few rounds" in out


def test_bad_options_of_selfcheck(capsys, cache):
    assert "not a time" in complains(capsys, "selfcheck", "--budget", "soon")
    assert "above zero" in complains(capsys, "selfcheck", "--budget", "0s")
    assert "no device" in complains(capsys, "selfcheck", "--device", "abacus", "--quiet")


def test_selfcheck_interrupted(capsys, cache, monkeypatch):
    fake_selfcheck(monkeypatch, interrupt_at=100)
    code, out, err = call(capsys, "selfcheck", "--quiet")
    assert code == 130 and out == "" and "interrupted" in err and not cache.exists()


# ---------------------------------------------------------------- start-up

@pytest.mark.parametrize("argv, heavy", [
    (["--help"], "torch plotly rich numpy"), (["compare", "--help"], "torch plotly rich numpy"), (["list"], "torch plotly rich numpy"),
    (["report", "{a}", "--format", "markdown"], "torch rich"), (["report", "{a}", "--out", "{a}/x.html"], "torch rich"), (["compare", "{a}", "{a}"], "torch plotly rich")])
def test_what_does_not_need_a_package_does_not_import_it(folder, argv, heavy):
    argv = [a.format(a=folder / "a") for a in argv]
    code = (f"import sys\nfrom perfscope.cli import main\ncode = main({argv!r})\n"
            f"print([m for m in {heavy!r}.split() if m in sys.modules], code, file=sys.stderr)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.splitlines()[-1] == "[] 0", done.stderr


@pytest.mark.parametrize("argv, code", [(["report", "{a}"], 0), (["report", "{a}", "--format", "terminal"], 0), (["compare", "{a}", "{a}"], 0), (["list"], 0),
                                        (["env"], 0), (["env", "--json"], 0), (["report", "article", "--format", "markdown"], 0)])
def test_a_laptop_without_torch(folder, tmp_path, argv, code):
    block = "import sys; sys.modules['torch'] = None\nfrom perfscope.cli import main\nsys.exit(main(sys.argv[1:]))"
    done = subprocess.run([sys.executable, "-c", block, *(a.format(a=folder / "a") for a in argv)], capture_output=True, text=True)
    assert done.returncode == code and done.stdout, done.stderr
    assert argv[0] != "env" or "nothing can be measured" in done.stdout.replace("\n    ", " ")


@pytest.mark.parametrize("command", ["report", "compare", "env", "selfcheck", "list", "new", "diagnose", "fix"])
def test_every_command_has_help(capsys, command):
    code, out, _ = call(capsys, command, "--help")
    assert code == 0 and columns(out) <= 80 and len(out.splitlines()) < 65
    for option in re.findall(r"^  (--[a-z-]+)(.*)$", out, re.MULTILINE):
        assert option[1].strip(), f"{option[0]} has no help"
