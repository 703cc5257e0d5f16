"""perfscope list: what there is to choose from. Reads docstrings; imports no torch and no plug-in, but for --check."""

from __future__ import annotations

import ast
import json
import sys
from typing import Annotated

import typer

from perfscope.cli import complain
from perfscope.cli import options as o
from perfscope.errors import EXIT_OK, EXIT_REGRESSION, UsageError

What = Annotated[str, typer.Argument(metavar="WHAT", help="models, recipes, tricks, parts, probes, sections, dtypes or all.")]
Json = Annotated[bool, typer.Option("--json", help="As JSON.")]
Check = Annotated[bool, typer.Option("--check", help="Hold the probes (those of --probes, if given) to their contract. Exit code 1 if one breaks it.")]

PARTS = {
    "base": "convolutions and matmuls, and whatever no other part takes away",
    "norm": "batch, layer, group, instance and RMS norm",
    "activation": "ReLU, GELU, SiLU and their like, gates included",
    "attention": "scaled dot-product attention and softmax; the projections stay in the base",
    "dropout": "dropout and stochastic depth",
    "residual": "additions of a skip connection; only with --parts",
    "pooling": "max and average pooling; only with --parts",
    "embedding": "looking up embeddings; only with --parts",
    "loss": "the loss and its gradient; only with --parts",
    "optimizer": "the optimizer's step",
    "data": "the real input pipeline instead of one batch that is loaded already: exposed loading time",
    "communication": "exposed all-reduce of several ranks (torchrun)",
}
DTYPES = {
    "float32": "single precision",
    "half": "model.half(), norms included: the 2018 default that falls off cuDNN",
    "bfloat16": "model.bfloat16(), norms included",
    "amp-half": "autocast to float16 with gradient scaling; weights stay float32",
    "amp-bfloat16": "autocast to bfloat16; weights stay float32",
}
OTHERS = {"timm:NAME": "a model of timm", "torchvision:NAME": "a model of torchvision", "hf:NAME": "a model type of transformers, random weights",
          "package.module:function": "your own: a function that returns a model or a perfscope.Workload", "path/file.py:function": "the same, from a file"}


def command(what: What = "all", probes: o.Probes = None, check: Check = False, as_json: Json = False, quiet: o.Quiet = False) -> int:
    """List the built-in models, the recipes and tricks of a speedrun, the parts of a step, the probes, the sections of a report, or the dtypes.

    A probe's contract: silent on a healthy step, fires on its own plant and alone, and its cure takes the plant away.
    """
    folders = tuple(probes or ())
    if (check or folders) and what not in ("probes", "all"):
        raise UsageError(f"{'--check' if check else '--probes'} is about probes", "perfscope list probes")
    if check:
        return checked(folders, as_json, quiet)
    tables = {"models": models, "recipes": recipes, "tricks": tricks, "parts": lambda: PARTS, "probes": lambda: described(folders),
              "sections": sections, "dtypes": lambda: DTYPES}
    if what not in (*tables, "all"):
        raise UsageError(f"there is nothing to list under {what!r}", f"Known: {', '.join(tables)}, all")
    found = {name: make() for name, make in tables.items() if what in (name, "all")}
    if as_json:
        json.dump(found, sys.stdout, indent=1)
        print()
        return EXIT_OK
    from perfscope import registry

    t = registry.load("reports", "terminal")
    for i, (name, rows) in enumerate(found.items()):
        print(f"{chr(10) if i else ''}{name}")
        lead = min(24, max(map(len, rows)))
        for key, text in rows.items():
            for line in t.wrap(text, f"  {key:{lead}}  ", " " * (lead + 4)):
                print(line)
    if what in ("models", "all"):
        print("\nnext: perfscope breakdown --model resnet9")
    elif what == "probes":
        print("\nnext: perfscope diagnose --model resnet9")
    return EXIT_OK


def described(folders=()) -> dict[str, str]:
    """Every probe: its first line; its numbers in the catalogue, its devices, and whether it has a cure."""
    from perfscope import catalogue

    facts = lambda e: "; ".join(filter(None, [", ".join(e.numbers), " and ".join(e.devices), e.kind]))  # noqa: E731
    return {e.name: f"{e.text.get('', '')} ({facts(e)})" for e in catalogue.entries(folders)}


def checked(folders, as_json: bool, quiet: bool) -> int:
    """Holds probes to their contract, the private ones if there are any, with all others as witnesses. Prints what is wrong."""
    from perfscope import probing

    everyone = probing.probes(folders)
    mine = [n for n in everyone if n not in probing.probes()] if folders else list(everyone)
    from perfscope.contract import check

    wrong = {}
    for i, name in enumerate(mine):
        if not quiet:
            print(f"  {i + 1} of {len(mine)}: {name}", file=sys.stderr, flush=True)
        try:
            wrong[name] = check(name, everyone[name], everyone).wrong
        except Exception as e:                  # its plant, its examples or its cure: the probe's own error
            wrong[name] = (f"cannot be tried: {type(e).__name__}: {e}",)
    bad = {n: w for n, w in wrong.items() if w}
    if as_json:
        json.dump({n: list(w) for n, w in wrong.items()}, sys.stdout, indent=1)
        print()
    else:
        from perfscope import registry
        t = registry.load("reports", "terminal")
        for name, lines in bad.items():
            print("\n".join([name, *(line for text in lines for line in t.wrap(text, "  ", "    "))]))
        print(f"{len(mine) - len(bad)} of {len(mine)} probes keep their contract")
    if bad:
        complain(f"the contract is broken by {', '.join(bad)}", "perfscope.contract says what a probe has to keep.")
    return EXIT_REGRESSION if bad else EXIT_OK


def models() -> dict[str, str]:
    """Every built-in model and its variants, and the other ways to name one."""
    from perfscope import registry

    rows = {}
    for name in registry.names("models"):
        text = registry.summary("models", name)
        rows[name] = text
        rows.update({f"{name}:{v}": f"variant {v} of {name}" for v in variants(name) if v})
    return {**rows, **OTHERS}


def recipes() -> dict[str, str]:
    """Every recipe of a speedrun."""
    from perfscope import registry

    return {name: registry.summary("recipes", name) for name in registry.names("recipes")}


def tricks() -> dict[str, str]:
    """Every trick with its definition and source."""
    from perfscope.tricks import TRICKS

    return {t.name: f"{t.definition} ({t.source})" for t in TRICKS.values()}


def variants(name: str) -> tuple[str, ...]:
    """The VARIANTS of a model's file, without importing it; () if they are not written out there."""
    from perfscope import registry

    tree = ast.parse((registry.folder("models") / f"{name}.py").read_text(encoding="utf-8"))
    for node in tree.body:
        target = node.target if isinstance(node, ast.AnnAssign) else node.targets[0] if isinstance(node, ast.Assign) else None
        if isinstance(target, ast.Name) and target.id == "VARIANTS":
            try:
                return tuple(ast.literal_eval(node.value))
            except (ValueError, TypeError):
                return ()
    return ()


def sections() -> dict[str, str]:
    """Every section and renderer of a report."""
    from perfscope import registry

    return {name: registry.summary("reports", name) for name in registry.names("reports")}
