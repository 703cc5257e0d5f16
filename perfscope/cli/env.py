"""perfscope env: the machine, the versions, the switches, and what is missing and what that costs."""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec
from typing import Annotated, Any

import typer

from perfscope.cli import options as o
from perfscope.errors import EXIT_OK

Json = Annotated[bool, typer.Option("--json", help="As JSON.")]

#: Module -> (what it costs to be without it, how to get it). `torch` and `cuda` are looked at separately.
OPTIONAL = {
    "plotly": ("no HTML report; terminal and Markdown reports work", "pip install 'plotly>=6'"),
    "rich": ("no live progress bar", "pip install rich"),
    "numpy": ("no input pipeline, no MNIST and CIFAR-10", "pip install numpy"),
    "timm": ("no --model timm:NAME", "pip install timm"),
    "transformers": ("no --model hf:NAME", "pip install transformers"),
    "torchvision": ("no --model torchvision:NAME; the built-in models do not need it", "pip install torchvision"),
    "tensorboard": ("traces cannot be shown in TensorBoard", "pip install 'tensorboard>=2.21'"),
}


def command(device: o.Device = "auto", as_json: Json = False) -> int:
    """Show this machine as a record would: hardware, versions, switches, what is missing and what that costs.

    Hosts and GPUs appear only as hashes, so that the output can be shared.
    """
    facts = gather(device)
    if as_json:
        json.dump(facts, sys.stdout, indent=1, allow_nan=False)
        print()
    else:
        print("\n".join(lines(facts)))
    return EXIT_OK


def gather(device: str = "auto") -> dict[str, Any]:
    """The fingerprint of a device (or, without torch, what can be known without it), what is missing, the last selfcheck."""
    from perfscope.measure import machine
    from perfscope.record import Environment, to_dict
    from perfscope.selfcheck import last

    missing = [{"what": name, "costs": costs, "get": get} for name, (costs, get) in OPTIONAL.items() if not _there(name)]
    try:
        import torch
    except ImportError as e:
        lost = {"what": "torch", "costs": f"nothing can be measured ({e}); report and compare work", "get": "pip install torch"}
        environment = Environment("cpu", machine.cpu()["cpu"], hardware=machine.cpu(), variables=machine.variables())
        return {**to_dict(environment), "missing": [lost, *missing], "selfcheck": {}}
    from perfscope.workload.step import check_device

    chosen = check_device(device)
    environment = machine.fingerprint(chosen)
    if not torch.cuda.is_available():
        why = "this PyTorch is a build without CUDA" if torch.version.cuda is None else "no GPU or no driver was found"
        missing.insert(0, {"what": "CUDA", "costs": f"measurements are of the CPU ({why})", "get": "a machine with an NVIDIA GPU and a CUDA build of PyTorch"})
    else:
        with machine.Nvml(chosen if chosen.type == "cuda" else "cuda") as gpu:
            if gpu.note:
                missing.insert(0, {"what": "NVML", "costs": gpu.note.text, "get": gpu.note.hint})
    return {**to_dict(environment), "missing": missing, "selfcheck": last(environment)}


def _there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def lines(facts: dict[str, Any]) -> list[str]:
    """The facts in at most 80 columns."""
    from perfscope import registry
    from perfscope.sections import amount

    t = registry.load("reports", "terminal")
    show = lambda k, v: amount(float(v), "B", 1024) if k.endswith("_bytes") and v else "yes" if v is True else "no" if v is False else v  # noqa: E731
    out = t.wrap(f"{facts['device_name'] or facts['device']} ({facts['device']})")
    for title in ("hardware", "software", "switches", "variables"):
        rows = {k.removesuffix("_bytes"): show(k, v) for k, v in facts[title].items() if v not in (None, "", [])}
        out += ["", title] if rows else []
        lead = max(map(len, rows), default=0)
        for k, v in rows.items():
            out += t.wrap(", ".join(map(str, v)) if isinstance(v, list) else str(v), f"  {k:{lead}}  ", " " * (lead + 4))
    out += ["", "missing" if facts["missing"] else "missing: nothing"]
    for m in facts["missing"]:
        out += [*t.wrap(f"{m['what']}: {m['costs']}", "  ", "    "), *t.wrap(m["get"], "    → ", "      ")]
    check = facts["selfcheck"]
    out += ["", *t.wrap(f"selfcheck of {check['when_utc']}: {check['words']}" if check.get("words") else "selfcheck: never run on this machine", "", "  ")]
    return [*out, "", f"next: {'perfscope breakdown --model resnet9' if check else 'perfscope selfcheck'}"]
