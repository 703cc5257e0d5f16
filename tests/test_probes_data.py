"""Probes of data, memory and distributed training: what the contract cannot show."""

import contextlib
import gc
import math
import threading
import time
from dataclasses import replace
from unittest import mock

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from perfscope import contract, probing, registry
from perfscope.evidence import ddp
from perfscope.evidence import gather
from perfscope.evidence.loader import facts
from perfscope.measure import machine
from perfscope.probe import Config, Evidence
from perfscope.trace.analysis import RankAnalysis
from perfscope.trace.ranks import Call
from perfscope.trace.steps import Step
from perfscope.trace.tables import Copy
from perfscope.turns import take_turns
from perfscope.workload import Workload, feed, step
from perfscope.workload.step import Batches


def probe(name: str):
    return registry.load("probes", name)


def found(name: str, evidence: Evidence):
    seen, failed, _ = probing.detect({name: probe(name)}, evidence)
    assert failed == {}
    return seen


def config(**fields) -> Config:
    return Config(**{"torch": "2.13", "step_s": 0.1, "batch_size": 8, "cores": 4.0, "threads": 4, **fields})


CORES = math.ceil(machine.cpu()["cores_usable"])
SAMPLES = TensorDataset(torch.arange(40.0).view(20, 2), torch.arange(20))


def endless(loader):
    def data(n):
        while True:
            yield from loader
    return data


# ---------------------------------------------------------------- pipelines fed otherwise

def test_a_thread_gives_the_same_batches_in_the_same_order_and_ends():
    def data(n):
        for i in range(3):
            yield torch.full((n,), float(i)), threading.current_thread().name
    ahead = feed.in_thread(data)(2)
    assert ahead.thread is None, "nothing runs before the first batch is asked for"
    batches = list(ahead)
    assert [b[0][0].item() for b in batches] == [0, 1, 2] and threading.current_thread().name not in {b[1] for b in batches}
    with pytest.raises(StopIteration):
        next(ahead)


def test_the_thread_leaves_with_its_iterator_and_the_number_of_threads_stays():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        ahead = feed.in_thread(lambda n: iter(lambda: torch.zeros(n), None))(2)
        next(ahead)
        later = []
        other = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
        other.start(), other.join()
        assert torch.get_num_threads() == 2 and later == [2]
        thread = ahead.thread
        del ahead
        gc.collect()
        thread.join(timeout=10)
        assert not thread.is_alive()
    finally:
        torch.set_num_threads(before)


def test_an_error_in_the_thread_is_raised_where_the_batch_is_asked_for():
    def data(n):
        yield 1
        raise ValueError("no such image")
    ahead = feed.in_thread(data)(2)
    assert next(ahead) == 1
    for _ in range(2):
        with pytest.raises(ValueError, match="no such image"):
            next(ahead)


def test_workers_take_the_place_of_none_and_the_users_loader_stays_what_it_is():
    loader = DataLoader(SAMPLES, 5)
    usual = DataLoader.__iter__

    def data(n):
        for x, y in loader:
            yield 2 * x, y                          # the user's own code behind the loader runs too
    plain, swapped = list(data(5)), feed.rebuilt(data, num_workers=1, persistent_workers=True)(5)
    assert [x.tolist() for x, _ in swapped] == [x.tolist() for x, _ in plain]
    assert swapped.loader.num_workers == 1 and swapped.loader.persistent_workers and swapped.loader.prefetch_factor == 2
    assert loader.num_workers == 0 and loader._iterator is None and DataLoader.__iter__ is usual


def test_workers_that_stay_are_the_same_processes_in_the_next_epoch():
    it = feed.rebuilt(endless(DataLoader(SAMPLES, 10, num_workers=1)), persistent_workers=True)(10)
    next(it)
    first = [w.pid for w in it.loader._iterator._workers]
    for _ in range(4):
        next(it)
    assert [w.pid for w in it.loader._iterator._workers] == first


class Stream(IterableDataset):
    def __iter__(self):
        return iter(range(4))


@pytest.mark.parametrize("data, why", [(lambda n: iter([1, 2]), "does not use a DataLoader"),
                                       (lambda n: iter(DataLoader(Stream(), 2)), "every worker would give all samples")])
def test_workers_are_refused_where_they_make_no_sense(data, why):
    with pytest.raises(ValueError, match=why):
        next(feed.rebuilt(data, num_workers=2)(2))


def test_a_resident_data_set_gives_the_loaders_own_batches():
    def shuffled():
        return DataLoader(SAMPLES, 6, shuffle=True, generator=torch.Generator().manual_seed(3))
    loader, other = shuffled(), shuffled()
    resident = list(feed.resident(lambda n: iter(loader), "cpu")(6))
    order = [torch.tensor(i) for i in other.batch_sampler]
    assert [y.tolist() for _, y in resident] == [SAMPLES.tensors[1][i].tolist() for i in order]
    assert [x.tolist() for x, _ in resident] == [SAMPLES.tensors[0][i].tolist() for i in order]
    with pytest.raises(ValueError, match="no TensorDataset"):
        next(feed.resident(lambda n: iter(DataLoader(probe("loading_in_step").Slow((torch.zeros(4, 1), torch.zeros(4))), 2)), "cpu")(2))


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_at_most_so_many_workers():
    many, none = DataLoader(SAMPLES, 5, num_workers=3), iter([7])
    it = feed.limited(lambda n: iter(many), 1)(5)
    next(it)
    assert it.loader.num_workers == 1 and many.num_workers == 3
    assert next(feed.limited(lambda n: none, 1)(5)) == 7


def test_pinning_leaves_a_machine_without_cuda_and_other_values_alone():
    if torch.cuda.is_available():
        pytest.skip("this machine can pin")
    assert feed._lock({"a": ["text", 3]}) == {"a": ["text", 3]}


# ---------------------------------------------------------------- nobody loads during another's turn

def test_a_thread_that_was_stopped_has_nothing_ready_and_goes_on_when_asked():
    made = []

    def data(n):
        for i in range(1000):
            made.append(i)
            yield i
    ahead = feed.in_thread(data)(1)
    assert next(ahead) == 0
    while len(made) < 4:                            # two wait, one is in hand
        time.sleep(0.001)
    feed.quiet()
    stopped = len(made)
    assert ahead.shared.ready.empty() and ahead.shared.idle.is_set() and made[-1] == stopped - 1
    time.sleep(0.05)
    assert len(made) == stopped
    assert next(ahead) == stopped, "the batches that waited are gone, the next one is made now"


def test_a_stopped_thread_keeps_its_error():
    def data(n):
        yield 1
        raise ValueError("no such image")
    ahead = feed.in_thread(data)(1)
    next(ahead)
    ahead.thread.join()
    feed.quiet()
    with pytest.raises(ValueError, match="no such image"):
        next(ahead)


def test_workers_that_were_stopped_are_gone_and_others_come():
    loader = DataLoader(SAMPLES, 5, num_workers=1, persistent_workers=True)
    it = feed.stoppable(endless(loader))(5)
    next(it)
    before = list(it.loader._iterator._workers)
    assert feed.whole_bursts(1) >= feed.BURSTS and feed.whole_bursts(10 ** 6) == 10 ** 6
    feed.quiet()
    for worker in before:
        worker.join(10)
    assert not any(w.is_alive() for w in before) and loader._iterator is None
    assert next(it)[1].tolist() == [0, 1, 2, 3, 4]


def small_batch(n):
    return torch.randn(n, 4), torch.zeros(n, dtype=torch.int64)


def test_in_turns_a_version_loads_only_in_its_own():
    active, seen = [None], {"before": [], "cured": []}

    def make(stack):
        name = "cured" if stack else "before"

        @contextlib.contextmanager
        def turn():
            active.append(name)
            yield
            active.pop()

        def data(n):
            while True:
                seen[name].append(active[-1])
                time.sleep(0.003 if stack else 0)   # slower than the step: there is always a batch to be made
                yield small_batch(n)
        model = nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2))
        return Workload(model, nn.CrossEntropyLoss(), torch.optim.SGD(model.parameters(), lr=0.1), small_batch,
                        feed.in_thread(data) if stack else data, contexts=(turn,))
    turns = take_turns(make, {"before": (), "cured": ("x",)}, device="cpu", batch_size=2, budget_s=5.0, target=0.0, max_rounds=6)
    assert len(turns.rounds) == 6 and not turns.errors
    assert set(seen["before"]) == {"before"} and set(seen["cured"]) <= {"cured", None}


def test_a_sample_covers_the_bursts_of_its_workers():
    gc.collect()                                    # pipelines of other tests
    samples = TensorDataset(torch.randn(60, 4), torch.zeros(60, dtype=torch.int64))

    def make(stack):
        model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
        slow = (lambda: mock.patch.object(nn.Linear, "forward", lambda self, x: (time.sleep(0.03), nn.functional.linear(x, self.weight, self.bias))[1]),)
        return Workload(model, nn.CrossEntropyLoss(), torch.optim.SGD(model.parameters(), lr=0.1), small_batch,
                        endless(DataLoader(samples, 6, num_workers=len(stack))), contexts=slow)
    turns = take_turns(make, {"before": (), "cured": ("x", "y")}, device="cpu", batch_size=6, budget_s=0.1, target=0.0, max_rounds=1)
    assert turns.errors == {} and turns.steps_per_sample == 8, "a step is longer than a sample has to be; two workers, four times"


# ---------------------------------------------------------------- loading in the step

def test_the_bytes_of_a_batch_and_of_a_data_set_of_tensors_are_counted():
    loader = DataLoader(TensorDataset(torch.zeros(20, 3), torch.zeros(20, dtype=torch.long)), 4)
    known = facts(Workload(None, None, None, None, loader), Batches(4, None, None, iter(loader)))
    assert (known["batch_bytes"], known["dataset_bytes"], known["samples"], known["device"]) == (4 * (3 * 4 + 8), 20 * (3 * 4 + 8), 20, "cpu")


def test_who_loads_is_known(monkeypatch):
    def of(data):
        batches = Batches(5, None, None, iter(data(5)))
        next(batches.pipeline)
        return facts(Workload(None, None, None, None, data), batches)

    def waits(n):
        while True:
            time.sleep(0.02)
            yield torch.zeros(n)

    def works(n):
        while True:
            yield torch.randn(300_000)[:n]
    own = DataLoader(SAMPLES, 5)
    assert of(endless(own))["in_process"] and of(works)["in_process"]
    assert not of(waits)["in_process"], "something else makes these batches; this thread only waits"
    assert not of(feed.in_thread(works))["in_process"]
    swapped = of(feed.rebuilt(endless(own), num_workers=1))
    assert not swapped["in_process"] and swapped["workers"] == 1


@pytest.mark.parametrize("facts_, fires", [({"in_process": True, "batch_s": 0.006}, True), ({"in_process": True, "batch_s": 0.004}, False),
                                           ({"in_process": False, "batch_s": 0.09}, False), ({}, False)])
def test_loading_from_five_percent_of_the_step_on(facts_, fires):
    assert bool(found("loading_in_step", Evidence(config(loader=facts_)))) == fires


def rank(loader=0, exposed=0, marks=None, **more) -> RankAnalysis:
    steps = (Step("ProfilerStep#1", 0, 0, 100_000_000, busy_ns=80_000_000, loader_ns=loader, loader_exposed_ns=exposed),)
    return RankAnalysis(0, 1, "", {"0": "GPU"}, device_events=100, steps=steps, marks=marks or {}, **more)


def test_on_a_gpu_the_trace_decides_what_is_hidden():
    c = config(device="cuda", loader={"in_process": True, "batch_s": 0.05, "workers": 0, "dataset": "Slow"})
    assert found("loading_in_step", Evidence(c))
    assert not found("loading_in_step", Evidence(c, trace=rank(50_000_000, 1_000_000)))
    assert found("loading_in_step", Evidence(c, trace=rank(50_000_000, 5_000_000)))[0].share == 0.05


def test_starved_workers_are_told_from_no_workers():
    starved = rank(30_000_000, 20_000_000, {"enumerate(DataLoader)#_MultiProcessingDataLoaderIter.__next__": 6})
    f, = found("loading_in_step", Evidence(Config(device="cuda"), trace=starved))
    assert "workers do not keep up" in f.text and not f.curable and "num_workers=0" not in f.places[0].saw


def test_the_planted_pipeline_is_named_by_dataset_and_line():
    f, = found("loading_in_step", contract.evidence_of(probe("loading_in_step").plant(contract.subject("conv"))))
    assert "DataLoader(num_workers=0) over Slow" in f.places[0].saw and f.curable
    assert f.evidence["loading_share"] == pytest.approx(f.evidence["batch_s"] / f.evidence["step_s"])


def test_one_core_is_said():
    f, = found("loading_in_step", Evidence(config(cores=1.0, loader={"in_process": True, "batch_s": 0.05})))
    assert "one core" in f.note


# ---------------------------------------------------------------- copies, residence, workers, threads

@pytest.mark.parametrize("kind, ns, fires", [("HtoD (Pageable -> Device)", 1_000_000, True), ("HtoD (Pageable -> Device)", 990_000, False),
                                             ("HtoD (Pinned -> Device)", 50_000_000, False), ("DtoH (Device -> Pageable)", 50_000_000, False)])
def test_pageable_copies_from_one_percent_on(kind, ns, fires):
    trace = rank(copies=(Copy(kind, 3, ns, None, None),))
    assert bool(found("pageable_copies", Evidence(Config(device="cuda"), trace=trace))) == fires


@pytest.mark.parametrize("facts_, fires", [({"device": "cpu", "pinned": False, "batch_bytes": 7_000_000}, True),
                                           ({"device": "cpu", "pinned": True, "batch_bytes": 7_000_000}, False),
                                           ({"device": "cuda", "pinned": False, "batch_bytes": 7_000_000}, False),
                                           ({"device": "cpu", "pinned": False, "batch_bytes": 5_000_000}, False), ({}, False)])
def test_pageable_batches_without_a_trace(facts_, fires):
    assert bool(found("pageable_copies", Evidence(config(device="cuda", loader=facts_)))) == fires


@pytest.mark.parametrize("change, fires", [({}, True), ({"dataset_bytes": 16 << 30}, False), ({"batch_s": 0.001}, False), ({"in_process": False}, False),
                                           ({"device": "cuda"}, False), ({"dataset_bytes": None}, False)])
def test_each_condition_of_a_data_set_that_fits(change, fires):
    ill = probe("data_fits_on_device").examples()[0]
    assert bool(found("data_fits_on_device", replace(ill, config=replace(ill.config, loader={**ill.config.loader, **change})))) == fires


def test_a_trace_of_the_same_run_says_whether_the_gpu_waits_for_the_data():
    ill = probe("data_fits_on_device").examples()[0]
    copies = (Copy("DtoD (Device -> Device)", 9, 50_000_000, None, None), Copy("HtoD (Pinned -> Device)", 2, 4_000_000, None, None))
    assert not found("data_fits_on_device", replace(ill, trace=rank(copies=copies)))
    assert found("data_fits_on_device", replace(ill, trace=rank(exposed=2_000_000, copies=copies)))[0].share == pytest.approx(0.06)


@pytest.mark.parametrize("change, fires", [({}, True), ({"persistent": True}, False), ({"workers": 0}, False), ({"samples": 800}, False),
                                           ({"samples": None}, False)])
def test_each_condition_of_restarted_workers(change, fires):
    ill = {"workers": 2, "persistent": False, "samples": 400, "in_process": False, "batch_s": 0.0}
    assert bool(found("worker_restart", Evidence(config(loader={**ill, **change})))) == fires


@pytest.mark.parametrize("fields, fires", [({}, False), ({"threads": 5}, True), ({"cores": 3.5}, False), ({"cores": 2.5}, True),
                                           ({"switches": {"threads": 8}}, True), ({"threads": 8, "switches": {"threads": 4}}, False),
                                           ({"loader": {"workers": 5}}, True), ({"loader": {"workers": 4}}, False),
                                           ({"device": "cuda", "threads": 8}, False), ({"device": "cuda", "threads": 8, "loader": {"in_process": True}}, True)])
def test_threads_and_workers_against_usable_cores(fields, fires):
    assert bool(found("thread_oversubscription", Evidence(config(**fields)))) == fires


def test_the_cure_of_threads_is_over_with_the_step():
    before = torch.get_num_threads()
    p = probe("thread_oversubscription")
    prepared = step.prepare(p.fix(p.plant(contract.subject("conv"))))
    batches = step.load_batches(prepared, 4)
    order = step.present_parts(prepared, batches)
    inside = []
    with step.build(prepared, batches, order, order):
        inside.append(torch.get_num_threads())
    assert inside == [CORES] and torch.get_num_threads() == before
    assert not found("thread_oversubscription", contract.evidence_of(p.fix(p.plant(contract.subject("conv")))))


# ---------------------------------------------------------------- memory

@pytest.mark.parametrize("observed, fires", [({"device_alloc": 5}, True), ({"device_alloc": 4}, False), ({"alloc_retries": 1}, True),
                                             ({"empty_cache": 5}, False), ({}, False)])
def test_allocations_per_step(observed, fires):
    e = Evidence(config(device="cuda", observed={"steps": 5, "device_alloc": 0, "alloc_retries": 0, "empty_cache": 0, **observed}))
    assert bool(found("allocator_churn", e)) == fires


def test_emptying_the_cache_is_counted_and_the_cure_keeps_it_from_happening(monkeypatch):
    p = probe("allocator_churn")
    calls = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: calls.append(1))
    planted = p.plant(contract.subject("conv"))
    observed = contract.evidence_of(planted).config.observed
    assert observed["empty_cache"] == observed["steps"] and calls
    assert contract.evidence_of(contract.subject("conv")).config.observed["empty_cache"] == 0
    calls.clear()
    prepared = step.prepare(p.fix(planted))
    batches = step.load_batches(prepared, 4)
    with step.build(prepared, batches, ("optimizer",), ("optimizer",)) as variant:
        variant.step()
    assert not calls
    torch.cuda.empty_cache()
    assert calls, "outside the step it is what it was"


def test_without_a_call_to_blame_it_is_a_hint():
    f, = found("allocator_churn", Evidence(config(device="cuda", memory={"peak": 1 << 30}, observed={"steps": 5, "device_alloc": 9, "reserved": 2 << 30})))
    assert not f.curable and "expandable" in f.cure and f.places[-1].where == "reserved memory"


# ---------------------------------------------------------------- distributed, really: one gloo rank

@pytest.fixture
def gloo():
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


class TwoConvolutions(nn.Module):
    def __init__(self, kernel=3, late_layout=False, spare=False):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(8, 16, kernel, padding=kernel // 2), nn.Conv2d(16, 16, kernel, padding=kernel // 2)
        self.head, self.late_layout = nn.Linear(16, 4), late_layout
        self.spare = nn.Linear(2, 2) if spare else None

    def forward(self, x):
        if self.late_layout:                        # the mistake: after DDP has seen the parameters
            self.to(memory_format=torch.channels_last)
        return self.head(self.conv2(self.conv1(x).relu()).mean((2, 3)))


def distributed(model, **arguments) -> Evidence:
    w = Workload(model, nn.CrossEntropyLoss(), torch.optim.SGD(model.parameters(), lr=0.1), lambda n: (torch.randn(n, 8, 8, 8), torch.randint(4, (n,))),
                 ddp=arguments)
    prepared = step.prepare(w, world_size=2, keep_original=False)      # "2" asks for DDP; the group has one rank
    return gather(prepared, step.load_batches(prepared, 4))


@pytest.mark.filterwarnings("ignore:Grad strides do not match")
def test_real_gradient_strides(gloo):
    e = distributed(TwoConvolutions(late_layout=True), find_unused_parameters=True)
    f, = found("ddp_gradient_strides", e)
    assert f.curable and f.evidence == {"gradients": 2, "elements": 16 * 8 * 9 + 16 * 16 * 9, "harmless": 0}
    assert {p.where for p in f.places} == {"conv1.weight", "conv2.weight"}
    assert any(p.saw == "shape (16, 8, 3, 3): gradient strides (72, 1, 24, 8), bucket strides (72, 9, 3, 1)" for p in f.places)
    assert not torch.is_warn_always_enabled()


@pytest.mark.filterwarnings("ignore:Grad strides do not match")
def test_one_by_one_convolutions_warn_for_nothing(gloo):
    e = distributed(TwoConvolutions(kernel=1, late_layout=True), find_unused_parameters=True)
    rows = e.config.observed["gradient_strides"]
    assert len(rows) == 2 and all(map(probe("ddp_gradient_strides").harmless, rows)), "PyTorch warns, and the order in memory is the same"
    assert not found("ddp_gradient_strides", e)


@pytest.mark.filterwarnings("ignore:Grad strides do not match")
@pytest.mark.parametrize("first", [True, False])
def test_buckets_made_anew_or_a_layout_set_before_ddp_are_no_finding(gloo, first):
    model = TwoConvolutions(late_layout=not first)
    if first:
        model.to(memory_format=torch.channels_last)
    assert not found("ddp_gradient_strides", distributed(model, **({"find_unused_parameters": True} if first else {})))


def test_real_unused_parameters(gloo):
    assert found("ddp_unused_parameters", distributed(TwoConvolutions(), find_unused_parameters=True))[0].curable
    needed = distributed(TwoConvolutions(spare=True), find_unused_parameters=True)
    assert needed.config.observed["without_gradient"] == ["spare.weight", "spare.bias"] and not found("ddp_unused_parameters", needed)
    assert not found("ddp_unused_parameters", distributed(TwoConvolutions()))


def test_real_bucket_views(gloo):
    e = distributed(TwoConvolutions())
    f, = found("ddp_bucket_view", e)
    size = sum(4 * p.numel() for p in TwoConvolutions().parameters())
    assert f.curable and f.evidence == {"gradients": 6, "bytes": size}
    assert not found("ddp_bucket_view", distributed(TwoConvolutions(), gradient_as_bucket_view=True))


def test_without_ranks_a_ddp_finding_is_a_hint_because_nothing_could_be_measured():
    for name in ("ddp_bucket_view", "ddp_unused_parameters"):
        f, = found(name, contract.evidence_of(probe(name).plant(contract.subject("conv"))))
        assert not f.curable and "no DDP" in f.note


def test_silent_without_distribution():
    e = contract.evidence_of(contract.subject("conv"))
    assert e.config.ddp is None and "gradient_strides" not in e.config.observed
    assert not any(found(n, e) for n in ("ddp_bucket_view", "ddp_unused_parameters", "ddp_gradient_strides"))


def test_the_warning_is_read_as_pytorch_writes_it():
    import warnings

    def a_step():
        warnings.warn("Grad strides do not match bucket view strides. This may ...\ngrad.sizes() = [4, 1], strides() = [1, 4]\n"
                      "bucket_view.sizes() = [4, 1], strides() = [1, 1] (Triggered internally at reducer.cpp:335.)")
        warnings.warn("something else")
    assert ddp.gradient_strides(a_step) == [{"sizes": [4, 1], "grad": [1, 4], "bucket": [1, 1]}]


# ---------------------------------------------------------------- distributed, in traces

def micro_batches(sizes, forwards=4, updates=1, name="allreduce"):
    calls = tuple(Call("ProfilerStep#1", "", i, name, n, i, 1_000_000) for i, n in enumerate(sizes))
    marks = {"DistributedDataParallel.forward": forwards, "Optimizer.step#SGD.step": updates}
    return Evidence(Config(device="cuda"), trace=rank(marks=marks, collectives=calls))


@pytest.mark.parametrize("sizes, more, fires", [
    ([5, 9] * 4, {}, True), ([5, 9], {}, False), ([5, 9] * 4, {"forwards": 1}, False), ([5, 9, 5, 8] * 2, {}, False), ([5, 9] * 3, {}, False),
    ([5, 9] * 4, {"name": "_reduce_scatter_base"}, False), ([None] * 8, {}, False), ([5, 9] * 4, {"forwards": 4, "updates": 4}, False), ([], {}, False)])
def test_micro_batches_that_are_all_reduced_each(sizes, more, fires):
    seen = found("ddp_sync_every_micro_batch", micro_batches(sizes, **more))
    assert bool(seen) == fires
    if fires:
        assert seen[0].share == pytest.approx(0.06) and seen[0].evidence == {"micro_batches": 4, "all_reduces": 8, "spare_ns": 6_000_000}


# ---------------------------------------------------------------- cures change nothing that is learned

@pytest.mark.parametrize("cure", ["thread", "workers"])
def test_cures_of_loading_feed_the_same_samples(cure):
    class Counting(Dataset):
        def __len__(self):
            return 12

        def __getitem__(self, i):
            return torch.tensor([float(i)]), i
    w = replace(contract.subject("conv"), data=endless(DataLoader(Counting(), 3)))
    it = probe("loading_in_step").CURES[cure](w).data(3)
    assert [next(it)[1].tolist() for _ in range(5)] == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11], [0, 1, 2]]
