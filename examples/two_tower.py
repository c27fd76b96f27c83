"""Two inputs, a user and an item: one tower for each, and the probability of a click from their product."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchmetrics.classification import BinaryAUROC

import shoal


class Clicks(Dataset):
    """Items ({"user": [8], "item": [12]}, click)."""

    def __init__(self, rows: int = 1500) -> None:
        draw = torch.Generator().manual_seed(0)
        self.user, self.item = torch.randn(rows, 8, generator=draw), torch.randn(rows, 12, generator=draw)
        mix = torch.randn(8, 12, generator=draw) / 8**0.5
        self.click = ((self.user @ mix) * self.item).sum(1) > 0

    def __len__(self) -> int:
        return len(self.click)

    def __getitem__(self, row: int) -> tuple[dict[str, Tensor], Tensor]:
        return {"user": self.user[row], "item": self.item[row]}, self.click[row].long()


class TwoTower(nn.Module):
    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.user_tower = nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, 16))
        self.item_tower = nn.Sequential(nn.Linear(12, width), nn.ReLU(), nn.Linear(width, 16))

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        return (self.user_tower(user) * self.item_tower(item)).sum(1)


def click_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(outputs, targets.float(), reduction="none")


CONFIG = {
    "task": "custom",
    "data.source": Clicks,
    "model.name": TwoTower,
    "model.width": 32,
    "train.loss": click_loss,
    "train.metrics": [BinaryAUROC],
    "train.epochs": 10,
    "optim.lr": 0.01,
}

if __name__ == "__main__":
    print(shoal.train(CONFIG))
