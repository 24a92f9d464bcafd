"""How exactly the landmarks of faces are placed."""

from collections.abc import Sequence

import numpy as np

from tfdet import boxes as box_ops
from tfdet.data.dataset import Dataset
from tfdet.evaluation.columns import in_order
from tfdet.inference import Detections
from tfdet.skeleton import FACE

LANDMARK_FIGURES = ("landmark_error", "landmark_recall")
IOU = 0.4


def landmark_error(dataset: Dataset, detections: Sequence[Detections]) -> dict[str, float]:
    """Mean distance of the five landmarks from where they are, in units of the distance of the eyes.

    Of faces whose landmarks are all labelled and that have been found: by each one the detection that overlaps it most,
    if their IoU is above 0.4 (boxes of faces are drawn in many ways). `landmark_recall` is the share of those faces.

    Args:
        dataset: one with the landmarks of `skeleton.FACE`; detections: with the same ones.
    Returns:
        {"landmark_error", "landmark_recall"}; NaN where there is no such face.
    Raises:
        DataError: detections of an image that the data set does not have.
    """
    errors, wanted = [], 0
    by_image = {found.image_id: found for found in in_order(dataset, detections)}
    eyes = [FACE.index("left_eye"), FACE.index("right_eye")]
    for example in dataset.examples:
        faces = ~example.crowd & (example.keypoints[..., 2] > 0).all(axis=1)
        wanted += np.count_nonzero(faces)
        found = by_image.get(example.image_id)
        if not faces.any() or found is None or not len(found.scores):
            continue
        overlaps = np.asarray(box_ops.iou(example.boxes[faces], found.boxes))
        truth, placed = example.keypoints[faces][..., :2], found.keypoints[overlaps.argmax(axis=1)]
        scale = np.linalg.norm(truth[:, eyes[0]] - truth[:, eyes[1]], axis=-1)
        distances = np.linalg.norm(truth - placed, axis=-1).mean(axis=-1) / np.maximum(scale, 1e-12)
        errors += distances[overlaps.max(axis=1) > IOU].tolist()
    return dict(
        zip(
            LANDMARK_FIGURES,
            (np.mean(errors) if errors else np.nan, len(errors) / wanted if wanted else np.nan),
            strict=True,
        )
    )
