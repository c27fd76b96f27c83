"""A multilayer perceptron whose layers halve: width, width/2, ... (the reference is 128, 64)."""

import itertools
import math

from torch import Tensor, nn


class MLP(nn.Module):
    """Fully connected layers with ReLU between them."""

    def __init__(
        self, inputs: tuple[int, ...], outputs: int, width: int = 128, depth: int = 2, dropout: float = 0.0
    ) -> None:
        """Build the layers.

        Args:
            inputs: shape of one sample; more dimensions are flattened.
            outputs: numbers returned per sample.
            width: units of the first hidden layer; each further one has half, at least 1.
            depth: hidden layers; 0 is a linear model.
            dropout: share of hidden units dropped in training.
        """
        super().__init__()
        sizes = [math.prod(inputs), *(max(1, width >> level) for level in range(depth))]
        layers: list[nn.Module] = []
        for fan_in, fan_out in itertools.pairwise(sizes):
            layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
            if dropout:
                layers.append(nn.Dropout(dropout))
        self.layers = nn.Sequential(*layers, nn.Linear(sizes[-1], outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Map [n, *inputs] to [n, outputs]."""
        return self.layers(x.flatten(1))  # type: ignore[no-any-return]
