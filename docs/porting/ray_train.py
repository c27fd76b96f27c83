"""A Ray Train script as a Shoal script: no function for the workers, and no reporting."""

import numpy as np
import ray
from torch import Tensor, nn

import shoal


def readings(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What the pipeline of Ray Data does with a batch of rows."""
    draw = np.random.default_rng(batch["id"])
    heat, load = draw.normal(size=(2, len(batch["id"])))
    return {"heat": heat, "load": load, "fails": np.where(heat * load > 0.2, "yes", "no")}


def dataset() -> ray.data.Dataset:
    return ray.data.range(1000, override_num_blocks=2).map_batches(readings)


class Net(nn.Module):
    def __init__(self, inputs: int, outputs: int, width: int = 32) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, outputs))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


CONFIG = {
    "data": {"source": dataset, "label": "fails"},
    "model": {"name": Net, "width": 32},
    "optim": {"lr": 0.01},
    "train": {"epochs": 10},
    "scale": {"num_workers": 2},
}

if __name__ == "__main__":
    print(shoal.train(CONFIG))
