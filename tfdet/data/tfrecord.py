"""TFRecord shards with the feature names of the TensorFlow Object Detection API; `convert` writes them.

The names are those of its core/standard_fields.py (TfExampleFields) and dataset_tools/create_coco_tf_record.py.
"""

import fnmatch
import glob
import os
import re
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import tensorflow as tf

from tfdet.data.dataset import Dataset, Example
from tfdet.data.label_map import read_label_map
from tfdet.data.records import Record, read_record
from tfdet.data.validation import Problems, box_line, check_boxes, check_image, quoted
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
BATCH = 32  # records that are parsed at once, and images held in memory by each thread
NUMBERED = re.compile(r"-(\d{5})-of-(\d{5})")


def read_tfrecord(where, split, problems):
    """Reads the annotations of one split; of the images only where they lie, so memory does not grow with them.

    All shards are read through once, in parallel, and every checksum and every header of an image is looked at. Later
    each image is read when it is needed, in whatever order: tf.data does so from many shards at once.

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
    shards = _shards(where, split)
    label_map = _find_label_map(shards)
    rows = []
    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        for found, lines in pool.map(_read_shard, shards):
            rows += found
            for line in lines:
                problems.report(line)
    finally:
        pool.shutdown(cancel_futures=True)
    if not rows:
        raise DataError(f'{where}: the shards of split "{split}" hold no image that can be used')

    names = read_label_map(label_map) if label_map else _names_in(rows)
    if len(set(names.values())) < len(names):
        raise DataError(f"{where}: two labels have the same name; put a label map (*.pbtxt) beside the shards")
    return Dataset(
        name=f"tfrecord:{Path(shards[0]).resolve().parent.name} {split}",
        class_names=tuple(names.values()),
        category_ids=tuple(names),
        examples=tuple(_examples(rows, names, label_map, problems)),
        skipped=tuple(problems.lines),
    )


# Which shards?


def split_names(where):
    """The splits that `read_tfrecord` can read: what {split} stands for, or the first word of train, val, test or the
    like in the name of a shard, or else the name.

    Raises:
        DataError: there are no shards.
    """
    where = os.path.expanduser(where)
    files = _files(where.replace("{split}", "*"))
    if "{split}" in where:
        pattern = fnmatch.translate(where.replace("{split}", "SPLIT"))
        pattern = pattern.replace("SPLIT", "(?P<split>[^/]+?)", 1).replace("SPLIT", "(?P=split)")
        found = [match["split"] for file in files if (match := re.match(pattern, file))]
    else:
        found = []
        for file in files:
            stem = NUMBERED.sub("", re.sub(r"\.(tf)?records?", "", os.path.basename(file)))
            words = [word for word in re.split(r"[\W_]+", stem) if re.match("train|val|test|dev", word)]
            found.append(words[0] if words else stem)
    if not found:
        raise DataError(f"{where}: there are no such shards; expected a folder of *record* files, or a glob")
    return tuple(dict.fromkeys(found))


def _shards(where, split):
    if "{split}" in where:
        shards = _files(where.replace("{split}", glob.escape(split)))
    else:
        word = re.compile(rf"(?<![^\W_]){re.escape(split)}(?:\d{{4}})?(?![^\W_])")
        shards = [file for file in _files(where) if split and word.search(os.path.basename(file))]
    if not shards:
        raise DataError(f'{where}: no shards of split "{split}"; there are {", ".join(split_names(where))}')
    _check_complete(where, shards)
    return shards


def _check_complete(where, shards):
    """Raises DataError unless all of the -of-00010 shards are there. (A glob may choose some of them.)"""
    totals = {}
    for shard in shards:
        folder, name = os.path.split(shard)
        if match := NUMBERED.search(name):
            around = os.path.join(folder, name[: match.start()]), name[match.end() :]
            total = totals.setdefault(around, match[2])
            if total != match[2]:
                raise DataError(f"{where}: shards of two sets, -of-{total} and -of-{match[2]}, lie side by side")
    for (head, tail), total in totals.items():
        for number in range(int(total)):
            if not os.path.exists(shard := f"{head}-{number:05d}-of-{total}{tail}"):
                raise DataError(f"{shard}: this shard is missing")


def _files(where):
    path = os.path.expanduser(where)
    found = glob.glob(os.path.join(glob.escape(path), "*record*") if os.path.isdir(path) else path, recursive=True)
    return sorted(file for file in found if os.path.isfile(file))


def _find_label_map(shards):
    folder = Path(shards[0]).parent
    found = sorted(folder.glob("[!.]*.pbtxt"))
    usual = [file for file in found if file.name == "label_map.pbtxt"]
    if len(found) > 1 and not usual:
        listed = ", ".join(file.name for file in found)
        raise DataError(f"{folder}: which is the label map? Name it label_map.pbtxt: {listed}")
    return (usual or found or [None])[0]


# What is in them?


def _read_shard(shard):
    """All of a shard -> a dictionary for each record that can be used, and a line for each that cannot."""
    try:
        problems = Problems("skip")
        rows = [_row(*record, problems) for record in _records(shard)]
    # None says where: once more, slowly, each record by itself. UnicodeDecodeError: TensorFlow quotes the record.
    except (tf.errors.OpError, UnicodeDecodeError):
        problems = Problems("skip")
        rows = [_row(*record, problems) for record in _records_that_can_be_read(shard, problems)]
    return [row for row in rows if row is not None], problems.lines


def _records(shard):
    """(`Record`, {feature: value}) of a sound shard."""
    number, offset = 0, 0
    for batch in tf.data.TFRecordDataset(shard).batch(BATCH):
        for features, length in _parse(batch):
            yield Record(shard, number, offset), features
            number, offset = number + 1, offset + length + 16  # a record has 12 bytes before it and 4 behind
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
            if offset + length + 16 > size:
                problems.report(
                    f"{Record(shard, number, offset)}: is cut off, or its length is corrupt; it ends the shard"
                )
                return
            yield offset
            offset, number = offset + length + 16, number + 1


@tf.function(input_signature=[tf.TensorSpec([None], tf.string)], autograph=False)
def _parse_batch(records):
    return tf.io.parse_example(records, FEATURES), tf.strings.length(records)


def _parse(records):
    """string [N] -> for each ({feature: value, or array of values}, length in bytes)."""
    features, lengths = _parse_batch(records)
    columns = {}
    for name, column in features.items():
        if isinstance(column, tf.RaggedTensor):
            columns[name] = np.split(column.values.numpy(), column.row_splits.numpy()[1:-1])
        else:
            columns[name] = column.numpy().tolist()
    for i, length in enumerate(lengths.numpy().tolist()):
        yield {name: column[i] for name, column in columns.items()}, length


def _row(record, features, problems):
    """What is kept of a record: the image's id and size, and an array for each column of its boxes. None: unusable."""
    ids = [_text(features[name]) for name in ("image/source_id", "image/filename")]
    where = f"{record}: image {ids[0] or ids[1] or 'without a name'}"
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
        "record": record,
        "where": where,
        "ids": ids,
        "size": size,
        "fractions": np.stack([features[name] for name in CORNERS], axis=1),
        "labels": features[LABEL].tolist() or [None] * count,
        "texts": [_text(text) for text in features[TEXT]] or [""] * count,
        "difficult": features[DIFFICULT].astype(bool) if len(features[DIFFICULT]) else np.zeros(count, bool),
        "crowd": features[CROWD].astype(bool) if len(features[CROWD]) else np.zeros(count, bool),
        "areas": features[AREA] if len(features[AREA]) else np.full(count, np.nan, np.float32),
    }


def _names_in(rows):
    """{label: name} of all boxes, for want of a label map."""
    pairs = {pair for row in rows for pair in zip(row["labels"], row["texts"], strict=True)}
    names = {}
    for label, text in sorted((label, text) for label, text in pairs if label is not None):
        if text or label not in names:
            names[label] = text or str(label)
    unnumbered = {text for label, text in pairs if label is None} - set(names.values())
    return names | dict(enumerate(sorted(unnumbered), start=max(names, default=0) + 1))


def _examples(rows, names, label_map, problems):
    """The rows as `Example`s, all their boxes tested."""
    ids = _image_ids(rows)
    position = {label: i for i, label in enumerate(names)}  # of labels as they are stored, and of names
    by_name = {name: i for i, name in enumerate(names.values())}
    owners = [(row, number) for row in rows for number in range(len(row["labels"]))]
    fractions = np.concatenate([row["fractions"] for row in rows]).astype(np.float64)
    sizes = np.array([row["size"] for row, _ in owners]).reshape(-1, 2)

    def describe(i):
        row, number = owners[i]
        label, text = row["labels"][number], row["texts"][number]
        stored = ", ".join(f"{value:.6g}" for value in fractions[i])
        return row["where"], number, f"{quoted(text or names.get(label, label))} (stored as {stored})"

    boxes, keep = check_boxes(problems, fractions * np.tile(sizes, 2), sizes, describe)
    labels = np.full(len(owners), -1, np.int32)
    for i, (row, number) in enumerate(owners):
        label, text = row["labels"][number], row["texts"][number]
        labels[i] = by_name.get(text, -1) if label is None else position.get(label, -1)
        if labels[i] < 0 and keep[i]:
            where, number, name = describe(i)
            shown = quoted(text) if label is None else label
            problems.report(box_line(where, number, boxes[i], name, f"label {shown} is not in {label_map}"))
    keep &= labels >= 0

    ends = np.cumsum([len(row["labels"]) for row in rows])
    for row, image_id, end in zip(rows, ids, ends.tolist(), strict=True):
        kept = np.arange(end - len(row["labels"]), end)[keep[end - len(row["labels"]) : end]]
        box, within = boxes[kept], keep[end - len(row["labels"]) : end]
        areas = row["areas"][within]
        yield Example(
            image_id=image_id,
            image=row["record"],
            height=row["size"][1],
            width=row["size"][0],
            boxes=box,
            labels=labels[kept],
            crowd=row["crowd"][within],
            difficult=row["difficult"][within],
            # NaN, or what makes no sense: that of the box.
            areas=np.where((areas >= 0) & np.isfinite(areas), areas, (box[:, 2:] - box[:, :2]).prod(axis=1)),
        )


def _image_ids(rows):
    for candidates in zip(*(row["ids"] for row in rows), strict=True):
        if all(candidates) and len(set(candidates)) == len(rows):
            # COCO's ids are numbers, but 007 is a name.
            if all(re.fullmatch("0|[1-9][0-9]{0,17}", one) for one in candidates):
                return [int(one) for one in candidates]
            return candidates
    return [f"{os.path.basename(row['record'].path)}:{row['record'].number}" for row in rows]


def _text(value):
    return value.decode("utf-8", "backslashreplace")
