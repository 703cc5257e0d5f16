"""The input work does what its names say, on images whose pixels tell where they come from."""

import itertools

import pytest
import torch

from perfscope.errors import WorkloadError
from perfscope.workload import data


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def images(n=64, c=3, h=32, w=32):
    return torch.randint(1, 256, (n, c, h, w), dtype=torch.uint8, generator=gen(7))


# ---------------------------------------------------------------- random batches

def test_image_batch_is_random_normal_and_repeatable():
    batch = data.image_batch((3, 32, 32), 10)
    x, y = batch(64)
    assert x.shape == (64, 3, 32, 32) and x.dtype == torch.float32 and y.dtype == torch.int64
    assert abs(x.mean()) < 0.02 and abs(x.std() - 1) < 0.02 and (x == 0).float().mean() < 1e-4
    assert set(y.tolist()) == set(range(10))
    assert all(torch.equal(a, b) for a, b in zip(batch(64), batch(64)))


def test_token_batch_targets_are_one_later():
    x, y = data.token_batch(16, 100)(4)
    assert x.shape == y.shape == (4, 16) and x.dtype == torch.int64 and int(x.max()) < 100
    assert torch.equal(x[:, 1:], y[:, :-1])


@pytest.mark.parametrize("n", [1, 2, 3, 7])
def test_fixed_rows_repeat_or_cut_every_tensor_alike(n):
    x, y = torch.arange(6.).view(3, 2), torch.arange(3)
    pair = ({"ids": x, "more": (x + 10, [y])}, y)
    inputs, target = data.fixed_rows(pair, n)
    rows = torch.arange(n) % 3
    assert torch.equal(inputs["ids"], x[rows]) and torch.equal(inputs["more"][0], x[rows] + 10)
    assert torch.equal(inputs["more"][1][0], y[rows]) and torch.equal(target, rows)


def test_fixed_rows_leave_what_has_no_rows():
    scale, table = torch.tensor(2.), torch.zeros(1, 9)
    (x, s, t, flag), y = data.fixed_rows(((torch.ones(4, 2), scale, table, True), torch.zeros(4)), 6)
    assert x.shape == (6, 2) and y.shape == (6,) and s is scale and t is table and flag is True


@pytest.mark.parametrize("pair", [(1, 2), (torch.tensor(3.), None), (torch.zeros(0, 3), torch.zeros(0))])
def test_fixed_rows_without_rows_say_so(pair):
    with pytest.raises(WorkloadError, match="row"):
        data.fixed_rows(pair, 4)


# ---------------------------------------------------------------- the work on images

def test_pad_mirrors_the_border():
    x = images(2, 1, 6, 6)
    padded = data.pad_reflect(x, 4)
    assert padded.dtype == torch.uint8 and padded.shape == (2, 1, 14, 14)
    assert torch.equal(padded[:, :, 4:10, 4:10], x)
    assert torch.equal(padded[:, :, 3, 4:10], x[:, :, 1]) and torch.equal(padded[:, :, 4:10, 0], x[:, :, :, 4])


def test_crop_is_a_window_at_a_place_of_its_own():
    rows, columns = torch.meshgrid(torch.arange(40), torch.arange(40), indexing="ij")
    x = torch.stack([rows, columns]).to(torch.uint8).expand(200, 2, 40, 40)     # each pixel holds its own place
    out = data.random_crop(x, 32, 32, gen())
    top, left = out[:, 0, 0, 0].long(), out[:, 1, 0, 0].long()
    for i in range(200):
        assert torch.equal(out[i], x[i, :, top[i]:top[i] + 32, left[i]:left[i] + 32])
    assert set(top.tolist()) == set(left.tolist()) == set(range(9))             # all nine places, edges too
    assert len(set(zip(top.tolist(), left.tolist()))) > 60                      # of 81: drawn apart from each other


def test_flip_mirrors_about_half_and_leaves_the_rest():
    x = images(1000, 1, 4, 5)
    out = data.random_flip(x, gen())
    mirrored = (out == x.flip(-1)).flatten(1).all(1)
    same = (out == x).flatten(1).all(1)
    assert (mirrored | same).all() and 430 < int(mirrored.sum()) < 570          # 4.4 sigma


def test_cutout_zeroes_exactly_one_square():
    x = torch.ones(300, 3, 32, 32)
    holes = data.cutout(x, 8, gen()) == 0
    assert torch.equal(holes.any(1), holes.all(1)) and (holes[:, 0].flatten(1).sum(1) == 64).all()
    rows, columns = holes[:, 0].any(2), holes[:, 0].any(1)
    for side in (rows, columns):
        first = side.float().argmax(1)
        assert (side.sum(1) == 8).all() and all(side[i, first[i]:first[i] + 8].all() for i in range(300))
        assert int(first.min()) == 0 and int(first.max()) == 24                 # reaches both edges
    small = data.cutout(torch.ones(5, 1, 6, 6), 8, gen())
    assert (small == 0).all()                                                   # smaller than the square: all of it


def test_normalise_gives_mean_0_and_std_1_per_channel():
    x = images(64) // torch.tensor([1, 2, 4], dtype=torch.uint8).view(1, 3, 1, 1)
    mean, std = x.float().mean((0, 2, 3)), x.float().std((0, 2, 3))
    out = data.normalise(x, mean, std)
    assert out.dtype == torch.float32
    assert torch.allclose(out.mean((0, 2, 3)), torch.zeros(3), atol=1e-4)
    assert torch.allclose(out.std((0, 2, 3)), torch.ones(3), atol=1e-4)


# ---------------------------------------------------------------- pipelines

def test_labels_go_with_their_images():
    labels = torch.randperm(200, generator=gen())
    stored = labels.to(torch.uint8).view(-1, 1, 1, 1).expand(200, 3, 32, 32).contiguous()      # a picture of its label
    mean, std = stored.float().mean(), stored[:, 0].float().std()
    for x, y in itertools.islice(data.batches(stored, labels, (3, 32, 32), 64), 8):
        brightest = x.flatten(1)[torch.arange(64), x.flatten(1).abs().argmax(1)]               # not the cut-out square
        assert torch.allclose(brightest * std + mean, y.float(), atol=0.5)


def test_every_sample_comes_once_per_epoch_in_a_new_order():
    index = torch.cat(list(itertools.islice(data.shuffled(100, 30, gen()), 10)))
    epochs = index.view(3, 100)
    assert all(sorted(e.tolist()) == list(range(100)) for e in epochs) and not torch.equal(epochs[0], epochs[1])
    assert len(next(data.shuffled(10, 35, gen()))) == 35                        # a batch larger than the set


def test_pipeline_is_endless_deterministic_and_fresh():
    pipeline = data.image_pipeline((3, 32, 32), 10, samples=128)
    a, b = list(itertools.islice(pipeline(48), 5)), list(itertools.islice(pipeline(48), 5))
    assert all(torch.equal(p, q) for x, y in zip(a, b) for p, q in zip(x, y))
    assert not torch.equal(a[0][0], a[1][0])
    other = next(data.image_pipeline((3, 32, 32), 10, samples=128, seed=1)(48))
    assert not torch.equal(a[0][0], other[0])


def test_cifar_pipeline_does_all_of_its_work():
    x, y = next(data.image_pipeline((3, 32, 32), 10)(256))
    assert x.shape == (256, 3, 32, 32) and x.dtype == torch.float32 and x.is_contiguous() and y.dtype == torch.int64
    assert ((x == 0).all(1).flatten(1).sum(1) == 64).all()                      # the cut-out square, nothing else
    kept = x[x != 0]
    assert abs(kept.mean()) < 0.02 and abs(kept.std() - 1) < 0.02


def test_cifar_crops_come_out_of_the_padded_image():
    stored = images(4)
    padded = data.pad_reflect(stored)
    mean, std = stored.float().mean((0, 2, 3)), stored.float().std((0, 2, 3))
    x, y = next(data.batches(stored, torch.arange(4), (3, 32, 32), 8))
    found = set()
    for image, label in zip(x, y):
        whole = data.normalise(padded[label:label + 1], mean, std)[0]
        places = [whole[:, i:i + 32, j:j + 32] for i in range(9) for j in range(9)]
        places += [p.flip(-1) for p in places]
        cut = (image == 0).all(0)
        match = [i for i, p in enumerate(places) if torch.equal(p[:, ~cut], image[:, ~cut])]
        assert match
        found.update(match)
    assert len(found) > 4                                   # the border is used, not only the middle


def test_without_augmentation_images_come_as_they_are():
    stored = images(16)
    x, y = next(data.batches(stored, torch.arange(16), (3, 32, 32), 16, augment=False))
    expect = data.normalise(stored, stored.float().mean((0, 2, 3)), stored.float().std((0, 2, 3)))
    assert torch.equal(x, expect[y])


def test_one_channel_is_only_normalised():
    stored = images(16, 1, 28, 28)
    x, y = next(data.batches(stored, torch.arange(16), (1, 28, 28), 16))
    expect = data.normalise(stored, stored.float().mean((0, 2, 3)), stored.float().std((0, 2, 3)))
    assert torch.equal(x, expect[y])


def test_large_images_are_cropped_out_of_larger_ones_without_cutout(monkeypatch):
    seen, real = [], data.batches
    monkeypatch.setattr(data, "batches", lambda stored, *rest: seen.append(stored) or real(stored, *rest))
    x, y = next(data.image_pipeline((3, 224, 224), 1000)(4))
    assert x.shape == (4, 3, 224, 224) and abs(x.std() - 1) < 0.02 and not (x == 0).any()
    assert seen[0].shape[1:] == (3, 256, 256) and seen[0].dtype == torch.uint8
    assert seen[0].numel() <= data.SAMPLES_BYTES                                # 341 images, not 2048


def test_token_windows_are_slices_of_the_array():
    array = torch.arange(5000).to(torch.uint16)
    x, y = next(data.windows(array, 32, 200, gen()))
    assert x.shape == y.shape == (200, 32) and x.dtype == y.dtype == torch.int64
    assert torch.equal(x, x[:, :1] + torch.arange(32)) and torch.equal(y, x + 1)
    assert len(set(x[:, 0].tolist())) > 150
    a, b = (next(data.token_pipeline(16, 60000)(4)) for _ in range(2))
    assert torch.equal(a[0], b[0]) and int(a[0].max()) < 60000
    big = torch.full((40,), 65535, dtype=torch.int32).to(torch.uint16)
    assert int(next(data.windows(big, 8, 2, gen()))[0].max()) == 65535          # unsigned: no negative tokens


def test_pinning_is_left_alone_without_cuda(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    x, _ = next(data.image_pipeline((3, 32, 32), 10, samples=8, pin=True)(4))
    assert not x.is_pinned()


def test_pinning_is_used_once_cuda_is(monkeypatch):
    pinned = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda t: pinned.append(t.dtype) or t)
    next(data.image_pipeline((3, 32, 32), 10, samples=8, pin=True)(4))
    assert pinned == [torch.float32, torch.int64]
    next(data.image_pipeline((3, 32, 32), 10, samples=8, pin=False)(4))
    assert len(pinned) == 2
