"""The record: to JSON and back without loss, what damaged files say, and that a failing write leaves the old file whole."""

import dataclasses
import errno
import json
import math
import os
import types
import typing
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from perfscope import record
from perfscope.errors import EnvironmentError_, RecordError
from perfscope.measure.stats import Interval
from perfscope.record import SCHEMA, Run, from_dict, load, save, to_dict

DATACLASSES = [c for c in vars(record).values() if dataclasses.is_dataclass(c) and isinstance(c, type)]

JSON = st.recursive(st.none() | st.booleans() | st.integers(-2 ** 60, 2 ** 60) | st.floats(allow_nan=False, allow_infinity=False)
                    | st.text(max_size=8), lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
                    max_leaves=3)
FLOAT = st.floats(allow_nan=False, allow_infinity=False)


def values(kind):
    """Values that a field of this type may hold."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        return st.none() | values(next(a for a in args if a is not type(None)))
    if dataclasses.is_dataclass(kind):
        return instances(kind)
    if origin is tuple:
        return st.lists(values(args[0]), max_size=2).map(tuple)
    if origin is list:
        return st.lists(values(args[0]), max_size=2)
    if origin is dict:
        return st.dictionaries(st.text(max_size=4), values(args[1]), max_size=2)
    return {str: st.text(max_size=8), int: st.integers(-2 ** 60, 2 ** 60), float: FLOAT, bool: st.booleans(), typing.Any: JSON}[kind]


def instances(cls):
    """Instances of a dataclass of the record with every field set, and with keys of a later version in `extra`."""
    hints = typing.get_type_hints(cls)
    fields = {f.name: values(hints[f.name]) for f in dataclasses.fields(cls) if f.name != "extra"}
    if "extra" in hints:
        fields["extra"] = st.dictionaries(st.text(max_size=4).map("later_{}".format), JSON, max_size=2)
    if cls is Run:
        fields["schema"] = st.just(SCHEMA)
    return st.builds(cls, **fields)


@pytest.mark.parametrize("cls", DATACLASSES, ids=lambda c: c.__name__)
def test_every_dataclass_to_json_and_back(cls):
    @settings(max_examples=12, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(instances(cls))
    def holds(value):
        text = json.dumps(to_dict(value), allow_nan=False)
        assert from_dict(cls, json.loads(text)) == value
    holds()


@pytest.mark.parametrize("cls", DATACLASSES, ids=lambda c: c.__name__)
def test_frozen_and_documented(cls):
    assert cls.__dataclass_params__.frozen and cls.__doc__ and not cls.__doc__.startswith(f"{cls.__name__}(")
    assert cls is Interval or "extra" in {f.name for f in dataclasses.fields(cls)}


def test_unknown_keys_survive_a_load_and_a_save(tmp_path):
    data = to_dict(small())
    data["later"] = {"a": [1, None]}
    data["environment"]["later"] = "x"
    data["batches"][0]["rounds"][0]["later"] = 2.5
    data["batches"][0]["derived"]["parts"]["base"]["later"] = True
    path = tmp_path / "run.json"
    path.write_text(json.dumps(data))
    run = load(path)
    assert run.extra == {"later": {"a": [1, None]}} and run.environment.extra == {"later": "x"}
    assert json.loads(save(run, path).read_text()) == data
    assert load(path) == run


def test_a_known_key_is_never_overwritten_by_extra():
    assert to_dict(record.Warned("code", "text", extra={"code": "other", "more": 1})) == \
        {"code": "code", "text": "text", "hint": "", "batch_size": None, "more": 1}


def test_not_a_number_becomes_null_everywhere_and_comes_back_as_not_a_number(tmp_path):
    odd = {"list": [math.inf, {"deep": -math.inf}], "nan": math.nan}
    run = replace(small(), method=odd, extra={"later": odd}, warnings=(record.Warned("a", "b", extra=dict(odd)),),
                  ceilings=record.Ceilings(math.nan, math.inf))
    text = save(run, tmp_path / "run.json").read_text()
    assert "NaN" not in text and "Infinity" not in text
    again = load(tmp_path)
    assert again.method == {"list": [None, {"deep": None}], "nan": None} == again.extra["later"]
    assert math.isnan(again.ceilings.flops_per_s) and math.isnan(again.ceilings.copy_bytes_per_s)


def test_numbers_are_not_rounded(tmp_path):
    seconds = [0.1 + 0.2, 5e-324, 1.7976931348623157e308, 1 / 3]
    run = Run("x", batches=(record.BatchResult(1, rounds=tuple(record.Round(("a",), {"a": s}) for s in seconds)),))
    save(run, tmp_path / "run.json")
    assert [r.step_s["a"] for r in load(tmp_path).batches[0].rounds] == seconds


def test_whole_numbers_are_floats_where_floats_belong():
    assert from_dict(record.Ceilings, {"flops_per_s": 10 ** 12}).flops_per_s == 1e12
    assert isinstance(from_dict(record.Ceilings, {"flops_per_s": 3}).flops_per_s, float)


def small() -> Run:
    share = Interval(0.5, 0.4, 0.6)
    derived = record.Derived(share, {"base": record.Part(share, share), "norm": record.Part(share, share, first=share)}, rounds=1)
    batch = record.BatchResult(4, variants=(record.Variant("base", ()), record.Variant("base+norm", ("norm",))), reference="base+norm",
                               rounds=(record.Round(("base", "base+norm"), {"base": 0.1, "base+norm": 0.2}),), derived=derived)
    return Run("2026-01-01T00-00-00_x", status="complete", batches=(batch, record.BatchResult(8, "out-of-memory", "too large")))


def test_parts_of_every_batch_size_that_was_measured():
    run = small()
    assert set(run.parts) == {4} and run.parts[4]["norm"].share.point == 0.5


def test_variant_names_are_in_the_usual_order():
    assert record.variant_name(["optimizer", "norm"]) == record.variant_name({"norm", "optimizer"}) == "base+norm+optimizer"
    assert record.variant_name(()) == "base" and record.label(Run("x", base_label="matmul"), "base") == "matmul"


# ---------------------------------------------------------------- saving

def test_save_makes_the_folder_and_leaves_nothing_else(tmp_path):
    path = small().save(tmp_path / "a" / "b")
    assert path == tmp_path / "a" / "b" / "run.json" and os.listdir(path.parent) == ["run.json"]
    assert load(path) == load(path.parent) == small()


class Full(OSError):
    def __init__(self):
        super().__init__(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("broken", ["open", "write", "fsync", "replace"])
@pytest.mark.parametrize("error", [Full, KeyboardInterrupt])
def test_a_failing_write_leaves_the_old_file_whole(tmp_path, monkeypatch, broken, error):
    path = small().save(tmp_path)
    before = path.read_bytes()

    def fail(*args, **kwargs):
        raise error()
    if broken == "open":
        monkeypatch.setattr(record, "open", fail, raising=False)
    elif broken == "write":
        def half(*args, **kwargs):
            file = open(*args, **kwargs)
            class Half:
                __enter__, __exit__ = lambda self: self, lambda self, *e: file.close()
                def write(self, text):
                    file.write(text[:len(text) // 2])
                    fail()
            return Half()
        monkeypatch.setattr(record, "open", half, raising=False)
    else:
        monkeypatch.setattr(record.os, broken, fail)
    with pytest.raises(EnvironmentError_ if error is Full else KeyboardInterrupt) as caught:
        replace(small(), status="interrupted").save(tmp_path)
    monkeypatch.undo()
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["run.json"]
    if error is Full:
        assert "No space left" in caught.value.message and "--out" in caught.value.hint and caught.value.exit_code == 3


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(EnvironmentError_, match="Not a directory|File exists"):
        small().save(tmp_path / "file")
    with pytest.raises(EnvironmentError_, match="cannot write"):
        small().save(Path("/proc/perfscope"))


# ---------------------------------------------------------------- files that are no record

@pytest.mark.parametrize("content, words", [
    ("", "not whole JSON"), ('{"schema": "perfscope/run/1", "id": "x"', "not whole JSON"), ("[]", "not a perfscope record"),
    ("null", "not a perfscope record"), ("17", "not a perfscope record"), ('{"traceEvents": []}', "not a perfscope record"),
    ('{"schema": 1}', "not a perfscope record"), ('{"schema": "other/run/1"}', "not a perfscope record"),
    ('{"schema": "perfscope/run/2"}', "newer perfscope"), ('{"schema": "perfscope/run/1"}', "damaged.*id"),
    ('{"schema": "perfscope/run/1", "id": null}', "damaged"), ('{"schema": "perfscope/run/1", "id": "x", "batches": {}}', r"damaged.*Run\.batches"),
    ('{"schema": "perfscope/run/1", "id": "x", "batches": [{"batch_size": true}]}', r"damaged.*Run\.batches\[0\]\.batch_size"),
    ('{"schema": "perfscope/run/1", "id": "x", "batches": [{"batch_size": "4"}]}', r"Run\.batches\[0\]\.batch_size should be int, is str"),
    ('{"schema": "perfscope/run/1", "id": "x", "environment": []}', "should be an object"),
    ("[" * 100_000, "nested too deeply|not whole JSON"), ("\ufeff{}", "not whole JSON|not a perfscope record"),
])
def test_a_file_that_is_no_record_says_why(tmp_path, content, words):
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(RecordError, match=f"(?s){words}") as caught:
        load(tmp_path)
    assert caught.value.hint and caught.value.exit_code == 2 and str(tmp_path) in caught.value.message


def test_no_file_and_no_text(tmp_path):
    with pytest.raises(RecordError, match="there is no record at"):
        load(tmp_path)
    with pytest.raises(RecordError, match="cannot read.*too long"):
        load("a" * 300)
    (tmp_path / "run.json").write_bytes(b"\xff\xfe{}")
    with pytest.raises(RecordError, match="not UTF-8"):
        load(tmp_path)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_every_truncation_and_every_changed_byte_is_told_or_harmless(tmp_path, data):
    whole = json.dumps(to_dict(small())).encode()
    cut = data.draw(st.integers(0, len(whole) - 1))
    path = tmp_path / "run.json"
    path.write_bytes(whole[:cut])
    with pytest.raises(RecordError):
        load(path)
    path.write_bytes(whole[:cut] + bytes([data.draw(st.integers(0, 255))]) + whole[cut + 1:])
    try:
        save(load(path), path)
    except RecordError as e:
        assert e.message and e.hint


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.sampled_from([f.name for f in dataclasses.fields(Run)]), JSON))
def test_wrong_types_anywhere_are_told(tmp_path, changes):
    path = tmp_path / "run.json"
    path.write_text(json.dumps({**to_dict(small()), **changes}))
    try:
        assert isinstance(load(path), Run)
    except RecordError as e:
        assert e.message and e.hint
