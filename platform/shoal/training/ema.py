"""An exponential moving average of the weights, which often generalizes better (Polyak and Juditsky 1992).

It knows a model's tensors; it does not know what is evaluated with them or where they are saved.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain

import torch
from torch import Tensor, nn

from shoal.distributed.torch_private import lerp_


class EMA:
    """mean <- d * mean + (1 - d) * weights after each step, of every floating-point parameter and buffer.

    d is the decay, or (1 + step) / (10 + step) while that is less: the first weights are random, and would
    otherwise keep a share of decay^step of the mean.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._model, self._decay = model, decay
        tensors = chain(model.parameters(), model.buffers())
        self._live = [tensor for tensor in tensors if tensor.is_floating_point()]
        self._mean = [tensor.detach().clone() for tensor in self._live]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Update the mean with the weights after optimizer step `step` (from 0)."""
        decay = min(self._decay, (1 + step) / (10 + step))
        lerp_(self._mean, self._live, 1.0 - decay)

    def restart(self) -> None:
        """Set the mean to the model's present weights."""
        _copy(self._live, self._mean)

    @contextmanager
    def in_model(self) -> Iterator[None]:
        """Put the mean into the model; restore the trained weights on exit."""
        trained = [tensor.detach().clone() for tensor in self._live]
        _copy(self._mean, self._live)
        try:
            yield
        finally:
            _copy(trained, self._live)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the model's state dict with the means; entries without one are as in the model."""
        mean = {id(live): mean for live, mean in zip(self._live, self._mean, strict=True)}
        present = self._model.state_dict(keep_vars=True)
        return {name: mean.get(id(tensor), tensor) for name, tensor in present.items()}


@torch.no_grad()
def _copy(sources: list[Tensor], targets: list[Tensor]) -> None:
    for target, source in zip(targets, sources, strict=True):
        target.copy_(source)
