"""Python's garbage collector runs during the training steps, and everything waits for it.

## What it sees
The collector's own callbacks over a few steps: how often it ran and for how long, beside how long the steps took. It fires at
one collection or more every other step that together take at least 5 % of the time.

## Why it is slow
A full collection looks at every Python object there is: importing torch alone makes about 170 000 of them, and walking them took
0.22 s here. Meanwhile nothing is launched, and a GPU that has worked off its queue waits. With several ranks, all wait for
the one that collects.

## Cure
gc.freeze() after the warm-up, so that what lives on is not looked at again; gc.disable(), and gc.collect() every 50 steps, on all
ranks at the same step. Calls of gc.collect() of your own within the step go: `fix` measures the step without them.

## Not for
Loops that make large cycles of tensors at every step: their memory is only freed at the collection. Pauses that come once in
hundreds of steps are not seen here; a step time whose 99th percentile is far above its median hints at them.

## References
SLOW_PATHS S38; Python's gc module; torchtitan's GarbageCollection, which does the same.
"""

import contextlib
import gc

from perfscope.probe import Finding, Place, add

USES = ("config",)
CODE = """gc.collect(); gc.freeze(); gc.disable()                # after the warm-up; no other gc.collect() in the loop
if i % 50 == 0: gc.collect()                           # in the loop"""
SHARE = 0.05                # of the time of the steps: 2 ms in a step of 40 ms (SLOW_PATHS: more than 2 ms per step)
EVERY = 50                  # steps between two collections (torchtitan's default)


def detect(evidence):
    seen = evidence.config.observed
    steps, count, seconds = seen.get("steps", 0), seen.get("gc_collections", 0), seen.get("gc_s", 0.0)
    total = sum(seen.get("step_s", ()))
    if not total or count < max(2, steps / 2) or seconds < SHARE * total:
        return
    kept = evidence.config.switches.get("gc_frozen", 0)
    place = Place("gc", f"{count} collections in {steps} steps, {seconds / steps * 1e3:.2f} ms per step; {kept or 'no'} objects are frozen")
    yield Finding("", f"the garbage collector takes {seconds / total:.0%} of the time of the steps", (place,),
                  "freeze what lives on, disable the collector, collect every few steps", share=seconds / total, basis="ceiling",
                  evidence={"collections": count, "steps": steps, "seconds_per_step": seconds / steps})


@contextlib.contextmanager
def frozen():
    """The collector disabled, also where the step itself calls gc.collect(), and everything that lives frozen, while inside; then
    as it was. Whoever had disabled it before (measuring does) thaws it too: counting what is frozen, and thawing, touches every
    object, and the steps behind that are 6 % slower for it."""
    enabled, collect = gc.isenabled(), gc.collect
    thaw = enabled and not gc.get_freeze_count()
    gc.collect()
    gc.freeze()
    gc.disable()
    gc.collect = _later
    try:
        yield
    finally:
        gc.collect = collect
        if thaw:
            gc.unfreeze()
        if enabled:
            gc.enable()


def _later(generation=2):
    """gc.collect, which finds nothing."""
    return 0


class Collecting:
    """What follows a step: what followed it before, and a collection every EVERY steps."""

    def __init__(self, after=None):
        self.after, self.steps, self.collect = after, 0, gc.collect

    def __call__(self, loss):
        self.steps += 1
        if self.after is not None:
            self.after(loss)
        if self.steps % EVERY == 0:
            self.collect()


def fix(workload):
    return add(workload, contexts=[frozen], after_step=Collecting(workload.after_step))


def tidy(loss):
    """What some loops do at every step."""
    gc.collect()


def plant(workload):
    return add(workload, after_step=tidy)
