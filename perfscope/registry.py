"""One file is one plug-in: finds probes, models, recipes and report sections by their files.

Nothing is registered by hand: a file `<name>.py` in the right folder is the plug-in `<name>`; a name that
starts with an underscore is not one. `probes/` and `reports/` stand at the top level of a checkout (and of an
editable install) and inside the package in a wheel; both are looked at, so neither needs a generic top-level
package in anyone's site-packages.
"""

from __future__ import annotations

import importlib.util
import sys
from functools import lru_cache
from pathlib import Path
from types import ModuleType

from perfscope.errors import UsageError

PACKAGE = Path(__file__).parent


def folder(kind: str) -> Path:
    """The folder with the plug-ins of a kind: "models", "recipes", "probes" or "reports"."""
    inside = PACKAGE / kind
    return inside if inside.is_dir() else PACKAGE.parent / kind


def names(kind: str) -> list[str]:
    """The names of all plug-ins of a kind, sorted."""
    return sorted(p.stem for p in folder(kind).glob("*.py") if not p.stem.startswith("_"))


@lru_cache(maxsize=None)
def load(kind: str, name: str) -> ModuleType:
    """The module of one plug-in. Raises UsageError with the known names if there is none."""
    path = folder(kind) / f"{name}.py"
    if name.startswith("_") or not path.is_file():
        raise UsageError(f"there is no {kind.rstrip('s')} named {name!r}", f"Known: {', '.join(names(kind))}")
    qualified = f"perfscope.{kind}.{name}"
    spec = importlib.util.spec_from_file_location(qualified, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[qualified] = module
    spec.loader.exec_module(module)
    return module


def summary(kind: str, name: str) -> str:
    """The first line of a plug-in's docstring, without importing it."""
    import ast

    doc = ast.get_docstring(ast.parse((folder(kind) / f"{name}.py").read_text(encoding="utf-8"))) or ""
    return doc.splitlines()[0] if doc else ""
