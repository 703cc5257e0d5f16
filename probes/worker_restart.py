"""The loader's workers are stopped and started again at every epoch.

## What it sees
A DataLoader with workers and persistent_workers=False whose epochs are so short that starting the workers counts.

## Why it is slow
Every `for batch in loader` starts its processes anew, and the first batch waits until one of them has started and loaded
it. With "fork" that takes about a tenth of a second, with "spawn" each worker imports everything again.

## Cure
persistent_workers=True: the processes stay for the next epoch.

## Not for
Data sets that are changed between epochs in the training process: workers that stay keep the old copy. Two loaders (training and
validation) then both keep their workers' memory.

## References
SLOW_PATHS S44; PyTorch documentation of torch.utils.data.DataLoader, "persistent_workers".
"""

import torch
from torch.utils.data import DataLoader, TensorDataset

from perfscope.probe import Finding, Place, replace
from perfscope.workload import feed

USES = ("config",)
CODE = "DataLoader(..., num_workers=k, persistent_workers=True)"
#: Seconds from iter(loader) to the first batch with forked workers: at least this in each of 15 starts of 1, 2 and 4 workers on a
#: busy 2-core machine, torch 2.13 (0.077 to 0.364). Only the threshold is made of it: it is no measurement of your loader.
RESTART_S = 0.07
SHARE = 0.01                # METHOD 8: the smallest change that matters


def detect(evidence):
    c, facts = evidence.config, evidence.config.loader
    if not facts.get("workers") or facts.get("persistent") or not facts.get("samples") or not c.batch_size or not c.step_s:
        return
    steps = max(1, facts["samples"] // c.batch_size)
    if RESTART_S < SHARE * steps * c.step_s:
        return
    yield Finding("", f"{facts['workers']} loader workers are started anew every epoch, and an epoch is {steps} steps ({steps * c.step_s:.2f} s)",
                  (Place("data", f"DataLoader(num_workers={facts['workers']}, persistent_workers=False) over {facts['samples']} samples"),),
                  "keep the workers: persistent_workers=True", evidence={"steps_per_epoch": steps, "epoch_s": steps * c.step_s})


def fix(workload):
    return replace(workload, data=feed.rebuilt(workload.data, persistent_workers=True))


def loaded(workload, **options):
    """Eight batches per epoch by one worker, forever."""
    samples = TensorDataset(*(torch.as_tensor(t) for t in workload.batch(64)))

    def data(n):
        loader = DataLoader(samples, n, num_workers=1, drop_last=True, **options)
        while True:
            yield from loader
    return replace(workload, data=data)


def healthy(workload):
    """The same loader, whose worker stays."""
    return loaded(workload, persistent_workers=True)


def plant(workload):
    return loaded(workload)
