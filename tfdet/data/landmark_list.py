"""A text list of faces with five landmarks, one face a line, as those of Sun et al. 2013 (trainImageList.txt).

A line says path, left, right, top, bottom, then x and y of left eye, right eye, nose, left and right corner of the
mouth, left being the viewer's; all in pixels, and paths may have back-slashes.
"""

import os

from tfdet.data import faces
from tfdet.data.csv import hashed_split
from tfdet.data.validation import Problems, quoted
from tfdet.errors import DataError

FORM = "path left right top bottom x y x y x y x y x y"


def read_landmark_list(file, split, problems):
    """Reads one split of such a list. Paths are relative to the folder of the file; the image id is the path.

    A hash of the path divides the images 80/10/10 into train, val and test, as in `csv`.

    Args:
        file: Path.
        split: "train", "val" or "test".
        problems: `Problems`, told of each line and image that cannot be used.
    Raises:
        DataError: no such file or split, or it is not such a list.
    """
    images = _read(file, problems)
    splits = {path: hashed_split(path) for path in images}
    if split not in splits.values():
        raise DataError(f'{file}: no split "{split}"; there are {", ".join(sorted(set(splits.values())))}')
    examples = [
        faces.example(
            problems, f"{file}: image {path}", path, os.path.join(file.parent, path), found, with_landmarks=True
        )
        for path, found in images.items()
        if splits[path] == split
    ]
    return faces.dataset(problems, f"landmarks:{file.stem} {split}", examples, with_landmarks=True)


def split_names(file):
    """The splits that `read_landmark_list` can read.

    Raises:
        DataError: no such file, or it is not such a list.
    """
    return tuple(dict.fromkeys(map(hashed_split, _read(file, Problems("skip")))))


def _read(file, problems):
    """{path: list of `Face`}."""
    images = {}
    for line, text in faces.lines_of(file):
        path, *words = text.rsplit(maxsplit=14)
        values = faces.numbers_in(words)
        if values is None or len(values) != 14:
            problems.report(f"{file}: line {line}: {quoted(text)} is not {FORM}")
            continue
        left, right, top, bottom, *places = values
        landmarks = tuple(zip(places[::2], places[1::2], strict=True))
        members = images.setdefault(path.replace("\\", "/"), [])
        members.append(faces.Face(len(members), (left, top, right, bottom), landmarks=landmarks, line=line))
    if not images:
        raise DataError(f"{file}: is not a list of faces: no line is {FORM}")
    return images
