"""ResNet, or MobileNetV2, with three up-convolutions back to stride 4 (Xiao et al., arXiv 1804.06208).

CenterNet's networks have two forms:

    ResNet's C5 -> 4x4 transposed conv (stride 2) -> batch normalisation, ReLU; three times
    _dcn: before each of them a 3x3 deformable conv, batch normalisation, ReLU, which narrows the map

Source: xingyizhou/CenterNet, `models/networks/msra_resnet.py` and `resnet_dcn.py`; the layers have its names.
"""

import keras

from ..deformable import DeformableConv2D
from ..errors import WeightsError
from ..upsampling import bilinear_first
from . import resnet
from .keypoints import PIXELS, Sides, load, normalized
from .mobilenet import mobilenet_v2


def resnet18_up(weights=None):
    """Builds ResNet-18 with plain up-convolutions, 256 channels. See `resnet18_dcn`."""
    return _build("resnet18_up", (2, 2, 2, 2), False, (256, 256, 256), False, weights)


def resnet101_up(weights=None):
    """Builds ResNet-101 with plain up-convolutions, 256 channels. See `resnet18_dcn`."""
    return _build("resnet101_up", (3, 4, 23, 3), True, (256, 256, 256), False, weights)


def resnet18_dcn(weights=None):
    """Builds ResNet-18 with deformable convolutions on the way up, 64 channels.

    Args:
        weights: None (random), or a file: a released CenterNet checkpoint such as ctdet_coco_resdcn18.pth, whose heads
            are not read, or torchvision's state dict of the ResNet, after which the way up starts random.
    Returns: keras.Model, RGB images float32 [B, H, W, 3] in 0..255 -> {"stack1": [B, H/4, W/4, channels]}. Sides must
        be multiples of 32, or one pixel less. (The original takes any, but its map is then not a quarter.)
    Raises: WeightsError if the file cannot be read or does not fit.
    """
    return _build("resnet18_dcn", (2, 2, 2, 2), False, (256, 128, 64), True, weights)


def resnet101_dcn(weights=None):
    """Builds ResNet-101 with deformable convolutions on the way up, 64 channels. See `resnet18_dcn`."""
    return _build("resnet101_dcn", (3, 4, 23, 3), True, (256, 128, 64), True, weights)


def resnet_slim_up():
    """Builds `resnet_slim` with plain up-convolutions, 64 channels, to be trained from nothing on a CPU."""
    return _build("resnet_slim_up", (1, 1, 1, 1), False, (64, 64, 64), False, None, width=16)


def mobilenet_v2_up(weights=None):
    """Builds MobileNetV2 with plain up-convolutions, 64 channels: not CenterNet's, but one that a CPU can fine-tune.

    weights: of MobileNetV2, as `mobilenet_v2` takes them. Sides must be multiples of 32. Returns: as the others.
    """
    backbone = mobilenet_v2(weights)
    x = _up(backbone.output["C5"], (64, 64, 64), deformable=False)
    return keras.Model(backbone.input, {"stack1": x}, name="mobilenet_v2_up")


def _build(name, blocks, bottleneck, channels, deformable, weights, width=64):
    """Args: channels: of each up-convolution; deformable: whether such convolutions go before; width: of the ResNet."""
    if weights == "imagenet":
        raise WeightsError(f"{name}: Keras has no imagenet weights of it; pass a file with torchvision's state dict")
    image = keras.Input((None, None, 3), name="image")
    x = Sides(32, name="sides")(image)
    x = resnet.features(x, blocks, bottleneck, "batch", PIXELS, width=width)["C5"]
    model = keras.Model(image, {"stack1": _up(x, channels, deformable)}, name=name)
    if weights is not None:
        load(model, weights, decoder="deconv_layers.")
    return model


def _up(x, channels, deformable):
    number = 0  # in PyTorch's sequence of all these layers, where a ReLU counts as well
    for filters in channels:
        if deformable:
            x = DeformableConv2D(filters, name=f"deconv_layers.{number}")(x)
            x = normalized(x, f"deconv_layers.{number + 1}")
            number += 3
        start = bilinear_first if deformable else keras.initializers.RandomNormal(stddev=0.001)
        up = keras.layers.Conv2DTranspose(
            filters, 4, 2, "same", use_bias=False, kernel_initializer=start, name=f"deconv_layers.{number}"
        )
        x = normalized(up(x), f"deconv_layers.{number + 1}")
        number += 3
    return x
