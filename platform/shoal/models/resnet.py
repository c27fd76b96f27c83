"""Residual networks of He et al. 2015, "Deep Residual Learning for Image Recognition", with GroupNorm."""

import torch.nn.functional as F
from torch import Tensor, nn

from shoal.errors import ModelError
from shoal.models.convolution import image_shape_of, is_large, normalized_conv, stem

# Blocks of each stage, by depth (table 1); depth 50 has bottlenecks.
STAGES = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}

# Channels of a bottleneck's last convolution to those of its first.
EXPANSION = 4


class ResNet(nn.Module):
    """Residual blocks in stages, each of twice the channels and half the height and width of the one before.

    GroupNorm, of groups of 16 channels or the next larger divisor of the layer's channels, replaces BatchNorm: batch
    statistics would make the result depend on how a batch is divided among workers. It has as many affine parameters,
    so that the number of parameters is the published one.

    Attributes:
        blocks: the residual blocks of all stages, in order.
        head: the output layer.
    """

    def __init__(self, inputs: tuple[int, ...], outputs: int, width: int = 64, depth: int = 18) -> None:
        """Build the layers.

        Args:
            inputs: (channels, height, width) of one image.
            outputs: numbers returned per image.
            width: channels of the first stage; the paper's is 64 for the depths 18, 34, 50, and 16 for the others.
            depth: 18, 34 (basic blocks) or 50 (bottlenecks) of four stages, as in table 1, whose stem is a 3x3
                convolution without pooling where height or width is below 64; or 6n + 2 from 8 on (8, 14, 20, 26,
                32, ..., but not 50), the three stages for images of 8x8 to 32x32 (section 4.2), whose shortcuts
                have no parameters.

        Raises:
            ModelError: `inputs` is not an image, or there is no such depth.
        """
        super().__init__()
        channels, _, _ = image_shape_of(inputs)
        self.stem = stem(channels, width, quarters=depth in STAGES and is_large(inputs))
        blocks = residual_stages(width, depth)
        self.blocks = nn.Sequential(*(block for stage in blocks for block in stage))
        self.head = nn.Linear(channels_of(width, depth)[-1], outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Map [n, channels, height, width] to [n, outputs]."""
        return self.head(self.blocks(self.stem(x)).mean(dim=(2, 3)))  # type: ignore[no-any-return]


class ResidualBlock(nn.Module):
    """ReLU of a branch plus a shortcut (equations 1 and 2).

    The gain of a branch's last norm is initially zero, so that a block is initially its shortcut (Goyal et al. 2017,
    "Accurate, Large Minibatch SGD", section 5.1).
    """

    def __init__(self, branch: nn.Sequential, shortcut: nn.Module) -> None:
        super().__init__()
        self.branch = branch
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.branch(x) + self.shortcut(x))

    def fit_shortcut(self) -> None:
        """Let a shortcut without parameters pad as far as the branch's channels go, once layers have other sizes."""
        if isinstance(self.shortcut, PaddedIdentity):
            first, *_, last = (layer for layer in self.branch.modules() if isinstance(layer, nn.Conv2d))
            self.shortcut.extra = last.out_channels - first.in_channels


class PaddedIdentity(nn.Module):
    """The shortcut without parameters: every stride-th pixel, and further channels of zeros (option A)."""

    def __init__(self, extra: int, stride: int) -> None:
        super().__init__()
        self.extra = extra
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.extra))


def stages_of(depth: int) -> tuple[int, ...]:
    """Return the number of blocks of each stage.

    Raises:
        ModelError: there is no such depth.
    """
    if depth in STAGES:
        return STAGES[depth]
    count, rest = divmod(depth - 2, 6)
    if count < 1 or rest:
        raise ModelError(
            f"model.depth={depth} is no ResNet: set 18, 34 or 50, or for small images 6n + 2 "
            "(8, 14, 20, 26, 32, 38, 44, 56, ...)"
        )
    return (count,) * 3


def residual_stages(width: int, depth: int) -> list[list[nn.Module]]:
    """Return the blocks of each stage: [n, width, h, w] to [n, channels, h / 2, w / 2], from the second stage on.

    Args:
        width: channels of the stem and of the first stage, before a bottleneck's expansion.
        depth: as `ResNet`.

    Raises:
        ModelError: there is no such depth.
    """
    channels, build = width, bottleneck if depth == 50 else basic
    stages: list[list[nn.Module]] = []
    for stage, (count, after) in enumerate(zip(stages_of(depth), channels_of(width, depth), strict=True)):
        blocks: list[nn.Module] = []
        for number in range(count):
            stride = 2 if stage and number == 0 else 1
            branch = build(channels, width << stage, stride)
            blocks.append(ResidualBlock(branch, shortcut(channels, after, stride, depth in STAGES)))
            channels = after
        stages.append(blocks)
    return stages


def channels_of(width: int, depth: int) -> list[int]:
    """Return the channels that each stage returns."""
    return [(width << stage) * (EXPANSION if depth == 50 else 1) for stage in range(len(stages_of(depth)))]


def basic(inputs: int, width: int, stride: int) -> nn.Sequential:
    """Two 3x3 convolutions (figure 5, left)."""
    return nn.Sequential(
        normalized_conv(inputs, width, 3, stride), nn.ReLU(), normalized_conv(width, width, 3, gain=0.0)
    )


def bottleneck(inputs: int, width: int, stride: int) -> nn.Sequential:
    """1x1, 3x3 and 1x1, the last to four times the channels (figure 5, right).

    The 3x3 convolution has the stride: it reads every pixel, while the paper's first 1x1 would skip three of four.
    """
    return nn.Sequential(
        normalized_conv(inputs, width, 1),
        nn.ReLU(),
        normalized_conv(width, width, 3, stride),
        nn.ReLU(),
        normalized_conv(width, EXPANSION * width, 1, gain=0.0),
    )


def shortcut(inputs: int, outputs: int, stride: int, is_projected: bool) -> nn.Module:
    """Return the identity, or if the shape changes, a 1x1 projection (option B) or padding (option A)."""
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    if is_projected:
        return normalized_conv(inputs, outputs, 1, stride)
    return PaddedIdentity(outputs - inputs, stride)
