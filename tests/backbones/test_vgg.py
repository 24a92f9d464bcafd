import warnings

import keras
import numpy as np
import pytest
import safetensors.numpy
import tensorflow as tf

from tfdet.backbones import vgg
from tfdet.errors import WeightsError

KERAS_NAMES = [f"block{stage}_conv{i}" for stage, n in enumerate((2, 2, 3, 3, 3), 1) for i in range(1, n + 1)]
SHAPES = {  # of torchvision's convolutions
    f"features.{index}": (out, into, 3, 3)
    for index, into, out in zip(
        (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28),
        (3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512),
        (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512),
        strict=True,
    )
}


@pytest.fixture
def features(seeded):
    """torchvision's state dict without the classifier."""
    state = {f"{name}.weight": seeded(f"{name}.weight", shape) for name, shape in SHAPES.items()}
    return state | {f"{name}.bias": seeded(f"{name}.bias", shape[:1]) for name, shape in SHAPES.items()}


def zero_features():
    state = {f"{name}.weight": np.zeros(shape, np.float32) for name, shape in SHAPES.items()}
    return state | {f"{name}.bias": np.zeros(shape[:1], np.float32) for name, shape in SHAPES.items()}


def zero_keras():
    state = {}
    for name, (out, into, *_) in zip(KERAS_NAMES, SHAPES.values(), strict=True):
        state |= {f"{name}/0": np.zeros((3, 3, into, out), np.float32), f"{name}/1": np.zeros(out, np.float32)}
    return state


def test_l2_normalization_by_hand():
    layer = vgg.L2Normalization(scale=10.0)
    x = np.array([3.0, 4.0, 0.0, 0.0], np.float32).reshape(1, 1, 2, 2)
    np.testing.assert_allclose(layer(x), [[[[6, 8], [0, 0]]]], rtol=1e-6)
    layer.scale.assign([1.0, 100.0])
    np.testing.assert_allclose(layer(x), [[[[0.6, 80], [0, 0]]]], rtol=1e-6)
    again = vgg.L2Normalization.from_config(layer.get_config())
    assert again.initial_scale == 10


def test_l2_normalization_of_zeros_has_a_finite_gradient():
    layer, x = vgg.L2Normalization(), tf.zeros((1, 1, 1, 4))
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = tf.reduce_sum(layer(x))
    assert np.isfinite(tape.gradient(y, x)).all()


def test_l2_normalization_in_half_precision_is_computed_in_float32():
    layer = vgg.L2Normalization(dtype="mixed_float16")
    y = layer(tf.fill((1, 1, 1, 4), tf.constant(1000, tf.float16)))  # the sum of squares is beyond float16
    assert y.dtype == tf.float16
    np.testing.assert_allclose(y, np.full((1, 1, 1, 4), 10), rtol=1e-3)


def test_equals_torchvision(features, seeded, image, tmp_path):
    """The numbers come from torchvision's SSDFeatureExtractorVGG with these weights, on (x / 255 - mean) / std."""
    path = tmp_path / "vgg16.safetensors"
    safetensors.numpy.save_file(features, path)
    with pytest.warns(UserWarning, match=r"vgg16\.safetensors: has no fc6 and fc7"):
        model = vgg.vgg16_reduced(path)
    for name, shape in (("conv6", (1024, 512, 3, 3)), ("conv7", (1024, 1024, 1, 1))):
        kernel, bias = seeded(f"{name}.weight", shape), seeded(f"{name}.bias", shape[:1])
        model.get_layer(name).set_weights([kernel.transpose(2, 3, 1, 0), bias])
    maps = {level: values.numpy() for level, values in model(image(76)).items()}
    assert maps["C3"].shape == (1, 10, 10, 512)
    assert maps["C4"].shape == (1, 5, 5, 1024)
    expected = {
        "C3": (0.49647438526, [0.39630320668, 0.0, 0.0, 1.33524584770], [2.18138456344, 0.0, 0.0, 0.0]),
        "C4": (0.78182792663, [0.0, 0.0, 0.24949550629, 0.0], [0.0, 2.36443686485, 0.91370868683, 0.0]),
    }
    for level, (mean, first, last) in expected.items():
        np.testing.assert_allclose(maps[level].mean(), mean, rtol=1e-5)
        np.testing.assert_allclose(maps[level][0, 0, 0, :4], first, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(maps[level][0, -1, -1, -4:], last, rtol=1e-4, atol=1e-5)


def test_the_plain_form_has_the_same_convolutions(features, image, monkeypatch):
    monkeypatch.setattr(vgg, "read_state_dict", lambda path: features)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it needs no fully connected layers
        plain = vgg.vgg16("vgg16.pth")
    with pytest.warns(UserWarning, match="fc6"):
        reduced = vgg.vgg16_reduced("vgg16.pth")
    assert plain.compute_output_shape((1, 300, 300, 3)) == {"C3": (1, 38, 38, 512), "C4": (1, 19, 19, 512)}
    conv4_3 = plain(image(24))["C3"]
    np.testing.assert_allclose(reduced.get_layer("conv4_3_norm")(conv4_3), reduced(image(24))["C3"], rtol=1e-5)


def test_fully_connected_layers_are_thinned_out():
    fc1 = np.arange(7 * 7 * 2 * 8).reshape(7, 7, 2, 8)  # row, column, input, output
    fc2 = np.arange(8 * 8).reshape(8, 8)
    arrays = vgg._reduce(fc1, np.arange(8), fc2, np.arange(8) * 10)
    conv6, bias6 = arrays["conv6"]
    conv7, bias7 = arrays["conv7"]
    assert conv6.shape == (3, 3, 2, 2)
    assert conv6[0, 0, 0].tolist() == [0, 4]
    assert conv6[1, 2, 1].tolist() == [((3 * 7 + 6) * 2 + 1) * 8, ((3 * 7 + 6) * 2 + 1) * 8 + 4]
    assert bias6.tolist() == [0, 4]
    assert conv7.tolist() == [[[[0, 4], [32, 36]]]]
    assert bias7.tolist() == [0, 40]


def test_fully_connected_layers_of_torchvision(monkeypatch):
    """PyTorch flattens channel, row, column; one number is followed through each layer."""
    state = zero_features()
    state |= {"classifier.0.weight": np.zeros((4096, 25088), np.float32), "classifier.0.bias": np.arange(4096.0)}
    state |= {"classifier.3.weight": np.zeros((4096, 4096), np.float32), "classifier.3.bias": np.arange(4096.0)}
    channel, row, column = 100, 3, 6
    state["classifier.0.weight"][4 * 5, channel * 49 + row * 7 + column] = 1  # to neuron 20
    state["classifier.3.weight"][4 * 7, 4 * 9] = 2  # from neuron 36 to neuron 28
    monkeypatch.setattr(vgg, "read_state_dict", lambda path: state)
    model = vgg.vgg16_reduced("vgg16.pth")
    kernel, bias = model.get_layer("conv6").get_weights()
    assert np.argwhere(kernel).tolist() == [[1, 2, 100, 5]]
    assert bias[:3].tolist() == [0, 4, 8]
    kernel, bias = model.get_layer("conv7").get_weights()
    assert np.argwhere(kernel).tolist() == [[0, 0, 9, 7]]
    assert bias[-1] == 4092


class StandInForKerasVGG16:
    """Has layers with weights, as keras.applications.VGG16 has, without half a gigabyte of them in use."""

    def __init__(self, weights, include_top):
        assert (weights, include_top) == ("imagenet", True)
        self.state = zero_keras()
        self.state["block1_conv1/0"][0, 1, :, 7] = [10, 20, 30]  # blue, green, red
        self.state |= {"fc1/0": np.zeros((25088, 4096), np.float32), "fc1/1": np.arange(4096.0)}
        self.state |= {"fc2/0": np.zeros((4096, 4096), np.float32), "fc2/1": np.arange(4096.0)}
        row, column, channel = 3, 6, 100  # Keras flattens row, column, channel
        self.state["fc1/0"][(row * 7 + column) * 512 + channel, 4 * 5] = 1
        self.state["fc2/0"][4 * 9, 4 * 7] = 2

    def get_layer(self, name):
        weights = [self.state[f"{name}/0"], self.state[f"{name}/1"]]
        return type("Layer", (), {"get_weights": lambda self: weights})()


def test_imagenet(monkeypatch):
    monkeypatch.setattr(keras.applications, "VGG16", StandInForKerasVGG16)
    model = vgg.vgg16_reduced("imagenet")
    assert model.get_layer("conv1_1").get_weights()[0][0, 1, :, 7].tolist() == [30, 20, 10]  # red first
    assert np.argwhere(model.get_layer("conv6").get_weights()[0]).tolist() == [[1, 2, 100, 5]]
    assert np.argwhere(model.get_layer("conv7").get_weights()[0]).tolist() == [[0, 0, 9, 7]]
    mean = np.array([[[[123.0, 117.0, 104.0]]]], np.float32)
    np.testing.assert_array_equal(model.get_layer("normalization")(mean), np.zeros((1, 1, 1, 3)))


def test_a_keras_file_without_top(tmp_path):
    source = keras.applications.VGG16(weights=None, include_top=False)
    path = tmp_path / "vgg16_notop.weights.h5"
    source.save_weights(path)
    with pytest.warns(UserWarning, match="conv6 and conv7 keep their random initialisation"):
        model = vgg.vgg16_reduced(path)
    theirs = source.get_layer("block1_conv1").get_weights()[0]
    np.testing.assert_array_equal(model.get_layer("conv1_1").get_weights()[0], theirs[:, :, ::-1])
    for ours, name in (("conv3_2", "block3_conv2"), ("conv5_3", "block5_conv3")):
        np.testing.assert_array_equal(model.get_layer(ours).get_weights()[0], source.get_layer(name).get_weights()[0])


def test_torchvision_file_of_ssd_features_has_nan_as_classifier(monkeypatch):
    state = zero_features()
    for name, shape in (("classifier.0", (4096, 25088)), ("classifier.3", (4096, 4096))):
        state[f"{name}.weight"] = np.broadcast_to(np.float32("nan"), shape)
        state[f"{name}.bias"] = np.full(4096, np.nan, np.float32)
    monkeypatch.setattr(vgg, "read_state_dict", lambda path: state)
    with pytest.warns(UserWarning, match="conv6 and conv7 keep their random initialisation"):
        model = vgg.vgg16_reduced("vgg16_features.pth")
    assert model.get_layer("normalization").offset == [-123, -117, -104]
    assert all(np.isfinite(array).all() for array in model.get_weights())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("features.28.bias"), "features.28.bias is missing"),
        (lambda state: state.update({"features.5.weight": np.zeros((1, 1, 3, 3))}), "conv2_1 has shapes"),
        (lambda state: state.pop("features.0.weight"), "neither torchvision's VGG16"),
        (lambda state: state.update({"classifier.0.weight": np.zeros((1, 1))}), "classifier.0.bias is missing"),
    ],
)
def test_files_that_do_not_fit(monkeypatch, change, message):
    state = zero_features()
    change(state)
    monkeypatch.setattr(vgg, "read_state_dict", lambda path: state)
    with pytest.raises(WeightsError, match=f"w.pth: .*{message}"):
        vgg.vgg16_reduced("w.pth")
