import hashlib
import io

import numpy as np
import pytest
from PIL import Image

from tfdet.data import load_dataset
from tfdet.data.shapes import draw_example
from tfdet.errors import DataError


@pytest.fixture(scope="module")
def val():
    return load_dataset("shapes", "val")


def test_counts_sizes_and_names(val):
    assert len(val) == 200 and len(load_dataset("shapes", "test")) == 200
    assert val.class_names == ("circle", "square", "triangle")
    assert val.examples[123].image_id == "shapes/val/000123"
    counts = [len(example.boxes) for example in val.examples]
    assert max(counts) == 6 and 1 <= counts.count(0) <= 15
    sides = np.concatenate([example.boxes[:, 2:] - example.boxes[:, :2] for example in val.examples])
    assert 24 <= sides.min() < 35 and 130 < sides.max() <= 160
    labels = np.concatenate([example.labels for example in val.examples])
    assert np.bincount(labels).min() > 0.25 * len(labels)
    for example in val.examples:
        with Image.open(io.BytesIO(example.image)) as image:
            assert image.size == (example.width, example.height)
        assert all(240 <= side <= 400 for side in (example.width, example.height))


def test_the_boxes_never_change(val):
    """Figures measured on this data set may only be compared while this holds."""
    digest = hashlib.sha256()
    for example in val.examples:
        digest.update(example.boxes.astype("<f4").tobytes() + example.labels.astype("<i4").tobytes())
    assert digest.hexdigest()[:16] == "a18fe351e5b19281"


def test_keypoints_are_where_objects_touch_their_boxes(val):
    assert val.keypoint_names == ("top", "left", "bottom", "right")
    for example in val.examples:
        x1, y1, x2, y2 = example.boxes.T
        assert example.keypoints.shape == (len(x1), 4, 3) and (example.keypoints[..., 2] == 2).all()
        (top, left, bottom, right) = example.keypoints[..., :2].transpose(1, 2, 0)
        for place, border in ((top[1], y1), (left[0], x1), (bottom[1], y2), (right[0], x2)):
            np.testing.assert_array_equal(place, border)
        assert (left[1] > y1).all() and (left[1] < y2).all() and (top[0] > x1).all() and (top[0] < x2).all()
        circles = example.labels == 0
        np.testing.assert_allclose(top[0, circles], ((x1 + x2) / 2)[circles], atol=1)


def test_splits_differ_and_are_made_once(val):
    assert load_dataset("shapes", "val") is val
    again = draw_example("val", 7)
    assert again.image == val.examples[7].image
    images = {draw_example(split, index).image for split in ("train", "val", "test") for index in range(10)}
    assert len(images) == 30
    with pytest.raises(ValueError, match="read-only"):
        next(example for example in val.examples if len(example.boxes)).boxes[0] = 0


def test_boxes_are_tight_and_objects_stand_out(val):
    """An object that no other touches differs from the ground around it, right up to the sides of its box."""
    checked = 0
    for example in val.examples[:60]:
        if len(example.boxes) != 1:
            continue
        pixels = np.asarray(Image.open(io.BytesIO(example.image)), np.float32)
        x1, y1, x2, y2 = example.boxes[0].astype(int)
        inside = pixels[(y1 + y2) // 2, (x1 + x2) // 2]
        is_object = np.linalg.norm(pixels - inside, axis=-1) < 60
        rows, columns = np.flatnonzero(is_object.any(axis=1)), np.flatnonzero(is_object.any(axis=0))
        found = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
        np.testing.assert_allclose(found, (x1, y1, x2, y2), atol=2)
        checked += 1
    assert checked >= 4


def test_objects_hide_little_of_each_other(val):
    for example in val.examples:
        for i, a in enumerate(example.boxes):
            for b in example.boxes[i + 1 :]:
                width, height = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
                if width > 0 and height > 0:
                    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
                    assert width * height <= 0.3 * min(areas)


def test_an_unknown_split_lists_what_there_is():
    with pytest.raises(DataError, match='no split "dev"; there are train, val, test'):
        load_dataset("shapes", "dev")
