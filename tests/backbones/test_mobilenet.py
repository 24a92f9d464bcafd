import keras
import numpy as np
import pytest
import safetensors.numpy

from tfdet.backbones import from_keras, mobilenet_v2
from tfdet.errors import WeightsError

# expansion, output channels, repetitions, stride (the paper's Table 2)
TABLE = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]


def torch_shapes():
    """Names and shapes of torchvision's mobilenet_v2().state_dict()."""
    shapes = {}

    def add(convolution, normalisation, shape):
        shapes[f"{convolution}.weight"] = shape
        shapes.update(
            {f"{normalisation}.{name}": shape[:1] for name in ("weight", "bias", "running_mean", "running_var")}
        )
        shapes[f"{normalisation}.num_batches_tracked"] = ()

    add("features.0.0", "features.0.1", (32, 3, 3, 3))
    index, channels = 1, 32
    for expansion, out, repeats, _ in TABLE:
        for _ in range(repeats):
            block, hidden, i = f"features.{index}.conv", expansion * channels, 0
            if expansion > 1:
                add(f"{block}.0.0", f"{block}.0.1", (hidden, channels, 1, 1))
                i = 1
            add(f"{block}.{i}.0", f"{block}.{i}.1", (hidden, 1, 3, 3))
            add(f"{block}.{i + 1}", f"{block}.{i + 2}", (out, hidden, 1, 1))
            index, channels = index + 1, out
    add("features.18.0", "features.18.1", (1280, 320, 1, 1))
    return shapes | {"classifier.1.weight": (1000, 1280), "classifier.1.bias": (1000,)}


@pytest.fixture
def state(seeded):
    return {name: seeded(name, shape) for name, shape in torch_shapes().items()}


def test_equals_torchvision(state, image, tmp_path):
    """The numbers come from torchvision's mobilenet_v2 with these weights and pixels (x / 255 - mean) / std."""
    path = tmp_path / "mobilenet_v2.safetensors"
    safetensors.numpy.save_file(state, path)
    maps = {level: values.numpy() for level, values in mobilenet_v2(path)(image(75)).items()}
    assert [values.shape for values in maps.values()] == [(1, 10, 10, 192), (1, 5, 5, 576), (1, 3, 3, 1280)]
    expected = {
        "C3": (
            1.74465572834,
            [0.62552011013, 1.73451519012, 6.0, 0.12484950572],
            [0.0, 0.0, 1.40010035038, 4.69512271881],
        ),
        "C4": (
            1.65716171265,
            [2.06853270531, 0.0, 0.46977120638, 0.16224084795],
            [0, 1.59043264389, 3.82645583153, 0.01048225],
        ),
        "C5": (
            1.26849544048,
            [2.38331794739, 0.0, 5.01874780655, 3.07672333717],
            [0.0, 1.79292511940, 0.0, 2.03340673447],
        ),
    }
    for level, (mean, first, last) in expected.items():
        np.testing.assert_allclose(maps[level].mean(), mean, rtol=1e-5)
        np.testing.assert_allclose(maps[level][0, 0, 0, :4], first, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(maps[level][0, -1, -1, -4:], last, rtol=1e-4, atol=1e-4)


def test_a_file_that_does_not_fit(state, tmp_path):
    path = tmp_path / "other.safetensors"
    state["features.19.weight"] = state.pop("features.18.0.weight")
    state["features.0.0.weight"] = state["features.0.0.weight"][:, :1].copy()
    safetensors.numpy.save_file(state, path)
    with pytest.raises(WeightsError) as caught:
        mobilenet_v2(path)
    assert str(caught.value) == (
        f"{path}: does not fit the network: features.0.0.weight has shape [32, 1, 3, 3], which does not fit "
        "features_0_0/kernel [3, 3, 3, 32]; features.18.0.weight is missing; features.19.weight is not used"
    )


@pytest.mark.parametrize("side", [75, 96])  # odd and even maps are padded differently
def test_imagenet_equals_keras_applications(seeded, image, monkeypatch, side):
    """Keras' model built for this very size; seeded weights stand in for the download."""
    source = keras.applications.MobileNetV2((side, side, 3), weights=None, include_top=False)
    for layer in source.layers:
        shapes = {weight.path.replace("moving_variance", "running_var"): weight.shape for weight in layer.weights}
        layer.set_weights([seeded(path, tuple(shape)) for path, shape in shapes.items()])

    def applications_model(weights, include_top):
        assert (weights, include_top) == ("imagenet", False)
        return source

    monkeypatch.setattr(keras.applications, "MobileNetV2", applications_model)
    levels = {"C3": "block_6_expand_relu", "C4": "block_13_expand_relu", "C5": "out_relu"}
    expected = from_keras(source, levels, keras.layers.Rescaling(1 / 127.5, -1))(image(side))
    for level, values in mobilenet_v2("imagenet")(image(side)).items():
        assert np.std(expected[level]) > 0.01
        np.testing.assert_allclose(values, expected[level], rtol=1e-4, atol=1e-4)
