"""COCO's figures of what a detector finds of an object beside its box: keypoints, or a mask. By pycocotools."""

import contextlib
import io
from collections.abc import Sequence

import numpy as np
from pycocotools import mask as coco_mask
from pycocotools.cocoeval import COCOeval

from tfdet import skeleton
from tfdet.data.dataset import Dataset
from tfdet.evaluation.coco import COCO_FIGURES, annotations_of, numbers_of, pycocotools_of
from tfdet.evaluation.columns import found_of, in_order, joined, objects_of
from tfdet.evaluation.landmarks import landmark_error
from tfdet.extreme_points import octagons
from tfdet.inference import Detections

# As those of boxes, where the likeness of two poses (OKS) stands for the IoU of two boxes; with at most 20
# detections an image, and without small objects, which have no keypoints in COCO.
KEYPOINT_FIGURES = tuple(
    f"keypoint_{name}" for name in ("AP", "AP50", "AP75", "APm", "APl", "AR", "AR50", "AR75", "ARm", "ARl")
)

# As those of boxes, with the IoU of two masks.
MASK_FIGURES = tuple(f"mask_{name}" for name in COCO_FIGURES)


def of_parts(detector, dataset: Dataset, detections: Sequence[Detections]) -> dict[str, float]:
    """`KEYPOINT_FIGURES`, if the data set has the keypoints that the detector finds, and of landmarks of faces
    `LANDMARK_FIGURES`; `MASK_FIGURES`, if it has masks and the detector finds extreme points."""
    figures = {}
    if dataset.keypoint_names and dataset.keypoint_names == detector.keypoint_names:
        figures |= keypoint_average_precision(dataset, detections)
        if dataset.keypoint_names == skeleton.FACE:
            figures |= landmark_error(dataset, detections)
    if _has_masks(dataset) and detector.keypoint_names == skeleton.EXTREME_POINTS:
        figures |= mask_average_precision(dataset, detections)
    return figures


def keypoint_average_precision(dataset: Dataset, detections: Sequence[Detections]) -> dict[str, float]:
    """COCO's ten figures of keypoints (`KEYPOINT_FIGURES`).

    Objects without a labelled keypoint do not count, nor do crowds. Those of people have COCO's sigmas, others the mean
    of these (see tfdet.skeleton). Of several classes it is the mean.

    Args:
        dataset: one with keypoints; detections: with the same ones, in the same order.
    Raises:
        DataError: as `coco_results`.
    """
    count = len(dataset.keypoint_names)
    annotations = _annotations(dataset)
    own = joined(dataset.examples, "keypoints", float, count, 3)
    for annotation, keypoints in zip(annotations, own, strict=True):
        annotation |= {"keypoints": keypoints.ravel().tolist(), "num_keypoints": np.count_nonzero(keypoints[:, 2])}
    places = joined(in_order(dataset, detections), "keypoints", float, count, 2)
    places = np.pad(places, [(0, 0), (0, 0), (0, 1)], constant_values=2.0).reshape(-1, 3 * count)  # all are visible
    boxes = found_of(dataset, detections).boxes
    parts = [
        {"bbox": bbox, "keypoints": keypoints} for bbox, keypoints in zip(boxes.tolist(), places.tolist(), strict=True)
    ]
    sigmas = skeleton.sigmas(dataset.keypoint_names)
    return _figures(KEYPOINT_FIGURES, "keypoints", dataset, annotations, _results(dataset, detections, parts), sigmas)


def mask_average_precision(dataset: Dataset, detections: Sequence[Detections]) -> dict[str, float]:
    """COCO's twelve figures of masks (`MASK_FIGURES`).

    The mask of a detection is the octagon of its extreme points (see `extreme_points.octagons`), as far as it is inside
    the image. An object whose mask is not known counts as a crowd as large as its box: finding it is no mistake, and
    missing it no loss.

    Args:
        dataset: one with masks; detections: with extreme points as keypoints.
    Raises:
        DataError: as `coco_results`.
    """
    annotations = _annotations(dataset)
    own = [(example, mask) for example in dataset.examples for mask in example.masks]
    for annotation, (example, mask) in zip(annotations, own, strict=True):
        if mask is None:
            mask = coco_mask.frPyObjects(np.array([annotation["bbox"]]), example.height, example.width)[0]
            annotation["iscrowd"] = 1
        annotation["segmentation"] = mask
    sizes = {example.image_id: (example.height, example.width) for example in dataset.examples}
    masks = [mask for found in in_order(dataset, detections) for mask in octagon_masks(found, *sizes[found.image_id])]
    parts = [{"segmentation": mask} for mask in masks]
    return _figures(MASK_FIGURES, "segm", dataset, annotations, _results(dataset, detections, parts))


def octagon_masks(found: Detections, height: int, width: int) -> list[dict]:
    """For each detection with extreme points its octagon as compressed RLE of an image of that size in pixels."""
    if not len(found.labels):
        return []
    polygons = np.clip(octagons(found.keypoints), 0, (width, height))
    return coco_mask.frPyObjects(polygons.reshape(-1, 16).tolist(), height, width)


def _has_masks(dataset):
    return any(example.masks is not None for example in dataset.examples)


def _annotations(dataset):
    return annotations_of(objects_of(dataset), numbers_of(dataset).tolist(), range(dataset.num_classes))


def _results(dataset, detections, parts):
    """For each detection a dict with its image, class, score, and these parts of it."""
    found, numbers = found_of(dataset, detections), numbers_of(dataset)
    columns = (numbers[found.images].tolist(), found.labels.tolist(), found.scores.tolist(), parts)
    return [
        {"image_id": image, "category_id": label, "score": score, **part}
        for image, label, score, part in zip(*columns, strict=True)
    ]


def _figures(names, kind, dataset, annotations, results, sigmas=()):
    """What pycocotools says of annotations and results of its own form, a kind of evaluation of its."""
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress and a table
        run = COCOeval(*pycocotools_of(dataset, annotations, results), kind)
        if sigmas:
            run.params.kpt_oks_sigmas = np.array(sigmas)
        run.evaluate()
        run.accumulate()
        run.summarize()
    return dict(zip(names, np.where(run.stats < 0, np.nan, run.stats).tolist(), strict=True))
