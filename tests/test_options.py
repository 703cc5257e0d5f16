"""Options: what is accepted, what is refused with which words, and that a run's command line can be typed again."""

import shlex
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perfscope import options as o
from perfscope.errors import UsageError
from perfscope.record import PARTS


@pytest.mark.parametrize("text, seconds", [("60s", 60), ("90", 90), ("5m", 300), ("2min", 120), ("1.5h", 5400), ("250ms", 0.25), (" 1 s ", 1)])
def test_seconds(text, seconds):
    assert o.seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "s", "-5", "1e3", "inf", "nan", "5 days", "1,5s", "٣s", "0x10", "5m30s"])
def test_what_is_no_time(text):
    with pytest.raises(UsageError, match="is not a time"):
        o.seconds(text)


@pytest.mark.parametrize("text, share", [("0.5%", 0.005), ("0.005", 0.005), ("100%", 1), (" 2 % ", 0.02)])
def test_share(text, share):
    assert o.share(text) == pytest.approx(share, rel=1e-15)


@pytest.mark.parametrize("text", ["", "%", "half", "-1%", "nan", "1e-3", "0.5%%"])
def test_what_is_no_share(text):
    with pytest.raises(UsageError, match="is not a share"):
        o.share(text)


@pytest.mark.parametrize("text, sizes", [("", ()), ("8", (8,)), ("128,256, 512", (128, 256, 512)), ("0", (0,))])
def test_sizes(text, sizes):
    assert o.sizes(text) == sizes


@pytest.mark.parametrize("text", [",", "8,", ",8", "8,,9", "8;9", "-8", "8.5", "1e3", "eight", "1_000", "٣", "9" * 40])
def test_what_are_no_sizes(text):
    with pytest.raises(UsageError, match="is not a list of batch sizes"):
        o.sizes(text)


def test_shape():
    assert o.shape("3x224x224") == (3, 224, 224) and o.shape("128") == (128,)
    for text in ("", "3x", "x3", "3X4", "3,224,224", "3x-1", "3x2.5", "9" * 40):
        with pytest.raises(UsageError, match="is not an input shape"):
            o.shape(text)


def test_names():
    assert o.names(" norm, activation ,") == ("norm", "activation") and o.names("") == ()


@pytest.mark.parametrize("change, words", [
    ({"dtype": "fp8"}, "no dtype 'fp8'"), ({"dtype": ""}, "no dtype ''"), ({"memory_format": "nhwc"}, "no memory format"),
    ({"compile": "on"}, "no compile mode"), ({"attribution": "guess"}, "no attribution"),
    ({"order": ("norms",)}, "no part 'norms' .--order"), ({"parts": ("base",)}, "no part 'base' .--parts"),
    ({"order": ("norm", "norm")}, "twice"), ({"batch_sizes": (0,)}, "at least 1"), ({"batch_sizes": (4, 4)}, "twice"),
    ({"budget_s": 0.0}, "above zero"), ({"budget_s": float("nan")}, "above zero"), ({"precision": 0.0}, "between"),
    ({"precision": 1.0}, "between"), ({"precision": float("nan")}, "between"), ({"classes": -1}, "--classes"),
    ({"input_shape": (3, 0, 2)}, "--input"), ({"seed": -1}, "--seed"), ({"seed": 2 ** 63}, "--seed"),
])
def test_what_is_refused(change, words):
    with pytest.raises(UsageError, match=words) as caught:
        o.check(replace(o.Options(), **change))
    assert caught.value.exit_code == 2 and (caught.value.hint or "twice" in words)


def test_the_defaults_pass_unchanged():
    assert o.check(o.Options()) == o.Options()


OPTIONS = st.builds(
    o.Options, model=st.sampled_from(["resnet9", "a b.py:f", "hf:gpt2", "x'y\"z:$(f)", "<script>:f"]),
    batch_sizes=st.lists(st.integers(1, 10 ** 6), unique=True, max_size=4).map(tuple),
    dtype=st.sampled_from(o.DTYPES), memory_format=st.sampled_from(o.LAYOUTS), compile=st.sampled_from(o.COMPILE_MODES),
    cuda_graph=st.booleans(), device=st.sampled_from(["auto", "cpu", "cuda:1"]),
    precision=st.none() | st.floats(1e-7, 0.99), budget_s=st.floats(1e-3, 1e7), order=st.permutations(PARTS).map(lambda p: tuple(p[:3])),
    parts=st.permutations(PARTS).map(lambda p: tuple(p[:3])), attribution=st.sampled_from(o.ATTRIBUTIONS),
    input_shape=st.lists(st.integers(1, 4096), max_size=3).map(tuple), classes=st.integers(0, 10 ** 5), seed=st.integers(0, 2 ** 63 - 1))


@settings(max_examples=60, deadline=None)
@given(OPTIONS)
def test_to_a_dictionary_and_back(options):
    import json

    assert o.options_from(json.loads(json.dumps(options.as_dict()))) == options
    assert o.options_from({**options.as_dict(), "of a later version": 1}) == options


@settings(max_examples=60, deadline=None)
@given(OPTIONS)
def test_the_command_of_a_record_gives_the_same_options(options):
    """What `perfscope.breakdown.command` prints is parsed by the command line's own parser and converters."""
    typer = pytest.importorskip("typer")
    from perfscope.provenance import command
    from perfscope.cli import breakdown

    words = shlex.split(command(options))
    assert words[:2] == ["perfscope", "breakdown"]
    parsed = typer.main.get_command(_app(typer, breakdown.command)).make_context("breakdown", words[2:]).params
    again = o.Options(
        model=parsed["model"], batch_sizes=o.sizes(parsed["batch"]), dtype=parsed["dtype"], memory_format=parsed["memory_format"],
        compile=parsed["compile"], cuda_graph=parsed["cuda_graph"], device=parsed["device"],
        precision=o.share(parsed["precision"]) if parsed["precision"] is not None else None, budget_s=o.seconds(parsed["budget"]),
        order=o.names(parsed["order"]), parts=o.names(parsed["parts"]), attribution=parsed["attribution"],
        input_shape=o.shape(parsed["input"]) if parsed["input"] else (), classes=parsed["classes"], seed=parsed["seed"])
    close = replace(again, precision=options.precision if options.precision is None else pytest.approx(options.precision, rel=1e-12))
    assert replace(again, precision=None) == replace(options, precision=None) and close.precision == options.precision


def _app(typer, command):
    app = typer.Typer(add_completion=False)
    app.command()(command)
    return app
