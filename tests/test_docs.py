"""The probes' catalogue, read without importing them; their pages; `perfscope list probes` and `perfscope new probe`."""

import json
import subprocess
import sys

import pytest

from perfscope import catalogue, docs, registry
from perfscope.cli import main
from perfscope.errors import EXIT_ENVIRONMENT, EXIT_OK, EXIT_REGRESSION, EXIT_USAGE, UsageError
from perfscope.probe import HEADINGS
from tests.test_compare import columns

NAMES = registry.names("probes")
PAGES = docs.pages()


def call(capsys, *argv) -> tuple[int, str, str]:
    code = main([str(a) for a in argv])
    done = capsys.readouterr()
    return code, done.out, done.err


@pytest.mark.parametrize("name", NAMES)
def test_the_file_says_what_the_module_is(name):
    """What is read from the source is what importing it gives."""
    from perfscope import probing
    entry, module = catalogue.read(name, registry.folder("probes") / f"{name}.py"), registry.load("probes", name)
    assert entry.uses == module.USES and entry.devices == getattr(module, "DEVICES", ("cpu", "cuda"))
    assert bool(entry.cures) == bool(probing.cures(module)) and (entry.cures == tuple(probing.cures(module)) or entry.cures == ("",))
    assert entry.text[""] == probing.summary(module) and all(entry.text.get(h) for h in HEADINGS)
    assert entry.code == getattr(module, "CODE", "") and entry.plant


def test_every_probe_has_a_page_with_its_own_words():
    assert set(PAGES) == {"README.md", *(f"{n}.md" for n in NAMES)}
    for name in NAMES:
        page = PAGES[f"{name}.md"]
        assert all(f"\n## {h}\n" in page for h in HEADINGS) and f"]({name}.md)" in PAGES["README.md"]
        assert "def plant" in page or "def examples" in page
    page = PAGES["optimizer_not_fused.md"]
    assert "`perfscope fix` tries `optimizer_not_fused`" in page and "devices: CPU and GPU" in page and "torch.optim.Adam(..., fused=True)" in page
    assert "GPU only" in PAGES["half_batch_norm_off_cudnn.md"] and "it is a hint" in PAGES["handwritten_attention.md"]


def test_the_committed_pages_are_those_that_are_generated():
    committed = {p.name: p.read_text(encoding="utf-8") for p in docs.FOLDER.glob("*.md")}
    assert sorted(committed) == sorted(PAGES) and [n for n in PAGES if committed[n] != PAGES[n]] == [], "make docs"


def test_pages_of_probes_that_are_gone_go(tmp_path):
    (tmp_path / "gone.md").write_text("<!-- Generated from probes/gone.py by `make docs`: change it there. -->\n")
    (tmp_path / "mine.md").write_text("# mine\n")
    docs.write(tmp_path)
    assert {p.name for p in tmp_path.glob("*.md")} == {*PAGES, "mine.md"}


def test_the_index_has_every_group_once():
    index = PAGES["README.md"]
    groups = {e.group for e in catalogue.entries()}
    assert {line[3:] for line in index.splitlines() if line.startswith("## ")} == groups and index.count("| probe |") == len(groups)


def test_a_pipe_in_a_first_line_does_not_end_the_cell():
    entry = catalogue.Entry("a", registry.PACKAGE, {"": "x | y"}, numbers=("S05",))
    assert r"| [a](a.md) | x \| y | CPU and GPU | hint |" in docs.index([entry])


@pytest.mark.parametrize("number, group", [(1, "Norm and layout"), (17, "Convolution choice"), (46, "Data"), (57, "Distributed training"), (99, "Other"), (0, "Other")])
def test_groups(number, group):
    assert catalogue.Entry("a", registry.PACKAGE, {}, numbers=(f"S{number:02}",) if number else ()).group == group


# ---------------------------------------------------------------- list and new

def test_list_probes(capsys):
    code, out, _ = call(capsys, "list", "probes")
    assert code == EXIT_OK and columns(out) <= 80 and out.splitlines()[-1] == "next: perfscope diagnose --model resnet9"
    rows = json.loads(call(capsys, "list", "probes", "--json")[1])["probes"]
    assert set(rows) == set(NAMES) and rows["optimizer_not_fused"].endswith("(S29; cpu and cuda; cure)") and "; hint)" in rows["handwritten_attention"]


def test_a_new_probe_keeps_its_contract(capsys, tmp_path):
    folder = tmp_path / "own"
    code, out, _ = call(capsys, "new", "probe", "my_slow_path", "--folder", folder)
    assert code == EXIT_OK and out.splitlines() == [str(folder / "my_slow_path.py"), f"next: perfscope list probes --check --probes {folder}"]
    rows = json.loads(call(capsys, "list", "probes", "--probes", folder, "--json")[1])["probes"]
    assert rows["my_slow_path"].startswith("Dropout layers with p = 0") and set(NAMES) < set(rows)
    code, out, err = call(capsys, "list", "probes", "--check", "--probes", folder)
    assert code == EXIT_OK and out == "1 of 1 probes keep their contract\n" and "1 of 1: my_slow_path" in err


def test_check_says_what_is_wrong(capsys, tmp_path):
    for name, before, after in (("deaf", "if idle:", "if False:"), ("useless", "on_model=[without]", "on_model=[]"), ("broken", "[lambda model: nn", "[lambda model: mm")):
        call(capsys, "new", "probe", name, "--folder", tmp_path)
        text = (tmp_path / f"{name}.py").read_text()
        assert before in text
        (tmp_path / f"{name}.py").write_text(text.replace(before, after))
    code, out, err = call(capsys, "list", "probes", "--check", "--probes", tmp_path, "--json", "--quiet")
    wrong = json.loads(out)
    assert code == EXIT_REGRESSION and "deaf" in err and set(wrong) == {"deaf", "useless", "broken"}
    assert "silent on its own planted case" in wrong["deaf"] and any(w.startswith("still fires after its cure: ") for w in wrong["useless"])
    assert any("NameError" in w or "failed" in w for w in wrong["broken"])


@pytest.mark.parametrize("name", ["My_probe", "1st", "with-dash", "../escape", "_hidden", "", "ünder", "x" * 61, "a b"])
def test_bad_names(capsys, tmp_path, name):
    code, out, err = call(capsys, "new", "probe", name, "--folder", tmp_path)
    assert code == EXIT_USAGE and out == "" and "is no name for a probe" in err and not list(tmp_path.iterdir())


def test_new_overwrites_nothing(capsys, tmp_path):
    (tmp_path / "mine.py").write_text("precious")
    code, _, err = call(capsys, "new", "probe", "mine", "--folder", tmp_path)
    assert code == EXIT_USAGE and "is there already" in err and (tmp_path / "mine.py").read_text() == "precious"
    assert "perfscope has a probe named 'gc_pauses'" in call(capsys, "new", "probe", "gc_pauses", "--folder", tmp_path)[2]
    code, _, err = call(capsys, "new", "probe", "fine", "--folder", tmp_path / "mine.py")
    assert code == EXIT_ENVIRONMENT and "cannot write" in err


def test_bad_options_of_list(capsys, tmp_path):
    assert "--check is about probes" in call(capsys, "list", "models", "--check")[2]
    assert "there is no folder" in call(capsys, "list", "probes", "--probes", tmp_path / "nowhere")[2]
    (tmp_path / "bad.py").write_text("def :")
    assert "cannot be read" in call(capsys, "list", "probes", "--probes", tmp_path)[2]
    with pytest.raises(UsageError):
        catalogue.read("bad", tmp_path / "gone.py")


def test_the_pages_need_no_torch(tmp_path):
    block = "import sys; sys.modules['torch'] = None\nfrom perfscope.docs import write\nfrom pathlib import Path\nwrite(Path(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", block, str(tmp_path)], check=True, cwd=registry.PACKAGE.parent)
    assert {p.name for p in tmp_path.iterdir()} == set(PAGES)
