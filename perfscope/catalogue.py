"""What the probes' files say of themselves, read without importing them: for `perfscope list probes` and the documentation.

Standard library only: it works without torch, and a probe that cannot be imported can still be read.
"""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path

from perfscope import registry
from perfscope.errors import UsageError

ENTRY_POINTS = "perfscope.probes"
DEVICES = ("cpu", "cuda")
OTHER = "Other"
#: First and last number of the catalogue of slow paths (SLOW_PATHS.md) -> what they are about, in its order.
GROUPS = {(1, 10): "Norm and layout", (11, 17): "Convolution choice", (18, 22): "Precision", (23, 27): "Attention and transformers",
          (28, 33): "Optimizer and gradients", (34, 41): "Host and launches", (42, 47): "Data", (48, 49): "Memory", (50, 57): "Distributed training"}


@dataclass(frozen=True)
class Entry:
    """One probe as its file describes it. `text`: heading -> text; the first line under ""."""

    name: str
    path: Path
    text: dict[str, str]
    uses: tuple[str, ...] = ()
    devices: tuple[str, ...] = DEVICES
    cures: tuple[str, ...] = ()                 # "" for the only one; () for a hint
    costly: tuple[str, ...] | bool = False
    code: str = ""
    numbers: tuple[str, ...] = ()               # of the catalogue: "S05"
    plant: str = ""                             # the source of its plant, or of its examples
    patches: bool = False                       # whether it can write the cure into the user's source

    @property
    def group(self) -> str:
        """What it is about, by its first number."""
        n = int(self.numbers[0][1:]) if self.numbers else 0
        return next((title for (first, last), title in GROUPS.items() if first <= n <= last), OTHER)

    @property
    def kind(self) -> str:
        """"cure", "3 cures" or "hint"."""
        return "hint" if not self.cures else "cure" if len(self.cures) == 1 else f"{len(self.cures)} cures"


def entries(folders=()) -> list[Entry]:
    """Every probe: the built-in ones, those of installed packages, those of `folders`. UsageError for a folder that is not there."""
    paths = {name: registry.folder("probes") / f"{name}.py" for name in registry.names("probes")}
    paths |= installed()
    for folder in folders:
        if not Path(folder).is_dir():
            raise UsageError(f"there is no folder {str(folder)!r} (--probes)", "Give a folder with one file per probe; `perfscope new probe NAME` makes one.")
        paths |= {p.stem: p for p in sorted(Path(folder).glob("*.py")) if not p.stem.startswith("_")}
    return [read(name, path) for name, path in paths.items()]


def installed() -> dict[str, Path]:
    """Name -> file of the probes that installed packages bring (entry points)."""
    found = {}
    for point in importlib.metadata.entry_points(group=ENTRY_POINTS):
        try:
            spec = importlib.util.find_spec(point.module)
        except (ImportError, ValueError):
            continue
        if spec is not None and spec.origin:
            found[point.name] = Path(spec.origin)
    return found


def read(name: str, path: Path) -> Entry:
    """One probe's file. UsageError if it is not Python."""
    try:
        source = path.read_text(encoding="utf-8")
        tree = ast.parse(source)
    except (OSError, SyntaxError, UnicodeDecodeError, ValueError) as e:
        raise UsageError(f"the probe {path} cannot be read: {e}", "`perfscope new probe NAME` makes one that works.") from None
    functions = {n.name: n for n in tree.body if isinstance(n, ast.FunctionDef)}
    values = {t.id: n.value for n in tree.body if isinstance(n, ast.Assign) for t in n.targets if isinstance(t, ast.Name)}
    text = headings(ast.get_docstring(tree) or "")
    code, shown = literal(values.get("CODE"), ""), functions.get("plant") or functions.get("examples")
    return Entry(name, path, text, tuple(literal(values.get("USES"), ())), tuple(literal(values.get("DEVICES"), DEVICES)),
                 cures(functions, values), literal(values.get("COSTLY"), False), code if isinstance(code, str) else "",
                 tuple(dict.fromkeys(re.findall(r"\bS\d\d\b", text.get("References", "")))),
                 (ast.get_source_segment(source, shown) or "") if shown else "", "edit" in functions)


def cures(functions: dict, values: dict) -> tuple[str, ...]:
    """The names of the candidates that CURES writes out, ("",) for a function `fix`, () for neither."""
    table = values.get("CURES")
    if isinstance(table, ast.Dict):
        return tuple(k.value for k in table.keys if isinstance(k, ast.Constant))
    return ("",) if "fix" in functions or table is not None or "fix" in values else ()


def literal(node, otherwise):
    """The value of a constant that is written out; `otherwise` if it is not."""
    try:
        return ast.literal_eval(node) if node is not None else otherwise
    except (ValueError, TypeError, SyntaxError):
        return otherwise


def headings(doc: str) -> dict[str, str]:
    """A probe's docstring by heading; the first line under "", the text between it and the first heading under "More"."""
    lines = doc.splitlines()
    out, heading = {"": lines[0] if lines else "", "More": ""}, "More"
    for line in lines[1:]:
        if line.startswith("## "):
            heading = line[3:].strip()
            out[heading] = ""
        else:
            out[heading] = f"{out[heading]}\n{line}".strip("\n")
    return {k: v for k, v in out.items() if v or k != "More"}
