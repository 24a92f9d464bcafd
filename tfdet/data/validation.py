"""What every reader checks of the images and boxes it reads, so that all refuse the same things in the same words.

A message is one line, `FILE: image ID: box 3 (x1, y1, x2, y2) "label": has zero area`. Boxes are counted from 0 within
their image, in the order of the file, and their coordinates are shown as the file means them.
"""

import json
import os

import numpy as np
from PIL import Image

from tfdet.errors import DataError

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
        line = line.replace("\n", "\\n").replace("\r", "\\r")
        line = line.encode(
            "utf-8", "backslashreplace"
        ).decode()  # JSON may hold half a character, which cannot be printed
        if self.on_error == "raise":
            raise DataError(f'{line} (on_error="skip" {"clips it" if clipped else "leaves it out"})')
        self.lines.append(f"{line}: clipped" if clipped else line)


def quoted(value):
    """A label or another value of a file, quoted and escaped, so that it cannot break the line it is shown in."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else text[:77] + "..."


def box_line(where, number, box, name, fault):
    """The one line about a box; where is "FILE: image ID", box its four numbers or None."""
    numbers = "" if box is None else " (" + ", ".join(f"{value:.10g}" for value in box) + ")"
    return f"{where}: box {number}{numbers} {name}: {fault}"


def check_image(problems, where, path, width=None, height=None):
    """Is the image file there, and how large is it?

    Args:
        where: "FILE: image ID", for the message.
        width, height: the size in pixels that the annotations give; None or 0 where they give none, and then the size
            is read from the header of the image file.

    Returns:
        (width, height), or None if the image cannot be used (reported).
    """
    if not os.path.isfile(path):
        problems.report(f"{where}: there is no image file {path}")
        return None
    if width and height:
        return width, height
    try:
        with Image.open(path) as image:  # reads the header only
            return image.size
    except Exception as error:  # Pillow's parsers raise whatever the bytes of a stranger's file lead them to
        problems.report(f"{where}: the header of image file {path} cannot be read ({type(error).__name__})")
        return None


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
