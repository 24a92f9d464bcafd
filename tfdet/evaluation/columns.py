"""All objects of a data set, and all detections, as columns: what every evaluation starts from."""

from typing import NamedTuple

import numpy as np

from tfdet.errors import DataError


class Objects(NamedTuple):
    """All M objects of a data set, image by image.

    images [M]: the index of the image. boxes [M, 4]: xywh. labels [M]. areas [M]: `Example.areas`.
    ignored [M]: bool, a crowd or difficult.
    """

    images: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    areas: np.ndarray
    ignored: np.ndarray


class Found(NamedTuple):
    """All D detections, in the order of the images and then as they were given.

    images [D]: the index of the image in the data set. boxes [D, 4]: xywh. labels [D]. scores [D].
    """

    images: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    scores: np.ndarray


def objects_of(dataset) -> Objects:
    examples = dataset.examples
    return Objects(
        images=np.arange(len(examples)).repeat(_lengths(examples)),
        boxes=_xywh(examples),
        labels=joined(examples, "labels", int),
        areas=joined(examples, "areas", float),
        ignored=joined(examples, "crowd", bool) | joined(examples, "difficult", bool),
    )


def found_of(dataset, detections) -> Found:
    """The detections as columns.

    Raises:
        DataError: as the public functions.
    """
    detections = in_order(dataset, detections)
    index = {example.image_id: i for i, example in enumerate(dataset.examples)}
    images = np.array([index[found.image_id] for found in detections], int).repeat(_lengths(detections))
    labels = joined(detections, "labels", int)
    wrong = np.flatnonzero((labels < 0) | (labels >= dataset.num_classes))
    if len(wrong):
        image_id, label = dataset.examples[images[wrong[0]]].image_id, labels[wrong[0]]
        raise DataError(f"{dataset.name}: image {image_id!r}: no class has the label {label}")
    return Found(images, _xywh(detections), labels, joined(detections, "scores", float))


def in_order(dataset, detections):
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


def joined(things, field, dtype, *shape):
    """A field of all examples or of all detections as one array. (A float is float64: evaluators count in doubles.)"""
    empty = np.zeros((0, *shape), dtype)  # without images there is nothing else to concatenate
    return np.concatenate([empty, *(getattr(thing, field) for thing in things)])


def _xywh(things):
    boxes = joined(things, "boxes", float, 4)
    boxes[:, 2:] -= boxes[:, :2]  # differences of float32 are exact in float64
    return boxes
