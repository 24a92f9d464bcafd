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
LEVELS = ("easy", "medium", "hard")  # of the official evaluation


def read_wider_face(folder, split, problems):
    """Reads one split of a folder that holds wider_face_split/ and WIDER_train/images/, WIDER_val/images/, ...

    An invalid face is a crowd region: no training target, and to find it, or not to, is never wrong. Of the attributes
    nothing else is read. The image id is the path as written.

    Args:
        folder: Path.
        split: "train", "val", or whatever else is the name of a list, wider_face_split/wider_face_{split}_bbx_gt.txt
            or {split}_bbx_gt.txt. An image is looked for in WIDER_{split}, then in the others. "val_easy",
            "val_medium" and "val_hard", where wider_face_split/ has the official evaluation's wider_easy_val.mat, ...:
            every other face is a crowd region as well.
        problems: `Problems`, told of each line, face and image that cannot be used.
    Raises:
        DataError: no such folder or split, or the list is not of this kind.
    """
    lists, levels = _lists(folder), _levels(folder)
    if split not in lists | levels:
        raise DataError(f'{folder}: no split "{split}" in wider_face_split; there are {", ".join(lists | levels)}')
    counted = _counted(levels[split]) if split in levels else None
    name, split = split, split.removesuffix(f"_{split.rpartition('_')[2]}") if split in levels else split
    file = lists[split]
    places = [folder / f"WIDER_{split}" / "images", *sorted(folder.glob("WIDER_*/images"))]
    examples = {}
    for path, found in _read(file, problems).items():
        paths = [os.path.join(place, path) for place in places]
        image = next((one for one in paths if os.path.isfile(one)), paths[0])
        if counted is not None:
            others = counted.get(os.path.splitext(path)[0], ())
            found = [face if face.number in others else face._replace(crowd=True) for face in found]
        examples[path] = faces.example(problems, f"{file}: image {path}", path, image, found)
    return faces.dataset(problems, f"wider_face:{folder.resolve().name} {name}", examples.values())


def split_names(folder):
    """The splits that `read_wider_face` can read.

    Raises:
        DataError: no such folder, or there is no list in it.
    """
    return tuple(_lists(folder) | _levels(folder))


def _lists(folder):
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such folder")
    files = sorted((folder / "wider_face_split").glob(f"*{SUFFIX}"))
    if not files:
        raise DataError(f"{folder}: is not a WIDER FACE folder: it has no wider_face_split/*{SUFFIX}")
    return {file.name.removesuffix(SUFFIX).removeprefix("wider_face_"): file for file in files}


def _levels(folder):
    """{"val_easy": file, ...} of the official evaluation's lists that there are."""
    lists = _lists(folder)
    files = {
        f"{split}_{level}": folder / "wider_face_split" / f"wider_{level}_{split}.mat"
        for split in lists
        for level in LEVELS
    }
    return {name: file for name, file in files.items() if file.is_file()}


def _counted(file):
    """Path of an image without its suffix -> the numbers, from 0, of the faces that count; of MATLAB's file.

    It has a cell for each event, its name in event_list and in file_list and gt_list a cell for each image.
    """
    try:
        from scipy.io import loadmat
        from scipy.io.matlab import MatReadError
    except ImportError:
        raise DataError(f"{file}: reading it needs scipy: pip install 'tfdet[wider-face]'") from None
    try:
        lists = loadmat(file)
        counted = {}
        columns = [lists[key][:, 0] for key in ("event_list", "file_list", "gt_list")]
        for event, names, chosen in zip(*columns, strict=True):
            for name, numbers in zip(names[:, 0], chosen[:, 0], strict=True):
                counted[f"{event[0]}/{name[0]}"] = frozenset((numbers.ravel() - 1).tolist())
    except (OSError, ValueError, KeyError, IndexError, TypeError, NotImplementedError, MatReadError) as error:
        raise DataError(f"{file}: is not one of WIDER FACE's lists ({error})") from None
    return counted


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
