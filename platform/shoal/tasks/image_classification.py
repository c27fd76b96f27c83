"""Images with a class: random views of them in training."""

from dataclasses import dataclass, replace

import torch

from shoal.data.augment import augment
from shoal.data.loader import Batch
from shoal.tasks.content_hash import row_keys


@dataclass(frozen=True)
class Augmented:
    """Views of images in training: mirrored and moved at random, by their content, the epoch and the seed."""

    flip: bool
    pad: int
    seed: int

    def __call__(self, batch: Batch, epoch: int | None) -> Batch:
        if epoch is None or not (self.flip or self.pad):
            return batch
        keys = row_keys(batch.inputs.contiguous().view(torch.int32).long(), self.seed).cpu().numpy()
        images = augment(batch.inputs, keys, epoch, self.seed, self.flip, self.pad)
        return replace(batch, inputs=images)
