"""A detector of one level: a residual network, a top-down path to a quarter of the image, and FCOS's head.

The parts are those of Lin et al. 2017, "Feature Pyramid Networks for Object Detection" (section 3), of which the finest
level alone is kept, without its last convolution, as the head's towers begin with one, and of Tian et al. 2019, "FCOS:
Fully Convolutional One-Stage Object Detection" (sections 3.1 and 4). It knows images and numbers; which boxes the
numbers mean, `shoal.tasks.boxes` says.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shoal.errors import ModelError
from shoal.models.convolution import image_shape_of, normalized_conv
from shoal.models.resnet import channels_of, residual_stages

STRIDE = 4  # pixels of the image between two cells of the output, in each direction
SIDES = 4  # of a box: left, top, right, bottom
# What a cell initially gives each class: few cells hold an object (Lin et al. 2017, "Focal Loss", section 4.1).
PRIOR = 0.01


class Detector(nn.Module):
    """For each cell of a quarter of the image the logit of each class, and how far the sides of a box are.

    All normalization is GroupNorm, as in `ResNet`, and a cell's outputs depend on its image alone.

    Attributes:
        blocks: the residual blocks of all stages, in order.
    """

    def __init__(self, inputs: tuple[int, ...], outputs: int, width: int = 16, depth: int = 8) -> None:
        """Build the layers.

        Args:
            inputs: (channels, height, width) of one image.
            outputs: classes.
            width: channels of the first stage; the top-down path and the head have twice as many.
            depth: as of a `ResNet`: 6n + 2 from 8 on for three stages, or 18, 34, 50 for four.

        Raises:
            ModelError: `inputs` is not an image, or is too small; or there is no such depth.
        """
        super().__init__()
        channels, *size = image_shape_of(inputs)
        stages, self._channels = residual_stages(width, depth), channels_of(width, depth)
        least = STRIDE << (len(stages) - 1)
        if min(size) < least:
            raise ModelError(
                f"model.name=detector with model.depth={depth} takes images of {least}x{least} pixels or more, and the "
                f"data's are {size[0]}x{size[1]}: set data.shape=[channels, height, width]"
            )
        self.stem = nn.Sequential(
            normalized_conv(channels, width, 3, stride=2),
            nn.ReLU(),
            normalized_conv(width, width, 3, stride=2),
            nn.ReLU(),
        )
        self._ends = [sum(map(len, stages[: number + 1])) for number in range(len(stages))]
        self.blocks = nn.Sequential(*(block for stage in stages for block in stage))
        shared = 2 * width
        self.laterals = nn.ModuleList(normalized_conv(count, shared, 1) for count in self._channels)
        # One for classes and one for sides. With one for both, digits reached an average precision of 0.59 in 33 s of a
        # CPU; with two of fewer channels 0.77 in 28 s.
        self.towers = nn.ModuleList(
            nn.Sequential(normalized_conv(shared, shared, 3), nn.ReLU()) for _ in range(2)
        )
        self.classes = output_layer(shared, outputs, bias=-math.log(1 / PRIOR - 1))
        self.sides = output_layer(shared, SIDES, bias=0.0)

    def forward(self, x: Tensor) -> Tensor:
        """Map [n, channels, height, width] to [n, outputs + 4, height / 4, width / 4], rounded up.

        The last four of a cell are the logarithms of the distances from its centre to the left, top, right and bottom
        of a box, in cells.
        """
        x = self.stem(x)
        levels = []
        for number, block in enumerate(self.blocks, 1):
            x = block(x)
            if number in self._ends:
                levels.append(x)
        found = self.laterals[-1](levels[-1])
        for lateral, level in zip(list(self.laterals)[-2::-1], levels[-2::-1], strict=True):
            found = lateral(level) + F.interpolate(found, size=level.shape[2:], mode="nearest")
        of_classes, of_sides = (tower(F.relu(found)) for tower in self.towers)
        return torch.cat([self.classes(of_classes), self.sides(of_sides)], dim=1)


def output_layer(inputs: int, outputs: int, bias: float) -> nn.Conv2d:
    """Return a 3x3 convolution with small weights (FCOS, section 4), so that its outputs are initially the bias."""
    layer = nn.Conv2d(inputs, outputs, 3, padding=1)
    nn.init.normal_(layer.weight, std=0.01)
    assert layer.bias is not None
    nn.init.constant_(layer.bias, bias)
    return layer
