"""The plain training loop that most recipes share: `fit` trains from raw images and gives the evaluation images' logits.

Everything in here runs inside the speedrun's clock. It knows every field of tricks.Settings; those of the network
(dropout, zero_gamma, whiten) are the recipe's `model`'s business.
"""

from __future__ import annotations

import contextlib
from typing import Any, Callable, Iterator

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from perfscope.errors import UsageError
from perfscope.measure.ranks import Ranks
from perfscope.tricks import Settings, evaluation, images, losses, nets, optimizers, schedules


def fit(model: Callable[[Settings], nn.Module], data: Any, s: Settings, seed: int, log: Callable, ranks: Ranks = Ranks(), *,
        optimizer: Callable | None = None, loss: Callable | None = None) -> torch.Tensor:
    """Trains model(s) on data.train_* and gives float32 logits (n, classes) of data.test_images.

    data, s, seed, log, ranks: see perfscope.recipes. With several ranks each takes its part of every batch (DDP averages
    the gradients), and of the evaluation images. Images that do not fill the last batch of an epoch are left out.
    optimizer(parameters) and loss(logits, labels) stand in for those of the settings; the optimizer's lr is the peak then.
    """
    device = data.train_images.device
    torch.manual_seed(seed)
    batch = min(s.batch * (ranks.size if s.batch_per_rank else 1), len(data.train_images))
    if batch % ranks.size:
        raise UsageError(f"a batch of {batch} cannot be split over {ranks.size} ranks")
    net = nets.placed(model(s), s, device)
    load(net, s.checkpoint)
    train = Trainer(net, s, device, schedules.peak_lr(s, batch), teacher(model, s, device), ranks, optimizer, loss)
    per_epoch = max(1, len(data.train_images) // batch)
    steps = max(1, round(s.epochs * per_epoch))
    train.schedule(steps, per_epoch)
    step = 0
    for epoch, x, y in batches(data, s, seed, batch, per_epoch, steps, ranks):
        lost = train.step(x, y)
        step += 1
        log(step / per_epoch, lost)
        if s.early_stop and step % per_epoch == 0 and data.test_labels is not None:
            out = train.evaluate(data.test_images)
            if float((out.argmax(1) == data.test_labels).float().mean()) >= s.early_stop:
                break
    log.trained(train.evaluated())
    return train.evaluate(data.test_images)


def batches(data, s: Settings, seed: int, batch: int, per_epoch: int, steps: int, ranks: Ranks) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
    """(epoch, prepared images, labels) of each step: this rank's part of the batch, the whole set shuffled every epoch."""
    pictures, labels = data.train_images, data.train_labels
    device, n = pictures.device, len(pictures)
    order = torch.Generator(device).manual_seed(seed)                       # the same on every rank
    chance = torch.Generator(device).manual_seed(seed * 1000 + 1 + ranks.rank)      # the rank's own
    mirrored = torch.rand(n, generator=order, device=device) < 0.5 if s.flip == "alternating" else None
    own = batch // ranks.size
    for epoch in range(-(-steps // per_epoch)):
        shuffled = torch.randperm(n, generator=order, device=device)
        todo = range(min(per_epoch, steps - epoch * per_epoch))
        parts = [shuffled[i * batch + ranks.rank * own:i * batch + (ranks.rank + 1) * own] for i in todo]
        if not s.preloaded:
            for x, y in loader(pictures, labels, parts, s):
                yield epoch, x.to(device), y.to(device)
            continue
        for index in parts:
            x = images.prepare(pictures[index], s)
            if s.crop or s.cutout or s.flip != "off":
                x = images.augment(x, s, chance, mirrored[index] if mirrored is not None else None, epoch)
            yield epoch, x, labels[index]


def loader(pictures: torch.Tensor, labels: torch.Tensor, parts: list[torch.Tensor], s: Settings) -> Any:
    """A DataLoader that prepares image by image in this process: how most training scripts start."""
    class Images(torch.utils.data.Dataset):
        def __len__(self):
            return len(pictures)

        def __getitem__(self, i):
            return images.prepare(pictures[i][None], s)[0], labels[i]

    return torch.utils.data.DataLoader(Images(), batch_sampler=[p.tolist() for p in parts])


def teacher(model, s: Settings, device: torch.device) -> nn.Module | None:
    """The trained network of the checkpoint `s.teacher`, evaluating; None without one."""
    if not s.teacher:
        return None
    net = nets.placed(model(s), s, device)
    load(net, s.teacher)
    return net.eval()


def load(net: nn.Module, path: str) -> None:
    """Trained weights from a file that `perfscope speedrun --save` wrote (tensors only, no code); nothing for "". UsageError with the reason."""
    if not path:
        return
    try:
        net.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except (OSError, RuntimeError, KeyError, AttributeError, ValueError, EOFError) as e:
        raise UsageError(f"{path} is no checkpoint of this network: {(str(e).splitlines() or ['?'])[0]}") from None
    except Exception as e:      # torch raises its own UnpicklingError for what is no tensor
        raise UsageError(f"{path} is no checkpoint: {(str(e).splitlines() or ['?'])[0][:200]}") from None


class Trainer:
    """A network with its optimizers, schedules and averages: `step` once per batch, `evaluate` at the end."""

    def __init__(self, net: nn.Module, s: Settings, device: torch.device, lr: float, teacher: nn.Module | None, ranks: Ranks,
                 optimizer: Callable | None = None, loss: Callable | None = None):
        self.s, self.net, self.device, self.teacher, self.ranks, self.loss = s, net, device, teacher, ranks, loss
        named = [(n, p) for n, p in net.named_parameters() if p.requires_grad]
        self.masters = optimizers.Masters(named) if s.master else None
        self.named = named
        moved = self.masters.named if self.masters else named
        self.optimizers = [optimizers.theirs(optimizer, moved, s)] if optimizer else optimizers.make(moved, s, lr)
        self.scaler = torch.amp.GradScaler(device.type) if s.dtype == "amp-half" else None
        self.ema = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(s.ema), use_buffers=True) if s.ema else None
        self.coin = torch.Generator().manual_seed(torch.initial_seed() % 2 ** 62 + 7 + ranks.rank)    # mixup's
        self.forward = net
        if ranks.size > 1:
            self.forward = nn.parallel.DistributedDataParallel(net)
        if s.compile != "off":
            self.forward = torch.compile(self.forward, mode=None if s.compile == "default" else s.compile)

    def schedule(self, steps: int, per_epoch: int) -> None:
        """Sets the lr of every step."""
        self.schedulers = [schedules.scheduler(o, self.s, steps, per_epoch) for o in self.optimizers]

    def autocast(self) -> Any:
        """The context of the forward pass."""
        if not self.s.dtype.startswith("amp-"):
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, images.COMPUTE[self.s.dtype])

    def step(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """One optimizer step on a batch; gives its loss, on the device."""
        s, other, lam = self.s, None, 1.0
        if s.mixup:
            x, other, lam = losses.mix(x, y, s.mixup, self.coin)
        with self.autocast():
            out = self.forward(x)
            with torch.no_grad():
                taught = self.teacher(x) if self.teacher else None
        loss = self.loss(out.float(), y) if self.loss else losses.loss(
            out.float(), y, smoothing=s.label_smoothing, other=other, lam=lam, teacher=taught, weight=s.distill_weight, temperature=s.temperature)
        scale = s.loss_scale or 1.0
        (self.scaler.scale(loss) if self.scaler else loss * scale if scale != 1.0 else loss).backward()
        if self.masters:
            self.masters.take_gradients(scale)
        else:
            optimizers.unscale(self.named, scale)
        for o in self.optimizers:
            self.scaler.step(o) if self.scaler else o.step()
        if self.scaler:
            self.scaler.update()
        if self.masters:
            self.masters.give_weights()
        for o in self.schedulers:
            o.step()
        for _, p in self.named:
            p.grad = None
        if self.ema is not None:
            self.ema.update_parameters(self.net)
        return loss.detach()

    def evaluated(self) -> nn.Module:
        """The network whose predictions count: the average, where there is one."""
        return self.ema.module if self.ema is not None else self.net

    def evaluate(self, pictures: torch.Tensor) -> torch.Tensor:
        """float32 logits of raw images; of several ranks each takes a part, and all get the whole."""
        net = self.evaluated()
        was = net.training
        net.eval()
        with self.autocast():
            out = spread(lambda part: evaluation.logits(net, part, self.s, lambda raw: images.prepare(raw, self.s)), pictures, self.ranks)
        net.train(was)
        return out


def spread(predict: Callable[[torch.Tensor], torch.Tensor], pictures: torch.Tensor, ranks: Ranks) -> torch.Tensor:
    """predict(pictures), each rank doing its part of them; every rank gets the whole."""
    if ranks.size == 1:
        return predict(pictures)
    import torch.distributed as dist

    own = -(-len(pictures) // ranks.size)           # the last ranks do some of the first images again, so that all parts are of one size
    index = torch.arange(ranks.rank * own, (ranks.rank + 1) * own, device=pictures.device) % len(pictures)
    out = predict(pictures[index]).contiguous()
    parts = [torch.empty_like(out) for _ in range(ranks.size)]
    dist.all_gather(parts, out)
    return torch.cat(parts)[:len(pictures)]
