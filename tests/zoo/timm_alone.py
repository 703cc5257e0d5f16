"""timm for tests on machines where no torchvision can be installed.

timm imports a few names of torchvision at import time (a frozen norm, image transforms) that none of its models here
uses. While timm is imported, placeholders stand in for them; afterwards they are gone again, so that nothing else
(transformers looks for torchvision too) takes them for the real thing.
"""

import importlib.machinery
import sys
from unittest.mock import MagicMock

NAMES = ("torchvision", "torchvision.ops", "torchvision.ops.misc", "torchvision.transforms", "torchvision.datasets",
         "torchvision.transforms.functional", "torchvision.models", "torchvision.models.feature_extraction")


def import_timm():
    """The timm module, with real torchvision where it is installed."""
    try:
        import torchvision  # noqa: F401
        import timm
        return timm
    except ImportError:
        for name in [n for n in sys.modules if n == "timm" or n.startswith("timm.")]:
            del sys.modules[name]
    placeholders = {name: MagicMock(name=name, __spec__=importlib.machinery.ModuleSpec(name, None), __path__=[])
                    for name in NAMES}
    placeholders["torchvision.ops.misc"].FrozenBatchNorm2d = type("FrozenBatchNorm2d", (), {})
    sys.modules.update(placeholders)
    try:
        import timm
    finally:
        for name in NAMES:
            sys.modules.pop(name, None)
    return timm
