"""A VGG small enough to be trained from scratch on a CPU, for examples, tests and small data sets."""

import keras

from .normalization import BatchNorm
from .vgg import CAFFE_PIXELS


def vgg_slim():
    """Builds it: 3x3 convolutions with batch normalisation and 2x2 pools, as VGG, an eighth as wide, and less deep.

    The first convolution has stride 2, because most of VGG's time goes into the two at full resolution.
    0.21 GFLOPs (multiplications and additions) for 300 x 300 pixels; SSD's VGG16 needs 62. 119 thousand parameters.

    Returns: keras.Model, RGB images float32 [B, H, W, 3] in 0..255 ->
        {"C3": [B, H/8, W/8, 48], "C4": [B, H/16, W/16, 96]};
        sizes are rounded up, like those of `vgg16_reduced`: 300 -> 38 and 19.
    """
    image = keras.Input((None, None, 3), name="image")
    _, offset = CAFFE_PIXELS
    # Divided by 64 the pixels are of about unit variance, which weights that start random want
    x = keras.layers.Rescaling([1 / 64] * 3, [mean / 64 for mean in offset], dtype="float32", name="normalization")(
        image
    )
    x = _convolution(x, 16, "conv1", stride=2)
    x = _convolution(_halve(x), 24, "conv2")
    x = _convolution(_halve(x), 48, "conv3_1")
    c3 = _convolution(x, 48, "conv3_2")
    x = _convolution(_halve(c3), 64, "conv4_1")
    c4 = _convolution(x, 96, "conv4_2")
    return keras.Model(image, {"C3": c3, "C4": c4}, name="vgg_slim")


def _convolution(x, channels, name, stride=1):
    x = keras.layers.Conv2D(channels, 3, stride, padding="same", use_bias=False, name=name)(x)
    x = BatchNorm(name=f"{name}_norm")(x)
    return keras.layers.ReLU(name=f"{name}_relu")(x)


def _halve(x):
    return keras.layers.MaxPooling2D(2, padding="same")(x)
