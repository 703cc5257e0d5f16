"""Every trick against a value computed by hand, or against what defines it."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from perfscope import tricks
from perfscope.errors import UsageError
from perfscope.tricks import Settings, evaluation, images, loop, losses, nets, optimizers, schedules


def near(a, b, tolerance=1e-6):
    assert torch.allclose(torch.as_tensor(a).double(), torch.as_tensor(b).double(), atol=tolerance, rtol=tolerance), (a, b)


# ---------------------------------------------------------------- schedules

def rates(s, steps, per_epoch=10):
    p = nn.Parameter(torch.zeros(1))
    o = optimizers.make([("w", p)], s, 2.0)[0]
    scheduler, seen = schedules.scheduler(o, s, steps, per_epoch), []
    for _ in range(steps):
        g = o.param_groups[0]
        seen.append((g["lr"], g.get("momentum", g.get("betas", (0,))[0])))
        p.grad = torch.ones(1)
        o.step()
        scheduler.step()
    return seen


def test_linear_scaling_is_proportional_to_the_batch():
    assert schedules.peak_lr(Settings(lr=0.1, lr_batch=256), 1024) == pytest.approx(0.4)
    assert schedules.peak_lr(Settings(lr=0.1), 1024) == 0.1


def test_warmup_is_i_over_m_of_the_peak():
    lr = [r for r, _ in rates(Settings(warmup=0.4), 10)]
    assert lr == pytest.approx([0.5, 1.0, 1.5, 2.0] + [2.0] * 6)


def test_triangular_rises_and_falls_linearly():
    lr = [r for r, _ in rates(Settings(schedule="triangular", warmup=0.5), 8)]
    assert lr == pytest.approx([0.5, 1.0, 1.5, 2.0, 2 * 7 / 8, 2 * 5 / 8, 2 * 3 / 8, 2 * 1 / 8])
    assert rates(Settings(schedule="triangular", final_lr=0.5), 2)[-1][0] == pytest.approx(2 * (1 - 0.5 * 0.75))


def test_cosine_is_half_of_one_plus_cos():
    lr = [r for r, _ in rates(Settings(schedule="cosine"), 4)]
    assert lr == pytest.approx([1 + math.cos(math.pi * t) for t in (1 / 8, 3 / 8, 5 / 8, 7 / 8)])


def test_step_multiplies_once_an_epoch():
    lr = [r for r, _ in rates(Settings(schedule="step", gamma=0.7), 6, per_epoch=2)]
    assert lr == pytest.approx([2, 2, 1.4, 1.4, 0.98, 0.98])


def test_one_cycle_moves_momentum_the_other_way():
    seen = rates(Settings(schedule="onecycle", warmup=0.5, momentum=0.95, momentum_low=0.85, nesterov=False), 10)
    lr, momentum = zip(*seen)
    assert lr[0] == pytest.approx(2 / 25) and max(lr) == pytest.approx(2.0, rel=0.06) and lr[-1] < 0.2
    assert momentum[0] == pytest.approx(0.95) and min(momentum) == pytest.approx(0.85, abs=0.01)
    assert momentum[lr.index(max(lr))] == min(momentum)
    assert {m for _, m in rates(Settings(schedule="onecycle", warmup=0.5), 10)} == {0.9}


def test_cyclic_has_its_cycles():
    lr = [r for r, _ in rates(Settings(schedule="cyclic", cycles=2, final_lr=0.0), 8)]
    assert lr == pytest.approx([0, 1, 2, 1] * 2)


# ---------------------------------------------------------------- targets

LOGITS = torch.tensor([[2.0, 0.0, -1.0], [0.5, 0.5, 0.0]])
LABELS = torch.tensor([0, 2])


def logsoftmax(row):
    total = math.log(sum(math.exp(x) for x in row))
    return [x - total for x in row]


def test_label_smoothing_mixes_with_the_uniform():
    expected = 0.0
    for row, label in zip(LOGITS.tolist(), LABELS.tolist()):
        logs = logsoftmax(row)
        expected -= sum((0.8 * (i == label) + 0.2 / 3) * v for i, v in enumerate(logs)) / 2
    near(losses.loss(LOGITS, LABELS, smoothing=0.2), expected)


def test_mixup_is_a_convex_mix_of_images_and_of_losses():
    x = torch.tensor([[[[1.0]]], [[[3.0]]]])
    near(losses.blend(x, torch.tensor([1, 0]), 0.75).flatten(), [1.5, 2.5])
    other, lam = torch.tensor([2, 0]), 0.75
    expected = 0.75 * F.cross_entropy(LOGITS, LABELS) + 0.25 * F.cross_entropy(LOGITS, other)
    by_hand = -(0.75 * logsoftmax(LOGITS[0].tolist())[0] + 0.25 * logsoftmax(LOGITS[0].tolist())[2]
                + 0.75 * logsoftmax(LOGITS[1].tolist())[2] + 0.25 * logsoftmax(LOGITS[1].tolist())[0]) / 2
    near(losses.loss(LOGITS, LABELS, other=other, lam=lam), expected)
    near(expected, by_hand)


def test_mixup_draws_lambda_from_beta():
    g = torch.Generator().manual_seed(0)
    draws = torch.tensor([losses.mix(torch.zeros(2, 1), LABELS, 0.5, g)[2] for _ in range(4000)])
    assert float(draws.mean()) == pytest.approx(0.5, abs=0.03)
    assert float(draws.var()) == pytest.approx(1 / 8, abs=0.01)         # of Beta(a, a): 1 / (4 (2a + 1))
    x = torch.tensor([[0.0], [10.0]])
    mixed, partner, lam = losses.mix(x, LABELS, 1.0, g)
    matches = [[0, 10]] if torch.equal(partner, LABELS) else [[10 * (1 - lam), 10 * lam]]
    near(mixed.flatten(), matches[0], 1e-5)


def test_distillation_is_t_squared_kl_of_softened_outputs():
    teacher, t = torch.tensor([[1.0, 1.0, 0.0], [0.0, 2.0, 1.0]]), 4.0
    expected = 0.0
    for row, taught in zip(LOGITS.tolist(), teacher.tolist()):
        q, p = logsoftmax([x / t for x in row]), logsoftmax([x / t for x in taught])
        expected += t * t * sum(math.exp(a) * (a - b) for a, b in zip(p, q)) / 2
    near(losses.distillation(LOGITS, teacher, t), expected)
    near(losses.loss(LOGITS, LABELS, teacher=teacher, weight=0.25, temperature=t), 0.75 * F.cross_entropy(LOGITS, LABELS) + 0.25 * expected)
    near(losses.distillation(LOGITS, LOGITS, t), 0.0)


# ---------------------------------------------------------------- images

def test_preparing_is_pixel_minus_mean_over_std():
    x = torch.tensor([[[[0, 255], [51, 102]]]], dtype=torch.uint8)
    near(images.prepare(x, Settings(mean=(0.2,), std=(0.4,))).flatten(), [-0.5, 2.0, 0.0, 0.5])
    half = images.prepare(x, Settings(dtype="bfloat16", memory_format="channels_last"))
    assert half.dtype == torch.bfloat16 and half.is_contiguous(memory_format=torch.channels_last)


def test_alternating_flip_never_shows_the_same_view_twice_in_a_row():
    x, coin = torch.arange(6.0).view(3, 1, 1, 2), torch.tensor([True, False, True])
    first, second = (images.alternating_flip(x, coin, epoch) for epoch in (0, 1))
    assert first[:, 0, 0].tolist() == [[1, 0], [2, 3], [5, 4]] and second[:, 0, 0].tolist() == [[0, 1], [3, 2], [4, 5]]


def test_cutout_zeroes_one_square_and_crop_moves():
    g, s = torch.Generator().manual_seed(1), Settings(cutout=3)
    x = torch.ones(4, 2, 8, 8)
    out = images.augment(x, s, g, None, 0)
    assert (out == 0).sum(dim=(1, 2, 3)).tolist() == [18] * 4 and bool((x == 1).all())
    rows = torch.arange(8.0).view(1, 1, 8, 1).expand(5, 1, 8, 8)
    moved = images.augment(rows, Settings(crop=2), g, None, 0)
    assert moved.shape == rows.shape and len({tuple(m[0, :, 0].tolist()) for m in moved}) > 1
    assert all(set(m[0, :, 0].tolist()) <= set(range(8)) for m in moved)


# ---------------------------------------------------------------- networks

def test_zero_gamma_makes_a_block_the_identity():
    norm = nn.BatchNorm2d(2)
    nets.zero_gamma([norm])
    assert float(norm(torch.randn(4, 2, 3, 3)).detach().abs().max()) == 0.0


def test_a_frozen_scale_is_one_and_not_learnt():
    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))
    nn.init.constant_(net[1].weight, 3.0)
    net = nets.placed(net, Settings(frozen_scale=True), torch.device("cpu"))
    assert net[1].weight.tolist() == [1, 1] and not net[1].weight.requires_grad and net[1].bias.requires_grad


def test_ghost_norm_normalises_each_group_by_itself():
    x = torch.tensor([1.0, 3.0, 10.0, 20.0]).view(4, 1, 1, 1)
    net = nn.Sequential(nn.BatchNorm2d(1, eps=1e-9))
    nets.ghost_norm(net, 2)
    near(net(x).flatten(), [-1, 1, -1, 1], 1e-5)
    net.eval()
    statistics = net[0].running_mean.item(), net[0].running_var.item()
    near(net(x).flatten(), [(v - statistics[0]) / math.sqrt(statistics[1]) for v in (1, 3, 10, 20)], 1e-4)
    assert statistics[0] == pytest.approx(0.9 * 0.1 * 2 + 0.1 * 15)


def test_whitening_makes_patches_uncorrelated_with_variance_one():
    g = torch.Generator().manual_seed(0)
    mix = torch.tensor([[2.0, 0.5], [0.5, 1.0]])
    x = torch.einsum("ij,njhw->nihw", mix, torch.randn(200, 2, 5, 5, generator=g))
    w = nets.whitening(x, 1, eps=0.0)
    out = F.conv2d(x - x.mean((0, 2, 3), keepdim=True), w).movedim(1, 0).flatten(1)
    near(out @ out.T / out.shape[1], torch.eye(2), 1e-4)
    strongest = torch.linalg.eigh(mix @ mix).eigenvalues[-1]
    assert float(w[0].norm()) == pytest.approx(float(1 / strongest.sqrt()), rel=0.05)       # the largest eigenvalue first


def test_half_networks_keep_the_norm_in_float_if_asked():
    make = lambda: nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))  # noqa: E731
    plain = nets.placed(make(), Settings(dtype="bfloat16"), torch.device("cpu"))
    mended = nets.placed(make(), Settings(dtype="bfloat16", norm_float=True), torch.device("cpu"))
    assert plain[1].weight.dtype == torch.bfloat16 and mended[1].weight.dtype == torch.float32 and mended[0].weight.dtype == torch.bfloat16


# ---------------------------------------------------------------- optimizers

def test_no_decay_leaves_biases_and_norms_alone():
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    s = Settings(no_decay=True, weight_decay=0.1)
    (o,) = optimizers.make(list(net.named_parameters()), s, 1.0)
    assert [(len(g["params"]), g["weight_decay"]) for g in o.param_groups] == [(1, 0.1), (3, 0.0)]
    assert len(optimizers.make(list(net.named_parameters()), replace(s, no_decay=False), 1.0)[0].param_groups) == 1


def test_master_weights_keep_updates_that_bfloat16_would_lose():
    p = nn.Parameter(torch.tensor([1.0], dtype=torch.bfloat16))
    masters = optimizers.Masters([("p", p)])
    o = torch.optim.SGD([c for _, c in masters.named], lr=1.0)
    for _ in range(8):
        p.grad = torch.tensor([1.0], dtype=torch.bfloat16)      # scaled by 1024: a step of 1 / 1024, a quarter of bfloat16's spacing
        masters.take_gradients(1024.0)
        o.step()
        masters.give_weights()
    assert masters.copies[0].item() == 1 - 8 / 1024 and p.item() == 1 - 8 / 1024
    q = torch.tensor([1.0], dtype=torch.bfloat16)
    for _ in range(8):
        q -= torch.tensor([1 / 1024], dtype=torch.bfloat16)
    assert q.item() == 1.0


def test_unscaling_divides_gradients():
    p = nn.Parameter(torch.zeros(2))
    p.grad = torch.tensor([8.0, 4.0])
    optimizers.unscale([("p", p)], 4.0)
    assert p.grad.tolist() == [2, 1]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_muon_is_torchs_on_the_flattened_weight(layout):
    torch.manual_seed(0)
    start, grad = torch.randn(4, 3, 2, 2), torch.randn(4, 3, 2, 2)
    p = nn.Parameter(start.clone().to(memory_format=layout))
    mine = optimizers.FlatMuon([p], lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.0)
    flat = nn.Parameter(start.permute(0, 2, 3, 1).reshape(4, 12).clone())
    theirs = torch.optim.Muon([flat], lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.0)
    for _ in range(2):
        p.grad, flat.grad = grad.clone().to(memory_format=layout), grad.permute(0, 2, 3, 1).reshape(4, 12).clone()
        mine.step()
        theirs.step()
    near(p.detach().permute(0, 2, 3, 1).reshape(4, 12), flat.detach(), 1e-5)


def test_a_muon_step_is_close_to_orthogonal():
    torch.manual_seed(0)
    p = nn.Parameter(torch.zeros(6, 6))
    p.grad = torch.randn(6, 6)
    optimizers.FlatMuon([p], lr=1.0, momentum=0.0, nesterov=False, weight_decay=0.0).step()
    s = torch.linalg.svdvals(p.detach())
    assert 0.5 < float(s.min() / s.max()) <= 1         # Newton-Schulz leaves singular values in about [0.7, 1.2]


def test_muon_moves_inner_matrices_and_adam_the_rest():
    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2, 2))
    adam, muon = optimizers.make(list(net.named_parameters()), Settings(optimizer="muon"), 0.1)
    assert isinstance(adam, torch.optim.Adam) and len(muon.real) == 1 and muon.real[0] is net[1].weight
    assert sum(len(g["params"]) for g in adam.param_groups) == len(list(net.parameters())) - 1


# ---------------------------------------------------------------- evaluation

def test_shifting_moves_down_and_right_with_a_mirrored_border():
    x = torch.arange(9.0).view(1, 1, 3, 3)
    assert evaluation.shifted(x, 1, 0)[0, 0].tolist() == [[3, 4, 5], [0, 1, 2], [3, 4, 5]]
    assert evaluation.shifted(x, 0, -1)[0, 0].tolist() == [[1, 2, 1], [4, 5, 4], [7, 8, 7]]


def test_the_views_are_what_their_names_say():
    x = torch.arange(9.0).view(1, 1, 3, 3)
    assert len(evaluation.views(x, "shift")) == 2 and len(evaluation.views(x, "flip+shift")) == 5
    assert evaluation.views(x, "flip")[0].equal(x.flip(-1))


def test_views_are_averaged_and_only_the_doubtful_are_looked_at_again():
    raw = torch.tensor([[0.0, 4.0], [1.0, 9.0], [2.0, 2.5]]).view(3, 1, 1, 2)
    net = lambda x: torch.cat([x[:, 0, 0, :1], x[:, 0, 0, 1:]], 1)      # noqa: E731: logits are the two pixels
    run = lambda **s: evaluation.logits(net, raw, Settings(tta="flip", **s), lambda v: v)   # noqa: E731
    near(run(), raw.view(3, 2).mean(1, keepdim=True).expand(3, 2))
    near(run(tta_share=0.34), [[0, 4], [1, 9], [2.25, 2.25]])
    assert evaluation.uncertain(raw.view(3, 2), 0.34).tolist() == [2]


# ---------------------------------------------------------------- the loop

def tiny(n=64, test=10):
    g = torch.Generator().manual_seed(0)
    labels = torch.randint(2, (n + test,), generator=g)
    pictures = (labels.view(-1, 1, 1, 1) * 200 + torch.randint(50, (n + test, 1, 4, 4), generator=g)).to(torch.uint8)
    return SimpleNamespace(train_images=pictures[:n], train_labels=labels[:n], test_images=pictures[n:], test_labels=labels[n:])


class Log(list):
    def __call__(self, epoch, loss):
        self.append((epoch, float(loss)))

    def trained(self, net):
        self.net = net


def linear(s):
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 2))


def test_ema_follows_the_weights_with_its_decay():
    data, log = tiny(), Log()
    s = Settings(batch=16, epochs=0.75, lr=0.1, ema=0.5)
    loop.fit(linear, data, s, 3, log)
    weights = []

    class Peek(Log):
        def __call__(self, epoch, loss):
            weights.append(self.live[1].weight.detach().clone())

    peek = Peek()

    def keep(s):
        peek.live = linear(s)
        return peek.live

    loop.fit(keep, data, replace(s, ema=0.0), 3, peek)
    expected = weights[0]                       # the average starts as the first weights: AveragedModel copies
    for w in weights[1:]:
        expected = 0.5 * expected + 0.5 * w
    near(log.net[1].weight, expected, 1e-5)


def test_the_same_seed_gives_the_same_run_and_another_one_does_not():
    data, s = tiny(), Settings(batch=16, epochs=2, lr=0.1, flip="random", crop=1, cutout=1, mixup=0.2)
    first, second, third = (loop.fit(linear, data, s, seed, Log()) for seed in (1, 1, 2))
    assert first.equal(second) and not first.equal(third)
    assert (loop.fit(linear, data, Settings(batch=16, epochs=4, lr=0.1), 0, Log()).argmax(1) == data.test_labels).all()


@pytest.mark.parametrize("change", [{"dtype": "amp-bfloat16"}, {"dtype": "bfloat16"}, {"dtype": "bfloat16", "master": True, "loss_scale": 128.0},
                                    {"optimizer": "adam", "fused": True}, {"optimizer": "adadelta", "lr": 1.0}, {"optimizer": "muon"},
                                    {"memory_format": "channels_last"}, {"preloaded": False}, {"label_smoothing": 0.2}, {"mixup": 0.1},
                                    {"no_decay": True, "weight_decay": 1e-3}, {"ema": 0.5}, {"schedule": "onecycle", "warmup": 0.3}], ids=str)
def test_it_learns_with_each_trick(change):
    data, log = tiny(), Log()
    deep = lambda s: nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 2), nn.ReLU(), nn.Flatten(), nn.Linear(4, 2))  # noqa: E731
    out = loop.fit(deep, data, Settings(**{"batch": 8, "epochs": 6, "lr": 0.02, **change}), 0, log)
    assert (out.argmax(1) == data.test_labels).float().mean() >= 0.9 and log[-1][1] < log[0][1]


def test_a_loader_gives_the_batches_of_the_preloaded_set():
    data = tiny()
    made = [[(e, x, y) for e, x, y in loop.batches(data, Settings(preloaded=p), 5, 16, 4, 6, loop.Ranks())] for p in (True, False)]
    assert len(made[0]) == len(made[1]) == 6
    for (e, x, y), (f, u, v) in zip(*made):
        assert e == f and y.equal(v)
        near(x, u)


def test_each_rank_takes_its_own_part_of_the_same_batches():
    data = tiny()
    whole, first, second = ([y for _, _, y in loop.batches(data, Settings(), 5, 16, 4, 4, loop.Ranks(r, n))] for r, n in ((0, 1), (0, 2), (1, 2)))
    assert all(w.equal(torch.cat([a, b])) for w, a, b in zip(whole, first, second))


def test_early_stop_looks_at_the_test_labels_and_only_with_them():
    data, log = tiny(), Log()
    loop.fit(linear, data, Settings(batch=16, epochs=50, lr=0.1, early_stop=0.9), 0, log)
    assert len(log) < 200
    data.test_labels, log = None, Log()
    loop.fit(linear, data, Settings(batch=16, epochs=5, lr=0.1, early_stop=0.9), 0, log)
    assert len(log) == 20


def test_transfer_and_distillation_start_from_a_saved_network(tmp_path):
    data, log = tiny(), Log()
    loop.fit(linear, data, Settings(batch=16, epochs=4, lr=0.1), 0, log)
    torch.save(log.net.state_dict(), tmp_path / "net.pt")
    after = Log()
    loop.fit(linear, data, Settings(batch=16, epochs=0.25, lr=0.1, checkpoint=str(tmp_path / "net.pt")), 1, after)
    assert after[0][1] < log[0][1] / 2
    taught = loop.teacher(linear, Settings(teacher=str(tmp_path / "net.pt")), torch.device("cpu"))
    assert taught[1].weight.equal(log.net[1].weight) and not taught.training
    student = Log()
    loop.fit(linear, data, Settings(batch=16, epochs=1, lr=0.1, teacher=str(tmp_path / "net.pt"), distill_weight=1.0), 2, student)
    assert student[-1][1] < student[0][1]


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"\x80\x02c__builtin__\neval\n."])
def test_a_wrong_checkpoint_is_one_clear_error(tmp_path, content):
    (tmp_path / "net.pt").write_bytes(content)
    with pytest.raises(UsageError, match="no checkpoint"):
        loop.fit(linear, tiny(), Settings(checkpoint=str(tmp_path / "net.pt")), 0, Log())
    with pytest.raises(UsageError, match="no checkpoint"):
        loop.fit(linear, tiny(), Settings(checkpoint=str(tmp_path / "absent.pt")), 0, Log())


# ---------------------------------------------------------------- switching

def test_every_trick_has_definition_source_and_switches():
    for t in tricks.TRICKS.values():
        assert len(t.definition) > 10 and t.source, t.name
        for fields in (t.on, t.off):
            assert all(hasattr(Settings(), k) for k in fields), t.name
        assert not t.value or hasattr(Settings(), t.value), t.name


@pytest.mark.parametrize("name", [n for n, t in tricks.TRICKS.items() if t.on and n != "preloaded"])
def test_switching_on_and_off_again_gives_the_settings_back(name):
    """Each trick from settings that have all it needs."""
    base = {"master_weights": Settings(dtype="bfloat16"), "norm_float": Settings(dtype="half"), "loss_scaling": Settings(dtype="half"),
            "inverse_momentum": Settings(schedule="onecycle", warmup=0.3), "selective_tta": Settings(tta="flip")}.get(name, Settings())
    on = tricks.switch(base, on=(name,))
    assert name in tricks.active(on) and name not in tricks.active(base)
    assert tricks.switch(on, off=(name,)) == base
    with pytest.raises(UsageError, match="on already"):
        tricks.switch(on, on=(name,))
    with pytest.raises(UsageError, match="is not on"):
        tricks.switch(base, off=(name,))


@pytest.mark.parametrize("fields, reason", [
    ({"master": True}, "float32 already"), ({"norm_float": True, "dtype": "amp-half"}, "16-bit networks"), ({"loss_scale": 8.0, "dtype": "amp-half"}, "scales by itself"),
    ({"momentum_low": 0.8}, "follows a cycle"), ({"fused": True, "optimizer": "adadelta"}, "no fused adadelta"),
    ({"frozen_scale": True, "zero_gamma": True}, "kills the block"), ({"ghost": 7, "batch": 512}, "does not split"), ({"tta_share": 0.1}, "there are none"),
    ({"mixup": 0.2, "preloaded": False}, "one by one"), ({"cutout": 8, "preloaded": False}, "preloaded"), ({"schedule": "onecycle"}, "needs warmup"),
    ({"checkpoint": "a", "teacher": "b"}, "nothing to learn"), ({"dtype": "fp8"}, "no dtype"), ({"optimizer": "lion"}, "no optimizer"),
    ({"label_smoothing": 1.5}, "between 0 and 1"), ({"epochs": 0.0}, "epochs above 0")], ids=str)
def test_what_makes_no_sense_is_refused_with_the_reason(fields, reason):
    with pytest.raises(UsageError, match=reason):
        Settings(**fields)


def test_switching_says_what_is_wrong():
    recipe = SimpleNamespace(REFUSES={"flip": "a mirrored digit is another sign"}, OWN={"stem": "here"}, WITH={"stem": {"strided": True}}, WITHOUT={})
    for on, off, reason in ((["magic"], [], "no trick 'magic'"), (["flip"], [], "another sign"), (["fused=yes"], [], "takes no value"),
                            (["distillation"], [], "needs a value"), (["cutout=big"], [], "is not int"), (["stem"], [], "lack strided"), ([], ["tta"], "not on")):
        with pytest.raises(UsageError, match=reason):
            tricks.switch(Settings(), recipe, on, off)
    assert tricks.switch(Settings(batch=64), off=("larger_batch",)).batch == 32
    assert tricks.set_fields(Settings(), ["lr=0.5", "nesterov=no", "betas=0.8/0.9", "schedule=cosine"]).betas == (0.8, 0.9)
    with pytest.raises(UsageError, match="no setting 'colour'"):
        tricks.set_fields(Settings(), ["colour=red"])
