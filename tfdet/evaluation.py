"""How good detections are: COCO's twelve figures and its ten of keypoints, PASCAL VOC's average precision, and a
callback that watches them.

Ground truth comes as a `Dataset`, predictions as one `Detections` an image, both in pixels of the original images.
COCO's figures are computed by pycocotools, the code whose numbers everybody quotes. A figure that has no meaning,
because no object counts towards it, is NaN here (pycocotools itself says -1).

The extra `fast-eval` puts hotcoco in its place, which gives the same twelve figures (tests compare them to 1e-9); those
of keypoints are always pycocotools'.
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

from tfdet import inference, skeleton
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

# The same of keypoints, where the likeness of two poses (OKS) stands for the IoU of two boxes; with at most 20
# detections an image, and without small objects, which have no keypoints in COCO.
KEYPOINT_FIGURES = tuple(
    f"keypoint_{name}" for name in ("AP", "AP50", "AP75", "APm", "APl", "AR", "AR50", "AR75", "ARm", "ARl")
)


class CocoResult(NamedTuple):
    """figures: the twelve of `COCO_FIGURES`. per_class: class name -> {"AP", "AP50"}. In [0, 1], or NaN."""

    figures: dict[str, float]
    per_class: dict[str, dict[str, float]]


def coco_ground_truth(dataset: Dataset) -> dict:
    """The annotations as a COCO "instances" dict, ready for `json.dump` or for pycocotools.

    COCO has no difficult objects. They become `iscrowd` = 1, which comes nearest: finding one is no mistake and missing
    one is no loss. (Nearest only: COCO divides the intersection with a crowd by the area of the detection alone.)

    Image and category ids are the data set's own; `area` is `Example.areas`.
    """
    images = []
    for example in dataset.examples:
        file = os.path.basename(example.image) if isinstance(example.image, str) else str(example.image_id)
        images.append({"id": example.image_id, "file_name": file, "height": example.height, "width": example.width})
    pairs = zip(dataset.category_ids, dataset.class_names, strict=True)
    categories = [{"id": category_id, "name": name} for category_id, name in pairs]
    image_ids = [example.image_id for example in dataset.examples]
    annotations = _annotations(_objects(dataset), image_ids, dataset.category_ids)
    return {"images": images, "annotations": annotations, "categories": categories}


def coco_results(dataset: Dataset, detections: Sequence[Detections]) -> list[dict]:
    """The detections in COCO's results format: image_id, category_id, bbox as xywh pixels, score. Nothing is rounded.

    Raises:
        DataError: a detection names an image or a class that the data set does not have.
    """
    found = _found(dataset, detections)
    columns = (found.images, found.labels, found.boxes, found.scores)
    return [
        {
            "image_id": dataset.examples[image].image_id,
            "category_id": dataset.category_ids[label],
            "bbox": bbox,
            "score": score,
        }
        for image, label, bbox, score in zip(*(column.tolist() for column in columns), strict=True)
    ]


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
    stats = np.asarray(run.stats)[: len(COCO_FIGURES)]
    figures = np.where(stats < 0, np.nan, stats).tolist()
    precision = np.asarray(run.eval["precision"])[:, :, :, 0, -1]  # [IoU, recall, class]: all sizes, 100 found
    precision = np.where(precision < 0, np.nan, precision)
    per_class = {
        name: {"AP": float(np.mean(precision[:, :, label])), "AP50": float(np.mean(precision[0, :, label]))}
        for label, name in enumerate(dataset.class_names)
    }
    return CocoResult(dict(zip(COCO_FIGURES, figures, strict=True)), per_class)


def coco_figures(dataset: Dataset, detections: Sequence[Detections]) -> dict[str, float]:
    """The twelve figures of `coco_average_precision` alone."""
    return coco_average_precision(dataset, detections).figures


def keypoint_average_precision(dataset: Dataset, detections: Sequence[Detections]) -> dict[str, float]:
    """COCO's ten figures of keypoints (`KEYPOINT_FIGURES`), by pycocotools.

    Objects without a labelled keypoint do not count, nor do crowds. Those of people have COCO's sigmas, others the mean
    of these (see tfdet.skeleton). Of several classes it is the mean.

    Args:
        dataset: one with keypoints; detections: with the same ones, in the same order.
    Raises:
        DataError: as `coco_results`.
    """
    count = len(dataset.keypoint_names)
    found, numbers = _found(dataset, detections), _numbers(dataset).tolist()
    annotations = _annotations(_objects(dataset), numbers, range(dataset.num_classes))
    own = _joined(dataset.examples, "keypoints", float, count, 3)
    for annotation, keypoints in zip(annotations, own, strict=True):
        annotation |= {"keypoints": keypoints.ravel().tolist(), "num_keypoints": np.count_nonzero(keypoints[:, 2])}
    places = _joined(_in_order(dataset, detections), "keypoints", float, count, 2)
    places = np.pad(places, [(0, 0), (0, 0), (0, 1)], constant_values=2.0).reshape(-1, 3 * count)  # all are visible
    columns = (found.images, found.labels, found.boxes, found.scores, places)
    results = [
        {"image_id": numbers[image], "category_id": label, "bbox": bbox, "score": score, "keypoints": keypoints}
        for image, label, bbox, score, keypoints in zip(*(column.tolist() for column in columns), strict=True)
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        run = COCOeval(*_pycocotools(dataset, annotations, results), "keypoints")
        run.params.kpt_oks_sigmas = np.array(skeleton.sigmas(dataset.keypoint_names))
        run.evaluate()
        run.accumulate()
        run.summarize()
    figures = np.where(run.stats < 0, np.nan, run.stats).tolist()
    return dict(zip(KEYPOINT_FIGURES, figures, strict=True))


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
    objects, found = _objects(dataset), _found(dataset, detections)
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


def evaluate(detector, dataset: Dataset, batch_size: int = 8, verbose: int = 0) -> dict:
    """Run a detector over a data set and return everything measured, as a dict that is valid JSON (NaN is None).

    Keypoints are measured if the data set has those that the detector finds.

    Args:
        verbose: 1 shows Keras' progress bar.
    Returns:
        {"images": count, one entry for each of `COCO_FIGURES` and `KEYPOINT_FIGURES`, "VOC_AP_11point" and
        "VOC_AP_area": means over the classes that have objects, "per_class": {name: {"AP", "AP50", "VOC_AP_11point",
        "VOC_AP_area", "objects"}}}, where "objects" counts those that are neither difficult nor crowds. VOC's are at
        IoU 0.5.
    """
    detections = inference.detect(detector, dataset, batch_size, verbose)
    coco = coco_average_precision(dataset, detections)
    voc = {
        "VOC_AP_11point": voc_average_precision(dataset, detections),
        "VOC_AP_area": voc_average_precision(dataset, detections, eleven_point=False),
    }
    objects = _objects(dataset)
    counts = np.bincount(objects.labels[~objects.ignored], minlength=dataset.num_classes)
    per_class = {}
    for name, count in zip(dataset.class_names, counts.tolist(), strict=True):
        figures = coco.per_class[name] | {kind: voc[kind][name] for kind in voc}
        per_class[name] = _without_nan(figures) | {"objects": count}
    means = {kind: _mean_of_defined(voc[kind].values()) for kind in voc} | _of_keypoints(detector, dataset, detections)
    return {"images": len(dataset)} | _without_nan(coco.figures | means) | {"per_class": per_class}


def _of_keypoints(detector, dataset, detections):
    """`KEYPOINT_FIGURES`, if there are any."""
    if dataset.keypoint_names and dataset.keypoint_names == detector.keypoint_names:
        return keypoint_average_precision(dataset, detections)
    return {}


class Evaluation(keras.callbacks.Callback):
    """Evaluates after every `every`-th epoch and puts COCO's figures into the logs: val_AP, val_AP50, ... and, of a
    detector that finds the data set's keypoints, val_keypoint_AP, ...

    Callbacks that follow it in `fit(callbacks=[...])`, the progress bar and the history see them like any other metric
    (Keras hands the same dict to each, and appends its own History last). Those that monitor one need to be told its
    direction: `ModelCheckpoint(path, monitor="val_AP50", mode="max", save_best_only=True)`.

    The first epoch of a `fit` is always evaluated, and epochs between two evaluations repeat the last figures: so the
    columns of a CSVLogger are complete, and ModelCheckpoint never sees a NaN that comes of not having looked yet
    (Keras takes a NaN in the first epoch for the best value for good). `EarlyStopping(patience=...)` counts epochs,
    repeated ones too. A `fit` that goes on with an earlier one is given the `last` figures of that, {"AP": ...}, and
    evaluates when it would have.
    """

    def __init__(self, dataset: Dataset, every: int = 1, batch_size: int = 8, last: dict[str, float] | None = None):
        super().__init__()
        self.dataset, self.every, self.batch_size, self.last = dataset, every, batch_size, last
        self.figures = None

    def on_train_begin(self, logs=None):
        self.figures = self.last

    def on_epoch_end(self, epoch, logs=None):
        if self.figures is None or (epoch + 1) % self.every == 0:
            detections = inference.detect(self.model, self.dataset, self.batch_size)
            self.figures = coco_figures(self.dataset, detections) | _of_keypoints(self.model, self.dataset, detections)
        if logs is not None:
            logs.update({f"val_{name}": value for name, value in self.figures.items()})


class _Objects(NamedTuple):
    """All M objects of a data set, image by image.

    images [M]: the index of the image. boxes [M, 4]: xywh. labels [M]. areas [M]: `Example.areas`.
    ignored [M]: bool, a crowd or difficult.
    """

    images: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    areas: np.ndarray
    ignored: np.ndarray


class _Found(NamedTuple):
    """All D detections, in the order of the images and then as they were given.

    images [D]: the index of the image in the data set. boxes [D, 4]: xywh. labels [D]. scores [D].
    """

    images: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    scores: np.ndarray


def _objects(dataset) -> _Objects:
    examples = dataset.examples
    return _Objects(
        images=np.arange(len(examples)).repeat(_lengths(examples)),
        boxes=_xywh(examples),
        labels=_joined(examples, "labels", int),
        areas=_joined(examples, "areas", float),
        ignored=_joined(examples, "crowd", bool) | _joined(examples, "difficult", bool),
    )


def _found(dataset, detections) -> _Found:
    """The detections as columns.

    Raises:
        DataError: as the public functions.
    """
    detections = _in_order(dataset, detections)
    index = {example.image_id: i for i, example in enumerate(dataset.examples)}
    images = np.array([index[found.image_id] for found in detections], int).repeat(_lengths(detections))
    labels = _joined(detections, "labels", int)
    wrong = np.flatnonzero((labels < 0) | (labels >= dataset.num_classes))
    if len(wrong):
        image_id, label = dataset.examples[images[wrong[0]]].image_id, labels[wrong[0]]
        raise DataError(f"{dataset.name}: image {image_id!r}: no class has the label {label}")
    return _Found(images, _xywh(detections), labels, _joined(detections, "scores", float))


def _in_order(dataset, detections):
    """The detections in the order of the images. Raises DataError for those of an image that is not there."""
    index = {example.image_id: i for i, example in enumerate(dataset.examples)}
    if len(index) < len(dataset):
        raise DataError(f"{dataset.name}: two images have the same id, so detections cannot be told apart")
    for found in detections:
        if found.image_id not in index:
            raise DataError(f"{dataset.name}: detections for image {found.image_id!r}, which it does not have")
    return sorted(detections, key=lambda found: index[found.image_id])


def _lengths(things):
    return np.array([len(thing.labels) for thing in things], int)


def _joined(things, field, dtype, *shape):
    """A field of all examples or of all detections as one array. (A float is float64: evaluators count in doubles.)"""
    empty = np.zeros((0, *shape), dtype)  # without images there is nothing else to concatenate
    return np.concatenate([empty, *(getattr(thing, field) for thing in things)])


def _xywh(things):
    boxes = _joined(things, "boxes", float, 4)
    boxes[:, 2:] -= boxes[:, :2]  # differences of float32 are exact in float64
    return boxes


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


def _load(dataset, detections):
    """Ground truth and detections as the evaluator's own objects, and its COCOeval. Labels are their category ids."""
    numbers, objects, found = _numbers(dataset), _objects(dataset), _found(dataset, detections)
    results = np.column_stack([numbers[found.images], found.boxes, found.scores, found.labels])
    if hotcoco is not None:
        images, categories = _images_and_categories(dataset)
        columns = (numbers[objects.images], objects.labels, objects.boxes)
        truth = hotcoco.COCO.from_arrays(images, categories, *columns, area=objects.areas, iscrowd=objects.ignored)
        return truth, truth.loadRes(results), hotcoco.COCOeval
    annotations = _annotations(objects, numbers.tolist(), range(dataset.num_classes))
    return *_pycocotools(dataset, annotations, results), COCOeval


def _numbers(dataset):
    """int [images]: of image ids, which may be strings; in their order, in which equal scores are counted."""
    ids = [example.image_id for example in dataset.examples]
    rank = {image_id: i for i, image_id in enumerate(sorted(ids))}
    return np.array([rank[image_id] for image_id in ids], int)


def _images_and_categories(dataset):
    images = [{"id": i} for i in range(len(dataset))]
    return images, [{"id": label, "name": name} for label, name in enumerate(dataset.class_names)]


def _pycocotools(dataset, annotations, results):
    """Two of its COCO objects: of the ground truth, and of the results, which it takes as rows or as dicts."""
    images, categories = _images_and_categories(dataset)
    truth = _indexed({"images": images, "categories": categories, "annotations": annotations})
    return truth, truth.loadRes(results) if len(results) else _indexed(truth.dataset | {"annotations": []})


def _annotations(objects, image_ids, category_ids) -> list[dict]:
    """COCO's, with image_ids[i] for the i-th image and category_ids[c] for class c.

    They are numbered from 1, because pycocotools takes a match with annotation 0 for no match.
    """
    columns = (objects.images, objects.labels, objects.boxes, objects.areas, objects.ignored.astype(int))
    rows = zip(*(column.tolist() for column in columns), strict=True)
    return [
        {
            "id": number,
            "image_id": image_ids[image],
            "category_id": category_ids[label],
            "bbox": bbox,
            "area": area,
            "iscrowd": iscrowd,
        }
        for number, (image, label, bbox, area, iscrowd) in enumerate(rows, start=1)
    ]


def _indexed(annotations: dict) -> COCO:
    coco = COCO()
    coco.dataset = annotations
    coco.createIndex()
    return coco


def _mean_of_defined(values) -> float:
    defined = [value for value in values if not math.isnan(value)]
    return sum(defined) / len(defined) if defined else math.nan


def _without_nan(figures: dict) -> dict:
    return {name: None if math.isnan(value) else value for name, value in figures.items()}
