"""From a detector and images of any size to detections in pixels of those images."""

from typing import NamedTuple

import numpy as np

from tfdet.data.pipeline import prediction_batches


class Detections(NamedTuple):
    """What a detector found in one image, best first, without padding.

    image_id: as in the data set, or the path. boxes: float32 [K, 4] xyxy in pixels of the original image.
    scores: float32 [K] in [0, 1]. labels: int32 [K], 0 .. C-1.
    """

    image_id: int | str
    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray


def detect(detector, dataset, batch_size=8, verbose=0):
    """Detections in every image of a Dataset, in its order.

    Args:
        verbose: 1 shows Keras' progress bar.
    """
    ids = [example.image_id for example in dataset.examples]
    return _detect(detector, ids, [example.image for example in dataset.examples], batch_size, verbose)


def detect_files(detector, paths, batch_size=8, verbose=0):
    """Detections in every image file, in the order of `paths`; the path is the image_id."""
    paths = [str(path) for path in paths]
    return _detect(detector, paths, paths, batch_size, verbose)


def _detect(detector, ids, images, batch_size, verbose):
    if not images:
        return []
    found = detector.predict(prediction_batches(images, detector, batch_size), verbose=verbose)
    counts = found["num_detections"]
    return [
        Detections(image_id, *(found[key][i, : counts[i]] for key in ("boxes", "scores", "labels")))
        for i, image_id in enumerate(ids)
    ]
