"""One class out of several for an image, with random views of the images in training."""

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from shoal.data.augment import augment
from shoal.data.config import DataConfig
from shoal.data.loader import Batch
from shoal.data.preprocessing import Transform
from shoal.data.sampler import Indices
from shoal.data.tree import only_tensor
from shoal.tasks.classification import Classification
from shoal.tasks.content_hash import row_keys


class ImageClassification(Classification):
    """One class for each image."""

    name = "image_classification"
    decodes_images = True

    @classmethod
    def build(cls, transform: Transform, data: DataConfig, seed: int) -> Self:
        return cls(transform.outputs, Augmented(data.flip, data.pad, seed))


@dataclass(frozen=True)
class Augmented:
    """Views of images in training: mirrored and shifted at random, by their content, the epoch and the seed."""

    flip: bool
    pad: int
    seed: int

    def __call__(self, batch: Batch, epoch: int | None) -> Batch:
        if epoch is None or not (self.flip or self.pad):
            return batch
        images = only_tensor(batch.inputs)
        keys = row_keys(images.contiguous().view(torch.int32).long(), self.seed).cpu().numpy()
        return self.viewed(batch, images, keys, epoch)

    def viewed(self, batch: Batch, images: Tensor, keys: Indices, epoch: int) -> Batch:
        """Return the batch with views of its images, whose draws are functions of the keys [n]."""
        return replace(batch, inputs=augment(images, keys, epoch, self.seed, self.flip, self.pad))
