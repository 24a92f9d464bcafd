"""What every backbone promises."""

import keras
import numpy as np
import pytest

from tfdet import backbones
from tfdet.errors import TfdetError

CHANNELS = {
    "vgg16": {"C3": 512, "C4": 1024},
    "mobilenet_v2": {"C3": 192, "C4": 576, "C5": 1280},
    "vgg_slim": {"C3": 48, "C4": 96},
    "resnet18": {"C2": 64, "C3": 128, "C4": 256, "C5": 512},
}


@pytest.fixture(scope="module", params=CHANNELS)
def named(request):
    return request.param, backbones.build(request.param)


@pytest.mark.parametrize(
    ("side", "sides"),
    [
        (300, {"C2": 75, "C3": 38, "C4": 19, "C5": 10}),
        (512, {"C2": 128, "C3": 64, "C4": 32, "C5": 16}),
        (333, {"C2": 84, "C3": 42, "C4": 21, "C5": 11}),
    ],
)
def test_maps_have_stride_2_to_the_n_rounded_up(named, side, sides):
    name, model = named
    expected = {level: (2, sides[level], sides[level], channels) for level, channels in CHANNELS[name].items()}
    assert model.compute_output_shape((2, side, side, 3)) == expected
    assert list(model.output) == list(expected)  # finest first


def test_a_saved_model_gives_equal_outputs(named, image, tmp_path):
    _, model = named
    model.save(tmp_path / "backbone.keras")
    again = keras.models.load_model(tmp_path / "backbone.keras")
    x = image(37)
    for level, values in model(x).items():
        np.testing.assert_array_equal(values, again(x)[level])


def test_from_config(named):
    _, model = named
    again = keras.Model.from_config(model.get_config())
    assert again.count_params() == model.count_params()
    assert list(again.output) == list(model.output)


@pytest.mark.parametrize("name", CHANNELS)
def test_mixed_precision_keeps_the_pixels_in_float32(name, image):
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = backbones.build(name)
    finally:
        keras.config.set_dtype_policy("float32")
    assert model.get_layer("normalization").output.dtype == "float32"
    assert all(weight.dtype == "float32" for weight in model.weights)
    for values in model(image(37)).values():
        assert keras.backend.standardize_dtype(values.dtype) == "bfloat16"
        assert np.isfinite(values.numpy().astype(np.float32)).all()


def test_the_smallest_image(named, image):
    _, model = named
    assert all(values.shape[1:3] == (1, 1) for values in model(image(1)).values())


def test_vgg_slim_trains_all_its_weights(image):
    import tensorflow as tf

    model = backbones.vgg_slim()
    with tf.GradientTape() as tape:
        loss = sum(keras.ops.mean(keras.ops.square(values)) for values in model(image(33), training=True).values())
    gradients = tape.gradient(loss, model.trainable_variables)
    assert all(np.isfinite(gradient).all() and np.any(gradient) for gradient in gradients)
    assert all(layer.synchronized for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization))


def test_build_refuses_what_it_does_not_know():
    with pytest.raises(
        TfdetError, match=r"unknown backbone 'resnet': choose vgg16, mobilenet_v2, resnet18, .* or pass"
    ):
        backbones.build("resnet")
    with pytest.raises(TfdetError, match="vgg_slim has no published weights"):
        backbones.build("vgg_slim", weights="imagenet")
    with pytest.raises(TfdetError, match="a Keras model brings its own weights"):
        backbones.build(backbones.vgg_slim(), weights="w.pth")


def test_build_takes_a_backbone_as_it_is():
    model = backbones.vgg_slim()
    assert backbones.build(model) is model
