"""DistributedDataParallel copies every gradient out of its buckets again: gradient_as_bucket_view is off.

## What it sees
DDP arguments without gradient_as_bucket_view=True; in a trace, `copy_bucket_to_grad` operators, with what they copied.

## Why it is slow
After the all-reduce each gradient is copied from its bucket back into .grad: one small copy per parameter, and both exist, so the
peak memory is larger by the size of all gradients. It is a few hundred launches per step rather than much device time.

## Cure
DistributedDataParallel(model, gradient_as_bucket_view=True): .grad is a view into the bucket.

## Not for
Code that calls detach_() on gradients, or that keeps them after the next backward pass: they are views then.

## References
SLOW_PATHS S53; PyTorch documentation of DistributedDataParallel, "gradient_as_bucket_view".
"""

from perfscope.probe import Finding, Place, replace

USES = ("config", "trace")
CODE = "DistributedDataParallel(model, gradient_as_bucket_view=True)"
OPERATOR = "torch.distributed.ddp.reducer::copy_bucket_to_grad"
BUSY = 0.70                 # below this the step is bound by launches: SLOW_PATHS S35


def detect(evidence):
    t = evidence.trace
    rows = [r for r in t.ops if r.name == OPERATOR] if t is not None else []
    if rows:
        yield _in_trace(t, rows)
    elif evidence.config.ddp is not None and not evidence.config.ddp.get("gradient_as_bucket_view", False):
        yield _in_config(evidence)


def _in_trace(t, rows):
    count, host, device = (sum(getattr(r, name) for r in rows) for name in ("count", "host_total_ns", "device_total_ns"))
    step_ns, busy_ns, n = sum(s.duration_ns for s in t.steps), sum(s.busy_ns for s in t.steps), max(1, len(t.steps))
    bound = device if busy_ns >= BUSY * step_ns else host       # a device that waits for the host is saved the host's time
    saw = f"{count} calls in {n} steps: {host / 1e6:.2f} ms of the host, {device / 1e6:.2f} ms of the device"
    return Finding("", f"DDP copies {count / n:.0f} gradients per step out of their buckets", (Place(OPERATOR.rpartition("::")[2], saw),),
                   "make DDP with gradient_as_bucket_view=True", share=bound / step_ns if step_ns else None, basis="ceiling", extra={"hint": True},
                   evidence={"calls": count, "host_ns": host, "device_ns": device})


def _in_config(evidence):
    c = evidence.config
    tensors = {p.parameter or f"{m.path}.{name}": p for m in evidence.modules or () for name, p in m.parameters.items() if p.requires_grad}
    size = sum(p.bytes for p in tensors.values())
    saw = f"{len(tensors)} gradients, {size / 1e6:.1f} MB, are copied and held twice" if tensors else "DDP's default"
    ranks = c.observed.get("ranks")
    return Finding("", "DDP copies every gradient out of its bucket", (Place("DistributedDataParallel", saw),),
                   "make DDP with gradient_as_bucket_view=True", evidence={"gradients": len(tensors), "bytes": size},
                   **({} if ranks else {"extra": {"hint": True}, "note": "not tried here: there is one process, and no DDP in it"}))


def fix(workload):
    return replace(workload, ddp={**workload.ddp, "gradient_as_bucket_view": True})


def plant(workload):
    return replace(workload, ddp={**workload.ddp, "gradient_as_bucket_view": False})
