"""The hourglass network of CornerNet (Law & Deng, arXiv 1808.01244, section 3.4), CenterNet and ExtremeNet.

    image -> 7x7 (stride 2) -> residual block (stride 2) -> hourglass -> 3x3 conv -> stack1 -> joined with what the
    hourglass was given -> residual block -> hourglass -> 3x3 conv -> stack2
    hourglass: residual blocks, and beside them: blocks of half the size -> hourglass -> blocks -> doubled; the sum

After Newell et al. (arXiv 1603.06937), but halving is done by blocks of stride 2, not by pooling, and the doubling
repeats pixels. Source: princeton-vl/CornerNet, `models/py_utils/kp.py`, and xingyizhou/CenterNet,
`models/networks/large_hourglass.py`, which is the same network; the layers have their names.
"""

import keras

from .keypoints import convolution, load, normalized_image


def hourglass104(weights=None):
    """Builds Hourglass-104: two stacks, 187.7 million weights.

    Args:
        weights: None (random), or a file: a released checkpoint of CenterNet or CornerNet, such as ctdet_coco_hg.pth
            or CornerNet_500000.pkl, whose heads are not read.
    Returns: as `hourglass`, 256 channels; sides must be multiples of 128, or one pixel less.
    Raises: WeightsError if the file cannot be read or does not fit.
    """
    model = hourglass((256, 256, 384, 384, 384, 512), (2, 2, 2, 2, 2, 4), name="hourglass104")
    if weights is not None:
        load(model, weights, decoder="kps.")
    return model


def hourglass54():
    """Builds two of the three modules of CornerNet-Saccade's Hourglass-54 (Law et al., arXiv 1904.08900).

    Two levels less deep than Hourglass-104, and one block on each. Sides must be multiples of 32, or one pixel less.
    """
    return hourglass((256, 384, 384, 512), (1, 1, 1, 1), name="hourglass54")


def hourglass_slim():
    """Builds one hourglass of 48 to 128 channels, to be trained from nothing on a CPU. Sides as of `hourglass54`."""
    return hourglass((48, 64, 96, 128), (1, 1, 1, 1), stacks=1, name="hourglass_slim")


def hourglass(channels, blocks, stacks=2, name="hourglass"):
    """Builds an hourglass network of any size, with random weights.

    Args:
        channels: of the maps of stride 4, 8, ..., as far as the hourglass goes down.
        blocks: residual blocks in a row, on each of these maps.
        stacks: hourglasses, one after the other.
    Returns: keras.Model, RGB images float32 [B, H, W, 3] in 0..255 -> {"stack1": [B, H/4, W/4, channels[0]], "stack2":
        the same, ...}. Sides must be multiples of 2 * 2**len(channels), or one pixel less.
    """
    width = channels[0]
    image, x = normalized_image(multiple=2 * 2 ** len(channels))
    x = convolution(x, width // 2, 7, 2, "pre.0.conv", "pre.0.bn")
    given = _residual(x, width, 2, "pre.1")
    outputs = {}
    for i in range(stacks):
        if i > 0:
            shortcut = convolution(given, width, 1, 1, f"inters_.{i - 1}.0", f"inters_.{i - 1}.1", relu=False)
            x = convolution(x, width, 1, 1, f"cnvs_.{i - 1}.0", f"cnvs_.{i - 1}.1", relu=False)
            given = _residual(_join([shortcut, x], f"inters.{i - 1}.join"), width, 1, f"inters.{i - 1}")
        x = _hourglass(given, channels, blocks, f"kps.{i}")
        x = convolution(x, width, 3, 1, f"cnvs.{i}.conv", f"cnvs.{i}.bn")
        outputs[f"stack{i + 1}"] = x
    return keras.Model(image, outputs, name=name)


def _hourglass(x, channels, blocks, name):
    outer, inner = channels[:2]
    beside = _residuals(x, [outer] * blocks[0], f"{name}.up1")
    x = _residuals(x, [inner] * blocks[0], f"{name}.low1", stride=2)
    if len(channels) > 2:
        x = _hourglass(x, channels[1:], blocks[1:], f"{name}.low2")
    else:
        x = _residuals(x, [inner] * blocks[1], f"{name}.low2")
    x = _residuals(x, [inner] * (blocks[0] - 1) + [outer], f"{name}.low3")
    x = keras.layers.UpSampling2D(2, name=f"{name}.up2")(x)
    return keras.layers.Add(name=f"{name}.merge")([beside, x])


def _residuals(x, channels, name, stride=1):
    for i, number in enumerate(channels):
        x = _residual(x, number, stride if i == 0 else 1, f"{name}.{i}")
    return x


def _residual(x, channels, stride, name):
    shortcut = x
    if stride > 1 or x.shape[-1] != channels:
        shortcut = convolution(x, channels, 1, stride, f"{name}.skip.0", f"{name}.skip.1", relu=False)
    x = convolution(x, channels, 3, stride, f"{name}.conv1", f"{name}.bn1")
    x = convolution(x, channels, 3, 1, f"{name}.conv2", f"{name}.bn2", relu=False)
    return _join([x, shortcut], name)


def _join(maps, name):
    x = keras.layers.Add(name=f"{name}.add")(maps)
    return keras.layers.ReLU(name=f"{name}.relu")(x)
