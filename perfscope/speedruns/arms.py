"""Arms of a speedrun: what to train, from words like "mnist", "mnist_ladder:3" or "mnist_cnn,dtype=amp-bfloat16,fused=true".

A spec is NAME[:VARIANT][,field=value...]. NAME is a recipe, or anything that perfscope.workload.resolve knows: then the
recipe beside it gives data, length and schedule, the workload its model, optimizer and loss, and precision and layout are
float32 and contiguous unless the spec says otherwise.
"""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any, Sequence

from perfscope import registry, tricks
from perfscope.errors import UsageError
from perfscope.records.speedrun import Arm

#: What a workload does not take over from the recipe that trains it: how fast it computes is the workload's own business.
NEUTRAL = {"dtype": "float32", "norm_float": False, "master": False, "loss_scale": 0.0, "memory_format": "contiguous", "fused": False, "compile": "off"}
#: Input of one sample -> the recipe that trains a workload of that kind, where none is named.
RECIPE_FOR = {(1, 28, 28): "mnist_ladder:8", (3, 32, 32): "cifar10_resnet9"}


@dataclass(frozen=True)
class Contender:
    """An arm that can be trained: what the record says about it, its settings, and the recipe (a module, or alike)."""

    arm: Arm
    settings: Any
    recipe: Any


def known(name: str) -> bool:
    """Whether there is a recipe of that name (a variant may follow a colon)."""
    return name.partition(":")[0] in registry.names("recipes")


def recipe(spec: str) -> tuple[Any, Any, list[str]]:
    """(module, settings of its variant, the field=value texts) of a spec. UsageError for what is not there."""
    name, *fields = (x.strip() for x in spec.split(","))
    base, _, variant = name.partition(":")
    module = registry.load("recipes", base)
    if variant not in module.VARIANTS:
        raise UsageError(f"the recipe {base} has no variant {variant!r}", f"Known: {', '.join(v for v in module.VARIANTS if v) or 'none'}")
    return module, module.VARIANTS[variant], fields


def contender(spec: str, name: str = "", on: Sequence[str] = (), off: Sequence[str] = (), dtype: str = "", within: str = "") -> Contender:
    """The arm of a spec with tricks switched on and off. `within`: the recipe that trains it, if the spec names a workload."""
    if within and not known(spec.split(",")[0]):
        return from_workload(spec, within, name)
    module, plain, fields = recipe(spec)
    settings = tricks.switch(tricks.set_fields(plain, fields), module, on, off)
    if dtype:
        settings = replace(settings, dtype=dtype)
    label = spec.split(",")[0]
    return Contender(describe(module, settings, plain, label, name or label, spec=spec), settings, module)


def describe(module: Any, settings: Any, plain: Any, label: str, name: str, **more) -> Arm:
    """What the record says about an arm. UsageError if the recipe's own check refuses the settings."""
    if hasattr(module, "check"):
        module.check(settings)
    fields = dataclasses.asdict(settings)
    before = dataclasses.asdict(plain)
    summary = (module.__doc__ or "").strip().splitlines()
    return Arm(name, label, {k: _plain(v) for k, v in fields.items()}, {k: _plain(v) for k, v in fields.items() if v != before.get(k)},
               tuple(tricks.active(settings, module)), leaks(settings), parameters=0, summary=summary[0] if summary else "",
               published=dict(getattr(module, "PUBLISHED", {}).get(label.partition(":")[2], {})), **more)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def again(arm: Arm) -> Contender:
    """The contender of a recorded arm, to go on with. UsageError if the recipe has changed since."""
    if arm.workload:
        raise UsageError("a run that trains a workload of its own cannot be resumed", "Start it again.")
    module, plain, _ = recipe(arm.recipe)
    changed = {k: tuple(v) if isinstance(v, list) else v for k, v in arm.changed.items()}
    try:
        settings = replace(plain, **changed)
    except TypeError:
        settings = None
    if settings is None or {k: _plain(v) for k, v in dataclasses.asdict(settings).items()} != dict(arm.settings):
        raise UsageError(f"the recipe {arm.recipe} is not what it was when this run began", "Start it again: runs of two recipes are not one sample.")
    return Contender(arm, settings, module)


def leaks(s: Any) -> tuple[str, ...]:
    """Why these settings cannot be certified, in words."""
    return tuple(words for given, words in (
        (s.early_stop, "stops on the evaluation images: the length of each run is fitted to the answer"),
        (s.checkpoint, "starts from trained weights (transfer learning), whose training is not in the time"),
        (s.teacher, "learns from a trained teacher, whose training is not in the time")) if given)


# ---------------------------------------------------------------- workloads

def from_workload(spec: Any, within: str = "", name: str = "", **fields) -> Contender:
    """A workload trained by a recipe's data, length and schedule, with its own model, optimizer and loss.

    spec     "NAME[,field=value...]" of something that perfscope.workload.resolve knows, or a perfscope.Workload; its dtype, layout,
             compile, hooks of model and optimizer, and contexts come along
    within   the recipe; left out: by the workload's input shape (RECIPE_FOR)
    fields   settings that differ: dtype="amp-bfloat16", memory_format="channels_last", fused=True, compile="default"

    What a workload needs: images as its one input and classes as its output; modules with reset_parameters(), as all of
    torch.nn's, so that every seed starts anew; an optimizer as a callable, or one that can be made again of its defaults.
    UsageError where that is not so, or no recipe fits.
    """
    from perfscope.workload.resolve import resolve

    texts: list[str] = []
    if isinstance(spec, str):
        spec, *texts = (x.strip() for x in spec.split(","))
    workload = resolve(spec)
    label = within or RECIPE_FOR.get(tuple(workload.input_shape), "")
    if not label:
        shapes = ", ".join("x".join(map(str, s)) for s in RECIPE_FOR)
        raise UsageError(f"no recipe trains inputs of {'x'.join(map(str, workload.input_shape)) or 'unknown shape'}",
                         f"There are recipes for {shapes}; or name one: perfscope speedrun RECIPE --before ... --after ...")
    module, plain, given = recipe(label)
    plain = replace(tricks.set_fields(plain, given), **NEUTRAL)
    own = {k: getattr(workload, k) for k in ("dtype", "memory_format", "compile") if getattr(workload, k) != NEUTRAL[k]}
    settings = replace(tricks.set_fields(replace(plain, **own), texts), **fields)
    check_images(workload, module)
    _check_loop(workload)
    stand_in = SimpleNamespace(__doc__=module.__doc__, DATASET=module.DATASET, TARGET=module.TARGET, VARIANTS=module.VARIANTS)
    stand_in.model = lambda s: changed(fresh(workload), workload.on_model)

    def train(data, s, seed, log, ranks):
        with workload.within():
            return _fit(stand_in.model, data, s, seed, log, ranks, optimizer_of(workload), workload.loss)
    stand_in.train = train
    asked = ",".join([workload.name or "workload", *texts, *(f"{k}={v}" for k, v in fields.items())])
    arm = describe(stand_in, settings, plain, label.split(",")[0], name or workload.name or str(spec), spec=asked,
                   workload=workload.name or workload.source or "workload")
    return Contender(arm, settings, stand_in)


def _fit(model, data, s, seed, log, ranks, optimizer, loss):
    from perfscope.tricks.loop import fit
    return fit(model, data, s, seed, log, ranks, optimizer=optimizer, loss=loss)


def changed(value: Any, hooks: Sequence) -> Any:
    """What is left of a model or an optimizer after a workload's hooks."""
    for hook in hooks:
        given = hook(value)
        value = value if given is None else given
    return value


def _check_loop(workload: Any) -> None:
    """UsageError for what a recipe's loop would leave out."""
    left = [n for n in ("clip", "after_step") if getattr(workload, n) is not None]
    if left:
        raise UsageError(f"the workload has a {left[0]}, which the recipe's loop does not call", "Train your own loop twice, and compare.")


def check_images(workload: Any, module: Any) -> None:
    """UsageError if the recipe's images are not what the workload takes."""
    from perfscope.workload.datasets import SHAPES

    shape, classes = SHAPES[module.DATASET.partition(":")[0]]
    if tuple(workload.input_shape) not in ((), shape) and module.DATASET.partition(":")[0] != "images":
        raise UsageError(f"{workload.name or 'the workload'} takes inputs of {'x'.join(map(str, workload.input_shape))}, "
                         f"the recipe's images are {'x'.join(map(str, shape))}")


def fresh(workload: Any) -> Any:
    """A copy of the workload's model with new weights from torch's global generator. UsageError where a weight would stay."""
    net = copy.deepcopy(workload.model)
    reset = [m for m in net.modules() if hasattr(m, "reset_parameters")]
    owned = {id(p) for m in reset for p in m.parameters(recurse=False)}
    left = [n for n, p in net.named_parameters() if id(p) not in owned]
    if left:
        raise UsageError(f"the weight {left[0]} cannot be set anew: its module has no reset_parameters()",
                         "Give the module that holds it a reset_parameters(), so that every seed starts anew.")
    for m in reset:
        m.reset_parameters()
    return net.train()


def optimizer_of(workload: Any) -> Any:
    """optimizer(parameters) of a workload: its own callable, or its optimizer made again with the same defaults."""
    made = workload.optimizer
    make = made if not hasattr(made, "param_groups") else lambda parameters: type(made)(parameters, **made.defaults)
    return lambda parameters: changed(make(parameters), workload.on_optimizer)
