"""For all tests: what one of them imports from its own temporary folder, the next one does not find."""

import importlib
import sys

import pytest


@pytest.fixture(autouse=True)
def modules_of_a_test_go_with_it(tmp_path_factory):
    before = set(sys.modules)
    yield
    folder = str(tmp_path_factory.getbasetemp())
    for name in set(sys.modules) - before:
        if (getattr(sys.modules[name], "__file__", None) or "").startswith(folder):
            del sys.modules[name]
    importlib.invalidate_caches()
