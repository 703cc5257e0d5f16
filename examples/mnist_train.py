"""Trains a small CNN on MNIST, one epoch, as one writes it at first. perfscope makes it faster:

    python examples/mnist_train.py                                              # accuracy, seconds
    perfscope fix --model examples/mnist_train.py:workload --batch 256 --patch fix.diff
    git apply fix.diff && python examples/mnist_train.py

The data comes from $PERFSCOPE_DATA or is downloaded.
"""

import time

import torch
import torch.nn.functional as F
from torch import nn

BATCH = 256


class Net(nn.Module):
    """(n, 1, 28, 28) -> logits (n, 10): the last rung of train_mnist_fast."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 24, 5), nn.Conv2d(24, 32, 3)
        self.fc1, self.fc2 = nn.Linear(800, 256), nn.Linear(256, 10)

    def forward(self, x):
        x = F.relu(F.max_pool2d(self.conv1(x), 2))
        x = F.relu(F.max_pool2d(self.conv2(x), 2))
        return self.fc2(F.relu(self.fc1(x.flatten(1))))


def build():
    """The model and its optimizer."""
    model = Net()
    return model, torch.optim.Adam(model.parameters(), lr=0.01, betas=(0.7, 0.9))


def train_step(model, optimizer, images, labels):
    """One step; gives the loss."""
    optimizer.zero_grad()
    loss = F.cross_entropy(model(images), labels)
    loss.backward()
    optimizer.step()
    return loss


def workload():
    """The same step for perfscope, on the first images: random ones took 9 % longer on a CPU, whose max-pool branches on the values."""
    import perfscope

    model, optimizer = build()
    try:
        images, labels, *_ = data()
    except perfscope.PerfscopeError:            # neither data nor a network: random images will do
        images, labels = torch.randn(1024, 1, 28, 28), torch.randint(10, (1024,))
    return perfscope.Workload(model, F.cross_entropy, optimizer, batch=(images[:1024], labels[:1024]), input_shape=(1, 28, 28), classes=10)


def data():
    """(train images, train labels, test images, test labels), normalised."""
    from perfscope.workload import datasets

    d = datasets.load("mnist")
    images = lambda x: (x.float() / 255 - 0.1307) / 0.3081  # noqa: E731
    return images(d.train_images), d.train_labels, images(d.test_images), d.test_labels


def main():
    """One epoch; prints the median step and the test accuracy."""
    torch.manual_seed(0)
    train, labels, test, truth = data()
    model, optimizer = build()
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, total_steps=len(train) // BATCH)
    steps, begin = [], time.perf_counter()
    for index in torch.randperm(len(train)).split(BATCH)[: len(train) // BATCH]:
        images, target = train[index], labels[index]
        start = time.perf_counter()
        train_step(model, optimizer, images, target)
        steps.append(time.perf_counter() - start)
        schedule.step()
    seconds = time.perf_counter() - begin
    with torch.no_grad():
        right = sum((model(x).argmax(1) == y).sum().item() for x, y in zip(test.split(1000), truth.split(1000)))
    print(f"median step {1e3 * sorted(steps)[len(steps) // 2]:.2f} ms, epoch {seconds:.1f} s, test accuracy {100 * right / len(test):.2f} %")


if __name__ == "__main__":
    main()
