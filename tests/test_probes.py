"""The contract of every probe: silent on healthy steps, fires on its own plant and on no other's, its cure takes the plant away."""

import pytest

from perfscope import contract, probing, registry

NAMES = registry.names("probes")


@pytest.fixture(scope="module")
def everyone():
    return probing.probes()


@pytest.mark.parametrize("subject", contract.SUBJECTS)
def test_silent_on_a_healthy_step(subject, everyone):
    findings, failed, _ = probing.detect(everyone, contract.evidence_of(contract.subject(subject)))
    assert {f.probe: f.text for f in findings} == {} and failed == {}


@pytest.mark.parametrize("name", NAMES)
def test_contract(name, everyone):
    assert contract.check(name, everyone[name], everyone).wrong == ()


@pytest.mark.parametrize("name", NAMES)
def test_a_cure_leaves_the_given_workload_alone(name, everyone):
    module = everyone[name]
    for cure in probing.cures(module).values():
        workload = contract.subject_of(module)
        before = {n: p.detach().clone() for n, p in workload.model.state_dict().items()}
        cure(workload)
        assert all((workload.model.state_dict()[n] == p).all() for n, p in before.items())
