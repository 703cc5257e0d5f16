"""Other ways to draw the same batches from an input pipeline: ahead of the step in a thread, with a DataLoader set up otherwise, page-locked.

All take and give the `data` of a Workload: data(n) -> iterator of batches. The given one is not changed, and no DataLoader
of the user's either: a copy takes its place while one is iterated over inside data(n). Nothing runs before the first batch is asked for.
"""

from __future__ import annotations

import copy
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from queue import Full, Queue
from typing import Any
from unittest import mock

import torch
from torch.utils.data import DataLoader, IterableDataset

DEPTH = 2                   # batches that wait, as many as one DataLoader worker prefetches
POLL_S = 0.1                # how often a waiting thread looks whether anyone still wants its batches


# ---------------------------------------------------------------- a thread that fetches ahead

def in_thread(data: Callable[[int], Iterable], depth: int = DEPTH) -> Callable[[int], Iterator]:
    """data(n) whose batches a thread fetches while the step runs: `depth` of them wait. Its errors are raised where the batch is asked for."""
    return partial(_ahead, data, depth)


def _ahead(data, depth, n) -> Ahead:
    return Ahead(iter(data(n)), depth)


class Ahead:
    """An iterator that is drawn from in a thread of its own. The thread ends when this object is dropped."""

    in_process = False          # perfscope.loader: fetching does not happen in the training thread

    def __init__(self, iterator: Iterator, depth: int):
        self.iterator, self.ready = iterator, Queue(depth)
        self.thread: threading.Thread | None = None

    def __iter__(self) -> Ahead:
        return self

    def __next__(self):
        if self.thread is None:
            self._start()
        batch, error = self.ready.get()
        if error is not None:
            self.ready.put((None, error))           # and again, if one asks again
            raise error
        return batch

    def _start(self) -> None:
        over, running, threads = threading.Event(), threading.Event(), torch.get_num_threads()
        device = torch.cuda.current_device() if torch.cuda.is_initialized() else None
        self.thread = threading.Thread(target=_fill, args=(self.iterator, self.ready, over, running, device), daemon=True)
        self.thread.start()
        running.wait()
        torch.set_num_threads(threads)              # what later threads begin with; the loading thread keeps its own 1
        weakref.finalize(self, _stop, over, self.thread)


def _fill(iterator, ready: Queue, over: threading.Event, running: threading.Event, device: int | None) -> None:
    torch.set_num_threads(1)                        # of this thread, as DataLoader's own pin_memory thread does: the step has the cores
    running.set()
    if device is not None:
        torch.cuda.set_device(device)
    while not over.is_set():
        try:
            entry = (next(iterator), None)
        except BaseException as e:
            entry = (None, e)
        while not over.is_set():
            try:
                ready.put(entry, timeout=POLL_S)
                break
            except Full:
                continue
        if entry[1] is not None:
            return


def _stop(over: threading.Event, thread: threading.Thread) -> None:
    over.set()
    if thread is not threading.current_thread():
        thread.join(timeout=5.0)


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
            return usual(new) if isinstance(new, DataLoader) else iter(new)
        with mock.patch.object(DataLoader, "__iter__", begin):
            if self.iterator is None:
                self.iterator = iter(self.make())
            batch = next(self.iterator)
        if self.needed and not changed:
            raise ValueError("the input pipeline does not use a DataLoader")
        return batch


