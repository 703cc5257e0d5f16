"""Where the run comes from: the workload, the machine, the versions."""

from __future__ import annotations

import dataclasses

from perfscope.record import Run
from perfscope.sections import EVERY, details, pairs

TITLE = "Workload and machine"
ORDER = 95
KINDS = (EVERY,)


def filled(thing) -> dict:
    """The fields that say something, nested dictionaries left to be shown on their own."""
    return {
        f.name: getattr(thing, f.name)
        for f in dataclasses.fields(thing)
        if f.name != "extra"
        and not isinstance(getattr(thing, f.name), dict)
        and getattr(thing, f.name) not in ("", 0, (), None, False)
    }


def render(run: Run) -> str:
    """The workload first, the machine and the versions folded away."""
    env, origin = run.environment, run.provenance
    workload = getattr(run, "workload", None)
    first = {
        **({"workload": workload.name, **{k: v for k, v in filled(workload).items() if k != "name"}} if workload else {}),
        "device": env.device_name or env.device,
    }
    folded = [
        ("Machine", {**filled(env), **env.hardware}),
        ("Software", {**env.software, **origin.versions}),
        ("Switches", env.switches),
        ("Environment variables", env.variables),
        ("Origin", {**filled(origin), **{f"git {k}": v for k, v in origin.git.items()}}),
    ]
    return pairs(first) + "".join(details(title, pairs(values)) for title, values in folded if values)
