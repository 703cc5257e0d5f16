"""From a name to a Workload: built-in, file, your own callable, torchvision, timm, transformers (random weights only)."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from perfscope import registry
from perfscope.errors import EnvironmentError_, PerfscopeError, UsageError, WorkloadError
from perfscope.workload import data
from perfscope.workload.step import traceback_text
from perfscope.workload.workload import Workload

SHAPE, CLASSES = (3, 224, 224), 1000    # what a bare model is fed with if --input and --classes do not say
CONTEXT = 128                           # tokens per sequence for transformers models
SGD = partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)


def resolve(model, input_shape=(), classes=0) -> Workload:
    """The workload behind `model`: a name (see `perfscope list models`), a Workload, a module or a callable.

    A callable may give a model (loss, optimizer and a synthetic batch are added), (model, loss, optimizer, batch), or
    a Workload. Raises UsageError for an unknown name, WorkloadError with the user's own traceback for their errors,
    EnvironmentError_ for a package that is not installed.
    """
    if isinstance(model, str):
        return _named(model, tuple(input_shape), classes)
    name = getattr(model, "__name__", type(model).__name__)
    if callable(model) and not isinstance(model, (torch.nn.Module, Workload)):
        model = _call(model, name, classes)
    return _complete(model, name, f"{getattr(model, '__module__', '')}", tuple(input_shape), classes)


def _named(name: str, input_shape, classes) -> Workload:
    head, _, tail = name.partition(":")
    if head in registry.names("models"):
        module = registry.load("models", head)
        tail = tail.lower()                     # ResNet-D is resnet50:d and resnet50:D
        if tail not in module.VARIANTS:
            known = ", ".join(f"{head}:{v}" if v else head for v in module.VARIANTS)
            raise UsageError(f"there is no variant {tail!r} of {head}", f"Known: {known}")
        if input_shape or classes:
            raise UsageError(f"{head} is built in: its input and classes are fixed", "Leave --input and --classes out.")
        return replace(module.workload(tail), name=name, source="built-in")
    if head in LIBRARIES and tail:
        return LIBRARIES[head](tail, input_shape, classes)
    if tail:
        function = _from_file(head, tail) if head.endswith(".py") else _from_module(head, tail)
        return _complete(_call(function, name, classes), name, name, input_shape, classes)
    known = ", ".join(registry.names("models"))
    raise UsageError(f"there is no model {name!r}", f"Built in: {known}. Your own: package.module:function or path/file.py:function. "
                     "Others: torchvision:NAME, timm:NAME, hf:NAME")


def _from_file(path: str, attribute: str):
    file = Path(path)
    if not os.path.isfile(file):                # unlike Path.is_file it never raises, however odd the name
        raise UsageError(f"there is no file {path!r}", "Give path/to/file.py:function")
    sys.path.insert(0, str(file.resolve().parent))
    sys.path.insert(0, str(Path.cwd()))
    spec = importlib.util.spec_from_file_location(file.stem, file)
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(file.stem, module)
    return _attribute(lambda: spec.loader.exec_module(module) or module, path, attribute)


def _from_module(name: str, attribute: str):
    sys.path.insert(0, str(Path.cwd()))
    found = None
    if all(name.split(".")):                    # neither empty nor relative
        try:
            found = importlib.util.find_spec(name)      # imports the packages that the module is in
        except (Exception, SystemExit) as e:
            if not isinstance(e, ModuleNotFoundError) or e.name not in _above(name):
                raise _failed(f"importing {name}", "This is the package's own error.", e) from None
    if found is None:
        raise UsageError(f"there is no module {name!r} (looked in {Path.cwd()} and the installed packages)",
                         "Give package.module:function or path/to/file.py:function")
    return _attribute(lambda: importlib.import_module(name), name, attribute)


def _above(name: str) -> set[str]:
    """The module's name and those of the packages that it is in: a.b.c -> a, a.b, a.b.c."""
    words = name.split(".")
    return {".".join(words[:i + 1]) for i in range(len(words))}


def _failed(what: str, hint: str, error: BaseException) -> WorkloadError:
    """Somebody else's error, shown as theirs. SystemExit is one too: their code must not end the run without a word."""
    return WorkloadError(f"{what} failed: {type(error).__name__}: {error}", hint, traceback_text(error))


def _attribute(load, where: str, attribute: str):
    try:
        module = load()
        there = hasattr(module, attribute)
    except (Exception, SystemExit) as e:
        raise _failed(f"importing {where}", "This is the file's own error.", e) from None
    if not there:
        own = [n for n, v in vars(module).items() if not n.startswith("_") and getattr(v, "__module__", "") == module.__name__]
        raise UsageError(f"{where} has no {attribute!r}", "It has: " + (", ".join(own[:20]) or "no function of its own"))
    value = getattr(module, attribute)
    if not callable(value) and not isinstance(value, (Workload, tuple)):
        raise WorkloadError(f"{where}:{attribute} is a {type(value).__name__}, not a callable",
                            "Give a function that returns a model or a perfscope.Workload.")
    return value


def _call(function, name: str, classes=0):
    if not callable(function) or isinstance(function, (torch.nn.Module, Workload)):
        return function
    try:
        needed = [p.name for p in inspect.signature(function).parameters.values()
                  if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    except (TypeError, ValueError):
        needed = []
    if needed:
        raise WorkloadError(f"{name} needs arguments ({', '.join(needed)}); perfscope calls it with none",
                            "Wrap it in a function without arguments that returns a model or a perfscope.Workload.")
    try:
        return function()
    except PerfscopeError:
        raise
    except (Exception, SystemExit) as e:
        raise _failed(f"{name}()", "This is the callable's own error.", e) from None


def _complete(value, name: str, source: str, input_shape, classes) -> Workload:
    """A Workload from whatever a callable returned; what is missing is supplied."""
    if isinstance(value, tuple) and len(value) == 4 and isinstance(value[0], torch.nn.Module):
        value = Workload(*value)
    if isinstance(value, Workload):
        return _checked(replace(value, name=value.name or name, source=value.source or source))
    if isinstance(value, torch.nn.Module):
        shape, n = input_shape or SHAPE, classes or CLASSES
        pipeline = data.image_pipeline(shape, n) if len(shape) == 3 and shape[0] in (1, 3) else None
        return Workload(value, torch.nn.functional.cross_entropy, SGD, data.image_batch(shape, n), pipeline, name, source,
                        shape, n, "synthetic uint8 images, augmented on the CPU" if pipeline else "")
    raise WorkloadError(f"{name} gave a {type(value).__name__}",
                        "It has to give a model, a perfscope.Workload, or (model, loss, optimizer, batch).")


def _checked(workload: Workload) -> Workload:
    """The workload, or WorkloadError naming the field that cannot be used."""
    pair = isinstance(workload.batch, (tuple, list)) and len(workload.batch) == 2
    for field, value, good, wanted in (
            ("model", workload.model, isinstance(workload.model, torch.nn.Module), "a torch.nn.Module"),
            ("loss", workload.loss, callable(workload.loss), "a function loss(output, target)"),
            ("optimizer", workload.optimizer, callable(workload.optimizer) or isinstance(workload.optimizer, torch.optim.Optimizer),
             "a torch optimizer, or a function that makes one from the parameters"),
            ("batch", workload.batch, callable(workload.batch) or pair, "a function batch(n), or a pair (inputs, target)"),
            ("data", workload.data, workload.data is None or callable(workload.data), "a function data(n) that gives an iterator, or None")):
        if not good:
            raise WorkloadError(f"the {field} of {workload.name} is a {type(value).__name__}", f"It has to be {wanted}.")
    return workload


def _library(package: str, hint: str):
    try:
        return importlib.import_module(package)
    except ImportError as e:
        missing = f"{package} is not installed" if getattr(e, "name", "") == package else f"importing {package} failed: {e}"
        raise EnvironmentError_(missing, hint) from None


def _timm(name: str, input_shape, classes) -> Workload:
    timm = _library("timm", "pip install timm")
    if name not in timm.list_models():
        close = timm.list_models(f"*{name.split('_')[0]}*")[:5]
        raise UsageError(f"timm has no model {name!r}", f"Close: {', '.join(close)}" if close else "See timm.list_models().")
    model = timm.create_model(name, pretrained=False, num_classes=classes or CLASSES)
    shape = input_shape or tuple(model.pretrained_cfg.get("input_size", SHAPE))
    return _complete(model, f"timm:{name}", f"timm {timm.__version__}", shape, classes or CLASSES)


def _torchvision(name: str, input_shape, classes) -> Workload:
    torchvision = _library("torchvision", "pip install torchvision")
    if name not in torchvision.models.list_models(module=torchvision.models):
        raise UsageError(f"torchvision has no classification model {name!r}", "See torchvision.models.list_models().")
    model = torchvision.models.get_model(name, weights=None, num_classes=classes or CLASSES)
    return _complete(_first_output(model), f"torchvision:{name}", f"torchvision {torchvision.__version__}", input_shape, classes)


def _first_output(model):
    """Inception and GoogLeNet give a tuple with auxiliary outputs while training; their loss here is of the first."""
    if hasattr(model, "aux_logits"):
        model.aux_logits = False
        model.AuxLogits = None
    return model


def _hf(name: str, input_shape, classes) -> Workload:
    """A transformers model with random weights from its configuration class: nothing is downloaded."""
    transformers = _library("transformers", "pip install transformers")
    try:
        config = transformers.AutoConfig.for_model(name)
    except (ValueError, KeyError):
        raise UsageError(f"transformers has no model type {name!r}", "Give a type (gpt2, bert, llama, ...), not a repository on the hub.") from None
    return from_config(config, f"hf:{name}", f"transformers {transformers.__version__}", input_shape)


def from_config(config, name: str, source: str, input_shape=()) -> Workload:
    """A language (or image) model of transformers from a configuration, with its own loss, AdamW and random tokens."""
    import transformers

    model, kind = None, ""
    for kind in ("AutoModelForCausalLM", "AutoModelForMaskedLM", "AutoModelForSeq2SeqLM", "AutoModelForImageClassification"):
        try:
            model = getattr(transformers, kind).from_config(config)
            break
        except ValueError:
            continue
    if model is None:
        raise WorkloadError(f"{name} is not a language or image model that trains with labels",
                            "Give a callable that returns a perfscope.Workload for it.")
    if hasattr(model.config, "use_cache"):
        model.config.use_cache = False          # a cache of keys is for generating, not for training
    if kind == "AutoModelForImageClassification":
        shape = input_shape or (config.num_channels, config.image_size, config.image_size)
        return _complete(_Logits(model), name, source, shape, model.config.num_labels)
    context = input_shape[0] if input_shape else min(CONTEXT, getattr(config, "max_position_embeddings", CONTEXT))
    vocabulary = config.vocab_size
    encoder_decoder = bool(getattr(config, "is_encoder_decoder", False))

    def batch(n):
        tokens = torch.randint(0, vocabulary, (n, context))
        return {"input_ids": tokens, "labels": tokens.clone()}, torch.zeros(n)
    words = f"random tokens, {context} per sequence" + (", encoder and decoder" if encoder_decoder else "")
    return Workload(model, _own_loss, partial(torch.optim.AdamW, lr=3e-4), batch, None, name, source, (context,), vocabulary, words)


def _own_loss(output, target):
    return output.loss


class _Logits(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(x).logits


LIBRARIES = {"timm": _timm, "torchvision": _torchvision, "hf": _hf}
