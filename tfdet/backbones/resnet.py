"""ResNet (He et al., arXiv 1512.03385), in the form that detectors use: each stage's last map is handed out.

    image 0..255 -> normalised -> 7x7 conv (stride 2) -> 3x3 max-pool (stride 2) -> layer1 -> C2 -> layer2 -> C3 -> ...
    basic block: 3x3, 3x3; bottleneck: 1x1, 3x3, 1x1 (four times as wide); the block's input is added, then ReLU

Layout and names follow torchvision's `models/resnet.py`: in a bottleneck the 3x3 convolution has the stride ("v1.5"),
where the paper's first 1x1 has it.
"""

import keras

from ..errors import TfdetError, WeightsError
from ..weights import keras_application, load_arrays, load_torch, read_state_dict
from .normalization import BatchNorm, FrozenBatchNorm
from .vgg import TORCH_PIXELS

KERAS_PIXELS = ([1.0, 1.0, 1.0], [-123.68, -116.779, -103.939])  # keras.applications: x - mean


def resnet18(weights=None, norm=None, trainable_stages=None):
    """Builds ResNet-18; its maps have 64, 128, 256 and 512 channels. See `resnet50`."""
    return _build("resnet18", (2, 2, 2, 2), False, weights, norm, trainable_stages)


def resnet34(weights=None, norm=None, trainable_stages=None):
    """Builds ResNet-34; its maps have 64, 128, 256 and 512 channels. See `resnet50`."""
    return _build("resnet34", (3, 4, 6, 3), False, weights, norm, trainable_stages)


def resnet50(weights=None, norm=None, trainable_stages=None):
    """Builds ResNet-50.

    Args:
        weights: None (random); a file with torchvision's state dict (outputs are torchvision's); or "imagenet", Keras'
            download, for ResNet-50 and 101 only. Keras' weights were trained with the stride in the first 1x1
            convolution and another epsilon and pixel range: the network follows.
        norm: "batch" (live; one set of statistics over all replicas), "frozen" (see FrozenBatchNorm) or "group" (32
            groups; no weights can be loaded then). None is "frozen" with weights and "batch" without.
        trainable_stages: how many of stem, layer1 .. layer4 are trained, counted from the end: 5 is all, 3 leaves out
            the stem and layer1. Batch normalisation in the others stands still too. None is 3 with weights and 5
            without, as in torchvision's detectors.
    Returns: keras.Model, RGB images float32 [B, H, W, 3] in 0..255 -> {"C2": [B, H/4, W/4, 256],
        "C3": [B, H/8, W/8, 512], "C4": [B, H/16, W/16, 1024], "C5": [B, H/32, W/32, 2048]};
        sizes are rounded up: 300 -> 75, 38, 19, 10.
    Raises: WeightsError if the file cannot be read or does not fit; TfdetError for arguments that cannot be.
    """
    return _build("resnet50", (3, 4, 6, 3), True, weights, norm, trainable_stages, keras.applications.ResNet50)


def resnet101(weights=None, norm=None, trainable_stages=None):
    """Builds ResNet-101; its maps have 256, 512, 1024 and 2048 channels. See `resnet50`."""
    return _build("resnet101", (3, 4, 23, 3), True, weights, norm, trainable_stages, keras.applications.ResNet101)


def resnet_slim():
    """Builds a ResNet with one basic block a stage and a quarter of the width, to be trained from nothing on a CPU.

    Returns: as `resnet50`; its maps have 16, 32, 64 and 128 channels.
    """
    return _network("resnet_slim", (1, 1, 1, 1), False, "batch", TORCH_PIXELS, width=16)


def torch_names(model, prefix=""):
    """Pairs each layer of a ResNet with torchvision's name of it: layer1_0_conv1 is layer1.0.conv1."""
    return [(layer, prefix + layer.name.replace("_", ".")) for layer in model.layers if layer.weights]


def _build(name, blocks, bottleneck, weights, norm, trainable_stages, application=None):
    norm = norm or ("batch" if weights is None else "frozen")
    if norm not in ("batch", "frozen", "group"):
        raise TfdetError(f"{name}: norm must be batch, frozen or group, not {norm!r}")
    if trainable_stages is None:
        trainable_stages = 5 if weights is None else 3
    if trainable_stages not in range(6):
        raise TfdetError(f"{name}: trainable_stages must be 0 .. 5, not {trainable_stages!r}")
    if norm == "group" and weights is not None:
        raise TfdetError(f"{name}: {weights} was trained with batch normalisation: norm='group' cannot take it")

    if weights == "imagenet":
        if application is None:
            raise WeightsError(
                f"{name}: Keras has no imagenet weights of it; pass a file with torchvision's state dict"
            )
        model = _network(name, blocks, bottleneck, norm, KERAS_PIXELS, stride_first=True, epsilon=1.001e-5)
        _load_keras(model, keras_application(application, include_top=False))
    else:
        model = _network(name, blocks, bottleneck, norm, TORCH_PIXELS)
        if weights is not None:
            load_torch(torch_names(model), read_state_dict(weights), weights, ignore="fc.")

    stages = (("conv1", "bn1"), "layer1", "layer2", "layer3", "layer4")
    for stage in stages[: 5 - trainable_stages]:
        for layer in model.layers:
            if layer.name.startswith(stage):
                layer.trainable = False
    return model


def _network(name, *arguments, **keywords):
    """The network of `features`, from an input of its own."""
    image = keras.Input((None, None, 3), name="image")
    return keras.Model(image, features(image, *arguments, **keywords), name=name)


def features(image, blocks, bottleneck, norm, pixels, stride_first=False, epsilon=1e-5, width=64):
    """The maps {"C2": ..., ..., "C5": ...} of an image, [B, H, W, 3] in 0..255, symbolic as they are.

    The layers are named as torchvision names its modules, "." written "_": layer1_0_downsample_0.

    Args:
        blocks: their number in each stage.
        pixels: (scale, offset) of RGB pixels in 0..255.
        stride_first: a bottleneck has its stride in the first 1x1 convolution, not in the 3x3.
        epsilon: of batch normalisation.
        width: channels of the stem and of the first stage's 3x3 convolutions; each further stage has twice as many.
    """

    def convolution(x, channels, size, stride, conv_name, norm_name, relu=True):
        """Padded by hand where it strides: "same" pads an even map at its end only."""
        if stride > 1 and size > 1:
            x = keras.layers.ZeroPadding2D(size // 2, name=f"{conv_name}_pad")(x)
        padding = "same" if stride == 1 else "valid"
        # A fresh initializer each: one that is used twice gives equal numbers twice
        he_normal = keras.initializers.VarianceScaling(2.0, "fan_out", "untruncated_normal")
        x = keras.layers.Conv2D(
            channels, size, stride, padding, use_bias=False, kernel_initializer=he_normal, name=conv_name
        )(x)
        x = _normalization(norm, epsilon, norm_name)(x)
        return keras.layers.ReLU(name=f"{norm_name}_relu")(x) if relu else x

    def block(x, width, stride, block_name):
        if bottleneck:
            first, second = (stride, 1) if stride_first else (1, stride)
            layers = ((width, 1, first), (width, 3, second), (4 * width, 1, 1))
        else:
            layers = ((width, 3, stride), (width, 3, 1))
        channels, shortcut = layers[-1][0], x
        if stride > 1 or x.shape[-1] != channels:
            names = (f"{block_name}_downsample_0", f"{block_name}_downsample_1")
            shortcut = convolution(x, channels, 1, stride, *names, relu=False)
        for i, layer in enumerate(layers, 1):
            x = convolution(x, *layer, f"{block_name}_conv{i}", f"{block_name}_bn{i}", relu=i < len(layers))
        x = keras.layers.Add(name=f"{block_name}_add")([x, shortcut])
        return keras.layers.ReLU(name=f"{block_name}_relu")(x)

    scale, offset = pixels
    x = keras.layers.Rescaling(scale, offset, dtype="float32", name="normalization")(image)
    x = convolution(x, width, 7, 2, "conv1", "bn1")
    # After a ReLU a border of zeros is as good as the border of -inf that PyTorch pools over
    x = keras.layers.ZeroPadding2D(1, name="maxpool_pad")(x)
    x = keras.layers.MaxPooling2D(3, 2, name="maxpool")(x)
    maps = {}
    for stage, count in enumerate(blocks, 1):
        for i in range(count):
            x = block(x, width * 2 ** (stage - 1), 2 if stage > 1 and i == 0 else 1, f"layer{stage}_{i}")
        maps[f"C{stage + 1}"] = x
    return maps


def _normalization(norm, epsilon, name):
    if norm == "group":
        return keras.layers.GroupNormalization(32, epsilon=epsilon, name=name)
    if norm == "frozen":
        return FrozenBatchNorm(epsilon=epsilon, name=name)
    return BatchNorm(epsilon=epsilon, name=name)


def _load_keras(model, source):
    """Takes the weights of keras.applications' ResNet, whose layer1.0.conv1 is called conv2_block1_1_conv."""
    for layer, name in torch_names(model):
        match name.split("."):
            case [stem]:
                theirs = f"conv1_{stem.rstrip('1')}"
            case [stage, index, "downsample", part]:
                theirs = f"{_keras_block(stage, index)}_0_{('conv', 'bn')[int(part)]}"
            case [stage, index, part]:
                theirs = f"{_keras_block(stage, index)}_{part[-1]}_{part[:-1]}"
        arrays = source.get_layer(theirs).get_weights()
        if theirs.endswith("_conv"):
            kernel, _ = arrays
            # Caffe's images are BGR, ours RGB
            arrays = [kernel[:, :, ::-1] if name == "conv1" else kernel]
        else:
            # The bias of the convolution before, which ours has not, comes off the mean
            _, bias = source.get_layer(theirs.removesuffix("_bn") + "_conv").get_weights()
            gamma, beta, mean, variance = arrays
            arrays = [gamma, beta, mean - bias, variance]
        load_arrays(layer, arrays, source.name)


def _keras_block(stage, index):
    """layer1.0 -> conv2_block1."""
    return f"conv{int(stage[-1]) + 1}_block{int(index) + 1}"
