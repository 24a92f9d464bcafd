import math

import keras
import numpy as np
import pytest
import safetensors.numpy
import tensorflow as tf

from tfdet.backbones import build, resnet
from tfdet.errors import TfdetError, WeightsError

BLOCKS = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3), "resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3)}
# torchvision's parameters without the classifier
PARAMETERS = {"resnet18": 11176512, "resnet34": 21284672, "resnet50": 23508032, "resnet101": 42500160}


def torch_shapes(name):
    """Names and shapes of the state dict of torchvision's ResNet of this name."""
    shapes = {}

    def add(convolution, normalisation, shape):
        shapes[f"{convolution}.weight"] = shape
        shapes.update(
            {f"{normalisation}.{part}": shape[:1] for part in ("weight", "bias", "running_mean", "running_var")}
        )
        shapes[f"{normalisation}.num_batches_tracked"] = ()

    add("conv1", "bn1", (64, 3, 7, 7))
    channels = 64
    for stage, count in enumerate(BLOCKS[name], 1):
        width = 32 * 2**stage
        sizes = (
            [(width, 3), (width, 3)] if name in ("resnet18", "resnet34") else [(width, 1), (width, 3), (4 * width, 1)]
        )
        for i in range(count):
            block, into = f"layer{stage}.{i}", channels
            for j, (out, size) in enumerate(sizes, 1):
                add(f"{block}.conv{j}", f"{block}.bn{j}", (out, into, size, size))
                into = out
            if i == 0 and (stage > 1 or channels != into):
                add(f"{block}.downsample.0", f"{block}.downsample.1", (into, channels, 1, 1))
            channels = into
    return shapes | {"fc.weight": (1000, channels), "fc.bias": (1000,)}


@pytest.fixture
def save(seeded, tmp_path):
    """A function (name) -> a file with torchvision's state dict of that network, and the dict."""

    def make(name):
        state = {tensor: seeded(tensor, shape) for tensor, shape in torch_shapes(name).items()}
        safetensors.numpy.save_file(state, tmp_path / f"{name}.safetensors")
        return tmp_path / f"{name}.safetensors", state

    return make


def gradients(model, image):
    with tf.GradientTape() as tape:
        outputs = model(image, training=True).values()
        loss = sum(keras.ops.mean(keras.ops.square(keras.ops.cast(values, "float32"))) for values in outputs)
    return tape.gradient(loss, model.trainable_variables)


def normalisations(model):
    return [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]


def statistics(model):
    return [array for layer in normalisations(model) for array in layer.get_weights()[2:]]


# Mean, first and last four numbers of each map
RESNET18 = {
    "C2": (5.371711, [10.8764, 5.94573, 6.22531, 0.666768], [7.89088, 2.49885, 0.0, 2.04576]),
    "C3": (8.329369, [4.17424, 0.0, 0.0, 8.81452], [10.5784, 6.29943, 5.94156, 1.64515]),
    "C4": (13.062451, [4.79282, 0.0, 9.62328, 1.58965], [9.23059, 2.59194, 0.0, 44.9855]),
    "C5": (17.514719, [0.0, 69.1568, 23.2342, 16.0496], [24.2769, 26.07, 20.0327, 5.1007]),
}
RESNET50 = {
    "C2": (4.71111, [6.32498, 0.919635, 5.59377, 4.69589], [5.94647, 1.56244, 7.27531, 0.268955]),
    "C3": (16.879066, [0.0, 0.0, 13.9797, 0.0], [9.50565, 0.0, 14.5358, 29.8285]),
    "C4": (143.755997, [9.66184, 0.0, 0.0, 148.229], [88.2341, 266.572, 0.0, 29.501]),
    "C5": (303.426422, [347.994, 346.395, 0.0, 241.103], [1038.15, 0.0, 497.141, 343.869]),
}


@pytest.mark.parametrize(
    ("name", "norm", "expected"),
    [("resnet18", "frozen", RESNET18), ("resnet18", "batch", RESNET18), ("resnet50", "frozen", RESNET50)],
)
def test_equals_torchvision(save, image, name, norm, expected):
    """The numbers come from torchvision's network with these weights and pixels (x / 255 - mean) / std."""
    model = getattr(resnet, name)(save(name)[0], norm=norm)
    maps = {level: values.numpy() for level, values in model(image(75)).items()}
    assert [values.shape[1:3] for values in maps.values()] == [(19, 19), (10, 10), (5, 5), (3, 3)]
    for level, (mean, first, last) in expected.items():
        np.testing.assert_allclose(maps[level].mean(), mean, rtol=1e-5)
        np.testing.assert_allclose(maps[level][0, 0, 0, :4], first, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(maps[level][0, -1, -1, -4:], last, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", BLOCKS)
def test_has_torchvisions_tensors(name):
    model = build(name)
    assert sum(math.prod(weight.shape) for weight in model.trainable_weights) == PARAMETERS[name]
    modules = {tensor.rpartition(".")[0] for tensor in torch_shapes(name)} - {"fc"}
    assert {module for _, module in resnet.torch_names(model, "body.")} == {f"body.{module}" for module in modules}


def test_a_file_that_does_not_fit(save):
    path, state = save("resnet18")
    safetensors.numpy.save_file({**state, "bn1.bias": state["bn1.bias"][1:].copy()}, path)
    with pytest.raises(WeightsError) as caught:
        resnet.resnet34(path)
    assert str(caught.value).startswith(
        f"{path}: does not fit the network: bn1.bias has shape [63], which does not fit bn1/beta [64]; "
        "layer1.2.conv1.weight is missing; layer1.2."
    )


@pytest.fixture
def keras_resnet50(seeded, monkeypatch):
    """Seeded weights stand in for the download. The convolutions have biases there."""
    source = keras.applications.ResNet50(weights=None, include_top=False)
    for layer in source.layers:
        shapes = {weight.path.replace("moving_variance", "running_var"): weight.shape for weight in layer.weights}
        layer.set_weights([seeded(path.replace("gamma", "weight"), tuple(shape)) for path, shape in shapes.items()])

    def application(weights, include_top):
        assert (weights, include_top) == ("imagenet", False)
        return source

    monkeypatch.setattr(keras.applications, "ResNet50", application)
    return source


def test_imagenet_equals_keras_applications(keras_resnet50, image):
    names = ("conv2_block3_out", "conv3_block4_out", "conv4_block6_out", "conv5_block3_out")
    theirs = keras.Model(keras_resnet50.input, [keras_resnet50.get_layer(name).output for name in names])
    ours = resnet.resnet50("imagenet")
    for side in (75, 96):
        expected = theirs(keras.applications.resnet.preprocess_input(image(side)))
        for found, values in zip(ours(image(side)).values(), expected, strict=True):
            assert np.std(values) > 0.1
            np.testing.assert_allclose(found, values, rtol=1e-4, atol=1e-5 * np.max(values))


def test_frozen_normalisation_never_changes(image, tmp_path):
    model = resnet.resnet18(norm="frozen")
    model.save(tmp_path / "backbone.keras")
    again = keras.models.load_model(tmp_path / "backbone.keras")
    again.trainable = False
    again.trainable = True
    for backbone in (model, again):
        before = [layer.get_weights() for layer in normalisations(backbone)]
        found = gradients(backbone, image(40))
        assert len(normalisations(backbone)) == len(found) == 20  # the convolutions' kernels, no scale, no offset
        for layer, weights in zip(normalisations(backbone), before, strict=True):
            np.testing.assert_array_equal(layer.get_weights(), weights)
        for level, values in backbone(image(40), training=True).items():
            np.testing.assert_allclose(values, backbone(image(40), training=False)[level], rtol=1e-4, atol=1e-5)


def test_live_normalisation_trains_and_measures(image, tmp_path):
    model = resnet.resnet18(norm="batch")
    model.save(tmp_path / "backbone.keras")
    for backbone in (model, keras.models.load_model(tmp_path / "backbone.keras")):
        found = gradients(backbone, image(40))
        assert len(found) == 3 * 20
        assert all(np.isfinite(gradient).all() and np.any(gradient) for gradient in found)
        assert all(layer.synchronized for layer in normalisations(backbone))
        assert all(np.any(mean) for mean in statistics(backbone)[::2])


def test_weights_move_between_frozen_and_live(image):
    live, frozen = resnet.resnet18(norm="batch"), resnet.resnet18(norm="frozen")
    live(image(40), training=True)
    frozen.set_weights(live.get_weights())
    np.testing.assert_array_equal(frozen(image(40))["C5"], live(image(40))["C5"])


def test_inference_is_one_operation():
    """TensorFlow computes it along with the convolution before it; Keras' own layer is four passes over the map."""
    model = resnet.resnet18(norm="frozen")
    graph = tf.function(lambda x: model(x, training=False)).get_concrete_function(tf.TensorSpec((1, 32, 32, 3))).graph
    operations = [operation.type for operation in graph.get_operations()]
    assert operations.count("FusedBatchNormV3") == 20
    assert "Rsqrt" not in operations


@pytest.mark.parametrize(
    ("count", "trained", "still"),
    [(0, set(), 20), (4, {"layer1", "layer2", "layer3", "layer4"}, 1)],
)
def test_stages_that_are_trained(count, trained, still, image, tmp_path):
    model = resnet.resnet18(trainable_stages=count)
    model.save(tmp_path / "backbone.keras")
    again = keras.models.load_model(tmp_path / "backbone.keras")
    assert {variable.path.split("_")[0] for variable in again.trainable_variables} == trained
    before = [layer.get_weights() for layer in normalisations(again)]
    again(image(40), training=True)
    after = [layer.get_weights() for layer in normalisations(again)]
    assert sum(np.array_equal(old, new) for old, new in zip(before, after, strict=True)) == still


def test_without_weights_everything_is_live_and_with_them_the_first_stages_stand_still(save):
    path, _ = save("resnet18")
    fresh, loaded = resnet.resnet18(), resnet.resnet18(path)
    assert {type(layer) for layer in normalisations(fresh)} == {resnet.BatchNorm}
    assert len(fresh.trainable_variables) == 60
    assert {type(layer) for layer in normalisations(loaded)} == {resnet.FrozenBatchNorm}
    assert {variable.path.split("_")[0] for variable in loaded.trainable_variables} == {"layer2", "layer3", "layer4"}


def test_group_normalisation(image, tmp_path):
    model = resnet.resnet18(norm="group")
    assert not normalisations(model)
    found = gradients(model, image(40))
    assert len(found) == 60
    assert all(np.isfinite(gradient).all() and np.any(gradient) for gradient in found)
    model.save(tmp_path / "backbone.keras")
    again = keras.models.load_model(tmp_path / "backbone.keras")
    np.testing.assert_array_equal(again(image(40))["C5"], model(image(40))["C5"])


def test_starts_as_torchvision_does():
    keras.utils.set_random_seed(0)
    model = resnet.resnet18()
    for name, fan_out in (("conv1", 49 * 64), ("layer2_0_conv1", 9 * 128), ("layer4_0_downsample_0", 512)):
        kernel = model.get_layer(name).kernel
        np.testing.assert_allclose(np.std(kernel), math.sqrt(2 / fan_out), rtol=0.03)
    first, second = (model.get_layer(f"layer1_{i}_conv1").kernel for i in (0, 1))
    assert not np.array_equal(first, second)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"norm": "layer"}, "resnet18: norm must be batch, frozen or group, not 'layer'"),
        ({"trainable_stages": 6}, "resnet18: trainable_stages must be 0 .. 5, not 6"),
        ({"weights": "w.pth", "norm": "group"}, "resnet18: w.pth was trained with batch normalisation"),
        ({"weights": "imagenet"}, "resnet18: Keras has no imagenet weights of it; pass a file with torchvision's"),
    ],
)
def test_arguments_that_cannot_be(arguments, message):
    with pytest.raises(TfdetError, match=message):
        resnet.resnet18(**arguments)
