"""perfscope new: a probe of your own that works from the start."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from perfscope import registry
from perfscope.errors import EXIT_OK, EnvironmentError_, UsageError

application = typer.Typer(add_completion=False, rich_markup_mode=None, no_args_is_help=True, help="Start a plug-in of your own: perfscope new probe NAME.")

Name = Annotated[str, typer.Argument(metavar="NAME", help="Small letters, digits and underscores, e.g. my_slow_path.")]
Folder = Annotated[str, typer.Option(metavar="DIR", help="Where the file goes. Give the same to --probes of diagnose, fix and list.")]

SKELETON = '''\
"""Dropout layers with p = 0: calls that do nothing.

(This is a whole, working probe. Put your own slow path in its place, heading by heading, and try it with
`perfscope list probes --check --probes DIR`. The interface is described in perfscope/probe.py.)

## What it sees
Modules of class Dropout that are called in training with p = 0.

## Why it is slow
Each is a Python call per step, and torch.compile has to look at it.

## Cure
Take them out of the model: nn.Identity in their place.

## Not for
Models that raise p later in training.

## References
torch.nn.Dropout in PyTorch's documentation.
"""

from torch import nn

from perfscope.probe import Finding, Place, add

USES = ("model",)                       # the layers of evidence that it works from: config, model, ops, trace
DEVICES = ("cpu", "cuda")               # where the disease exists
CODE = "model.dropout = nn.Identity()   # instead of nn.Dropout(0)"


def detect(evidence):
    """Silent if all is well; otherwise one Finding for the cause, with every place where it shows."""
    idle = [call for call in evidence.of("Dropout") if call.training and call.args.get("p") == 0]
    if idle:
        places = tuple(Place(call.path, f"p = 0, input {call.inputs[0].shape if call.inputs else ()}") for call in idle)
        yield Finding("", f"{len(idle)} dropout layers do nothing", places, "replace them by nn.Identity", evidence={"layers": len(idle)})


def without(model):
    """The model with Identity in place of its idle dropout layers."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Dropout) and child.p == 0:
                setattr(parent, name, nn.Identity())
    return model


def fix(workload):
    """The cure, on a workload that stays as it is: what it gives is another. Leave `fix` out if there is none."""
    return add(workload, on_model=[without])


def plant(workload):
    """The disease, made on purpose on a healthy workload: what the contract tries the probe on."""
    return add(workload, on_model=[lambda model: nn.Sequential(model, nn.Dropout(0.0))])
'''


@application.callback()
def group() -> None:
    """Start a plug-in of your own: perfscope new probe NAME."""


@application.command("probe")
def probe(name: Name, folder: Folder = "probes") -> int:
    """Write the skeleton of a probe: a whole one, which keeps its contract, to put your own slow path into. Overwrites nothing."""
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name, re.ASCII) or len(name) > 60:
        raise UsageError(f"{name!r} is no name for a probe", "Small letters, digits and underscores, a letter first: my_slow_path")
    place, path = Path(folder), Path(folder) / f"{name}.py"
    if path.exists():
        raise UsageError(f"{path} is there already", "Give another name, or another --folder.")
    if name in registry.names("probes"):
        raise UsageError(f"perfscope has a probe named {name!r}", "Give yours another name: two of one name cannot be told apart.")
    try:
        place.mkdir(parents=True, exist_ok=True)
        with open(path, "x", encoding="utf-8") as f:
            f.write(SKELETON)
    except OSError as e:
        raise EnvironmentError_(f"cannot write {path}: {e.strerror or e}", "Give another folder with --folder.") from e
    print(path)
    print(f"next: perfscope list probes --check --probes {folder}")
    return EXIT_OK
