"""Any data set as TFRecord shards with the TensorFlow Object Detection API's feature names; `tfrecord` reads them."""

import glob
import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import tensorflow as tf

from tfdet.data.images import load_image
from tfdet.data.label_map import label_map_text, read_label_map
from tfdet.data.records import encoded
from tfdet.data.tfrecord import AREA, CORNERS, CROWD, DIFFICULT, FEATURES, LABEL, TEXT
from tfdet.errors import DataError, TfdetError

PER_SHARD = 1000  # images; of photographs 100 to 200 MB, as TensorFlow's guide to performance advises


def write_shards(dataset, folder, split, shards=None, workers=None, advance=lambda: None):
    """Writes a `Dataset` as folder/SPLIT-00000-of-00010.tfrecord, ..., and folder/label_map.pbtxt.

    Images are copied as they are; those that the API does not know (BMP, GIF) become PNG. Labels are the data set's
    `category_ids`. The order is kept: a shard holds neighbours. The same data set gives the same bytes, whatever the
    number of workers. No shard has its name before all are complete and on the disk.

    Args:
        folder: made if it is not there.
        shards: how many; one for every 1000 images if not given.
        workers: threads, each writing one shard at a time; one a core if not given.
        advance: called after each image, from any thread.

    Returns:
        The paths of the shards.

    Raises:
        TfdetError: the folder has shards of that split already, or a label map of other classes; or cannot be written.
        DataError: an image cannot be read.
    """
    folder = Path(folder)
    count = shards or max(1, -(-len(dataset) // PER_SHARD))
    paths = [folder / f"{split}-{number:05d}-of-{count:05d}.tfrecord" for number in range(count)]
    bounds = [len(dataset) * number // count for number in range(count + 1)]

    def write(number):
        path = _unfinished(paths[number])
        with tf.io.TFRecordWriter(str(path)) as writer:
            for example in dataset.examples[bounds[number] : bounds[number + 1]]:
                writer.write(_example_record(example, dataset))
                advance()
        with open(path, "rb") as file:
            os.fsync(file.fileno())

    try:
        folder.mkdir(parents=True, exist_ok=True)
        if existing := sorted(folder.glob(f"{glob.escape(split)}-*-of-*.tfrecord")):
            raise TfdetError(f"{existing[0]}: shards of split {split} are there already; remove them first")
        _write_label_map(dataset, folder / "label_map.pbtxt")
        pool = ThreadPoolExecutor(workers or os.cpu_count())
        try:
            list(pool.map(write, range(count)))
            for path in paths:
                os.replace(_unfinished(path), path)
        finally:
            pool.shutdown(cancel_futures=True)
            for path in folder.glob(f".unfinished-{glob.escape(split)}-*-of-*.tfrecord"):  # a killed run's too
                path.unlink()
    except (OSError, tf.errors.OpError) as error:
        reason = error.message if isinstance(error, tf.errors.OpError) else error
        raise TfdetError(f"{folder}: split {split} cannot be written: {reason}") from error
    return paths


def _unfinished(path):
    return path.with_name(f".unfinished-{path.name}")


def _write_label_map(dataset, path):
    names = dict(zip(dataset.category_ids, dataset.class_names, strict=True))
    if path.exists():
        if list(read_label_map(path).items()) != list(names.items()):
            raise TfdetError(f"{path}: is of other classes than {dataset.name}; choose another folder")
        return
    _unfinished(path).write_text(label_map_text(names), encoding="utf-8")
    os.replace(_unfinished(path), path)


def _example_record(example, dataset):
    """An `Example` as a serialised tf.train.Example, always the same bytes."""
    try:
        image = encoded(example.image)
        if not image.startswith((b"\xff\xd8", b"\x89PNG")):
            image = tf.io.encode_png(load_image(image)).numpy()
    except (OSError, tf.errors.OpError) as error:
        name = example.image_id if isinstance(example.image, bytes) else example.image
        raise DataError(f"{name}: not an image that can be read: {type(error).__name__}") from error
    name = os.path.basename(example.image) if isinstance(example.image, str) else str(example.image_id)
    fractions = example.boxes.astype(np.float64) / np.tile([example.width, example.height], 2)
    features = {
        "image/encoded": [image],
        "image/format": [b"jpeg" if image.startswith(b"\xff\xd8") else b"png"],
        "image/key/sha256": [hashlib.sha256(image).hexdigest().encode()],
        "image/filename": [_bytes(name)],
        "image/source_id": [_bytes(str(example.image_id))],
        "image/height": [example.height],
        "image/width": [example.width],
        **{corner: fractions[:, i].astype(np.float32) for i, corner in enumerate(CORNERS)},
        TEXT: [_bytes(dataset.class_names[label]) for label in example.labels],
        LABEL: [dataset.category_ids[label] for label in example.labels],
        DIFFICULT: example.difficult.astype(int).tolist(),
        CROWD: example.crowd.astype(int).tolist(),
        AREA: example.areas,
    }
    record = tf.train.Example()
    for name, values in features.items():
        feature = record.features.feature[name]
        kind = FEATURES[name].dtype if name in FEATURES else tf.string
        kinds = {tf.string: feature.bytes_list, tf.int64: feature.int64_list, tf.float32: feature.float_list}
        kinds[kind].value.extend(values)
    return record.SerializeToString(deterministic=True)


def _bytes(text):
    return text.encode("utf-8", "backslashreplace")
