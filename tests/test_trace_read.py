"""The reader against traces whose content is known: layouts, exact times, sources, the cache, arguments."""

import decimal
import gzip
import io
import json
import os
import random
import subprocess
import sys
import tarfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perfscope.errors import TraceError
from perfscope.trace import arguments, read
from perfscope.trace import cache as store
from perfscope.trace import reader, text
from perfscope.trace.builder import Builder
from perfscope.trace.columns import ANNOTATION, CATEGORIES, COLUMNS, CPU_OP, GPU_ANNOTATION, KERNEL, RUNTIME
from perfscope.trace.decode import nanoseconds
from perfscope.trace.text import sources
from perfscope.trace.times import EXACT_BELOW, exact_ns, quick_ns
from tests.trace_fuzz import LAYOUTS, classic, events, one


def write(folder, data, name="trace.json"):
    path = folder / name
    path.write_bytes(data)
    return path


def truth(data):
    """Every event with a duration, by the standard library: name, start and length in exact nanoseconds."""
    d = json.loads(data, parse_float=decimal.Decimal)
    found = d if isinstance(d, list) else d["traceEvents"]
    return sorted((e["name"], int(decimal.Decimal(e["ts"]) * 1000), int(decimal.Decimal(e["dur"]) * 1000)) for e in found if e.get("ph") == "X")


def rows(rank):
    e = rank.events
    return sorted((rank.names[n], int(t), int(d)) for n, t, d in zip(e.name, e.ts_ns, e.dur_ns))


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
@pytest.mark.parametrize("steps", [1, 400])             # 400: several blocks
def test_layouts(layout, steps, tmp_path):
    data = LAYOUTS[layout](events(steps))
    trace = read(write(tmp_path, data), cache=False)
    assert rows(trace.ranks[0]) == truth(data) and not trace.warnings


def test_columns(tmp_path):
    rank = read(write(tmp_path, classic()), cache=False).ranks[0]
    e = rank.events
    k = np.flatnonzero(e.cat == KERNEL)
    assert (rank.rank, rank.world, rank.meta["traceName"]) == (3, 8, "/tmp/x.json")
    assert set(e.device[k]) == {0} and set(e.stream[k]) == {7} and e.correlation[k].tolist() == [1000, 1001, 1002, 1003, 1100, 1101, 1102, 1103]
    ops = np.flatnonzero(e.cat == CPU_OP)
    assert [rank.texts[i] for i in e.shapes[ops][:1]] == ["[[8, 3, 32, 32], []]"] and e.external[ops].tolist()[:4] == [0, 1, 2, 3]
    assert e.bytes[e.cat == CATEGORIES.index("gpu_memcpy")].tolist() == [4096, 4096]


def test_absolute_times_with_fractions_are_exact(tmp_path):
    some = [{**e, "ts": f"17121954955{e['ts'][-9:-4]}.{i % 1000:03}"} if isinstance(e.get("ts"), str) else e for i, e in enumerate(events(50))]
    data = classic(some)
    assert rows(read(write(tmp_path, data), cache=False).ranks[0]) == truth(data)
    assert any(t % 250 for _, t, _ in truth(data))       # a float64 could not hold them


@given(st.lists(st.tuples(st.integers(0, int(EXACT_BELOW) - 1), st.integers(0, 999)), min_size=1, max_size=20))
def test_quick_times_are_exact_below_the_limit(pairs):
    texts = [f"{a}.{b:03}" for a, b in pairs]
    assert quick_ns([float(t) for t in texts]).tolist() == [a * 1000 + b for a, b in pairs]


@given(st.lists(st.tuples(st.integers(-10**15, 9 * 10**15), st.integers(0, 999), st.sampled_from([0, 1, 2, 3, 4])), min_size=1, max_size=20))
def test_exact_times(triples):
    texts = [f"{a}.{b:03}"[:len(f"{a}.") + n].rstrip(".") for a, b, n in triples]
    want = [int((decimal.Decimal(t) * 1000).to_integral_value()) for t in texts]
    assert exact_ns([t.encode() for t in texts]).tolist() == want == [nanoseconds(t) for t in texts]


def test_numbers_beyond_float_are_not_taken_quickly():
    assert quick_ns([1712195495519689.047]) is None and quick_ns([None]) is None and quick_ns([10**17]) is None
    assert quick_ns([1623142623460111]).tolist() == [1623142623460111000]
    with pytest.raises(ValueError):
        exact_ns([b"1.5", b""])


@pytest.mark.parametrize("text", ["nan", "inf", "", "abc", "1e30", "{}", "null"])
def test_no_times(text):
    with pytest.raises(ValueError):
        nanoseconds(text)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6))
def test_any_whitespace_and_any_blocks(seed):
    rng = random.Random(seed)
    import perfscope.trace.reader as reader
    from perfscope.trace.text import Source

    data = classic(events(3))
    text = data.replace(b",\n", rng.choice([b",", b" ,\n", b",  \n\t", b"\n,\n"]))
    r = reader._Reader(Source("x"), "full")
    at = 0
    while at < len(text):
        size = rng.choice([1, 7, 100, 3000])
        r.feed(text[at:at + size])
        at += size
    rank = r.finish()
    assert rows(rank) == truth(data) and not rank.warnings


def test_sources(tmp_path):
    for n in (10, 2, 1):
        (tmp_path / f"rank{n}.json.gz").write_bytes(gzip.compress(classic().replace(b'"rank": 3', b'"rank": %d' % n)))
    (tmp_path / "notes.json").write_text('{"a": 1}')
    trace = read(tmp_path, cache=False)
    assert [r.rank for r in trace.ranks] == [1, 2, 10] and [w.code for w in trace.warnings] == ["not_a_trace"]
    for mode, name in (("w", "all.tar"), ("w:gz", "all.tar.gz")):
        with tarfile.open(tmp_path / name, mode) as tar:
            tar.add(tmp_path / "rank2.json.gz", "x/rank2.json.gz")
            tar.add(tmp_path / "rank1.json.gz", "x/rank1.json.gz")
        other = read(tmp_path / name, cache=False)
        assert [r.rank for r in other.ranks] == [1, 2] and rows(other.ranks[0]) == rows(trace.ranks[0])
        os.unlink(tmp_path / name)


def test_standard_input():
    code = "from perfscope.trace import read; print(read('-').ranks[0].counts['events'])"
    for data in (classic(), gzip.compress(classic())):
        assert int(subprocess.run([sys.executable, "-c", code], input=data, capture_output=True, check=True).stdout) == len(events())


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_tar_on_standard_input(mode, tmp_path):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as tar:
        for n in (10, 2):
            data = gzip.compress(classic(events(n)))
            info = tarfile.TarInfo(f"run/rank{n}.json.gz")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    code = ("import glob, os, tempfile\nfrom perfscope.trace import read\nfrom perfscope.trace.analysis import analyze_files\n"
            "t = read('-', cache=True)\nprint([r.source for r in t.ranks], [r.counts['events'] for r in t.ranks])\n"
            "print(len(analyze_files('-').ranks), len(glob.glob(os.path.join(tempfile.gettempdir(), 'perfscope-*.tar'))))")
    run = lambda data: subprocess.run([sys.executable, "-c", code], input=data, capture_output=True, text=False, env={**os.environ, "TMPDIR": str(tmp_path)})  # noqa: E731
    done = run(buffer.getvalue()).stdout.decode().splitlines()
    assert done == [f"['standard input:run/rank2.json.gz', 'standard input:run/rank10.json.gz'] [{len(events(2))}, {len(events(10))}]", "2 1"]
    assert list(tmp_path.iterdir()) == []                   # neither the copy nor a cache of it stays
    if mode == "w":                                         # cut in the second: the first is read, and the loss said
        cut = buffer.getvalue().index(b"run/rank2") + 600
        text = subprocess.run([sys.executable, "-m", "perfscope", "trace", "analyze", "-"], input=buffer.getvalue()[:cut], capture_output=True).stdout.decode()
        assert "1 rank " in text and "left out standard input:run/rank2.json.gz" in " ".join(text.split()) and "unexpected end of data" in " ".join(text.split())


def test_reading_does_not_import_torch(tmp_path):
    path = write(tmp_path, classic())
    code = f"import sys; from perfscope.trace import read, analyze; analyze(read({str(path)!r}, cache=False)); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "False"


def test_without_isal(tmp_path):
    path = write(tmp_path, gzip.compress(classic()), "t.json.gz")
    code = (f"import sys; sys.modules['isal'] = None\nfrom perfscope.trace import read, text\nimport zlib\n"
            f"print(text._zlib is zlib, read({str(path)!r}).ranks[0].counts['events'])")
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split() == ["True", str(len(events()))]


def test_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "FROM_BYTES", 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    path = write(tmp_path, classic(events(20)))
    first = read(path).ranks[0]
    second = store.load(sources(path)[0], "full")
    assert second is not None and rows(second) == rows(first) and second.names == first.names and second.meta == first.meta
    assert all(np.array_equal(getattr(second.events, c), getattr(first.events, c)) for c in ("correlation", "shapes", "stream", "sequence"))
    assert store.load(sources(path)[0], "summary") is None
    write(tmp_path, classic(events(21)))
    assert store.load(sources(path)[0], "full") is None                  # the file has changed
    assert len(rows(read(path).ranks[0])) > len(rows(first))


@pytest.mark.parametrize("damage", [b"", b"perfscope-columns", b"perfscope-columns" + b"\xff" * 8, b"perfscope-columns\x02\0\0\0\0\0\0\0{}", b"x" * 1000])
def test_damaged_cache_is_no_cache(damage, tmp_path, monkeypatch):
    monkeypatch.setattr(store, "FROM_BYTES", 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    path = write(tmp_path, classic())
    read(path)
    kept = next(p for p in store.places(sources(path)[0], "full") if p.exists())
    for data in (damage, kept.read_bytes()[:-200]):
        kept.write_bytes(data)
        assert rows(read(path).ranks[0]) == truth(classic())


def test_folder_that_cannot_be_written(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "FROM_BYTES", 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    (tmp_path / "in").mkdir()
    path = write(tmp_path / "in", classic())
    (tmp_path / "in" / ".perfscope").write_text("a file where the folder would be")
    read(path)
    assert list((tmp_path / "home" / "perfscope").glob("*.columns")) and store.load(sources(path)[0], "full") is not None


def test_arguments_on_demand(tmp_path):
    rank = read(write(tmp_path, gzip.compress(classic(events(400))), "t.json.gz"), cache=False).ranks[0]
    k = np.flatnonzero(rank.events.cat == KERNEL)
    found = arguments(rank, [k[0], k[-1], k[700]])
    assert [a["correlation"] for a in found] == [int(rank.events.correlation[i]) for i in (k[0], k[-1], k[700])]
    assert found[0]["grid"] == [1, 1, 1]


def test_summary_has_the_same_device_events(tmp_path):
    path = write(tmp_path, classic(events(30)))
    full, short = (read(path, detail=d, cache=False).ranks[0] for d in ("full", "summary"))
    keep = full.events.cat == KERNEL
    assert full.events.ts_ns[keep].tolist() == short.events.ts_ns[short.events.cat == KERNEL].tolist() and len(short.events) < len(full.events)
    assert not (full.events.cat == GPU_ANNOTATION).any()


@pytest.mark.parametrize("detail", ["full", "summary"])
@pytest.mark.parametrize("layout", sorted(LAYOUTS))
@pytest.mark.parametrize("exact", [False, True])
def test_by_category_and_by_phase_give_the_same(layout, detail, exact, tmp_path, monkeypatch):
    """Every column, whichever decoder read it; with times that a float64 holds and with such that need the decimal text."""
    data = LAYOUTS[layout](events(300))
    if exact:
        data = data.replace(b"44586765", b"9944586765")
    path = write(tmp_path, data)
    by_category = read(path, detail=detail, cache=False).ranks[0]
    monkeypatch.setattr(reader, "PATIENCE", -1)
    by_phase = read(path, detail=detail, cache=False).ranks[0]
    for column in COLUMNS:
        assert getattr(by_category.events, column).tolist() == getattr(by_phase.events, column).tolist(), column
    assert (by_category.names, by_category.ids, by_category.texts) == (by_phase.names, by_phase.ids, by_phase.texts)
    assert by_category.counts == by_phase.counts and by_category.counts["rows"] > 0


def _guesses(monkeypatch):
    """What became of the blocks that the summary decoded by phase on a guess."""
    made, add = [], Builder.add

    def watched(self, events, exact, device=False):
        taken = add(self, events, exact, device)
        made.extend([taken] if device else [])
        return taken

    monkeypatch.setattr(Builder, "add", watched)
    return made


@pytest.mark.parametrize("exact", [False, True])
def test_the_summary_of_operators_then_device_work(exact, tmp_path, monkeypatch):
    """As Kineto writes it. Blocks without operators are decoded by phase, and one that is not what it seemed is decoded again."""
    some = [e for e in events(60) if e.get("cat") != "python_function"]
    some.sort(key=lambda e: e.get("cat") not in ("cpu_op", "user_annotation"))      # stable: the host's first
    step = next(e for e in some if str(e.get("name")).startswith("ProfilerStep#"))
    data = classic([*some, {**step, "cat": "cpu_op", "name": "ProfilerStep#99"}, *some[-40:]])
    data = data.replace(b"44586765", b"9944586765") if exact else data
    path = write(tmp_path, data)
    monkeypatch.setattr(text, "CHUNK", 4000)
    monkeypatch.setattr(reader, "CHUNK", 4000)
    made = _guesses(monkeypatch)
    guessed = read(path, detail="summary", cache=False).ranks[0]
    assert made.count(True) > 5 and made.count(False) >= 1
    monkeypatch.setattr(Builder, "operators", property(lambda self: True, lambda self, value: None))
    made.clear()
    plain = read(path, detail="summary", cache=False).ranks[0]
    assert not made and "ProfilerStep#99" not in plain.names
    for column in COLUMNS:
        assert getattr(guessed.events, column).tolist() == getattr(plain.events, column).tolist(), column
    assert (guessed.names, guessed.ids, guessed.counts, guessed.warnings) == (plain.names, plain.ids, plain.counts, plain.warnings)


@pytest.mark.parametrize("category", ["cpu_op", "Operator"])
def test_summary_keeps_a_step_that_is_an_operator(category, tmp_path):
    """Before annotations had a category of their own, steps stood among the operators."""
    some = [{**e, "cat": category} if e.get("cat") == "user_annotation" else e for e in events(3)]
    rank = read(write(tmp_path, classic(some)), detail="summary", cache=False).ranks[0]
    kept = rank.events.name[rank.events.cat == ANNOTATION]
    assert [rank.names[i] for i in kept] == ["ProfilerStep#0", "ProfilerStep#1", "ProfilerStep#2"]
    assert not (rank.events.cat == CPU_OP).any()


def test_calls_that_launch_nothing_are_left_out_of_the_summary_only(tmp_path):
    some = events(2)
    some += [{**e, "name": "cudaEventRecord"} for e in some if e.get("name") == "cudaLaunchKernel"]
    found = {}
    for detail in ("full", "summary"):
        rank = read(write(tmp_path, classic(some)), detail=detail, cache=False).ranks[0]
        found[detail] = sorted({rank.names[i] for i in rank.events.name[rank.events.cat == RUNTIME]})
    assert found == {"full": ["cudaEventRecord", "cudaLaunchKernel", "cudaMemcpyAsync"], "summary": ["cudaLaunchKernel", "cudaMemcpyAsync"]}


@pytest.mark.parametrize("odd", [7, 700])
def test_unknown_categories_are_read(odd, tmp_path, monkeypatch):
    """In every block, so that decoding by category is given up; and in some, where it is not."""
    monkeypatch.setattr(reader, "PATIENCE", 1)
    some = [{**e, "cat": "tomorrows_events"} if i % odd == 3 and e["ph"] == "X" else e for i, e in enumerate(events(400))]
    data = classic(some)
    trace = read(write(tmp_path, data), cache=False)
    assert rows(trace.ranks[0]) == truth(data) and not trace.warnings


@pytest.mark.parametrize("path", ["/nonexistent/x.json", "/dev/null"])
def test_errors(path):
    with pytest.raises(TraceError):
        read(path)


def test_empty_folder_and_bad_tar(tmp_path):
    with pytest.raises(TraceError, match="no .json"):
        read(tmp_path)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("readme.txt"))
    with pytest.raises(TraceError, match="holds no"):
        read(write(tmp_path, buffer.getvalue(), "a.tar"))
    with pytest.raises(TraceError):
        read(write(tmp_path, one(events()[0]).encode(), "one.json"), cache=False)
