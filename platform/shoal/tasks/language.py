"""Language modelling on rows of tokens: the next token, or the masked ones.

Rows are packed by `shoal.data.sources.corpus`: [n, context + 1], padding 0. The view of a row is a function of the row,
the epoch and the seed alone, so that it does not depend on the worker that holds it.
"""

import math
from abc import abstractmethod
from dataclasses import replace
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from shoal.data.config import DataConfig
from shoal.data.loader import Batch
from shoal.data.preprocessing import Transform
from shoal.data.tokenizer import MASK, PAD, SPECIALS, Tokenizer, token_bytes, tokenizer_from_json
from shoal.data.tree import only_tensor
from shoal.errors import ModelError
from shoal.tasks.base import EvaluationRows, RowTerms, Task
from shoal.tasks.classification import soft_divergence
from shoal.tasks.content_hash import row_keys, uniform
from shoal.tasks.measures import Kind
from shoal.tasks.outputs import logits_of

# Devlin et al. 2019, "BERT", section 3.1: 15% of each sequence are predicted; of these 80% are masked, 10% replaced by
# a random token, 10% left as they are.
MASKED_SHARE, REPLACED_BY_MASK, REPLACED_AT_RANDOM = 0.15, 0.8, 0.1

# Numbers that a forward pass may return at a time in evaluation.
MAX_OUTPUTS = 1 << 25


class LanguageModelling(Task):
    """Tokens are predicted; the loss is in nats per token."""

    metric_names = ("loss", "accuracy", "perplexity", "bits_per_byte")
    compared_by = "bits_per_byte"  # a token is another number of bytes to another tokenizer
    has_label = False
    takes_text = True
    metric_kind = "multiclass"
    sums_size = 5

    def __init__(self, tokenizer: Tokenizer, context: int, seed: int) -> None:
        self.vocabulary, self.context, self.seed = tokenizer.vocabulary, context, seed
        self._bytes = torch.from_numpy(token_bytes(tokenizer).astype(np.int64))
        self._predicted_share = 1.0
        self._token_losses = _token_losses
        self.held_out_rows = self.evaluation_rows((context,), self.vocabulary)

    @classmethod
    def build(cls, transform: Transform, data: DataConfig, seed: int) -> Self:
        assert transform.tokenizer is not None
        return cls(tokenizer_from_json(transform.tokenizer), transform.input_shape[0], seed)

    @classmethod
    def evaluation_rows(cls, sample: tuple[int, ...], outputs: int) -> EvaluationRows:
        rows = super().evaluation_rows(sample, outputs)
        return EvaluationRows(rows.few, max(1, MAX_OUTPUTS // (sample[0] * outputs)))

    def compile(self) -> None:
        # In one kernel the logits are not written out as float32: 3.3 GB for 16 rows of 1024 tokens of GPT-2's.
        self._token_losses = torch.compile(_token_losses)

    @abstractmethod
    def view(self, batch: Batch, epoch: int | None) -> Batch:
        """Return the model's inputs and its targets; `epoch` is None for held-out rows."""

    def own_total(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Return the sum over rows of a row's total loss, divided by the number of tokens predicted in a full row.

        The divisor is the same for all rows, which keeps the gradient of a batch independent of how the batch is
        divided among workers.
        """
        return self._nats(outputs, batch, "sum") / self._predicted

    def own_losses(self, outputs: Tensor, batch: Batch) -> Tensor:
        return self._nats(outputs, batch).view(len(outputs), -1).sum(dim=1) / self._predicted

    def soft_losses(self, outputs: Tensor, teacher: Tensor, batch: Batch, temperature: float) -> Tensor:
        predicted = only_tensor(batch.targets) != PAD
        losses = soft_divergence(outputs[predicted].float(), teacher[predicted].float(), temperature)
        rows = predicted.nonzero()[:, 0]
        return losses.new_zeros(len(outputs)).index_add(0, rows, losses) / self._predicted

    @property
    def _predicted(self) -> float:
        """Tokens that are predicted in a full row."""
        return self.context * self._predicted_share

    @property
    def kind(self) -> Kind:
        return Kind("multiclass", {"num_classes": self.vocabulary})

    def predictions(self, outputs: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the probability of each token [n, vocabulary] at the places that are predicted; and the tokens."""
        targets = only_tensor(batch.targets)
        predicted = targets != PAD
        return logits_of(outputs)[predicted].float().softmax(dim=1), targets[predicted]

    def own_sums(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Return rows, loss in nats, tokens predicted, the bytes of these, tokens predicted correctly."""
        total, targets = self._nats(outputs, batch, "sum"), only_tensor(batch.targets)
        predicted = targets != PAD
        spelled = self._bytes.to(outputs.device)[targets]
        correct = (outputs.argmax(-1) == targets) & predicted
        rows = total.new_tensor(len(outputs))
        return torch.stack([rows, total, predicted.sum(), spelled.sum(), correct.sum()]).double()

    def own_row_terms(self, outputs: Tensor, batch: Batch) -> dict[str, RowTerms]:
        nats = self._nats(outputs, batch).view(len(outputs), -1).sum(dim=1).double()
        targets = only_tensor(batch.targets)
        predicted = targets != PAD
        tokens = predicted.sum(dim=1).double()
        spelled = self._bytes.to(outputs.device)[targets].sum(dim=1).double()
        correct = ((outputs.argmax(-1) == targets) & predicted).sum(dim=1).double()
        return {
            "loss": RowTerms(nats, tokens),
            "accuracy": RowTerms(correct, tokens),
            "bits_per_byte": RowTerms(nats / math.log(2), spelled),
        }

    def own_metrics(self, sums: Tensor) -> dict[str, float]:
        _, total, tokens, spelled, correct = sums.tolist()
        loss = total / max(tokens, 1.0)
        return {
            "loss": loss,
            "accuracy": correct / max(tokens, 1.0),
            "perplexity": math.exp(min(loss, 700.0)),
            "bits_per_byte": total / math.log(2) / max(spelled, 1.0),
        }

    def _nats(self, outputs: Tensor, batch: Batch, reduction: str = "none") -> Tensor:
        """Return the loss of each token, 0 for those that are not predicted; or the sum of all."""
        targets = only_tensor(batch.targets)
        expected = (*targets.shape, self.vocabulary)
        if outputs.shape != expected:
            raise ModelError(
                f"the model returned {tuple(outputs.shape)} for rows of {self.context} tokens out of "
                f"{self.vocabulary}: it must return {expected}; its builder receives `outputs`"
            )
        return self._token_losses(outputs, targets, reduction)


def _token_losses(outputs: Tensor, targets: Tensor, reduction: str) -> Tensor:
    """Return the loss [n * t] of each token in nats, or the sum; of [n, t, vocabulary] logits and [n, t] ids."""
    flat = outputs.flatten(0, 1).float()
    return F.cross_entropy(flat, targets.flatten(), ignore_index=PAD, reduction=reduction)


class CausalLM(LanguageModelling):
    """Each token is predicted from those before it."""

    name = "causal_lm"

    def view(self, batch: Batch, epoch: int | None) -> Batch:
        tokens = only_tensor(batch.inputs).long()
        return replace(batch, inputs=tokens[:, :-1], targets=tokens[:, 1:])


class MaskedLM(LanguageModelling):
    """Some tokens of each row are predicted from all the others."""

    name = "masked_lm"

    def __init__(self, tokenizer: Tokenizer, context: int, seed: int) -> None:
        super().__init__(tokenizer, context, seed)
        self._predicted_share = MASKED_SHARE

    def view(self, batch: Batch, epoch: int | None) -> Batch:
        """Mask by the 80/10/10 rule: other positions every epoch, always the same ones in evaluation."""
        tokens = only_tensor(batch.inputs).long()[:, :-1]
        keys = row_keys(tokens, self.seed if epoch is None else self.seed + 1 + epoch)
        chosen = _lowest(uniform(keys, tokens.shape[1], 0), tokens != PAD)
        fate = uniform(keys, tokens.shape[1], 1)
        other = SPECIALS + (uniform(keys, tokens.shape[1], 2) * (self.vocabulary - SPECIALS)).long()
        inputs = torch.where(chosen & (fate < REPLACED_BY_MASK), MASK, tokens)
        is_random = (fate >= REPLACED_BY_MASK) & (fate < REPLACED_BY_MASK + REPLACED_AT_RANDOM)
        inputs = torch.where(chosen & is_random, other, inputs)
        return replace(batch, inputs=inputs, targets=torch.where(chosen, tokens, PAD))


def _lowest(draws: Tensor, is_token: Tensor) -> Tensor:
    """Choose in each row the positions with the lowest draws: `MASKED_SHARE` of its tokens, at least one."""
    counts = (is_token.sum(1) * MASKED_SHARE).round().clamp(min=1)
    ranks = torch.where(is_token, draws, 2.0).argsort(1).argsort(1)
    return (ranks < counts[:, None]) & is_token
