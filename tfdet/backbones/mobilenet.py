"""MobileNetV2 (Sandler et al., arXiv 1801.04381).

    image 0..255 -> normalised -> conv (stride 2) -> 17 inverted residual blocks -> 1x1 conv
    block: 1x1 expand, ReLU6 -> 3x3 depthwise, ReLU6 -> 1x1 project, and the input added where the shapes agree

Layout and names follow torchvision's `models/mobilenetv2.py`. The maps handed out are those of SSDLite (section 6.2 of
the paper): the expansion of the first block that leaves each stride, the last and widest thing computed at that stride.
"""

import keras

from ..weights import keras_application, load_arrays, load_torch, read_state_dict
from .normalization import BatchNorm
from .vgg import TORCH_PIXELS

# Table 2 of the paper: expansion, output channels, repetitions, stride of the first repetition.
BLOCKS = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
KERAS_PIXELS = ([1 / 127.5] * 3, [-1.0] * 3)  # keras.applications wants -1..1


def mobilenet_v2(weights=None):
    """Builds MobileNetV2, width 1.

    Args:
        weights: None (random); a file with torchvision's state dict (outputs are torchvision's); or "imagenet", Keras'
            download. Keras' weights were trained with another padding, epsilon and pixel range: the network follows.
    Returns: keras.Model, RGB images float32 [B, H, W, 3] in 0..255 ->
        {"C3": [B, H/8, W/8, 192], "C4": [B, H/16, W/16, 576], "C5": [B, H/32, W/32, 1280]};
        sizes are rounded up: 300 -> 38, 19, 10.
    Raises: WeightsError if the file cannot be read or does not fit.
    """
    if weights == "imagenet":
        source = keras_application(keras.applications.MobileNetV2, include_top=False)
        model = _network(KERAS_PIXELS, symmetric=False, epsilon=1e-3)
        # The same layers in the same order. Keras' own model is not handed out because it rounds odd maps down
        # when it is built for images of any size: 300 -> 37, 18, 9.
        for ours, theirs in zip(_weighted(model), _weighted(source), strict=True):
            load_arrays(ours, theirs.get_weights(), "keras.applications.MobileNetV2")
        return model
    model = _network(TORCH_PIXELS, symmetric=True, epsilon=1e-5)
    if weights is not None:
        load_torch(_torch_names(model), read_state_dict(weights), weights, ignore="classifier.")
    return model


def _network(pixels, symmetric, epsilon):
    """The layers are named as torchvision names its modules, "." written "_": features_7_conv_0_0.

    Args:
        pixels: (scale, offset) of RGB pixels in 0..255.
        symmetric: convolutions of stride 2 pad 1 pixel on every side, as PyTorch does. Otherwise TensorFlow's 'same',
            which pads an even side at its end only. The sizes are the same.
        epsilon: of batch normalisation.
    """

    def norm(x, name, relu=True):
        x = BatchNorm(epsilon=epsilon, name=name)(x)
        return keras.layers.ReLU(6.0, name=f"{name}_relu")(x) if relu else x

    def pad(x, stride, name):
        """Returns x and the padding that is left for a 3x3 convolution to do."""
        if stride == 2 and symmetric:
            return keras.layers.ZeroPadding2D(1, name=f"{name}_pad")(x), "valid"
        return x, "same"

    image = keras.Input((None, None, 3), name="image")
    scale, offset = pixels
    x = keras.layers.Rescaling(scale, offset, dtype="float32", name="normalization")(image)
    x, padding = pad(x, 2, "features_0")
    x = keras.layers.Conv2D(32, 3, strides=2, padding=padding, use_bias=False, name="features_0_0")(x)
    x = norm(x, "features_0_1")

    levels = {}  # stride -> the expansion last computed there before a block of stride 2
    index, stride_so_far, channels = 1, 2, 32
    for expansion, out_channels, repeats, first_stride in BLOCKS:
        for stride in (first_stride, *[1] * (repeats - 1)):
            block, shortcut, part = f"features_{index}_conv", x, 0
            if expansion != 1:
                x = keras.layers.Conv2D(expansion * channels, 1, use_bias=False, name=f"{block}_0_0")(x)
                x = norm(x, f"{block}_0_1")
                part = 1
            if stride == 2:
                levels[stride_so_far] = x
                stride_so_far *= 2
            x, padding = pad(x, stride, block)
            x = keras.layers.DepthwiseConv2D(3, stride, padding, use_bias=False, name=f"{block}_{part}_0")(x)
            x = norm(x, f"{block}_{part}_1")
            x = keras.layers.Conv2D(out_channels, 1, use_bias=False, name=f"{block}_{part + 1}")(x)
            x = norm(x, f"{block}_{part + 2}", relu=False)
            if stride == 1 and channels == out_channels:
                x = keras.layers.Add(name=f"{block}_add")([shortcut, x])
            index, channels = index + 1, out_channels

    x = keras.layers.Conv2D(1280, 1, use_bias=False, name=f"features_{index}_0")(x)
    x = norm(x, f"features_{index}_1")
    return keras.Model(image, {"C3": levels[8], "C4": levels[16], "C5": x}, name="mobilenet_v2")


def _weighted(model):
    """The convolutions and normalisations, in the order of the computation."""
    return [layer for layer in model.layers if layer.weights]


def _torch_names(model):
    """Pairs each layer with torchvision's name of it: features_7_conv_0_0 is features.7.conv.0.0."""
    return [(layer, layer.name.replace("_", ".")) for layer in _weighted(model)]
