"""An image inside a TFRecord shard: where it lies, and reading it alone, so that a set on disk can be in any order."""

from typing import NamedTuple

import tensorflow as tf


class Record(NamedTuple):
    """A record of a shard, in messages "FILE: record 3".

    path: the shard. number: counted from 0. offset: where the record starts in the shard, in bytes.
    """

    path: str
    number: int
    offset: int

    def __str__(self):
        return f"{self.path}: record {self.number}"


def read_record(path, offset):
    """The record that starts at a byte of a shard, a string; for use inside a graph.

    Raises:
        tf.errors.DataLossError: a checksum is wrong, or the file ends before the record does.
    """
    # tf.data.TFRecordDataset has no byte_offsets yet, the op beneath it has. (FixedLengthRecordDataset has them as
    # header_bytes, but reads through these, which takes 20 times as long in shards of 15 MB.) No buffer: it would
    # read on into records that nobody wants.
    rest = tf.raw_ops.TFRecordDatasetV2(filenames=[path], compression_type="", buffer_size=0, byte_offsets=[offset])
    rest = tf.data.experimental.from_variant(rest, tf.TensorSpec([], tf.string))
    return rest.take(1).get_single_element()


def read_image(path, offset):
    """The encoded image in the record that starts at a byte of a shard; for use inside a graph.

    Raises:
        tf.errors.OpError: the record is corrupt, or is no tf.train.Example with an image.
    """
    feature = tf.io.FixedLenFeature([], tf.string)
    return tf.io.parse_single_example(read_record(path, offset), {"image/encoded": feature})["image/encoded"]


@tf.function(input_signature=[tf.TensorSpec([], tf.string), tf.TensorSpec([], tf.int64)], autograph=False)
def _read_image(path, offset):
    return read_image(path, offset)


def encoded(image):
    """`Example.image`, a path, a `Record` or bytes -> the encoded image as bytes.

    Raises:
        OSError: there is no such file. tf.errors.OpError: as `read_image`.
    """
    if isinstance(image, bytes):
        return image
    if isinstance(image, Record):
        return _read_image(image.path, image.offset).numpy()
    with open(image, "rb") as file:
        return file.read()
