"""Where detectors that regress from fixed boxes put those boxes."""

import itertools
import math

import keras
import numpy as np
from keras import ops

from tfdet.errors import TfdetError


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
        return _around_every_cell(feature_map, (self.step,) * 2, self.offset, self.sizes())

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


@keras.saving.register_keras_serializable("tfdet")
class AnchorGenerator(keras.layers.Layer):
    """The anchors of one feature map of Faster R-CNN, FPN or RetinaNet, in pixels of the fed image.

    A cell at row i and column j has its centre at ((j + offset) * stride, (i + offset) * stride), and there an anchor
    of each size and ratio: its area is size ** 2, its height divided by its width is the ratio.

        Faster R-CNN   AnchorGenerator((128, 256, 512), (0.5, 1, 2), stride=16)
        FPN            AnchorGenerator((size,), (0.5, 1, 2), stride) with 32, 64, ... 512 on strides 4, 8, ... 64
        RetinaNet      AnchorGenerator([size * 2 ** (k / 3) for k in range(3)], (0.5, 1, 2), stride)
                       with size 32, 64, ... 512 on strides 8, 16, ... 128

    Published weights fit only the anchors they were trained with, and the released codes differ:

        detectron2          size_major=True
        mmdetection         the defaults
        torchvision         rounded=True, and its RetinaNet cuts the sizes to whole pixels: 32, 40, 50
        py-faster-rcnn      offset=0.5, and other sides: it rounds the sides of a 16 x 16 box of each ratio before it
                            enlarges them and counts a side from x1 to x2 as x2 - x1 + 1. Its 128-pixel anchors are
                            184 x 96, 128 x 128 and 88 x 176; ours are 181.0 x 90.5, 128 x 128 and 90.5 x 181.0.

    Args:
        sizes: square roots of the areas, pixels.
        aspect_ratios: height / width.
        stride: pixels of the fed image between two cells.
        offset: of the centre inside the cell, in cells; 0.5 is the middle.
        size_major: all ratios of the first size come first; otherwise all sizes of the first ratio.
        rounded: half the sides are rounded to whole pixels, halves to even.
    """

    def __init__(self, sizes, aspect_ratios, stride, offset=0.0, size_major=False, rounded=False, **kwargs):
        super().__init__(**kwargs)
        self.sizes, self.aspect_ratios = tuple(sizes), tuple(aspect_ratios)
        self.stride, self.offset = stride, offset
        self.size_major, self.rounded = size_major, rounded
        self._allow_non_tensor_positional_args = True  # (H, W) will do instead of a feature map

    @property
    def num_anchors(self):
        """A, the anchors of one cell."""
        return len(self.sizes) * len(self.aspect_ratios)

    def widths_and_heights(self):
        """Of one cell's anchors, float32 [A, 2], in pixels."""
        sizes, ratios = np.array(self.sizes, "float64"), np.array(self.aspect_ratios, "float64")
        widths, heights = sizes / np.sqrt(ratios)[:, None], sizes * np.sqrt(ratios)[:, None]
        sides = np.stack([widths, heights], axis=-1)  # [ratios, sizes, 2]
        if self.size_major:
            sides = sides.swapaxes(0, 1)
        if self.rounded:
            sides = 2 * np.round(sides / 2)
        return sides.reshape(-1, 2).astype("float32")

    def call(self, feature_map, strides=None):
        """feature_map [B, H, W, channels] or (H, W) -> [H * W * A, 4], row by row, then cell by cell.

        strides: (vertical, horizontal), where they are not the generator's own.
        """
        return _around_every_cell(feature_map, strides or (self.stride,) * 2, self.offset, self.widths_and_heights())

    def get_config(self):
        return {
            **super().get_config(),
            "sizes": self.sizes,
            "aspect_ratios": self.aspect_ratios,
            "stride": self.stride,
            "offset": self.offset,
            "size_major": self.size_major,
            "rounded": self.rounded,
        }


@keras.saving.register_keras_serializable("tfdet")
class PointGenerator(keras.layers.Layer):
    """The locations of one feature map of FCOS: of each cell one point, in pixels of the fed image.

    A cell at row i and column j has it at ((j + offset) * stride, (i + offset) * stride). The released code's lies in
    the middle, torchvision's (offset=0) in the corner.

    Args:
        stride: pixels of the fed image between two cells.
        offset: of the point inside the cell, in cells.
    """

    num_anchors = 1

    def __init__(self, stride, offset=0.5, **kwargs):
        super().__init__(**kwargs)
        self.stride, self.offset = stride, offset
        self._allow_non_tensor_positional_args = True  # (H, W) will do instead of a feature map

    def call(self, feature_map, strides=None):
        """feature_map [B, H, W, channels] or (H, W) -> x, y and the stride [H * W, 3], row by row.

        strides: (vertical, horizontal) between two points, where they are not the generator's own.
        """
        centres = _centres(feature_map, strides or (self.stride,) * 2, self.offset)
        return ops.pad(centres, [[0, 0], [0, 1]], constant_values=self.stride)

    def get_config(self):
        return {**super().get_config(), "stride": self.stride, "offset": self.offset}


def _around_every_cell(feature_map, steps, offset, sizes):
    """Boxes [H * W * P, 4] of the widths and heights `sizes` [P, 2] around the centre of each cell, row by row."""
    centres, half = _centres(feature_map, steps, offset)[:, None], sizes / 2
    return ops.reshape(ops.concatenate([centres - half, centres + half], axis=-1), (-1, 4))


def _centres(feature_map, steps, offset):
    """x and y [H * W, 2] of the centre of each cell, row by row; steps: (vertical, horizontal) pixels."""
    height, width = feature_map if isinstance(feature_map, tuple) else ops.shape(feature_map)[1:3]
    y = (ops.arange(height, dtype="float32") + offset) * ops.cast(steps[0], "float32")
    x = (ops.arange(width, dtype="float32") + offset) * ops.cast(steps[1], "float32")
    y, x = ops.meshgrid(y, x, indexing="ij")
    return ops.reshape(ops.stack([x, y], axis=-1), (-1, 2))


def per_anchor(feature_map, channels):
    """[B, H, W, A * channels] -> float32 [B, H * W * A, channels], in the order of the anchors.

    In float32 also under mixed precision: so leave the raw outputs of a network.
    """
    _, height, width, depth = ops.shape(feature_map)
    return ops.cast(ops.reshape(feature_map, (-1, height * width * (depth // channels), channels)), "float32")


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


def sizes_of_levels(sizes, strides):
    """The sizes of anchors, as they came.

    Raises:
        TfdetError: they are not one for each level.
    """
    if len(sizes) != len(strides):
        raise TfdetError(f"{len(sizes)} sizes of anchors ({', '.join(map(str, sizes))}) for {len(strides)} levels")
    return sizes


class AnchorPyramid:
    """The anchors, or points, of all levels for an image of any size, and the way between one list and a map a level.

    The image is thought to be padded to a multiple of 32 at the right and at the bottom (tfdet.resizers.ShortSide); a
    map of stride s then has the side of the padded image divided by s, rounded up.

    Args:
        generators: an AnchorGenerator, or a PointGenerator, for each level, finest first.
        fitted: torchvision's strides, which its published weights are trained with: the padded image's side divided by
            the map's, rounded down. They differ where the division is not exact: 800 / 13 is 61, not 64.
    """

    def __init__(self, generators, fitted=False):
        self.generators, self.fitted = tuple(generators), fitted

    def __call__(self, height, width):
        """Size of the image in pixels -> a tuple of float32 [H * W * A, 4], of points [H * W, 3], one a level."""
        padded_height, padded_width = self._padded(height, width)
        maps = zip(self.generators, self._maps(height, width), strict=True)
        if not self.fitted:
            return tuple(generator(size) for generator, size in maps)
        return tuple(generator((h, w), (padded_height // h, padded_width // w)) for generator, (h, w) in maps)

    def split(self, values, height, width):
        """One value for each anchor of an image of that size, [N, ...] -> a tuple of maps [H, W, A, ...].

        Targets of images that differ in size can be padded map by map to one batch, and still fit the anchors. (With
        `fitted` strides only nearly, as these follow the size of the batch.)
        """
        shapes = [(*size, g.num_anchors) for g, size in zip(self.generators, self._maps(height, width), strict=True)]
        ends = list(itertools.accumulate(h * w * a for h, w, a in shapes))
        starts = [0, *ends[:-1]]
        return tuple(
            ops.reshape(values[start:end], (*shape, *values.shape[1:]))
            for start, end, shape in zip(starts, ends, shapes, strict=True)
        )

    def join(self, maps, *channels):
        """Maps [B, H, W, A, *channels] -> [B, N, *channels]: the way back, for a batch."""
        return ops.concatenate([ops.reshape(m, (ops.shape(m)[0], -1, *channels)) for m in maps], axis=1)

    def levels(self, height, width):
        """int32 [N]: the number of the level of each anchor of an image of that size, 0 being the finest."""
        maps = zip(self.generators, self._maps(height, width), strict=True)
        return ops.concatenate([ops.full((h * w * g.num_anchors,), i, "int32") for i, (g, (h, w)) in enumerate(maps)])

    def _padded(self, height, width):
        sides = [height, width]
        if not all(isinstance(side, int) for side in sides):
            sides = [ops.convert_to_tensor(side) for side in sides]  # a layer takes no mixture
        return [-(-side // 32) * 32 for side in sides]

    def _maps(self, height, width):
        padded = self._padded(height, width)
        if all(isinstance(side, int) for side in padded):
            return [tuple(-(-side // generator.stride) for side in padded) for generator in self.generators]
        # All at once: in a graph these few numbers cost as much time as many.
        strides = ops.array([[generator.stride] for generator in self.generators], padded[0].dtype)
        sizes = -(-ops.stack(padded) // strides)
        return [tuple(ops.unstack(size, 2)) for size in ops.unstack(sizes, len(self.generators))]


def inside(anchors, height, width, whole=False):
    """bool: is the centre of each anchor, or the whole of it, on the image and not on its padding?

    Args:
        anchors: [..., 4] xyxy pixels; height, width: of the image, of any shape that goes with [...].
    """
    x1, y1, x2, y2 = ops.unstack(anchors, 4, axis=-1)
    if not whole:
        x1 = x2 = (x1 + x2) / 2
        y1 = y2 = (y1 + y2) / 2
    width, height = ops.cast(width, "float32"), ops.cast(height, "float32")
    return (x1 >= 0) & (y1 >= 0) & (x2 <= width) & (y2 <= height)
