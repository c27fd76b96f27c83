"""A Ludwig config as a Shoal config: columns and their kinds, from a file."""

from pathlib import Path

import numpy as np
import pandas as pd

import shoal


def write_orders(path: str = "orders.csv") -> str:
    draw = np.random.default_rng(0)
    size, days = draw.choice(["S", "M", "L"], 1500), draw.integers(1, 15, 1500)
    returned = np.where((size == "L") & (days > 4) | (days > 12), "yes", "no")
    pd.DataFrame({"order": range(1500), "size": size, "days": days, "returned": returned}).to_csv(
        path, index=False
    )
    return path


CONFIG = {
    "data.source": "csv:orders.csv",
    "data.label": "returned",
    "data.columns": {"order": "drop", "size": "category", "days": "number"},
    "data.global_batch_size": 64,
    "model.width": 64,
    "model.depth": 2,
    "optim.lr": 0.003,
    "train.epochs": 10,
}

if __name__ == "__main__":
    if not Path("orders.csv").exists():
        write_orders()
    result = shoal.train(CONFIG)
    print(result, result.model.predict({"size": ["L"], "days": [9]}))
