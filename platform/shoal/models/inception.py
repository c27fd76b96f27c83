"""Inception blocks of Szegedy et al. 2014, "Going Deeper with Convolutions", with GroupNorm."""

import torch
from torch import Tensor, nn

from shoal.errors import ModelError
from shoal.models.convolution import image_shape_of, is_large, normalized_conv, stem

# Height or width at which pooling ends.
SMALLEST = 4


class Inception(nn.Module):
    """Blocks of four parallel branches of equal width, and a stride-2 pooling after every second block.

    Every convolution has its norm, as in Ioffe and Szegedy 2015 ("Batch Normalization"). It is GroupNorm, of groups of
    16 channels or the next larger divisor of the layer's channels: batch statistics would make the result depend on how
    a batch is divided among workers. The paper's auxiliary classifiers are left out.

    Attributes:
        blocks: the `depth` blocks, in order.
        head: the output layer.
    """

    def __init__(self, inputs: tuple[int, ...], outputs: int, width: int = 32, depth: int = 6) -> None:
        """Build the layers.

        Args:
            inputs: (channels, height, width) of one image. From 64x64 on the stem is a 7x7 convolution and a
                pooling, each of stride 2; below, a 3x3 convolution of stride 1.
            outputs: numbers returned per image.
            width: channels that each branch returns; a block returns four times as many.
            depth: blocks. The third, fifth, ... pools first while height and width are above 4.

        Raises:
            ModelError: `inputs` is not an image, or there is no block.
        """
        super().__init__()
        channels, *size = image_shape_of(inputs)
        if depth < 1:
            raise ModelError(f"model.depth={depth} leaves no block of inception: set it to 1 or more")
        quarters = is_large(inputs)
        self.stem = stem(channels, width, quarters)
        side = -(-min(size) // 4) if quarters else min(size)
        blocks: list[nn.Module] = []
        for number in range(depth):
            pools = number > 0 and number % 2 == 0 and side > SMALLEST
            side = -(-side // 2) if pools else side
            blocks.append(InceptionBlock(4 * width if number else width, width, pools))
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(4 * width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Map [n, channels, height, width] to [n, outputs]."""
        return self.head(self.blocks(self.stem(x)).mean(dim=(2, 3)))  # type: ignore[no-any-return]


class InceptionBlock(nn.Module):
    """1x1, 1x1 to 3x3, 1x1 to 5x5, and pooling to 1x1, side by side (figure 2b)."""

    def __init__(self, inputs: int, width: int, pools: bool) -> None:
        super().__init__()
        self.pool = nn.MaxPool2d(3, stride=2, padding=1) if pools else nn.Identity()
        self.branches = nn.ModuleList(
            [
                normalized_conv(inputs, width, 1),
                nn.Sequential(normalized_conv(inputs, width, 1), nn.ReLU(), normalized_conv(width, width, 3)),
                nn.Sequential(normalized_conv(inputs, width, 1), nn.ReLU(), normalized_conv(width, width, 5)),
                nn.Sequential(nn.MaxPool2d(3, stride=1, padding=1), normalized_conv(inputs, width, 1)),
            ]
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map [n, inputs, h, w] to [n, 4 * width, h', w'], halved where the block pools."""
        x = self.pool(x)
        return torch.cat([branch(x) for branch in self.branches], dim=1).relu()
