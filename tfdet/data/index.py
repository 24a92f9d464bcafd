"""`Columns` of shards that `convert` wrote in a file of plain arrays, so that the shards need not be opened."""

import json
import os

import numpy as np

from tfdet.data.columns import OF_BOXES, OF_IMAGES, Columns
from tfdet.errors import DataError


def write(path, columns, note=None):
    """Writes a file, always the same bytes; all of it is on the disk before it has its name.

    Args:
        path: of the file, *.npz.
        columns: `Columns` whose boxes all have a label. Of the shards only their file names are kept.
        note: anything else, for JSON.
    """
    labels, texts = zip(*columns.kinds, strict=True) if columns.kinds else ((), ())
    lists = {"shards": map(os.path.basename, columns.shards), "texts": texts, "note": [json.dumps(note)]}
    lists |= {"source_ids": columns.source_ids, "filenames": columns.filenames}
    arrays = {name: getattr(columns, name) for name in ("images", *OF_IMAGES, *OF_BOXES)}
    for name, texts in lists.items():
        arrays |= _packed(name, list(texts))
    with open(f"{path}.{os.getpid()}", "wb") as file:
        np.savez(file, labels=np.array(labels, np.int64), **arrays)
        file.flush()
        os.fsync(file.fileno())
    os.replace(file.name, path)


def read(path):
    """The `Columns` of such a file, its shards as file names, and its note.

    Raises:
        DataError: it cannot be read, or is no such file.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            texts = {name: _unpacked(name, arrays) for name in ("shards", "source_ids", "filenames", "texts", "note")}
            kinds = tuple(zip(arrays["labels"].tolist(), texts.pop("texts"), strict=True))
            (note,) = map(json.loads, texts.pop("note"))
            found = {name: arrays[name] for name in ("images", *OF_IMAGES, *OF_BOXES)}
        columns = Columns(kinds=kinds, **texts, **found)
        _check(columns)
    except Exception as error:  # zipfile and NumPy raise whatever the bytes of a damaged file lead them to
        raise DataError(f"{path}: cannot be used ({type(error).__name__}: {error})") from error
    return columns, note


def _check(columns):
    """Raises ValueError unless the columns fit together."""
    images, boxes = len(columns.counts), len(columns.kind)
    for rows, table in ((images, OF_IMAGES), (boxes, OF_BOXES)):
        for name, (dtype, shape) in table.items():
            column = getattr(columns, name)
            if column.dtype != dtype or column.shape != (rows, *shape):
                raise ValueError(f"column {name} is not of {rows} rows of {np.dtype(dtype)}")
    counted = [columns.images.sum(), columns.counts.sum(), len(columns.images)]
    counted += [len(columns.source_ids), len(columns.filenames)]
    if counted != [images, boxes, len(columns.shards), images, images]:
        raise ValueError("columns are not of the same length")
    positive = (columns.images, columns.numbers, columns.offsets, columns.sizes, columns.counts, columns.kind)
    if min(column.min(initial=0) for column in positive) < 0 or columns.kind.max(initial=-1) >= len(columns.kinds):
        raise ValueError("a number is out of its range")


def _packed(name, texts):
    """Texts as two arrays: all their characters in UTF-8, and how many characters each has."""
    joined = np.frombuffer("".join(texts).encode(), np.uint8)
    return {name: joined, f"{name}_lengths": np.array([len(text) for text in texts], np.int32)}


def _unpacked(name, arrays):
    joined, lengths = arrays[name].tobytes().decode(), arrays[f"{name}_lengths"]
    if lengths.min(initial=0) < 0 or lengths.sum() != len(joined):
        raise ValueError(f"{name} is not as long as it should be")
    ends = np.cumsum(lengths).tolist()
    return [joined[end - length : end] for end, length in zip(ends, lengths.tolist(), strict=True)]
