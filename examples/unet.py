"""Segmentation with a small U-Net: images in, a mask of the same size out."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

import shoal

SIZE = 16


class Discs(Dataset):
    """Items (image [1, SIZE, SIZE], mask [1, SIZE, SIZE]): noisy pictures of a disc."""

    def __init__(self, rows: int = 400) -> None:
        rng = np.random.default_rng(0)
        centre, radius = rng.uniform(4, SIZE - 4, (rows, 2, 1, 1)), rng.uniform(2, 5, (rows, 1, 1))
        y, x = np.mgrid[:SIZE, :SIZE]
        distance = np.hypot(y - centre[:, 0], x - centre[:, 1])
        self.masks = (distance < radius)[:, None].astype("float32")
        self.images = (self.masks + rng.normal(0, 0.5, self.masks.shape)).astype("float32")

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        return self.images[row], self.masks[row]


def block(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU())


class UNet(nn.Module):
    """Ronneberger et al., 2015, with one level."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.down, self.bottom = block(1, width), block(width, 2 * width)
        self.up = nn.ConvTranspose2d(2 * width, width, 2, stride=2)
        self.top, self.mask = block(2 * width, width), nn.Conv2d(width, 1, 1)

    def forward(self, image: Tensor) -> Tensor:
        fine = self.down(image)
        coarse = self.bottom(F.max_pool2d(fine, 2))
        return self.mask(self.top(torch.cat([fine, self.up(coarse)], dim=1)))


def segmentation_loss(outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """Cross entropy of the pixels, and one minus the soft Dice coefficient (Milletari et al., 2016), for each row."""
    pixels = F.binary_cross_entropy_with_logits(outputs, targets, reduction="none").mean((1, 2, 3))
    shown = outputs.sigmoid()
    overlap, total = (shown * targets).sum((1, 2, 3)), (shown + targets).sum((1, 2, 3))
    return {"pixels": pixels, "dice": 1 - 2 * overlap / total}


CONFIG = {
    "task": "custom",
    "data.source": Discs,
    "data.global_batch_size": 16,
    "model.name": UNet,
    "model.width": 8,
    "train.loss": segmentation_loss,
    "train.epochs": 5,
    "optim.lr": 0.005,
}

if __name__ == "__main__":
    print(shoal.train(CONFIG))
