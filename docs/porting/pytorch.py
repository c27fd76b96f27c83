"""A PyTorch loop as a Shoal script: the data set and the model stay, the loop goes."""

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

import shoal


class Spirals(Dataset):
    """Items (point [2], class): which of two spirals does a point lie on?"""

    def __init__(self, rows: int = 2000) -> None:
        draw = torch.Generator().manual_seed(0)
        self.classes = torch.randint(2, (rows,), generator=draw)
        angle = torch.rand(rows, generator=draw) * 6
        turned = angle + torch.pi * self.classes
        self.points = torch.stack([angle * turned.cos(), angle * turned.sin()], dim=1)

    def __len__(self) -> int:
        return len(self.classes)

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        return self.points[row], int(self.classes[row])


class Net(nn.Module):
    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(2, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 2)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


CONFIG = {
    "data.source": Spirals,
    "data.global_batch_size": 64,
    "model.name": Net,
    "model.width": 64,
    "optim.name": "adamw",
    "optim.lr": 0.01,
    "optim.schedule": "cosine",
    "optim.clip_norm": 1.0,
    "train.epochs": 20,
}

if __name__ == "__main__":
    print(shoal.train(CONFIG))
