import keras
import numpy as np
import pytest
import safetensors.numpy
import tensorflow as tf

from tfdet import backbones
from tfdet.backbones import keypoints, resnet
from tfdet.errors import TfdetError, WeightsError

CENTERNET = {
    "resnet18_dcn": (64, (0.06864757, [0.0501077, 0, 0.0331183, 0], [0, 0.141435, 0.270911, 0.0845343])),
    "resnet18_up": (256, (1.01326, [0.315756, 0, 0, 0.705858], [0, 0, 0.0202784, 0.857972])),
}


@pytest.mark.parametrize("name", CENTERNET)
def test_equals_centernet(name, released, image, assert_map):
    channels, expected = CENTERNET[name]
    found = backbones.build(name, released(backbones.build(name)))(image(64))
    assert list(found) == ["stack1"]
    assert found["stack1"].shape == (1, 16, 16, channels)
    assert_map(found["stack1"], expected)


def test_reads_torchvisions_resnet(seeded, tmp_path, image):
    """Only the way up starts random, and RGB stays RGB."""
    model = resnet.resnet18()
    state = {}
    for layer, name in resnet.torch_names(model):
        if isinstance(layer, keras.layers.BatchNormalization):
            tensors = ("weight", "bias", "running_mean", "running_var")
            state |= {f"{name}.{tensor}": seeded(f"{name}.{tensor}", layer.gamma.shape) for tensor in tensors}
        else:
            state[f"{name}.weight"] = seeded(f"{name}.weight", np.transpose(layer.kernel, (3, 2, 0, 1)).shape)
    safetensors.numpy.save_file({**state, "fc.bias": np.zeros(1000, "f4")}, tmp_path / "resnet18.safetensors")
    model = backbones.resnet18_dcn(tmp_path / "resnet18.safetensors")
    np.testing.assert_array_equal(model.get_layer("conv1").kernel, state["conv1.weight"].transpose(2, 3, 1, 0))
    np.testing.assert_array_equal(model.get_layer("layer4_1_bn2").gamma, state["layer4.1.bn2.weight"])
    assert not np.any(model.get_layer("deconv_layers.0").offset_convolution.kernel)


def test_pixels_are_normalised_as_in_the_released_code():
    """Its mean and standard deviation are triples of blue, green, red."""
    model = backbones.resnet_slim_up()
    found = model.get_layer("normalization")(np.full((1, 1, 1, 3), 255, "float32"))
    expected = (1 - np.array([0.47026115, 0.44719302, 0.40789654])) / [0.27809835, 0.27408164, 0.28863828]
    np.testing.assert_allclose(found[0, 0, 0], expected, rtol=1e-5)


def test_to_rgb_turns_the_first_convolution_only():
    state = {"conv1.weight": np.arange(6.0).reshape(2, 3, 1, 1), "layer1.0.conv1.weight": np.ones((2, 3, 1, 1))}
    found = keypoints.to_rgb(state)
    np.testing.assert_array_equal(found["conv1.weight"][:, :, 0, 0], [(2, 1, 0), (5, 4, 3)])
    assert found["layer1.0.conv1.weight"] is state["layer1.0.conv1.weight"]


def test_starts_as_the_released_code():
    plain, deformable = backbones.resnet18_up(), backbones.resnet18_dcn()
    np.testing.assert_allclose(np.std(plain.get_layer("deconv_layers.0").kernel), 0.001, rtol=0.01)
    first = deformable.get_layer("deconv_layers.3").kernel[:, :, 0, 7]
    np.testing.assert_allclose(first[1], (0.1875, 0.5625, 0.5625, 0.1875))


def test_resnet_slim_up_trains_all_its_weights(image):
    model = backbones.build("resnet_slim_up")
    assert model.count_params() < 1_000_000
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(tf.square(model(image(64), training=True)["stack1"]))
    gradients = tape.gradient(loss, model.trainable_variables)
    assert all(np.isfinite(gradient).all() and np.any(gradient) for gradient in gradients)


@pytest.fixture(scope="module")
def slim():
    return backbones.resnet_slim_up()


@pytest.mark.parametrize("side", [64, 63, 32])
def test_the_map_is_a_quarter(slim, side, image):
    quarter = -(-side // 4)
    assert slim(image(side))["stack1"].shape == (1, quarter, quarter, 64)


def test_sides_that_cannot_be(slim, image):
    with pytest.raises(
        TfdetError, match="an image of 65 x 65 pixels: sides must be multiples of 32, or one pixel less"
    ):
        slim(image(65))
    assert slim.compute_output_shape((2, None, None, 3)) == {"stack1": (2, None, None, 64)}


def test_saved_and_taken_as_it_is(slim, tmp_path, image):
    slim.save(tmp_path / "backbone.keras")
    again = keras.models.load_model(tmp_path / "backbone.keras")
    np.testing.assert_array_equal(again(image(64))["stack1"], slim(image(64))["stack1"])
    assert backbones.build(again) is again


def test_mixed_precision_keeps_the_pixels_in_float32(image):
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = backbones.resnet18_dcn()
    finally:
        keras.config.set_dtype_policy("float32")
    assert model.get_layer("normalization").output.dtype == "float32"
    found = model(image(32))["stack1"]
    assert found.dtype == "bfloat16"
    assert np.isfinite(tf.cast(found, "float32")).all()


def test_keras_has_no_imagenet_weights():
    with pytest.raises(WeightsError, match="resnet18_dcn: Keras has no imagenet weights of it; pass a file"):
        backbones.build("resnet18_dcn", "imagenet")


def test_mobilenet_with_up_convolutions(image, monkeypatch):
    asked = []
    build = backbones.resnet_up.mobilenet_v2
    monkeypatch.setattr(backbones.resnet_up, "mobilenet_v2", lambda weights: asked.append(weights) or build())
    model = backbones.build("mobilenet_v2_up", "imagenet")
    assert asked == ["imagenet"]
    assert model(image(64))["stack1"].shape == (1, 16, 16, 64)
    names = [layer.name for layer in model.layers if isinstance(layer, keras.layers.Conv2DTranspose)]
    assert names == ["deconv_layers.0", "deconv_layers.3", "deconv_layers.6"]
