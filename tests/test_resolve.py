"""From a name, a file or a value to a Workload; the user's errors are shown as theirs, and nonsense is named."""

import importlib
import sys
import textwrap

import pytest
import torch
from torch import nn

from perfscope.errors import EnvironmentError_, UsageError, WorkloadError
from perfscope.workload import Workload
from perfscope.workload.resolve import resolve

NET = """
import torch
from torch import nn
from perfscope.workload import Workload

def net():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.LazyLinear(5))

def model():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 7))

def full():
    m = nn.Linear(6, 2)
    return Workload(m, nn.CrossEntropyLoss(), torch.optim.SGD(m.parameters(), 0.1), (torch.randn(2, 6), torch.tensor([0, 1])), name="mine")

def four():
    m = nn.Linear(6, 2)
    return m, nn.CrossEntropyLoss(), lambda p: torch.optim.SGD(p, 0.1), lambda n: (torch.randn(n, 6), torch.zeros(n, dtype=torch.long))

def wants(width, *, depth): return nn.Linear(width, depth)
def defaults(width=3, *args, **kwargs): return nn.Linear(width, 2)
def fails(): return helper()
def helper(): raise ZeroDivisionError("my own mistake")
def leaves(): raise SystemExit(5)
def nothing(): return None
def text(): return "a model"
def three(): return nn.Linear(1, 1), None, None
READY = full()
MODULE = nn.Linear(2, 2)
NUMBER = 7
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder of the user's own to work in, forgotten afterwards."""
    path, modules = list(sys.path), set(sys.modules)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nets_7.py").write_text(NET)
    yield tmp_path
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if getattr(sys.modules[name], "__file__", None) and str(tmp_path) in str(sys.modules[name].__file__):
            del sys.modules[name]
    importlib.invalidate_caches()


def put(place, name, text):
    path = place / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(text))
    importlib.invalidate_caches()
    return path


@pytest.mark.parametrize("form", ["nets_7.py:", "./nets_7.py:", "nets_7:"])
def test_a_callable_in_a_file_or_module(place, form):
    w = resolve(f"{form}full")
    assert isinstance(w.model, nn.Linear) and w.name == "mine" and w.source == f"{form}full"
    assert resolve(f"{form}four").name == f"{form}four"
    assert resolve(f"{form}READY").name == "mine"
    assert isinstance(resolve(f"{form}defaults").model, nn.Linear)
    assert isinstance(resolve(f"{form}MODULE").model, nn.Linear)


def test_a_file_in_another_folder_finds_its_neighbours(place):
    put(place, "far/away/neighbour_7.py", "WIDTH = 3")
    put(place, "far/away/mine_7.py", "from neighbour_7 import WIDTH\nfrom torch import nn\ndef f(): return nn.Linear(WIDTH, 2)")
    assert resolve("far/away/mine_7.py:f").model.in_features == 3


def test_a_module_in_a_package(place):
    put(place, "pkg_7/__init__.py", "")
    put(place, "pkg_7/train.py", "from torch import nn\ndef f(): return nn.Linear(3, 2)")
    assert resolve("pkg_7.train:f").model.in_features == 3


def test_a_bare_model_is_given_what_a_step_needs(place):
    w = resolve("nets_7:model", (3, 8, 8), 7)
    x, y = w.batch(4)
    assert x.shape == (4, 3, 8, 8) and y.shape == (4,) and int(y.max()) < 7
    assert w.loss(w.model(x), y).dim() == 0 and (w.input_shape, w.classes) == ((3, 8, 8), 7)
    assert isinstance(w.optimizer(w.model.parameters()), torch.optim.Optimizer)
    inputs, target = next(iter(w.data(4)))
    assert inputs.shape == (4, 3, 8, 8) and target.shape == (4,)
    assert resolve("nets_7:model", (5,)).data is None, "there is no pipeline for what is no image"
    assert resolve("nets_7:model").input_shape == (3, 224, 224) and resolve("nets_7:model").classes == 1000


def test_values_instead_of_names():
    m = nn.Linear(6, 2)
    batch = (torch.randn(2, 6), torch.tensor([0, 1]))
    w = Workload(m, nn.CrossEntropyLoss(), torch.optim.SGD(m.parameters(), 0.1), batch)
    assert resolve(w).model is m and resolve(w).name == "Workload"
    assert resolve(lambda: w).model is m
    assert resolve((m, w.loss, w.optimizer, batch)).optimizer is w.optimizer
    assert resolve(m, (6,), 2).model is m and resolve(m, (6,), 2).name == "Linear"

    def my_training():
        return m
    assert resolve(my_training, (6,), 2).name == "my_training"


def test_built_in_models_and_variants():
    assert resolve("mnist_cnn").source == "built-in" and resolve("resnet50:c").name == "resnet50:c"
    for name, words, hint in (("resnet50:z", "no variant 'z' of resnet50", "resnet50:b"), ("nothing", "no model 'nothing'", "resnet9"),
                              ("", "no model ''", "resnet9"), ("hf:", "no model 'hf:'", "Built in"), ("nets.py", "no model 'nets.py'", "file.py:function")):
        with pytest.raises(UsageError, match=words) as caught:
            resolve(name)
        assert hint in caught.value.hint and not caught.value.detail
    for more in ({"input_shape": (3, 8, 8)}, {"classes": 3}):
        with pytest.raises(UsageError, match="built in"):
            resolve("mnist_cnn", **more)


@pytest.mark.parametrize("name, words, frames", [
    ("nets_7:wants", r"needs arguments \(width, depth\)", ()), ("nets_7.py:fails", "my own mistake", ("in fails", "in helper", "ZeroDivisionError")),
    ("nets_7:nothing", "gave a NoneType", ()), ("nets_7:text", "gave a str", ()), ("nets_7:three", "gave a tuple", ()),
    ("nets_7:NUMBER", "is a int, not a callable", ()), ("nets_7:leaves", r"failed: SystemExit: 5", ("in leaves",)),
    ("broken_7.py:f", "importing broken_7.py failed: SyntaxError", ("def f(:",)), ("raises_7:f", "importing raises_7 failed: KeyError", ("raises_7.py", "KeyError: 'no'")),
    ("quits_7.py:f", "importing quits_7.py failed: SystemExit", ("quits_7.py",)), ("lacks_7.py:f", "No module named 'nowhere_7'", ("import nowhere_7",)),
    ("bad_7.inner:f", "importing bad_7.inner failed: ImportError: not today", ("__init__.py",)), ("hungry_7.inner:f", "No module named 'nowhere_7'", ("__init__.py",)),
])
def test_errors_of_the_users_own_code_are_shown_as_theirs(place, name, words, frames):
    put(place, "broken_7.py", "def f(:\n    pass")
    put(place, "raises_7.py", "{}['no']")
    put(place, "quits_7.py", "import sys\nsys.exit(3)")
    put(place, "lacks_7.py", "import nowhere_7")
    put(place, "bad_7/__init__.py", "raise ImportError('not today')")
    put(place, "hungry_7/__init__.py", "import nowhere_7")
    with pytest.raises(WorkloadError, match=words) as caught:
        resolve(name)
    e = caught.value
    assert e.exit_code == 2 and e.hint
    assert all(f in e.detail for f in frames) and "perfscope/workload" not in e.detail


@pytest.mark.parametrize("name, words", [
    ("gone.py:f", "there is no file 'gone.py'"), ("folder.py:f", "there is no file"), ("a" * 5000 + ".py:f", "there is no file"),
    ("gone_7:f", "no module 'gone_7'"), ("gone_7.sub:f", "no module 'gone_7.sub'"), (".nets_7:f", "no module '.nets_7'"), (":f", "no module ''"),
    ("nets_7.sub:f", "no module 'nets_7.sub'"), ("nets_7:gone", "nets_7 has no 'gone'"), ("nets_7.py:full.x", "has no 'full.x'"),
])
def test_what_is_not_there(place, name, words):
    (place / "folder.py").mkdir()
    with pytest.raises(UsageError) as caught:
        resolve(name)
    assert words in caught.value.message and not isinstance(caught.value, WorkloadError)
    assert caught.value.hint and len(caught.value.hint) < 500


def test_what_a_module_has_instead_is_its_own(place):
    with pytest.raises(UsageError) as caught:
        resolve("nets_7:gone")
    assert "full" in caught.value.hint and "Workload" not in caught.value.hint.split(", ")


@pytest.mark.parametrize("field, value", [("model", None), ("model", nn.Linear), ("loss", "mse"), ("optimizer", 0.1), ("batch", 32),
                                          ("batch", (1, 2, 3)), ("data", [1, 2])])
def test_a_workload_with_nonsense_in_it(field, value):
    from dataclasses import replace

    m = nn.Linear(6, 2)
    good = Workload(m, nn.CrossEntropyLoss(), lambda p: torch.optim.SGD(p, 0.1), (torch.randn(2, 6), torch.tensor([0, 1])))
    assert resolve(good).model is m
    with pytest.raises(WorkloadError, match=f"the {field} of") as caught:
        resolve(replace(good, **{field: value}))
    assert "It has to be" in caught.value.hint


@pytest.mark.parametrize("library", ["timm", "torchvision", "hf"])
def test_a_library_that_is_not_installed(monkeypatch, library):
    package = {"hf": "transformers"}.get(library, library)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(EnvironmentError_, match=package) as caught:
        resolve(f"{library}:anything")
    assert caught.value.hint == f"pip install {package}" and caught.value.exit_code == 3


def test_hf_from_the_configuration_alone():
    pytest.importorskip("transformers")
    with pytest.raises(UsageError, match="no model type 'nobody/nothing'"):
        resolve("hf:nobody/nothing")
