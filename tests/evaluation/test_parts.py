"""COCO's figures of keypoints and of masks, against tables worked by hand and against pycocotools run directly."""

import contextlib
import io
import json
import math

import numpy as np
import pytest
from hand_made import example, found
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from tfdet import evaluation, inference
from tfdet.data import load_dataset
from tfdet.data.dataset import Dataset, Example
from tfdet.inference import Detections
from tfdet.skeleton import EXTREME_POINTS

# ----------------------------------------------------------------------------------------------------- keypoints


# Two people of 100 x 100 pixels with a nose and two eyes, whose sigmas are 0.026 and 0.025.
FACES = ("nose", "left_eye", "right_eye")
FACE = np.float32([(50, 50, 2), (40, 40, 2), (60, 40, 1)])


def people(*rows, crowd=(), areas=None):
    """A data set of one image; rows: (x at which a person of 100 pixels begins, its keypoints)."""
    boxes = [(x, 0, x + 100, 100) for x, _ in rows]
    one = example("a", boxes, [0] * len(rows), crowd=crowd, areas=areas, size=(200, 600))
    keypoints = np.float32([np.add(keypoints, (x, 0, 0)) for x, keypoints in rows]).reshape(-1, 3, 3)
    one = Example(**{**vars(one), "keypoints": keypoints})
    return Dataset("people", ("person",), (1,), (one,), keypoint_names=FACES)


def poses(*rows):
    """Detections of that image; rows: (x, score, by how many pixels all keypoints are moved)."""
    one = found("a", *(((x, 0, x + 100, 100), score, 0) for x, score, _ in rows))
    keypoints = np.float32([FACE[:, :2] + (x + moved, 0) for x, _, moved in rows]).reshape(-1, 3, 2)
    return [one._replace(keypoints=keypoints, keypoint_scores=np.ones((len(rows), 3), np.float32))]


def oks(distance, area=10_000):
    """The mean over the three keypoints."""
    return np.mean([math.exp(-(distance**2) / (2 * area * (2 * sigma) ** 2)) for sigma in (0.026, 0.025, 0.025)])


UNLABELLED = FACE * (1, 1, 0)
# data set, detections -> AP, AP50, AR. IoU thresholds are 0.5, 0.55, .. 0.95: of an OKS of 0.72 five are met.
assert 0.70 < oks(4.1) < 0.75
POSES = {
    "perfect": (people((0, FACE), (200, FACE)), poses((0, 0.9, 0), (200, 0.8, 0)), 1, 1, 1),
    "4.1 pixels off": (people((0, FACE)), poses((0, 0.9, 4.1)), 0.5, 1, 0.5),
    "far off": (people((0, FACE)), poses((0, 0.9, 40)), 0, 0, 0),
    "one is missed": (people((0, FACE), (200, FACE)), poses((0, 0.9, 0)), 51 / 101, 51 / 101, 0.5),
    "nothing found": (people((0, FACE)), poses(), 0, 0, 0),
    "nothing found at all": (people((0, FACE)), [], 0, 0, 0),
    "one too many": (people((0, FACE)), poses((0, 0.9, 0), (200, 0.8, 0)), 1, 1, 1),
    "a better one too many": (people((0, FACE)), poses((0, 0.8, 0), (200, 0.9, 0)), 0.5, 0.5, 1),
    "a person without keypoints does not count": (people((0, FACE), (200, UNLABELLED)), poses((0, 0.9, 0)), 1, 1, 1),
    "nor does it count to find it": (people((0, FACE), (200, UNLABELLED)), poses((0, 0.8, 0), (200, 0.9, 0)), 1, 1, 1),
    "nor a crowd": (people((0, FACE), (200, FACE), crowd=[1]), poses((0, 0.8, 0), (200, 0.9, 0)), 1, 1, 1),
    "a larger person forgives more": (people((0, FACE), areas=[40_000]), poses((0, 0.9, 4.1)), 0.9, 1, 0.9),
    "nobody": (people(), poses((0, 0.9, 0)), math.nan, math.nan, math.nan),
}
assert 0.90 < oks(4.1, 40_000) < 0.95


@pytest.mark.parametrize(("data", "detections", "ap", "ap50", "ar"), POSES.values(), ids=POSES)
def test_keypoints_by_hand(data, detections, ap, ap50, ar):
    figures = evaluation.keypoint_average_precision(data, detections)
    assert tuple(figures) == evaluation.KEYPOINT_FIGURES and len(figures) == 10
    expected = {"keypoint_AP": ap, "keypoint_AP50": ap50, "keypoint_AR": ar}
    assert {name: figures[name] for name in expected} == pytest.approx(expected, abs=1e-6, nan_ok=True)


def test_joints_that_are_not_labelled_do_not_count():
    """However wrong they are."""
    detections = poses((0, 0.9, 0))
    detections[0].keypoints[0, 2] += 500
    assert evaluation.keypoint_average_precision(people((0, FACE)), detections)["keypoint_AP"] < 0.5
    half = FACE * [(1, 1, 1), (1, 1, 1), (1, 1, 0)]
    assert evaluation.keypoint_average_precision(people((0, half)), detections)["keypoint_AP"] == pytest.approx(1)


def test_same_keypoint_figures_as_pycocotools_on_the_original_file(shared_data, tmp_path):
    data = load_dataset(f"coco_keypoints:{shared_data / 'tiny_coco'}", "val")
    rng, detections, rows = np.random.default_rng(0), [], []
    for e in data.examples:
        count = len(e.boxes)
        size = (e.boxes[:, 2:] - e.boxes[:, :2]).max(axis=1)[:, None, None]
        keypoints = (e.keypoints[..., :2] + rng.normal(0, 0.02, (count, 17, 2)) * size).astype(np.float32)
        scores = rng.permutation(count).astype(np.float32) / 100 + 0.1
        one = Detections(e.image_id, e.boxes, scores, np.zeros(count, np.int32), keypoints, np.ones((count, 17)))
        detections.append(one)
        for box, score, places in zip(e.boxes.tolist(), scores.tolist(), keypoints.astype(float), strict=True):
            bbox = [box[0], box[1], box[2] - box[0], box[3] - box[1]]
            flat = np.pad(places, [(0, 0), (0, 1)], constant_values=1).ravel().tolist()
            row = {"image_id": e.image_id, "category_id": 1, "bbox": bbox, "score": score, "keypoints": flat}
            rows.append(row)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(shared_data / "tiny_coco/annotations/person_keypoints_val2017.json"))
        run = COCOeval(truth, truth.loadRes(rows), "keypoints")
        run.evaluate()
        run.accumulate()
        run.summarize()
    figures = evaluation.keypoint_average_precision(data, detections[::-1])
    assert list(figures.values()) == pytest.approx(run.stats.tolist(), abs=1e-6)
    assert 0.2 < figures["keypoint_AP"] < 0.9


class Finds:
    """Something that finds these."""

    def __init__(self, keypoint_names):
        self.keypoint_names = keypoint_names


def test_keypoints_are_measured_where_there_are_any(monkeypatch):
    data = people((0, FACE))
    monkeypatch.setattr(inference, "detect", lambda *_: poses((0, 0.9, 0)))
    figures = evaluation.evaluate(Finds(FACES), data)
    assert figures["keypoint_AP"] == pytest.approx(1) and figures["keypoint_APm"] is None
    json.dumps(figures, allow_nan=False)
    for names in ((), ("nose",)):
        assert not set(evaluation.KEYPOINT_FIGURES) & set(evaluation.evaluate(Finds(names), data))
    callback = evaluation.Evaluation(data)
    callback.set_model(Finds(FACES))
    logs = {}
    callback.on_epoch_end(0, logs)
    assert logs["val_keypoint_AP50"] == pytest.approx(1) and len(logs) == 22


# --------------------------------------------------------------------------------------------------------- masks


# The octagon of the middles of a box's sides lacks a triangle of 3/8 x 3/8 at each corner: 9/32 of the box.
MIDDLES = np.float32([(50, 0), (0, 50), (50, 100), (100, 50)])
OCTAGON = [62.5, 0, 37.5, 0, 0, 37.5, 0, 62.5, 37.5, 100, 62.5, 100, 100, 62.5, 100, 37.5]
BOX = [0, 0, 100, 0, 100, 100, 0, 100]


def moved(x):
    """The points of an object that begins at x."""
    return np.add(MIDDLES, (x, 0))


def masked(*rows, crowd=(), image_id="a", size=(200, 600)):
    """A data set of one image; rows: (x at which an object of 100 pixels begins, its polygon or None)."""
    one = example(image_id, [(x, 0, x + 100, 100) for x, _ in rows], [0] * len(rows), crowd=crowd, size=size)
    masks = tuple(
        None if polygon is None else coco_mask.frPyObjects([np.add(polygon, [x, 0] * (len(polygon) // 2))], *size)[0]
        for x, polygon in rows
    )
    labelled = [2 * (mask is not None and i not in crowd) for i, mask in enumerate(masks)]
    keypoints = [np.column_stack([moved(x), [v] * 4]) for (x, _), v in zip(rows, labelled, strict=True)]
    one = Example(**{**vars(one), "masks": masks, "keypoints": np.float32(keypoints).reshape(-1, 4, 3)})
    return Dataset("masks", ("thing",), (1,), (one,), keypoint_names=EXTREME_POINTS)


def octagons(*rows, image_id="a"):
    """Detections of that image; rows: (x, score)."""
    one = found(image_id, *(((x, 0, x + 100, 100), score, 0) for x, score in rows))
    keypoints = np.float32([moved(x) for x, _ in rows]).reshape(-1, 4, 2)
    return [one._replace(keypoints=keypoints, keypoint_scores=np.ones((len(rows), 4), np.float32))]


# data set, detections -> AP, AP50, AP75, AR. The IoU of box and octagon is 23/32 = 0.72, which meets five thresholds.
MASKS = {
    "perfect": (masked((0, OCTAGON), (200, OCTAGON)), octagons((0, 0.9), (200, 0.8)), 1, 1, 1, 1),
    "at the border of the image": (masked((540, OCTAGON)), octagons((540, 0.9)), 1, 1, 1, 1),
    "a box is no octagon": (masked((0, BOX)), octagons((0, 0.9)), 0.5, 1, 0, 0.5),
    "elsewhere": (masked((0, OCTAGON)), octagons((90, 0.9)), 0, 0, 0, 0),
    "one is missed": (masked((0, OCTAGON), (200, OCTAGON)), octagons((0, 0.9)), 51 / 101, 51 / 101, 51 / 101, 0.5),
    "nothing found": (masked((0, OCTAGON)), octagons(), 0, 0, 0, 0),
    "nothing found at all": (masked((0, OCTAGON)), [], 0, 0, 0, 0),
    "a better one too many": (masked((0, OCTAGON)), octagons((0, 0.8), (200, 0.9)), 0.5, 0.5, 0.5, 1),
    "but not in a crowd": (
        masked((0, OCTAGON), (200, BOX), crowd=[1]),
        octagons((0, 0.8), (200, 0.9), (200, 0.9)),
        *(1, 1, 1, 1),
    ),
    "nor where no mask is known": (masked((0, OCTAGON), (200, None)), octagons((0, 0.8), (200, 0.9)), 1, 1, 1, 1),
    "which may be missed, too": (masked((0, OCTAGON), (200, None)), octagons((0, 0.8)), 1, 1, 1, 1),
    "nothing there": (masked(), octagons((0, 0.9)), math.nan, math.nan, math.nan, math.nan),
}


@pytest.mark.parametrize(("data", "detections", "ap", "ap50", "ap75", "ar"), MASKS.values(), ids=MASKS)
def test_masks_by_hand(data, detections, ap, ap50, ap75, ar):
    figures = evaluation.mask_average_precision(data, detections)
    assert tuple(figures) == evaluation.MASK_FIGURES and len(figures) == 12
    expected = {"mask_AP": ap, "mask_AP50": ap50, "mask_AP75": ap75, "mask_AR100": ar}
    assert {name: figures[name] for name in expected} == pytest.approx(expected, abs=1e-6, nan_ok=True)


def test_masks_of_images_of_other_sizes():
    """Whose ids are not in their order, either."""
    data = masked((0, OCTAGON), image_id="b", size=(300, 200))
    data = Dataset(**{**vars(data), "examples": (*data.examples, *masked((500, OCTAGON)).examples)})
    detections = octagons((500, 0.9)) + octagons((0, 0.8), image_id="b")
    assert evaluation.mask_average_precision(data, detections)["mask_AP"] == pytest.approx(1)


def test_same_mask_figures_as_pycocotools_on_the_original_file(shared_data):
    data = load_dataset(f"coco_masks:{shared_data / 'tiny_coco'}", "val")
    rng, detections, rows = np.random.default_rng(0), [], []
    for e in data.examples:
        count = len(e.boxes)
        size = (e.boxes[:, 2:] - e.boxes[:, :2])[:, None]
        keypoints = (e.keypoints[..., :2] + rng.normal(0, 0.02, (count, 4, 2)) * size).astype(np.float32)
        scores = rng.permutation(count).astype(np.float32) / 100 + 0.1
        detections.append(Detections(e.image_id, e.boxes, scores, e.labels, keypoints, np.ones((count, 4))))
        for (t, left, b, r), score, label in zip(keypoints.astype(float), scores.tolist(), e.labels, strict=True):
            w, h = (r[0] - left[0]) / 8, (b[1] - t[1]) / 8
            octagon = [
                (min(t[0] + w, r[0]), t[1]),
                (max(t[0] - w, left[0]), t[1]),
                (left[0], max(left[1] - h, t[1])),
                (left[0], min(left[1] + h, b[1])),
                (max(b[0] - w, left[0]), b[1]),
                (min(b[0] + w, r[0]), b[1]),
                (r[0], min(r[1] + h, b[1])),
                (r[0], max(r[1] - h, t[1])),
            ]
            octagon = np.clip(octagon, 0, (e.width, e.height)).ravel().tolist()
            mask = coco_mask.merge(coco_mask.frPyObjects([octagon], e.height, e.width))
            category_id = data.category_ids[label]
            rows.append({"image_id": e.image_id, "category_id": category_id, "segmentation": mask, "score": score})
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(shared_data / "tiny_coco/annotations/instances_val2017.json"))
        run = COCOeval(truth, truth.loadRes(rows), "segm")
        run.evaluate()
        run.accumulate()
        run.summarize()
    figures = evaluation.mask_average_precision(data, detections[::-1])
    assert list(figures.values()) == pytest.approx(run.stats.tolist(), abs=1e-6)
    assert 0.2 < figures["mask_AP"] < 0.9


def test_masks_are_measured_where_there_are_any(monkeypatch):
    data = masked((0, OCTAGON))
    monkeypatch.setattr(inference, "detect", lambda *_: octagons((0, 0.9)))
    figures = evaluation.evaluate(Finds(EXTREME_POINTS), data)
    assert figures["mask_AP"] == figures["keypoint_AP"] == pytest.approx(1) and figures["mask_APs"] is None
    json.dumps(figures, allow_nan=False)
    assert not set(evaluation.MASK_FIGURES) & set(evaluation.evaluate(Finds(()), data))
    without = Dataset(**{**vars(data), "examples": (Example(**{**vars(data.examples[0]), "masks": None}),)})
    assert not set(evaluation.MASK_FIGURES) & set(evaluation.evaluate(Finds(EXTREME_POINTS), without))
    callback = evaluation.Evaluation(data)
    callback.set_model(Finds(EXTREME_POINTS))
    logs = {}
    callback.on_epoch_end(0, logs)
    assert logs["val_mask_AP50"] == pytest.approx(1) and len(logs) == 34
