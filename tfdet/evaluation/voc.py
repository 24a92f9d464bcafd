"""Average precision by the rules of PASCAL VOC."""

import math
from collections.abc import Sequence

import numpy as np
from pycocotools import mask as coco_mask

from tfdet.data.dataset import Dataset
from tfdet.evaluation.columns import found_of, objects_of
from tfdet.inference import Detections


def voc_average_precision(
    dataset: Dataset, detections: Sequence[Detections], iou_threshold: float = 0.5, eleven_point: bool = True
) -> dict[str, float]:
    """Average precision of every class by the rules of PASCAL VOC, after VOCevaldet.m and VOCap.m of its devkit.

    Over the whole set, best score first (ties: order of the data set, then order given), a detection goes to the
    object of its class and image that it overlaps most. It is right if their IoU is at least `iou_threshold` (`>=` in
    the devkit; py-faster-rcnn's voc_eval.py says `>`) and the object has not been found before, else it is wrong. A
    detection whose object is difficult, or a crowd, is neither, and such objects are not missed either.

    IoU is that of continuous boxes. It is the devkit's, which counts pixels from xmin to xmax inclusive, for boxes read
    as (xmin - 1, ymin - 1, xmax, ymax).

    Args:
        eleven_point: mean of the best precision at recall >= 0, 0.1, .. 1 (VOC2007); False: area under the precision
            made monotone (VOC2010 and later).

    Returns:
        class name -> AP in [0, 1]; NaN for a class of which no object counts.

    Raises:
        DataError: a detection names an image or a class that the data set does not have.
    """
    objects, found = objects_of(dataset), found_of(dataset, detections)
    overlaps, matches = _match(objects, found)
    order = np.argsort(-found.scores, kind="stable")
    labels, overlaps, matches = found.labels[order], overlaps[order], matches[order]

    hit = overlaps >= iou_threshold
    counts = ~np.append(objects.ignored, True)  # the last is for -1, which is no object
    rewarded = np.flatnonzero(hit & counts[matches])
    _, first = np.unique(matches[rewarded], return_index=True)  # of several that hit one object only the best is right
    right = np.zeros(len(labels), bool)
    right[rewarded[first]] = True
    considered = ~hit | counts[matches]

    average_precision = {}
    for label, name in enumerate(dataset.class_names):
        total = np.count_nonzero(~objects.ignored & (objects.labels == label))
        of_class = right[considered & (labels == label)]
        true = np.cumsum(of_class)
        precision = true / np.arange(1, len(true) + 1)
        # From each detection on, the best precision of any recall at least as high.
        precision = np.maximum.accumulate(precision[::-1])[::-1]
        if total == 0:
            average_precision[name] = math.nan
        elif eleven_point:
            # i / 10 and not i * 0.1, which is 0.30000000000000004 at 3 and would refuse a recall of exactly 3 in 10.
            at = np.searchsorted(true / total, np.arange(11) / 10)
            average_precision[name] = float(np.sum(precision[at[at < len(precision)]]) / 11)
        else:
            average_precision[name] = float(np.sum(precision[of_class]) / total)  # recall grows by 1 / total at each
    return average_precision


def _match(objects, found):
    """Each detection with the object of its class and image that it overlaps most.

    Returns:
        overlaps [D] (IoU, 0 where there is no such object) and matches [D] (index of the object, -1 for none).
    """
    overlaps, matches = np.zeros(len(found.labels)), np.full(len(found.labels), -1)
    images = np.intersect1d(objects.images, found.images)
    start, end = (np.searchsorted(objects.images, images, side) for side in ("left", "right"))
    first, last = (np.searchsorted(found.images, images, side) for side in ("left", "right"))
    for i in range(len(images)):
        here, there = slice(first[i], last[i]), slice(start[i], end[i])
        iou = coco_mask.iou(found.boxes[here], objects.boxes[there], np.zeros(end[i] - start[i]))
        iou[found.labels[here, None] != objects.labels[there]] = 0
        overlaps[here] = iou.max(axis=1)
        matches[here] = start[i] + iou.argmax(axis=1)
    return overlaps, np.where(overlaps > 0, matches, -1)
