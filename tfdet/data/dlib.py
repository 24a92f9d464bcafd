"""dlib's XML, as its tool imglab writes it: images with boxes, and in them named parts."""

import itertools
import os
from xml.etree.ElementTree import ParseError

import defusedxml.ElementTree
import numpy as np
from defusedxml.common import DefusedXmlException

from tfdet.data import faces
from tfdet.data.validation import box_line, quoted
from tfdet.errors import DataError

SIDES = ("left", "top", "width", "height")
# Which of the 68 parts of a face (iBUG 300-W, Sagonas et al. 2013), counted from 0, are an eye's rim, the tip of the
# nose, the corners of the mouth; "left" is the viewer's.
PARTS = (range(36, 42), range(42, 48), (30,), (48,), (54,))


def read_dlib(folder, split, problems):
    """Reads one XML file of a folder. Paths in it are relative to the folder; the image id is the path as written.

    The class names are the sorted labels of the file; a box without a label is a "face". One to be ignored is a crowd
    region. Of 68 parts the five landmarks are made (an eye is the middle of its rim), other parts are not read. A part
    is the number of a pixel, a landmark the middle of that pixel.

    Args:
        folder: Path.
        split: the name of the file without .xml.
        problems: `Problems`, told of each box and image that cannot be used.
    Raises:
        DataError: no such folder or file, or it cannot be read as such XML.
    """
    file = folder / f"{split}.xml"
    if split not in split_names(folder):
        raise DataError(f'{folder}: no split "{split}"; there are {", ".join(split_names(folder))}')
    try:
        tree = defusedxml.ElementTree.parse(file).getroot()
    # ValueError and LookupError: a text encoding that is wrong, or unknown.
    except (OSError, ParseError, ValueError, LookupError) as error:
        kind = "has forbidden XML" if isinstance(error, DefusedXmlException) else "cannot be read as XML"
        raise DataError(f"{file}: {kind} ({error})") from None
    if tree.tag != "dataset":
        raise DataError(f"{file}: is not dlib's <dataset> but <{tree.tag}>")

    images = {}
    for number, item in enumerate(tree.iterfind("images/image")):
        path = item.get("file", "")
        if not path or path in images:
            problems.report(f"{file}: image {path or number}: {'occurs twice' if path else 'has no file'}")
        else:
            where = f"{file}: image {path}"
            found = [_face(where, i, box, problems) for i, box in enumerate(item.iterfind("box"))]
            size = [
                int(side) if (side := item.get(name, "")).isdecimal() and len(side) < 10 else None
                for name in ("width", "height")
            ]
            images[path] = (where, [face for face in found if face], size)
    every = list(itertools.chain.from_iterable(found for _, found, _ in images.values()))
    settings = {
        "class_names": tuple(sorted({face.label for face in every})) or ("face",),
        "with_landmarks": any(face.landmarks is not None for face in every),
    }
    examples = [
        faces.example(problems, where, path, os.path.join(folder, path), found, size, **settings)
        for path, (where, found, size) in images.items()
    ]
    return faces.dataset(problems, f"dlib:{folder.resolve().name} {split}", examples, **settings)


def split_names(folder):
    """The splits that `read_dlib` can read.

    Raises:
        DataError: no such folder, or no XML file in it.
    """
    names = tuple(sorted(file.stem for file in folder.glob("*.xml")))
    if not names:
        raise DataError(f"{folder}: there is no such folder, or no XML file in it")
    return names


def _face(where, number, box, problems):
    """A `Face`, or None if it cannot be used (reported)."""
    label = (box.findtext("label") or "face").strip()
    values = faces.numbers_in([box.get(side, "") for side in SIDES])
    if values is None:
        problems.report(box_line(where, number, None, quoted(label), f"has no numbers {', '.join(SIDES)}"))
        return None
    left, top, width, height = values
    corners = (left, top, left + width, top + height)
    parts = {part.get("name"): (part.get("x", ""), part.get("y", "")) for part in box.iterfind("part")}
    landmarks = None
    names = [f"{i:02}" for i in range(68)]
    if set(names) <= set(parts):
        places = [faces.numbers_in(parts[name]) for name in names]
        if None in places:
            problems.report(box_line(where, number, corners, quoted(label), "has a part without numbers x and y"))
            return None
        landmarks = tuple(tuple(np.mean([places[i] for i in group], axis=0) + 0.5) for group in PARTS)
    return faces.Face(number, corners, box.get("ignore") == "1", landmarks, label)
