import math

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfdet
from tfdet.detectors.centernet_pose import (
    CenterNetPoseDecoder,
    CenterNetPoseLoss,
    CenterNetPoseTargetEncoder,
    centernet_pose,
)
from tfdet.errors import TfdetError

KEYPOINTS_OF_BOXES = ("top", "left", "bottom", "right")


def backbone():
    """A network of one convolution, of stride 4."""
    image = keras.Input((None, None, 3))
    x = keras.layers.Rescaling(1 / 128, -1.0)(image)
    x = keras.layers.Conv2D(8, 4, 4, activation="relu")(x)
    return keras.Model(image, {"stack1": x}, name="one_convolution")


@pytest.fixture(scope="module")
def small():
    """One that knows nothing. Tests leave its weights as they find them."""
    keras.utils.set_random_seed(0)
    return centernet_pose(("red", "blue"), backbone(), side=64, keypoint_names=KEYPOINTS_OF_BOXES)


# --- targets ---


def encode(boxes, keypoints, max_objects=3):
    """Of a fed image of 40 pixels a side, which has 10 x 10 cells; of one class and two joints."""
    encoder = CenterNetPoseTargetEncoder(1, 2, (40, 40), max_objects=max_objects)
    boxes, keypoints = np.float32(boxes).reshape(-1, 4), np.float32(keypoints).reshape(-1, 2, 3)
    targets = encoder(boxes, np.zeros(len(boxes), np.int32), keypoints)
    n = max_objects
    assert {name: (target.shape, target.dtype) for name, target in targets.items()} == {
        "heatmap": ((10, 10, 1), tf.float32),
        "joint_heatmap": ((10, 10, 2), tf.float32),
        "cells": ((n, 2), tf.int32),
        "size": ((n, 2), tf.float32),
        "offset": ((n, 2), tf.float32),
        "joints": ((n, 2, 2), tf.float32),
        "joint_cells": ((n, 2, 2), tf.int32),
        "joint_offset": ((n, 2, 2), tf.float32),
    }
    return {name: target.numpy() for name, target in targets.items()}


def test_targets_by_hand():
    """A person around (2.75, 3.75) cells, a visible joint at (2.5, 3.25) and a hidden one at (3.25, 5)."""
    targets = encode([(8, 12, 14, 18)], [[(10, 13, 2), (13, 20, 1)]])
    np.testing.assert_array_equal(targets["cells"], [(3, 2), (-1, -1), (-1, -1)])
    np.testing.assert_allclose(targets["size"][0], (1.5, 1.5))
    np.testing.assert_allclose(targets["offset"][0], (0.75, 0.75))
    np.testing.assert_allclose(targets["joints"][0], [(0.5, 0.25), (1.25, 2)])
    np.testing.assert_array_equal(targets["joint_cells"], [[(3, 2), (5, 3)], [(-1, -1)] * 2, [(-1, -1)] * 2])
    np.testing.assert_allclose(targets["joint_offset"][0], [(0.5, 0.25), (0.25, 0)])
    assert np.argwhere(targets["heatmap"] == 1).tolist() == [[3, 2, 0]]
    assert np.argwhere(targets["joint_heatmap"] == 1).tolist() == [[3, 2, 0], [5, 3, 1]]


@pytest.mark.parametrize(
    ("joint", "learnt"),
    [((0, 0, 2), True), ((39.9, 39.9, 1), True), ((40, 5, 2), False), ((5, -0.1, 2), False), ((5, 5, 0), False)],
)
def test_which_joints_are_learnt(joint, learnt):
    targets = encode([(8, 12, 14, 18)], [[joint, (10, 13, 2)]])
    assert targets["joint_heatmap"][..., 0].any() == learnt
    assert (targets["joint_cells"][0, 0] >= 0).all() == learnt
    np.testing.assert_array_equal(targets["cells"][0], (3, 2))


def test_a_person_without_labelled_joints_is_in_the_heatmap_only():
    """Not so one whose joints all lie beside the image."""
    targets = encode([(8, 12, 14, 18), (24, 24, 36, 36)], [[(9, 13, 0)] * 2, [(50, 30, 2), (30, 50, 2)]])
    np.testing.assert_array_equal(targets["cells"], [(-1, -1), (7, 7), (-1, -1)])
    assert (targets["heatmap"] == 1).sum() == 2
    assert not targets["joint_heatmap"].any() and (targets["joint_cells"] == -1).all()


def test_the_joints_of_what_is_no_object_are_not_learnt():
    targets = encode([(10, 10, 10, 20), (50, 10, 60, 20)], [[(10, 13, 2), (13, 20, 1)]] * 2)
    assert not targets["heatmap"].any() and not targets["joint_heatmap"].any()
    assert (targets["cells"] == -1).all() and (targets["joint_cells"] == -1).all()


def test_no_objects_and_too_many():
    targets = encode([], [])
    assert not targets["joint_heatmap"].any() and (targets["joint_cells"] == -1).all()
    boxes = [(8 * i, 0, 8 * i + 4, 4) for i in range(4)]
    targets = encode(boxes, [[(8 * i, 0, 2), (8 * i, 8, 2)] for i in range(4)], max_objects=2)
    assert (targets["joint_heatmap"] == 1).sum() == 8
    np.testing.assert_array_equal(targets["joint_cells"][1], [(0, 2), (2, 2)])


# --- loss ---


def test_loss_by_hand():
    """Two people in one image of 2 x 2 cells; the second has one joint to learn, the first none, but it is one."""
    heatmap, joint_heatmap = np.zeros((1, 2, 2, 1), np.float32), np.zeros((1, 2, 2, 2), np.float32)
    heatmap[0, 0, 1], joint_heatmap[0, 1, 0, 1] = 1, 1
    targets = {
        "heatmap": heatmap,
        "joint_heatmap": joint_heatmap,
        "cells": np.int32([[(0, 0), (0, 1)]]),
        "size": np.float32([[(1, 1), (3, 4)]]),
        "offset": np.float32([[(0, 0), (0.5, 0.5)]]),
        "joints": np.float32([[[(9, 9), (9, 9)], [(9, 9), (-1, 2)]]]),
        "joint_cells": np.int32([[[(-1, -1), (-1, -1)], [(-1, -1), (1, 0)]]]),
        "joint_offset": np.float32([[[(9, 9), (9, 9)], [(9, 9), (0.25, 0.5)]]]),
    }
    maps = {name: np.zeros((1, 2, 2, count), np.float32) for name, count in (("size", 2), ("offset", 2))}
    maps |= {"joints": np.zeros((1, 2, 2, 4), np.float32), "joint_offset": np.zeros((1, 2, 2, 2), np.float32)}
    maps["joints"][0, 0, 1] = (7, 7, 1, 1)
    maps["joint_offset"][0, 1, 0] = (0.5, 1)
    maps |= {"heatmap": np.full((1, 2, 2, 1), -50, np.float32), "joint_heatmap": np.full((1, 2, 2, 2), -50, np.float32)}
    maps["heatmap"][0, 0, 1], maps["joint_heatmap"][0, 1, 0, 1] = 0, math.log(9)  # 0.5 and 0.9
    parts = CenterNetPoseLoss()(targets, {name: (value, value) for name, value in maps.items()})
    assert tuple(parts) == CenterNetPoseLoss.parts
    assert {name: float(part) for name, part in parts.items()} == {
        "heatmap": pytest.approx(-0.25 * math.log(0.5), rel=1e-5),
        "size": pytest.approx(0.1 * (1 + 1 + 3 + 4) / 4, rel=1e-4),
        "offset": pytest.approx(1 / 4, rel=1e-4),
        "joints": pytest.approx((2 + 1) / 2, rel=1e-4),
        "joint_heatmap": pytest.approx(-0.01 * math.log(0.9), rel=1e-4),
        "joint_offset": pytest.approx((0.25 + 0.5) / 2, rel=1e-4),
    }


# --- decoder ---


def decode(peaks, way=(2, 1)):
    """A person around (5.5, 5.5) cells, 6 wide and 8 high, whose only joint lies at `way` from cell (5, 5).

    peaks: {(row, column): (probability, offset)} of the joint's heatmap. Returns the joint in cells, and its score.
    """

    def empty(channels, value=0.0):
        return np.full((1, 12, 12, channels), value, np.float32)

    outputs = {"heatmap": empty(1, -50), "size": empty(2, 1), "offset": empty(2), "joints": empty(2)}
    outputs |= {"joint_heatmap": empty(1, -50), "joint_offset": empty(2)}
    outputs["heatmap"][0, 5, 5], outputs["size"][0, 5, 5], outputs["offset"][0, 5, 5] = 4, (6, 8), (0.5, 0.5)
    outputs["joints"][0, 5, 5] = way
    for (row, column), (probability, offset) in peaks.items():
        outputs["joint_heatmap"][0, row, column] = math.log(probability / (1 - probability))
        outputs["joint_offset"][0, row, column] = offset
    outputs = {name: (np.full_like(value, 7), value) for name, value in outputs.items()}
    found = CenterNetPoseDecoder()({**outputs, "image_sizes": np.float32([(48, 48)])})
    assert int(found["num_detections"][0]) == 1
    np.testing.assert_allclose(found["boxes"][0, 0], (10, 6, 34, 38), atol=1e-5)
    assert (found["keypoints"].shape, found["keypoint_scores"].shape) == ((1, 100, 1, 2), (1, 100, 1))
    assert not np.any(found["keypoints"][0, 1:])
    return (found["keypoints"][0, 0, 0] / 4).numpy().tolist(), float(found["keypoint_scores"][0, 0, 0])


# The way leads to (7, 6); the box reaches from (2.5, 1.5) to (8.5, 9.5), a peak counts within 2.4 cells.
JOINTS = {
    "no peak": ({}, (7, 6), 0),
    "a peak": ({(6, 6): (0.8, (0.5, 0.25))}, (6.5, 6.25), 0.8),
    "the nearest of two": ({(6, 5): (0.9, (0, 0)), (7, 8): (0.3, (0, 0))}, (8, 7), 0.3),
    "too faint": ({(6, 6): (0.09, (0.5, 0.5))}, (7, 6), 0),
    "a faint one beside a better one further off": ({(6, 7): (0.05, (0, 0)), (8, 8): (0.5, (0, 0))}, (8, 8), 0.5),
    "just near enough": ({(8, 6): (0.5, (0, 0.1))}, (6, 8.1), 0.5),  # 2.33 cells off
    "too far off": ({(8, 5): (0.5, (0.5, 0))}, (7, 6), 0),  # 2.5 cells off
    "just inside the box": ({(6, 8): (0.5, (0.4, 0))}, (8.4, 6), 0.5),
    "outside the box": ({(6, 8): (0.5, (0.6, 0))}, (7, 6), 0),
}


@pytest.mark.parametrize(("peaks", "place", "score"), JOINTS.values(), ids=JOINTS)
def test_joints_by_hand(peaks, place, score):
    found, found_score = decode(peaks)
    np.testing.assert_allclose(found, place, atol=1e-5)
    assert found_score == pytest.approx(score, rel=1e-5)


def test_a_joint_may_lie_beside_the_image():
    assert decode({}, way=(9, -7))[0] == [14, -2]


# --- the released code ---

# Two images of 64 x 96 pixels; joints beside the image, hidden, not labelled, and a box without area.
BOXES = [
    [(3, 5, 61, 40), (20, 9.5, 33, 70), (-8, 12, 9, 30.5), (50, 40, 66, 44)],
    [(10, 10, 10, 30), (1, 2, 45, 90), (7.25, 3, 64, 95)],
]
LABELS = [[0, 0, 1, 1], [0, 1, 0]]
KEYPOINTS = [
    [
        [(10, 8, 2), (32, 20.5, 1), (70, 30, 2)],
        [(26, 10, 1), (0, 0, 0), (63.9, 95.9, 2)],
        [(-4, 20, 2), (3, 14, 2), (6, 29, 1)],
        [(0, 0, 0), (0, 0, 0), (0, 0, 0)],
    ],
    [[(10, 20, 2)] * 3, [(20, 20, 2), (20, 21, 2), (40, 88, 1)], [(30, 20, 2), (0, 0, 0), (41, 89, 2)]],
]


def waves(*shape):
    n = np.arange(np.prod(shape), dtype=np.float64)
    return np.sin(n * n * 0.37 + n).reshape(shape)


def released_maps():
    def slow(channels):
        return np.sin(0.0131 * np.arange(2 * 24 * 16 * channels)).reshape(2, 24, 16, channels)

    maps = {"heatmap": 3 * waves(2, 24, 16, 2) + slow(2) - 3, "size": 5 + 4 * waves(2, 24, 16, 2)}
    maps |= {"offset": 0.5 + 0.5 * waves(2, 24, 16, 2), "joints": 4 * waves(2, 24, 16, 6)}
    maps |= {"joint_heatmap": 3 * waves(2, 24, 16, 3) + slow(3) - 3, "joint_offset": 0.5 + 0.5 * waves(2, 24, 16, 2)}
    return {name: tf.Variable(value, dtype=tf.float32) for name, value in maps.items()}


# Printed by xingyizhou/CenterNet for that: targets as in multi_pose.py, the losses of losses.py, multi_pose_decode.
SUMS = [[10.080618, 2.614604], [14.073759, 14.073759]]  # of each image and class
JOINT_SUMS = [[9.846831, 9.960790, 2.903590], [20.829229, 14.073759, 11.916597]]
LOSSES = {"heatmap": 16.47492, "size": 0.761733, "offset": 0.3908511}  # weighted
LOSSES |= {"joints": 4.630723, "joint_heatmap": 13.49757, "joint_offset": 0.4367545}
SLOPES = {"heatmap": 1.226322, "size": 0.03162246, "offset": 0.3162246}  # norms of the gradients
SLOPES |= {"joints": 0.2131998, "joint_heatmap": 0.8724055, "joint_offset": 0.2317726}
DETECTED = [  # of the first image: box, score, label, joints. Some are those of peaks: in the first row the second
    (13.066911, -1.9555168, 30.221817, 33.92586, 0.7238212, 1),
    (24.244677, 58.134956, 54.258873, 93.77506, 0.7172276, 1),
    (18.372303, -1.8713198, 42.71283, 33.785534, 0.7168436, 1),
]
JOINTS_DETECTED = [
    [(16.654663, 27.333696), (14.976594, 4.023979), (12.442665, 18.186779)],
    [(20.028698, 58.124306), (48.51369, 83.94597), (21.39877, 82.9068)],
    [(38.696472, 15.047607), (15.906493, 7.595578), (35.831276, 7.8456798)],
]


def test_targets_and_losses_are_those_of_the_released_code():
    encoder, maps = CenterNetPoseTargetEncoder(2, 3, (96, 64)), released_maps()
    scenes = zip(BOXES, LABELS, KEYPOINTS, strict=True)
    encoded = [encoder(np.float32(boxes), np.int32(labels), np.float32(joints)) for boxes, labels, joints in scenes]
    targets = {name: tf.stack([one[name] for one in encoded]) for name in encoded[0]}
    np.testing.assert_allclose(np.sum(targets["heatmap"], axis=(1, 2)), SUMS, rtol=1e-6)
    np.testing.assert_allclose(np.sum(targets["joint_heatmap"], axis=(1, 2)), JOINT_SUMS, rtol=1e-6)
    with tf.GradientTape() as tape:
        parts = CenterNetPoseLoss()(targets, {name: (value,) for name, value in maps.items()})
        total = sum(parts.values())
    assert {name: float(part) for name, part in parts.items()} == pytest.approx(LOSSES, rel=1e-5)
    slopes = tape.gradient(total, maps)
    norms = {name: float(tf.norm(tf.convert_to_tensor(slope))) for name, slope in slopes.items()}
    assert norms == pytest.approx(SLOPES, rel=1e-5)


def test_detections_are_those_of_the_released_code():
    """Boxes clipped to the image, which it does not do."""
    outputs = {name: (value,) for name, value in released_maps().items()} | {"image_sizes": np.float32([(96, 64)] * 2)}
    found = CenterNetPoseDecoder(keep=20)(outputs)
    found = {name: value[0, :3] for name, value in found.items() if name != "num_detections"}
    expected = np.array(DETECTED)
    np.testing.assert_allclose(found["boxes"], np.clip(expected[:, :4], 0, (64, 96, 64, 96)), atol=1e-4)
    np.testing.assert_allclose(found["scores"], expected[:, 4], rtol=1e-5)
    np.testing.assert_array_equal(found["labels"], expected[:, 5])
    np.testing.assert_allclose(found["keypoints"], JOINTS_DETECTED, atol=1e-4)
    np.testing.assert_array_equal(
        found["keypoint_scores"].numpy() > 0, [(False, True, False), (False, True, False), (True, False, True)]
    )


# --- network ---


def test_maps_and_training_batches(small, make_dataset):
    outputs = small(np.zeros((1, 64, 96, 3), np.float32))
    channels = {"heatmap": 2, "size": 2, "offset": 2, "joints": 8, "joint_heatmap": 4, "joint_offset": 2}
    assert {name: value[0].shape for name, value in outputs.items() if name != "image_sizes"} == {
        name: (1, 16, 24, count) for name, count in channels.items()
    }
    np.testing.assert_allclose(tf.sigmoid(outputs["joint_heatmap"][0]), np.full((1, 16, 24, 4), 0.1), atol=0.05)
    dataset = make_dataset((90, 120, [(10, 10, 60, 80)], [0]), (200, 50, [], []))
    ((images, targets),) = tfdet.training_batches(dataset, small, 2)
    assert images.shape == (2, 64, 64, 3) and targets["joint_cells"].shape == (2, 32, 4, 2)


def test_validation_batches_scale_keypoints(small, make_dataset):
    """The middles of the sides of a box, in an image that becomes half as large."""
    dataset = make_dataset((96, 128, [(16, 24, 80, 88)], [1]))
    _, targets = next(iter(tfdet.validation_batches(dataset, small, 1)))
    np.testing.assert_array_equal(targets["joint_cells"][0, 0], [(3, 6), (7, 2), (11, 6), (7, 10)])


def test_other_keypoints_are_refused(small, make_dataset):
    dataset = make_dataset((90, 120, [(10, 10, 60, 80)], [0]))
    people = centernet_pose(backbone=backbone(), side=64)
    assert people.class_names == ("person",) and len(people.keypoint_names) == 17
    for batches in (tfdet.training_batches, tfdet.validation_batches):
        with pytest.raises(TfdetError, match=r"drawn has top, left, .*; centernet_pose learns nose, left_eye"):
            batches(dataset, people, 1)
    with pytest.raises(TfdetError, match="keypoint left_eye: a mirror makes it right_eye, which there is not"):
        centernet_pose(1, backbone(), side=64, keypoint_names=("nose", "left_eye"))


# --- a second look ---


def test_with_flip_the_mirror_image_has_the_mirrored_people(small):
    image = np.random.default_rng(2).uniform(0, 255, (1, 64, 64, 3)).astype(np.float32)
    twice = tfdet.with_flip_and_scales(small)
    seen = []
    twice.decoder = lambda outputs: seen.append(outputs) or small.decoder(outputs)
    for pixels in (image, image[:, :, ::-1]):
        twice.detect(pixels, np.ones((1, 4), np.float32))
    one, other = ({name: np.array(value[-1]) for name, value in outputs.items()} for outputs in seen)
    exchanged = [0, 3, 2, 1]
    np.testing.assert_allclose(
        one["joint_heatmap"][0], other["joint_heatmap"][0, :, ::-1, exchanged].transpose(1, 2, 0), atol=1e-5
    )
    ways, mirrored = (
        one["joints"].reshape(16, 16, 4, 2),
        other["joints"].reshape(16, 16, 4, 2)[:, ::-1][:, :, exchanged],
    )
    np.testing.assert_allclose(ways[..., 0], 1 - mirrored[..., 0], atol=1e-6)
    np.testing.assert_allclose(ways[..., 1], mirrored[..., 1], atol=1e-6)
    assert (one["joint_heatmap"] != np.array(small(image)["joint_heatmap"][-1])).any()


def test_the_keypoints_found_at_several_scales_are_in_pixels_of_the_image(small):
    image = np.random.default_rng(3).uniform(0, 255, (1, 64, 64, 3)).astype(np.float32)
    twice = tfdet.with_flip_and_scales(small, flip=False, scales=(2.0, 2.0))
    larger = tfdet.with_flip_and_scales(small, flip=False, scales=(2.0,))
    found, alone = (one.predict(image, verbose=0) for one in (twice, larger))
    assert found["num_detections"][0] > 0
    np.testing.assert_allclose(found["keypoints"][0, 0], alone["keypoints"][0, 0], rtol=1e-5)
    np.testing.assert_allclose(found["boxes"][0, 0], alone["boxes"][0, 0], rtol=1e-5)
    centre = (found["boxes"][0, 0, :2] + found["boxes"][0, 0, 2:]) / 2
    assert (abs(found["keypoints"][0, 0] - centre) < 3).all()  # it knows nothing: all ways are 0
