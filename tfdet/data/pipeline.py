"""tf.data: from annotated files to batches of images and targets."""

import math

import numpy as np
import tensorflow as tf
from keras import ops

from tfdet.assigners import IGNORED
from tfdet.data import service as data_service
from tfdet.data.images import decode
from tfdet.data.order import drawn, random_order, turns
from tfdet.data.portable import compiled, in_graph
from tfdet.data.records import Record, read_image
from tfdet.distribution import shared_batches
from tfdet.errors import TfdetError


def training_batches(dataset, detector, batch_size, seed=0, cache=False, start_step=None, service=None):
    """Shuffled, augmented, encoded batches for `detector.fit`.

    Each epoch has another order and other augmentation, all of which follows from `seed`: the same seed gives the same
    batches. The last, incomplete batch of an epoch is left out. Of a detector that was made for a cluster's workers
    (MultiWorkerMirroredStrategy) each worker reads its part of every batch, and no other image.

    Args:
        dataset: tfdet.data.Dataset.
        detector: its augmentation, fed size and target encoder are used.
        batch_size: images of a step, over all replicas of all workers.
        cache: decode all images first and keep them in memory, for sets that fit there.
        start_step: None for one epoch each time the result is iterated over; a number for an endless stream that
            starts at that step, so that a run can go on where it stopped.
        service: "grpc://HOST:PORT", the dispatcher of a tf.data service (see `tfdet.data.service`), whose workers
            decode and augment; the batches are the same.
    Returns:
        tf.data.Dataset of (images float32 [B, h, w, 3] 0..255, {target: [B, ...]}); in a cluster its strategy's
        distributed dataset of the same.
    Raises:
        ValueError: the data set does not fill a batch, the replicas cannot divide a batch, or there is both a cache and
            a service.
        TfdetError: no dispatcher answers at the address of the service.
    """
    if len(dataset) < batch_size:
        raise ValueError(f"{dataset.name}: {len(dataset)} images do not fill one batch of {batch_size}")
    if cache and service:
        raise ValueError("decoded images are kept in the memory of this process: no cache with a service")
    look_up, encoder = annotations(dataset, detector), _encoder(detector)
    decoded = _in_memory(look_up, len(dataset)) if cache else lambda i: _decode(look_up(i))

    def batches(worker, workers, of_replica):
        draw = drawn(len(dataset), batch_size, seed, worker, workers)

        def encode(turn):
            number, seed = draw(turn)
            fed = _augmented(decoded(number), seed, detector)
            return fed[0], encoder(*fed)

        numbers = turns(len(dataset), batch_size, seed, start_step, workers)
        examples = _mapped(numbers, encode, service, lambda turn: dataset.examples[draw(turn)[0]].image_id)
        return _batched(examples, of_replica, drop_remainder=True)

    return shared_batches(batches, batch_size, getattr(detector, "distribute_strategy", None))


def validation_batches(dataset, detector, batch_size):
    """Batches for `detector.evaluate` and the validation loss: in order, resized, not augmented, none left out."""

    look_up = annotations(dataset, detector)
    encoder, resizer = _encoder(detector), _resizer(detector)

    def encode(i):
        fed = _resized(_decode(look_up(i)), i, detector, resizer)
        return fed[0], encoder(*fed)

    return _batched(_map(tf.data.Dataset.range(len(dataset)), encode), batch_size)


def blank_images(dataset, detector, function, seed=None):
    """What `function` says of each image, as `detector.encode` is given it, but blank: nothing is decoded.

    Their order, sizes, boxes and seeds are those of `validation_batches`; with a seed they are those of the first epoch
    of `training_batches(start_step=0)` of that seed, augmented, and none is left out at the end.

    Args:
        function: as `Detector.encode`.
    Returns:
        tf.data.Dataset of {name: tensor}, one image each.
    Raises:
        TfdetError: the data set has not the keypoints that the detector learns.
    """
    look_up = annotations(dataset, detector)
    resizer = _resizer(detector)
    sizes = tf.constant([(example.height, example.width, 3) for example in dataset.examples])

    def blank(i):
        return {**look_up(i), "image": tf.zeros(sizes[i], tf.uint8)}

    numbers = tf.data.Dataset.range(len(dataset))
    if seed is None:
        return _map(numbers, lambda i: function(*_resized(blank(i), i, detector, resizer)))
    stream = random_order(len(dataset), 1, seed).take(len(dataset))
    return _map(stream, lambda i, seed: function(*_augmented(blank(i), seed, detector)))


def fed_blank(example, number, detector):
    """An Example, the `number`-th of a set, as `blank_images` gives it to a function without augmentation."""
    columns = {name: tf.constant(getattr(example, name)) for name in ("boxes", "labels", "crowd")}
    if detector.keypoint_names:
        columns["keypoints"] = tf.constant(example.keypoints)
    columns["image"] = tf.zeros((example.height, example.width, 3), tf.uint8)
    return _resized(columns, tf.constant(number, tf.int64), detector, _resizer(detector))


def prediction_batches(images, detector, batch_size, service=None, ids=()):
    """Batches for `detector.predict`, whose detections are then in pixels of each original image.

    Args:
        images: paths, `Record`s, or encoded images as bytes.
        service: as in `training_batches`. ids: what each image is called, where the service has lost one.
    """

    source, resizer = _sources(images), _resizer(detector)
    numbers = tf.data.Dataset.range(len(images))
    examples = _mapped(numbers, lambda i: resizer(decode(read(source(i)))), service, ids.__getitem__)
    return _batched(examples, batch_size)


def read(source):
    """{"path", "offset" (of a record in the file; -1: the file is the image), "bytes"} -> the encoded image."""
    path, offset = source["path"], source["offset"]

    def read_file():
        return tf.cond(offset < 0, lambda: tf.io.read_file(path), lambda: read_image(path, offset))

    return tf.cond(path == "", lambda: source["bytes"], read_file)


def _sources(images):
    """A function: the number of an image, a scalar tensor -> what `read` takes."""
    columns = {
        "path": tf.constant([_path(image) for image in images]),
        "offset": tf.constant([image.offset if isinstance(image, Record) else -1 for image in images], tf.int64),
        "bytes": tf.constant([image if isinstance(image, bytes) else b"" for image in images]),
    }
    return lambda i: {name: column[i] for name, column in columns.items()}


def _path(image):
    return image.path if isinstance(image, Record) else image if isinstance(image, str) else ""


def annotations(dataset, detector=None):
    """A function: the number of an image, a scalar tensor -> its source (see `read`), boxes, labels and crowd, and its
    keypoints if the detector finds any.

    Raises:
        TfdetError: the data set has other keypoints.
    """
    keypoint_names = () if detector is None else detector.keypoint_names
    if keypoint_names and keypoint_names != dataset.keypoint_names:
        given = ", ".join(dataset.keypoint_names) or "no keypoints"
        raise TfdetError(f"{dataset.name} has {given}; {detector.name} learns {', '.join(keypoint_names)}")

    def rows(name, dtype):
        values = [getattr(example, name) for example in dataset.examples]
        lengths = [len(value) for value in values]
        return tf.RaggedTensor.from_row_lengths(tf.constant(np.concatenate(values), dtype), lengths)

    boxes = {"boxes": rows("boxes", tf.float32), "labels": rows("labels", tf.int32), "crowd": rows("crowd", tf.bool)}
    if keypoint_names:
        boxes["keypoints"] = rows("keypoints", tf.float32)
    source = _sources([example.image for example in dataset.examples])
    return lambda i: {"source": source(i), **{name: column[i] for name, column in boxes.items()}}


def _decode(example):
    return {**example, "image": decode(read(example["source"]))}


def _objects(example, detector):
    """Boxes, labels and, if it finds them, keypoints that the detector learns from.

    Crowd regions have the label -1, or are not among them.
    """
    if detector.wants_crowds:
        return example["boxes"], tf.where(example["crowd"], -1, example["labels"])
    return [example[name][~example["crowd"]] for name in ("boxes", "labels", "keypoints") if name in example]


def _in_memory(look_up, count):
    """`_decode` of what `look_up` says, from images that are all decoded here and now."""
    images = [example["image"] for example in _map(tf.data.Dataset.range(count), lambda i: _decode(look_up(i)))]
    sizes = tf.constant([image.shape.as_list() for image in images], tf.int64)
    pixels = tf.concat([tf.reshape(image, [-1]) for image in images], axis=0)
    pixels = tf.RaggedTensor.from_row_lengths(pixels, tf.reduce_prod(sizes, axis=1))
    return lambda i: {**look_up(i), "image": tf.reshape(pixels[i], sizes[i])}


def _augmented(example, seed, detector):
    """What `detector.encode` is given in training: image, boxes, labels, seed and, if it finds any, keypoints."""
    boxes, labels, *keypoints = _objects(example, detector)
    seeds = tf.stack([seed, 0])
    image, boxes, labels, *keypoints = detector.augmentation(example["image"], boxes, labels, seeds, *keypoints)
    return image, boxes, labels, seed, *keypoints


def _resized(example, seed, detector, resizer):
    """The same without augmentation."""
    boxes, labels, *keypoints = _objects(example, detector)
    resized = resizer(example["image"])
    keypoints = [places * tf.concat([resized["scale"][:2], [1.0]], axis=0) for places in keypoints]
    return resized["images"], boxes * resized["scale"], labels, seed, *keypoints


def _encoder(detector):
    """The detector's own, for tf.data."""
    image, boxes, labels = np.zeros((32, 32, 3), np.float32), np.zeros((0, 4), np.float32), np.zeros(0, np.int32)
    names = detector.keypoint_names
    keypoints = [np.zeros((0, len(names), 3), np.float32)] if names else []
    return in_graph(compiled(detector.encode), image, boxes, labels, np.int64(0), *keypoints)


def _resizer(detector):
    """A function for tf.data: image [H, W, 3] -> {"images" as the detector is fed it, "scale" [4] of its boxes}."""

    def resize(image):
        height, width, _ = ops.shape(image)
        return {"images": detector.resizer(image), "scale": detector.resizer.scale(height, width)}

    return in_graph(resize, np.zeros((1, 1, 3), np.uint8))


def _mapped(numbers, function, service, name_of):
    """The function of each number, computed by a service if there is one (see `data_service.mapped`)."""
    return data_service.mapped(service, numbers, function, name_of) if service else _map(numbers, function)


def _map(examples, function):
    # All of it is TensorFlow ops already; AutoGraph would only rewrite it, and stumbles over `match`.
    return examples.map(tf.autograph.experimental.do_not_convert(function), tf.data.AUTOTUNE)


def _batched(examples, batch_size, drop_remainder=False):
    """Batches; where images differ in size they are padded with NaN (see tfdet.resizers), what is expected of them
    with 0 and, labels, with IGNORED."""
    spec = examples.element_spec
    if all(part.shape.is_fully_defined() for part in tf.nest.flatten(spec)):
        examples = examples.batch(batch_size, drop_remainder=drop_remainder)
    else:
        inputs, *targets = spec if isinstance(spec, tuple) else (spec,)
        padding = tf.nest.map_structure(lambda part: tf.constant(math.nan, part.dtype), inputs)
        zeros = tf.nest.map_structure(
            lambda part: tf.constant(IGNORED if part.dtype.is_integer else 0, part.dtype), targets
        )
        padding = (padding, *zeros) if targets else padding
        examples = examples.padded_batch(batch_size, padding_values=padding, drop_remainder=drop_remainder)
    return examples.prefetch(tf.data.AUTOTUNE)
