"""What is said in a recording, as characters, words or other units: the CTC loss, word and character errors.

A row's loss is divided by its own units, and word errors are sums of edits over all rows, so that neither depends on
how rows are divided among batches and workers.
"""

from dataclasses import replace
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from shoal.data.audio import AudioFormat, outputs_of
from shoal.data.config import DataConfig
from shoal.data.loader import Batch
from shoal.data.preprocessing import Transform
from shoal.data.spec_augment import STRIPES, blank_stripes
from shoal.data.tokenizer import Tokenizer
from shoal.data.tree import only_tensor
from shoal.errors import ModelError
from shoal.tasks.base import RowTerms, Task
from shoal.tasks.content_hash import row_keys, uniform
from shoal.tasks.transcripts import BLANK, beam_search, edits, emissions, greedy

# A batch's frames are a multiple of these: a convolution is prepared for each other length, which takes as long as some
# rows, and those that are kept are of a thousand shapes.
FRAMES_STEP = 16
LENGTHS = "lengths"  # the argument of a model's forward that says how many frames are no padding


class SpeechRecognition(Task):
    """The units of a recording, by connectionist temporal classification (Graves et al. 2006).

    A model returns logits of the units, [n, outputs, units], for a quarter of the frames, rounded up: `outputs_of`.
    """

    name = "speech_recognition"
    metric_names = ("loss", "wer", "cer", "blank_share")
    compared_by = "wer"  # the loss is per unit, of which each tokenizer makes others
    keeps_targets = True
    takes_recordings = True
    sums_size = 8

    def __init__(self, audio: AudioFormat, seed: int, mask_bands: int = 0, mask_frames: int = 0) -> None:
        self.tokenizer: Tokenizer = audio.tokenizer
        self.seed, self.mask_bands, self.mask_frames = seed, mask_bands, mask_frames

    @classmethod
    def build(cls, transform: Transform, data: DataConfig, seed: int) -> Self:
        assert transform.audio is not None
        return cls(transform.audio, seed, data.mask_bands, data.mask_frames)

    def view(self, batch: Batch, epoch: int | None) -> Batch:
        """Return the rows cut to about the longest of them, and in training with blanks that each epoch draws anew."""
        name, spectrograms, lengths = _parts(batch)
        targets = only_tensor(batch.targets)
        longest, units = int(lengths.max()), int((targets >= 0).sum(1).max())
        seen = spectrograms[:, : -(-longest // FRAMES_STEP) * FRAMES_STEP]
        if epoch is not None and (self.mask_bands or self.mask_frames):
            # One band tells recordings apart.
            heard = spectrograms[:, :, :1].float().contiguous().view(torch.int32).long()
            draws = uniform(row_keys(heard, self.seed + 1 + epoch), 4 * STRIPES, 0)
            seen = blank_stripes(seen, lengths, draws, self.mask_bands, self.mask_frames)
        inputs = {name: seen.float(), LENGTHS: lengths}
        return replace(batch, inputs=inputs, targets=targets[:, : max(1, units)])

    def own_total(self, outputs: Tensor, batch: Batch) -> Tensor:
        return self.own_losses(outputs, batch).sum()

    def own_losses(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Return the nats per unit of each row."""
        lengths, targets = self._lengths(outputs, batch), only_tensor(batch.targets)
        units = (targets >= 0).sum(1)
        found = F.ctc_loss(
            outputs.float().log_softmax(-1).transpose(0, 1),
            targets.clamp(min=0),
            lengths,
            units,
            blank=BLANK,
            reduction="none",
        )
        return found / units.clamp(min=1)

    def _lengths(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Return how many outputs of each row are no padding [n]."""
        _, spectrograms, lengths = _parts(batch)
        expected = (len(lengths), outputs_of(spectrograms.shape[1]), self.tokenizer.vocabulary)
        if outputs.shape != expected:
            raise ModelError(
                f"the model returned {tuple(outputs.shape)} for recordings of {spectrograms.shape[1]} frames and "
                f"{self.tokenizer.vocabulary} units: it must return {expected}, an output for each 4 frames; its "
                "builder receives `outputs`"
            )
        return outputs_of(lengths)

    def transcribe(self, outputs: Tensor, batch: Batch, beam: int = 0) -> list[str]:
        """Return the text of each row.

        Args:
            outputs: logits [n, outputs, units].
            beam: prefixes that are kept by a beam search; 0: the likeliest unit of each output.
        """
        counts = self._lengths(outputs, batch).tolist()
        if not beam:
            best = outputs.argmax(-1).cpu().numpy()
            found = [greedy(row[:count]) for row, count in zip(best, counts, strict=True)]
        else:
            likely = outputs.double().log_softmax(-1).cpu().numpy()
            found = [beam_search(row[:count], beam) for row, count in zip(likely, counts, strict=True)]
        return [self.text(ids) for ids in found]

    def emitted(self, outputs: Tensor, batch: Batch) -> list[list[tuple[int, str]]]:
        """Return where each row's likeliest path begins which unit: (number of the output, unit)."""
        best, counts = outputs.argmax(-1).cpu().numpy(), self._lengths(outputs, batch).tolist()
        return [
            [(place, self.tokenizer.decode([unit])) for place, unit in emissions(row[:count])]
            for row, count in zip(best, counts, strict=True)
        ]

    def text(self, ids: list[int]) -> str:
        """Return a text with single blanks between its words, as references are written."""
        return " ".join(self.tokenizer.decode(ids).split())

    def references(self, batch: Batch) -> list[str]:
        """Return what was said in each row."""
        rows = only_tensor(batch.targets).cpu().numpy()
        return [self.text(row[row >= 0].tolist()) for row in rows]

    def own_sums(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Return rows, losses, edits of words, words, edits of characters, characters, blank outputs, outputs."""
        losses, errors = self.own_losses(outputs, batch).double(), self._errors(outputs, batch)
        counts = self._lengths(outputs, batch)
        places = torch.arange(outputs.shape[1], device=outputs.device)
        blanks = (outputs.argmax(-1) == BLANK) & (places < counts[:, None])
        rows = losses.new_tensor([float(len(outputs))])
        rest = torch.stack([blanks.sum(), counts.sum()]).double()
        return torch.cat([rows, losses.sum()[None], errors.sum(0).to(outputs.device), rest])

    def _errors(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Return [n, 4] edits of words, words, edits of characters, characters; on the host."""
        pairs = zip(self.transcribe(outputs, batch), self.references(batch), strict=True)
        found = [
            (edits(text.split(), said.split()), len(said.split()), edits(text, said), len(said))
            for text, said in pairs
        ]
        return torch.tensor(found, dtype=torch.float64)

    def own_row_terms(self, outputs: Tensor, batch: Batch) -> dict[str, RowTerms]:
        errors = self._errors(outputs, batch)
        return {
            "loss": RowTerms.mean(self.own_losses(outputs, batch)),
            "wer": RowTerms(errors[:, 0], errors[:, 1]),
            "cer": RowTerms(errors[:, 2], errors[:, 3]),
        }

    def own_metrics(self, sums: Tensor) -> dict[str, float]:
        rows, loss, word_edits, words, edited, characters, blanks, outputs = sums.tolist()
        return {
            "loss": loss / rows,
            "wer": word_edits / max(words, 1.0),
            "cer": edited / max(characters, 1.0),
            "blank_share": blanks / max(outputs, 1.0),
        }


def _parts(batch: Batch) -> tuple[str, Tensor, Tensor]:
    """Return the name of the spectrograms, which a model's forward gives, with them and their lengths.

    Raises:
        ModelError: the forward does not take lengths.
    """
    inputs: Any = batch.inputs
    if not isinstance(inputs, dict) or LENGTHS not in inputs:
        raise ModelError(
            "the model's forward does not take `lengths`, and padding would change what it hears: define "
            "forward(self, spectrograms, lengths), [n, frames, bands] and [n], and mask what is beyond"
        )
    name = next(key for key in inputs if key != LENGTHS)
    return name, inputs[name], inputs[LENGTHS]
