import keras
import numpy as np
import pytest
import safetensors.numpy

from tfdet.backbones import keypoints
from tfdet.upsampling import DepthwiseConv2DTranspose


@pytest.fixture
def image():
    """A function (side) -> noise [1, side, side, 3] in 0..255."""
    return lambda side: np.random.RandomState(0).uniform(0, 255, (1, side, side, 3)).astype(np.float32)


@pytest.fixture
def released(seeded, tmp_path):
    """A function (model) -> a file with tensors of all its layers, named and laid out as CenterNet's code has them.

    The reference numbers come from that code (with torchvision's deformable convolution) with these tensors, but for
    a first convolution that takes BGR, as here. Offsets are about a pixel.
    """

    def make(model):
        state = {"hm.0.weight": np.zeros((64, 64, 3, 3), np.float32)}  # a head, which is not read
        for layer, name in keypoints.torch_names(model):
            if isinstance(layer, keras.layers.BatchNormalization):
                shapes = dict.fromkeys(("weight", "bias", "running_mean", "running_var"), layer.gamma.shape)
            else:
                depthwise = isinstance(layer, DepthwiseConv2DTranspose)
                axes = (2, 3, 0, 1) if depthwise else (3, 2, 0, 1)
                shapes = {"weight": [layer.kernel.shape[axis] for axis in axes]}
                shapes |= {"bias": layer.bias.shape} if layer.use_bias else {}
            for tensor, shape in shapes.items():
                key = f"{name}.{tensor}"
                state[key] = seeded(key, tuple(shape)) * np.float32(0.05 if "conv_offset_mask" in key else 1)
        safetensors.numpy.save_file(state, tmp_path / "released.safetensors")
        return tmp_path / "released.safetensors"

    return make


@pytest.fixture
def assert_map():
    """A function (map [1, H, W, C], (its mean, first four numbers, last four)) that compares."""

    def compare(values, expected):
        mean, first, last = expected
        np.testing.assert_allclose(np.mean(values), mean, rtol=1e-5)
        np.testing.assert_allclose(values[0, 0, 0, :4], first, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(values[0, -1, -1, -4:], last, rtol=1e-4, atol=1e-4)

    return compare
