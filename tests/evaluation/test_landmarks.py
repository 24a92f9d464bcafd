"""How exactly landmarks are placed: by hand."""

import math

import numpy as np
import pytest

from tfdet.data import Dataset, Example
from tfdet.errors import DataError
from tfdet.evaluation import landmark_error
from tfdet.inference import Detections
from tfdet.skeleton import FACE

FACES = np.float32([(0, 0, 100, 100), (200, 0, 300, 100), (0, 200, 100, 300)])
PLACES = np.float32([(30, 40), (70, 40), (50, 60), (35, 80), (65, 80)])  # the eyes are 40 apart


def dataset(labelled=(True, True, False), crowd=(False, False, False)):
    keypoints = FACES[:, None, :2] + PLACES
    visible = np.repeat(np.where(labelled, 2, 0), 5).reshape(3, 5, 1)
    example = Example(
        image_id="a",
        image="a.png",
        height=400,
        width=400,
        boxes=FACES,
        labels=np.zeros(3, np.int32),
        crowd=np.array(crowd),
        difficult=np.zeros(3, bool),
        areas=np.full(3, 1e4),
        keypoints=np.concatenate([keypoints, visible], axis=2).astype(np.float32),
    )
    return Dataset("faces", ("face",), (1,), (example,), keypoint_names=FACE)


def found(*faces, image_id="a"):
    """Detections: (box, how far each landmark of the face there is off, x and y)."""
    boxes = np.float32([box for box, _ in faces]).reshape(-1, 4)
    places = np.float32([np.add(box[:2], PLACES) + off for box, off in faces]).reshape(-1, 5, 2)
    count = len(faces)
    return [Detections(image_id, boxes, np.ones(count), np.zeros(count, np.int32), places, np.ones((count, 5)))]


@pytest.mark.parametrize(
    ("faces", "error", "recall"),
    [
        ([(FACES[0], 0), (FACES[1], 0)], 0, 1),
        ([(FACES[0], (4, 0)), (FACES[1], (0, 8))], (4 + 8) / 2 / 40, 1),
        ([(FACES[0], [(0, 0), (0, 0), (10, 0), (0, 0), (0, 0)])], 10 / 5 / 40, 0.5),
        # The detection that overlaps most counts, and one that overlaps by 0.4 or less does not.
        ([((0, 0, 100, 90), 8), ((0, 0, 100, 99), 0)], 0, 0.5),
        ([((200, 0, 240, 100), 0), (FACES[0], (4, 0))], 0.1, 0.5),
        # The third face has no landmarks: whatever is found there does not matter.
        ([(FACES[0], 0), (FACES[2], 50)], 0, 0.5),
        ([], math.nan, 0),
    ],
)
def test_landmark_error(faces, error, recall):
    figures = landmark_error(dataset(), found(*faces))
    np.testing.assert_allclose([figures["landmark_error"], figures["landmark_recall"]], [error, recall], atol=1e-6)


def test_crowds_and_unlabelled_faces_do_not_count():
    nothing = landmark_error(dataset(labelled=(False, False, False)), found((FACES[0], 3)))
    assert math.isnan(nothing["landmark_error"]) and math.isnan(nothing["landmark_recall"])
    assert landmark_error(dataset(crowd=(False, True, False)), found((FACES[0], 0)))["landmark_recall"] == 1


def test_images_without_detections_are_missed_faces():
    assert landmark_error(dataset(), []) == pytest.approx(
        {"landmark_error": math.nan, "landmark_recall": 0}, nan_ok=True
    )
    with pytest.raises(DataError):
        landmark_error(dataset(), found((FACES[0], 0), image_id="b"))
