"""What the readers of annotated faces share: an `Example` of rows, and a text file in lines."""

from typing import NamedTuple

import numpy as np

from tfdet.data.dataset import Dataset, Example
from tfdet.data.validation import box_line, check_boxes, check_image, quoted
from tfdet.errors import DataError
from tfdet.skeleton import FACE


class Face(NamedTuple):
    """A face as a file has it.

    number: its place among those of its image, from 0. box: xyxy in pixels. crowd: see `Example`. landmarks: x and y of
    each of FACE, or None. label: its class. line: where it is written, in a file of lines.
    """

    number: int
    box: tuple
    crowd: bool = False
    landmarks: tuple | None = None
    label: str = "face"
    line: int | None = None


def example(problems, where, image_id, image, faces, size=(None, None), class_names=("face",), with_landmarks=False):
    """An `Example` of the faces that can be used, or None if the image cannot be (reported).

    Args:
        problems, where, image, size: see `check_image`.
        with_landmarks: whether the data set has any; those of a face that has none are not labelled.
    """
    size = check_image(problems, where, image, *size)
    if size is None:
        return None

    def describe(i):
        face = faces[i]
        return where, face.number, quoted(face.label) + ("" if face.line is None else f" (line {face.line})")

    boxes, keep = check_boxes(problems, [face.box for face in faces], size, describe)
    for i, face in enumerate(faces):
        if keep[i] and face.landmarks is not None and not np.isfinite(face.landmarks).all():
            where, number, name = describe(i)
            problems.report(box_line(where, number, face.box, name, "has a landmark that is not finite"))
            keep[i] = False
    boxes, faces = boxes[keep], [face for face, kept in zip(faces, keep, strict=True) if kept]
    keypoints = np.zeros((len(faces), len(FACE), 3), np.float32)
    for row, face in zip(keypoints, faces, strict=True):
        if face.landmarks is not None:
            row[:, :2], row[:, 2] = face.landmarks, 2
    return Example(
        image_id=image_id,
        image=image,
        height=size[1],
        width=size[0],
        boxes=boxes,
        labels=np.array([class_names.index(face.label) for face in faces], np.int32),
        crowd=np.array([face.crowd for face in faces], bool),
        difficult=np.zeros(len(faces), bool),
        areas=(boxes[:, 2:] - boxes[:, :2]).prod(axis=1),
        keypoints=keypoints if with_landmarks else None,
    )


def dataset(problems, name, examples, class_names=("face",), with_landmarks=False):
    """A `Dataset` of the examples that are not None."""
    return Dataset(
        name=name,
        class_names=class_names,
        category_ids=tuple(range(1, len(class_names) + 1)),
        examples=tuple(one for one in examples if one is not None),
        skipped=tuple(problems.lines),
        keypoint_names=FACE if with_landmarks else (),
    )


def lines_of(file):
    """The lines of a text file, without the spaces around them, as (number from 1, text); none of them is empty.

    Raises:
        DataError: there is no such file, it is empty, or no text.
    """
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise DataError(f"{file}: there is no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read as text ({error})") from None
    lines = [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]
    if not lines:
        raise DataError(f"{file}: is empty")
    return lines


def numbers_in(words):
    """Words -> their values, or None if one of them is no number."""
    try:
        return [float(word) for word in words]
    except ValueError:
        return None
