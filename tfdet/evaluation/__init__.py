"""How good detections are: COCO's figures of boxes, keypoints and masks, PASCAL VOC's average precision, and a callback
that watches them.

Ground truth comes as a `Dataset`, predictions as one `Detections` an image, both in pixels of the original images.
"""

import dataclasses
import math

import keras
import numpy as np

from tfdet import inference
from tfdet.data.dataset import Dataset
from tfdet.distribution import dealt_out, is_cluster
from tfdet.evaluation.coco import (
    COCO_FIGURES,
    CocoResult,
    coco_average_precision,
    coco_figures,
    coco_ground_truth,
    coco_results,
    save_coco_results,
)
from tfdet.evaluation.columns import objects_of
from tfdet.evaluation.landmarks import LANDMARK_FIGURES, landmark_error
from tfdet.evaluation.parts import (
    KEYPOINT_FIGURES,
    MASK_FIGURES,
    keypoint_average_precision,
    mask_average_precision,
    of_parts,
)
from tfdet.evaluation.voc import voc_average_precision

__all__ = [
    "COCO_FIGURES",
    "KEYPOINT_FIGURES",
    "LANDMARK_FIGURES",
    "MASK_FIGURES",
    "CocoResult",
    "Evaluation",
    "coco_average_precision",
    "coco_figures",
    "coco_ground_truth",
    "coco_results",
    "evaluate",
    "keypoint_average_precision",
    "landmark_error",
    "mask_average_precision",
    "save_coco_results",
    "voc_average_precision",
]


def evaluate(detector, dataset: Dataset, batch_size: int = 8, verbose: int = 0) -> dict:
    """Run a detector over a data set and return everything measured, as a dict that is valid JSON (NaN is None).

    Keypoints are measured if the data set has those that the detector finds; masks, if it has any and the detector
    finds extreme points.

    Args:
        verbose: 1 shows Keras' progress bar.
    Returns:
        {"images": count, one entry for each of `COCO_FIGURES`, `KEYPOINT_FIGURES`, `LANDMARK_FIGURES` (of faces with
        landmarks) and `MASK_FIGURES`, "VOC_AP_11point"
        and "VOC_AP_area": means over the classes that have objects, "per_class": {name: {"AP", "AP50",
        "VOC_AP_11point", "VOC_AP_area", "objects"}}}, where "objects" counts those that are neither difficult nor
        crowds. VOC's are at IoU 0.5.
    """
    detections = _detections(detector, dataset, batch_size, verbose)
    coco = coco_average_precision(dataset, detections)
    voc = {
        "VOC_AP_11point": voc_average_precision(dataset, detections),
        "VOC_AP_area": voc_average_precision(dataset, detections, eleven_point=False),
    }
    objects = objects_of(dataset)
    counts = np.bincount(objects.labels[~objects.ignored], minlength=dataset.num_classes)
    per_class = {}
    for name, count in zip(dataset.class_names, counts.tolist(), strict=True):
        figures = coco.per_class[name] | {kind: voc[kind][name] for kind in voc}
        per_class[name] = _without_nan(figures) | {"objects": count}
    means = {kind: _mean_of_defined(voc[kind].values()) for kind in voc} | of_parts(detector, dataset, detections)
    return {"images": len(dataset)} | _without_nan(coco.figures | means) | {"per_class": per_class}


class Evaluation(keras.callbacks.Callback):
    """Evaluates after every `every`-th epoch and puts COCO's figures into the logs: val_AP, val_AP50, ... and, of a
    detector that finds the data set's keypoints or masks, val_keypoint_AP or val_mask_AP, ...

    Callbacks that follow it in `fit(callbacks=[...])`, the progress bar and the history see them like any other metric
    (Keras hands the same dict to each, and appends its own History last). Those that monitor one need to be told its
    direction: `ModelCheckpoint(path, monitor="val_AP50", mode="max", save_best_only=True)`.

    The first epoch of a `fit` is always evaluated, and epochs between two evaluations repeat the last figures: so the
    columns of a CSVLogger are complete, and ModelCheckpoint never sees a NaN that comes of not having looked yet
    (Keras takes a NaN in the first epoch for the best value for good). `EarlyStopping(patience=...)` counts epochs,
    repeated ones too. A `fit` that goes on with an earlier one is given the `last` figures of that, {"AP": ...}, and
    evaluates when it would have. With a `service`, "grpc://HOST:PORT", the workers of a tf.data service decode the
    images; the figures are the same.
    """

    def __init__(
        self,
        dataset: Dataset,
        every: int = 1,
        batch_size: int = 8,
        last: dict[str, float] | None = None,
        service: str | None = None,
    ):
        super().__init__()
        self.dataset, self.every, self.batch_size, self.last = dataset, every, batch_size, last
        self.service = service
        self.figures = None

    def on_train_begin(self, logs=None):
        self.figures = self.last

    def on_epoch_end(self, epoch, logs=None):
        if self.figures is None or (epoch + 1) % self.every == 0:
            detections = _detections(self.model, self.dataset, self.batch_size, service=self.service)
            self.figures = coco_figures(self.dataset, detections) | of_parts(self.model, self.dataset, detections)
        if logs is not None:
            logs.update({f"val_{name}": value for name, value in self.figures.items()})


def _detections(detector, dataset, batch_size, verbose=0, service=None):
    """Those in all images; in a cluster each worker looks at its part of them."""
    among = getattr(detector, "distribute_strategy", None)
    if not is_cluster(among):
        return inference.detect(detector, dataset, batch_size, verbose, service)

    def detect(examples):
        own = dataclasses.replace(dataset, examples=examples)
        return inference.detect(detector, own, batch_size, verbose, service)

    return dealt_out(dataset.examples, detect, among)


def _mean_of_defined(values) -> float:
    defined = [value for value in values if not math.isnan(value)]
    return sum(defined) / len(defined) if defined else math.nan


def _without_nan(figures: dict) -> dict:
    return {name: None if math.isnan(value) else value for name, value in figures.items()}
