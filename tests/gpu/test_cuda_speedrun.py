"""Speedruns on a GPU: the clock waits for the device, every precision trains, labels and images live there."""

import pytest
import torch

from perfscope.speedrun import speedrun

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")]


@pytest.mark.parametrize("spec", ["mnist:gpu", "mnist", "mnist_ladder:8", "mnist,dtype=half,norm_float=true,master=true,loss_scale=1024",
                                  "mnist,optimizer=muon,fused=false", "mnist,ema=0.9,label_smoothing=0.1,cutout=4,crop=1,mixup=0.1"])
def test_a_recipe_runs_on_the_gpu(spec):
    record = speedrun(spec, runs=2, synthetic=2048, device="cuda", count=False)
    assert record.clock == "wall" and record.status == "complete" and all(r.images == 512 for r in record.runs)
    assert record.environment.device == "cuda" and all(p[1] == p[1] for r in record.runs for p in r.curve)


def test_the_clock_waits_for_the_device():
    """A network that keeps the device busy for long after its launches returned."""
    record = speedrun("mnist_ladder:0,preloaded=true,epochs=1,batch=2048,width1=512,width2=512", runs=2, synthetic=4096, device="cuda", count=True)
    work = record.results[0].flops / record.ceilings.flops_per_s
    assert all(r.wall_s > work for r in record.runs), "faster than the device's peak: the clock did not wait"
