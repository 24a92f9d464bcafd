"""COCO's twelve figures of boxes, and its JSON.

They are computed by pycocotools, the code whose numbers everybody quotes. A figure that has no meaning, because no
object counts towards it, is NaN here (pycocotools itself says -1).

The extra `fast-eval` puts hotcoco in its place, which gives the same figures (tests compare them to 1e-9).
"""

import contextlib
import io
import json
import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from tfdet.data.dataset import Dataset
from tfdet.evaluation.columns import found_of, objects_of
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

    Image and category ids are the data set's own; `area` is `Example.areas`.
    """
    images = []
    for example in dataset.examples:
        file = os.path.basename(example.image) if isinstance(example.image, str) else str(example.image_id)
        images.append({"id": example.image_id, "file_name": file, "height": example.height, "width": example.width})
    pairs = zip(dataset.category_ids, dataset.class_names, strict=True)
    categories = [{"id": category_id, "name": name} for category_id, name in pairs]
    image_ids = [example.image_id for example in dataset.examples]
    annotations = annotations_of(objects_of(dataset), image_ids, dataset.category_ids)
    return {"images": images, "annotations": annotations, "categories": categories}


def coco_results(dataset: Dataset, detections: Sequence[Detections]) -> list[dict]:
    """The detections in COCO's results format: image_id, category_id, bbox as xywh pixels, score. Nothing is rounded.

    Raises:
        DataError: a detection names an image or a class that the data set does not have.
    """
    found = found_of(dataset, detections)
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


def _load(dataset, detections):
    """Ground truth and detections as the evaluator's own objects, and its COCOeval. Labels are their category ids."""
    numbers, objects, found = numbers_of(dataset), objects_of(dataset), found_of(dataset, detections)
    results = np.column_stack([numbers[found.images], found.boxes, found.scores, found.labels])
    if hotcoco is not None:
        images, categories = _images_and_categories(dataset)
        columns = (numbers[objects.images], objects.labels, objects.boxes)
        truth = hotcoco.COCO.from_arrays(images, categories, *columns, area=objects.areas, iscrowd=objects.ignored)
        return truth, truth.loadRes(results), hotcoco.COCOeval
    annotations = annotations_of(objects, numbers.tolist(), range(dataset.num_classes))
    return *pycocotools_of(dataset, annotations, results), COCOeval


def numbers_of(dataset):
    """int [images]: of image ids, which may be strings; in their order, in which equal scores are counted."""
    ids = [example.image_id for example in dataset.examples]
    rank = {image_id: i for i, image_id in enumerate(sorted(ids))}
    return np.array([rank[image_id] for image_id in ids], int)


def _images_and_categories(dataset):
    pairs = zip(numbers_of(dataset).tolist(), dataset.examples, strict=True)
    images = [{"id": number, "height": example.height, "width": example.width} for number, example in pairs]
    return images, [{"id": label, "name": name} for label, name in enumerate(dataset.class_names)]


def pycocotools_of(dataset, annotations, results):
    """Two of its COCO objects: of the ground truth, and of the results, which it takes as rows or as dicts."""
    images, categories = _images_and_categories(dataset)
    truth = _indexed({"images": images, "categories": categories, "annotations": annotations})
    return truth, truth.loadRes(results) if len(results) else _indexed(truth.dataset | {"annotations": []})


def annotations_of(objects, image_ids, category_ids) -> list[dict]:
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
