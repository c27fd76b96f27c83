"""What is learnt from rows of tokens: the next token, or the ones that were masked.

Rows come as `shoal.data.sources.text` packs them, [n, context + 1], padding 0. What a row is made into is a
function of the row, the epoch and the seed alone: which worker holds it changes nothing.
"""

import math
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from shoal.data.loader import Batch
from shoal.data.tokenizer import MASK, PAD, SPECIALS, Tokenizer, token_bytes
from shoal.errors import ModelError
from shoal.tasks.content_hash import row_keys, uniform

# Devlin et al. 2019, "BERT", section 3.1: of each sequence 15% are to be guessed; of these 80% are masked, 10%
# replaced by a random token, 10% left as they are.
MASKED_SHARE, REPLACED_BY_MASK, REPLACED_AT_RANDOM = 0.15, 0.8, 0.1

# Numbers that a forward pass may put out at a time while nothing is learnt.
MAX_OUTPUTS = 1 << 25


class LanguageModelling:
    """Tokens guessed: the loss is in nats per token."""

    name: str
    sums_size = 5

    def __init__(self, tokenizer: Tokenizer, context: int, seed: int) -> None:
        self.vocabulary, self.context, self.seed = tokenizer.vocabulary, context, seed
        self._bytes = torch.from_numpy(token_bytes(tokenizer).astype(np.int64))
        self._guessed_share = 1.0

    @property
    def held_out_rows(self) -> int:
        """How many rows are evaluated at a time."""
        return max(1, MAX_OUTPUTS // (self.context * self.vocabulary))

    def view(self, batch: Batch, epoch: int | None) -> Batch:
        """Return what the model is given and what it shall put out; `epoch` is None for held-out rows."""
        raise NotImplementedError

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Return the sum over rows of what a row's tokens lose, over the tokens that a full row guesses.

        Dividing by a number that is the same for all rows keeps the gradient of a batch independent of how it is
        divided among workers.
        """
        return self._total(outputs, batch) / (self.context * self._guessed_share)

    def sums(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Return rows, loss in nats, tokens guessed, the bytes these stand for, tokens guessed right."""
        guessed = batch.targets != PAD
        spelled = self._bytes.to(outputs.device)[batch.targets]
        right = (outputs.argmax(-1) == batch.targets) & guessed
        total = self._total(outputs, batch)
        rows = total.new_tensor(len(outputs))
        return torch.stack([rows, total, guessed.sum(), spelled.sum(), right.sum()]).double()

    def metrics(self, sums: Tensor) -> dict[str, float]:
        _, total, tokens, spelled, right = sums.tolist()
        loss = total / max(tokens, 1.0)
        return {
            "loss": loss,
            "accuracy": right / max(tokens, 1.0),
            "perplexity": math.exp(min(loss, 700.0)),
            "bits_per_byte": total / math.log(2) / max(spelled, 1.0),
        }

    def _total(self, outputs: Tensor, batch: Batch) -> Tensor:
        expected = (*batch.targets.shape, self.vocabulary)
        if outputs.shape != expected:
            raise ModelError(
                f"the model put out {tuple(outputs.shape)} for rows of {self.context} tokens out of "
                f"{self.vocabulary}: it must put out {expected}; its builder is given `outputs`"
            )
        flat = outputs.flatten(0, 1).float()
        return F.cross_entropy(flat, batch.targets.flatten(), ignore_index=PAD, reduction="sum")


class CausalLM(LanguageModelling):
    """Each token is guessed from those before it."""

    name = "causal_lm"

    def view(self, batch: Batch, epoch: int | None) -> Batch:
        tokens = batch.inputs.long()
        return replace(batch, inputs=tokens[:, :-1], targets=tokens[:, 1:])


class MaskedLM(LanguageModelling):
    """Some tokens of each row are guessed from all the others."""

    name = "masked_lm"

    def __init__(self, tokenizer: Tokenizer, context: int, seed: int) -> None:
        super().__init__(tokenizer, context, seed)
        self._guessed_share = MASKED_SHARE

    def view(self, batch: Batch, epoch: int | None) -> Batch:
        """Mask by the 80/10/10 rule: new places every epoch, the same ones whenever it is evaluated."""
        tokens = batch.inputs.long()[:, :-1]
        keys = row_keys(tokens, self.seed if epoch is None else self.seed + 1 + epoch)
        chosen = _lowest(uniform(keys, tokens.shape[1], 0), tokens != PAD)
        fate = uniform(keys, tokens.shape[1], 1)
        other = SPECIALS + (uniform(keys, tokens.shape[1], 2) * (self.vocabulary - SPECIALS)).long()
        inputs = torch.where(chosen & (fate < REPLACED_BY_MASK), MASK, tokens)
        is_random = (fate >= REPLACED_BY_MASK) & (fate < REPLACED_BY_MASK + REPLACED_AT_RANDOM)
        inputs = torch.where(chosen & is_random, other, inputs)
        return replace(batch, inputs=inputs, targets=torch.where(chosen, tokens, PAD))


def _lowest(draws: Tensor, is_there: Tensor) -> Tensor:
    """Choose of each row the places with the lowest draws: `MASKED_SHARE` of those that are there, one at least."""
    counts = (is_there.sum(1) * MASKED_SHARE).round().clamp(min=1)
    ranks = torch.where(is_there, draws, 2.0).argsort(1).argsort(1)
    return (ranks < counts[:, None]) & is_there
