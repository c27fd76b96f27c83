"""What decoder and encoder share: attention, feed-forward, pre-norm block, rotary positions, initial weights.

Depends on hidden states [n, t, width]; independent of tokens, tasks and losses.

The norm comes before each sublayer, which trains without a long warmup (Xiong et al. 2020, "On Layer
Normalization in the Transformer Architecture"). It is LayerNorm, as in GPT-2 and BERT: PyTorch has one kernel for it
on every device, while RMSNorm (in 2.13) is several operations on a CPU.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shoal.errors import ModelError

HEAD_DIM = 64  # of every size of GPT-2 and BERT
INIT_STD = 0.02  # Radford et al. 2018 (GPT), section 4.1
ROTARY_BASE = 10000.0


class Rotation:
    """Rotary positions (Su et al. 2021, "RoFormer", section 3.2.2): pair i of a head is rotated by position * theta_i.

    theta_i = 10000^(-2i / head_dim), i from 0. A pair is (i, i + head_dim / 2) rather than eq. 34's (2i, 2i + 1), which
    is the same up to the order of the projections' rows and needs no strided access.

    It is neither a tensor nor a dataclass: FSDP casts those to the compute dtype on their way into a block, and the
    precision of bfloat16 is too low for an angle's cosine.
    """

    def __init__(self, positions: Tensor, head_dim: int, context: int | None = None) -> None:
        """Compute cosines and sines.

        Args:
            positions: [t], counted from any origin.
            head_dim: even.
            context: more than any position, where that is known.
        """
        if context is not None and torch.compiler.is_dynamo_compiling():
            # Compiled, each block would compute them anew for each element of queries and keys: 28 ms of a step's 120
            # (354 million parameters on an H200).
            self.cos, self.sin = table_of_angles(context, head_dim, str(positions.device))[:, positions]
        else:
            self.cos, self.sin = _cos_and_sin(positions, head_dim)

    def __call__(self, x: Tensor) -> Tensor:
        """Rotate [n, heads, t, head_dim], in float32, and return it in its own dtype."""
        first, second = x.float().chunk(2, dim=-1)
        rotated = first * self.cos - second * self.sin, second * self.cos + first * self.sin
        return torch.cat(rotated, dim=-1).to(x.dtype)


def _cos_and_sin(positions: Tensor, head_dim: int) -> tuple[Tensor, Tensor]:
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32, device=positions.device) / head_dim
    angles = positions[:, None] * ROTARY_BASE**-exponents
    return angles.cos(), angles.sin()


def table_of_angles(context: int, head_dim: int, device: str) -> Tensor:
    """Return [2, context, head_dim / 2], cosines and sines; `shoal.training.compile` makes it a constant of graphs."""
    return torch.stack(_cos_and_sin(torch.arange(context, device=device), head_dim))


class KeyValueCache:
    """Keys and values of the earlier positions of one attention, [n, heads, positions, head_dim] each.

    The first call may append several positions, later ones append one at a time. It is not a dataclass: FSDP passes a
    copy of those to a block, and appended positions would be lost.
    """

    def __init__(self) -> None:
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Add positions and return all."""
        if self.keys is not None and self.values is not None:
            keys, values = torch.cat([self.keys, keys], dim=2), torch.cat([self.values, values], dim=2)
        self.keys, self.values = keys, values
        return keys, values


class Attention(nn.Module):
    """Multi-head self-attention (Vaswani et al. 2017, eq. 1 and section 3.2.2)."""

    def __init__(self, width: int, heads: int, dropout: float, causal: bool) -> None:
        super().__init__()
        self.head_dim = width // heads
        self.attention_scale = self.head_dim**-0.5
        self.dropout = nn.Dropout(dropout)
        self.causal = causal
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.project = nn.Linear(width, width)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        rotation: Rotation | None = None,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        """Map [n, t, width] to the same.

        Args:
            x: hidden states.
            mask: bool, broadcast to [n, heads, t, t]: which keys (last) a query may attend to; not with `causal`.
            rotation: of the t positions.
            cache: of the positions before; if it is not empty, t is 1.
        """
        query, key, value = (self._split(layer(x)) for layer in (self.query, self.key, self.value))
        if rotation is not None:
            query, key = rotation(query), rotation(key)
        if cache is not None:
            key, value = cache.append(key, value)
        # After cached positions a single one is the last and attends to all.
        is_causal = self.causal and (cache is None or x.shape[1] > 1)
        if self.training and self.dropout.p:
            mixed = self._attend_with_dropout(query, key, value, mask, is_causal)
        else:
            mixed = F.scaled_dot_product_attention(
                query, key, value, attn_mask=mask, is_causal=is_causal, scale=self.attention_scale
            )
        return self.project(mixed.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    def _attend_with_dropout(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, is_causal: bool
    ) -> Tensor:
        """Do as F.scaled_dot_product_attention, whose own dropout draws by worker; it keeps all attention weights."""
        scores = query @ key.transpose(-2, -1) * self.attention_scale
        if is_causal:
            mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf)
        return self.dropout(scores.softmax(dim=-1)).to(value.dtype) @ value  # type: ignore[no-any-return]

    def _split(self, x: Tensor) -> Tensor:
        """Return [n, heads, t, head_dim]; with tensor parallelism this worker has a part of the heads."""
        return x.view(*x.shape[:2], -1, self.head_dim).transpose(1, 2)


class FeedForward(nn.Module):
    """Two layers on each position separately, four times as wide between them, with GELU."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map [n, t, width] to the same."""
        return self.down(F.gelu(self.up(x)))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Attention, then feed-forward, each added to the residual stream."""

    def __init__(self, width: int, heads: int, dropout: float, causal: bool) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = Attention(width, heads, dropout, causal)
        self.feed_forward_norm = nn.LayerNorm(width)
        self.feed_forward = FeedForward(width)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        rotation: Rotation | None = None,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        """Map [n, t, width] to the same; the arguments are the attention's."""
        x = x + self.dropout(self.attention(self.attention_norm(x), mask, rotation, cache))
        return x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))  # type: ignore[no-any-return]


def initialize(model: nn.Module) -> None:
    """Draw weights from N(0, 0.02), those that end a residual branch from N(0, 0.02 / sqrt(branches)); biases are 0.

    Radford et al. 2019 (GPT-2), section 2.3, scales by 1 / sqrt(N) with N residual layers, two in a block.
    Parametrizations such as muP are applied afterwards.
    """
    for layer in model.modules():
        if isinstance(layer, nn.Linear | nn.Embedding):
            nn.init.normal_(layer.weight, std=INIT_STD)
        if isinstance(layer, nn.Linear) and layer.bias is not None:
            nn.init.zeros_(layer.bias)
    blocks = [module for module in model.modules() if isinstance(module, Block)]
    for block in blocks:
        for last in (block.attention.project, block.feed_forward.down):
            nn.init.normal_(last.weight, std=INIT_STD / math.sqrt(2 * len(blocks)))


def is_rotary(positions: str) -> bool:
    """Whether positions are rotary, rather than learned (one vector each, added to the token's).

    Raises:
        ModelError: they are neither.
    """
    if positions not in ("rotary", "learned"):
        raise ModelError(f"positions='{positions}' is not known: write rotary or learned")
    return positions == "rotary"


def context_length(inputs: tuple[int, ...]) -> int:
    """Return the number of positions of one sample.

    Raises:
        ModelError: samples are not sequences of tokens.
    """
    if len(inputs) != 1:
        raise ModelError(
            f"samples have shape {inputs}: a transformer over tokens takes token ids of shape (context,); "
            "use text data, or another model.name"
        )
    return inputs[0]


def head_count(width: int, heads: int | None, rotates: bool) -> int:
    """Return the number of heads: by default one for each 64 of the width.

    Raises:
        ModelError: the width is not a multiple of it, or rotary positions have an odd dimension.
    """

    def fits(number: int) -> bool:
        return number > 0 and width % number == 0 and not (rotates and width // number % 2)

    wanted = max(1, width // HEAD_DIM) if heads is None else heads
    if fits(wanted):
        return wanted
    fitting = sorted(filter(fits, range(1, width + 1)), key=lambda number: abs(number - wanted))
    remedy = f"model.args.heads={fitting[0]}" if fitting else f"model.width={width + 1}"
    raise ModelError(
        f"model.width={width} does not split into {wanted} heads: each needs the same "
        f"{'even (for rotary positions) ' if rotates else ''}number of dimensions; write {remedy}"
    )


def check_length(tokens: Tensor, context: int) -> None:
    """Refuse [n, t] tokens that are longer than the model's context.

    Raises:
        ModelError: they are.
    """
    if tokens.shape[1] > context:
        raise ModelError(
            f"{tokens.shape[1]} tokens were passed to a model with a context of {context}: "
            f"pass at most {context}, or train a model with a longer context"
        )
