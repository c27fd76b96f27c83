"""What `shoal init` writes: a config, a model and data that train as they are."""

CONFIG = """\
# Train:           shoal train config.yaml
# Change a key:    shoal train config.yaml optim.lr=0.003
# Check only:      shoal check config.yaml
# Sweep:           shoal tune config.yaml optim.lr=loguniform:1e-4:1e-1 model.width=16,32,64
# Look at it:      shoal ui
# All keys:        shoal train --help, or those of a section: shoal train --help optim

experiment_name: {name}
task: classification  # regression for a number instead of a class

data:
  source: my_data:rows  # or a file: csv:orders.csv, parquet:orders.parquet
  label: label  # the column to predict
  global_batch_size: 64
  validation_fraction: 0.2  # rows held out to measure while training
  test_fraction: 0.2  # rows held out to the end

model:
  name: my_model:Net  # or one of Shoal's: mlp
  width: 32
  args: {{dropout: 0.1}}  # more arguments of Net

optim:
  name: adam
  lr: 0.003

train:
  epochs: 20

scale:
  num_workers: 0  # 0: in this process; 2: two Ray workers, with the same result

track:
  registered_model_name: {name}  # the best model so far is models:/{name}@champion
"""

MODEL = '''\
"""The model: any torch.nn.Module. Shoal passes `inputs`, `outputs` and `width` to it, and model.args."""

from torch import Tensor, nn


class Net(nn.Module):
    """A small network with one hidden layer."""

    def __init__(self, inputs: int, outputs: int, width: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(inputs, width),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(width, outputs),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)
'''

DATA = '''\
"""The data: a function that returns a frame. Replace it, or name a file in config.yaml: data.source=csv:PATH"""

import numpy as np
import pandas as pd


def rows(count: int = 1000) -> pd.DataFrame:
    """Points in two interleaved rings, which a line cannot separate."""
    draw = np.random.default_rng(0)
    is_outer = draw.random(count) < 0.5
    angle = draw.uniform(0, 2 * np.pi, count)
    radius = np.where(is_outer, 2.0, 1.0) + draw.normal(0, 0.15, count)
    return pd.DataFrame(
        {
            "x": radius * np.cos(angle),
            "y": radius * np.sin(angle),
            "label": np.where(is_outer, "outer", "inner"),
        }
    )
'''
