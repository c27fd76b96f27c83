"""An encoder for masked language models and sequence classification: BERT (Devlin et al. 2019) with pre-norm blocks.

Positions are rotary by default, as in ModernBERT (Warner et al. 2024): attention to neighbouring positions is possible
from the start, while learned positions have to be learned before the model learns more than token frequencies.

Depends on token ids, of which 0 is padding; independent of which tokens are masked and of their text. There is one kind
of segment, and no next-sentence task.
"""

from torch import Tensor, arange, nn

from shoal.errors import ModelError
from shoal.models.transformer import (
    Block,
    Rotation,
    check_length,
    context_length,
    head_count,
    initialize,
    is_rotary,
)

PADDING = 0


class BERT(nn.Module):
    """Tokens to logits: of the vocabulary at each position for `masked_lm`, of the whole row for other tasks.

    A row is classified by the mean over its tokens: without a next-sentence task the first token does not represent the
    row, and if both are trained the mean is better (Reimers and Gurevych 2019, "Sentence-BERT", Table 6).
    """

    def __init__(
        self,
        inputs: tuple[int, ...],
        outputs: int,
        vocabulary: int,
        task: str,
        width: int = 256,
        depth: int = 4,
        heads: int | None = None,
        positions: str = "rotary",
        dropout: float = 0.0,
    ) -> None:
        """Build the layers.

        Args:
            inputs: (context,), the largest number of tokens.
            outputs: numbers returned per row; for `masked_lm` per position, and equal to the vocabulary.
            vocabulary: token ids, padding among them.
            task: masked_lm, or a task of one target per row.
            width: of the residual stream.
            depth: blocks.
            heads: of each attention; None is one for each 64 of the width, at least 1.
            positions: rotary, or learned (one vector each, added to the token's).
            dropout: share dropped in training of embeddings, attention weights, a block's contributions, and the mean
                that a row is classified by.

        Raises:
            ModelError: inputs, outputs, vocabulary, heads or positions cannot be used.
        """
        super().__init__()
        is_masked_lm = task == "masked_lm"
        if vocabulary < 1:
            raise ModelError(
                f"vocabulary={vocabulary}: BERT reads token ids; use text data or another model.name"
            )
        if is_masked_lm and outputs != vocabulary:
            raise ModelError(
                f"outputs={outputs} with vocabulary={vocabulary}: the output layer of task=masked_lm is tied to the "
                "embedding; make them equal"
            )
        rotates = is_rotary(positions)
        self.context = context_length(inputs)
        heads = head_count(width, heads, rotates)
        self.head_dim = width // heads
        self.embedding = nn.Embedding(vocabulary, width)
        self.position = None if rotates else nn.Embedding(self.context, width)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(Block(width, heads, dropout, causal=False) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.transform = (
            nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width)) if is_masked_lm else None
        )
        self.output = nn.Linear(width, outputs)
        initialize(self)
        if is_masked_lm:
            self.output.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        """Map [n, t] token ids, t at most the context, to [n, t, outputs] for masked_lm, else to [n, outputs].

        Raises:
            ModelError: t is more than the context.
        """
        check_length(tokens, self.context)
        is_token = tokens != PADDING
        # A row of padding only attends to itself: without any position the softmax is 0 / 0.
        is_token = is_token | ~is_token.any(dim=1, keepdim=True)
        hidden = self._hidden(tokens, is_token)
        if self.transform is not None:
            return self.output(self.transform(hidden))  # type: ignore[no-any-return]
        return self.output(self.dropout(_mean(hidden, is_token)))  # type: ignore[no-any-return]

    def _hidden(self, tokens: Tensor, is_token: Tensor) -> Tensor:
        """Return [n, t, width]; `is_token`, [n, t], says which positions are attended to."""
        positions = arange(tokens.shape[1], device=tokens.device)
        x = self.embedding(tokens)
        if self.position is not None:
            x = x + self.position(positions)
        rotation = Rotation(positions, self.head_dim, self.context) if self.position is None else None
        x = self.dropout(x)
        for block in self.blocks:
            x = block(x, mask=is_token[:, None, None, :], rotation=rotation)
        return self.norm(x)  # type: ignore[no-any-return]


def _mean(hidden: Tensor, is_token: Tensor) -> Tensor:
    """Average [n, t, width] over the positions of tokens, to [n, width]."""
    return (hidden * is_token[..., None]).sum(dim=1) / is_token.sum(dim=1, keepdim=True)
