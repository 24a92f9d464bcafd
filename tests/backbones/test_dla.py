import numpy as np
import pytest
import safetensors.numpy
import tensorflow as tf

from tfdet.backbones import dla34, keypoints
from tfdet.errors import WeightsError

CENTERNET = (0.1373163, [0.0642851, 0.196231, 0, 0], [0.319208, 0.0532904, 0.200761, 0])


@pytest.fixture(scope="module")
def model():
    return dla34()


def test_equals_centernet(model, released, image, assert_map):
    path = released(model)
    found = dla34(path)(image(64))
    assert list(found) == ["stack1"]
    assert found["stack1"].shape == (1, 16, 16, 64)
    assert_map(found["stack1"], CENTERNET)


def test_reads_a_classifier(model, released, tmp_path):
    """DLA-34's of ImageNet: no `base.` before its names, no way back up, and RGB already."""
    state = safetensors.numpy.load_file(released(model))
    classifier = {key.removeprefix("base."): value for key, value in state.items() if key.startswith("base.")}
    classifier |= {"fc.weight": np.zeros((1000, 512, 1, 1), "f4"), "level3.project.0.weight": np.zeros(1, "f4")}
    safetensors.numpy.save_file(classifier, tmp_path / "dla34.safetensors")
    loaded = dla34(tmp_path / "dla34.safetensors")
    kernel = loaded.get_layer("base.base_layer.0").kernel
    np.testing.assert_array_equal(kernel, state["base.base_layer.0.weight"].transpose(2, 3, 1, 0))
    assert not np.any(loaded.get_layer("ida_up.node_2.conv").offset_convolution.kernel)


def test_a_file_that_does_not_fit(model, released, tmp_path):
    path = released(model)
    state = safetensors.numpy.load_file(path)
    del state["ida_up.node_2.conv.conv_offset_mask.bias"]
    safetensors.numpy.save_file({**state, "base.more.weight": np.zeros(1, "f4")}, path)
    with pytest.raises(WeightsError) as caught:
        dla34(path)
    assert str(caught.value) == (
        f"{path}: does not fit the network: ida_up.node_2.conv.conv_offset_mask.bias is missing; "
        "base.more.weight is not used"
    )


def test_trains_all_its_weights(model, image):
    with tf.GradientTape() as tape:
        found = model(image(63), training=True)["stack1"]
        loss = tf.reduce_mean(tf.square(found))
    assert found.shape == (1, 16, 16, 64)
    gradients = tape.gradient(loss, model.trainable_variables)
    assert all(np.isfinite(gradient).all() and np.any(gradient) for gradient in gradients)


def test_has_centernets_weights(model):
    """19,656,103 parameters with heads of 3 classes and 256 channels, less these and two projections nobody reads."""
    heads = 3 * (9 * 64 * 256 + 256) + 256 * 7 + 7
    unread = 64 * 128 + 2 * 128 + 128 * 256 + 2 * 256
    assert sum(np.prod(weight.shape) for weight in model.trainable_weights) == 19656103 - heads - unread
    assert len(keypoints.torch_names(model)) == len({name for _, name in keypoints.torch_names(model)})
