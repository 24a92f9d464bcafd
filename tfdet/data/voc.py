"""PASCAL VOC's XML (http://host.robots.ox.ac.uk/pascal/VOC/, development kit, section 3), as LabelImg writes it too."""

import itertools
import os
from xml.etree.ElementTree import ParseError

import defusedxml.ElementTree
import numpy as np
from defusedxml.common import DefusedXmlException

from tfdet.data.dataset import Dataset, Example
from tfdet.data.validation import box_line, check_boxes, check_image, quoted
from tfdet.errors import DataError

VOC_NAMES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)


def read_voc(folders, split, problems):
    """Reads one split of one or more folders that hold Annotations/, JPEGImages/ and ImageSets/Main/{split}.txt.

    A folder may also be the one above, if just one such folder is in it. The class names are VOC's twenty in their
    usual order if all names found are among these, else the sorted names of all annotations in the folders, so that
    every split gives a class the same label. The image id is the stem of the file.

    Args:
        folders: list of Path; their images are joined.
        split: "train", "val", "trainval", "test", or another file of ImageSets/Main.
        problems: `Problems`, told of each object and image that cannot be used.

    Raises:
        DataError: no such folder or split, or the split is empty.
    """
    folders = [_voc_folder(folder) for folder in folders]
    files = [folder / "Annotations" / f"{stem}.xml" for folder in folders for stem in _read_split(folder, split)]
    trees, class_names = _parse_all(folders, set(files))

    examples = {}
    for file in files:
        stem = file.stem
        where = f"{file}: image {stem}"
        if stem in examples:
            problems.report(f"{where}: this image id occurs twice in split {split}")
        elif file not in trees:
            problems.report(f"{where}: there is no annotation file")
        elif isinstance(trees[file], str):
            problems.report(f"{where}: {trees[file]}")
        else:
            example = _read_example(where, file, stem, trees[file], class_names, problems)
            if example is not None:
                examples[stem] = example
    return Dataset(
        name=f"voc:{','.join(folder.resolve().name for folder in folders)} {split}",
        class_names=class_names,
        category_ids=tuple(range(1, len(class_names) + 1)),
        examples=tuple(examples.values()),
        skipped=tuple(problems.lines),
    )


# Which files?


def split_names(folders):
    """The splits that `read_voc` can read in all of the folders, without trainval where that is train and val.

    Raises:
        DataError: no such folder, or they have no split in common.
    """
    folders = [_voc_folder(folder) for folder in folders]
    first, *others = [_splits(folder) for folder in folders]
    names = [name for name in first if all(name in other for other in others)]
    if not names:
        raise DataError(f"{folders[0]}: no split in ImageSets/Main" + (" that all folders have" if others else ""))
    return tuple(name for name in names if name != "trainval" or not {"train", "val"} <= set(names))


def _splits(folder):
    """The lists in ImageSets/Main. cat_train.txt and its like list one class of a split, and are not splits."""
    names = sorted(path.stem for path in (folder / "ImageSets" / "Main").glob("*.txt"))
    return [name for name in names if name.rpartition("_")[2] not in names or "_" not in name]


def _voc_folder(folder):
    """The folder itself, or the one inside it, that has Annotations/ and ImageSets/Main/."""
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such folder")
    found = [
        place
        for place in [folder, *sorted(folder.iterdir())]
        if (place / "Annotations").is_dir() and (place / "ImageSets" / "Main").is_dir()
    ]
    if folder in found:
        return folder
    if len(found) == 1:
        return found[0]
    if found:
        listed = ", ".join(place.name for place in found)
        raise DataError(f"{folder}: holds more than one VOC folder ({listed}); name those to read, joined by commas")
    raise DataError(f"{folder}: is not a VOC folder: it has no Annotations/ and ImageSets/Main/")


def _read_split(folder, split):
    """The stems of the images of a split, in the order of its list."""
    lists = folder / "ImageSets" / "Main"
    file = lists / f"{split}.txt"
    if not split or not file.is_file():
        listed = ", ".join(_splits(folder)) or "none"
        raise DataError(f'{folder}: no split "{split}" in ImageSets/Main; there are {listed}')
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read as text ({error})") from None
    stems = [line.strip() for line in lines if line.strip()]
    if not stems:
        raise DataError(f"{file}: the split is empty")
    # The lists of one class have 1, -1 or 0 behind the stem.
    return [stem if (folder / "Annotations" / f"{stem}.xml").is_file() else stem.split()[0] for stem in stems]


# What is in them?


def _parse_all(folders, wanted):
    """Parses every annotation of the folders, for the class names.

    Returns:
        {file: root element, or the reason why there is none (text)} for the wanted files, and the class names.
    """
    trees = {}
    names = set()
    for file in (file for folder in folders for file in sorted((folder / "Annotations").glob("*.xml"))):
        try:
            tree = defusedxml.ElementTree.parse(file).getroot()
            names.update(_text(item, "name") for item in tree.findall("object"))
            fault = None if tree.tag == "annotation" else f"is not a VOC annotation but <{tree.tag}>"
        # ValueError and LookupError: a text encoding that is wrong, or unknown.
        except (OSError, ParseError, ValueError, LookupError) as error:
            kind = "has forbidden XML" if isinstance(error, DefusedXmlException) else "cannot be read as XML"
            fault = f"{kind} ({error})"
        if file in wanted:
            trees[file] = fault or tree
    names.discard("")
    return trees, VOC_NAMES if names and names.issubset(VOC_NAMES) else tuple(sorted(names))


def _read_example(where, file, stem, tree, class_names, problems):
    image = _image_path(file.parent.parent / "JPEGImages", _text(tree, "filename"), stem)
    size = [_number(_text(tree, f"size/{side}")) for side in ("width", "height")]
    size = [int(side) if side is not None and 0 < side < 2**31 else 0 for side in size]  # else from the image itself
    size = check_image(problems, where, image, *size)
    if size is None:
        return None

    rows = []
    for number, item in enumerate(tree.findall("object")):
        name = _text(item, "name")
        box = [_number(_text(item, f"bndbox/{side}")) for side in ("xmin", "ymin", "xmax", "ymax")]
        difficult = _text(item, "difficult")
        fault = None
        if not name:
            fault = "has no <name>"
        elif None in box:
            fault = "has no <bndbox> with the numbers xmin, ymin, xmax, ymax"
        elif difficult not in ("", "0", "1"):
            fault = f"<difficult> is {quoted(difficult)}, not 0 or 1"
        if fault:
            problems.report(box_line(where, number, None if None in box else box, quoted(name), fault))
        else:
            rows.append((number, name, box, difficult == "1"))

    # Pixels are counted from 1 and xmax, ymax belong to the box. So xmin = xmax would be one pixel wide, but where it
    # occurs it is a slip of the mouse: `check_boxes` looks at what is written.
    written = np.array([box for _, _, box, _ in rows], np.float64).reshape(-1, 4)
    boxes, keep = check_boxes(
        problems,
        written - (1, 1, 0, 0),
        size,
        lambda i: (where, rows[i][0], quoted(rows[i][1])),
        written,
    )
    boxes = boxes[keep]
    rows = list(itertools.compress(rows, keep))
    return Example(
        image_id=stem,
        image=image,
        height=size[1],
        width=size[0],
        boxes=boxes,
        labels=np.array([class_names.index(name) for _, name, _, _ in rows], np.int32),
        crowd=np.zeros(len(rows), bool),
        difficult=np.array([difficult for *_, difficult in rows], bool),
        areas=(boxes[:, 2:] - boxes[:, :2]).prod(axis=1),
    )


def _image_path(folder, filename, stem):
    """The image that <filename> names, else one that has the stem of the annotation file."""
    names = [filename] if filename else []
    names += [f"{stem}.{extension}" for extension in ("jpg", "jpeg", "png", "JPG", "JPEG", "PNG")]
    paths = [os.path.join(folder, name) for name in names]
    return next((path for path in paths if os.path.isfile(path)), paths[0])


def _text(element, path):
    return (element.findtext(path) or "").strip()


def _number(text):
    try:
        return float(text)
    except ValueError:
        return None
