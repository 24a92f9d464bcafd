import keras
import numpy as np
import pytest
from keras import layers

from tfdet.backbones import build, from_keras
from tfdet.errors import TfdetError


@pytest.fixture
def model():
    x = image = keras.Input((None, None, 3))
    for stage in range(1, 6):
        x = layers.Conv2D(2 * stage, 3, 2, padding="same", name=f"stage{stage}_conv")(x)
    return keras.Model(image, layers.GlobalAveragePooling2D()(x), name="mine")


LEVELS = {"C5": "stage5_conv", "C3": "stage3_conv"}


def test_levels_by_layer_name(model, image):
    backbone = from_keras(model, LEVELS)
    maps = backbone(image(64))
    assert {level: values.shape for level, values in maps.items()} == {"C3": (1, 8, 8, 6), "C5": (1, 2, 2, 10)}
    assert list(backbone.output) == ["C3", "C5"]  # finest first
    assert build(backbone) is backbone


def test_preprocess_comes_first_and_all_of_it_is_saved(model, image, tmp_path):
    x = image(64)
    backbone = from_keras(model, LEVELS, layers.Rescaling(1 / 127.5, -1))
    np.testing.assert_allclose(backbone(x)["C3"], from_keras(model, LEVELS)(x / 127.5 - 1)["C3"], atol=1e-5)
    backbone.save(tmp_path / "backbone.keras")
    again = keras.models.load_model(tmp_path / "backbone.keras")
    np.testing.assert_array_equal(again(x)["C5"], backbone(x)["C5"])
    assert build(again) is again


@pytest.mark.parametrize(
    ("levels", "message"),
    [
        ({"C3": "stage3_cnv"}, "mine has no layer 'stage3_cnv'; the closest: stage3_conv"),
        ({"C3": "zzz"}, "mine has no layer 'zzz'; the closest: no name is close"),
        ({"P3": "stage3_conv"}, "mine: levels must be C2 .. C5 with a layer name each"),
        ({}, "mine: levels must be C2 .. C5 with a layer name each"),
        (None, "mine: levels must be C2 .. C5 with a layer name each"),
    ],
)
def test_levels_that_cannot_be(model, levels, message):
    with pytest.raises(TfdetError, match=message):
        from_keras(model, levels)


def check_pyramid(model, image, tmp_path):
    backbone = build(model)
    shapes = {level: values.shape[1:3] for level, values in backbone(image(64)).items()}
    assert shapes == {"C2": (16, 16), "C3": (8, 8), "C4": (4, 4), "C5": (2, 2)}
    backbone.save(tmp_path / "backbone.keras")
    again = keras.models.load_model(tmp_path / "backbone.keras")
    np.testing.assert_array_equal(again(image(64))["C5"], backbone(image(64))["C5"])


def test_keras_cv_backbone(image, tmp_path):
    keras_cv = pytest.importorskip("keras_cv")
    model = keras_cv.models.ResNetV2Backbone(
        stackwise_filters=[8, 8, 16, 16],
        stackwise_blocks=[2, 2, 2, 2],
        stackwise_strides=[1, 2, 2, 2],
        include_rescaling=True,
    )
    check_pyramid(model, image, tmp_path)


def test_keras_hub_backbone(image, tmp_path):
    keras_hub = pytest.importorskip("keras_hub")
    model = keras_hub.models.ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[7],
        stackwise_num_filters=[64, 8, 16, 16],
        stackwise_num_blocks=[1, 1, 1, 1],
        stackwise_num_strides=[1, 2, 2, 2],
        block_type="basic_block",
    )
    check_pyramid(model, image, tmp_path)
