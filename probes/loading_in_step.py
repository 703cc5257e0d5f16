"""The training process loads its own batches: the step waits while it does.

## What it sees
A pipeline that runs in the training thread (a DataLoader with num_workers=0, a generator, a loop of your own) and takes at
least 5 % of the step: on a CPU the time of fetching one batch against the step; on a GPU, from a trace, the time inside the
loader during which the device has nothing to do. In a trace it also sees workers that do not keep up.

## Why it is slow
Nothing overlaps: while a batch is read, decoded, augmented and put together, nobody trains. On a GPU what the host prepares while
kernels still run is free, and only the rest counts; without a trace the whole time of fetching is given, as a ceiling.

## Cure
thread: a thread fetches the next batches while the step runs. It takes any pipeline, and helps as far as loading is reading and
PyTorch operators, which release Python's lock.
workers: num_workers=k and persistent_workers=True, where the pipeline iterates over a DataLoader.

## Not for
Loading that is hidden behind the device's work already. Tiny data sets that fit on the device (data_fits_on_device): workers can be
slower than no workers there (CIFAR-10 on one GPU, 2018: 297 s with workers, 301 s without). On a CPU whose cores the step fills,
moving the work elsewhere moves it and does not save it: only the measurement can tell.

## References
SLOW_PATHS S42; PyTorch documentation of torch.utils.data, "Single- and Multi-process Data Loading".
"""

from collections import Counter

import torch
from torch.utils.data import DataLoader, Dataset

from perfscope.measure import machine
from perfscope.probe import Finding, Place, replace
from perfscope.sections import percent
from perfscope.workload import feed

USES = ("config", "trace")
CODE = "DataLoader(..., num_workers=4, persistent_workers=True)     # or fetch the next batch in a thread while the step runs"
SHARE = 0.05                # of the step: SLOW_PATHS S47 calls more than this a wait for the loader
MOST_WORKERS = 4


def detect(evidence):
    if evidence.trace is not None and (evidence.config.device == "cuda" or not evidence.config.loader):
        yield from _in_trace(evidence)
    elif evidence.config.loader and evidence.config.step_s:
        yield from _in_config(evidence)


def _in_trace(evidence):
    t = evidence.trace
    step_ns, loader_ns, exposed_ns = (sum(getattr(s, name) for s in t.steps) for name in ("duration_ns", "loader_ns", "loader_exposed_ns"))
    if not step_ns or exposed_ns < SHARE * step_ns:
        return
    names = [n for n in t.marks if n.startswith("enumerate(")]
    workers = any("MultiProcess" in n for n in names)
    n, idle = len(t.steps), "" if not t.device_events else f"; {percent(exposed_ns / step_ns, 3)} while the device has nothing to do"
    text = ("the loader's workers do not keep up" if workers else "the training process loads its own batches") \
        + f": loading takes {percent(loader_ns / step_ns, 3)} of the step ({loader_ns / n / 1e6:.1f} of {step_ns / n / 1e6:.1f} ms){idle}"
    saw = ", ".join(f"{t.marks[m]} x {m.partition('#')[2] or m}" for m in names) or "the loading is marked in the trace"
    yield Finding("", text, (Place("data", saw + (": num_workers=0" if any("SingleProcess" in m for m in names) else "")),),
                  "more workers, or cheaper transforms" if workers else "load in workers, or in a thread, while the step runs",
                  share=exposed_ns / step_ns, basis="ceiling", extra={"hint": True} if workers else {},
                  evidence={"loading_share": loader_ns / step_ns, "exposed_share": exposed_ns / step_ns, "steps": n, "loaders": names})


def _in_config(evidence):
    c, facts = evidence.config, evidence.config.loader
    share = facts.get("batch_s", 0.0) / c.step_s
    if not facts.get("in_process") or share < SHARE:
        return
    where = f"DataLoader(num_workers=0) over {facts['dataset']}" if facts.get("workers") == 0 else "an iterator of your own"
    lines = Counter(o.line for o in evidence.ops or () if o.phase == "data" and o.line)
    places = [Place("data", f"{where}: one batch takes {1e3 * facts['batch_s']:.2f} ms in the training thread, the step {1e3 * c.step_s:.2f} ms")]
    places += [Place(line, f"{n} operators of the pipeline") for line, n in lines.most_common(3)]
    note = "there is one core: nothing else can load meanwhile, cheaper transforms are the way" if c.device == "cpu" and c.cores < 2 else ""
    yield Finding("", f"the training process loads its own batches: {percent(share, 3)} of the step", tuple(places),
                  "load in workers, or in a thread, while the step runs", share=min(share, 1.0), basis="ceiling", note=note,
                  evidence={"loading_share": share, "batch_s": facts["batch_s"], "step_s": c.step_s})


def workers() -> int:
    """One per usable core but one, which the step needs; at most MOST_WORKERS, at least 1."""
    return max(1, min(MOST_WORKERS, int(machine.cpu()["cores_usable"]) - 1))


def _in_thread(workload):
    return replace(workload, data=feed.in_thread(workload.data))


def _in_workers(workload):
    return replace(workload, data=feed.rebuilt(workload.data, num_workers=workers(), persistent_workers=True))


CURES = {"thread": _in_thread, "workers": _in_workers}


class Slow(Dataset):
    """Samples of a workload's random batch, each noised and flipped by itself, as image pipelines do."""

    def __init__(self, pair, work: int = 4):
        (self.images, self.labels), self.work = pair, work

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        image = self.images[i]
        for _ in range(self.work):
            image = (image + 0.01 * torch.randn_like(image)).flip(-1)
        return image, self.labels[i]


def healthy(workload):
    """The same batches, fetched in a thread; with none to fetch, a step of a millisecond has the cores and Python's lock to itself, which no cure gives it."""
    return _in_thread(plant(workload))


def plant(workload):
    samples = Slow(workload.batch(64))

    def data(n):
        loader = DataLoader(samples, n, shuffle=True, drop_last=True)
        while True:
            yield from loader
    return replace(workload, data=data)
