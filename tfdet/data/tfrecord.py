"""TFRecord shards with the feature names of the TensorFlow Object Detection API; `convert` writes them.

The names are those of its core/standard_fields.py (TfExampleFields) and dataset_tools/create_coco_tf_record.py.
"""

import os
import re
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import tensorflow as tf

from tfdet.data import columns, manifest
from tfdet.data.dataset import Dataset
from tfdet.data.label_map import read_label_map
from tfdet.data.records import Record, read_record
from tfdet.data.shards import find_label_map, find_shards
from tfdet.data.validation import Problems, check_image
from tfdet.errors import DataError

CORNERS = tuple(f"image/object/bbox/{side}" for side in ("xmin", "ymin", "xmax", "ymax"))  # fractions of the image
TEXT, LABEL = "image/object/class/text", "image/object/class/label"
DIFFICULT, CROWD, AREA = "image/object/difficult", "image/object/is_crowd", "image/object/area"  # area in pixels
FEATURES = {
    **{f"image/{name}": tf.io.FixedLenFeature([], tf.string, "") for name in ("encoded", "source_id", "filename")},
    **{f"image/{name}": tf.io.FixedLenFeature([], tf.int64, 0) for name in ("height", "width")},
    **{name: tf.io.RaggedFeature(tf.float32) for name in (*CORNERS, AREA)},
    **{name: tf.io.RaggedFeature(tf.int64) for name in (LABEL, DIFFICULT, CROWD)},
    TEXT: tf.io.RaggedFeature(tf.string),
}
AROUND = 16  # bytes of a shard around each record: 12 before it, its length, and 4 behind it, a checksum
BATCH = 32  # records that are parsed at once, and images held in memory by each thread


def read_tfrecord(where, split, problems):
    """Reads the annotations of one split; of the images only where they lie, so memory does not grow with them.

    Shards that `convert` wrote are not opened: the index beside them says what is in them, and they must have the sizes
    that the manifest says. All others are read through once, in parallel, and every checksum and every header of an
    image is looked at; what comes out is the same. Later each image is read when it is needed, in whatever order:
    tf.data does so from many shards at once.

    Only image/encoded must be there, and, for boxes, class/label or class/text. The size is that in the header of the
    image. The image id is image/source_id, else image/filename, else shard and number, whichever is unique; a whole
    number if all are. A label map, the one *.pbtxt file (or label_map.pbtxt) beside the shards, names the labels;
    without one the texts do, else the numbers themselves, and only those that occur in the split are known.

    Args:
        where: a folder of shards, or a glob. With {split} in it, all files that fit are of the split; without, those
            that have the split as a word in their names, as in val-00000-of-00010.tfrecord or pets_val.record.
        split: "train", "val", ...
        problems: `Problems`, told of each record and box that cannot be used.

    Raises:
        DataError: no shard of the split, or not all of them; no images; or a bad label map.
    """
    shards = find_shards(where, split)
    label_map = find_label_map(shards)
    parts = manifest.indexed(shards)
    to_read = [shard for shard in shards if shard not in parts]
    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        for shard, (found, lines) in zip(to_read, pool.map(_read_shard, to_read), strict=True):
            parts[shard] = found
            for line in lines:
                problems.report(line)
    finally:
        pool.shutdown(cancel_futures=True)
    joined = columns.join([parts[shard] for shard in shards])
    if not joined.images.any():
        raise DataError(f'{where}: the shards of split "{split}" hold no image that can be used')

    names = read_label_map(label_map) if label_map else columns.names_in(joined)
    if len(set(names.values())) < len(names):
        raise DataError(f"{where}: two labels have the same name; put a label map (*.pbtxt) beside the shards")
    return Dataset(
        name=f"tfrecord:{Path(shards[0]).resolve().parent.name} {split}",
        class_names=tuple(names.values()),
        category_ids=tuple(names),
        examples=columns.examples(joined, names, label_map, problems),
        skipped=tuple(problems.lines),
    )


def _read_shard(shard):
    """All of a shard -> `Columns` of the records that can be used, and a line for each that cannot."""
    try:
        problems = Problems("skip")
        rows = [_row_of(*record, problems) for record in _records(shard)]
    # None says where: once more, slowly, each record by itself. UnicodeDecodeError: TensorFlow quotes the record.
    except (tf.errors.OpError, UnicodeDecodeError):
        problems = Problems("skip")
        rows = [_row_of(*record, problems) for record in _records_that_can_be_read(shard, problems)]
    return columns.of_shard(shard, [row for row in rows if row is not None]), problems.lines


def _row_of(record, features, problems):
    found = row(record, features, problems)
    return found and found | {"number": record.number, "offset": record.offset}


def _records(shard):
    """(`Record`, {feature: value}) of a sound shard."""
    number, offset = 0, 0
    for batch in tf.data.TFRecordDataset(shard).batch(BATCH):
        for features, length in _parse(batch):
            yield Record(shard, number, offset), features
            number, offset = number + 1, offset + length + AROUND
    if offset != os.path.getsize(shard):  # TensorFlow takes less than 12 bytes more for the end of the file
        raise tf.errors.DataLossError(None, None, "cut off")


def _records_that_can_be_read(shard, problems):
    for number, offset in enumerate(_offsets(shard, problems)):
        record = Record(shard, number, offset)
        try:
            ((features, _),) = _parse(_read_record(shard, offset)[None])
        except tf.errors.DataLossError:
            problems.report(f"{record}: is corrupt: its checksum is wrong")
        except (tf.errors.InvalidArgumentError, UnicodeDecodeError) as error:
            feature = re.search(r"Key: ([\w/]+)", str(error))
            fault = f"{feature[1]} has the wrong type or number of values" if feature else "is no tf.train.Example"
            problems.report(f"{record}: {fault}")
        else:
            yield record, features


@tf.function(input_signature=[tf.TensorSpec([], tf.string), tf.TensorSpec([], tf.int64)], autograph=False)
def _read_record(path, offset):
    return read_record(path, offset)


def _offsets(shard, problems):
    """Where the records of a damaged shard start: each says how long it is."""
    size, offset, number = os.path.getsize(shard), 0, 0
    with open(shard, "rb") as file:
        while offset < size:
            file.seek(offset)
            head = file.read(8)
            length = struct.unpack("<Q", head)[0] if len(head) == 8 else size
            if not length:  # zeros, as a crash of the machine leaves them
                problems.report(f"{Record(shard, number, offset)}: is empty; the rest of the shard cannot be read")
                return
            if offset + length + AROUND > size:
                problems.report(
                    f"{Record(shard, number, offset)}: is cut off, or its length is corrupt; it ends the shard"
                )
                return
            yield offset
            offset, number = offset + length + AROUND, number + 1


@tf.function(input_signature=[tf.TensorSpec([None], tf.string)], autograph=False)
def _parse_batch(records):
    return tf.io.parse_example(records, FEATURES), tf.strings.length(records)


def _parse(records):
    """string [N] -> for each ({feature: value, or array of values}, length in bytes)."""
    features, lengths = _parse_batch(records)
    values = {}
    for name, column in features.items():
        if isinstance(column, tf.RaggedTensor):
            values[name] = np.split(column.values.numpy(), column.row_splits.numpy()[1:-1])
        else:
            values[name] = column.numpy().tolist()
    for i, length in enumerate(lengths.numpy().tolist()):
        yield {name: column[i] for name, column in values.items()}, length


def row(where, features, problems):
    """What is kept of a record: the image's ids and size, and an array for each column of its boxes.

    Args:
        where: what the record is called in messages.
        features: {feature: value, or array of values}, all of `FEATURES`.
        problems: `Problems`, told if the record cannot be used.

    Returns:
        A dictionary for `columns.of_shard`; None if the record cannot be used.
    """
    ids = [_text(features[name]) for name in ("image/source_id", "image/filename")]
    where = columns.named(where, *ids)
    if not features["image/encoded"]:
        problems.report(f"{where}: has no image/encoded")
        return None
    size = check_image(problems, where, features["image/encoded"], features["image/width"], features["image/height"])
    if size is None:
        return None
    count = len(features[CORNERS[0]])
    for name in (*CORNERS, TEXT, LABEL, DIFFICULT, CROWD, AREA):
        if len(features[name]) != count and (name in CORNERS or len(features[name])):
            problems.report(f"{where}: {name} has {len(features[name])} values, {CORNERS[0]} has {count}")
            return None
    if count and not len(features[LABEL]) and not len(features[TEXT]):
        problems.report(f"{where}: has boxes, but neither {LABEL} nor {TEXT}")
        return None
    return {
        "ids": ids,
        "size": size,
        "fractions": np.stack([features[name] for name in CORNERS], axis=1),
        "labels": features[LABEL].tolist() or [None] * count,
        "texts": [_text(text) for text in features[TEXT]] or [""] * count,
        "difficult": features[DIFFICULT].astype(bool) if len(features[DIFFICULT]) else np.zeros(count, bool),
        "crowd": features[CROWD].astype(bool) if len(features[CROWD]) else np.zeros(count, bool),
        "areas": features[AREA] if len(features[AREA]) else np.full(count, np.nan, np.float32),
    }


def _text(value):
    return value.decode("utf-8", "backslashreplace")
