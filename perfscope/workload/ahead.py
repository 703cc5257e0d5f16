"""An input pipeline whose batches a thread fetches while the step runs, and which can be stopped."""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from queue import Empty, Full, Queue

import torch

DEPTH = 2                   # batches that wait, as many as one DataLoader worker prefetches
POLL_S = 0.1                # how often a waiting thread looks whether anyone still wants its batches
TICK_S = 0.001              # and one that waits for it
LIVE: weakref.WeakSet = weakref.WeakSet()     # what may load in the background now


def in_thread(data: Callable[[int], Iterable], depth: int = DEPTH) -> Callable[[int], Iterator]:
    """data(n) whose batches a thread fetches while the step runs: `depth` of them wait. Its errors are raised where the batch is asked for."""
    return partial(_ahead, data, depth)


def _ahead(data, depth, n) -> Ahead:
    return Ahead(iter(data(n)), depth)


@dataclass(frozen=True)
class Shared:
    """What the two threads of an Ahead share. `go`: it may fetch; `idle`: it does not; `over`: it ends."""

    ready: Queue
    go: threading.Event = field(default_factory=threading.Event)
    idle: threading.Event = field(default_factory=threading.Event)
    over: threading.Event = field(default_factory=threading.Event)


class Ahead:
    """An iterator that is drawn from in a thread of its own. The thread ends when this object is dropped."""

    in_process, workers = False, 0      # perfscope.evidence.loader: fetching does not happen in the training thread

    def __init__(self, iterator: Iterator, depth: int):
        self.iterator, self.shared = iterator, Shared(Queue(depth))
        self.thread: threading.Thread | None = None
        LIVE.add(self)

    def __iter__(self) -> Ahead:
        return self

    def __next__(self):
        if self.thread is None:
            self._start()
        self.shared.go.set()
        batch, error = self.shared.ready.get()
        if error is not None:
            self.shared.ready.put((None, error))    # and again, if one asks again
            raise error
        return batch

    def _start(self) -> None:
        running, threads = threading.Event(), torch.get_num_threads()
        device = torch.cuda.current_device() if torch.cuda.is_initialized() else None
        self.thread = threading.Thread(target=_fill, args=(self.iterator, self.shared, running, device), daemon=True)
        self.thread.start()
        running.wait()
        torch.set_num_threads(threads)              # what later threads begin with; the loading thread keeps its own 1
        weakref.finalize(self, _end, self.shared, self.thread)

    def stop(self) -> None:
        """Waits for the batch that is being fetched, throws away those that wait, fetches no more until one is asked for."""
        s, entry = self.shared, (None, None)
        s.go.clear()
        while self.thread is not None and self.thread.is_alive() and not (s.idle.is_set() and s.ready.empty()):
            with contextlib.suppress(Empty):
                entry = s.ready.get(timeout=TICK_S)
        while not s.ready.empty():
            entry = s.ready.get()
        if entry[1] is not None:
            s.ready.put(entry)                      # an end or an error stays one


def _fill(iterator, s: Shared, running: threading.Event, device: int | None) -> None:
    torch.set_num_threads(1)                        # of this thread, as DataLoader's own pin_memory thread does: the step has the cores
    running.set()
    if device is not None:
        torch.cuda.set_device(device)
    entry = (None, None)
    while not s.over.is_set() and entry[1] is None:
        if not s.go.is_set():
            s.idle.set()
            if not s.go.wait(POLL_S):
                continue
        s.idle.clear()
        try:
            entry = (next(iterator), None)
        except BaseException as e:
            entry = (None, e)
        while not s.over.is_set():
            with contextlib.suppress(Full):
                s.ready.put(entry, timeout=POLL_S)
                break


def _end(s: Shared, thread: threading.Thread) -> None:
    s.over.set()
    if thread is not threading.current_thread():
        thread.join(timeout=5.0)
