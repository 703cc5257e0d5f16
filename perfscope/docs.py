"""Writes the documentation of the probes from their own docstrings: `python -m perfscope.docs [FOLDER]`, or `make docs`.

docs/probes/NAME.md, one page per built-in probe, and docs/probes/README.md, the index by group. Standard library only;
tests/test_docs.py holds the committed pages against what this gives.
"""

from __future__ import annotations

import sys
from pathlib import Path

from perfscope import catalogue, registry
from perfscope.catalogue import Entry

FOLDER = registry.PACKAGE.parent / "docs" / "probes"
NOTE = "<!-- Generated from {source} by `make docs`: change it there. -->"
LAYERS = {"config": "settings of the process and of the workload", "model": "the modules and what goes through them",
          "ops": "the operators of one step", "trace": "a profiler trace, also somebody else's"}
DEVICES = {("cpu",): "CPU only", ("cuda",): "GPU only", ("cpu", "cuda"): "CPU and GPU"}


def pages() -> dict[str, str]:
    """File name -> Markdown of every page."""
    found = [e for e in catalogue.entries() if e.path.parent == registry.folder("probes")]
    return {"README.md": index(found), **{f"{e.name}.md": page(e) for e in found}}


def page(entry: Entry) -> str:
    """The page of one probe: its docstring, then what it needs and how it is tried."""
    text = dict(entry.text)
    first, more = text.pop("", ""), text.pop("More", "")
    parts = [NOTE.format(source=f"probes/{entry.name}.py"), f"# {entry.name}", first, more, *(f"## {title}\n\n{body}" for title, body in text.items())]
    parts += ["## The code", fence(entry.code)] if entry.code else []
    parts += ["## How perfscope treats it", facts(entry)]
    if entry.plant:
        said = "The disease, made on purpose: every probe is tested on every plant." if "def plant" in entry.plant else \
               "Evidence made by hand, ill and healthy: a CPU cannot show this disease."
        parts += ["## Planted case", said, fence(entry.plant)]
    return "\n\n".join(p for p in parts if p) + "\n"


def facts(entry: Entry) -> str:
    """What it works from, where the disease exists, what `perfscope fix` does about it."""
    devices = DEVICES.get(tuple(sorted(entry.devices)), ", ".join(entry.devices))
    cures = ", ".join(f"`{entry.name}:{c}`" if c else f"`{entry.name}`" for c in entry.cures)
    slow = "all" if entry.costly is True else ", ".join(f"`{c}`" for c in entry.costly or ())
    rows = [("evidence", "; or ".join(f"{u} ({LAYERS[u]})" if u in LAYERS else u for u in entry.uses)), ("devices", devices),
            ("cure", f"`perfscope fix` tries {cures}" if cures else "none that perfscope can apply: it is a hint"),
            ("too slow for the quick look of `perfscope diagnose`", slow), ("patch", "it can write its cure into your source" if entry.patches else ""),
            ("catalogue", ", ".join(entry.numbers))]
    return "\n".join(f"- {what}: {value}" for what, value in rows if value)


def index(entries: list[Entry]) -> str:
    """Every probe by group, with its first line."""
    said = (f"perfscope has {len(entries)} probes. Each is one file in `probes/`: how a slow path is seen, why it is slow, its cure where there is one, "
            "and the disease planted on purpose, on which it is tested.\n\n    perfscope diagnose --model resnet9          asks them all\n"
            "    perfscope fix --model resnet9               applies the cures and proves them\n"
            "    perfscope new probe NAME                    one of your own")
    out = [NOTE.format(source="probes/*.py"), "# Probes", said]
    for group in [*catalogue.GROUPS.values(), catalogue.OTHER]:
        mine = sorted((e for e in entries if e.group == group), key=lambda e: (e.numbers or ("S99",), e.name))
        rows = [f"| [{e.name}]({e.name}.md) | {first(e)} | {DEVICES.get(tuple(sorted(e.devices)), '')} | {e.kind} |" for e in mine]
        out += [f"## {group}", "\n".join(["| probe | slow path | devices | cure |", "|:--|:--|:--|:--|", *rows])] if rows else []
    return "\n\n".join(out) + "\n"


def first(entry: Entry) -> str:
    """The first line, for a cell of a table."""
    return entry.text.get("", "").replace("|", "\\|")


def fence(code: str) -> str:
    """Python in a code block that it cannot end by itself."""
    mark = "````" if "```" in code else "```"
    return f"{mark}python\n{code.rstrip()}\n{mark}"


def write(folder: Path = FOLDER) -> list[Path]:
    """Writes every page, removes those of probes that are gone, and gives their paths."""
    made = pages()
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.md"):
        if old.name not in made and old.read_text(encoding="utf-8").startswith(NOTE.partition("{")[0]):
            old.unlink()
    for name, text in made.items():
        (folder / name).write_text(text, encoding="utf-8")
    return [folder / name for name in made]


def main() -> None:
    """Writes into the folder given, or docs/probes."""
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)


if __name__ == "__main__":
    main()
