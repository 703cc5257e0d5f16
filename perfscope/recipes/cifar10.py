"""CIFAR-10 to 94 % on one GPU, in the style of airbench94: the aim is under 1.0 s on an H200. No GPU time is measured yet.

Ideas and rates from Jordan, airbench94 with Muon (2.59 s on an A100, REFERENCES section 3); the code is our own. What is
different here: a run is a table. Which images each step takes, where it crops them, whether it mirrors them and at
which rates it moves are drawn before the first step, on the device, and a counter on the device says which row is due.
So a step needs nothing from the host, and on CUDA all of it (gather, crop, flip, forward, backward, both optimizers) is
one graph that is replayed; on a CPU the same function is called. Weights are float32 and cast by autocast, epochs
join without leaving images out, and only the least certain test images are looked at again.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import nn

from perfscope import tricks
from perfscope.errors import UsageError
from perfscope.tricks import captured, evaluation, images, loop, nets, schedules

DATASET, TARGET = "cifar10", 0.94


@dataclass(frozen=True)
class Settings(tricks.Settings):
    """8 epochs of batch 2000. Rates are for a loss that is summed over the batch."""

    epochs: float = 8.0
    batch: int = 2000
    mean: tuple[float, ...] = (0.4914, 0.4822, 0.4465)      # of the training images
    std: tuple[float, ...] = (0.2470, 0.2435, 0.2616)
    # the inner convolutions: Muon, or with optimizer "sgd" plain momentum
    optimizer: str = "muon"
    muon_lr: float = 0.24
    momentum: float = 0.6
    iterations: int = 3                 # of Newton-Schulz
    sgd_lr: float = 0.0015              # if "sgd": airbench94 before Muon, 11.5 per 1 000 steps and images
    # biases and head: SGD with Nesterov momentum
    lr: float = 0.053                   # of biases
    head_lr: float = 0.67
    small_momentum: float = 0.85
    weight_decay: float = 0.004         # 2e-6 x batch, of biases and head; not multiplied by their lr
    schedule: str = "triangular"        # linear to 0
    whiten_epochs: float = 3.0          # so long the bias of the whitening layer moves
    dtype: str = "amp-bfloat16"
    memory_format: str = "channels_last"
    label_smoothing: float = 0.2
    flip: str = "alternating"
    crop: int = 2
    whiten: bool = True
    whiten_eps: float = 5e-4
    frozen_scale: bool = True
    tta: str = "flip+shift"
    tta_share: float = 0.3
    widths: tuple[float, ...] = (64, 256, 256)


FULL = Settings()
VARIANTS = {
    "": FULL,
    "compiled": replace(FULL, compile="max-autotune"),
    "small": replace(FULL, batch=250, widths=(24, 48, 48), dtype="float32"),       # a smoke test for CPUs, no way to 94 %
}
WITHOUT = {"muon": {"optimizer": "sgd", "momentum": 0.85}}
PUBLISHED = {"": {"time_s": 2.59, "accuracy": 0.9401, "hardware": "A100", "source": "Jordan, airbench94 with Muon, 2024: the recipe this one follows"}}
OWN_LOOP = "this recipe's own loop does not have it: recipe cifar10_resnet9 does"
REFUSES = {name: OWN_LOOP for name in ("mixup", "distillation", "ema", "early_stop", "ghost_norm", "master_weights", "loss_scaling", "norm_float",
                                       "cutout", "linear_scaling", "inverse_momentum", "no_decay")}
REFUSES |= {"dropout": "the network has none", "zero_gamma": "the network has no residual blocks", "fused": "the whole step is one graph already"}


def check(s: Settings) -> None:
    """UsageError for what the loop below does not know."""
    wrong = [name for name in tricks.active(s) if name in REFUSES]
    wrong += [what for what, is_so in {
        "loader": not s.preloaded, f"dtype {s.dtype}": s.dtype in tricks.CAST, f"optimizer {s.optimizer}": s.optimizer not in ("muon", "sgd"),
        f"schedule {s.schedule}": s.schedule in ("onecycle", "cyclic"), f"compile {s.compile}": s.compile == "reduce-overhead"}.items() if is_so]
    if wrong:
        raise UsageError(f"recipe cifar10 has no {wrong[0]}: {REFUSES.get(wrong[0], OWN_LOOP)}")
    if len(s.widths) != 3 or s.whiten_epochs <= 0:
        raise UsageError("recipe cifar10 needs three widths and whiten_epochs above 0", "For example: widths=64/256/256")


# ---------------------------------------------------------------- network

class Group(nn.Sequential):
    """conv, pool, norm, GELU, conv, norm, GELU: half the side, c_out channels."""

    def __init__(self, c_in: int, c_out: int):
        def conv(c: int) -> nn.Conv2d:
            layer = nn.Conv2d(c, c_out, 3, padding=1, bias=False)
            nn.init.dirac_(layer.weight.data[:c])           # as many channels as there are pass through at first
            return layer

        def norm() -> nn.BatchNorm2d:
            return nn.BatchNorm2d(c_out, eps=1e-12, momentum=0.4)       # 25 steps an epoch: the mean has to be quick

        super().__init__(conv(c_in), nn.MaxPool2d(2), norm(), nn.GELU(), conv(c_out), norm(), nn.GELU())


class Net(nn.Module):
    """(n, 3, 32, 32) -> logits (n, 10): 2x2 patches, whitened; three groups; 3x3 max-pool; linear."""

    def __init__(self, s: Settings):
        super().__init__()
        a, b, c = map(int, s.widths)
        self.first = nn.Conv2d(3, 24, 2)                    # 2x2x3 patches have 12 directions, each with both signs
        self.first.weight.requires_grad_(not s.whiten)
        self.groups = nn.Sequential(nn.GELU(), Group(24, a), Group(a, b), Group(b, c), nn.MaxPool2d(3), nn.Flatten())
        self.head = nn.Linear(c, 10, bias=False)
        self.head.weight.data.div_(self.head.weight.data.std())
        if s.frozen_scale:
            nets.freeze_scale(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.groups(self.first(x))) / self.head.in_features


def model(s: Settings) -> nn.Module:
    """The network; its first layer is whitened by `train`, which has the images."""
    return Net(s)


# ---------------------------------------------------------------- a run

class Run:
    """All that a run reads and writes, in tensors that stay where they are: `begin` fills them, `step` does what row `t` says."""

    def __init__(self, s: Settings, data, ranks):
        self.s, self.ranks, self.device = s, ranks, data.train_images.device
        n, side = len(data.train_images), data.train_images.shape[-1]
        self.batch = min(s.batch * (ranks.size if s.batch_per_rank else 1), n) // ranks.size * ranks.size
        self.steps, self.per_epoch = max(1, round(s.epochs * n / self.batch)), n / self.batch
        self.dtype = images.COMPUTE[s.dtype]
        with self.device:
            self.net = Net(s).to(memory_format=images.LAYOUT[s.memory_format])
            self.scale, self.shift = (torch.tensor(v).view(3, 1, 1) for v in ([1 / (255 * x) for x in s.std], [m / x for m, x in zip(s.mean, s.std)]))
            self.pictures = torch.empty(n, side + 2 * s.crop, side + 2 * s.crop, 3, dtype=self.dtype)        # padded, channels last
            self.labels, self.test = torch.empty(n, dtype=torch.int64), torch.empty_like(data.test_images)
            self.rows = torch.zeros(self.steps, 4, self.batch // ranks.size, dtype=torch.int64)              # image, y, x, mirrored
            self.rates = torch.empty(self.steps, 4)                                                         # filters, biases, head, first bias
            self.losses, self.t, self.side = torch.zeros(self.steps), torch.zeros(1, dtype=torch.int64), torch.arange(side)
        named = [(k, p) for k, p in self.net.named_parameters() if p.requires_grad]
        self.kinds = [[p for k, p in named if kind == (3 if k == "first.bias" else 2 if p.ndim == 2 else 0 if p.ndim == 4 else 1)] for kind in range(4)]
        self.buffers = [[torch.zeros_like(p) for p in kind] for kind in self.kinds]
        mode = {"default": None, "max-autotune": "max-autotune-no-cudagraphs"}
        self.forward = self.net if s.compile == "off" else torch.compile(self.net, mode=mode[s.compile])
        self.replay_step = self.replay_logits = None

    @torch.no_grad()
    def begin(self, data, seed: int) -> None:
        """Everything as at the start of the run with this seed: nothing is left of an earlier one."""
        s, n, total = self.s, len(self.labels), self.steps * self.batch
        torch.manual_seed(seed)
        with self.device:
            self.net.load_state_dict(Net(s).state_dict())
            loop.load(self.net, s.checkpoint)
            x = self.prepared(data.train_images)
            self.pictures.copy_(F.pad(x, (s.crop,) * 4, mode="reflect").permute(0, 2, 3, 1) if s.crop else x.permute(0, 2, 3, 1))
            self.labels.copy_(data.train_labels)
            self.test.copy_(data.test_images)
            if s.whiten and not s.checkpoint:
                half = nets.whitening(x, 2, s.whiten_eps)
                self.net.first.weight.copy_(torch.cat([half, -half]))
                self.net.first.bias.zero_()
            table = captured.drawn(n, total, s.crop, s.flip).view(4, self.steps, self.ranks.size, -1)
            self.rows.copy_(table[:, :, self.ranks.rank].transpose(0, 1))
            share = torch.tensor([schedules.factor(s, i, self.steps, max(1, round(self.per_epoch))) for i in range(self.steps)], device="cpu")
            first = (1 - torch.arange(self.steps, device="cpu") / (s.whiten_epochs * self.per_epoch)).clamp(min=0)
            filters = s.muon_lr if s.optimizer == "muon" else s.sgd_lr
            self.rates.copy_(torch.stack([filters * share, s.lr * share, s.head_lr * share, s.lr * first], 1))
        for tensor in (self.t, self.losses, *(b for kind in self.buffers for b in kind)):
            tensor.zero_()

    def prepared(self, raw: torch.Tensor) -> torch.Tensor:
        """uint8 -> normalised images in the run's dtype and layout, without a word from the host."""
        return (raw.float() * self.scale - self.shift).to(self.dtype, memory_format=images.LAYOUT[self.s.memory_format])

    def autocast(self):
        """The context of a forward pass."""
        return torch.autocast(self.device.type, self.dtype, cache_enabled=False) if self.s.dtype.startswith("amp-") else nullcontext()

    def batch_of(self, row: torch.Tensor) -> torch.Tensor:
        """The images of a row (4, n): gathered, cropped and mirrored by one indexing."""
        image, y, x, mirrored = row
        across = torch.where(mirrored[:, None] == 1, self.side.flip(0), self.side) + x[:, None]
        down = self.side + y[:, None]
        picked = self.pictures[image[:, None, None], down[:, :, None], across[:, None, :]].permute(0, 3, 1, 2)
        return picked.contiguous(memory_format=images.LAYOUT[self.s.memory_format])

    def step(self) -> None:
        """One step of training: the row that `t` points at."""
        s = self.s
        row, rate = self.rows.index_select(0, self.t)[0], self.rates.index_select(0, self.t)[0]
        with self.autocast():
            out = self.forward(self.batch_of(row))
        loss = F.cross_entropy(out.float(), self.labels[row[0]], label_smoothing=s.label_smoothing, reduction="sum")
        params = [p for kind in self.kinds for p in kind]
        grads = list(torch.autograd.grad(loss, params))
        with torch.no_grad():
            loss = loss.detach()
            if self.ranks.size > 1:
                for tensor in (*grads, loss):
                    torch.distributed.all_reduce(tensor)
            left = iter(grads)
            for i, (kind, buffers) in enumerate(zip(self.kinds, self.buffers)):
                mine = [next(left) for _ in kind]
                if i == 0 and s.optimizer == "muon":
                    captured.muon_step(kind, mine, buffers, rate[0], s.momentum, s.iterations)
                elif kind:
                    base = (s.sgd_lr, s.lr, s.head_lr, s.lr)[i]
                    captured.sgd_step(kind, mine, buffers, rate[i], s.momentum if i == 0 else s.small_momentum, s.weight_decay / base)
            self.losses.index_copy_(0, self.t, loss.view(1) / self.batch)
            self.t.add_(1).remainder_(self.steps)           # the trial calls of a capture may be more than there are rows

    def logits(self) -> torch.Tensor:
        """Of the test images, with the views of the settings."""
        with self.autocast():
            return evaluation.logits(self.net, self.test, self.s, self.prepared)

    def capture(self) -> None:
        """On CUDA: both as graphs. What the trial calls did is undone by `begin`."""
        self.replay_step, self.replay_logits = self.step, self.logits
        if self.device.type == "cuda" and self.ranks.size == 1:
            self.net.train()
            self.replay_step = captured.graph(self.step, self.device)
            self.net.eval()
            self.replay_logits = captured.graph(self.logits, self.device)


KEPT: dict = {}         # arm -> its Run, for the graphs and the compiled code: `begin` overwrites every value in it
MOST = 32               # arms of an ablation that are kept; a Run takes about 0.5 GB and what its graphs need


def prepared_run(data, s: Settings, seed: int, ranks) -> Run:
    """The Run of these settings and shapes: the one kept from an earlier call, or a new one, captured."""
    key = s, data.train_images.shape, data.test_images.shape, data.train_images.device, ranks
    if key in KEPT:
        return KEPT[key]
    run = Run(s, data, ranks)
    if run.device.type == "cuda" or s.compile != "off":     # else there is nothing to keep
        if len(KEPT) == MOST:
            del KEPT[next(iter(KEPT))]
        KEPT[key] = run
        run.begin(data, seed)
    run.capture()
    return run


def train(data, s: Settings, seed: int, log, ranks) -> torch.Tensor:
    """Logits of data.test_images."""
    run = prepared_run(data, s, seed, ranks)
    run.begin(data, seed)
    run.net.train()
    for i in range(run.steps):
        run.replay_step()
        if i + 1 == run.steps or int((i + 1) / run.per_epoch) > int(i / run.per_epoch):
            log((i + 1) / run.per_epoch, run.losses[i])
    run.net.eval()
    if ranks.size > 1:                                      # the running statistics are each rank's own
        for buffer in run.net.buffers():
            torch.distributed.broadcast(buffer, 0)
    log.trained(run.net)
    return run.replay_logits().clone()
