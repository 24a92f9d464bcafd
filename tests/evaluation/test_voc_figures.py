"""VOC's average precision against tables worked by hand and against the devkit written out."""

import math

import numpy as np
import pytest
from hand_made import FAR, HALF_OF_A, LESS_THAN_HALF_OF_A, A, B, C, cats, cats_found, dataset, example, found, perturbed

from tfdet import evaluation
from tfdet.data.dataset import Dataset, Example


@pytest.mark.parametrize(
    ("case", "examples", "detections", "eleven_point", "area"),
    [
        ("all found", [cats(A, B)], [cats_found((A, 0.9), (B, 0.8))], 1, 1),
        ("none found", [cats(A, B)], [cats_found((FAR, 0.9))], 0, 0),
        ("no detections", [cats(A)], [], 0, 0),
        ("no objects", [cats()], [cats_found((A, 0.9))], math.nan, math.nan),
        ("only difficult objects", [cats(A, difficult=[0])], [cats_found((A, 0.9))], math.nan, math.nan),
        # Recall 1/2 at precision 1: six of the eleven points (0 .. 0.5).
        ("half found", [cats(A, B)], [cats_found((A, 0.9))], 6 / 11, 1 / 2),
        # right, wrong, right: precision 1, 1/2, 2/3 at recall 1/2, 1/2, 1.
        ("a mistake between", [cats(A, B)], [cats_found((A, 0.9), (FAR, 0.8), (B, 0.7))], (6 + 5 * 2 / 3) / 11, 5 / 6),
        # The second detection of A is wrong: as above.
        ("found twice", [cats(A, B)], [cats_found((A, 0.9), (A, 0.8), (B, 0.7))], (6 + 5 * 2 / 3) / 11, 5 / 6),
        # wrong, right: precision 1/2 everywhere once made monotone.
        ("a mistake first", [cats(A)], [cats_found((FAR, 0.9), (A, 0.8))], 1 / 2, 1 / 2),
        # The best score decides, not the better overlap: 0.9 is right, 0.8 is wrong.
        ("better overlap comes second", [cats(A)], [cats_found((A, 0.8), (HALF_OF_A, 0.9))], 1, 1),
        ("IoU exactly at the threshold", [cats(A)], [cats_found((HALF_OF_A, 0.9))], 1, 1),
        ("IoU below the threshold", [cats(A)], [cats_found((LESS_THAN_HALF_OF_A, 0.9))], 0, 0),
        ("difficult found first", [cats(A, B, difficult=[0])], [cats_found((A, 0.9), (B, 0.8))], 1, 1),
        ("difficult found twice", [cats(A, B, difficult=[0])], [cats_found((A, 0.9), (A, 0.8), (B, 0.7))], 1, 1),
        ("difficult missed", [cats(A, B, difficult=[0])], [cats_found((B, 0.8))], 1, 1),
        ("crowd is like difficult", [cats(A, B, crowd=[0])], [cats_found((A, 0.9), (B, 0.8))], 1, 1),
        # Recall 3/10 reaches the points 0, 0.1, 0.2 and 0.3.
        ("three of ten", [cats(A, *[FAR] * 7, B, C)], [cats_found((A, 0.9), (B, 0.8), (C, 0.7))], 4 / 11, 3 / 10),
        # Ties: the order of the data set, then the order given; the detections' own order of images is nothing.
        ("tie, right first", [cats(A)], [cats_found((A, 0.9), (FAR, 0.9))], 1, 1),
        ("tie, wrong first", [cats(A)], [cats_found((FAR, 0.9), (A, 0.9))], 1 / 2, 1 / 2),
        (
            "tie across images",
            [cats(A, image_id="z"), cats(image_id="a")],
            [cats_found((FAR, 0.9), image_id="a"), cats_found((A, 0.9), image_id="z")],
            1,
            1,
        ),
        # Scores are ranked over the whole set: wrong 0.9 in one image comes before right 0.8 in the other.
        (
            "two images",
            [cats(A, image_id="a"), cats(B, image_id="b")],
            [cats_found((A, 0.8), image_id="a"), cats_found((A, 0.9), image_id="b")],
            6 / 11 / 2,
            1 / 4,
        ),
    ],
)
def test_voc_average_precision_by_hand(case, examples, detections, eleven_point, area):
    expected = {"cat": pytest.approx(eleven_point, nan_ok=True), "dog": pytest.approx(math.nan, nan_ok=True)}
    assert evaluation.voc_average_precision(dataset(*examples), detections) == expected
    expected["cat"] = pytest.approx(area, nan_ok=True)
    assert evaluation.voc_average_precision(dataset(*examples), detections, eleven_point=False) == expected


def test_voc_classes_do_not_mix():
    data = dataset(example("a", [A, A, B], [0, 1, 1]))
    detections = [found("a", (A, 0.9, 1), (B, 0.8, 0), (B, 0.7, 1), (A, 0.6, 0))]
    result = evaluation.voc_average_precision(data, detections, eleven_point=False)
    assert result == pytest.approx({"cat": 1 / 2, "dog": 1.0})


def test_voc_iou_threshold():
    data, detections = dataset(cats(A)), [cats_found((LESS_THAN_HALF_OF_A, 0.9))]
    assert evaluation.voc_average_precision(data, detections, iou_threshold=0.4)["cat"] == 1.0
    # Even at 0, what overlaps nothing finds nothing.
    assert evaluation.voc_average_precision(data, [cats_found((FAR, 0.9))], iou_threshold=0)["cat"] == 0.0


def devkit_average_precision(data, detections, label, eleven_point):
    """VOCevaldet.m and VOCap.m written out box by box, to compare with."""
    truth, rows = {}, []
    for e in data.examples:
        ignored = e.crowd | e.difficult
        truth[e.image_id] = [[e.boxes[i].astype(float), ignored[i], False] for i in np.flatnonzero(e.labels == label)]
    for d in detections:
        rows += [(d.image_id, d.boxes[i].astype(float), d.scores[i]) for i in np.flatnonzero(d.labels == label)]
    tp, fp = [], []
    for image_id, box, _ in sorted(rows, key=lambda row: -row[2]):
        best, match = -1, None
        for thing in truth[image_id]:
            low, high = np.maximum(box[:2], thing[0][:2]), np.minimum(box[2:], thing[0][2:])
            shared = np.prod(np.clip(high - low, 0, None))
            overlap = shared / (np.prod(box[2:] - box[:2]) + np.prod(thing[0][2:] - thing[0][:2]) - shared)
            if overlap > best:
                best, match = overlap, thing
        ignored = best >= 0.5 and match[1]
        correct = best >= 0.5 and not match[1] and not match[2]
        if correct:
            match[2] = True
        tp.append(correct)
        fp.append(not correct and not ignored)
    total = sum(not thing[1] for things in truth.values() for thing in things)
    tp, fp = np.cumsum(tp), np.cumsum(fp)
    recall = [0, *tp / total, 1]
    precision = [0, *tp / np.maximum(tp + fp, 1), 0]
    if eleven_point:
        reached = [[p for r, p in zip(recall, precision, strict=True) if r > i / 10 - 1e-9] for i in range(11)]
        return sum(max(p) for p in reached) / 11
    for i in range(len(precision) - 2, -1, -1):
        precision[i] = max(precision[i], precision[i + 1])
    return sum((recall[i] - recall[i - 1]) * precision[i] for i in range(1, len(recall)))


@pytest.mark.parametrize("eleven_point", [True, False])
def test_voc_average_precision_is_the_devkits(tiny_coco, eleven_point):
    data = tiny_coco
    rng = np.random.default_rng(2)
    hard = [Example(**{**vars(e), "difficult": rng.random(len(e.labels)) < 0.2}) for e in data.examples]
    data = Dataset(data.name, data.class_names, data.category_ids, tuple(hard))
    detections = perturbed(data, rng)
    result = evaluation.voc_average_precision(data, detections, eleven_point=eleven_point)
    defined = [(label, ap) for label, ap in enumerate(result.values()) if not math.isnan(ap)]
    assert len(defined) > 40
    for label, ap in defined:
        assert ap == pytest.approx(devkit_average_precision(data, detections, label, eleven_point), abs=1e-12)
