"""WIDER FACE's lists (http://shuoyang1213.me/WIDERFACE/): the path of an image, how many faces it has, a line for each.

A line says x, y, width, height, blur, expression, illumination, invalid, occlusion, pose. An image without a face has
the count 0 and a line of zeros all the same.
"""

import os

from tfdet.data import faces
from tfdet.data.validation import quoted
from tfdet.errors import DataError

INVALID = 7  # the number that says that a face cannot be judged
SUFFIX = "_bbx_gt.txt"


def read_wider_face(folder, split, problems):
    """Reads one split of a folder that holds wider_face_split/ and WIDER_train/images/, WIDER_val/images/, ...

    An invalid face is a crowd region: no training target, and to find it, or not to, is never wrong. Of the attributes
    nothing else is read. The image id is the path as written.

    Args:
        folder: Path.
        split: "train", "val", or whatever else is the name of a list, wider_face_split/wider_face_{split}_bbx_gt.txt
            or {split}_bbx_gt.txt. An image is looked for in WIDER_{split}, then in the others.
        problems: `Problems`, told of each line, face and image that cannot be used.
    Raises:
        DataError: no such folder or split, or the list is not of this kind.
    """
    lists = _lists(folder)
    if split not in lists:
        raise DataError(f'{folder}: no split "{split}" in wider_face_split; there are {", ".join(lists)}')
    file = lists[split]
    places = [folder / f"WIDER_{split}" / "images", *sorted(folder.glob("WIDER_*/images"))]
    examples = {}
    for path, found in _read(file, problems).items():
        paths = [os.path.join(place, path) for place in places]
        image = next((one for one in paths if os.path.isfile(one)), paths[0])
        examples[path] = faces.example(problems, f"{file}: image {path}", path, image, found)
    return faces.dataset(problems, f"wider_face:{folder.resolve().name} {split}", examples.values())


def split_names(folder):
    """The splits that `read_wider_face` can read.

    Raises:
        DataError: no such folder, or there is no list in it.
    """
    return tuple(_lists(folder))


def _lists(folder):
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such folder")
    files = sorted((folder / "wider_face_split").glob(f"*{SUFFIX}"))
    if not files:
        raise DataError(f"{folder}: is not a WIDER FACE folder: it has no wider_face_split/*{SUFFIX}")
    return {file.name.removesuffix(SUFFIX).removeprefix("wider_face_"): file for file in files}


def _read(file, problems):
    """{path as written: list of `Face`}."""
    lines, images = faces.lines_of(file), {}
    place = 0
    while place < len(lines):
        number, path = lines[place]
        count = lines[place + 1][1] if place + 1 < len(lines) else "nothing"
        if not count.isdecimal() or len(count) > 9:
            raise DataError(f"{file}: line {number + 1}: {quoted(count)} is not the number of faces in {path}")
        rows = lines[place + 2 : place + 2 + int(count)]
        place += 2 + len(rows)
        if not rows and place < len(lines) and set(lines[place][1].split()) == {"0"}:
            place += 1
        if len(rows) < int(count):
            raise DataError(f"{file}: line {number}: {path} has {len(rows)} of {count} faces")
        if path in images:
            problems.report(f"{file}: line {number}: image {path} occurs twice")
        else:
            images[path] = [face for i, row in enumerate(rows) if (face := _face(file, path, i, *row, problems))]
    return images


def _face(file, path, number, line, text, problems):
    values = faces.numbers_in(text.split())
    if values is None or len(values) < 4:
        problems.report(f"{file}: image {path}: line {line}: {quoted(text)} is not x, y, width, height and attributes")
        return None
    x, y, width, height = values[:4]
    invalid = len(values) > INVALID and values[INVALID] == 1
    return faces.Face(number, (x, y, x + width, y + height), invalid, line=line)
