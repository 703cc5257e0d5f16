"""Other ways to draw the same batches from an input pipeline: ahead of the step in a thread, with a DataLoader set up otherwise, page-locked.

All take and give the `data` of a Workload: data(n) -> iterator of batches. The given one is not changed, and no DataLoader
of the user's either: a copy takes its place while one is iterated over inside data(n). Nothing runs before the first batch is asked for.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset

from perfscope.workload.ahead import DEPTH, LIVE, in_thread

BURSTS = 4                  # a loader with w workers delivers w batches at once: a sample is at least so many times w steps

__all__ = ["Epoch", "Swapped", "in_thread", "limited", "pinned", "quiet", "rebuilt", "resident", "stoppable", "whole_bursts"]


# ---------------------------------------------------------------- whoever measures in turns

def stoppable(data: Callable[[int], Iterable]) -> Callable[[int], Iterator]:
    """data(n) that `quiet` can stop, whatever loads for it."""
    return partial(Swapped, data, partial(_with, {}), needed=False)


def quiet() -> None:
    """Stops every thread and worker that loads ahead, and throws away what waits, until the next batch is asked for.

    Where several versions of a step are timed in turns, one that loads ahead would otherwise get the batches that were made during
    another's turn for nothing, and take that one's cores. Workers are started anew; the first batch after this is dear.
    """
    for loading in list(LIVE):
        loading.stop()


def whole_bursts(k: int) -> int:
    """`k` steps, or as many as BURSTS of the `stoppable` pipelines there are: the steps of one sample."""
    return max(k, BURSTS * max((loading.workers for loading in list(LIVE)), default=0))


# ---------------------------------------------------------------- page-locked

def pinned(data: Callable[[int], Iterable]) -> Callable[[int], Iterator]:
    """data(n) with every batch in page-locked memory: by its DataLoader where there is one, else as it comes. On CUDA only."""
    return partial(_pinned, partial(Swapped, data, partial(_with, {"pin_memory": True}), needed=False))


def _pinned(data, n):
    for batch in data(n):
        yield _lock(batch)


def _lock(value):
    if isinstance(value, torch.Tensor):
        return value if value.is_pinned() or value.device.type != "cpu" else value.pin_memory()
    if isinstance(value, dict):
        return {k: _lock(v) for k, v in value.items()}
    if isinstance(value, (tuple, list)):
        values = [_lock(v) for v in value]
        return type(value)(*values) if hasattr(value, "_fields") else type(value)(values)
    return value


# ---------------------------------------------------------------- another DataLoader in the place of the user's

def rebuilt(data: Callable[[int], Iterable], **settings: Any) -> Callable[[int], Iterator]:
    """data(n) with its DataLoaders set up otherwise: num_workers, prefetch_factor, persistent_workers, pin_memory.

    The first batch raises ValueError if there is no DataLoader, or workers were asked for an IterableDataset (each would give all samples).
    """
    return partial(Swapped, data, partial(_with, settings))


def limited(data: Callable[[int], Iterable], workers: int) -> Callable[[int], Iterator]:
    """data(n) whose DataLoaders have at most so many workers; a pipeline without any stays what it is."""
    return partial(Swapped, data, partial(_at_most, workers), needed=False)


def resident(data: Callable[[int], Iterable], device) -> Callable[[int], Iterator]:
    """data(n) with the tensors of its DataLoaders' data sets kept on `device`: batches are cut there, in the sampler's order.

    The first batch raises ValueError if there is no DataLoader, or its data set is not a TensorDataset with the default collation.
    """
    return partial(Swapped, data, partial(_Resident, device))


def _with(settings: dict, loader: DataLoader) -> DataLoader:
    workers = settings.get("num_workers", loader.num_workers)
    if workers and not loader.num_workers and isinstance(loader.dataset, IterableDataset):
        raise ValueError("the data set is an IterableDataset: every worker would give all samples")
    changed = copy.copy(loader)
    prefetch = settings.get("prefetch_factor", loader.prefetch_factor) or DEPTH
    changed.__dict__.update({**settings, "prefetch_factor": prefetch if workers else None}, _iterator=None)   # past DataLoader.__setattr__
    return changed


def _at_most(workers: int, loader: DataLoader) -> DataLoader:
    return loader if loader.num_workers <= workers else _with({"num_workers": workers}, loader)


class _Resident:
    """Batches of a TensorDataset that is on the device."""

    def __init__(self, device, loader: DataLoader):
        tensors = getattr(loader.dataset, "tensors", None)
        if not tensors or loader.batch_sampler is None or loader.collate_fn is not torch.utils.data.default_collate:
            raise ValueError("the data set is no TensorDataset with the default collation: it cannot be kept on the device as it is")
        self.tensors, self.sampler = [t.to(device) for t in tensors], loader.batch_sampler

    def __iter__(self):
        for indices in self.sampler:
            index = torch.tensor(indices).to(self.tensors[0].device, non_blocking=True)
            yield [t[index] for t in self.tensors]


class Epoch:
    """One pass over a DataLoader with workers, which can be stopped: it then begins anew, with new workers, where a batch is asked for."""

    def __init__(self, loader: DataLoader, begin: Callable[[DataLoader], Iterator]):
        self.loader, self.begin, self.workers = loader, begin, loader.num_workers
        self.real: Iterator | None = begin(loader)
        LIVE.add(self)

    def __iter__(self) -> Epoch:
        return self

    def __next__(self):
        if self.real is None:
            self.real = self.begin(self.loader)
        return next(self.real)

    def stop(self) -> None:
        """Ends the workers."""
        self.real = None
        self.loader.__dict__["_iterator"] = None    # where workers that stay are kept


class Swapped:
    """The iterator data(n), with `change(loader)` in the place of each DataLoader that it iterates over."""

    def __init__(self, data, change, n: int, needed: bool = True):
        self.make, self.change, self.needed, self.iterator = partial(data, n), change, needed, None
        self.changed: dict[int, tuple[DataLoader, Any]] = {}

    @property
    def loader(self) -> DataLoader | None:
        """The DataLoader that really runs; None before the first batch, or if none does."""
        return next((new for _, new in self.changed.values() if isinstance(new, DataLoader)), None)

    def __iter__(self) -> Swapped:
        return self

    def __next__(self):
        usual, changed, change = DataLoader.__iter__, self.changed, self.change

        def begin(loader):
            if id(loader) not in changed:
                changed[id(loader)] = (loader, change(loader))      # the loader too: its id is not used again while it lives
            new = changed[id(loader)][1]
            if not isinstance(new, DataLoader):
                return iter(new)
            return Epoch(new, usual) if new.num_workers else usual(new)
        DataLoader.__iter__ = begin             # for every batch: by hand, without the work of mock.patch
        try:
            if self.iterator is None:
                self.iterator = iter(self.make())
            batch = next(self.iterator)
        finally:
            DataLoader.__iter__ = usual
        if self.needed and not changed:
            raise ValueError("the input pipeline does not use a DataLoader")
        return batch


