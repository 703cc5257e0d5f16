"""One file is one plug-in: what is found, where, and what an unknown name says."""

import sys

import pytest

from perfscope import registry
from perfscope.errors import UsageError


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    """A package folder of its own, with plug-ins of the kind "gadgets" inside and "widgets" beside it."""
    package = tmp_path / "package"
    (package / "gadgets").mkdir(parents=True)
    (tmp_path / "widgets").mkdir()
    monkeypatch.setattr(registry, "PACKAGE", package)
    registry.load.cache_clear()
    yield package
    registry.load.cache_clear()
    for name in [n for n in sys.modules if n.startswith(("perfscope.gadgets.", "perfscope.widgets."))]:
        del sys.modules[name]


def test_a_file_is_a_plug_in_by_being_there(shelf):
    assert registry.names("gadgets") == []
    for name in ("zeta", "alpha", "_hidden"):
        (shelf / "gadgets" / f"{name}.py").write_text(f'"""What {name} does.\n\nMore."""\nVALUE = {name!r}\n')
    (shelf / "gadgets" / "notes.txt").write_text("no plug-in")
    assert registry.names("gadgets") == ["alpha", "zeta"]
    assert registry.load("gadgets", "alpha").VALUE == "alpha"
    assert registry.summary("gadgets", "alpha") == "What alpha does."


def test_a_folder_beside_the_package_counts_where_there_is_none_inside(shelf):
    (shelf.parent / "widgets" / "one.py").write_text("VALUE = 1\n")
    assert registry.names("widgets") == ["one"] and registry.load("widgets", "one").VALUE == 1
    (shelf / "widgets").mkdir()
    assert registry.names("widgets") == []


def test_a_plug_in_is_loaded_once_and_its_summary_without_running_it(shelf):
    (shelf / "gadgets" / "bomb.py").write_text('"""Ticks."""\nraise RuntimeError("ran")\n')
    assert registry.summary("gadgets", "bomb") == "Ticks."
    (shelf / "gadgets" / "once.py").write_text("VALUE = object()\n")
    assert registry.load("gadgets", "once") is registry.load("gadgets", "once")
    (shelf / "gadgets" / "bare.py").write_text("x = 1\n")
    assert registry.summary("gadgets", "bare") == ""


@pytest.mark.parametrize("name", ["nothing", "_hidden", ""])
def test_an_unknown_name_lists_the_known_ones(shelf, name):
    for file in ("alpha", "_hidden"):
        (shelf / "gadgets" / f"{file}.py").write_text("")
    with pytest.raises(UsageError) as caught:
        registry.load("gadgets", name)
    assert "no gadget named" in caught.value.message and caught.value.hint == "Known: alpha"


def test_the_shipped_plug_ins():
    assert {"resnet9", "resnet18_cifar", "resnet50", "mnist_cnn", "vit", "gpt2"} <= set(registry.names("models"))
    assert {"html", "terminal", "markdown"} <= set(registry.names("reports"))
    for kind in ("models", "reports"):
        for name in registry.names(kind):
            assert registry.summary(kind, name), f"{kind}/{name}.py has no docstring"
