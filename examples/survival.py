"""Survival: the time of an event from a table in which some rows were seen only until before it (censored)."""

import numpy as np
import pandas as pd
from torch import Tensor, nn

import shoal


def patients(rows: int = 1500) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    age, dose, group = rng.uniform(30, 90, rows), rng.uniform(0, 2, rows), rng.choice(["a", "b"], rows)
    scale = np.exp(2.5 - 0.03 * (age - 60) + 0.5 * dose + 0.4 * (group == "b"))
    event, end = scale * rng.weibull(1.5, rows), rng.uniform(5, 40, rows)
    return pd.DataFrame(
        {
            "age": age.round(1),
            "dose": dose.round(2),
            "group": group,
            "months": np.minimum(event, end),
            "died": (event <= end).astype(int),
        }
    )


class Weibull(nn.Module):
    """Returns logarithms of scale and shape for each row."""

    def __init__(self, inputs: int, width: int = 32) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(inputs, width), nn.Tanh(), nn.Linear(width, 2))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        log_scale, log_shape = self.layers(x).unbind(1)
        return {"log_scale": log_scale + 2.0, "log_shape": log_shape}


def negative_log_likelihood(outputs: dict[str, Tensor], targets: dict[str, Tensor]) -> Tensor:
    """Of right-censored Weibull times: log hazard where the event was seen, log survival everywhere."""
    log_time = targets["months"].float().clamp(min=1e-3).log()
    shape = outputs["log_shape"].exp()
    exponent = shape * (log_time - outputs["log_scale"])
    log_hazard = outputs["log_shape"] - log_time + exponent
    return exponent.exp() - targets["died"] * log_hazard


CONFIG = {
    "task": "custom",
    "data.source": patients,
    "data.label": ["months", "died"],
    "model.name": Weibull,
    "model.width": 32,
    "train.loss": negative_log_likelihood,
    "train.epochs": 10,
    "optim.lr": 0.005,
    "optim.clip_norm": 1.0,
}

if __name__ == "__main__":
    print(shoal.train(CONFIG))
