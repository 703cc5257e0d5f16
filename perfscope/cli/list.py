"""perfscope list: what there is to choose from. Reads docstrings; imports no torch and no plug-in."""

from __future__ import annotations

import ast
import json
import sys
from typing import Annotated

import typer

from perfscope.errors import EXIT_OK, UsageError

What = Annotated[str, typer.Argument(metavar="WHAT", help="models, recipes, tricks, parts, sections, dtypes or all.")]
Json = Annotated[bool, typer.Option("--json", help="As JSON.")]

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


def command(what: What = "all", as_json: Json = False) -> int:
    """List the built-in models, the recipes and tricks of a speedrun, the parts of a step, the sections of a report, or the dtypes."""
    tables = {"models": models, "recipes": recipes, "tricks": tricks, "parts": lambda: PARTS, "sections": sections, "dtypes": lambda: DTYPES}
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
    return EXIT_OK


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
