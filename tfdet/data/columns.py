"""What shards say of many images and their boxes as columns, so that a million images take seconds, not minutes."""

import contextlib
import gc
import os
import re
from typing import NamedTuple

import numpy as np

from tfdet.data.dataset import Example
from tfdet.data.records import Record
from tfdet.data.validation import box_line, check_boxes, quoted

# The columns that are arrays: dtype, and shape of what belongs to one image or box.
OF_IMAGES = {"numbers": (np.int64, ()), "offsets": (np.int64, ()), "sizes": (np.int64, (2,)), "counts": (np.int64, ())}
OF_BOXES = {"fractions": (np.float32, (4,)), "kind": (np.int32, ()), "areas": (np.float32, ())}
OF_BOXES |= {"difficult": (np.bool_, ()), "crowd": (np.bool_, ())}
BLOCK = 2**16  # boxes that are tested at once, few enough for the processor's caches


class Columns(NamedTuple):
    """The annotations of N images with M boxes in S shards as the shards have them: nothing is tested or left out yet.

    Attributes:
        shards: S paths.
        images: int64 [S], how many of the N images each shard holds; they are in the order of the shards.
        numbers, offsets: int64 [N], as in `Record`.
        sizes: int64 [N, 2], width and height in pixels.
        counts: int64 [N], how many of the M boxes are on each image.
        source_ids, filenames: N texts, image/source_id and image/filename; "" where there is none.
        fractions: float32 [M, 4], xyxy as fractions of the image.
        kind: int32 [M], index into `kinds`.
        areas: float32 [M] in pixels, NaN where there is none.
        difficult, crowd: bool [M].
        kinds: pairs of class/label, a number or None, and class/text, "" where there is none.
    """

    shards: list[str]
    images: np.ndarray
    numbers: np.ndarray
    offsets: np.ndarray
    sizes: np.ndarray
    counts: np.ndarray
    source_ids: list[str]
    filenames: list[str]
    fractions: np.ndarray
    kind: np.ndarray
    areas: np.ndarray
    difficult: np.ndarray
    crowd: np.ndarray
    kinds: tuple[tuple[int | None, str], ...]


def of_shard(shard, rows):
    """`Columns` of one shard, from what `tfrecord.row` made of its records, with their numbers and offsets."""
    kinds = {}
    pairs = (pair for row in rows for pair in zip(row["labels"], row["texts"], strict=True))
    values = {"kind": [kinds.setdefault(pair, len(kinds)) for pair in pairs]}
    values |= {"sizes": [row["size"] for row in rows], "counts": [len(row["labels"]) for row in rows]}
    values |= {name: [row[name[:-1]] for row in rows] for name in ("numbers", "offsets")}
    values |= {
        name: np.concatenate([row[name] for row in rows]) if rows else ()
        for name in ("fractions", "areas", "difficult", "crowd")
    }
    arrays = {
        name: np.asarray(values[name], dtype).reshape(-1, *shape)
        for name, (dtype, shape) in (OF_IMAGES | OF_BOXES).items()
    }
    ids = {"source_ids": [row["ids"][0] for row in rows], "filenames": [row["ids"][1] for row in rows]}
    return Columns(shards=[shard], images=np.array([len(rows)]), kinds=tuple(kinds), **ids, **arrays)


def join(parts):
    """Several `Columns`, at least one, as one."""
    kinds, tables = {}, {}
    for part in parts:
        if id(part.kinds) not in tables:  # parts of one index share theirs
            table = [kinds.setdefault(pair, len(kinds)) for pair in part.kinds]
            tables[id(part.kinds)] = np.array(table, np.int32)
    parts = [part._replace(kind=tables[id(part.kinds)][part.kind]) for part in parts]
    joined = {
        name: np.concatenate([getattr(part, name) for part in parts]) for name in ("images", *OF_IMAGES, *OF_BOXES)
    }
    for name in ("source_ids", "filenames"):
        joined[name] = [text for part in parts for text in getattr(part, name)]
    return Columns(shards=tuple(shard for part in parts for shard in part.shards), kinds=tuple(kinds), **joined)


def of_each_shard(columns):
    """`Columns` -> {shard: its `Columns`}, views."""
    images = np.cumsum([0, *columns.images])
    boxes = np.cumsum(np.append(0, columns.counts))[images].tolist()
    images = images.tolist()
    found = {}
    for i, shard in enumerate(columns.shards):
        of_images, of_boxes = slice(images[i], images[i + 1]), slice(boxes[i], boxes[i + 1])
        part = {name: getattr(columns, name)[of_images] for name in (*OF_IMAGES, "source_ids", "filenames")}
        part |= {name: getattr(columns, name)[of_boxes] for name in OF_BOXES}
        found[shard] = columns._replace(shards=[shard], images=columns.images[i : i + 1], **part)
    return found


def names_in(columns):
    """{label: name} of all boxes, for want of a label map."""
    pairs = {columns.kinds[i] for i in np.flatnonzero(np.bincount(columns.kind)).tolist()}
    names = {}
    for label, text in sorted((label, text) for label, text in pairs if label is not None):
        if text or label not in names:
            names[label] = text or str(label)
    unnumbered = {text for label, text in pairs if label is None} - set(names.values())
    return names | dict(enumerate(sorted(unnumbered), start=max(names, default=0) + 1))


def examples(columns, names, label_map, problems):
    """`Columns` -> a tuple of `Example`s, all their boxes tested.

    Args:
        names: {label: name}, in the order of the classes.
        label_map: where these stand, for messages.
        problems: `Problems`, told of each box that cannot be used.
    """
    boxes, labels, keep = _tested(columns, names, label_map, problems)
    ends = np.cumsum(np.append(0, keep))[np.cumsum(columns.counts)].tolist()  # of each image, among the boxes kept
    boxes, labels, areas = boxes[keep], labels[keep], columns.areas[keep]
    crowd, difficult = columns.crowd[keep], columns.difficult[keep]
    # NaN, or what makes no sense: that of the box.
    areas = np.where((areas >= 0) & np.isfinite(areas), areas, (boxes[:, 2:] - boxes[:, :2]).prod(axis=1))
    shards = np.repeat(np.array(columns.shards, object), columns.images).tolist()
    widths, heights = columns.sizes.T.tolist()
    per_image = (image_ids(columns), shards, columns.numbers.tolist(), columns.offsets.tolist(), widths, heights, ends)
    made, start = [], 0
    with _no_garbage():
        for image_id, shard, number, offset, width, height, end in zip(*per_image, strict=True):
            own = slice(start, end)
            start = end
            example = Example(
                image_id=image_id,
                image=Record(shard, number, offset),
                height=height,
                width=width,
                boxes=boxes[own],
                labels=labels[own],
                crowd=crowd[own],
                difficult=difficult[own],
                areas=areas[own],
            )
            made.append(example)
    return tuple(made)


@contextlib.contextmanager
def _no_garbage():
    """For making millions of objects that stay: to look for garbage in them again and again takes longer than that."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _tested(columns, names, label_map, problems):
    """Boxes float32 [M, 4] in pixels, labels int32 [M], and keep bool [M]: False for those that cannot be used."""
    owners = np.repeat(np.arange(len(columns.counts)), columns.counts)
    firsts = np.cumsum(columns.counts) - columns.counts
    position = {label: i for i, label in enumerate(names)}  # of labels as they are stored, and of names
    by_name = {name: i for i, name in enumerate(names.values())}
    classes = [by_name.get(text, -1) if label is None else position.get(label, -1) for label, text in columns.kinds]
    labels = np.array(classes, np.int32)[columns.kind]

    def describe(i):
        label, text = columns.kinds[columns.kind[i]]
        stored = ", ".join(f"{value:.6g}" for value in columns.fractions[i].astype(np.float64))
        shown = f"{quoted(text or names.get(label, label))} (stored as {stored})"
        return _where(columns, owners[i]), i - firsts[owners[i]], shown

    boxes, keep = np.zeros((len(labels), 4), np.float32), np.zeros(len(labels), bool)
    for start in range(0, len(labels), BLOCK):
        block = slice(start, start + BLOCK)
        sizes = columns.sizes[owners[block]]
        pixels = columns.fractions[block].astype(np.float64) * np.tile(sizes, 2)
        boxes[block], keep[block] = check_boxes(problems, pixels, sizes, lambda i, start=start: describe(start + i))
    for i in np.flatnonzero(keep & (labels < 0)):
        where, number, name = describe(i)
        label, text = columns.kinds[columns.kind[i]]
        shown = quoted(text) if label is None else label
        problems.report(box_line(where, number, boxes[i], name, f"label {shown} is not in {label_map}"))
    return boxes, labels, keep & (labels >= 0)


def _where(columns, i):
    """ "FILE: record 3: image 7", for messages about an image."""
    shard = columns.shards[np.searchsorted(np.cumsum(columns.images), i, "right")]
    record = Record(shard, int(columns.numbers[i]), int(columns.offsets[i]))
    return named(record, columns.source_ids[i], columns.filenames[i])


def named(where, source_id, filename):
    """What an image of a record is called in messages."""
    return f"{where}: image {source_id or filename or 'without a name'}"


def image_ids(columns):
    for candidates in (columns.source_ids, columns.filenames):
        if all(candidates) and len(set(candidates)) == len(candidates):
            # COCO's ids are numbers, but 007 is a name.
            if all(map(re.compile("0|[1-9][0-9]{0,17}").fullmatch, candidates)):
                return list(map(int, candidates))
            return candidates
    shards = np.repeat(np.array([os.path.basename(shard) for shard in columns.shards], object), columns.images)
    return [f"{shard}:{number}" for shard, number in zip(shards, columns.numbers.tolist(), strict=True)]
