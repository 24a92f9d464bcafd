"""DLA-34 (Deep Layer Aggregation, Yu et al., arXiv 1707.06484), and the way back to stride 4 of CenterNet.

    image -> 7x7, 3x3, 3x3 (stride 2) -> four trees (strides 4, 8, 16, 32; 64, 128, 256, 512 channels)
    tree of one level: block, block; both outputs are joined and go through a 1x1 convolution, the root
    tree of two: two such trees, the second of which joins what the first gave as well

    aggregation: the coarser map -> deformable conv -> enlarged -> + the finer map -> deformable conv, from map to map.
    Thrice, each time beginning at a finer map; then once over the last maps of the three, which gives stride 4.

Source: xingyizhou/CenterNet, `models/networks/pose_dla_dcn.py`; the layers have its names.
"""

import keras

from ..deformable import DeformableConv2D
from ..upsampling import DepthwiseConv2DTranspose
from .keypoints import convolution, load, normalized, normalized_image


def dla34(weights=None):
    """Builds DLA-34 with deformable aggregation, 18.4 million weights.

    Args:
        weights: None (random), or a file: a released CenterNet checkpoint such as ctdet_coco_dla_2x.pth, whose heads
            are not read, or DLA-34's classifier of ImageNet, after which the aggregation starts random.
    Returns: keras.Model, RGB images float32 [B, H, W, 3] in 0..255 -> {"stack1": [B, H/4, W/4, 64]}. Sides must be
        multiples of 32, or one pixel less.
    Raises: WeightsError if the file cannot be read or does not fit.
    """
    image, x = normalized_image(multiple=32)
    x = convolution(x, 16, 7, 1, "base.base_layer.0", "base.base_layer.1")
    x = convolution(x, 16, 3, 1, "base.level0.0", "base.level0.1")
    x = convolution(x, 32, 3, 2, "base.level1.0", "base.level1.1")
    stride4 = _tree(x, 1, 64, 2, "base.level2")
    stride8 = _tree(stride4, 2, 128, 2, "base.level3", joins_input=True)
    stride16 = _tree(stride8, 2, 256, 2, "base.level4", joins_input=True)
    stride32 = _tree(stride16, 1, 512, 2, "base.level5", joins_input=True)

    maps = [stride4, stride8, stride16, stride32]
    last = []
    for i, finest in enumerate((2, 1, 0)):
        maps[finest:] = _aggregate(maps[finest:], 2, f"dla_up.ida_{i}")
        last.insert(0, maps[-1])
    *_, x = _aggregate(last, None, "ida_up")
    model = keras.Model(image, {"stack1": x}, name="dla34")
    if weights is not None:
        load(model, weights, decoder=("dla_up.", "ida_up."), classifier="base.")
    return model


def _tree(x, levels, channels, stride, name, joined=(), joins_input=False):
    """Args: joined: maps that the root joins besides the blocks' own; joins_input: whether it joins the input too."""
    bottom = keras.layers.MaxPooling2D(stride, name=f"{name}.downsample")(x) if stride > 1 else x
    joined = (*joined, bottom) if joins_input else joined
    if levels > 1:
        first = _tree(x, levels - 1, channels, stride, f"{name}.tree1")
        return _tree(first, levels - 1, channels, 1, f"{name}.tree2", (*joined, first))
    if x.shape[-1] != channels:
        bottom = convolution(bottom, channels, 1, 1, f"{name}.project.0", f"{name}.project.1", relu=False)
    first = _block(x, bottom, channels, stride, f"{name}.tree1")
    second = _block(first, first, channels, 1, f"{name}.tree2")
    x = keras.layers.Concatenate(name=f"{name}.root.concatenate")([second, first, *joined])
    return convolution(x, channels, 1, 1, f"{name}.root.conv", f"{name}.root.bn")


def _block(x, shortcut, channels, stride, name):
    x = convolution(x, channels, 3, stride, f"{name}.conv1", f"{name}.bn1")
    x = convolution(x, channels, 3, 1, f"{name}.conv2", f"{name}.bn2", relu=False)
    x = keras.layers.Add(name=f"{name}.add")([x, shortcut])
    return keras.layers.ReLU(name=f"{name}.relu")(x)


def _aggregate(maps, factor, name):
    """Iterative deep aggregation: each map is brought to the size of the finest and joins what was reached before it.

    Args:
        maps: finest first, of one size after the first (then `factor` is 2), or each half the one before (None).
    Returns: as many maps, all of the size and the channels of the first.
    """
    finest, *coarser = maps
    channels, done = finest.shape[-1], [finest]
    for i, x in enumerate(coarser, 1):
        x = _deformable(x, channels, f"{name}.proj_{i}")
        x = DepthwiseConv2DTranspose(factor or 2**i, name=f"{name}.up_{i}")(x)
        x = keras.layers.Add(name=f"{name}.add_{i}")([x, done[-1]])
        done.append(_deformable(x, channels, f"{name}.node_{i}"))
    return done


def _deformable(x, channels, name):
    x = DeformableConv2D(channels, name=f"{name}.conv")(x)
    return normalized(x, f"{name}.actf.0")
