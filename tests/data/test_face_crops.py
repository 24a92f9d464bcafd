"""The batches that MTCNN's networks learn from."""

import collections

import numpy as np
import pytest
import tensorflow as tf

from tfdet.data import Dataset, Example
from tfdet.data import mtcnn_samples as samples
from tfdet.data.face_crops import MOST, crop_batches, kinds_found, steps_per_epoch
from tfdet.data.mtcnn_samples import DROPPED, LANDMARK, NAMES, NEGATIVE, PART, POSITIVE, SHARES
from tfdet.errors import TfdetError
from tfdet.skeleton import FACE

BATCH = 70
PLACES = np.float32([(0.3, 0.35), (0.7, 0.35), (0.5, 0.55), (0.35, 0.75), (0.65, 0.75)])  # of landmarks in a face


def example(draw_image, name, boxes, crowd=(), landmarks=True, size=(120, 160), format="PNG"):
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    places = boxes[:, None, :2] + PLACES * (boxes[:, None, 2:] - boxes[:, None, :2])
    keypoints = np.concatenate([places, np.full((len(boxes), 5, 1), 2.0 if landmarks else 0.0)], axis=2)
    return Example(
        image_id=name,
        image=draw_image(*size, boxes.astype(int), [0] * len(boxes), format),
        height=size[0],
        width=size[1],
        boxes=boxes,
        labels=np.zeros(len(boxes), np.int32),
        crowd=np.array(crowd or [False] * len(boxes), bool),
        difficult=np.zeros(len(boxes), bool),
        areas=np.prod(boxes[:, 2:] - boxes[:, :2], axis=1),
        keypoints=keypoints.astype(np.float32),
    )


def dataset(*examples):
    return Dataset("faces train", ("face",), (1,), examples, keypoint_names=FACE)


@pytest.fixture(scope="module")
def faces(draw_image):
    return dataset(
        example(draw_image, "two", [(20, 30, 60, 78), (100, 20, 140, 60)]),
        example(draw_image, "none", []),
        example(draw_image, "tiny and crowd", [(5, 5, 15, 17), (60, 40, 130, 110)], crowd=[False, True]),
        example(draw_image, "grey", [(50, 50, 90, 95)], format="JPEG"),
        example(draw_image, "smaller than a square", [], size=(9, 15)),
    )


def gathered(batches):
    """All of them as one: (crops, targets, weights)."""
    batches = list(batches.as_numpy_iterator())
    return tf.nest.map_structure(lambda *parts: np.concatenate(parts), *batches)


@pytest.mark.parametrize("side", [12, 24, 48])
def test_every_batch_has_the_shares(faces, side):
    steps = 0
    for crops, targets, weights in crop_batches(faces, faces, side, BATCH, 20).as_numpy_iterator():
        steps += 1
        assert crops.shape == (BATCH, side, side, 3) and crops.dtype == np.float32
        assert crops.min() >= 0 and crops.max() <= 255
        assert targets["box"].shape == (BATCH, 4) and targets["landmarks"].shape == (BATCH, 10)
        # Of any seven in a row: what a replica gets has the same shares.
        for seven in targets["face"].reshape(-1, 7):
            assert collections.Counter(seven.tolist()) == SHARES
        kind = targets["face"]
        np.testing.assert_array_equal(weights["face"], 1)
        np.testing.assert_array_equal(weights["box"], np.isin(kind, (POSITIVE, PART)) * 3.5)
        np.testing.assert_array_equal(weights["landmarks"], (kind == LANDMARK) * 3.5)
        assert weights["box"].mean() == weights["landmarks"].mean() == 1
        assert not targets["box"][~np.isin(kind, (POSITIVE, PART))].any()
        assert not targets["landmarks"][kind != LANDMARK].any()
    assert steps == steps_per_epoch(faces, BATCH) == 5 * 96 // 30


def test_what_targets_say_is_in_the_crops(faces):
    """Faces are red: inside the box that is said to be in the crop, and not in the rest of it."""
    crops, targets, _ = gathered(crop_batches(faces, faces, 48, BATCH, 20, augment=False))
    y, x = np.mgrid[:48, :48] + 0.5
    red = crops[..., 0] - crops[..., 1] > 60
    kind = targets["face"]
    for number in np.flatnonzero((kind == POSITIVE) | (kind == PART)):
        x1, y1, x2, y2 = targets["box"][number] * 48 + (1, 1, 48, 48)
        inside = (x > x1 + 2) & (x < x2 - 2) & (y > y1 + 2) & (y < y2 - 2)
        outside = (x < x1 - 2) | (x > x2 + 2) | (y < y1 - 2) | (y > y2 + 2)
        assert red[number][inside].mean() > 0.95
        assert red[number][outside].sum() <= 0.3 * outside.sum()  # another face may be in sight
    assert red[kind == NEGATIVE].mean() < 0.3 < red[kind == POSITIVE].mean()
    # Where eyes, nose and mouth are in a face is the same in all of them here.
    places = targets["landmarks"][kind == LANDMARK].reshape(-1, 2, 5)
    widths = (places[:, 0, 1] - places[:, 0, 0]) / 0.4
    left = places[:, 0, 0] - 0.3 * widths
    np.testing.assert_allclose(places[:, 0], left[:, None] + widths[:, None] * PLACES[:, 0], atol=1e-4)
    assert (np.abs(left + widths / 2 - 0.5) < 0.35).all()
    assert widths.min() < 0.75 < 1 < widths.max()  # squares of 0.8 to 1.5 times the face


def test_the_same_seed_gives_the_same_batches_and_epochs_differ(faces):
    def some(seed, epoch, skip=0):
        batches = crop_batches(faces, faces, 12, BATCH, 20, seed=seed, epoch=epoch)
        return next(batches.skip(skip).as_numpy_iterator())

    steps = steps_per_epoch(faces, BATCH)
    first, again, second = some(5, 0), some(5, 0), some(5, 1)
    tf.nest.map_structure(np.testing.assert_array_equal, first, again)
    # A run that goes on with the second epoch gets what it would have got.
    tf.nest.map_structure(np.testing.assert_array_equal, some(5, 0, steps), second)
    assert np.abs(second[0] - first[0]).mean() > 1
    assert np.abs(some(6, 0)[0] - first[0]).mean() > 1


def test_squares_that_were_found_are_what_is_learnt(faces):
    """R-Net and O-Net: no square is drawn by lot."""
    found = tf.ragged.constant(
        [
            [(21, 31, 60, 78), (30, 31, 70, 78), (101, 81, 140, 120)],
            [(1, 1, 40, 40)],
            [(61, 41, 130, 110), (6, 6, 15, 17), (100, 1, 120, 20)],  # a crowd, a tiny face, nothing
            [],
            [],
        ],
        ragged_rank=1,
        inner_shape=(4,),
        dtype=tf.float32,
    )
    assert kinds_found(faces, found, 20) == {NEGATIVE: 3, POSITIVE: 1, PART: 1, DROPPED: 2}
    crops, targets, _ = gathered(crop_batches(faces, faces, 24, BATCH, 20, found=found, augment=False))
    for kind, count in ((POSITIVE, 1), (PART, 1), (NEGATIVE, 3)):
        of_kind = crops[targets["face"] == kind]
        assert len(np.unique(of_kind, axis=0)) == count
        # Drawn equally often: none twice before all have been.
        numbers = np.unique(of_kind, axis=0, return_counts=True)[1]
        assert numbers.max() - numbers.min() <= 1
    moves = targets["box"][targets["face"] == POSITIVE][0]
    np.testing.assert_allclose(moves * (40, 48, 40, 48), np.subtract((20, 30, 60, 78), (21, 31, 60, 78)), atol=1e-4)


def test_an_image_gives_no_more_than_its_share(draw_image):
    one = dataset(example(draw_image, "one", [(20, 30, 60, 70)]))
    corners = np.stack(np.meshgrid(np.arange(70, 130, 2), np.arange(1, 60, 3)), axis=-1).reshape(-1, 2)
    squares = np.concatenate([[(21, 31, 60, 70), (30, 31, 70, 70)], np.pad(corners, [(0, 0), (0, 2)])])
    squares[2:, 2:] = corners + 19
    found = tf.RaggedTensor.from_row_lengths(squares.astype(np.float32), [len(squares)])
    assert kinds_found(one, found, 20)[NEGATIVE] == len(corners) > MOST[NEGATIVE]
    crops, targets, _ = gathered(crop_batches(one, one, 24, 7, 20, found=found, augment=False))
    negatives = crops[targets["face"] == NEGATIVE]
    assert len(negatives) == len(np.unique(negatives, axis=0)) == MOST[NEGATIVE]


def test_a_kind_that_there_is_not_is_named(draw_image):
    empty = dataset(example(draw_image, "empty", []))
    with_face = dataset(example(draw_image, "face", [(20, 30, 60, 70)]))
    with pytest.raises(tf.errors.InvalidArgumentError, match="there are no positives in 1 images"):
        gathered(crop_batches(empty, with_face, 12, 7, 20))


def test_landmarks_that_are_not_these_are_refused(faces):
    others = Dataset("other faces", ("face",), (1,), faces.examples)
    with pytest.raises(TfdetError, match="other faces has no keypoints; mtcnn learns left_eye"):
        crop_batches(faces, others, 12, BATCH, 20)


def test_faces_without_landmarks_give_no_landmark_crops(faces, draw_image):
    unlabelled = example(draw_image, "unlabelled", [(5, 5, 100, 100)], landmarks=False)
    crops, targets, _ = gathered(crop_batches(faces, dataset(unlabelled, *faces.examples), 12, 35, 20, augment=False))
    red = (crops[..., 0] - crops[..., 1] > 60).mean(axis=(1, 2))[targets["face"] == LANDMARK]
    assert len(red) and (targets["landmarks"][targets["face"] == LANDMARK] != 0).all()


def test_names_and_shares_agree():
    assert set(NAMES) == set(SHARES) and sum(SHARES.values()) == 7
    assert [SHARES[kind] for kind in (POSITIVE, NEGATIVE, PART, LANDMARK)] == [1, 3, 1, 2]
    assert samples.DROPPED not in SHARES
