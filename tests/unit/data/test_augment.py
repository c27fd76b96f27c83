import numpy as np
import pytest
import torch

from shoal.data.augment import augment
from shoal.data.sampler import split_rows


def pictures(n, channels=2, height=5, width=7):
    """Images whose pixels are all different, and none zero."""
    return torch.arange(1, n * channels * height * width + 1).float().view(n, channels, height, width)


def views(rows, epoch=0, seed=0, pad=2):
    """What happened to each row: (mirrored, down, right), read off one image whose pixels are all different."""
    height, width = 5, 7
    image = pictures(1, 1, height, width)
    seen = augment(image.expand(len(rows), -1, -1, -1), rows, epoch, seed, flip=True, pad=pad)
    padded = torch.nn.functional.pad(image, (pad,) * 4)
    known = {}
    for down in range(2 * pad + 1):
        for right in range(2 * pad + 1):
            crop = padded[0, 0, down : down + height, right : right + width]
            known[crop.numpy().tobytes()] = (False, down, right)
            known[crop.flip(1).contiguous().numpy().tobytes()] = (True, down, right)
    return np.array([known[view.contiguous().numpy().tobytes()] for view in seen[:, 0]])


def test_a_row_looks_the_same_however_the_rows_are_batched():
    rows = np.arange(1000, 1064)
    images = pictures(64)
    whole = augment(images, rows, epoch=3, seed=5, flip=True, pad=2)
    for workers in (2, 3, 7):
        for worker in range(workers):
            mine = slice(worker, None, workers)
            part = augment(images[mine], rows[mine], epoch=3, seed=5, flip=True, pad=2)
            assert torch.equal(part, whole[mine])
    alone = augment(images[9:10], rows[9:10], epoch=3, seed=5, flip=True, pad=2)
    assert torch.equal(alone, whole[9:10])


def test_pytorchs_generator_is_neither_used_nor_moved():
    torch.manual_seed(1)
    first = augment(pictures(8), np.arange(8), 0, 0, flip=True, pad=2)
    after = torch.rand(3)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(3), after)
    torch.manual_seed(2)
    assert torch.equal(augment(pictures(8), np.arange(8), 0, 0, flip=True, pad=2), first)


def test_every_view_is_a_crop_of_the_image_in_a_frame_of_zeros_or_its_mirror_image_and_all_occur():
    found = views(np.arange(4000))
    assert {tuple(view) for view in found.tolist()} == {
        (mirrored, down, right) for mirrored in (0, 1) for down in range(5) for right in range(5)
    }


def test_mirroring_and_offsets_are_evenly_distributed_and_independent():
    rows = 20_000
    counts = np.zeros((2, 5, 5))
    np.add.at(counts, tuple(views(np.arange(rows)).T), 1)
    expected = rows / 50
    statistic = ((counts - expected) ** 2 / expected).sum()
    assert statistic < 85.4  # chi-squared with 49 degrees of freedom exceeds it once in 1000 times


@pytest.mark.parametrize(("change", "by"), [("epoch", 1), ("seed", 1)])
def test_another_epoch_or_seed_shows_other_views_that_know_nothing_of_the_first(change, by):
    first, other = views(np.arange(5000)), views(np.arange(5000), **{change: by})
    assert (first == other).all(axis=1).mean() == pytest.approx(1 / 50, abs=0.008)


def test_views_know_nothing_of_the_split_that_the_same_seed_makes():
    rows = np.arange(20_000)
    is_test = split_rows(0, rows, 0.0, 0.5) == 2
    mirrored = views(rows)[:, 0]
    assert mirrored[is_test].mean() == pytest.approx(mirrored[~is_test].mean(), abs=0.03)


def test_all_channels_of_an_image_are_moved_alike():
    image = pictures(1, 1).expand(16, 3, -1, -1)
    seen = augment(image, np.arange(16), 0, 0, flip=True, pad=2)
    assert torch.equal(seen[:, 0], seen[:, 1])
    assert torch.equal(seen[:, 0], seen[:, 2])


def test_flip_alone_mirrors_and_pad_alone_does_not_and_neither_is_the_image_itself():
    images, rows = pictures(32), np.arange(32)
    flipped = augment(images, rows, 0, 0, flip=True, pad=0)
    is_mirrored = views(rows)[:, 0].astype(bool)
    assert torch.equal(flipped[is_mirrored], images[is_mirrored].flip(3))
    assert torch.equal(flipped[~is_mirrored], images[~is_mirrored])
    cropped = augment(images, rows, 0, 0, flip=False, pad=1)
    rising = cropped[:, :, :, 1:] > cropped[:, :, :, :-1]
    assert rising[:, :, 1:-1, 1:-1].all()
    assert augment(images, rows, 0, 0, flip=False, pad=0) is images


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.bfloat16])
def test_the_type_of_the_pixels_is_kept(dtype):
    images = pictures(4).to(dtype)
    seen = augment(images, np.arange(4), 0, 2**63 - 1, flip=True, pad=1)
    assert seen.dtype == dtype
    assert seen.shape == images.shape
