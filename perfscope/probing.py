"""Finds probes (built-in, a folder of your own, an entry point), checks their shape, runs them, and applies their cures."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import inspect
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Callable, Iterable

from perfscope import registry
from perfscope.errors import UsageError
from perfscope.finding import Finding
from perfscope.probe import HEADINGS, LAYERS, Evidence

if TYPE_CHECKING:
    from perfscope.workload import Workload

ENTRY_POINTS = "perfscope.probes"
SEPARATOR = ":"             # between a probe and its candidate in the name of a cure


def probes(folders: Iterable = ()) -> dict[str, ModuleType]:
    """Every probe by name: the built-in ones, those of installed packages (entry points), those of `folders`.

    Raises UsageError for a folder that is not there, a name that is taken, or a file that is no probe.
    """
    found = {name: registry.load("probes", name) for name in registry.names("probes")}
    for point in importlib.metadata.entry_points(group=ENTRY_POINTS):
        _put(found, point.name, checked(_loaded(point.load, point.name), point.name, point.value))
    for folder in folders:
        folder = Path(folder)
        if not folder.is_dir():
            raise UsageError(f"there is no folder {str(folder)!r} (--probes)", "Give a folder with one file per probe; `perfscope new probe NAME` makes one.")
        files = sorted(p for p in folder.glob("*.py") if not p.stem.startswith("_"))
        if not files:
            raise UsageError(f"there is no probe in {folder} (--probes)", "`perfscope new probe NAME` makes one.")
        for file in files:
            _put(found, file.stem, checked(_loaded(lambda file=file: _from_file(file), str(file)), file.stem, str(file)))
    return found


def _put(found: dict, name: str, module: ModuleType) -> None:
    if name in found:
        raise UsageError(f"there are two probes named {name!r}", "Give yours another name.")
    found[name] = module


def _from_file(file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"perfscope_probes_{file.stem}", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _loaded(load: Callable[[], ModuleType], where: str) -> ModuleType:
    from perfscope.workload.step import traceback_text
    try:
        return load()
    except (Exception, SystemExit) as e:
        raise UsageError(f"the probe {where} cannot be loaded: {type(e).__name__}: {e}", "This is the probe's own error.", traceback_text(e)) from None


def checked(module: ModuleType, name: str, where: str) -> ModuleType:
    """The module, or UsageError with all that keeps it from being a probe."""
    wrong = problems(module)
    if wrong:
        raise UsageError(f"{where} is not a probe: {'; '.join(wrong)}",
                         "perfscope.probe says what a probe has; `perfscope new probe NAME` makes one that works.")
    return module


def problems(module: ModuleType) -> list[str]:
    """What a probe's file lacks; empty if it is one. Its behaviour is checked by the contract test."""
    out = []
    doc = inspect.getdoc(module) or ""
    missing = [h for h in HEADINGS if f"## {h}" not in doc]
    out += [f"its docstring lacks the heading{'s' * (len(missing) > 1)} {', '.join(missing)}"] if missing else []
    uses = getattr(module, "USES", None)
    if not isinstance(uses, tuple) or not uses or not set(uses) <= set(LAYERS):
        out.append(f"USES is {uses!r}, not a tuple of {', '.join(LAYERS)}")
    for function, count in (("detect", 1), ("fix", 1), ("plant", 1), ("healthy", 1), ("examples", 0)):
        value = getattr(module, function, None)
        if value is None and function != "detect":
            continue
        if not callable(value) or _needed(value) != count:
            out.append(f"{function} has to be a function of {count} argument{'s' * (count != 1)}")
    if not hasattr(module, "plant") and not hasattr(module, "examples"):
        out.append("it has neither plant nor examples: nothing shows that it can fire")
    return out


def _needed(function) -> int:
    try:
        kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        return sum(p.default is p.empty and p.kind in kinds for p in inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return -1


def code_of(module: ModuleType, device: str) -> str:
    """The lines that a probe says to add, with DEVICE in them replaced by "cpu" or "cuda"."""
    return getattr(module, "CODE", "").replace("DEVICE", device)


def summary(module: ModuleType) -> str:
    """The first line of a probe's docstring."""
    return (inspect.getdoc(module) or "").partition("\n")[0]


# ---------------------------------------------------------------- running them

def detect(found: dict[str, ModuleType], evidence: Evidence) -> tuple[list[Finding], dict[str, str], dict[str, str]]:
    """(findings, probe -> its own error, probe -> why it could not look). One that raises does not stop the others."""
    findings, failed, skipped = [], {}, {}
    for name, module in found.items():
        there = [layer for layer in module.USES if evidence.has(layer)]
        devices = getattr(module, "DEVICES", ("cpu", "cuda"))
        if evidence.config.device not in devices:
            skipped[name] = f"not a disease of {evidence.config.device}"
        elif not there:
            skipped[name] = f"needs {' or '.join(module.USES)}, which this evidence lacks"
        else:
            try:
                seen = list(module.detect(evidence))
            except Exception as e:
                failed[name] = f"{type(e).__name__}: {e}"
                continue
            findings += [replace(f, probe=name, curable=bool(cures(module)) and not f.extra.get("hint"), code=f.code or code_of(module, evidence.config.device))
                         for f in seen]
    return findings, failed, skipped


# ---------------------------------------------------------------- cures

def cures(module: ModuleType) -> dict[str, Callable[[Workload], Workload]]:
    """The candidates of a probe by name; {"": fix} for the usual one; {} for a hint."""
    if hasattr(module, "CURES"):
        return dict(module.CURES)
    return {"": module.fix} if hasattr(module, "fix") else {}


def costly(module: ModuleType, cure: str) -> bool:
    """Whether trying this cure ("candidate" or "probe:candidate") takes long."""
    those = getattr(module, "COSTLY", False)
    return those if isinstance(those, bool) else cure.rpartition(SEPARATOR)[2] in those


def about_heap(cures_: Iterable[str], found: dict[str, ModuleType]) -> bool:
    """Whether one of these cures is about what malloc does (HEAP): then no other hand may be laid on it."""
    return any(getattr(found[c.partition(SEPARATOR)[0]], "HEAP", False) for c in cures_)


def cure_names(name: str, module: ModuleType) -> list[str]:
    """"probe", or "probe:candidate" for each of several."""
    return [f"{name}{SEPARATOR}{c}" if c else name for c in cures(module)]


def apply(workload: Workload, names: Iterable[str], found: dict[str, ModuleType] | None = None) -> Workload:
    """The workload with these cures applied in order, "probe" or "probe:candidate"; it is not changed itself.

    Raises UsageError for a cure that there is not.
    """
    found = probes() if found is None else found
    for cure in names:
        probe, _, candidate = cure.partition(SEPARATOR)
        if probe not in found:
            raise UsageError(f"there is no probe {probe!r}", f"Known: {', '.join(found)}")
        known = cures(found[probe])
        if candidate not in known:
            names_ = ", ".join(cure_names(probe, found[probe])) or "none: it is a hint"
            raise UsageError(f"the probe {probe} has no cure {cure!r}", f"It has: {names_}")
        workload = known[candidate](workload)
    return workload


def text_of(name: str, module: ModuleType) -> dict[str, str]:
    """A probe's docstring by heading; the first line under ""."""
    lines = (inspect.getdoc(module) or "").splitlines()
    out, heading = {"": lines[0] if lines else ""}, None
    for line in lines[1:]:
        if line.startswith("## "):
            title = next((h for h in HEADINGS if line[3:].startswith(h)), line[3:].strip())
            heading, rest = title, line[3 + len(title):].strip()
            out[heading] = rest
        elif heading:
            out[heading] = f"{out[heading]}\n{line}".strip("\n")
    return out
