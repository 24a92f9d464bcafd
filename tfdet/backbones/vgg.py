"""VGG16 (Simonyan & Zisserman, arXiv 1409.1556), plain and in the form in which SSD uses it.

    image 0..255 -> minus mean -> conv1_1 .. conv4_3 -> L2 norm x 20 -> C3 (stride 8)
    conv4_3 -> pool4 -> conv5_1 .. conv5_3 -> pool5 (stride 1) -> conv6 (dilated) -> conv7 -> C4 (stride 16)

Source of the reduced form: weiliu89/caffe, branch ssd, `VGGNetBody` (fully_conv, reduced, dilated) and
`normalize_layer.cpp`.
"""

import warnings

import keras
import numpy as np
from keras import ops

from ..errors import WeightsError
from ..weights import keras_application, load_arrays, read_state_dict

# Convolutions of each stage and their channels. conv4_3 is the third convolution of the fourth stage.
STAGES = ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512))
CONVOLUTIONS = tuple(f"conv{stage}_{i}" for stage, (count, _) in enumerate(STAGES, 1) for i in range(1, count + 1))
# Where torchvision's `vgg16().features` keeps them: activations and pools are counted there too.
TORCH_INDEX = dict(zip(CONVOLUTIONS, (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28), strict=True))

# (scale, offset) of RGB pixels in 0..255. Caffe's weights want x - mean, torchvision's (x / 255 - mean) / std.
CAFFE_PIXELS = ([1.0, 1.0, 1.0], [-123.0, -117.0, -104.0])
TORCH_MEAN, TORCH_STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
TORCH_PIXELS = ((1 / (255 * TORCH_STD)).tolist(), (-TORCH_MEAN / TORCH_STD).tolist())


@keras.saving.register_keras_serializable("tfdet")
class L2Normalization(keras.layers.Layer):
    """Divides each pixel's feature vector by its length, then multiplies every channel by a learned scale.

    conv4_3 has much larger activations than the deeper layers that SSD reads beside it (ParseNet, arXiv 1506.04579).
    [B, H, W, C] -> [B, H, W, C]. Computed in float32: squares overflow float16 and lose digits in bfloat16.

    Args:
        scale: the initial value of every channel's scale.
    """

    def __init__(self, scale=20.0, **kwargs):
        super().__init__(**kwargs)
        self.initial_scale = scale

    def build(self, input_shape):
        initializer = keras.initializers.Constant(self.initial_scale)
        self.scale = self.add_weight(name="scale", shape=(input_shape[-1],), initializer=initializer, autocast=False)

    def call(self, x):
        x = ops.cast(x, "float32")
        # eps lies under the root, as in Caffe: the gradient stays finite where all channels are 0
        x *= ops.rsqrt(ops.sum(ops.square(x), axis=-1, keepdims=True) + 1e-10)
        return ops.cast(x * self.scale, self.compute_dtype)

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {**super().get_config(), "scale": self.initial_scale}


def vgg16_reduced(weights=None):
    """Builds SSD's VGG16: fc6 and fc7 are convolutions (the first dilated, so that pool5 need not halve the map).

    Args:
        weights: None (random); "imagenet" (Keras' download, Caffe's weights); or a file: torchvision's vgg16, or Keras'
            `.weights.h5` or `.h5`. If it has no fully connected layers, conv6 and conv7 stay random, with a warning.
    Returns: keras.Model, RGB images float32 [B, H, W, 3] in 0..255 ->
        {"C3": [B, H/8, W/8, 512], "C4": [B, H/16, W/16, 1024]};
        sizes are rounded up, as Caffe's pools do: 300 -> 38 and 19.
    Raises: WeightsError if the file cannot be read or does not fit.
    """
    pixels, arrays = _read(weights)
    image = keras.Input((None, None, 3), name="image")
    conv4_3, conv5_3 = _convolutions(image, pixels)
    x = keras.layers.MaxPooling2D(3, strides=1, padding="same", name="pool5")(conv5_3)
    x = keras.layers.Conv2D(1024, 3, dilation_rate=6, padding="same", activation="relu", name="conv6")(x)
    conv7 = keras.layers.Conv2D(1024, 1, activation="relu", name="conv7")(x)
    outputs = {"C3": L2Normalization(name="conv4_3_norm")(conv4_3), "C4": conv7}
    model = keras.Model(image, outputs, name="vgg16_reduced")
    if "fc6" in arrays:
        arrays |= _reduce(*arrays.pop("fc6"), *arrays.pop("fc7"))
    elif arrays:
        warnings.warn(f"{weights}: has no fc6 and fc7: conv6 and conv7 keep their random initialisation", stacklevel=2)
    _load(model, arrays, weights)
    return model


def vgg16(weights=None):
    """Builds VGG16's convolutions as Faster R-CNN uses them.

    Returns: keras.Model, images -> {"C3": conv4_3 [B, H/8, W/8, 512], "C4": conv5_3 [B, H/16, W/16, 512]}.
    Arguments, images and errors are those of `vgg16_reduced`.
    """
    pixels, arrays = _read(weights)
    image = keras.Input((None, None, 3), name="image")
    conv4_3, conv5_3 = _convolutions(image, pixels)
    model = keras.Model(image, {"C3": conv4_3, "C4": conv5_3}, name="vgg16")
    _load(model, {name: arrays[name] for name in CONVOLUTIONS if name in arrays}, weights)
    return model


def vgg16_fully_connected(weights):
    """The weights of VGG16's fc6 and fc7, for a head that goes on with them.

    Args:
        weights: as for `vgg16_reduced`.
    Returns: {"fc6": (kernel [7 * 7 * 512, 4096], bias [4096]), "fc7": (kernel [4096, 4096], bias)}, of a region
        flattened pixel by pixel; empty where there are none, with a warning if it is a file that lacks them.
    """
    _, arrays = _read(weights)
    if "fc6" not in arrays:
        if arrays:
            warnings.warn(f"{weights}: has no fc6 and fc7: they keep their random initialisation", stacklevel=2)
        return {}
    kernel, bias = arrays["fc6"]
    return {"fc6": (kernel.reshape(-1, kernel.shape[-1]), bias), "fc7": arrays["fc7"]}


def _convolutions(image, pixels):
    """From the image to conv4_3 and conv5_3, both after their ReLU."""
    scale, offset = pixels
    x = keras.layers.Rescaling(scale, offset, dtype="float32", name="normalization")(image)
    last = []
    for stage, (count, channels) in enumerate(STAGES, 1):
        for i in range(1, count + 1):
            x = keras.layers.Conv2D(channels, 3, padding="same", activation="relu", name=f"conv{stage}_{i}")(x)
        last.append(x)
        if stage < 5:
            # 'same' rounds up, which is Caffe's rule: 75 -> 38
            x = keras.layers.MaxPooling2D(2, padding="same", name=f"pool{stage}")(x)
    return last[3], last[4]


def _load(model, arrays, source):
    for name, kernel_and_bias in arrays.items():
        load_arrays(model.get_layer(name), kernel_and_bias, source)


def _read(weights):
    """Reads what `weights` says.

    Returns: (scale, offset) of the pixels, and {layer name: (kernel, bias)} in Keras' layout; the kernel of fc6, if
        there is one, as [7, 7, 512, 4096].
    """
    if weights is None:
        return CAFFE_PIXELS, {}
    state = _imagenet() if weights == "imagenet" else read_state_dict(weights)
    if "block1_conv1/0" in state:
        return CAFFE_PIXELS, _from_keras(state, weights)
    if "features.0.weight" in state:
        return _from_torch(state, weights)
    some = ", ".join(list(state)[:3])
    raise WeightsError(
        f"{weights}: neither torchvision's VGG16 (features.0.weight) nor Keras' (block1_conv1): it holds {some}"
    )


def _imagenet():
    """Keras' VGG16 with its top, as `read_state_dict` would give it. 528 MB are downloaded once."""
    model = keras_application(keras.applications.VGG16, include_top=True)
    names = [_keras_name(name) for name in CONVOLUTIONS] + ["fc1", "fc2"]
    return {f"{name}/{i}": array for name in names for i, array in enumerate(model.get_layer(name).get_weights())}


def _keras_name(name):
    """conv4_3 -> block4_conv3."""
    return f"block{name[4]}_conv{name[6]}"


def _from_keras(state, source):
    arrays = {name: tuple(_take(state, f"{_keras_name(name)}/{i}", source) for i in (0, 1)) for name in CONVOLUTIONS}
    kernel, bias = arrays["conv1_1"]
    arrays["conv1_1"] = kernel[:, :, ::-1], bias  # Caffe's images are BGR, ours RGB
    if "fc1/0" in state:
        fc1, bias1, fc2, bias2 = (_take(state, name, source) for name in ("fc1/0", "fc1/1", "fc2/0", "fc2/1"))
        arrays |= {"fc6": (_unflatten(fc1, (25088, 4096), (7, 7, 512, 4096), source), bias1), "fc7": (fc2, bias2)}
    return arrays


def _from_torch(state, source):
    arrays = {}
    for name, index in TORCH_INDEX.items():
        kernel, bias = (_take(state, f"features.{index}.{part}", source) for part in ("weight", "bias"))
        arrays[name] = kernel.transpose(2, 3, 1, 0), bias
    if "classifier.0.weight" not in state:
        return TORCH_PIXELS, arrays
    names = ("classifier.0.weight", "classifier.0.bias", "classifier.3.weight", "classifier.3.bias")
    fc1, bias1, fc2, bias2 = (_take(state, name, source) for name in names)
    if np.isnan(fc1.flat[0]):
        # torchvision's VGG16_Weights.IMAGENET1K_FEATURES: SSD's own convolutions (RGB, x - mean) and no classifier
        return CAFFE_PIXELS, arrays
    fc1 = _unflatten(fc1, (4096, 25088), (4096, 512, 7, 7), source).transpose(2, 3, 1, 0)
    return TORCH_PIXELS, arrays | {"fc6": (fc1, bias1), "fc7": (fc2.T, bias2)}


def _reduce(fc1, bias1, fc2, bias2):
    """Thins fc1 [7, 7, I, N] and fc2 [N, N] out to convolutions, as DeepLab and SSD do.

    Every 3rd row and column and every 4th neuron are kept.
    """
    return {"conv6": (fc1[::3, ::3, :, ::4], bias1[::4]), "conv7": (fc2[None, None, ::4, ::4], bias2[::4])}


def _unflatten(kernel, expected, shape, source):
    if kernel.shape != expected:
        raise WeightsError(f"{source}: the first fully connected layer has shape {kernel.shape}, not {expected}")
    return kernel.reshape(shape)


def _take(state, name, source):
    if name not in state:
        raise WeightsError(f"{source}: does not fit VGG16: {name} is missing")
    return state[name]
