import numpy as np
import pytest
import tensorflow as tf

from tfdet.backbones import keypoints
from tfdet.backbones.hourglass import hourglass, hourglass_slim
from tfdet.errors import TfdetError

# Of CenterNet's `exkp` with two levels, dims 8, 12, 16 and modules 2, 1, 2
CENTERNET = {
    "stack1": (3.77884, [1.82977, 4.18267, 0, 0], [0, 0, 3.68479, 0]),
    "stack2": (66.07798, [17.2759, 0, 17.7764, 28.5158], [182.713, 0, 0, 111.947]),
}


def small():
    return hourglass((8, 12, 16), (2, 1, 2))


def test_equals_centernet(released, image, assert_map):
    model = small()
    keypoints.load(model, released(model), decoder="kps.")
    found = model(image(63))
    assert list(found) == ["stack1", "stack2"]
    for name, values in found.items():
        assert values.shape == (1, 16, 16, 8)
        assert_map(values, CENTERNET[name])


def test_every_stack_trains(image):
    model = small()
    with tf.GradientTape() as tape:
        loss = sum(tf.reduce_mean(tf.square(values)) for values in model(image(32), training=True).values())
    gradients = tape.gradient(loss, model.trainable_variables)
    assert all(np.isfinite(gradient).all() and np.any(gradient) for gradient in gradients)


def test_one_stack_and_more(image):
    for stacks in (1, 3):
        found = hourglass((4, 6), (1, 1), stacks)(image(16))
        assert list(found) == [f"stack{i + 1}" for i in range(stacks)]
        assert {tuple(values.shape) for values in found.values()} == {(1, 4, 4, 4)}


@pytest.mark.parametrize(("side", "legal"), [(16, True), (15, True), (14, False), (24, False), (17, False)])
def test_sides(side, legal, image):
    model = small()
    if legal:
        assert model(image(side))["stack2"].shape == (1, 4, 4, 8)
    else:
        with pytest.raises(TfdetError, match=f"{side} x {side} pixels: sides must be multiples of 16, or one"):
            model(image(side))


def test_the_slim_one(image):
    (name, values), *rest = hourglass_slim()(image(63)).items()
    assert (name, tuple(values.shape), rest) == ("stack1", (1, 16, 16, 48), [])
