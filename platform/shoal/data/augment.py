"""Random views of training images, each a pure function of the seed, the epoch and the image's row number.

No random generator is used: the views do not depend on the worker that holds a row, or on the rest of a batch.
"""

import numpy as np
import torch
from torch import Tensor

from shoal.data.sampler import Indices, mix

# Keeps the draws apart from those of the splits, which hash the same rows, perhaps with the same seed.
SALT = 0x4155_474D_454E_54
FIELD_BITS = 31


def augment(images: Tensor, rows: Indices, epoch: int, seed: int, flip: bool, pad: int) -> Tensor:
    """Pad each image with `pad` zeros, crop it at random to its size, and mirror every second one.

    This is the augmentation of He et al. 2015, "Deep Residual Learning", section 4.2. Zero is the mean, as images are
    standardized before. Pixels are moved, not computed, so that the result is exact on every device.

    Args:
        images: [n, channels, height, width], of any type, on any device.
        rows: [n] number of each image in the training split.
        epoch: from 0.
        seed: from 0 to below 2**63.
        flip: whether to mirror left and right with probability 1/2.
        pad: pixels on every side; 0: no crop.

    Returns:
        [n, channels, height, width], of the same type, on the same device.
    """
    if not flip and not pad:
        return images
    mirrored, down, right = (
        torch.from_numpy(draw).to(images.device) for draw in _draws(rows, epoch, seed, pad)
    )
    height, width = images.shape[2:]
    padded = torch.nn.functional.pad(images, (pad, pad, pad, pad))
    y = down[:, None] + torch.arange(height, device=images.device)
    x = torch.arange(width, device=images.device).expand(len(images), width)
    x = right[:, None] + (torch.where(mirrored[:, None], x.flip(1), x) if flip else x)
    positions = (y[:, :, None] * (width + 2 * pad) + x[:, None, :]).flatten(1)
    picked = padded.flatten(2).gather(2, positions[:, None].expand(-1, images.shape[1], -1))
    return picked.view_as(images)


def augment_with_boxes(
    images: Tensor, boxes: Tensor, rows: Indices, epoch: int, seed: int, flip: bool, pad: int
) -> tuple[Tensor, Tensor]:
    """Return what `augment` does, and the boxes that moved with the pixels.

    Args:
        boxes: [n, most, 5], class, left, top, right, bottom in pixels, padded with zeros.

    Returns:
        the images, and the boxes cut at the edges; those of which less than a pixel is left are zeros.
    """
    if not flip and not pad:
        return images, boxes
    mirrored, down, right = (
        torch.from_numpy(draw).to(boxes.device)[:, None] for draw in _draws(rows, epoch, seed, pad)
    )
    kinds, x1, y1, x2, y2 = boxes.unbind(-1)
    height, width = images.shape[2:]
    x1, x2 = ((x + pad - right).clamp(0, width) for x in (x1, x2))
    y1, y2 = ((y + pad - down).clamp(0, height) for y in (y1, y2))
    if flip:
        x1, x2 = torch.where(mirrored, width - x2, x1), torch.where(mirrored, width - x1, x2)
    is_seen = (x2 - x1 >= 1) & (y2 - y1 >= 1) & (boxes[..., 3] > boxes[..., 1])
    moved = torch.stack([kinds, x1, y1, x2, y2], dim=-1) * is_seen[..., None]
    return augment(images, rows, epoch, seed, flip, pad), moved


def _draws(rows: Indices, epoch: int, seed: int, pad: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return for each row whether it is mirrored, and the crop's offsets down and right, 0 to 2 * pad."""
    key = mix(np.uint64(epoch) ^ mix(np.uint64(seed) + np.uint64(SALT)))
    bits = mix(rows.astype(np.uint64) ^ key)
    mask, count = np.uint64((1 << FIELD_BITS) - 1), np.uint64(2 * pad + 1)
    down, right = (
        ((bits >> np.uint64(shift) & mask) * count >> np.uint64(FIELD_BITS)).astype(np.int64)
        for shift in (0, FIELD_BITS)
    )
    return bits >> np.uint64(63) == 1, down, right
