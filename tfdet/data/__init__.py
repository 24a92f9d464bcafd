"""Data sets: one reader a format, all giving the same `Dataset` of `Example`s."""

from functools import partial
from pathlib import Path

from tfdet.data import coco, csv, dlib, landmark_list, shards, tfrecord, voc, wider_face
from tfdet.data.dataset import Dataset, Example
from tfdet.data.shapes import SPLITS, shapes
from tfdet.data.validation import Problems, without_unreadable
from tfdet.errors import DataError

__all__ = ["Dataset", "Example", "load_dataset", "split_names"]


def load_dataset(spec, split="train", on_error="raise"):
    """Reads the annotations of one split, and the header of each image file.

    An image that is damaged behind its header is met when it is decoded. With on_error="raise" that is in training,
    which then stops and names it. With on_error="skip" all images are decoded once right here, on all cores, so that
    the set is sound and its order, which hangs on the number of images, is settled before the first step. That costs
    about as much as an epoch of input: a minute for 50,000 images of 640x480 pixels on two cores.

    Args:
        spec: "coco:DIR", "coco_keypoints:DIR" (people and their joints), "coco_masks:DIR" (objects with their masks and
            extreme points), "voc:DIR" (or "voc:DIR,DIR", joined), "csv:FILE", "wider_face:DIR", "landmarks:FILE" (faces
            with five landmarks, see `landmark_list`), "dlib:DIR" (its splits are the XML files), "tfrecord:DIR" or
            "tfrecord:GLOB" (see `tfrecord.read_tfrecord`), or "shapes" (generated).
        split: "train", "val", "test", or whatever else the data set calls its splits.
        on_error: "raise" stops at the first box or image that cannot be used; "skip" leaves it out and adds a line to
            `Dataset.skipped`.

    Returns:
        A `Dataset`.

    Raises:
        DataError: an unknown kind of data set, a missing folder, file or split, a file that cannot be parsed, or a bad
            box or image (with on_error="raise").
        ValueError: on_error is neither "raise" nor "skip".
    """
    problems = Problems(on_error)
    read, _ = _reader(spec)
    dataset = read(split, problems)
    return without_unreadable(dataset) if on_error == "skip" else dataset


def split_names(spec):
    """The splits that `load_dataset(spec, split)` can read; of VOC not trainval, where train and val are there too.

    Raises:
        DataError: an unknown kind of data set, a missing folder or file, or one that holds no split.
    """
    _, names = _reader(spec)
    return names()


def _reader(spec):
    """(function (split, problems) -> Dataset, function () -> names of the splits) of a data set."""
    kind, _, where = spec.partition(":")
    match kind:
        case "coco" if where:
            folder = Path(where).expanduser()
            return partial(coco.read_coco, folder), partial(coco.split_names, folder)
        case "coco_keypoints" if where:
            folder, task = Path(where).expanduser(), "person_keypoints"
            return partial(coco.read_coco, folder, task=task), partial(coco.split_names, folder, task)
        case "coco_masks" if where:
            folder = Path(where).expanduser()
            return partial(coco.read_coco, folder, masks=True), partial(coco.split_names, folder)
        case "voc" if where.strip(", "):
            folders = _folders(where)
            return partial(voc.read_voc, folders), partial(voc.split_names, folders)
        case "csv" if where:
            file = Path(where).expanduser()
            return partial(csv.read_csv, file), partial(csv.split_names, file)
        case "wider_face" if where:
            folder = Path(where).expanduser()
            return partial(wider_face.read_wider_face, folder), partial(wider_face.split_names, folder)
        case "landmarks" if where:
            file = Path(where).expanduser()
            return partial(landmark_list.read_landmark_list, file), partial(landmark_list.split_names, file)
        case "dlib" if where:
            folder = Path(where).expanduser()
            return partial(dlib.read_dlib, folder), partial(dlib.split_names, folder)
        case "tfrecord" if where:
            return partial(tfrecord.read_tfrecord, where), partial(shards.split_names, where)
        case "shapes" if not where:
            return lambda split, problems: shapes(split), lambda: tuple(SPLITS)
    kinds = (
        "coco:DIR, coco_keypoints:DIR, coco_masks:DIR, voc:DIR, csv:FILE, wider_face:DIR, landmarks:FILE, dlib:DIR, "
    )
    kinds += "tfrecord:GLOB or shapes"
    raise DataError(f'data set "{spec}": expected {kinds}')


def _folders(where):
    """ "A,B" is two folders, unless there is one of that very name."""
    whole = Path(where).expanduser()
    return [whole] if whole.is_dir() else [Path(part.strip()).expanduser() for part in where.split(",") if part.strip()]
