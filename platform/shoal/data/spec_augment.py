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
    count = spectrograms.new_full((len(spectrograms),), spectrograms.shape[2], dtype=torch.float64)
    most = (lengths * SHARE).clamp(max=frames)
    kept = torch.ones_like(spectrograms, dtype=torch.bool)
    for number in range(STRIPES):
        of_bands, of_frames = draws[:, 4 * number :][:, :2], draws[:, 4 * number :][:, 2:4]
        if bands:
            stripe = _inside(spectrograms.shape[2], count, count.new_full(count.shape, bands), of_bands)
            kept &= ~stripe[:, None, :]
        if frames:
            kept &= ~_inside(spectrograms.shape[1], lengths, most, of_frames)[:, :, None]
    return spectrograms * kept


def _inside(size: int, whole: Tensor, most: Tensor, draws: Tensor) -> Tensor:
    """Return [n, size]: whether a place is in a stretch of up to `most` places that is drawn within `whole`."""
    length = (draws[:, 0] * (most + 1)).floor()
    first = (draws[:, 1] * (whole - length + 1)).floor()
    places = torch.arange(size, device=draws.device)
    return (places >= first[:, None]) & (places < (first + length)[:, None])
