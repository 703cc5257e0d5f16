"""Tricks of the trade, each with its definition and source, and how it is switched on and off. Standard library only.

A trick is one or more fields of `Settings`; the maths stands in the modules beside this one: `schedules`, `losses`,
`images`, `nets`, `optimizers`, `evaluation`, put together by `loop`. `switch` turns tricks on and off by name, `active`
says which are on, `check` refuses what makes no sense together, with the reason.
"""

from __future__ import annotations

import dataclasses
import typing
from dataclasses import dataclass, field
from typing import Any, Mapping

from perfscope.errors import UsageError

DTYPES = ("float32", "half", "bfloat16", "amp-half", "amp-bfloat16")     # the names of perfscope.options
CAST = ("half", "bfloat16")                                             # those where the weights are cast too
OPTIMIZERS = ("sgd", "adam", "adamw", "adadelta", "muon")
SCHEDULES = ("constant", "triangular", "cosine", "onecycle", "cyclic", "step")
FLIPS = ("off", "random", "alternating")
VIEWS = ("off", "flip", "shift", "flip+shift")


@dataclass(frozen=True)
class Settings:
    """Hyperparameters of one training run. Every trick's field defaults to off; a recipe overrides the defaults."""

    # length and data
    epochs: float = 1.0                 # may be a fraction: steps are rounded
    batch: int = 512                    # images per step over all ranks
    batch_per_rank: bool = False        # True: `batch` is each rank's, the step's batch grows with the ranks
    mean: tuple[float, ...] = (0.5,)    # per channel, of pixels from 0 to 1
    std: tuple[float, ...] = (0.5,)
    preloaded: bool = True              # one tensor on the device; False: a DataLoader, image by image
    # optimizer
    optimizer: str = "sgd"              # OPTIMIZERS
    lr: float = 0.1                     # at the peak of the schedule
    lr_batch: int = 0                   # lr was made for this batch: linear scaling; 0: lr as it stands
    momentum: float = 0.9               # sgd, muon
    nesterov: bool = True
    betas: tuple[float, float] = (0.9, 0.999)   # adam, adamw; with muon those of the other parameters
    eps: float = 1e-8
    weight_decay: float = 0.0
    fused: bool = False                 # torch's fused optimizer
    no_decay: bool = False              # no decay of biases and norm parameters
    muon_lr: float = 0.02               # of the matrices that Muon moves; the others take Adam at `lr`
    # schedule
    schedule: str = "constant"          # SCHEDULES
    warmup: float = 0.0                 # share of the steps in which lr rises to its peak
    final_lr: float = 0.0               # at the end, as a share of the peak
    gamma: float = 1.0                  # "step": factor after each epoch
    cycles: int = 1                     # "cyclic"
    momentum_low: float = 0.0           # "onecycle", "cyclic": momentum at the peak of lr; 0: momentum stays
    # precision and layout
    dtype: str = "float32"              # DTYPES
    norm_float: bool = False            # half, bfloat16: weights of the norms stay float32
    master: bool = False                # half, bfloat16: the optimizer moves a float32 copy of the weights
    loss_scale: float = 0.0             # half, bfloat16: gradients are of loss x this; amp-half scales by itself
    memory_format: str = "contiguous"   # or channels_last
    compile: str = "off"                # off default reduce-overhead max-autotune
    # targets
    label_smoothing: float = 0.0
    mixup: float = 0.0                  # alpha of Beta(alpha, alpha)
    teacher: str = ""                   # checkpoint of a trained network of this recipe: distillation
    distill_weight: float = 0.5         # of the teacher's part of the loss
    temperature: float = 4.0
    # augmentation
    flip: str = "off"                   # FLIPS
    crop: int = 0                       # pixels of padding (reflected), then a random crop
    cutout: int = 0                     # side of the square
    # network: for recipes whose model has them
    dropout: float = 0.0
    zero_gamma: bool = False
    frozen_scale: bool = False
    ghost: int = 0                      # images per normalisation group; 0: the whole batch
    whiten: bool = False
    # averaging and evaluation
    ema: float = 0.0                    # decay per step
    tta: str = "off"                    # VIEWS
    tta_share: float = 1.0              # share of the images, the least certain ones, that get the further views
    eval_batch: int = 2000
    # leaks, marked as such in the record
    early_stop: float = 0.0             # stops once this accuracy is reached on the evaluation images: they leak
    checkpoint: str = ""                # starts from trained weights: transfer learning

    def __post_init__(self):
        check(self)


@dataclass(frozen=True)
class Trick:
    """One trick: what it is, where it comes from, and what switches it on and off."""

    name: str
    definition: str
    source: str
    on: Mapping[str, Any] = field(default_factory=dict)
    off: Mapping[str, Any] = field(default_factory=dict)
    value: str = ""                     # the field that `--with trick=VALUE` sets
    exact: bool = False                 # on only if its fields are what `on` says: muon, one optimizer of several


BAG = "He et al., Bag of Tricks for Image Classification, 2018"
MYRTLE = "Myrtle, How to train your ResNet, 2018-2019"
AIRBENCH = "Jordan, 94 % on CIFAR-10 in 3.29 seconds, 2024"

TRICKS: dict[str, Trick] = {t.name: t for t in (
    Trick("linear_scaling", "lr x batch / lr_batch: k times the batch, k times the rate", f"Goyal et al. 2017; {BAG}",
          {"lr_batch": 256}, {"lr_batch": 0}, "lr_batch"),
    Trick("warmup", "lr rises linearly to its peak over the first steps", f"Goyal et al. 2017; {BAG}", {"warmup": 0.2}, {"warmup": 0.0}, "warmup"),
    Trick("schedule", "lr falls over the run (cosine, triangular, one-cycle, ...) instead of staying", f"{BAG}; Smith 2017",
          {"schedule": "cosine"}, {"schedule": "constant", "warmup": 0.0, "momentum_low": 0.0}, "schedule"),
    Trick("inverse_momentum", "momentum falls while lr rises, and back", "Smith, Super-Convergence, 2017",
          {"momentum_low": 0.85}, {"momentum_low": 0.0}, "momentum_low"),
    Trick("zero_gamma", "the last norm of each residual block starts with weight 0", f"Goyal et al. 2017; {BAG}",
          {"zero_gamma": True}, {"zero_gamma": False}),
    Trick("no_decay", "no weight decay on biases and norm parameters", f"Jia et al. 2018; {BAG}", {"no_decay": True}, {"no_decay": False}),
    Trick("reduced_precision", "fp16 or bf16 compute; amp- keeps float32 weights (and scales the fp16 loss)", "Micikevicius et al. 2017",
          {"dtype": "amp-bfloat16"}, {"dtype": "float32", "norm_float": False, "master": False, "loss_scale": 0.0}, "dtype"),
    Trick("master_weights", "the optimizer moves a float32 copy of 16-bit weights", "Micikevicius et al. 2017", {"master": True}, {"master": False}),
    Trick("loss_scaling", "gradients of loss x scale, divided again before the step: small ones survive fp16", "Micikevicius et al. 2017",
          {"loss_scale": 1024.0}, {"loss_scale": 0.0}, "loss_scale"),
    Trick("norm_float", "norm weights float32 in a half network, so that cuDNN is used", f"{MYRTLE}, part 3", {"norm_float": True}, {"norm_float": False}),
    Trick("channels_last", "activations as (n, h, w, c) in memory", "PyTorch, channels_last tutorial",
          {"memory_format": "channels_last"}, {"memory_format": "contiguous"}),
    Trick("fused", "the optimizer's step is one kernel", "torch.optim documentation", {"fused": True}, {"fused": False}),
    Trick("compile", "torch.compile", "PyTorch 2", {"compile": "default"}, {"compile": "off"}, "compile"),
    Trick("larger_batch", "fewer, fuller steps; off halves the batch", f"{MYRTLE}, part 2", {}, {}, "batch"),
    Trick("preloaded", "the whole set is one tensor on the device, batches are slices of it", f"{MYRTLE}, part 4", {"preloaded": True}, {"preloaded": False}),
    Trick("label_smoothing", "targets mixed with the uniform distribution", f"Szegedy et al. 2015; {BAG}",
          {"label_smoothing": 0.1}, {"label_smoothing": 0.0}, "label_smoothing"),
    Trick("mixup", "convex mix of two images and of their labels, lambda ~ Beta(a, a)", "Zhang et al. 2017", {"mixup": 0.2}, {"mixup": 0.0}, "mixup"),
    Trick("distillation", "(1-w) CE + w T^2 KL(teacher || student at temperature T)", "Hinton et al. 2015", {}, {"teacher": ""}, "teacher"),
    Trick("flip", "random: left-right with probability 1/2; alternating: every other epoch the other way", f"{AIRBENCH} (alternating)",
          {"flip": "random"}, {"flip": "off"}, "flip"),
    Trick("crop", "pad by reflection, crop at random", "He et al. 2015; reflection: Myrtle, part 8", {"crop": 4}, {"crop": 0}, "crop"),
    Trick("cutout", "a random square is set to the mean", "DeVries & Taylor 2017", {"cutout": 8}, {"cutout": 0}, "cutout"),
    Trick("dropout", "activations zeroed at random", "Srivastava et al. 2014", {"dropout": 0.5}, {"dropout": 0.0}, "dropout"),
    Trick("frozen_scale", "norm weights stay 1, only biases are learnt", f"{MYRTLE}, part 7", {"frozen_scale": True}, {"frozen_scale": False}),
    Trick("ghost_norm", "batch norm over groups of the batch", "Hoffer et al. 2017; Myrtle, part 7", {"ghost": 32}, {"ghost": 0}, "ghost"),
    Trick("whitening", "first convolution fixed to the whitening of the training patches", f"{MYRTLE}, part 8; {AIRBENCH}",
          {"whiten": True}, {"whiten": False}),
    Trick("muon", "matrices move along orthogonalised momentum (torch.optim.Muon), the rest by Adam", "Jordan et al., Muon, 2024",
          {"optimizer": "muon"}, {"optimizer": "sgd"}, exact=True),
    Trick("ema", "evaluation with an exponential moving average of the weights", "Polyak & Juditsky 1992; Myrtle, part 8", {"ema": 0.99}, {"ema": 0.0}, "ema"),
    Trick("tta", "mean over mirrored or shifted views of each evaluation image", f"{MYRTLE}, part 8; {AIRBENCH}",
          {"tta": "flip"}, {"tta": "off", "tta_share": 1.0}, "tta"),
    Trick("selective_tta", "further views only for the least certain images", "Hiverge, CIFAR-10 speedrun, 2025 (from memory)",
          {"tta_share": 0.2}, {"tta_share": 1.0}, "tta_share"),
    Trick("early_stop", "stops at the target on the evaluation images. A leak: the length of the run is fitted to the answer",
          "train_mnist_fast, steps 1-4", {"early_stop": 0.99}, {"early_stop": 0.0}, "early_stop"),
    Trick("transfer", "starts from trained weights. A mode of its own: not a run from scratch", "Pan & Yang, A Survey on Transfer Learning, 2010",
          {}, {"checkpoint": ""}, "checkpoint"),
)}


# ---------------------------------------------------------------- switching

def active(s: Settings, recipe: Any = None) -> list[str]:
    """The names of the tricks that these settings use, the recipe's own among them."""
    return [name for name in known(recipe) if _is_on(s, name, recipe)]


def known(recipe: Any = None) -> list[str]:
    """The names of all tricks: the general ones, and those of a recipe alone (its OWN)."""
    return [*TRICKS, *(n for n in getattr(recipe, "OWN", {}) if n not in TRICKS)]


def changes(recipe: Any, name: str, on: bool) -> dict[str, Any]:
    """The fields that switch a trick on or off in a recipe; UsageError if there is no such trick."""
    if name not in known(recipe):
        raise UsageError(f"there is no trick {name!r}", f"Known: {', '.join(known(recipe))}")
    special = getattr(recipe, "WITH" if on else "WITHOUT", {})
    general = TRICKS.get(name)
    return dict(special.get(name) or (general.on if on else general.off if general else {}))


def _is_on(s: Settings, name: str, recipe: Any) -> bool:
    off = changes(recipe, name, False)
    if name in TRICKS and TRICKS[name].exact:
        return all(getattr(s, k, None) == v for k, v in changes(recipe, name, True).items())
    return bool(off) and any(hasattr(s, k) and getattr(s, k) != v for k, v in off.items())


def switch(s: Settings, recipe: Any = None, on: typing.Sequence[str] = (), off: typing.Sequence[str] = ()) -> Settings:
    """The settings with tricks switched: `on` holds names or "name=value", `off` names.

    Raises UsageError for an unknown trick, one that is on (or off) already, one that the recipe refuses or has no field
    for, a value of the wrong type, and for what makes no sense together.
    """
    new = {}
    for item in on:
        name, eq, text = item.partition("=")
        fields = changes(recipe, name, True)
        reason = getattr(recipe, "REFUSES", {}).get(name)
        if reason:
            raise UsageError(f"{name} makes no sense here: {reason}")
        value = TRICKS[name].value if name in TRICKS else ""
        if eq and not value:
            raise UsageError(f"{name} takes no value", f"For example: --with {name}")
        if eq:
            fields[value] = parse(s, value, text)
        if not fields:
            raise UsageError(f"{name} needs a value", f"For example: --with {name}=...")
        _has(s, name, fields)
        if all(getattr(s, k) == v for k, v in fields.items()):
            raise UsageError(f"{name} is on already", f"Active: {', '.join(active(s, recipe)) or 'none'}")
        new |= fields
    for name in off:
        fields = changes(recipe, name, False)
        if name == "larger_batch" and not fields:
            fields = {"batch": s.batch // 2}
        if not fields:
            raise UsageError(f"{name} has no off in this recipe")
        _has(s, name, fields)
        if all(getattr(s, k) == v for k, v in fields.items()):
            raise UsageError(f"{name} is not on", f"Active: {', '.join(active(s, recipe)) or 'none'}")
        new |= fields
    return dataclasses.replace(s, **new)


def _has(s: Settings, name: str, fields: Mapping[str, Any]) -> None:
    missing = [k for k in fields if not hasattr(s, k)]
    if missing:
        raise UsageError(f"this recipe has no {name}: its settings lack {', '.join(missing)}")


def parse(s: Settings, name: str, text: str) -> Any:
    """The value of the field `name` from text, by the field's type. Raises UsageError."""
    current = getattr(s, name, None)
    if current is None:
        raise UsageError(f"this recipe has no setting {name!r}", f"Known: {', '.join(f.name for f in dataclasses.fields(s))}")
    try:
        if isinstance(current, bool):
            return {"true": True, "1": True, "on": True, "yes": True, "false": False, "0": False, "off": False, "no": False}[text.lower()]
        if isinstance(current, tuple):
            return tuple(type(current[0] if current else 0.0)(x) for x in text.split("/"))
        return type(current)(text)
    except (KeyError, ValueError):
        raise UsageError(f"{name}={text!r} is not {type(current).__name__}", f"For example: {name}={current}") from None


def set_fields(s: Settings, texts: typing.Sequence[str]) -> Settings:
    """The settings with fields set by "field=value" texts. Raises UsageError."""
    new = {}
    for text in texts:
        name, eq, value = text.partition("=")
        if not eq:
            raise UsageError(f"{text!r} sets nothing", "For example: epochs=2")
        new[name] = parse(s, name, value)
    return dataclasses.replace(s, **new)


# ---------------------------------------------------------------- what makes no sense

def check(s: Settings) -> Settings:
    """The same settings, or UsageError with the reason why they make no sense together."""
    for what, value, names in (("dtype", s.dtype, DTYPES), ("optimizer", s.optimizer, OPTIMIZERS), ("schedule", s.schedule, SCHEDULES),
                               ("flip", s.flip, FLIPS), ("tta", s.tta, VIEWS), ("memory format", s.memory_format, ("contiguous", "channels_last"))):
        if value not in names:
            raise UsageError(f"there is no {what} {value!r}", f"Known: {', '.join(names)}")
    for what, value, low, high in (("label_smoothing", s.label_smoothing, 0, 1), ("warmup", s.warmup, 0, 1), ("ema", s.ema, 0, 1),
                                   ("tta_share", s.tta_share, 0, 1), ("distill_weight", s.distill_weight, 0, 1), ("dropout", s.dropout, 0, 1),
                                   ("momentum_low", s.momentum_low, 0, 1), ("early_stop", s.early_stop, 0, 1), ("mixup", s.mixup, 0, 100)):
        if not low <= value <= high:
            raise UsageError(f"{what} is between {low} and {high}, not {value:g}")
    if not s.epochs > 0 or s.batch < 1:
        raise UsageError("a run needs epochs above 0 and a batch of at least 1")
    for wrong, reason in _conflicts(s):
        if wrong:
            raise UsageError(reason)
    return s


def _conflicts(s: Settings) -> list[tuple[bool, str]]:
    cast = s.dtype in CAST
    return [
        (s.master and not cast, f"master_weights copy 16-bit weights; with dtype {s.dtype} the weights are float32 already"),
        (s.norm_float and not cast, f"norm_float is about 16-bit networks; with dtype {s.dtype} norms are float32 already"),
        (bool(s.loss_scale) and not cast, f"loss_scaling is for dtype half or bfloat16; {s.dtype} "
         + ("scales by itself" if s.dtype == "amp-half" else "loses no small gradients")),
        (bool(s.momentum_low) and s.schedule not in ("onecycle", "cyclic"), f"inverse_momentum follows a cycle of lr; schedule {s.schedule} has none"),
        (bool(s.momentum_low) and s.optimizer in ("adadelta", "muon"), f"inverse_momentum: torch's cycles cannot move the momentum of {s.optimizer}"),
        (s.fused and s.optimizer in ("adadelta", "muon"), f"torch has no fused {s.optimizer}"),
        (s.master and s.fused and s.optimizer == "muon", "torch has no fused muon"),
        (s.frozen_scale and s.zero_gamma, "frozen_scale with zero_gamma: a weight of 0 that never moves kills the block"),
        (bool(s.ghost) and s.batch % max(1, s.ghost) != 0, f"ghost_norm: a batch of {s.batch} does not split into groups of {s.ghost}"),
        (s.tta == "off" and s.tta_share != 1.0, "selective_tta chooses who gets further views, and tta is off: there are none"),
        (s.mixup > 0 and not s.preloaded, "mixup works on batches on the device; with preloaded off images come one by one"),
        (not s.preloaded and bool(s.flip != "off" or s.crop or s.cutout), "augmentation works on the preloaded set; switch preloaded on"),
        (s.schedule == "onecycle" and not 0 < s.warmup < 1, "onecycle needs warmup: the share of the steps in which lr rises"),
        (s.schedule == "constant" and s.final_lr != 0, "schedule constant has no final_lr"),
        (bool(s.checkpoint) and bool(s.teacher), "a network that starts from trained weights has nothing to learn from a teacher of the same kind"),
    ]
