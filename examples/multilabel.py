"""A table with three labels for each row, of which one is rare, and a weight for each row."""

import numpy as np
import pandas as pd
from torch import Tensor, nn

import shoal


def orders(rows: int = 1200) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    amount, age, visits = rng.lognormal(3, 1, rows), rng.integers(18, 80, rows), rng.poisson(4, rows)
    channel = rng.choice(["web", "shop", "phone"], rows)
    score = np.log(amount) - 3 + 0.03 * (age - 45) + rng.normal(0, 0.3, rows)
    return pd.DataFrame(
        {
            "amount": amount.round(2),
            "age": age,
            "visits": visits,
            "channel": channel,
            "returned": score + (channel == "web") > 1.2,
            "complained": score - 0.2 * visits > 0.5,
            "recommended": visits > 5,
            "importance": 1 + (amount > 50),
        }
    )


class Net(nn.Module):
    def __init__(self, inputs: int, outputs: int, width: int = 32) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, outputs))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


CONFIG = {
    "task": "multilabel_classification",
    "data.source": orders,
    "data.label": ["returned", "complained", "recommended"],
    "data.weight": "importance",
    "model.name": Net,
    "model.width": 32,
    "train.metrics": ["auroc"],
    "train.epochs": 10,
    "optim.lr": 0.01,
}

if __name__ == "__main__":
    print(shoal.train(CONFIG))
