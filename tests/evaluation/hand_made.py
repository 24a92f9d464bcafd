"""Ground truth and detections for the tables of these tests."""

import numpy as np

from tfdet.data.dataset import Dataset, Example
from tfdet.inference import Detections


def example(image_id, boxes, labels, difficult=(), crowd=(), areas=None, size=(200, 200)):
    """`difficult` and `crowd` are indices of boxes."""
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    if areas is None:
        areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    index = np.arange(len(boxes))
    return Example(
        image_id=image_id,
        image=f"somewhere/{image_id}.jpg",
        height=size[0],
        width=size[1],
        boxes=boxes,
        labels=np.array(labels, np.int32),
        crowd=np.isin(index, crowd),
        difficult=np.isin(index, difficult),
        areas=np.array(areas, np.float32),
    )


def dataset(*examples, names=("cat", "dog"), ids=None):
    return Dataset("test", names, ids or tuple(range(1, len(names) + 1)), examples)


def found(image_id, *boxes_scores_labels):
    boxes, scores, labels = zip(*boxes_scores_labels, strict=True) if boxes_scores_labels else ((), (), ())
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    return Detections(image_id, boxes, np.array(scores, np.float32), np.array(labels, np.int32))


def perturbed(data, rng, ids=lambda image_id: image_id):
    """Detections that are partly right: shaken, missing, doubled and mislabelled ground truth."""
    result = []
    for e in data.examples:
        pick = np.flatnonzero(rng.random(len(e.boxes)) < 0.8)
        pick = np.concatenate([pick, pick[rng.random(len(pick)) < 0.3]])
        sizes = np.tile(e.boxes[pick, 2:] - e.boxes[pick, :2], 2)
        boxes = (e.boxes[pick] + rng.normal(0, 0.06, (len(pick), 4)) * sizes).astype(np.float32)
        wrong = rng.random(len(pick)) < 0.1
        labels = np.where(wrong, rng.integers(0, data.num_classes, len(pick)), e.labels[pick]).astype(np.int32)
        scores = rng.integers(1, 40, len(pick)).astype(np.float32) / 40  # many ties, within and across images
        result.append(Detections(ids(e.image_id), boxes, scores, labels))
    return result


A, B, C, FAR = [0, 0, 10, 10], [50, 50, 60, 60], [100, 100, 110, 110], [150, 150, 160, 160]
HALF_OF_A, LESS_THAN_HALF_OF_A = [0, 0, 10, 5], [0, 0, 10, 4.9]


def cats(*boxes, difficult=(), crowd=(), image_id="a"):
    return example(image_id, boxes, [0] * len(boxes), difficult=difficult, crowd=crowd)


def cats_found(*boxes_scores, image_id="a"):
    return found(image_id, *((box, score, 0) for box, score in boxes_scores))
