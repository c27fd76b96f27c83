"""Pairs of images, embedded so that equal digits are near and others at least a margin apart."""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import Dataset

import shoal


class Pairs(Dataset):
    """Items ((image [64], image [64]), whether both show one digit)."""

    def __init__(self, rows: int = 2000) -> None:
        images, digits = load_digits(return_X_y=True)
        draw = torch.Generator().manual_seed(0)
        left, right = torch.randint(len(images), (2, rows), generator=draw)
        # Every second pair shows one digit: rows of one digit lie next to each other in this order.
        by_digit = torch.from_numpy(digits).argsort(stable=True)
        place = by_digit.argsort()
        right[::2] = by_digit[(place[left[::2]] + 1) % len(by_digit)]
        self.images, self.left, self.right = torch.from_numpy(images).float() / 16, left, right
        self.same = torch.from_numpy(digits)[left] == torch.from_numpy(digits)[right]

    def __len__(self) -> int:
        return len(self.same)

    def __getitem__(self, row: int) -> tuple[tuple[Tensor, Tensor], Tensor]:
        return (self.images[self.left[row]], self.images[self.right[row]]), self.same[row].float()


class Embedding(nn.Module):
    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 8))

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return F.pairwise_distance(self.layers(left), self.layers(right))


def margin_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Equation 4 of Hadsell, Chopra and LeCun, 2006, with a margin of 1."""
    return targets * outputs**2 / 2 + (1 - targets) * (1 - outputs).clamp(min=0) ** 2 / 2


def is_right(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs < 0.5) == targets.bool()


is_right.higher_is_better = True

CONFIG = {
    "task": "custom",
    "data.source": Pairs,
    "model.name": Embedding,
    "model.width": 64,
    "train.loss": margin_loss,
    "train.metrics": [is_right],
    "train.epochs": 10,
    "optim.lr": 0.005,
}

if __name__ == "__main__":
    print(shoal.train(CONFIG))
