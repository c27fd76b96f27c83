"""A small Conformer for speech recognition: convolutions that quarter the time, then blocks that mix it.

A block is a depthwise convolution, which hears neighbouring sounds, before a transformer block, which hears the whole
(Gulati et al. 2020, "Conformer: convolution-augmented transformer for speech recognition"). All normalization is by
position: with BatchNorm, or without masks, what is heard in a recording would depend on those beside it.

Depends on spectrograms and their lengths; independent of units and of the loss.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shoal.errors import ModelError
from shoal.models.transformer import Block, KeyValueCache, Rotation, head_count

KERNEL = 15  # outputs that the depthwise convolution spans: 0.6 s


class Speech(nn.Module):
    """Spectrograms to logits of units, one for each four frames.

    Attributes:
        blocks: of depthwise convolution and transformer, in order.
    """

    def __init__(
        self,
        inputs: tuple[int, ...],
        outputs: int,
        width: int = 96,
        depth: int = 3,
        heads: int | None = None,
        dropout: float = 0.0,
    ) -> None:
        """Build the layers.

        Args:
            inputs: (frames, bands) of the longest recording; any other length will do.
            outputs: units, the blank among them.
            width: channels, and of the residual stream.
            depth: blocks.
            heads: of each attention; None is one for each 64 of the width, at least 1.
            dropout: share dropped in training of a block's contributions. Attention weights are all kept: which of them
                were dropped would depend on the longest recording of a batch, and so on the number of workers.

        Raises:
            ModelError: inputs or heads cannot be used.
        """
        super().__init__()
        if len(inputs) != 2:
            raise ModelError(
                f"a sample of shape {tuple(inputs)} is no spectrogram of (frames, bands): set "
                "task=speech_recognition, or another model.name"
            )
        heads = head_count(width, heads, rotates=True)
        self.head_dim = width // heads
        self.first = TimeConvolution(inputs[1], width, 3, stride=2, padding=1)
        self.second = TimeConvolution(width, width, 3, stride=2, padding=1)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(ConvolutionBlock(width, heads, dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.output = nn.Linear(width, outputs)

    def forward(self, spectrograms: Tensor, lengths: Tensor) -> Tensor:
        """Map [n, frames, bands] and how many frames are no padding [n] to [n, outputs, units]; padding becomes 0."""
        x = spectrograms.to(self.first.weight.dtype)
        x = _masked(x, lengths)
        for layer in (self.first, self.second):
            lengths = (lengths + 1) // 2
            x = _masked(F.gelu(layer(x)), lengths)
        x = self.dropout(x)
        is_heard = _is_heard(x, lengths)
        rotation = Rotation(torch.arange(x.shape[1], device=x.device), self.head_dim)
        for block in self.blocks:
            x = block(x, is_heard, rotation)
        return self.output(self.norm(x)) * is_heard[..., None]  # type: ignore[no-any-return]


class TimeConvolution(nn.Conv1d):
    """A convolution of [n, t, channels] along t.

    It is computed as one of images of height 1 whose channels come last in memory, as they do here: on CPUs that takes
    an eighth of the time of a depthwise one along the rows of [n, channels, t].
    """

    def forward(self, x: Tensor) -> Tensor:
        images, weight = x.transpose(1, 2).unsqueeze(2), self.weight.unsqueeze(2)
        padding = (0, int(self.padding[0]))
        found = F.conv2d(images, weight, self.bias, (1, *self.stride), padding, groups=self.groups)
        return found.squeeze(2).transpose(1, 2)


class ConvolutionBlock(Block):
    """A depthwise convolution between two layers that mix channels, then attention and feed-forward."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__(width, heads, dropout, causal=False)
        self.attention.dropout.p = 0.0
        self.convolution_norm = nn.LayerNorm(width)
        self.enter = nn.Linear(width, width)
        self.depthwise = TimeConvolution(width, width, KERNEL, padding=KERNEL // 2, groups=width)
        self.leave = nn.Linear(width, width)

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
            mask: [n, t], which positions are no padding.
            rotation: of the positions.
            cache: not used: all positions are there.
        """
        assert mask is not None
        inner = self.enter(self.convolution_norm(x)) * mask[..., None]
        inner = F.gelu(self.depthwise(inner))
        x = x + self.dropout(self.leave(inner))
        return super().forward(x, mask[:, None, None, :], rotation)


def _is_heard(x: Tensor, lengths: Tensor) -> Tensor:
    """Return which positions of [n, t, ...] are no padding, [n, t]."""
    return torch.arange(x.shape[1], device=x.device) < lengths[:, None]


def _masked(x: Tensor, lengths: Tensor) -> Tensor:
    """Return [n, t, channels] with zeros where padding is."""
    return x * _is_heard(x, lengths)[..., None]
