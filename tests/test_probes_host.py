"""Probes of attention, optimizer, gradients and host: conditions that decide, thresholds from both sides, real traces."""

import os
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from perfscope import backends, contract, registry
from perfscope.probe import add

TRANSFORMER = partial(contract.subject, "transformer")


def probe(name):
    return registry.load("probes", name)


# ---------------------------------------------------------------- the evidence

def test_attention_is_recorded_with_its_backend_and_leaves_no_trace():
    before = F.scaled_dot_product_attention
    evidence = contract.evidence_of(TRANSFORMER())
    assert F.scaled_dot_product_attention is before
    (call,) = evidence.calls("scaled_dot_product_attention")
    assert (call.args["backend"], call.args["why_not"], call.args["is_causal"]) == ("flash", {}, True)
    assert len(call.inputs) == 3 and call.outputs[0].shape == call.inputs[0].shape
    assert [o.name for o in evidence.ops if "sdp_choice" in o.name] == []


@pytest.mark.parametrize("change, reason", [
    ({}, None), ({"dropout": 0.1}, "dropout"), ({"mask": torch.zeros(16, 16, requires_grad=True)}, "gradient"),
    ({"v": torch.randn(2, 4, 16, 16)}, "widths: 8, 8, 16"), ({"q": torch.randn(2, 4, 8, 16).transpose(2, 3)}, "not contiguous"),
    ({"q": torch.randn(4, 16, 8)}, "4 dimensions"), ({"mask": torch.zeros(16, 16)}, None)])
def test_the_reasons_on_a_cpu_are_those_that_torch_acts_on(change, reason):
    given = {"q": torch.randn(2, 4, 16, 8), "k": torch.randn(2, 4, 16, 8), "v": torch.randn(2, 4, 16, 8), "mask": None, "dropout": 0.0} | change
    why = backends.why_not(*given.values())
    assert ("flash" in why) == (reason is not None) and (reason is None or reason in why["flash"])
    assert (backends.ask("attention", *given.values()) == "math") == (reason is not None)


def test_attention_that_is_switched_off():
    q = torch.randn(2, 4, 16, 8)
    with sdpa_kernel(SDPBackend.MATH):
        assert backends.why_not(q, q, q) == dict.fromkeys(("flash", "efficient", "cudnn"), "switched off")


def test_a_finding_may_be_a_hint_though_its_probe_has_a_cure():
    from types import SimpleNamespace

    from perfscope import probing
    from perfscope.diagnose import to_look_at
    from perfscope.probe import Config, Evidence, Finding

    ill = SimpleNamespace(USES=("config",), detect=lambda e: [Finding("", "curable"), Finding("", "not", extra={"hint": True})], fix=lambda w: w)
    findings, _, _ = probing.detect({"ill": ill}, Evidence(Config(torch="2.13")))
    assert [f.curable for f in findings] == [True, False]
    assert to_look_at(findings, {"ill": ill}) == ["ill"] and to_look_at(findings[1:], {"ill": ill}) == []
