"""BatchNorm over the rows of all workers, by autograd-aware sums on any backend: torch's own runs on GPUs alone.

With it a sample's output depends on the global batch, not on the part that a worker has. Depends on torch and on a sum
over workers; independent of what is trained. The loss of the workers is their sum, so gradients are summed too.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

AllReduce = Callable[[Tensor], Tensor]

STAYS_IN_EVAL = "_shoal_stays_in_eval"  # of a frozen layer, which normalizes by its running statistics always


class _Sum(torch.autograd.Function):
    """The sum of a vector over the workers; its gradient is the sum of their gradients."""

    @staticmethod
    def forward(ctx: Any, vector: Tensor, all_reduce: AllReduce) -> Tensor:
        ctx.all_reduce = all_reduce
        return all_reduce(vector)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return ctx.all_reduce(gradient.contiguous()), None


class _SyncBatchNorm(nn.Module):
    """What a BatchNorm layer becomes a subclass of.

    Attributes:
        all_reduce: sums a vector over the workers.
        counts: whether this worker's rows count; those of a filler do not.
    """

    all_reduce: AllReduce
    counts: Callable[[], bool]

    def forward(self, x: Tensor) -> Tensor:
        """Normalize [n, channels, ...] by the mean and variance over all workers in training."""
        layer: Any = self
        if x.dim() < 2 or not (layer.training or layer.running_mean is None):
            return super().forward(x)  # type: ignore[misc, no-any-return]
        mean, variance, count = self._moments(x)
        if layer.training and layer.track_running_stats:
            self._move_statistics(mean.detach(), variance.detach() * count / (count - 1.0).clamp(min=1.0))
        scale, shift = torch.rsqrt(variance + layer.eps), -mean
        shift = shift * scale
        if layer.weight is not None:
            scale, shift = scale * layer.weight, shift * layer.weight
        if layer.bias is not None:
            shift = shift + layer.bias
        per_channel = (1, -1, *(1,) * (x.dim() - 2))
        return torch.addcmul(shift.float().view(per_channel), x, scale.float().view(per_channel)).to(x.dtype)

    def _moments(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return mean and variance of each channel over all workers, and the number of values, in float64."""
        others = [dimension for dimension in range(x.dim()) if dimension != 1]
        variance, mean = (part.double() for part in torch.var_mean(x.float(), others, correction=0))
        weight = float(x.numel() // x.shape[1]) if self.counts() else 0.0
        sums = torch.cat([weight * mean, weight * (variance + mean.square()), mean.new_tensor([weight])])
        sums = _Sum.apply(sums, self.all_reduce)  # type: ignore[no-untyped-call]
        first, second, count = sums[: len(mean)], sums[len(mean) : -1], sums[-1].detach()
        mean = first / count
        return mean, (second / count - mean.square()).clamp(min=0.0), count

    def _move_statistics(self, mean: Tensor, variance: Tensor) -> None:
        layer: Any = self
        with torch.no_grad():
            layer.num_batches_tracked.add_(1)
            momentum = layer.momentum
            if momentum is None:
                momentum = 1.0 / float(layer.num_batches_tracked)
            layer.running_mean.lerp_(mean.to(layer.running_mean.dtype), momentum)
            layer.running_var.lerp_(variance.to(layer.running_var.dtype), momentum)


class SyncBatchNorm1d(_SyncBatchNorm, nn.BatchNorm1d):
    """nn.BatchNorm1d over all workers."""


class SyncBatchNorm2d(_SyncBatchNorm, nn.BatchNorm2d):
    """nn.BatchNorm2d over all workers."""


class SyncBatchNorm3d(_SyncBatchNorm, nn.BatchNorm3d):
    """nn.BatchNorm3d over all workers."""


SYNCED: dict[type[nn.Module], type[nn.Module]] = {
    nn.BatchNorm1d: SyncBatchNorm1d,
    nn.BatchNorm2d: SyncBatchNorm2d,
    nn.BatchNorm3d: SyncBatchNorm3d,
}


def has_batchnorm(model: nn.Module, of_a_users_own: bool = False) -> bool:
    """Whether a model has BatchNorm layers, or ones of classes that are not synchronized: subclasses of torch's."""
    layers = (
        layer
        for layer in model.modules()
        if isinstance(layer, tuple(SYNCED)) and not hasattr(layer, STAYS_IN_EVAL)
    )
    known = (*SYNCED, *SYNCED.values()) if of_a_users_own else ()
    return any(type(layer) not in known for layer in layers)


def use_sync_batchnorm(model: nn.Module, all_reduce: AllReduce, counts: Callable[[], bool]) -> None:
    """Have a model's BatchNorm layers normalize over all workers, in place; names, weights and evaluation stay.

    Args:
        all_reduce: sums a vector over the workers.
        counts: whether this worker's rows count, asked in each forward.
    """
    for layer in model.modules():
        kind: Any = SYNCED.get(type(layer))
        if kind is None:
            continue
        layer.__class__ = kind
        layer.all_reduce, layer.counts = all_reduce, counts  # type: ignore[assignment]
