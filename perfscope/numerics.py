"""Whether a cure leaves the numbers alone: one step against a reference of higher precision, then a loss curve (METHOD 14).

`compare(before, cured)` takes two workloads with the same weights. Loss and every gradient of one step are held against the
original in float64 (float32 if the model cannot). The cured step passes if its error is at most K times the original's, or
K times what rounding alone does: the reference again, its weights and inputs changed at random by one rounding of the
cured step's precision. That is done on BATCHES batches, and the middle one counts. Rounding decides which way a ReLU or a max-pool goes, so even a
change of the order of sums is amplified by such a network; without this yardstick channels_last in float32 would fail on
a ResNet. Then both train for STEPS steps on the same batch with their own optimizer and learning rate; the mean loss of the
last third may be above the original's by CURVE of what it fell, at most, or above that of the original trained from weights
and inputs that one such rounding changed, on one of SHAKES tries: where the learning rate is high, rounding alone moves a curve by
steps.
"""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from statistics import fmean

import torch

from perfscope import elsewhere
from perfscope.errors import PerfscopeError
from perfscope.finding import Numerics
from perfscope.measure import machine
from perfscope.options import Options, options_from
from perfscope.record import from_dict
from perfscope.workload import Workload, step

K = 3.0                     # built-in models in amp-bfloat16 came to 1.2 to 1.8 of what one rounding does
ORDER, ORDER_MOST = 24.0, 1e-4   # another order of float32 sums: channels_last came to 17 times the original's error (conv of perfscope.contract)
BATCHES = 3
VARIED = 0.2                # how much the inputs of the further batches differ from the first's, relative
EPS = {"bfloat16": 2.0 ** -8, "half": 2.0 ** -11, "tf32": 2.0 ** -11, "float32": 2.0 ** -24}
SMALL = 1e-2                # a gradient smaller than this times the median one is held against that: zeros have no relative error
STEPS = 30
SHAKES = 4                  # of the original's own curve, if the cured one differs
CURVE = 0.05
LOSS_SCALE = 1024.0         # for half: small gradients would underflow


def compare(before: Workload, cured: Workload, *, device, batch_size: int, seed: int = 0) -> Numerics:
    """The Numerics of two workloads that start from the same weights. Raises what the cured workload raises."""
    trials = sorted((_trial(before, cured, device, batch_size, seed, i) for i in range(BATCHES)), key=lambda t: t["ratio"])
    t = trials[len(trials) // 2]                # one ReLU that flips in one batch is no error of the cure
    curves = _curve(before, device, batch_size, seed), _curve(cured, device, batch_size, seed)
    eps = max(precision(cured), precision(before))
    curve_passed = same_curve(*curves) or any(same_curve(_curve(before, device, batch_size, seed, eps, i), curves[1]) for i in range(1, SHAKES + 1))
    rule = (f"{K:g} times the original's error or what one rounding of {lowest(cured)} in weights and inputs does; {ORDER:g} times the original's, up "
            f"to {ORDER_MOST:g}, for another order of sums; the middle one of {BATCHES} batches")
    words = (f"loss off by {t['loss']:.1e} (before: {t['loss_before']:.1e}), gradients by {t['gradient']:.1e} at most "
             f"(before: {t['gradient_before']:.1e}, allowed: {t['allowed']:.1e})")
    if not curve_passed:
        words += "; after {} steps of training the loss is {:.3g} instead of {:.3g}".format(STEPS, *map(ending, reversed(curves)))
    return Numerics(t["ratio"] <= 1 and curve_passed, t["reference"], t["loss"], t["loss_before"], t["gradient"], t["gradient_before"], t["allowed"],
                    t["worst"], rule, tuple(curves[1]), tuple(curves[0]), curve_passed, words, {"ratios": [x["ratio"] for x in trials]})


def _trial(before, cured, device, batch_size, seed, number) -> dict:
    """One batch: both versions' errors, what is allowed, and `ratio`: the greater of error / allowed of loss and gradients."""
    eps = max(precision(cured), precision(before))
    (loss, gradients), name = _reference(before, device, batch_size, seed, number)
    (shaken_loss, shaken), _ = _reference(before, device, batch_size, seed, number, eps)
    old, new = (_one_step(w, device, batch_size, seed, number) for w in (before, cured))
    off = lambda x: abs(x - loss) / max(abs(loss), 1e-12) if math.isfinite(x) else math.inf  # noqa: E731
    errors = _errors(new[1], gradients)
    worst = max(errors, key=errors.get, default="")
    e_new, e_old, e_eps = (max(e.values(), default=0.0) for e in (errors, _errors(old[1], gradients), _errors(shaken, gradients)))
    allowed, allowed_loss = max(K * max(e_old, e_eps, EPS["float32"]), min(ORDER * e_old, ORDER_MOST)), K * max(off(old[0]), off(shaken_loss), eps)
    ratio = max(e_new / allowed, off(new[0]) / allowed_loss)
    return {"ratio": ratio if math.isfinite(ratio) else math.inf, "reference": name, "loss": off(new[0]), "loss_before": off(old[0]), "gradient": e_new,
            "gradient_before": e_old, "allowed": allowed, "worst": worst}


def lowest(workload: Workload) -> str:
    """The precision that a workload multiplies in."""
    return workload.dtype.removeprefix("amp-")


def precision(workload: Workload) -> float:
    """The unit rounding of a workload's multiplications; TF32 counts where its contexts switch it on."""
    eps = EPS.get(lowest(workload), EPS["float32"])
    if eps == EPS["float32"] and workload.contexts:
        with workload.within():
            if torch.cuda.is_available() and machine.tf32():
                return EPS["tf32"]
    return eps


def same_curve(before, cured) -> bool:
    """Whether two loss curves end at the same place: the last thirds' means differ by CURVE of the first one's fall, or less."""
    if not all(map(math.isfinite, cured)):
        return not all(map(math.isfinite, before))
    a, b = ending(before), ending(cured)
    return b - a <= CURVE * max(abs(before[0] - a), 0.1 * abs(before[0]))


def ending(curve) -> float:
    """The mean loss of the last third."""
    return fmean(curve[-max(1, len(curve) // 3):])


def _still(model) -> None:
    """Dropout off: its masks differ between dtypes, and would hide everything else."""
    for module in model.modules():
        if "drop" in type(module).__name__.lower():
            for attribute in ("p", "drop_prob"):
                if isinstance(getattr(module, attribute, None), float):
                    setattr(module, attribute, 0.0)


def _prepared(workload, device, batch_size, seed, number=0):
    prepared = step.prepare(replace(workload, compile="off", cuda_graph=False), device=device, keep_original=True, seed=seed)
    _still(prepared.model)
    batches = step.load_batches(prepared, batch_size)
    return prepared, replace(batches, inputs=_varied(batches.inputs, number))


def _varied(value, number: int):
    """Another batch of the same kind: floating inputs changed by up to VARIED / 2 each way, tokens rolled."""
    if not number:
        return value
    if isinstance(value, torch.Tensor) and not value.is_floating_point():
        return torch.roll(value, number, -1) if value.dim() else value
    if isinstance(value, torch.Tensor):
        noise = torch.rand(value.shape, generator=torch.Generator().manual_seed(number)) - 0.5
        return value * (1 + VARIED * torch.empty_like(value).copy_(noise))
    if isinstance(value, dict):
        return {k: _varied(v, number) for k, v in value.items()}
    return type(value)(_varied(v, number) for v in value) if isinstance(value, (tuple, list)) else value


def _gradients(model) -> dict[str, torch.Tensor]:
    return {n.replace("_orig_mod.", ""): p.grad.detach().double().cpu() for n, p in model.named_parameters() if p.grad is not None}


def _one_step(workload, device, batch_size, seed, number) -> tuple[float, dict]:
    prepared, batches = _prepared(workload, device, batch_size, seed, number)
    scale = LOSS_SCALE if "half" in workload.dtype else 1.0
    with workload.within():
        with step.autocast(prepared):
            loss = workload.loss(step.call_model(prepared.model, batches.inputs), batches.target)
        (loss * scale).backward()
    return float(loss.detach().double()), {n: g / scale for n, g in _gradients(prepared.model).items()}


def _reference(workload, device, batch_size, seed, number=0, eps=0.0) -> tuple[tuple[float, dict], str]:
    """Loss and gradients of the original in float64, without its hooks; in float32 where the model cannot be doubled."""
    plain = replace(workload, dtype="float32", compile="off", cuda_graph=False, on_optimizer=(), scaler=False)
    for dtype, name in ((torch.float64, "float64"), (torch.float32, "float32")):
        try:
            prepared, batches = _prepared(plain, device, batch_size, seed, number)
            model, rng = prepared.model.to(dtype), torch.Generator(prepared.device).manual_seed(number)
            with torch.no_grad():
                for p in model.parameters():
                    p.copy_(_shaken(p, eps, rng))
            loss = plain.loss(step.call_model(model, _shaken(_as(batches.inputs, dtype), eps, rng)), _as(batches.target, dtype))
            loss.backward()
            return (float(loss.detach().double()), _gradients(model)), name
        except RuntimeError:
            if name == "float32":
                raise


def _shaken(value, eps: float, rng):
    """Floating tensors changed at random by at most half a rounding each way, as storing them in that precision would."""
    if isinstance(value, torch.Tensor):
        noise = torch.rand(value.shape, generator=rng, device=value.device, dtype=value.dtype) - 0.5 if eps and value.is_floating_point() else None
        return value if noise is None else value * (1 + eps * noise)
    if isinstance(value, dict):
        return {k: _shaken(v, eps, rng) for k, v in value.items()}
    return type(value)(_shaken(v, eps, rng) for v in value) if isinstance(value, (tuple, list)) else value


def _as(value, dtype):
    if isinstance(value, torch.Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if isinstance(value, dict):
        return {k: _as(v, dtype) for k, v in value.items()}
    return type(value)(_as(v, dtype) for v in value) if isinstance(value, (tuple, list)) else value


def _errors(gradients: dict, reference: dict) -> dict[str, float]:
    """|g - reference| / |reference| per parameter that both have; tiny gradients are held against SMALL times the median one."""
    norms = {n: float(r.norm()) for n, r in reference.items()}
    floor = SMALL * sorted(norms.values())[len(norms) // 2] if norms else 0.0
    return {n: float((gradients[n] - r).norm()) / max(norms[n], floor, 1e-30) for n, r in reference.items()
            if n in gradients and gradients[n].shape == r.shape}


def _curve(workload, device, batch_size, seed, eps=0.0, number=0) -> list[float]:
    """The losses of STEPS training steps on one batch, with the workload's own optimizer and learning rate. With an `eps` it starts
    from shaken weights, on shaken inputs; `number` says how."""
    own = copy.deepcopy(workload.optimizer) if not isinstance(workload.optimizer, torch.optim.Optimizer) else None
    prepared, batches = _prepared(workload, device, batch_size, seed)
    optimizer = own([p for p in prepared.model.parameters() if p.requires_grad]) if own else prepared.optimizer
    for change in workload.on_optimizer if own else ():
        optimizer = change(optimizer) or optimizer
    for group, mine in zip(optimizer.param_groups, prepared.optimizer.param_groups):
        group["lr"] = group["lr"] if own else group.get("initial_lr", optimizer.defaults.get("lr", 1e-3))
    losses, scaler, rng = [], prepared.scaler, torch.Generator(prepared.device).manual_seed(number)
    with torch.no_grad():
        for p in prepared.model.parameters() if eps else ():
            p.copy_(_shaken(p, eps, rng))
    inputs = _shaken(batches.inputs, eps, rng)
    with workload.within():
        for _ in range(STEPS):
            optimizer.zero_grad(set_to_none=workload.set_to_none)
            with step.autocast(prepared):
                loss = workload.loss(step.call_model(prepared.model, inputs), batches.target)
            if scaler is not None:
                scaler.scale(loss).backward()
                scaler.step(optimizer)
                scaler.update()
            else:
                loss.backward()
                optimizer.step()
            losses.append(float(loss.detach().double()))
    return losses


# ---------------------------------------------------------------- elsewhere

def compare_elsewhere(options: Options, before: tuple[str, ...], cured: tuple[str, ...], batch_size: int, folders=()) -> Numerics:
    """`compare` of two stacks of cures on a workload by name, in a process of its own."""
    request = {"options": options.as_dict(), "before": list(before), "cured": list(cured), "batch_size": batch_size, "folders": [str(f) for f in folders]}
    return from_dict(Numerics, elsewhere.ask("perfscope.numerics", request, "checking the numerics"))


def answer(request: dict) -> Numerics:
    """What the process of its own does."""
    from perfscope.turns import maker
    options = options_from(request["options"])
    make = maker(options, request["folders"])
    try:
        return compare(make(tuple(request["before"])), make(tuple(request["cured"])), device=options.device, batch_size=request["batch_size"],
                       seed=options.seed)
    except PerfscopeError:
        raise
    except Exception as e:
        from perfscope.turns import said
        return Numerics(False, "", math.nan, math.nan, math.nan, math.nan, math.nan, text=f"could not be compared: {said(e)}")


if __name__ == "__main__":
    elsewhere.serve(answer)
