"""From a detector and images of any size to detections in pixels of those images."""

from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tfdet.data import service as data_service
from tfdet.data.pipeline import prediction_batches
from tfdet.data.validation import raise_unreadable
from tfdet.errors import TfdetError
from tfdet.keras_multi_worker import alone


class Detections(NamedTuple):
    """What a detector found in one image, best first, without padding.

    image_id: as in the data set, or the path. boxes: float32 [K, 4] xyxy in pixels of the original image.
    scores: float32 [K] in [0, 1]. labels: int32 [K], 0 .. C-1. keypoints: float32 [K, J, 2], x and y, and
    keypoint_scores: float32 [K, J] in [0, 1]; None of a detector that finds none.
    """

    image_id: int | str
    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    keypoints: np.ndarray | None = None
    keypoint_scores: np.ndarray | None = None

    @classmethod
    def from_padded(cls, image_id, found):
        """Of one image, {"boxes" [K, 4], ..., "num_detections"} (see Detector)."""
        count = found["num_detections"]
        return cls(image_id, **{name: found[name][:count] for name in cls._fields[1:] if name in found})

    def where(self, chosen):
        """Some of them: chosen is bool [K]."""
        image_id, *columns = self
        return Detections(image_id, *(None if column is None else column[chosen] for column in columns))

    def relabelled(self, labels):
        """The same with label c replaced by labels[c]; where that is negative, left out."""
        new = labels[self.labels]
        return self._replace(labels=new).where(new >= 0)


def in_bfloat16(detector):
    """A copy of the detector whose network computes in bfloat16, for `predict`, `detect` and `export`.

    With VGG16 it takes half the time where the processor computes in bfloat16 (AVX512-BF16, AMX); small backbones
    hardly gain, and other processors lose. Pixels, raw outputs, boxes, scores and NMS stay in float32, and so do the
    weights. Train and save the original.
    """
    copy = _copy(detector, detector.get_config())
    for layer in copy._flatten_layers(include_self=False):
        if not isinstance(layer, (keras.layers.Rescaling, keras.layers.Reshape)):  # of pixels; of raw outputs
            layer.dtype_policy = "mixed_bfloat16"
    return copy


def with_flip_and_scales(detector, flip=True, scales=(1.0,)):
    """A copy of the detector that looks at each image several times, for `predict`, `detect`, `evaluate` and `export`.

    It is slower and better: CenterNet's published figures "with flip" and "multi-scale" are those of flip=True, and of
    scales=(0.5, 0.75, 1, 1.25, 1.5) besides. CornerNet's are all with flip=True.

    Args:
        flip: look at the mirror image, too.
        scales: sizes relative to the one the detector is fed.
    Raises:
        TfdetError: the detector cannot do that.
    """
    config = detector.get_config()
    if not {"flip", "scales"} <= set(config):
        raise TfdetError(
            f"{detector.name}: this detector looks at an image once; those of keypoints know flip and scales"
        )
    return _copy(detector, {**config, "flip": flip, "scales": tuple(scales)})


def _copy(detector, config):
    copy = type(detector).from_config(config)
    copy.set_weights(detector.get_weights())
    copy.resizer, copy.decoder = detector.resizer, detector.decoder  # no part of the config
    return copy


def detect(detector, dataset, batch_size=8, verbose=0, service=None):
    """Detections in every image of a Dataset, in its order, with its labels.

    Where detector and data set do not know the same classes, they are matched by name, and detections of classes that
    the data set does not have are left out. A detector whose classes have no names (`ssd300(3)`) has the data set's.

    Args:
        verbose: 1 shows Keras' progress bar.
        service: "grpc://HOST:PORT", the dispatcher of a tf.data service whose workers decode and resize (see
            `tfdet.data.service`); what is found is the same.
    Raises:
        TfdetError: they have no class in common, or no service answers.
        DataError: an image cannot be read.
    """
    ids = [example.image_id for example in dataset.examples]
    found = _detect(detector, ids, [example.image for example in dataset.examples], batch_size, verbose, service)
    unnamed = tuple(map(str, range(dataset.num_classes)))
    if detector.class_names in (dataset.class_names, unnamed):
        return found
    if not set(detector.class_names) & set(dataset.class_names):
        raise TfdetError(
            f"{dataset.name} has the classes {', '.join(dataset.class_names)}, "
            f"the detector only {', '.join(detector.class_names)}"
        )
    known = {name: label for label, name in enumerate(dataset.class_names)}
    labels = np.array([known.get(name, -1) for name in detector.class_names], np.int32)
    return [one.relabelled(labels) for one in found]


def detect_files(detector, paths, batch_size=8, verbose=0):
    """Detections in every image file, in the order of `paths`; the path is the image_id."""
    paths = [str(path) for path in paths]
    return _detect(detector, paths, paths, batch_size, verbose)


def peaks_in_files(detector, paths, batch_size=8):
    """What the boxes in image files are made of, by a detector that has `peaks`: a dict of arrays [N, ...] for each."""
    peaks = []
    for batch in prediction_batches([str(path) for path in paths], detector, batch_size):
        found = keras.tree.map_structure(np.asarray, detector.peaks(batch["images"], batch["scale"]))
        peaks += [keras.tree.map_structure(lambda values, i=i: values[i], found) for i in range(len(batch["scale"]))]
    return peaks


def _detect(detector, ids, images, batch_size, verbose, service=None):
    if not images:
        return []
    try:
        with alone(detector):
            batches = prediction_batches(images, detector, batch_size, service, ids)
            found = detector.predict(batches, verbose=verbose)
    except tf.errors.OpError as error:
        data_service.raise_failure(error)
        raise_unreadable(ids, images)
        raise
    return [
        Detections.from_padded(image_id, {name: values[i] for name, values in found.items()})
        for i, image_id in enumerate(ids)
    ]
