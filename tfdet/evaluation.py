"""How good detections are: COCO's twelve figures, PASCAL VOC's average precision, and a callback that watches them.

Ground truth comes as a `Dataset`, predictions as one `Detections` an image, both in pixels of the original images.
COCO's figures are computed by pycocotools, the code whose numbers everybody quotes. A figure that has no meaning,
because no object counts towards it, is NaN here (pycocotools itself says -1).

The extra `fast-eval` puts hotcoco in its place, which gives the same twelve figures (tests compare them to 1e-9).
"""

import contextlib
import io
import json
import math
import os
from collections.abc import Sequence
from typing import NamedTuple

import keras
import numpy as np
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from tfdet import inference
from tfdet.data.dataset import Dataset
from tfdet.errors import DataError
from tfdet.inference import Detections

try:
    import hotcoco  # the extra "fast-eval"
except ImportError:
    hotcoco = None

# In the order of COCOeval.stats: AP over IoU 0.50:0.95, at 0.50, at 0.75, of small (area < 32²), medium and large
# (> 96²) objects; recall with at most 1, 10 and 100 detections an image, and of small, medium and large objects.
COCO_FIGURES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


class CocoResult(NamedTuple):
    """figures: the twelve of `COCO_FIGURES`. per_class: class name -> {"AP", "AP50"}. In [0, 1], or NaN."""

    figures: dict[str, float]
    per_class: dict[str, dict[str, float]]


def coco_ground_truth(dataset: Dataset) -> dict:
    """The annotations as a COCO "instances" dict, ready for `json.dump` or for pycocotools.

    COCO has no difficult objects. They become `iscrowd` = 1, which comes nearest: finding one is no mistake and missing
    one is no loss. (Nearest only: COCO divides the intersection with a crowd by the area of the detection alone.)

    Image and category ids are the data set's own; `area` is `Example.areas`. Annotations are numbered from 1, because
    pycocotools takes a match with annotation 0 for no match.
    """
    images, annotations = [], []
    for example in dataset.examples:
        file = os.path.basename(example.image) if isinstance(example.image, str) else str(example.image_id)
        images.append({"id": example.image_id, "file_name": file, "height": example.height, "width": example.width})
        columns = (_xywh(example.boxes), example.labels, example.areas, example.crowd | example.difficult)
        for bbox, label, area, iscrowd in zip(*(column.tolist() for column in columns), strict=True):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": example.image_id,
                    "category_id": dataset.category_ids[label],
                    "bbox": bbox,
                    "area": area,
                    "iscrowd": int(iscrowd),
                }
            )
    pairs = zip(dataset.category_ids, dataset.class_names, strict=True)
    categories = [{"id": category_id, "name": name} for category_id, name in pairs]
    return {"images": images, "annotations": annotations, "categories": categories}


def coco_results(dataset: Dataset, detections: Sequence[Detections]) -> list[dict]:
    """The detections in COCO's results format: image_id, category_id, bbox as xywh pixels, score. Nothing is rounded.

    Raises:
        DataError: a detection names an image or a class that the data set does not have.
    """
    results = []
    for _, found in _in_order(dataset, detections):
        columns = (_xywh(found.boxes), found.scores, found.labels)
        for bbox, score, label in zip(*(column.tolist() for column in columns), strict=True):
            category_id = dataset.category_ids[label]
            results.append({"image_id": found.image_id, "category_id": category_id, "bbox": bbox, "score": score})
    return results


def save_coco_results(path, dataset: Dataset, detections: Sequence[Detections]) -> None:
    """Write `coco_results` as JSON: boxes to a thousandth of a pixel; scores whole, since rounding makes ties of them.

    Raises:
        DataError: as `coco_results`.
    """
    results = coco_results(dataset, detections)
    for result in results:
        result["bbox"] = [round(value, 3) for value in result["bbox"]]
    with open(path, "w", encoding="utf-8") as file:
        json.dump(results, file)


def coco_average_precision(dataset: Dataset, detections: Sequence[Detections]) -> CocoResult:
    """COCO's figures of the whole data set and AP, AP50 of every class, from one run of pycocotools.

    With the extra `fast-eval`, hotcoco runs instead: the same figures in a hundredth of the time.

    Detections are matched to images by `image_id`; an image without any counts as one in which nothing was found.
    COCO looks at the 100 best of each class in an image. No detections give 0, no objects give NaN.

    Raises:
        DataError: as `coco_results`.
    """
    with contextlib.redirect_stdout(io.StringIO()):  # evaluators print their progress and a table
        truth, found, evaluator = _load(dataset, detections)
        run = evaluator(truth, found, "bbox")
        run.evaluate()
        run.accumulate()
        run.summarize()
    stats, categories = np.asarray(run.stats)[: len(COCO_FIGURES)], np.asarray(run.params.catIds)
    figures = np.where(stats < 0, np.nan, stats).tolist()
    precision = np.asarray(run.eval["precision"])[:, :, :, 0, -1]  # [IoU, recall, class]: all sizes, 100 found
    precision = np.where(precision < 0, np.nan, precision)
    precision = precision[:, :, np.searchsorted(categories, dataset.category_ids)]  # from sorted ids to labels
    per_class = {
        name: {"AP": float(np.mean(precision[:, :, label])), "AP50": float(np.mean(precision[0, :, label]))}
        for label, name in enumerate(dataset.class_names)
    }
    return CocoResult(dict(zip(COCO_FIGURES, figures, strict=True)), per_class)


def coco_figures(dataset: Dataset, detections: Sequence[Detections]) -> dict[str, float]:
    """The twelve figures of `coco_average_precision` alone."""
    return coco_average_precision(dataset, detections).figures


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
    scores, labels, overlaps, objects, object_labels, counts = _match(dataset, detections)
    order = np.argsort(-scores, kind="stable")
    labels, overlaps, objects = labels[order], overlaps[order], objects[order]

    hit = overlaps >= iou_threshold
    rewarded = np.flatnonzero(hit & counts[objects])
    _, first = np.unique(objects[rewarded], return_index=True)  # of several that hit one object only the best is right
    right = np.zeros(len(labels), bool)
    right[rewarded[first]] = True
    considered = ~hit | counts[objects]

    average_precision = {}
    for label, name in enumerate(dataset.class_names):
        total = np.count_nonzero(counts[:-1] & (object_labels == label))
        of_class = right[considered & (labels == label)]
        found = np.cumsum(of_class)
        precision = found / np.arange(1, len(found) + 1)
        # From each detection on, the best precision of any recall at least as high.
        precision = np.maximum.accumulate(precision[::-1])[::-1]
        if total == 0:
            average_precision[name] = math.nan
        elif eleven_point:
            # i / 10 and not i * 0.1, which is 0.30000000000000004 at 3 and would refuse a recall of exactly 3 in 10.
            at = np.searchsorted(found / total, np.arange(11) / 10)
            average_precision[name] = float(np.sum(precision[at[at < len(precision)]]) / 11)
        else:
            average_precision[name] = float(np.sum(precision[of_class]) / total)  # recall grows by 1 / total at each
    return average_precision


def evaluate(detector, dataset: Dataset, batch_size: int = 8, verbose: int = 0) -> dict:
    """Run a detector over a data set and return everything measured, as a dict that is valid JSON (NaN is None).

    Args:
        verbose: 1 shows Keras' progress bar.
    Returns:
        {"images": count, one entry for each of `COCO_FIGURES`, "VOC_AP_11point" and "VOC_AP_area": means over the
        classes that have objects, "per_class": {name: {"AP", "AP50", "VOC_AP_11point", "VOC_AP_area", "objects"}}},
        where "objects" counts those that are neither difficult nor crowds. VOC's are at IoU 0.5.
    """
    detections = inference.detect(detector, dataset, batch_size, verbose)
    coco = coco_average_precision(dataset, detections)
    voc = {
        "VOC_AP_11point": voc_average_precision(dataset, detections),
        "VOC_AP_area": voc_average_precision(dataset, detections, eleven_point=False),
    }
    objects = np.zeros(dataset.num_classes, np.int64)
    for example in dataset.examples:
        np.add.at(objects, example.labels[~(example.crowd | example.difficult)], 1)
    per_class = {}
    for name, count in zip(dataset.class_names, objects.tolist(), strict=True):
        figures = coco.per_class[name] | {kind: voc[kind][name] for kind in voc}
        per_class[name] = _without_nan(figures) | {"objects": count}
    means = {kind: _mean_of_defined(voc[kind].values()) for kind in voc}
    return {"images": len(dataset)} | _without_nan(coco.figures | means) | {"per_class": per_class}


class Evaluation(keras.callbacks.Callback):
    """Evaluates after every `every`-th epoch and puts the twelve COCO figures into the logs: val_AP, val_AP50, ...

    Callbacks that follow it in `fit(callbacks=[...])`, the progress bar and the history see them like any other metric
    (Keras hands the same dict to each, and appends its own History last). Those that monitor one need to be told its
    direction: `ModelCheckpoint(path, monitor="val_AP50", mode="max", save_best_only=True)`.

    The first epoch of a `fit` is always evaluated, and epochs between two evaluations repeat the last figures: so the
    columns of a CSVLogger are complete, and ModelCheckpoint never sees a NaN that comes of not having looked yet
    (Keras takes a NaN in the first epoch for the best value for good). `EarlyStopping(patience=...)` counts epochs,
    repeated ones too.
    """

    def __init__(self, dataset: Dataset, every: int = 1, batch_size: int = 8):
        super().__init__()
        self.dataset, self.every, self.batch_size = dataset, every, batch_size
        self.figures = None

    def on_train_begin(self, logs=None):
        self.figures = None

    def on_epoch_end(self, epoch, logs=None):
        if self.figures is None or (epoch + 1) % self.every == 0:
            detections = inference.detect(self.model, self.dataset, self.batch_size)
            self.figures = coco_figures(self.dataset, detections)
        if logs is not None:
            logs.update({f"val_{name}": value for name, value in self.figures.items()})


def _in_order(dataset, detections) -> list[tuple[int, Detections]]:
    """The detections, checked, in the order of the data set's images, each with the index of its image."""
    index = {example.image_id: i for i, example in enumerate(dataset.examples)}
    if len(index) < len(dataset):
        raise DataError(f"{dataset.name}: two images have the same id, so detections cannot be told apart")
    for found in detections:
        if found.image_id not in index:
            raise DataError(f"{dataset.name}: detections for image {found.image_id!r}, which it does not have")
        if wrong := set(found.labels.tolist()) - set(range(dataset.num_classes)):
            raise DataError(f"{dataset.name}: image {found.image_id!r}: no class has the label {min(wrong)}")
    return sorted(((index[found.image_id], found) for found in detections), key=lambda pair: pair[0])


def _match(dataset, detections):
    """Each detection with the object of its class and image that it overlaps most.

    Returns:
        Of the D detections: scores [D], labels [D], overlaps [D] (IoU, 0 where there is no such object), objects [D]
        (index of the object, -1 for none). Of the M objects of all images: labels [M], and counts, bool [M + 1]:
        neither difficult nor crowd, with False at the end for the object -1.
    """
    starts = np.cumsum([0] + [len(example.boxes) for example in dataset.examples])
    # Each list starts with an empty array, so that there is something to concatenate and its type is known.
    scores, labels, overlaps, objects = [np.zeros(0)], [np.zeros(0, int)], [np.zeros(0)], [np.zeros(0, int)]
    for i, found in _in_order(dataset, detections):
        example = dataset.examples[i]
        best, index = np.zeros(len(found.boxes)), np.full(len(found.boxes), -1)
        if len(found.boxes) and len(example.boxes):
            iou = coco_mask.iou(_xywh(found.boxes), _xywh(example.boxes), [0] * len(example.boxes))
            iou[found.labels[:, None] != example.labels] = 0
            best, index = iou.max(axis=1), starts[i] + iou.argmax(axis=1)
        scores.append(found.scores)
        labels.append(found.labels)
        overlaps.append(best)
        objects.append(np.where(best > 0, index, -1))
    object_labels = [np.zeros(0, int)] + [example.labels for example in dataset.examples]
    counts = [~(example.crowd | example.difficult) for example in dataset.examples] + [np.array([False])]
    return tuple(np.concatenate(column) for column in (scores, labels, overlaps, objects, object_labels, counts))


def _load(dataset, detections):
    """Ground truth and detections as the evaluator's own objects, and its COCOeval."""
    annotations = coco_ground_truth(dataset)
    # Image ids may be strings; numbers in the order of the ids keep the order in which equal scores are counted.
    number = {image_id: i for i, image_id in enumerate(sorted(image["id"] for image in annotations["images"]))}
    for image in annotations["images"]:
        image["id"] = number[image["id"]]
    for annotation in annotations["annotations"]:
        annotation["image_id"] = number[annotation["image_id"]]
    results, categories = [np.zeros((0, 7))], np.asarray(dataset.category_ids)
    for _, found in _in_order(dataset, detections):
        image = np.full(len(found.boxes), number[found.image_id])
        results.append(np.column_stack([image, _xywh(found.boxes), found.scores, categories[found.labels]]))
    results = np.concatenate(results)
    if hotcoco is not None:
        truth = hotcoco.COCO(annotations)
        return truth, truth.loadRes(results), hotcoco.COCOeval
    truth = _indexed(annotations)
    found = truth.loadRes(results) if len(results) else _indexed(annotations | {"annotations": []})
    return truth, found, COCOeval


def _indexed(annotations: dict) -> COCO:
    coco = COCO()
    coco.dataset = annotations
    coco.createIndex()
    return coco


def _xywh(boxes):
    """float64 [N, 4], because pycocotools counts in doubles: float32 differences are exact in them."""
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)


def _mean_of_defined(values) -> float:
    defined = [value for value in values if not math.isnan(value)]
    return sum(defined) / len(defined) if defined else math.nan


def _without_nan(figures: dict) -> dict:
    return {name: None if math.isnan(value) else value for name, value in figures.items()}
