"""The cure in the user's source: exact edits, found in the syntax tree; a diff that `git apply` takes."""

import shutil
import subprocess
import types
from pathlib import Path

import pytest

from perfscope import patch, registry
from perfscope.patch import Edit, Source

ROOT = registry.PACKAGE.parent
TRAIN = '''import torch
from torch import nn

class Net(nn.Module):
    pass

def build():
    model = Net()   # the größte of them
    return model, torch.optim.Adam(model.parameters(), lr=0.1)

def train(model, optimizer, loader):
    for x, y in loader:
        x = x.to("cuda")
        optimizer.zero_grad()
        out = model(x)
        loss = nn.functional.cross_entropy(out, y)
        loss.backward()
        optimizer.step()
'''


def test_a_keyword_is_added_behind_the_last_argument():
    s = Source(TRAIN)
    assert "Adam(model.parameters(), lr=0.1, fused=True)" in patch.rewrite(s, patch.optimizer_keyword(s, "fused", "True"))


@pytest.mark.parametrize("call, expected", [
    ("SGD()", "SGD(fused=True)"), ("SGD(p, lr=1,)", "SGD(p, lr=1, fused=True,)"), ("SGD(p, fused=False, lr=1)", "SGD(p, fused=True, lr=1)"),
    ("partial(torch.optim.SGD, lr=1)", "partial(torch.optim.SGD, lr=1, fused=True)"), ("SGD(\n    p,\n    lr=1,\n)", "SGD(\n    p,\n    lr=1, fused=True,\n)")])
def test_keywords_of_all_forms(call, expected):
    s = Source(f"o = {call}\n")
    assert patch.rewrite(s, patch.optimizer_keyword(s, "fused", "True")) == f"o = {expected}\n"


def test_the_model_is_changed_where_it_is_made_and_nowhere_else():
    s = Source(TRAIN, "Net")
    text = patch.rewrite(s, patch.after_model(s, ".to(memory_format=torch.channels_last)"))
    assert "model = Net().to(memory_format=torch.channels_last)   # the größte" in text and text.count("channels_last") == 1
    assert patch.after_model(Source(TRAIN, ""), ".x") == []


def test_the_forward_pass_and_the_loss_are_wrapped_and_moving_the_batch_is_not():
    s = Source(TRAIN)
    text = patch.rewrite(s, patch.around_forward(s, "torch.autocast('cpu', torch.bfloat16)"))
    assert """        optimizer.zero_grad()
        with torch.autocast('cpu', torch.bfloat16):
            out = model(x)
            loss = nn.functional.cross_entropy(out, y)
        loss.backward()
""" in text


def test_without_a_backward_call_nothing_is_wrapped():
    assert patch.around_forward(Source("x = model(y)\n"), "c") == []


def test_edits_that_overlap_or_break_the_file_are_refused():
    with pytest.raises(ValueError):
        patch.rewrite(Source("abc = 1\n"), [Edit(0, 3, "x"), Edit(2, 4, "y")])
    with pytest.raises(SyntaxError):
        patch.rewrite(Source("abc = 1\n"), [Edit(0, 3, "1 2")])


def _probes(**edits):
    return {name: types.SimpleNamespace(edit=edit) for name, edit in edits.items()}


def test_the_diff_applies_with_git(tmp_path):
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    folder = tmp_path / "deep er"
    folder.mkdir()
    file = folder / "train.py"
    file.write_text(TRAIN.rstrip("\n"))         # no newline at the end
    chosen = _probes(fused=lambda s: patch.optimizer_keyword(s, "fused", "True"), hint=lambda s: [])
    made = patch.patch_for(f"{file}:build", ("fused", "hint"), chosen)
    assert made.missing == ("hint",) and Path(made.file) == file
    done = subprocess.run(["git", "apply", "-"], cwd=tmp_path, input=made.diff, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr + made.diff
    assert "lr=0.1, fused=True)" in file.read_text()


def test_two_cures_stack_in_one_file(tmp_path):
    file = tmp_path / "t.py"
    file.write_text(TRAIN)
    chosen = _probes(a=lambda s: patch.optimizer_keyword(s, "fused", "True"), b=lambda s: patch.around_forward(s, "c()"))
    made = patch.patch_for(f"{file}:build", ("a", "b"), chosen)
    assert made.missing == () and "+        with c():" in made.diff and "fused=True" in made.diff


@pytest.mark.parametrize("model", ["resnet9", "timm:convnext_tiny", "resnet50:d", "no/such/file.py:f", "json.nothing:x"])
def test_no_file_of_the_users_no_patch(model):
    assert patch.patch_for(model, ("a",), _probes(a=lambda s: [Edit(0, 0, "#")])) == patch.Patch(missing=("a",))


def test_a_file_of_a_module_is_found(monkeypatch, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "__init__.py").write_text("")
    (tmp_path / "mine" / "train.py").write_text(TRAIN)
    monkeypatch.chdir(tmp_path)
    assert patch.source_file("mine.train:build").resolve() == (tmp_path / "mine" / "train.py").resolve()


def test_the_example_is_patched_as_its_docstring_says():
    """Every cure that CPUs are known to profit from is written down, and the script stays Python."""
    from perfscope import probing
    found = probing.probes()
    made = patch.patch_for(f"{ROOT}/examples/mnist_train.py:workload", ("conv_not_channels_last", "no_mixed_precision", "optimizer_not_fused"), found)
    assert made.missing == ()
    assert "+    model = Net().to(memory_format=torch.channels_last)" in made.diff
    assert "fused=True" in made.diff and "torch.autocast(" in made.diff


def test_lines_behind_the_imports_come_once():
    s = Source(TRAIN)
    text = patch.rewrite(s, patch.after_imports(s, "\nset_up()\n"))
    assert text.startswith("import torch\nfrom torch import nn\n\nset_up()\n\nclass Net")
    assert patch.after_imports(Source(text), "\nset_up()\n") == [] and patch.after_imports(Source("x = 1\n"), "y\n") == []
    last = Source("import torch\nfrom os import (path,\n                sep)")
    assert patch.rewrite(last, patch.after_imports(last, "set_up()\n")) == last.text + "\nset_up()\n"
