"""Encoded images to pixels, in the graph: the same in training, prediction and serving. And: which cannot be decoded?

An image is decoded as it is SHOWN: a photograph that its camera marked as rotated or mirrored (EXIF orientation, JPEG
only) comes out upright, as in browsers and annotation tools. Boxes are in pixels of that picture.
"""

import os
import re
from concurrent.futures import ThreadPoolExecutor

import tensorflow as tf

from tfdet.data import records

HEAD = 2**16  # bytes of a JPEG in which EXIF is looked for; cameras write it first
EXIF = b"Exif\0\0"


def decode(encoded):
    """An encoded JPEG, PNG, BMP or GIF (its first frame) -> uint8 [H, W, 3], RGB, upright.

    Grey is repeated, CMYK converted without colour profile, alpha left out (not composited), 16 bits cut to the upper
    8, all as Pillow's `convert("RGB")` does, except that Pillow saturates 16 bits.

    Raises:
        tf.errors.InvalidArgumentError: not such an image, or not all of it; without the name of the file.
    """
    image = tf.io.decode_image(encoded, channels=3, expand_animations=False)
    image = tf.ensure_shape(image, (None, None, 3))
    is_bmp = tf.strings.substr(encoded, 0, 2) == b"BM"
    image = tf.cond(is_bmp, lambda: _through_palette(image, encoded), lambda: image)
    turn = orientation(encoded)
    return tf.cond(turn > 1, lambda: upright(image, turn), lambda: image)


def load_image(image):
    """A path, a `Record`, or an encoded image as bytes -> numpy uint8 [H, W, 3], decoded just as for training."""
    return decode(records.encoded(image)).numpy()


# EXIF orientation


def orientation(encoded):
    """The EXIF orientation of a JPEG, int32 1 .. 8; 1, upright, where it has none, or none that makes sense."""
    parts = tf.strings.split(tf.strings.substr(encoded, 0, HEAD), EXIF, 1)
    is_jpeg = tf.strings.substr(encoded, 0, 2) == b"\xff\xd8"
    return tf.cond(is_jpeg & (tf.size(parts) == 2), lambda: _orientation_in(parts[1]), lambda: 1)


def _orientation_in(tiff):
    """That of the TIFF header and the directory of tags that follow the word Exif (EXIF 2.3, section 4.5 and 4.6)."""
    data = tf.cast(tf.io.decode_raw(tiff, tf.uint8), tf.int32)
    end = tf.size(data)
    data = tf.pad(data, [[0, 2]])  # what lies beyond the end is 0
    big_endian = data[0] == ord("M")

    def short(at):
        first, second = tf.gather(data, tf.minimum(at, end)), tf.gather(data, tf.minimum(at, end) + 1)
        return tf.where(big_endian, 256 * first + second, 256 * second + first)

    directory = tf.where(big_endian, short(6), short(4))  # the lower half of an offset of 4 bytes; EXIF is under 64 KiB
    tags = directory + 2 + 12 * tf.range(short(directory))
    is_orientation = (short(tags) == 0x0112) & (short(tags + 2) == 3)  # of the type SHORT
    value = tf.concat([tf.boolean_mask(short(tags + 8), is_orientation), [1]], axis=0)[0]
    return tf.where((value >= 1) & (value <= 8), value, 1)


def upright(image, turn):
    """Undo an EXIF orientation: image [H, W, 3] -> [H, W, 3], or [W, H, 3] where turn is 5 .. 8."""
    image = tf.cond(turn >= 5, lambda: tf.transpose(image, (1, 0, 2)), lambda: image)
    down, across = tf.reduce_any(turn == (3, 4, 7, 8)), tf.reduce_any(turn == (2, 3, 6, 7))
    return tf.reverse(image, tf.boolean_mask([0, 1], tf.stack([down, across])))


def _through_palette(image, bmp):
    """TensorFlow shows the numbers that a BMP with a palette stores as shades of grey: looks up their colours."""
    start, end = 14 + _little_endian(bmp, 14, 4), _little_endian(bmp, 10, 4)  # between headers and pixels

    def look_up():
        colors = tf.reshape(tf.io.decode_raw(tf.strings.substr(bmp, start, end - start), tf.uint8), (-1, 4))
        return tf.gather(colors[:, 2::-1], tf.cast(image[..., 0], tf.int32))  # stored as blue, green, red, 0

    return tf.cond(_little_endian(bmp, 28, 2) == 8, look_up, lambda: image)


def _little_endian(encoded, at, size):
    digits = tf.cast(tf.io.decode_raw(tf.strings.substr(encoded, at, size), tf.uint8), tf.int32)
    return tf.reduce_sum(digits * [1, 2**8, 2**16, 2**24][:size])


# Which cannot be decoded?


def decoded_sizes(images):
    """Decode all images on all cores; gives one thing for each, in order, as soon as it is known.

    Args:
        images: paths, `Record`s, or encoded images as bytes.

    Yields:
        (width, height) in pixels, or the reason why the image cannot be decoded, as text.
    """
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield from pool.map(_decoded_size, images)


def _decoded_size(image):
    try:
        height, width = _size(records.encoded(image)).numpy().tolist()
        return width, height
    except tf.errors.OpError as error:
        return _reason(error)
    except (OSError, ValueError) as error:  # ValueError: a path with a zero byte
        return str(error)


@tf.function(input_signature=[tf.TensorSpec([], tf.string)], autograph=False)
def _size(encoded):
    return tf.shape(decode(encoded))[:2]


def _reason(error):
    """What TensorFlow complains of, without the trace and the names of ops that it puts around it."""
    text = re.sub(r"\s*\[\[\{\{node .*|\[Op:.*|\{\{.*?\}\}", "", error.message, flags=re.DOTALL)
    return text.strip().splitlines()[-1]
