"""What the backbones of the keypoint detectors share: CenterNet (Objects as Points), CornerNet, ExtremeNet.

They go down to a coarse map and come back to one of stride 4: {"stack1": [B, H/4, W/4, channels]}, and "stack2" where
the network does so twice. The last is read for detections; each of them is trained.
"""

import keras
import numpy as np

from ..deformable import DeformableConv2D
from ..errors import TfdetError
from ..weights import load_torch, read_state_dict
from .normalization import BatchNorm

# Of the released code, turned around: there they are BGR, as OpenCV reads images.
MEAN, STD = np.array([0.47026115, 0.44719302, 0.40789654]), np.array([0.27809835, 0.27408164, 0.28863828])
PIXELS = ((1 / (255 * STD)).tolist(), (-MEAN / STD).tolist())

# Tensors that no layer reads: the classifier of DLA-34, and projections of trees whose trees have their own
UNUSED = ("base.fc.", "base.level3.project.", "base.level4.project.")
FIRST_CONVOLUTIONS = ("conv1.weight", "base.base_layer.0.weight", "pre.0.conv.weight")


@keras.saving.register_keras_serializable("tfdet")
class Sides(keras.layers.Layer):
    """Refuses images whose sides the network could not bring back to a map of stride 4, where the sides are known.

    Legal are multiples, and one pixel less: CornerNet's 511, which every stage that halves rounds up.

    Raises: TfdetError.
    """

    def __init__(self, multiple, dtype="float32", **kwargs):
        super().__init__(dtype=dtype, **kwargs)
        self.multiple = multiple

    def call(self, image):
        bad = [side for side in image.shape[1:3] if side is not None and -side % self.multiple > 1]
        if bad:
            raise TfdetError(
                f"an image of {image.shape[1]} x {image.shape[2]} pixels: sides must be multiples of {self.multiple}, "
                "or one pixel less; pad it"
            )
        return image

    def get_config(self):
        return {**super().get_config(), "multiple": self.multiple}


def normalized_image(multiple):
    """The input, and the same normalised. Layers here carry their names in the released checkpoints, dots and all."""
    image = keras.Input((None, None, 3), name="image")
    x = Sides(multiple, name="sides")(image)
    return image, keras.layers.Rescaling(*PIXELS, dtype="float32", name="normalization")(x)


def convolution(x, channels, size, stride, conv_name, norm_name, relu=True):
    """Convolution, batch normalisation and ReLU; starts as PyTorch's, uniform in +-1/sqrt(fan in)."""
    if stride > 1 and size > 1:  # "same" pads an even map at its end only
        x = keras.layers.ZeroPadding2D(size // 2, name=f"{conv_name}.pad")(x)
    elif stride > 1:
        # The gradient of a strided 1x1 convolution of less than 16 channels breaks the memory (TensorFlow 2.21, oneDNN)
        x = keras.layers.MaxPooling2D(1, stride, name=f"{conv_name}.every_other")(x)
        stride = 1
    padding = "same" if stride == 1 else "valid"
    uniform = keras.initializers.VarianceScaling(1 / 3, "fan_in", "uniform")
    x = keras.layers.Conv2D(
        channels, size, stride, padding, use_bias=False, kernel_initializer=uniform, name=conv_name
    )(x)
    return normalized(x, norm_name, relu)


def normalized(x, name, relu=True):
    x = BatchNorm(name=name)(x)
    return keras.layers.ReLU(name=f"{name}.relu")(x) if relu else x


def point_map(x, channels, count, name, rare=False):
    """A 3x3 and a 1x1 convolution, with biases and a ReLU between them, to a map of `count` channels.

    rare: it starts with a probability of 0.1 everywhere.
    """
    uniform = keras.initializers.VarianceScaling(1 / 3, "fan_in", "uniform")
    bias = keras.initializers.Constant(-2.19 if rare else 0.0)
    x = keras.layers.Conv2D(channels, 3, padding="same", kernel_initializer=uniform, name=f"{name}.0.conv")(x)
    x = keras.layers.ReLU(name=f"{name}.0.relu")(x)
    return keras.layers.Conv2D(count, 1, kernel_initializer=uniform, bias_initializer=bias, name=f"{name}.1")(x)


def torch_names(model):
    """Pairs each layer with its name in a released CenterNet or CornerNet checkpoint, for `load_torch`.

    Layers of the ResNets have torchvision's names, "." written "_"; the others keep the dots, because those names have
    underscores of their own. A deformable convolution's offsets come from a layer inside of it.
    """
    pairs = []
    for layer in model.layers:
        if layer.weights:
            name = layer.name if "." in layer.name else layer.name.replace("_", ".")
            pairs.append((layer, name))
            if isinstance(layer, DeformableConv2D):
                pairs.append((layer.offset_convolution, f"{name}.conv_offset_mask"))
    return pairs


def to_rgb(state):
    """The state dict of a checkpoint of CenterNet or CornerNet, its first convolution turned around to take RGB."""
    return {
        key: value[:, ::-1] if key in FIRST_CONVOLUTIONS and value.ndim == 4 else value for key, value in state.items()
    }


def load(model, weights, decoder, classifier=""):
    """Loads a released CenterNet or CornerNet checkpoint, whose heads are not read, or a classifier of ImageNet.

    Args:
        weights: the file.
        decoder: prefix, or tuple of prefixes, of the names of the layers that a classifier has not.
        classifier: what the released checkpoints put before a classifier's names.
    Raises: WeightsError if the file cannot be read or does not fit.
    """
    pairs, state = torch_names(model), read_state_dict(weights)
    if any(key.startswith(decoder) for key in state):
        state = to_rgb(state)
    else:
        pairs = [(layer, name) for layer, name in pairs if not name.startswith(decoder)]
        state = {classifier + key: value for key, value in state.items()}
    modules = {name.split(".")[0] for _, name in pairs}
    state = {key: value for key, value in state.items() if key.split(".")[0] in modules}
    load_torch(pairs, state, weights, ignore=UNUSED)
