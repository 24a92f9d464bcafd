"""From a detector and images of any size to detections in pixels of those images."""

from typing import NamedTuple

import numpy as np


class Detections(NamedTuple):
    """What a detector found in one image, best first, without padding.

    image_id: as in the data set, or the path. boxes: float32 [K, 4] xyxy in pixels of the original image.
    scores: float32 [K] in [0, 1]. labels: int32 [K], 0 .. C-1.
    """

    image_id: int | str
    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
