"""A decoder for causal language models: GPT-2 (Radford et al. 2019), by default with rotary positions.

Depends on token ids; independent of text and tokenizers.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from shoal.errors import ModelError
from shoal.models.transformer import (
    Block,
    KeyValueCache,
    Rotation,
    check_length,
    context_length,
    head_count,
    initialize,
    is_rotary,
)


class GPT(nn.Module):
    """Tokens to logits of the next token at each position.

    A position attends to itself and those before it. Padding on the right therefore needs no mask: it changes nothing
    to its left, and the loss leaves it out.
    """

    def __init__(
        self,
        inputs: tuple[int, ...],
        outputs: int,
        width: int = 256,
        depth: int = 4,
        heads: int | None = None,
        positions: str = "rotary",
        tied: bool = True,
        dropout: float = 0.0,
    ) -> None:
        """Build the layers.

        Args:
            inputs: (context,), the largest number of tokens.
            outputs: token ids in the vocabulary.
            width: of the residual stream.
            depth: blocks.
            heads: of each attention; None is one for each 64 of the width, at least 1.
            positions: rotary, or learned (one vector each, added to the token's).
            tied: whether the output layer's weight is the embedding's (Press and Wolf 2017).
            dropout: share dropped in training of embeddings, attention weights and a block's contributions.

        Raises:
            ModelError: inputs, heads or positions cannot be used.
        """
        super().__init__()
        rotates = is_rotary(positions)
        self.context = context_length(inputs)
        heads = head_count(width, heads, rotates)
        self.head_dim = width // heads
        self.embedding = nn.Embedding(outputs, width)
        self.position = None if rotates else nn.Embedding(self.context, width)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(Block(width, heads, dropout, causal=True) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.output = nn.Linear(width, outputs, bias=False)
        initialize(self)
        if tied:
            self.output.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        """Map [n, t] token ids, t at most the context, to [n, t, outputs].

        Raises:
            ModelError: t is more than the context.
        """
        check_length(tokens, self.context)
        return self.output(self._hidden(tokens))  # type: ignore[no-any-return]

    def _hidden(self, tokens: Tensor, caches: list[KeyValueCache] | None = None, start: int = 0) -> Tensor:
        """Return [n, t, width] of tokens at positions start, start + 1, ...; the caches hold those before."""
        positions = torch.arange(start, start + tokens.shape[1], device=tokens.device)
        x = self.embedding(tokens)
        if self.position is not None:
            x = x + self.position(positions)
        rotation = Rotation(positions, self.head_dim, self.context) if self.position is None else None
        x = self.dropout(x)
        for index, block in enumerate(self.blocks):
            x = block(x, rotation=rotation, cache=caches[index] if caches else None)
        return self.norm(x)  # type: ignore[no-any-return]

    @torch.no_grad()
    def generate(
        self,
        tokens: Tensor,
        count: int,
        temperature: float = 1.0,
        top_k: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Continue [n, t] by `count` tokens, to [n, t + count]; put the model in eval mode first.

        Each new token costs one position of compute, as keys and values of earlier ones are cached. When the context is
        full, its last half (context // 2 tokens) is computed again as a new start: on average one more position per
        token, while sliding by one would cost the whole context each time.

        Args:
            tokens: prompts without padding, t at least 1; of one longer than the context the last half is used.
            count: tokens to add.
            temperature: the logits' divisor; 0 takes the most likely token.
            top_k: draw among this many of the most likely tokens.
            generator: of random numbers, on the tokens' device.

        Raises:
            ModelError: a negative temperature, or a top_k below 1.
        """
        if temperature < 0 or (top_k is not None and top_k < 1):
            raise ModelError(
                f"temperature={temperature}, top_k={top_k}: temperature is at least 0, top_k at least 1 or None"
            )
        return torch.cat([tokens, *self.stream(tokens, count, temperature, top_k, generator)], dim=1)

    @torch.no_grad()
    def stream(
        self,
        tokens: Tensor,
        count: int,
        temperature: float = 1.0,
        top_k: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Iterator[Tensor]:
        """Yield each new token [n, 1] of `generate` as soon as it is drawn."""
        caches, start, seen = self._caches(), 0, 0
        for _ in range(count):
            if tokens.shape[1] - start > self.context:
                start = seen = tokens.shape[1] - max(1, self.context // 2)
                caches = self._caches()
            hidden = self._hidden(tokens[:, seen:], caches, seen - start)
            seen = tokens.shape[1]
            chosen = _choose(self.output(hidden[:, -1]), temperature, top_k, generator).to(tokens.dtype)
            yield chosen
            tokens = torch.cat([tokens, chosen], dim=1)

    def _caches(self) -> list[KeyValueCache]:
        return [KeyValueCache() for _ in self.blocks]


def _choose(
    logits: Tensor, temperature: float, top_k: int | None, generator: torch.Generator | None
) -> Tensor:
    """Draw [n, 1] token ids from [n, outputs] logits."""
    if temperature == 0:
        return logits.argmax(dim=-1, keepdim=True)
    if top_k is not None:
        least = logits.topk(min(top_k, logits.shape[-1])).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    return torch.multinomial((logits.float() / temperature).softmax(dim=-1), 1, generator=generator)
