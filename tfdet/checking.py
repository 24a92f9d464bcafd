"""A look at a data set before a GPU hour is spent on it: counts, every defect, and examples drawn with their boxes."""

import dataclasses
import hashlib

import numpy as np
from PIL import Image
from rich.table import Table

from tfdet import drawing
from tfdet.data import Dataset, load_dataset, manifest, split_names
from tfdet.data.images import load_image
from tfdet.data.records import encoded
from tfdet.data.shards import find_shards
from tfdet.errors import DataError, one_line

SIZES = ("small", "medium", "large")  # as COCO counts them: below 32², below 96², and the rest
CELL = 400  # longest side in pixels of an image on the contact sheet
ON_SHEET = 48  # images on the contact sheet, about; every class has at least one


@dataclasses.dataclass(frozen=True)
class Check:
    """What `check` found: the splits that could be read (by name) without what is bad in them, and the defects."""

    datasets: dict[str, Dataset]
    defects: list[str]


def check(spec, splits=()):
    """Read splits of a data set as training reads them with on_error="skip", and decode every image.

    Defects, one line each, are all that a reader leaves out or clips, images that cannot be decoded, splits that cannot
    be read, shards that are not those of their manifest, splits whose classes differ, and images that are in two splits
    byte by byte.

    Args:
        spec: as for `load_dataset`.
        splits: their names; none for all that there are.

    Returns:
        A `Check`.

    Raises:
        DataError: the data set is not there, or nothing is known of its splits.
    """
    datasets, defects = {}, []
    for split in splits or split_names(spec):
        try:
            datasets[split] = load_dataset(spec, split, on_error="skip")
            defects += datasets[split].skipped
        except DataError as error:
            defects.append(str(error))
        defects += _changed_shards(spec, split)
    defects += _different_classes(datasets)
    defects += _in_two_splits(datasets)
    # A line about the whole file comes with each split.
    return Check(datasets, list(dict.fromkeys(map(one_line, defects))))


def _changed_shards(spec, split):
    kind, _, where = spec.partition(":")
    try:
        return manifest.faults(find_shards(where, split)) if kind == "tfrecord" else []
    except (DataError, OSError) as error:
        return [str(error)]


def _different_classes(datasets):
    first, *others = datasets.values() or [None]
    for other in others:
        if other.class_names != first.class_names:
            odd = sorted(set(first.class_names) ^ set(other.class_names))
            reason = f"{', '.join(odd)} not in both" if odd else "their order differs"
            yield f"{other.name}: its classes are not those of {first.name}: {reason}; labels mean different things"


def _in_two_splits(datasets):
    seen = {}  # hash of the content: the split and what the image is called there
    for split, dataset in datasets.items():
        for example in dataset.examples:
            key = hashlib.sha256(encoded(example.image)).digest()
            home, name = seen.setdefault(key, (split, example.image_id))
            if home != split:
                yield f"{dataset.name}: image {example.image_id}: is also in split {home}, as image {name}"


def summary(found):
    """The counts of a `Check` as plain numbers and text, for JSON.

    Returns:
        {"splits": {split: {...}}, "defects": [line]}. A split has "images", "images_without_boxes", "boxes", "crowd",
        "difficult", "skipped" (how many defects its reader met), "width" and "height" ([least, most] pixels; null if it
        is empty) and "classes": {name: {"boxes", "small", "medium", "large"}}. Crowd regions count among the boxes. A
        split with keypoints has "keypoints": {name: how many are labelled}.
    """
    return {"splits": {name: _counts(dataset) for name, dataset in found.datasets.items()}, "defects": found.defects}


def _counts(dataset):
    examples = dataset.examples
    labels = np.concatenate([np.zeros(0, np.int32), *(example.labels for example in examples)])
    areas = np.concatenate([np.zeros(0, np.float32), *(example.areas for example in examples)])
    table = np.zeros((dataset.num_classes, len(SIZES)), int)
    np.add.at(table, (labels, np.digitize(areas, (32**2, 96**2))), 1)
    sides = {side: [getattr(example, side) for example in examples] for side in ("width", "height")}
    labelled = [(example.keypoints[..., 2] > 0).sum(axis=0) for example in examples if dataset.keypoint_names]
    return {
        "images": len(examples),
        "images_without_boxes": sum(not len(example.boxes) for example in examples),
        "boxes": len(labels),
        "crowd": sum(int(example.crowd.sum()) for example in examples),
        "difficult": sum(int(example.difficult.sum()) for example in examples),
        "skipped": len(dataset.skipped),
        **{side: [min(values), max(values)] if values else None for side, values in sides.items()},
        "classes": {
            name: {"boxes": int(row.sum()), **dict(zip(SIZES, row.tolist(), strict=True))}
            for name, row in zip(dataset.class_names, table, strict=True)
        },
        **({"keypoints": dict(zip(dataset.keypoint_names, sum(labelled).tolist(), strict=True))} if labelled else {}),
    }


def tables(counts):
    """A `summary` as tables for the terminal: images by split, boxes by class, and keypoints, if there are any."""
    columns = ("split", "images", "without boxes", "width x height", "boxes", "crowd", "difficult", "skipped")
    images = _table("Images and boxes of each split", columns)
    for name, split in counts["splits"].items():
        size = f"{_range(split['width'])} x {_range(split['height'])}" if split["images"] else "-"
        before, after = (split["images"], split["images_without_boxes"]), (split["boxes"], split["crowd"])
        images.add_row(name, *map(str, (*before, size, *after, split["difficult"], split["skipped"])))

    classes = _table("Boxes of each class, by split and by COCO's sizes", ("class", *counts["splits"], *SIZES))
    names = dict.fromkeys(name for split in counts["splits"].values() for name in split["classes"])
    for name in names:
        rows = [split["classes"].get(name, dict.fromkeys(("boxes", *SIZES), 0)) for split in counts["splits"].values()]
        sizes = [sum(row[size] for row in rows) for size in SIZES]
        classes.add_row(name, *map(str, [row["boxes"] for row in rows] + sizes))

    keypoints = _table("Labelled keypoints of each split", ("keypoint", *counts["splits"]))
    columns = [split.get("keypoints", {}) for split in counts["splits"].values()]
    for name in dict.fromkeys(name for column in columns for name in column):
        keypoints.add_row(name, *(str(column.get(name, 0)) for column in columns))
    return [images, classes] + [keypoints] * any(columns)


def _table(title, columns):
    table = Table(title=title)
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left")
    return table


def _range(values):
    """[least, most] -> text."""
    return "-".join(map(str, dict.fromkeys(values)))


def contact_sheet(datasets):
    """Examples of every class, as many as fit, drawn with all their boxes; None if there is no box at all.

    Args:
        datasets: {split: Dataset}.

    Returns:
        PIL image.
    """
    of_class = {name: [] for dataset in datasets.values() for name in dataset.class_names}
    for split, dataset in datasets.items():
        for example in dataset.examples:
            for label in np.unique(example.labels):
                of_class[dataset.class_names[label]].append((split, example))

    each = max(1, min(8, ON_SHEET // max(1, len(of_class))))
    pictures, captions = [], []
    shown = set()
    for name, having in of_class.items():
        having = [pair for pair in having if id(pair[1]) not in shown] or having  # rather another image
        step = max(1, len(having) // each)  # from all over the set, not its first photographs
        for split, example in having[::step][:each]:
            shown.add(id(example))
            pictures.append(_drawn(example, datasets[split]))
            captions.append(f"{name}: {split} {example.image_id}")
    columns = max(4, round(len(pictures) ** 0.5))
    return drawing.grid(pictures, columns, captions) if pictures else None


def _drawn(example, dataset):
    image = Image.fromarray(load_image(example.image))
    scale = CELL / max(image.size)
    # Scaled before it is drawn on, so that lines and letters have the same size everywhere.
    image = image.resize([max(1, round(side * scale)) for side in image.size], Image.Resampling.LANCZOS)
    image = drawing.draw_boxes(image, example.boxes * scale, example.labels, dataset.class_names)
    if dataset.keypoint_names:
        keypoints = example.keypoints
        image = drawing.draw_keypoints(image, keypoints[..., :2] * scale, keypoints[..., 2] > 0, dataset.keypoint_names)
    return image
