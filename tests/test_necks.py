import math
import re
import zlib

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfdet.backbones import vgg_slim
from tfdet.errors import TfdetError
from tfdet.necks import FPN, _enlarge
from tfdet.weights import load_torch

SHAPES = {"C3": (19, 25, 6), "C4": (10, 13, 8), "C5": (4, 6, 10)}  # C5 is smaller than C4's half
LEVELS = tuple(SHAPES)


def features():
    maps = [np.random.RandomState(i).standard_normal((1, *shape)) for i, shape in enumerate(SHAPES.values())]
    return {level: values.astype(np.float32) for level, values in zip(SHAPES, maps, strict=True)}


def seeded(name, shape):
    """Numbers that depend on the name and the shape of a PyTorch tensor only."""
    numbers = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    return (numbers * (0.1 if len(shape) == 1 else math.sqrt(2 / math.prod(shape[1:])))).astype(np.float32)


def torch_state(p6_channels=None, end=".0"):
    """The state dict of torchvision's FeaturePyramidNetwork([6, 8, 10], 4), with P6 and P7 if p6_channels is given."""
    shapes = {f"inner_blocks.{i}.0": (4, channels, 1, 1) for i, (*_, channels) in enumerate(SHAPES.values())}
    shapes |= {f"layer_blocks.{i}.0": (4, 4, 3, 3) for i in range(3)}
    if p6_channels:
        shapes |= {"extra_blocks.p6": (4, p6_channels, 3, 3), "extra_blocks.p7": (4, 4, 3, 3)}
    state = {f"{name}.weight": seeded(f"{name}.weight", shape) for name, shape in shapes.items()}
    state |= {f"{name}.bias": seeded(f"{name}.bias", shape[:1]) for name, shape in shapes.items()}
    return {re.sub(r"\.0\.(weight|bias)", rf"{end}.\1", name): array for name, array in state.items()}


# Mean of the magnitudes, first and last pixel of each level, from torchvision 0.28 with the weights of `torch_state`.
COMMON = {
    "P3": (2.727099, [1.522119, -1.775279, 3.733692, -2.922229], [1.29236, 3.840992, 3.623339, 0.597832]),
    "P4": (1.970537, [-2.831512, 0.027416, 3.051828, 1.140532], [0.883882, 0.324898, 0.183388, 0.380005]),
    "P5": (1.348911, [-2.484186, -1.784684, 1.072218, -0.677605], [2.395464, 0.217668, -0.334441, -0.765687]),
}
POOLED = COMMON | {
    "P6": (1.195141, [-2.484186, -1.784684, 1.072218, -0.677605], [-1.567057, -0.21329, -0.399132, -0.471172])
}
FROM_C5 = COMMON | {
    "P6": (0.913063, [0.327696, 0.248586, 2.144883, -0.013776], [3.500592, -0.206846, 0.582671, -0.115475]),
    "P7": (0.455268, [-0.358519, 0.348166, -0.084137, -0.201636], [0.536823, 0.519732, 0.994323, 0.598807]),
}
FROM_P5 = COMMON | {
    "P6": (1.825857, [-5.059989, 0.260934, 1.395815, 0.705268], [0.680584, 2.004934, 1.341825, -4.601865]),
    "P7": (0.813046, [-0.355656, 0.978967, 0.64249, -1.533015], [0.461113, 2.129607, 0.275903, 0.127617]),
}
SIDES = {"P3": (19, 25), "P4": (10, 13), "P5": (4, 6), "P6": (2, 3), "P7": (1, 2)}


@pytest.mark.parametrize(
    ("settings", "p6_channels", "expected"),
    [
        ({}, None, COMMON),
        ({"extra": "pool"}, None, POOLED),
        ({"extra": "conv"}, 10, FROM_C5),
        ({"extra": "conv", "p6_from": "P5"}, 4, FROM_P5),
    ],
    ids=["no extra", "pool", "conv on C5", "conv on P5"],
)
@pytest.mark.parametrize("end", [".0", ""], ids=["names of today", "names of old"])
def test_equals_torchvision(settings, p6_channels, expected, end):
    fpn = FPN(LEVELS, 4, **settings)
    maps = features()
    fpn(maps)
    state = {f"fpn.{name}": array for name, array in torch_state(p6_channels, end).items()}
    load_torch(fpn.torch_names(state), state, "a state dict")
    pyramid = fpn(maps)
    assert {level: values.shape[1:3] for level, values in pyramid.items()} == {
        level: SIDES[level] for level in expected
    }
    assert list(pyramid) == list(expected)  # finest first
    for level, (mean, first, last) in expected.items():
        values = pyramid[level].numpy()
        np.testing.assert_allclose(abs(values).mean(), mean, rtol=1e-5)
        np.testing.assert_allclose(values[0, 0, 0], first, rtol=1e-5, atol=2e-6)
        np.testing.assert_allclose(values[0, -1, -1], last, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (1, [0]),
        (3, [0, 1, 2]),
        (3, [0, 0, 1, 1, 2]),
        (3, [0, 0, 1, 1, 2, 2]),
        (4, [0, 0, 1, 1, 2, 2, 3]),
        (2, [0, 0, 0, 1, 1]),
        (5, [0, 0, 0, 1, 1, 1, 2, 2, 3, 3, 3, 4, 4]),
    ],
)
def test_enlarge_takes_the_pixels_that_torch_takes(size, expected):
    """The expected pixels are those of torch.nn.functional.interpolate(size=..., mode="nearest")."""
    line = np.arange(size, dtype=np.float32)
    assert _enlarge(line.reshape(1, size, 1, 1), len(expected), 1)[0, :, 0, 0].numpy().tolist() == expected
    assert _enlarge(line.reshape(1, 1, size, 1), 1, len(expected))[0, 0, :, 0].numpy().tolist() == expected


def test_by_hand():
    """One channel, all kernels pass the middle pixel on: every level is the sum of itself and of what is above it."""
    fpn = FPN(("C4", "C5"), 1, extra="conv")
    maps = {"C4": np.full((3, 4), 10), "C5": np.array([[1, 2], [3, -4]])}
    maps = {level: values.astype(np.float32)[None, ..., None] for level, values in maps.items()}
    fpn(maps)
    for convolution in (*fpn.laterals, *fpn.smoothings, *fpn.extras):
        kernel = np.zeros(convolution.kernel.shape, np.float32)
        kernel[kernel.shape[0] // 2, kernel.shape[1] // 2] = 1
        convolution.kernel.assign(kernel)
    fpn.extras[0].bias.assign([-3])
    found = {level: values[0, ..., 0].numpy().tolist() for level, values in fpn(maps).items()}
    assert found == {
        "P4": [[11, 11, 12, 12], [11, 11, 12, 12], [13, 13, 6, 6]],
        "P5": [[1, 2], [3, -4]],
        "P6": [[-2]],  # the middle of the stride-2 kernel falls on the first pixel: 1 - 3
        "P7": [[0]],  # after ReLU
    }


def test_levels_that_are_not_asked_for_are_ignored():
    maps = features() | {"C2": np.full((1, 38, 50, 3), np.nan, np.float32)}
    pyramid = FPN(LEVELS, 4)(maps)
    assert list(pyramid) == ["P3", "P4", "P5"]
    assert all(np.isfinite(values).all() for values in pyramid.values())


def test_gradients_reach_every_weight_and_the_backbone():
    fpn, maps = FPN(LEVELS, 4, extra="conv"), {level: tf.constant(values) for level, values in features().items()}
    with tf.GradientTape() as tape:
        tape.watch(maps)
        loss = sum(tf.reduce_sum(tf.square(values)) for values in fpn(maps).values())
    to_maps, to_weights = tape.gradient(loss, (maps, fpn.trainable_variables))
    assert len(to_weights) == 16
    assert all(np.all(np.any(gradient, axis=-1)) for gradient in to_maps.values())
    assert all(np.any(gradient) for gradient in to_weights)


def test_starts_as_torchvision_does():
    """kaiming_uniform_(a=1): uniform between -b and b, b = sqrt(3 / fan_in); no bias."""
    keras.utils.set_random_seed(0)
    fpn = FPN(("C3",), 64)
    fpn.build({"C3": (None, None, None, 48)})
    for convolution, bound in ((fpn.laterals[0], math.sqrt(3 / 48)), (fpn.smoothings[0], math.sqrt(3 / (9 * 64)))):
        kernel, bias = convolution.get_weights()
        assert not np.any(bias)
        assert 0.99 * bound < np.abs(kernel).max() <= bound
        np.testing.assert_allclose(kernel.std(), bound / math.sqrt(3), rtol=0.03)


def test_a_saved_model_gives_equal_outputs(tmp_path):
    """On a backbone without C5, for images of any size."""
    backbone = vgg_slim()
    pyramid = FPN(("C3", "C4"), 8, extra="conv", p6_from="C4", name="neck")(backbone.output)
    model = keras.Model(backbone.input, pyramid)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    image = np.random.RandomState(0).uniform(0, 255, (2, 75, 90, 3)).astype(np.float32)
    outputs = model(image)
    assert {level: tuple(values.shape) for level, values in outputs.items()} == {
        "P3": (2, 10, 12, 8),
        "P4": (2, 5, 6, 8),
        "P5": (2, 3, 3, 8),
        "P6": (2, 2, 2, 8),
    }
    for level, values in outputs.items():
        np.testing.assert_array_equal(values, again(image)[level])


def test_half_precision():
    fpn = FPN(LEVELS, 4, extra="conv", dtype="mixed_bfloat16")
    pyramid = fpn(features())
    assert all(values.dtype == tf.bfloat16 for values in pyramid.values())
    assert all(weight.dtype == "float32" for weight in fpn.weights)
    full = FPN(LEVELS, 4, extra="conv")
    full.build({level: values.shape for level, values in features().items()})
    full.set_weights(fpn.get_weights())
    for level, values in full(features()).items():
        np.testing.assert_allclose(pyramid[level].numpy().astype(np.float32), values, atol=0.1)


def test_any_size_in_one_graph():
    fpn = FPN(("C3", "C4"), 4, extra="pool")
    graph = tf.function(fpn, input_signature=[{level: tf.TensorSpec((None, None, None, 2)) for level in ("C3", "C4")}])
    for height, width in ((5, 8), (6, 7), (1, 1)):
        maps = {
            "C3": np.ones((1, height, width, 2), np.float32),
            "C4": np.ones((1, (height + 1) // 2, (width + 1) // 2, 2), np.float32),
        }
        for level, values in graph(maps).items():
            np.testing.assert_allclose(values, fpn(maps)[level], atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"levels": ("C3", "C5")}, r"levels must follow each other, finest first, not \['C3', 'C5'\]"),
        ({"levels": ("C4", "C3")}, "levels must follow each other"),
        ({"extra": "P6"}, "extra must be pool, conv or None, not 'P6'"),
        ({"extra": "conv", "p6_from": "C4"}, "P6 can be made of C5 or P5, not of 'C4'"),
        ({"extra": "conv", "levels": ("C3", "C4")}, "P5 can be made of C4 or P4, not of 'C5'"),
    ],
)
def test_arguments_that_cannot_be(arguments, message):
    with pytest.raises(TfdetError, match=f"^FPN: {message}"):
        FPN(**arguments)


def test_a_level_that_the_backbone_lacks():
    with pytest.raises(TfdetError, match=r"^FPN: the backbone has no C2, only C3, C4, C5"):
        FPN()(features())
