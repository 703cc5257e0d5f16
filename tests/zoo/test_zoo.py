"""Takes each model of the zoo apart: nothing of a removed part is left, and the convolutions and matmuls are all there."""

import pytest

from perfscope.workload import census, step
from tests.zoo.models import ZOO

#: Standardises its weights itself, so no rescaling of the parameters reaches its activations; the record warns of them.
CANNOT_BE_RESCALED = {"timm:nfnet_l0"}


def take_apart(name):
    workload = ZOO[name]()
    prepared = step.prepare(workload, keep_original=False)
    batches = step.load_batches(prepared, 2)
    parts = step.present_parts(prepared, batches)
    return census.inspect(prepared, batches, parts, parts), parts, prepared


@pytest.mark.parametrize("name", ZOO)
def test_taken_apart_without_residue(name):
    if name.startswith("timm:"):
        pytest.importorskip("PIL", reason="timm is not installed")
    if name.startswith("hf:"):
        pytest.importorskip("transformers")
    try:
        inspection, parts, prepared = take_apart(name)
    except ModuleNotFoundError as e:
        pytest.skip(f"{e.name} is not installed")
    assert inspection.residues == {}
    assert census.different_work(inspection) == ""
    assert "optimizer" in parts
    removed = {part: sum(ops.values()) for part, ops in inspection.removed.items()}
    assert removed and all(removed.values()), "every part that is listed took some operation away"
    lost = {p for names in inspection.without_gradient.values() for p in names}
    named = dict(prepared.model.named_parameters())
    assert lost <= set(named)
    multiplied = {p for p in lost if "Embedding" not in type(prepared.model.get_submodule(p.rpartition(".")[0])).__name__
                  and named[p].numel() > max(named[p].shape)}
    assert not multiplied, f"convolution or matmul weights without a gradient: {multiplied}"
    if name not in CANNOT_BE_RESCALED:
        for variant, std in list(inspection.activation_std.items())[:-1]:      # the last is the whole model: its own affair
            odd = {layer: s for layer, s in std.items() if not 0.01 <= s <= 100}
            assert len(odd) <= 0.1 * len(std), f"{variant}: {odd}"


def test_the_zoo_is_large_enough():
    assert len(ZOO) >= 25
