"""What every reader checks of the images and boxes it reads, so that all refuse the same things in the same words.

A message is one line, `FILE: image ID: box 3 (x1, y1, x2, y2) "label": has zero area`. Boxes are counted from 0 within
their image, in the order of the file, and their coordinates are shown as the file means them.
"""

import dataclasses
import io
import json
import os
import sys
import warnings

import numpy as np
import tensorflow as tf
from PIL import Image, UnidentifiedImageError
from rich.progress import track

from tfdet.data.images import EXIF, HEAD, decoded_sizes, orientation
from tfdet.errors import DataError, one_line

FORMATS = ("JPEG", "PNG", "BMP", "GIF")  # what `decode` decodes

TOLERANCE = (
    1.0  # pixels by which a box may leave its image and be clipped without a word: rounding, or 0- against 1-based
)


class Problems:
    """Where a reader takes what it cannot use: raises at the first (on_error="raise"), or keeps a line each ("skip").

    Raises:
        ValueError: on_error is something else.
    """

    def __init__(self, on_error):
        if on_error not in ("raise", "skip"):
            raise ValueError(f'on_error must be "raise" or "skip", not {on_error!r}')
        self.on_error = on_error
        self.lines = []

    def report(self, line, clipped=False):
        """Raises DataError with a hint, or keeps the line. The caller leaves the thing out (or has clipped it)."""
        if self.on_error == "raise":
            raise DataError(f'{line} (on_error="skip" {"clips it" if clipped else "leaves it out"})')
        self.lines.append(one_line(f"{line}: clipped" if clipped else line))


def quoted(value):
    """A label or another value of a file, quoted and escaped, so that it cannot break the line it is shown in."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else text[:77] + "..."


def is_number(value):
    """A number of a file that fits a float; not finite is a matter for whoever knows what it is."""
    return type(value) is float or (type(value) is int and abs(value) < 2**63)


def box_line(where, number, box, name, fault):
    """The one line about a box; where is "FILE: image ID", box its four numbers or None."""
    numbers = "" if box is None else " (" + ", ".join(f"{value:.10g}" for value in box) + ")"
    return f"{where}: box {number}{numbers} {name}: {fault}"


def check_image(problems, where, image, width=None, height=None):
    """Is the image there, of a kind that can be decoded, and as large as the annotations say?

    Only the header is read. The size is that of the image as it is shown, after its EXIF orientation.

    Args:
        where: "FILE: image ID", for the message.
        image: path of the file, or the encoded image as bytes.
        width, height: the size in pixels that the annotations give; None or 0 where they give none.

    Returns:
        (width, height), or None if the image cannot be used (reported).
    """
    called = "the image" if isinstance(image, bytes) else f"image file {image}"
    if not isinstance(image, bytes) and not os.path.isfile(image):
        problems.report(f"{where}: there is no {called}")
        return None
    try:
        size, turn = _read_header(image)
    except Exception as error:  # Pillow's parsers raise whatever the bytes of a stranger's file lead them to
        unknown = isinstance(error, UnidentifiedImageError)
        reason = "not a JPEG, PNG, BMP or GIF" if unknown else type(error).__name__
        problems.report(f"{where}: the header of {called} cannot be read ({reason})")
        return None
    shown = size[::-1] if turn >= 5 else size
    if width and height and (width, height) != shown:
        fault = f"the annotations are for {width}x{height} pixels, {called} has {shown[0]}x{shown[1]}"
        if (width, height) == size:
            fault += f" once its EXIF orientation {turn} is applied, as it is shown and as boxes are meant"
        problems.report(f"{where}: {fault}")
        return None
    return shown


def _read_header(image):
    """Size (width, height) as stored, and the EXIF orientation; of a path or an encoded image."""
    with io.BytesIO(image) if isinstance(image, bytes) else open(image, "rb") as file:
        head = file.read(HEAD)
        file.seek(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's: of a large image, of EXIF that it does not understand
            with Image.open(file, formats=FORMATS) as opened:
                size = opened.size
    return size, int(_orientation(head)) if EXIF in head else 1


# Ten times as fast as op by op.
_orientation = tf.function(orientation, input_signature=[tf.TensorSpec([], tf.string)], autograph=False)


def without_unreadable(dataset):
    """A `Dataset` without the images that cannot be decoded, with a line for each. Decodes them all, on all cores."""
    sizes = decoded_sizes([example.image for example in dataset.examples])
    examples, lines = [], []
    described = f"decoding {dataset.name}"
    hidden = not sys.stderr.isatty()
    pairs = zip(dataset.examples, sizes, strict=True)
    for example, size in track(pairs, described, len(dataset), transient=True, disable=hidden):
        if size == (example.width, example.height):
            examples.append(example)
        else:
            fault = size if isinstance(size, str) else f"decodes to {size[0]}x{size[1]} pixels, not as its header says"
            lines.append(one_line(unreadable(example.image_id, example.image, fault)))
    return dataclasses.replace(dataset, examples=tuple(examples), skipped=(*dataset.skipped, *lines))


def raise_unreadable(ids, images, hint=""):
    """Raises DataError for the first of the images (as in `Example.image`) that cannot be decoded, if there is one."""
    for image_id, image, size in zip(ids, images, decoded_sizes(images), strict=True):
        if isinstance(size, str):
            raise DataError(unreadable(image_id, image, size) + hint)


def unreadable(image_id, image, reason):
    """The one line about an image that cannot be decoded."""
    name = image_id if isinstance(image, bytes) or image == image_id else f"{image}: image {image_id}"
    return f"{name}: not an image that can be read: {reason}"


def check_boxes(problems, boxes, sizes, describe, written=None):
    """Tests any number of boxes at once and names the bad ones.

    Args:
        boxes: float [M, 4], xyxy in pixels.
        sizes: [M, 2] or [2], width and height of each box's image in pixels.
        describe: describe(i) -> (where, number, name) of box i for `box_line`; called for bad boxes only.
        written: float [M, 4], xyxy as the file has it, where that differs (VOC counts pixels from 1 and includes the
            last): what a message shows and what the tests for empty, inverted and normalised boxes look at.

    Returns:
        boxes float32 [M, 4], clipped to their images, and keep bool [M]: False for a box that was reported and must be
        left out.
    """
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
    written = boxes if written is None else np.asarray(written, np.float64).reshape(-1, 4)
    sizes = np.broadcast_to(np.asarray(sizes, np.float64), (len(boxes), 2))
    corners = np.concatenate([sizes, sizes], axis=1)
    # Clipped before the cast, so that no finite number overflows float32.
    clipped = np.clip(boxes, 0, corners).astype(np.float32)

    with np.errstate(invalid="ignore", over="ignore"):  # what is not finite is the first thing reported
        spans = written[:, 2:] - written[:, :2]
        faults = [
            (~np.isfinite(written).all(axis=1), "has a coordinate that is not finite"),
            ((spans < 0).any(axis=1), "is inverted (x2 < x1 or y2 < y1)"),
            ((spans == 0).any(axis=1), "has zero area"),
            # A real box this small, in this corner, is not worth the silence over a file in the wrong units.
            (
                (np.abs(written) <= 1.5).all(axis=1) & (sizes > 4).all(axis=1),
                "is in normalised units by mistake (no coordinate is over 1.5); pixels are expected",
            ),
            ((boxes[:, 2:] <= 0).any(axis=1) | (boxes[:, :2] >= sizes).any(axis=1), "lies outside the image"),
            ((clipped[:, 2:] - clipped[:, :2]).prod(axis=1) <= 0, "has zero area in float32"),
            (np.maximum(-boxes, boxes - corners).max(axis=1, initial=0) > TOLERANCE, "leaves the image"),
        ]
    leaves = len(faults) - 1
    fault = np.select([test for test, _ in faults], range(len(faults)), default=len(faults))
    for i in np.flatnonzero(fault < len(faults)):
        text = faults[fault[i]][1]
        if "image" in text:
            text += f" of {sizes[i, 0]:.0f}x{sizes[i, 1]:.0f} pixels"
        where, number, name = describe(i)
        problems.report(box_line(where, number, written[i], name, text), clipped=fault[i] == leaves)
    return clipped, fault >= leaves
