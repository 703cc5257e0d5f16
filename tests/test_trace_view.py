"""The repaired copy, read by the old plugin's own parser; the log directory, TensorBoard itself, and Perfetto's server."""

import gzip
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perfscope.errors import EnvironmentError_, UsageError
from perfscope.trace import tb, view

TRACES = Path(os.environ.get("PERFSCOPE_DATA", "/nonexistent")) / "traces"
real = pytest.mark.skipif(not TRACES.is_dir(), reason="needs $PERFSCOPE_DATA/traces")


def op(name, ts, dur, cat="cpu_op", tid=1, **args):
    return {"ph": "X", "cat": cat, "name": name, "pid": args.get("device", 1), "tid": tid, "ts": ts, "dur": dur, "args": args}


def made():
    """One step of 1000 us as PyTorch writes it today: loader 200, a convolution with a kernel of 300, a collective with one of 50."""
    return [
        op("ProfilerStep#7", 0, 1000, "user_annotation", **{"External id": 1}),
        op("ProfilerStep#7", 400, 550, "gpu_user_annotation", tid=7, **{"External id": 1}),
        op("enumerate(DataLoader)#_SingleProcessDataLoaderIter.__next__", 10, 200, "user_annotation", **{"External id": 2}),
        op("aten::conv2d", 300, 100, **{"External id": 3}),
        op("cudaLaunchKernel", 310, 10, "cuda_runtime", **{"External id": 3, "correlation": 90}),
        op("conv_kernel", 420, 300, "kernel", tid=7, device=0, correlation=90, stream=7, **{"External id": 3}),
        op("record_param_comms", 500, 100, **{"External id": 4}),
        op("nccl:_all_gather_base", 510, 80, "user_annotation", **{"External id": 5}),
        op("cudaLaunchKernelExC", 520, 10, "cuda_runtime", **{"External id": 4, "correlation": 91}),
        op("ncclDevKernel_AllGather", 800, 50, "kernel", tid=9, device=0, correlation=91, stream=9, **{"External id": 4}),
        op("cudaDeviceSynchronize", 900, 10, "cuda_runtime", **{"External id": 92, "correlation": 92}),
        {"ph": "i", "s": "g", "name": "Iteration Start: PyTorch Profiler", "pid": "Traces", "tid": "Trace", "ts": 0},
    ]


def write(path, events, **more):
    data = json.dumps({"schemaVersion": 1, "deviceProperties": [{"id": 0, "name": "X", "computeMajor": 9}], "traceEvents": events, **more})
    path.write_bytes(gzip.compress(data.encode()) if path.name.endswith(".gz") else data.encode())
    return path


def plugin(path):
    data = pytest.importorskip("torch_tb_profiler.profiler.data", reason="torch-tb-profiler is not installed")
    opened = gzip.decompress(path.read_bytes()) if tb.is_gzip(path) else path.read_bytes()
    return data.RunProfileData.from_json("worker", "1", json.loads(opened))


def role(profile, name):
    from torch_tb_profiler.profiler.event_parser import ProfileRole
    return profile.avg_costs.costs[ProfileRole[name]]


def device_us(profile):
    return {o.name: o.self_device_duration for o in profile.op_list_groupby_name}


def test_old_plugin_reads_the_copy_right_and_the_original_wrong(tmp_path):
    original, copy = write(tmp_path / "a.json", made()), tmp_path / "copy.pt.trace.json.gz"
    tb.repair(original, copy)
    before, after = plugin(original), plugin(copy)
    assert sum(device_us(before).values()) == 0 and len(before.steps_names) == 2 and role(before, "DataLoader") == 0     # the bugs
    assert after.steps_names == ["7"]
    assert device_us(after) == {"aten::conv2d": 300, "record_param_comms": 50}
    assert role(after, "DataLoader") == 200 and role(after, "Kernel") == 300 and role(after, "Communication") == 50
    assert len(after.comm_node_list) == 1 and after.comm_node_list[0].name == "nccl:all_gather"


def test_perfscope_parts_become_operators_and_data_a_loader(tmp_path):
    events = [op("ProfilerStep#1", 0, 100, "user_annotation"), op("perfscope:data", 5, 20, "user_annotation"), op("perfscope:norm", 40, 30, "user_annotation"),
              op("Optimizer.step#SGD.step", 80, 10, "user_annotation")]
    copy = tmp_path / "c.pt.trace.json.gz"
    tb.repair(write(tmp_path / "a.json.gz", events), copy)
    got = plugin(copy)
    assert role(got, "DataLoader") == 20 and "perfscope:norm" in device_us(got)


@real
@pytest.mark.parametrize("name, steps, kernels_ms, device_us_expected, communication_ms", [
    ("a100-resnet50-ddp-nchw", 3, 162.53, 165185.838, 13.4), ("v100-resnet50-fp32", 5, 468.15, None, None),
    ("v100-resnet50-loader-in-process", 6, 591.53, None, None), ("mi300x-resnet-ddp-checkpointing", 3, 97.26, None, 11.7)])
def test_real_traces(tmp_path, name, steps, kernels_ms, device_us_expected, communication_ms):
    copy = tmp_path / "c.pt.trace.json.gz"
    found = tb.repair(TRACES / f"{name}.json.gz", copy)
    got = plugin(copy)
    assert found.damage.events == 0 and len(got.steps_names) == len(found.steps) == steps
    assert round(float(got.kernel_stat["sum"].sum()) / 1000, 2) == kernels_ms
    assert sum(device_us(got).values()) > 0.5 * kernels_ms * 1000
    if device_us_expected:          # every GPU event has its launch there: the sum over operators is the sum over events
        assert sum(device_us(got).values()) == pytest.approx(device_us_expected, abs=0.5)       # the plugin rounds to float64 us
    if communication_ms:
        assert role(got, "Communication") / 1000 == pytest.approx(communication_ms, abs=0.1)


@real
def test_loader_time_of_an_old_trace_is_what_it_was(tmp_path):
    name, copy = TRACES / "v100-resnet50-loader-in-process.json.gz", tmp_path / "c.pt.trace.json.gz"
    tb.repair(name, copy)
    assert role(plugin(copy), "DataLoader") == role(plugin(name), "DataLoader") > 50_000


ODD = {
    "array form": ('[{"ph": "X", "cat": "cpu_op", "name": "a", "pid": 1, "tid": 1, "ts": 1, "dur": 2}]', 1, 0),
    "nan": ('{"traceEvents": [{"ph":"X","cat":"cpu_op","name":"a","pid":1,"tid":1,"ts":1,"dur":2,"args":{"b":NaN}}]}', 1, 0),
    "nan time": ('{"traceEvents": [{"ph":"X","cat":"cpu_op","name":"a","pid":1,"tid":1,"ts":NaN,"dur":2}]}', 0, 1),
    "control character": ('{"traceEvents": [{"ph":"X","cat":"cpu_op","name":"a\x01b","pid":1,"tid":1,"ts":1,"dur":2}]}', 1, 0),
    "lone backslash": (r'{"traceEvents": [{"ph":"X","cat":"cpu_op","name":"C:\dir","pid":1,"tid":1,"ts":1,"dur":2}]}', 1, 0),
    "truncated": ('{"traceEvents": [{"ph":"X","cat":"cpu_op","name":"a","pid":1,"tid":1,"ts":1,"dur":2},{"ph":"X","na', 1, 1),
    "one broken": ('{"traceEvents": [{"ph":"X","cat":}, {"ph":"X","cat":"cpu_op","name":"a","pid":1,"tid":1,"ts":1,"dur":2}]}', 1, 1),
    "no category": ('{"traceEvents": [{"ph":"X","name":"a","pid":1,"tid":1,"ts":1,"dur":2}]}', 0, 1),
    "late metadata": ('{"traceEvents": [], "schemaVersion": 1, "traceName": "x]y"}', 0, 0),
    "damaged metadata": ('{"a": N/A, "traceEvents": [{"ph":"X","cat":"cpu_op","name":"a","pid":1,"tid":1,"ts":1,"dur":2}]}', 1, 0),
}


@pytest.mark.parametrize("what", ODD)
def test_odd_traces_give_valid_json_and_count_what_is_lost(tmp_path, what):
    text, kept, lost = ODD[what]
    (tmp_path / "odd.json").write_text(text)
    found = tb.repair(tmp_path / "odd.json", tmp_path / "copy.json.gz")
    copy = json.loads(gzip.decompress((tmp_path / "copy.json.gz").read_bytes()), parse_constant=lambda c: pytest.fail(c))
    assert (len(copy["traceEvents"]), found.damage.events) == (kept, lost)
    assert list(copy)[0] == tb.MARK and list(copy)[-1] == "traceEvents"


def test_a_gzip_that_breaks_off_gives_what_it_has(tmp_path):
    events = [op(f"aten::op{i}", i, 1) for i in range(20_000)]
    whole = gzip.compress(json.dumps({"traceEvents": events}).encode())
    (tmp_path / "cut.json.gz").write_bytes(whole[: len(whole) // 2])
    found = tb.repair(tmp_path / "cut.json.gz", tmp_path / "copy.json.gz")
    assert 1000 < found.events < 20_000 and "compressed data" in found.damage.why


@pytest.mark.parametrize("content", ["", "hello", "{}", '{"a": 1}', '"text"', "\x00\x01", '{"traceEvents": 5}'])
def test_what_is_no_trace_is_refused(tmp_path, content):
    (tmp_path / "no.json").write_text(content)
    with pytest.raises(UsageError, match="PyTorch trace"):
        tb.repair(tmp_path / "no.json", tmp_path / "copy.json.gz")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["no.json"]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.dictionaries(st.sampled_from(["ph", "cat", "name", "ts", "dur", "tid", "pid", "args"]),
                                st.one_of(st.none(), st.floats(), st.integers(), st.text(), st.sampled_from(["X", "i", "kernel", "cuda_runtime", "user_annotation"]),
                                          st.dictionaries(st.sampled_from(["External id", "correlation"]), st.integers())))))
def test_any_event_is_kept_readable_or_left_out(tmp_path_factory, events):
    folder = tmp_path_factory.mktemp("any")
    (folder / "a.json").write_text(json.dumps({"traceEvents": events}))
    found = tb.repair(folder / "a.json", folder / "c.json.gz")
    kept = json.loads(gzip.decompress((folder / "c.json.gz").read_bytes()))["traceEvents"]
    assert len(kept) + found.damage.events == len(events)
    assert all(isinstance(e["cat"], str) and isinstance(e["dur"], (int, float)) for e in kept if e["ph"] == "X")


def test_memory_does_not_grow_with_the_file(tmp_path):
    script = ("import sys, resource; from pathlib import Path; from perfscope.trace import tb; tb.repair(Path(sys.argv[1]), Path(sys.argv[2]));"
              "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)")
    peaks = []
    for n in (1, 30):
        write(tmp_path / "big.json.gz", made() * 1000 * n)
        done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "big.json.gz"), str(tmp_path / "c.json.gz")], capture_output=True, text=True, check=True)
        peaks.append(int(done.stdout))
    assert peaks[1] < peaks[0] + 20_000         # KiB; the text is 30 x larger, 45 MB more


# ---------------------------------------------------------------- what there is to show

def test_look_finds_runs_and_originals_but_no_copy_twice(tmp_path):
    folder = tmp_path / "one" / "trace"
    folder.mkdir(parents=True)
    write(folder / "rank_0.trace.json.gz", made())
    tb.repair(folder / "rank_0.trace.json.gz", folder / "tensorboard" / "rank_0.1.pt.trace.json.gz")
    (tmp_path / "one" / "run.json").write_bytes((Path(__file__).parent / "records" / "cpu.json").read_bytes())
    (tmp_path / "other.json").write_text('{"a": 1}')
    found = view.look(tmp_path)
    assert [(n, p.name) for n, p in found.traces] == [("one/trace", "rank_0.trace.json.gz")] and [n for n, _ in found.records] == ["one"]
    (folder / "rank_0.trace.json.gz").unlink()
    assert [n for n, _ in view.look(tmp_path).traces] == ["one/trace/tensorboard"]


@pytest.mark.parametrize("name, content", [("missing.json", None), ("empty.json", ""), ("other.json", '{"a": 1}'), ("text.gz", "no gzip")])
def test_look_refuses_what_is_nothing(tmp_path, name, content):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(UsageError):
        view.look(tmp_path / name)
    with pytest.raises(UsageError):
        view.look(tmp_path)


def test_missing_packages_are_one_error_with_the_command(tmp_path, monkeypatch):
    monkeypatch.setattr(view, "find_spec", lambda name: None)
    with pytest.raises(EnvironmentError_) as e, view.tensorboard(view.look(write(tmp_path / "a.json", made()))):
        pass
    assert "pip install" in e.value.hint and "torch-tb-profiler==0.4.3" in e.value.hint and "tensorboard" in e.value.message


def test_port_in_use(tmp_path):
    with socket.socket() as s:
        s.bind((view.HOST, 0))
        s.listen()
        done = subprocess.run([sys.executable, "-m", "perfscope", "trace", "view", str(write(tmp_path / "a.json", made())), "--port", str(s.getsockname()[1])],
                              capture_output=True, text=True, timeout=60)
    assert done.returncode == 3 and "cannot be used" in done.stderr
    with pytest.raises(UsageError):
        view.check_port(70_000)


# ---------------------------------------------------------------- Perfetto

def get(url, method="GET", **headers):
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(urllib.request.Request(url, method=method, headers=headers), timeout=10) as r:
            return r.status, r.headers, r.read()
    except urllib.error.HTTPError as e:
        return e.code, e.headers, e.read()


def test_perfetto_serves_the_file_with_the_header(tmp_path):
    trace = write(tmp_path / "my trace.json.gz", made())
    with view.perfetto(view.look(trace), view.free_port()) as (link,):
        assert link.startswith("https://ui.perfetto.dev/#!/?url=http://127.0.0.1:")
        url = link.partition("url=")[2]
        status, headers, body = get(url, Origin="https://ui.perfetto.dev")
        assert status == 200 and body == trace.read_bytes() and headers["Access-Control-Allow-Origin"] == "https://ui.perfetto.dev"
        assert get(url, "HEAD")[2] == b"" and get(url, "OPTIONS")[1]["Access-Control-Allow-Private-Network"] == "true"
        base = url.rpartition("/")[0]
        assert get(f"{base}/../../etc/passwd")[0] == 404 and get(f"{base}/")[0] == 404
        assert get(url, Host="evil.example:80")[0] == 404       # a name that was pointed at this machine
    with pytest.raises((urllib.error.URLError, ConnectionError)):
        get(url)
    with pytest.raises(UsageError), view.perfetto(view.look(Path(__file__).parent / "records" / "cpu.json")):
        pass


# ---------------------------------------------------------------- TensorBoard

def started(tmp_path, *words):
    """The command in a process of its own, once it has printed its address."""
    out = (tmp_path / "out").open("w+")
    child = subprocess.Popen([sys.executable, "-m", "perfscope", "trace", "view", *words, "--no-browser"], stdout=out, stderr=subprocess.STDOUT)
    while child.poll() is None and "http" not in (tmp_path / "out").read_text():
        time.sleep(0.1)
    return child, (tmp_path / "out").read_text()


def processes_of(word):
    found = []
    for p in Path("/proc").glob("[0-9]*"):
        try:
            found += [int(p.name)] if word in (p / "cmdline").read_bytes().decode(errors="replace") else []
        except OSError:
            pass
    return found


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="reads /proc")
@pytest.mark.skipif(bool(view.missing_packages()), reason=f"needs {', '.join(view.missing_packages())}")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_tensorboard_shows_the_run_and_leaves_no_process(tmp_path, number):
    folder = tmp_path / f"mine{int(number)}"
    folder.mkdir()
    write(folder / "rank_0.trace.json.gz", made())
    child, said = started(tmp_path, str(folder))
    try:
        assert child.poll() is None, said
        base = next(w for w in said.split() if w.startswith("http")).partition("#")[0]
        port = base.rstrip("/").rpartition(":")[2]
        answer = {}
        for _ in range(600):
            answer = json.loads(get(f"{base}data/plugin/pytorch_profiler/runs")[2])
            if answer["runs"] and not answer["loading"]:
                break
            time.sleep(0.2)
        assert answer["runs"] == [folder.name]
        shown = json.loads(get(f"{base}data/plugin/perfscope/runs")[2])["runs"]
        assert [(r["kind"], r["id"]) for r in shown] == [("trace", f"{folder.name}/rank_0.trace.json.gz")]
        of = f"run={folder.name}&worker=rank_0"
        span = json.loads(get(f"{base}data/plugin/pytorch_profiler/spans?{of}")[2])[0]
        overview = json.loads(get(f"{base}data/plugin/pytorch_profiler/overview?{of}&span={span}&view=Overview")[2])
        assert {"title": "Device Type", "value": "GPU"} in overview["environments"]
    finally:
        child.send_signal(number)
        code = child.wait(timeout=60)
    assert code == 0 and not processes_of(f"--port\0{port}\0")
    assert not list(Path(os.environ.get("TMPDIR", "/tmp")).glob("perfscope-view-*/logs/mine" + str(int(number))))
