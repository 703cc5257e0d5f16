"""More threads or loader processes than cores: they take turns, and wait for each other.

## What it sees
PyTorch's number of threads above the cores that this process may really use: those of its CPU affinity, or fewer by the
control group's quota (`cpu.max`), which neither os.cpu_count() nor OpenMP looks at. And a DataLoader with more workers than cores.

## Why it is slow
An operator is over when its last thread is; a thread without a core makes all the others wait, and OpenMP's threads wait by
spinning, which takes the core from the one that they wait for. In a container with a quota all of them are stopped
together once the quota is used up.

## Cure
torch.set_num_threads(cores), and at most as many loader workers as cores.

## Not for
Workers that mostly wait for a disk or a network: more of them than cores can be right. Threads on a GPU machine whose host
hardly computes: there it is only reported if the batches are made in the training process.

## References
SLOW_PATHS S46; PyTorch documentation, "CPU threading and TorchScript inference", "Tuning the number of threads".
"""

import contextlib
import math

import torch

from perfscope.measure import machine
from perfscope.probe import Finding, Place, add, replace
from perfscope.workload import feed

USES = ("config",)
CODE = "torch.set_num_threads(CORES)       # the cores of the quota; or OMP_NUM_THREADS=CORES before Python starts"


def detect(evidence):
    c = evidence.config
    cores, threads, workers = math.ceil(c.cores), c.switches.get("threads", c.threads), c.loader.get("workers") or 0
    places = []
    if threads > cores and (c.device == "cpu" or c.loader.get("in_process")):
        places.append(Place("torch.get_num_threads()", f"{threads} threads on {c.cores:g} usable cores"))
    if workers > cores:
        places.append(Place("DataLoader.num_workers", f"{workers} workers on {c.cores:g} usable cores"))
    if places:
        variables = {k: v for k, v in c.variables.items() if k.endswith("NUM_THREADS")}
        yield Finding("", "more threads or workers than cores: " + ", ".join(p.saw for p in places), tuple(places),
                      "as many threads as cores, and not more loader workers than that",
                      evidence={"cores": c.cores, "threads": threads, "workers": workers, "variables": variables})


def threads(wanted) -> contextlib.AbstractContextManager:
    """A context with wanted(threads so far) threads; afterwards as many as before."""
    @contextlib.contextmanager
    def context():
        before = torch.get_num_threads()
        torch.set_num_threads(wanted(before))
        try:
            yield
        finally:
            torch.set_num_threads(before)
    return context


def fix(workload):
    cores = math.ceil(machine.cpu()["cores_usable"])
    data = workload.data and feed.limited(workload.data, cores)
    return replace(add(workload, contexts=[threads(lambda n: min(n, cores))]), data=data)


def healthy(workload):
    """As many threads as cores."""
    return add(workload, contexts=[threads(lambda n: math.ceil(machine.cpu()["cores_usable"]))])


def plant(workload):
    return add(workload, contexts=[threads(lambda n: 2 * math.ceil(machine.cpu()["cores_usable"]))])
