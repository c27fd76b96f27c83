"""Random blanks in training spectrograms, a pure function of the seed, the epoch and what is heard.

This is SpecAugment (Park et al. 2019, "SpecAugment: a simple data augmentation method for automatic speech
recognition") without time warping. Which worker has a recording, and what it is padded to, changes nothing.
"""

import torch
from torch import Tensor

SHARE = 0.2  # of a recording's frames that a stretch may be, at most (the paper's p)
STRIPES = 2  # of each kind, as in the paper's policies


def blank_stripes(spectrograms: Tensor, lengths: Tensor, draws: Tensor, bands: int, frames: int) -> Tensor:
    """Set stripes of bands and stretches of frames to 0, the mean.

    Args:
        spectrograms: [n, frames, bands].
        lengths: [n] frames that are no padding.
        draws: [n, 4 * STRIPES] in [0, 1).
        bands: of a stripe, at most; 0: no stripes.
        frames: of a stretch, at most; 0: no stretches.
    """
    rows, size, width = spectrograms.shape
    most_frames = (lengths * SHARE).clamp(max=frames)
    all_bands = torch.full_like(draws[:, 0], width)
    most_bands = torch.full_like(all_bands, bands)
    blank_bands = torch.zeros((rows, width), dtype=torch.bool, device=draws.device)
    blank_frames = torch.zeros((rows, size), dtype=torch.bool, device=draws.device)
    for drawn in draws.split(4, dim=1):
        if bands:
            blank_bands |= _inside(width, all_bands, most_bands, drawn[:, :2])
        if frames:
            blank_frames |= _inside(size, lengths, most_frames, drawn[:, 2:])
    return spectrograms.masked_fill(blank_frames[:, :, None] | blank_bands[:, None, :], 0.0)


def _inside(size: int, whole: Tensor, most: Tensor, draws: Tensor) -> Tensor:
    """Return [n, size]: whether a place is in a stretch of up to `most` places that is drawn within `whole`."""
    length = (draws[:, 0] * (most + 1)).floor()
    first = (draws[:, 1] * (whole - length + 1)).floor()
    places = torch.arange(size, device=draws.device)
    return (places >= first[:, None]) & (places < (first + length)[:, None])
