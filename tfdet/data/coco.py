"""COCO's JSON (https://cocodataset.org/#format-data), in COCO's own folders and in those that Roboflow exports."""

import json
import os
import re
from collections import Counter

import numpy as np

from tfdet.data.dataset import Dataset, Example
from tfdet.data.segmentation import read_segmentation
from tfdet.data.validation import TOLERANCE, box_line, check_boxes, check_image, is_number, quoted
from tfdet.errors import DataError
from tfdet.skeleton import EXTREME_POINTS


def read_coco(folder, split, problems, task="instances", masks=False):
    """Reads one split.

    The annotations are folder/annotations/{task}_{split}2017.json, or else the one file in annotations/ whose name
    has the split in it, or else folder/{split}/_annotations.coco.json. Labels count the categories in the order of
    their ids. The image id is COCO's, the area is that of the segment. Images without annotations are kept.

    Args:
        folder: Path.
        split: "train", "val", ...
        problems: `Problems`, told of each annotation and image that cannot be used.
        task: "instances", or "person_keypoints" for those categories alone that have keypoints, and with these. Objects
            of which no keypoint is labelled are read, too.
        masks: read the objects' masks, too, of which the extreme points are the keypoints. An object with a mask that
            cannot be used (reported) is read without it. It has no labelled keypoint, nor has a crowd.

    Raises:
        DataError: no such folder or split, or the file is not COCO's JSON.
    """
    file = _annotation_file(folder, split, task)
    images, annotations, categories = _load_json(file)
    names, keypoint_names = _category_names(file, categories), EXTREME_POINTS if masks else ()
    if task == "person_keypoints":
        chosen, keypoint_names = _with_keypoints(file, categories)
        others = set(names) - chosen
        names = {category: name for category, name in names.items() if category in chosen}
        annotations = [one for one in annotations if not (isinstance(one, dict) and _key(one) in others)]
    label_of = {category: label for label, category in enumerate(names)}  # names is sorted by id

    image_folder = _image_folder(folder, file, split, images)
    images = _read_images(file, images, image_folder, problems)
    rows = _read_annotations(file, annotations, images, names, keypoint_names, masks, problems)

    def describe(i):
        row = rows[i]
        return f"{file}: image {row['image_id']}", row["number"], _name(row, names)

    boxes, keep = check_boxes(
        problems,
        [row["box"] for row in rows],
        np.array([images[row["image_id"]][1:] for row in rows]).reshape(-1, 2),
        describe,
    )
    kept = {image_id: [] for image_id, image in images.items() if image is not None}
    for i in np.flatnonzero(keep):
        kept[rows[i]["image_id"]].append(i)

    examples = []
    for image_id, indices in kept.items():
        path, width, height = images[image_id]
        box = boxes[indices]
        area = (box[:, 2:] - box[:, :2]).prod(axis=1)
        given = [rows[i]["area"] for i in indices]
        examples.append(
            Example(
                image_id=image_id,
                image=path,
                height=height,
                width=width,
                boxes=box,
                labels=np.array([label_of[rows[i]["category_id"]] for i in indices], np.int32),
                crowd=np.array([rows[i]["crowd"] for i in indices], bool),
                difficult=np.zeros(len(indices), bool),
                areas=np.array([a if g is None else g for g, a in zip(given, area, strict=True)], np.float32),
                keypoints=_joined([rows[i]["keypoints"] for i in indices], keypoint_names),
                masks=tuple(rows[i]["mask"] for i in indices) if masks else None,
            )
        )
    kind = "coco_masks" if masks else "coco_keypoints" if keypoint_names else "coco"
    return Dataset(
        name=f"{kind}:{folder.resolve().name} {split}",
        class_names=tuple(names.values()),
        category_ids=tuple(names),
        examples=tuple(examples),
        skipped=tuple(problems.lines),
        keypoint_names=keypoint_names,
    )


def _joined(keypoints, names):
    return np.array(keypoints, np.float32).reshape(-1, len(names), 3) if names else None


# Which file?


def split_names(folder, task="instances"):
    """The splits that `read_coco` can read.

    Raises:
        DataError: no such folder, or it has no annotations.
    """
    found, preferred, roboflow = _annotation_files(folder, task)
    names = [re.sub(rf"^{task}_|\d{{4}}$", "", file.stem) for file in preferred or found]
    names += [file.parent.name for file in roboflow]
    if not names:
        raise DataError(f"{folder}: there are no annotations/*.json files")
    return tuple(dict.fromkeys(names))


def _annotation_files(folder, task):
    """All JSON files in annotations/, those of them that are for boxes or for keypoints, and those of Roboflow."""
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such folder")
    found = sorted((folder / "annotations").glob("*.json"))
    # The task comes first in COCO's names: captions_, person_keypoints_, stuff_, panoptic_, image_info_.
    other = re.compile("captions|keypoints|panoptic|stuff|image_info")
    if task == "instances":
        preferred = [file for file in found if not other.search(file.name)]
    else:
        preferred = [file for file in found if "keypoints" in file.name]
    return found, preferred, sorted(folder.glob("*/_annotations.coco.json"))


def _annotation_file(folder, split, task):
    found, preferred, roboflow = _annotation_files(folder, task)
    # "val" is the val of instances_val2014.json rather than of instances_minival2014.json.
    word = re.compile(rf"(?<![^\W_]){re.escape(split)}(?:\d{{4}})?(?![^\W_])")
    for candidates in (
        [file for file in preferred if split and file.name == f"{task}_{split}2017.json"],
        [file for file in preferred if split and word.search(file.stem)],
        [file for file in roboflow if file.parent.name == split],
        [file for file in roboflow if (file.parent.name, split) == ("valid", "val")],  # what Roboflow calls it
        [file for file in preferred if split and split in file.stem],
        [file for file in found if split and split in file.stem],
    ):
        if len(candidates) > 1:
            listed = ", ".join(file.name for file in candidates)
            raise DataError(f'{folder}: more than one annotation file fits split "{split}": {listed}')
        if candidates:
            return candidates[0]
    raise DataError(f'{folder}: no split "{split}"; there are {", ".join(split_names(folder, task))}')


def _image_folder(folder, file, split, images):
    """The first of the usual places that holds one of the images."""
    if file.parent.name != "annotations":
        return file.parent  # Roboflow keeps a split's images beside its annotations
    year = re.search(r"\d{4}$", file.stem)
    names = [f"{split}{year.group()}"] if year else []
    names += [f"{split}2017", split]
    places = [folder / name for name in names] + [folder / "images" / name for name in names]
    places = [place for place in [*places, folder / "images", folder] if place.is_dir()]
    files = [image["file_name"] for image in images if isinstance(image, dict) and type(image.get("file_name")) is str]
    for place in places:
        if any(os.path.isfile(os.path.join(place, name)) for name in files):
            return place
    return places[0]  # each image is then reported as missing from it


# What is in it?


def _load_json(file):
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:  # ValueError: not JSON, not UTF-8, an endless integer
        raise DataError(f"{file}: cannot be read as JSON ({error})") from None
    lists = []
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise DataError(f'{file}: is not COCO\'s JSON: it has no list "{key}"')
        lists.append(content[key])
    if not lists[0]:
        raise DataError(f"{file}: the split is empty: it has no images")
    return lists


def _category_names(file, categories):
    """{category id: name}, sorted by id."""
    names = {}
    for number, category in enumerate(categories):
        if (
            not isinstance(category, dict)
            or type(category.get("id")) is not int
            or type(category.get("name")) is not str
        ):
            raise DataError(f'{file}: category number {number} needs an "id" (whole number) and a "name" (text)')
        if category["id"] in names:
            raise DataError(f"{file}: category id {category['id']} occurs twice")
        names[category["id"]] = category["name"]
    if not names:
        raise DataError(f"{file}: it has no categories")
    return dict(sorted(names.items()))


def _with_keypoints(file, categories):
    """The ids of the categories that have keypoints, and the names of these, which they share."""
    names = {category["id"]: category["keypoints"] for category in categories if "keypoints" in category}
    for keypoints in names.values():
        if not isinstance(keypoints, list) or not keypoints or not all(type(name) is str for name in keypoints):
            raise DataError(f"{file}: the keypoints of a category are {quoted(keypoints)}, not a list of names")
    first, *others = names.values() or [None]
    if first is None:
        raise DataError(f"{file}: no category has keypoints")
    if any(other != first for other in others):
        raise DataError(f"{file}: its categories have different keypoints")
    return set(names), tuple(first)


def _key(annotation):
    category = annotation.get("category_id")
    return category if type(category) is int else None


def _read_images(file, records, folder, problems):
    """{image id: (path, width, height)}, with None for an image that is left out."""
    images = {}
    for number, record in enumerate(records):
        if (
            not isinstance(record, dict)
            or type(record.get("id")) not in (int, str)
            or type(record.get("file_name")) is not str
        ):
            problems.report(f'{file}: image number {number} needs an "id" and a "file_name"')
            continue
        image_id = record["id"]
        where = f"{file}: image {image_id}"
        if image_id in images:
            problems.report(f"{where}: this image id occurs twice")
            continue
        images[image_id] = None
        size = [record.get("width") or 0, record.get("height") or 0]
        if not all(type(side) in (int, float) and 0 <= side < 2**31 and side == int(side) for side in size):
            given = f"{quoted(record.get('width'))} x {quoted(record.get('height'))}"
            problems.report(f"{where}: width and height are not whole numbers of pixels but {given}")
            continue
        path = os.path.join(folder, record["file_name"])
        size = check_image(problems, where, path, *map(int, size))
        if size is not None:
            images[image_id] = (path, *size)
    return images


def _read_annotations(file, records, images, names, keypoint_names, masks, problems):
    """What is needed of each annotation that can be used: a list of dictionaries, boxes as xyxy."""
    rows = []
    seen = set()
    numbers = Counter()  # boxes met so far, by image
    for position, record in enumerate(records):
        fault = _fault(record, images)
        if fault:
            annotation_id = record.get("id") if isinstance(record, dict) else None
            called = f"number {position}" if annotation_id is None else quoted(annotation_id)
            problems.report(f"{file}: annotation {called}: {fault}")
            continue
        image_id = record["image_id"]
        number = numbers[image_id]
        numbers[image_id] += 1
        if images[image_id] is None:
            continue  # left out with its image, which has been reported
        x, y, width, height = map(float, record["bbox"])
        row = {
            "id": record.get("id"),
            "image_id": image_id,
            "number": number,
            "box": (x, y, x + width, y + height),
            "category_id": record["category_id"],
            "crowd": bool(record.get("iscrowd")),
            "area": record.get("area"),
            "keypoints": None,
            "mask": None,
        }
        fault = None
        if row["category_id"] not in names:
            fault = f"category {row['category_id']} is not among the categories of the file"
        elif row["id"] is not None and row["id"] in seen:
            fault = "this annotation id occurs twice"
        elif keypoint_names and not masks:
            row["keypoints"], fault = _keypoints(record, keypoint_names, *images[image_id][1:])
        lost = fault is not None
        if masks and not lost:
            row["mask"], row["keypoints"], fault = _mask(record, *images[image_id][1:])
        if fault:
            problems.report(box_line(f"{file}: image {image_id}", number, row["box"], _name(row, names), fault))
        if lost:
            continue
        seen.add(row["id"])
        rows.append(row)
    return rows


def _fault(record, images):
    """What is wrong with the structure of an annotation, or None."""
    if not isinstance(record, dict):
        return "is not an object"
    for key in ("image_id", "category_id", "bbox"):
        if key not in record:
            return f'has no "{key}"'
    if type(record["image_id"]) not in (int, str) or record["image_id"] not in images:
        return f"is of image {quoted(record['image_id'])}, which is not among the images of the file"
    if type(record["category_id"]) is not int:
        return f"category_id is {quoted(record['category_id'])}, not a whole number"
    if type(record.get("id")) not in (int, str, type(None)):
        return f"id is {quoted(record['id'])}, not a whole number"
    bbox = record["bbox"]
    if not isinstance(bbox, list) or len(bbox) != 4 or not all(map(is_number, bbox)):
        return f"bbox is {quoted(bbox)}, not four numbers (x, y, width, height)"
    if record.get("iscrowd") not in (None, 0, 1):
        return f"iscrowd is {quoted(record['iscrowd'])}, not 0 or 1"
    area = record.get("area")
    if area is not None and not (is_number(area) and 0 <= area < float("inf")):
        return f"area is {quoted(area)}, not a number of pixels"
    return None


def _keypoints(record, names, width, height):
    """Those of an annotation as float64 [J, 3], and what is wrong with them, or None. To have none is legal."""
    values = record.get("keypoints")
    if values is None:
        return np.zeros((len(names), 3)), None
    if not isinstance(values, list) or len(values) != 3 * len(names) or not all(map(is_number, values)):
        return None, f"keypoints are {quoted(values)}, not x, y and visibility of {len(names)}"
    keypoints = np.array(values, float).reshape(-1, 3)
    places, visibility = keypoints[:, :2], keypoints[:, 2]
    inside = np.clip(places, 0, (width, height))
    labelled = visibility != 0
    for faulty, fault in (
        (~np.isfinite(keypoints).all(axis=1), "is not finite"),
        (~np.isin(visibility, (0, 1, 2)), "has a visibility that is not 0, 1 or 2"),
        (labelled & (abs(places - inside) > TOLERANCE).any(axis=1), f"is outside the image of {width}x{height} pixels"),
    ):
        if faulty.any():
            i = int(np.argmax(faulty))
            values = ", ".join(f"{value:.10g}" for value in keypoints[i])
            return None, f"keypoint {names[i]} ({values}) {fault}"
    return np.where(labelled[:, None], np.column_stack([inside, visibility]), 0.0), None


def _mask(record, width, height):
    """The mask of an annotation, its extreme points float64 [4, 3], and what is wrong, or None; it then has neither."""
    mask, points, fault = read_segmentation(record.get("segmentation"), width, height)
    if fault or record.get("iscrowd"):
        return mask, np.zeros((len(EXTREME_POINTS), 3)), fault
    return mask, np.pad(points, [(0, 0), (0, 1)], constant_values=2), None


def _name(row, names):
    """The label as messages show it, with the annotation id, by which the line is found in the file."""
    label = quoted(names[row["category_id"]]) if row["category_id"] in names else f"category {row['category_id']}"
    return label if row["id"] is None else f"{label} (annotation {row['id']})"
