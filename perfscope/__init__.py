"""Takes a training step apart, finds what is slow, fixes it, and proves it.

    import perfscope
    run = perfscope.breakdown(workload, batch_sizes=(128, 512))
    run.parts[512]["norm"].share                # Interval(point=0.131, low=0.128, high=0.134)
    run.save("runs/mine"); perfscope.report(run, "report.html")
    perfscope.diagnose("resnet9", dtype="half").findings        # slow paths, the most valuable first
    perfscope.fix("mypkg.train:workload").kept                  # the cures that were proven
    faster = perfscope.apply(workload, ["conv_not_channels_last", "optimizer_not_fused"])

Importing this imports no torch; the functions that need it do.
"""

from __future__ import annotations

import sys
from types import ModuleType

__version__ = "0.1.0"
__all__ = ["apply", "breakdown", "compare", "confirm", "diagnose", "fix", "load", "report", "speedrun", "Workload", "Run", "PerfscopeError"]

_HOMES = {"apply": "perfscope.probing", "breakdown": "perfscope.breakdown", "compare": "perfscope.compare", "confirm": "perfscope.speedrun",
          "diagnose": "perfscope.diagnose", "fix": "perfscope.fix", "load": "perfscope.record", "report": "perfscope.report",
          "speedrun": "perfscope.speedrun", "Workload": "perfscope.workload", "Run": "perfscope.record", "PerfscopeError": "perfscope.errors"}


def __getattr__(name: str):
    if name in _HOMES:
        from importlib import import_module
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'perfscope' has no attribute {name!r}")


class _Package(ModuleType):
    """perfscope.breakdown is the function, also after somebody imported the module of that name: a verb's module
    is bound to its package as its function. Inside perfscope: `from perfscope.breakdown import ...`."""

    def __setattr__(self, name, value):
        if name in _HOMES and isinstance(value, ModuleType):
            value = getattr(value, name)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __dir__():
    return sorted([*globals(), *__all__])
