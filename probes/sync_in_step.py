"""The step waits for the GPU in the middle: .item(), .cpu(), nonzero, boolean indexing, torch.cuda.synchronize().

## What it sees
On a GPU, in the forward pass, the loss or what follows the optimizer: operators that have to know a value before the host can go
on, with the line of your source that ran them, and the lines that PyTorch reports itself (torch.cuda.set_sync_debug_mode). In a
trace: waiting calls of the driver (cudaStreamSynchronize, ...) inside such operators, at least one per step; a device-wide
synchronisation at least once per step. An `aten::item` without one reads a tensor that is on the CPU already, and costs nothing.

## Why it is slow
The host normally runs ahead of the GPU and has its next kernels queued. At a synchronisation it stops until the GPU has caught
up, the queue is empty, and then the GPU waits for the host: for as long as launching takes, at each such line.

## Cure
Add losses up on the device and read them every k steps; torch.where instead of boolean indexing; known sizes
(repeat_interleave's output_size, F.one_hot's num_classes); .to("cpu", non_blocking=True) into pinned memory. It is a hint: the
line is yours.

## Not for
A CPU: there is nothing to wait for, which is why this probe does not look at CPU steps. One read at the very end of a step that
is not launch-bound costs little.

## References
SLOW_PATHS S34; torch.cuda.set_sync_debug_mode in PyTorch's documentation.
"""

from perfscope.probe import Config, Evidence, Finding, OpCall, Place, Tensor, replace

USES = ("ops", "trace")
DEVICES = ("cuda",)
CODE = """losses += loss.detach()                 # on the device
if i % 100 == 0: print(losses.item())   # one read in 100 steps"""
READS = {"_local_scalar_dense", "nonzero", "masked_select", "_unique", "_unique2", "unique_dim", "unique_consecutive", "equal", "bincount"}
WAITS = ("cudaStreamSynchronize", "cudaMemcpy", "hipStreamSynchronize", "hipMemcpy", "hipMemcpyWithStream")
WHOLE = ("cudaDeviceSynchronize", "hipDeviceSynchronize")
IN_TRACE = {"aten::" + n for n in READS | {"item", "is_nonzero", "index", "index_put_", "repeat_interleave", "unique2"}}


def detect(evidence):
    if evidence.ops is not None:
        yield from _in_ops(evidence)
    elif evidence.trace is not None:
        yield from _in_trace(evidence)


def _in_ops(evidence):
    outside = {o.line for o in evidence.ops if o.phase in ("zero", "optimizer")}    # of the loop that calls the step, not of what waits in it
    found: dict[tuple, int] = {}
    for o in evidence.ops:
        own = o.phase in ("forward", "loss") or o.phase in ("backward", "after") and o.line and o.line not in outside
        why = waits(o) if own else ""
        if why:
            where = o.line if o.line and o.line not in outside else o.module or f"the {o.phase} phase"
            found[where, o.name, o.phase, why] = found.get((where, o.name, o.phase, why), 0) + 1
    if not found:
        return
    places = tuple(Place(f"{name} at {where}", f"{n} per step in the {phase} phase: {why}") for (where, name, phase, why), n in found.items())
    lines = list(dict.fromkeys(evidence.config.observed.get("sync_lines", ())))
    count, where = sum(found.values()), len({k[0] for k in found})
    yield Finding("", f"the step waits for the GPU {count} time{'s' * (count > 1)}, at {where} line{'s' * (where > 1)}", places,
                  "keep the value on the device, and read it every k steps", evidence={"waits": count, "torch_reports": lines})


def waits(o) -> str:
    """Why the host waits for the GPU in this operator; "" if it does not."""
    on_gpu = bool(o.inputs) and any(t.device == "cuda" for t in o.inputs)
    if not on_gpu:
        return ""
    if o.name in READS:
        return f"the host needs {'the value' if o.name == '_local_scalar_dense' else 'the size of the result'}"
    if o.name == "_to_copy" and o.outputs and o.outputs[0].device == "cpu" and not o.args.get("non_blocking"):
        return f"{o.inputs[0].bytes} bytes are copied to the CPU"
    if o.name == "copy_" and o.inputs[0].device == "cpu" and not o.args.get("non_blocking"):
        return f"{o.inputs[0].bytes} bytes are copied to the CPU"
    if o.name in ("index", "index_put_", "index_put") and any(t.dtype in ("bool", "uint8") and t.device == "cuda" for t in o.inputs[1:]):
        return "a boolean index: the host needs to know how many are true"
    if o.name == "repeat_interleave" and not o.args.get("output_size"):
        return "the host needs the size of the result: give output_size"
    return ""


def _in_trace(evidence):
    trace = evidence.trace
    steps = len({s.name for s in trace.steps}) or 1
    reads = [s for s in trace.syncs if s.name in WAITS and s.op in IN_TRACE and s.count >= steps]
    whole = [s for s in trace.syncs if s.name in WHOLE and s.count > steps]      # one more is the profiler's own at its end
    found = reads + whole
    if not found:
        return
    places = tuple(Place(f"{s.op or s.name} at {s.where}" if s.where else s.op or s.name,
                         f"{s.count / steps:.1f} {s.name} per step, {s.total_ns / steps / 1e6:.3f} ms of waiting per step") for s in found)
    total = sum({s.name: s.duration_ns for s in trace.steps}.values())
    share = sum(s.total_ns for s in found) / total if total else None
    yield Finding("", f"the step waits for the GPU {sum(s.count for s in found) / steps:.1f} times", places, "keep the value on the device, and read it "
                  "every k steps", share=share, basis="ceiling" if share is not None else "",
                  evidence={"waits": sum(s.count for s in found), "steps": steps, "waiting_ns": sum(s.total_ns for s in found)})


def log(loss):
    """What many loops do at every step."""
    return loss.item()


def plant(workload):
    return replace(workload, after_step=log)


def examples():
    """A loss that is read at every step, and a step counter on the CPU that is (as optimizers keep them): nothing to wait for."""
    def seen(device):
        loss = Tensor((), "float32", (), device)
        return Evidence(Config("cuda", "NVIDIA H100 80GB HBM3", (9, 0), torch="2.13.0"), (), (
            OpCall("_local_scalar_dense", (Tensor((), "float32", (), "cpu"),), phase="optimizer"),
            OpCall("_local_scalar_dense", (loss,), phase="after", line="train.py:57")))
    return seen("cuda"), seen("cpu")
