"""What the convolutional models share: the shape of an image, a normalized convolution, the stem.

All normalization is GroupNorm (Wu and He 2018, "Group Normalization"). With BatchNorm a sample's output would depend on
the other samples of the same worker, and Shoal promises that it does not.
"""

from torch import nn

from shoal.errors import ModelError

# One of the group sizes in table 3 of Wu and He. A fixed size suits narrow layers better than their 32 groups: the
# mean of a channel that is a group by itself is the norm's bias, whatever the image.
GROUP_CHANNELS = 16

# From this height and width on, the stem quarters an image.
LARGE_IMAGE = 64


def image_shape_of(inputs: tuple[int, ...]) -> tuple[int, int, int]:
    """Return (channels, height, width).

    Raises:
        ModelError: a sample does not have three dimensions.
    """
    if len(inputs) != 3:
        raise ModelError(
            f"a sample of shape {tuple(inputs)} is no image of (channels, height, width): "
            "set data.shape=[channels, height, width] for rows that are flat, or another model.name"
        )
    channels, height, width = inputs
    return channels, height, width


def group_norm(channels: int) -> nn.GroupNorm:
    """Return a norm of groups of 16 channels, or of the next larger divisor of `channels`."""
    size = next(size for size in range(min(GROUP_CHANNELS, channels), channels + 1) if channels % size == 0)
    return nn.GroupNorm(channels // size, channels)


def normalized_conv(
    inputs: int, outputs: int, kernel: int, stride: int = 1, gain: float = 1.0
) -> nn.Sequential:
    """Return a convolution without a bias and its norm: [n, inputs, h, w] to [n, outputs, h / stride, w / stride].

    The kernel's initialization is that of He et al. 2015, "Delving Deep into Rectifiers", equation 10: variance
    2 / fan-in. The norm's gain is initially `gain`.
    """
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
    norm = group_norm(outputs)
    nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
    nn.init.constant_(norm.weight, gain)
    return nn.Sequential(conv, norm)


def is_large(inputs: tuple[int, ...]) -> bool:
    """Whether the stem quarters an image of (channels, height, width)."""
    return min(inputs[1:]) >= LARGE_IMAGE


def stem(channels: int, width: int, quarters: bool) -> nn.Sequential:
    """Return the layers before the first block: [n, channels, h, w] to [n, width, h', w'].

    If it `quarters` height and width: a 7x7 convolution and a 3x3 pooling, each of stride 2 (He et al. 2015, table 1);
    else a 3x3 convolution that keeps them.
    """
    if quarters:
        return nn.Sequential(
            normalized_conv(channels, width, 7, stride=2), nn.ReLU(), nn.MaxPool2d(3, stride=2, padding=1)
        )
    return nn.Sequential(normalized_conv(channels, width, 3), nn.ReLU())
