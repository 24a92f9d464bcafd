"""Where detectors that regress from fixed boxes put those boxes."""

import math

import keras
import numpy as np
from keras import ops


@keras.saving.register_keras_serializable("tfdet")
class PriorBox(keras.layers.Layer):
    """The prior boxes ("default boxes") of one SSD feature map, in pixels of the fed image.

    A cell at row i and column j has its centre at ((j + offset) * step, (i + offset) * step), and its priors are, in
    this order: the square of side `min_size`, the square of side sqrt(min_size * max_size), and for every ratio r the
    boxes of width min_size * sqrt(r), height min_size / sqrt(r), and the other way round.

    Centres follow the released code (weiliu89/caffe, prior_box_layer.cpp); the paper's (j + 0.5) / |f_k| differs
    wherever |f_k| * step is not the image size: 38 * 8 = 304 for SSD300. That code also truncates `min_size` and
    `max_size` to whole pixels, which changes SSD512 by less than a pixel and is not copied.

    Args:
        min_size, max_size: pixels.
        aspect_ratios: the ratios beside 1, each > 1; its inverse is added.
        step: pixels of the fed image between two cells.
        offset: of the centre inside the cell, in cells.
        largest: sides are cut to so many pixels (torchvision cuts them to the image's); None leaves them.
    """

    def __init__(self, min_size, max_size, aspect_ratios, step, offset=0.5, largest=None, **kwargs):
        super().__init__(**kwargs)
        self.min_size, self.max_size, self.step, self.offset = min_size, max_size, step, offset
        self.largest = largest
        self.aspect_ratios = tuple(aspect_ratios)
        self._allow_non_tensor_positional_args = True  # (H, W) will do instead of a feature map

    @property
    def num_priors(self):
        """P, the priors of one cell."""
        return 2 + 2 * len(self.aspect_ratios)

    def sizes(self):
        """Widths and heights of one cell's priors, float32 [P, 2], in pixels."""
        middle = math.sqrt(self.min_size * self.max_size)
        sizes = [(self.min_size, self.min_size), (middle, middle)]
        for ratio in self.aspect_ratios:
            longer, shorter = self.min_size * math.sqrt(ratio), self.min_size / math.sqrt(ratio)
            sizes += [(longer, shorter), (shorter, longer)]
        return np.minimum(np.array(sizes, "float32"), self.largest or np.inf)

    def call(self, feature_map):
        """feature_map [B, H, W, channels] or (H, W) -> [H * W * P, 4], row by row, then cell by cell."""
        height, width = feature_map if isinstance(feature_map, tuple) else ops.shape(feature_map)[1:3]
        x = (ops.arange(width, dtype="float32") + self.offset) * self.step
        y = (ops.arange(height, dtype="float32") + self.offset) * self.step
        y, x = ops.meshgrid(y, x, indexing="ij")
        centres = ops.reshape(ops.stack([x, y], axis=-1), (-1, 1, 2))
        half = self.sizes() / 2
        return ops.reshape(ops.concatenate([centres - half, centres + half], axis=-1), (-1, 4))

    def get_config(self):
        return {
            **super().get_config(),
            "min_size": self.min_size,
            "max_size": self.max_size,
            "aspect_ratios": self.aspect_ratios,
            "step": self.step,
            "offset": self.offset,
            "largest": self.largest,
        }


def ssd_sizes(image_size, num_levels, first_ratio, min_ratio, max_ratio=0.9, floor_step=True):
    """The (min_sizes, max_sizes) of SSD's priors, finest level first, in pixels.

    s_k = s_min + (s_max - s_min) / (m - 1) * (k - 1) for the m = num_levels - 1 coarser levels; the finest level is set
    apart with `first_ratio`. Each level's max_size is the next one's min_size. The released code floors the step to
    whole percents (17 % for SSD300 on VOC: 60, 111, 162, 213, 264 pixels); the paper's formula, `floor_step=False`,
    gives 60, 112.5, 165, 217.5, 270.

    Args:
        first_ratio, min_ratio, max_ratio: of the image size: 0.1, 0.2, 0.9 in SSD300 on VOC; 0.07, 0.15, 0.9 in SSD300
            on COCO and SSD512 on VOC; 0.04, 0.1, 0.9 in SSD512 on COCO.
    """
    first, low, high = (round(100 * ratio, 6) for ratio in (first_ratio, min_ratio, max_ratio))
    step = (high - low) / (num_levels - 2)
    step = math.floor(step) if floor_step else step
    percents = [first] + [low + step * k for k in range(num_levels)]
    sizes = [image_size * percent / 100 for percent in percents]
    return tuple(sizes[:-1]), tuple(sizes[1:])
