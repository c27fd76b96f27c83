"""Attention rollout: how much of each token reaches the last layer through the attention of all layers.

Abnar & Zuidema 2020, "Quantifying Attention Flow in Transformers", section 3.1.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from shoal.errors import ModelError
from shoal.explain.subject import Subject


@torch.no_grad()
def attention_rollout(subject: Subject, inputs: Tensor) -> Tensor:
    """Return shares [n, t] of the tokens of rows [n, t] in what the last layer holds, the mean over its positions.

    A layer is half its attention, averaged over the heads, and half what passes it by: (A + I) / 2.

    Raises:
        ModelError: the model does not attend with torch's own function.
    """
    with _AttentionWeights() as attention:
        subject(inputs)
    length = inputs.shape[1]
    layers = [weights for weights in attention.layers if weights.shape[1:] == (length, length)]
    if not layers:
        raise ModelError(
            "explain.method=attention_rollout: the model does not call scaled_dot_product_attention on its tokens: "
            "set explain.method=integrated_gradients"
        )
    itself = torch.eye(length, dtype=torch.float64)
    rolled = itself.expand(len(inputs), length, length)
    for weights in layers:
        rolled = (weights + itself) / 2 @ rolled
    is_there = subject.is_there(inputs).double()
    return (is_there[:, None] @ rolled)[:, 0] / is_there.sum(dim=1, keepdim=True).clamp(min=1)


class _AttentionWeights(TorchFunctionMode):
    """Keeps the attention of each layer [n, t, t], float64, the mean over its heads."""

    def __init__(self) -> None:
        super().__init__()
        self.layers: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        arguments = dict(kwargs or {})
        if func is F.scaled_dot_product_attention:
            self.layers.append(_weights(*args, **arguments))
        return func(*args, **arguments)


def _weights(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Return what `scaled_dot_product_attention` of the same arguments weighs values by; `dropout_p` is of training."""
    if enable_gqa:
        key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    scores = query @ key.transpose(-2, -1) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
    if attn_mask is not None:
        is_bool = attn_mask.dtype == torch.bool
        scores = scores.masked_fill(~attn_mask, -torch.inf) if is_bool else scores + attn_mask
    return scores.double().softmax(dim=-1).mean(dim=1)
