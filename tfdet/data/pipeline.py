"""tf.data: from annotated files to batches of images and targets."""

import numpy as np
import tensorflow as tf

from tfdet.data.images import decode
from tfdet.data.records import Record, read_image


def training_batches(dataset, detector, batch_size, seed=0, cache=False, start_step=None):
    """Shuffled, augmented, encoded batches for `detector.fit`.

    Each epoch has another order and other augmentation, all of which follows from `seed`: the same seed gives the same
    batches. Crowd regions are not training targets. The last, incomplete batch of an epoch is left out.

    Args:
        dataset: tfdet.data.Dataset.
        detector: its augmentation, fed size and target encoder are used.
        cache: keep decoded images in memory, for sets that fit there.
        start_step: None for one epoch each time the result is iterated over; a number for an endless stream that
            starts at that step, so that a run can go on where it stopped.
    Returns:
        tf.data.Dataset of (images float32 [B, h, w, 3] 0..255, {target: [B, ...]}).
    """
    if len(dataset) < batch_size:
        raise ValueError(f"{dataset.name}: {len(dataset)} images do not fill one batch of {batch_size}")
    look_up = _annotations(dataset)
    # What is shuffled, as a whole, are numbers: little memory and no wait, however many images there are.
    examples = tf.data.Dataset.range(len(dataset))
    if cache:
        examples = _map(examples, lambda i: _decode(look_up(i))).cache()
    seeds = tf.data.Dataset.random(seed=seed, rerandomize_each_iteration=True)
    order = examples.shuffle(len(dataset), seed=seed, reshuffle_each_iteration=True)
    stream = tf.data.Dataset.zip(order, seeds)
    if start_step is not None:
        # Skipped before anything is decoded: going on costs no time.
        per_epoch = len(dataset) // batch_size * batch_size
        stream = stream.take(per_epoch).repeat().skip(start_step * batch_size)

    def encode(example, seed):
        example = example if cache else _decode(look_up(example))
        kept = ~example["crowd"]
        boxes, labels = example["boxes"][kept], example["labels"][kept]
        image, boxes, labels = detector.augmentation(example["image"], boxes, labels, tf.stack([seed, 0]))
        return image, detector.encoder(boxes, labels)

    return _batched(_map(stream, encode), batch_size, drop_remainder=True)


def validation_batches(dataset, detector, batch_size):
    """Batches for `detector.evaluate` and the validation loss: in order, resized, not augmented, none left out."""

    look_up = _annotations(dataset)

    def encode(i):
        example = _decode(look_up(i))
        height, width, _ = tf.unstack(tf.shape(example["image"]))
        kept = ~example["crowd"]
        boxes = example["boxes"][kept] * detector.resizer.scale(height, width)
        return detector.resizer(example["image"]), detector.encoder(boxes, example["labels"][kept])

    return _batched(_map(tf.data.Dataset.range(len(dataset)), encode), batch_size)


def prediction_batches(images, detector, batch_size):
    """Batches for `detector.predict`, whose detections are then in pixels of each original image.

    Args:
        images: paths, `Record`s, or encoded images as bytes.
    """

    source = _sources(images)

    def resize(i):
        image = decode(read(source(i)))
        height, width, _ = tf.unstack(tf.shape(image))
        return {"images": detector.resizer(image), "scale": detector.resizer.scale(height, width)}

    return _batched(_map(tf.data.Dataset.range(len(images)), resize), batch_size)


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


def _annotations(dataset):
    """A function: the number of an image, a scalar tensor -> its source, boxes, labels and crowd."""

    def rows(name, dtype):
        values = [getattr(example, name) for example in dataset.examples]
        lengths = [len(value) for value in values]
        return tf.RaggedTensor.from_row_lengths(tf.constant(np.concatenate(values), dtype), lengths)

    boxes = {"boxes": rows("boxes", tf.float32), "labels": rows("labels", tf.int32), "crowd": rows("crowd", tf.bool)}
    source = _sources([example.image for example in dataset.examples])
    return lambda i: {"source": source(i), **{name: column[i] for name, column in boxes.items()}}


def _decode(example):
    return {**example, "image": decode(read(example["source"]))}


def _map(examples, function):
    # All of it is TensorFlow ops already; AutoGraph would only rewrite it, and stumbles over `match`.
    return examples.map(tf.autograph.experimental.do_not_convert(function), tf.data.AUTOTUNE)


def _batched(examples, batch_size, drop_remainder=False):
    return examples.batch(batch_size, drop_remainder=drop_remainder).prefetch(tf.data.AUTOTUNE)
