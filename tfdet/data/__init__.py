"""Data sets: one reader a format, all giving the same `Dataset` of `Example`s."""

from pathlib import Path

from tfdet.data.coco import read_coco
from tfdet.data.csv import read_csv
from tfdet.data.dataset import Dataset, Example
from tfdet.data.shapes import shapes
from tfdet.data.validation import Problems
from tfdet.data.voc import read_voc
from tfdet.errors import DataError

__all__ = ["Dataset", "Example", "load_dataset"]


def load_dataset(spec, split="train", on_error="raise"):
    """Reads the annotations of one split; images are read when they are needed.

    Args:
        spec: "coco:DIR", "voc:DIR" (or "voc:DIR,DIR", joined), "csv:FILE", or "shapes" (generated).
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
    kind, _, where = spec.partition(":")
    match kind:
        case "coco" if where:
            return read_coco(Path(where).expanduser(), split, problems)
        case "voc" if where.strip(", "):
            return read_voc(_folders(where), split, problems)
        case "csv" if where:
            return read_csv(Path(where).expanduser(), split, problems)
        case "shapes" if not where:
            return shapes(split)
    raise DataError(f'data set "{spec}": expected coco:DIR, voc:DIR, csv:FILE or shapes')


def _folders(where):
    """ "A,B" is two folders, unless there is one of that very name."""
    whole = Path(where).expanduser()
    return [whole] if whole.is_dir() else [Path(part.strip()).expanduser() for part in where.split(",") if part.strip()]
