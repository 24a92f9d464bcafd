"""A table of boxes: path,x1,y1,x2,y2,label[,split], one box a row, in pixels."""

import csv
import hashlib
import io
import itertools
import os

import numpy as np

from tfdet.data.dataset import Dataset, Example
from tfdet.data.validation import Problems, box_line, check_boxes, check_image, quoted
from tfdet.errors import DataError

COLUMNS = ("path", "x1", "y1", "x2", "y2", "label")


def read_csv(file, split, problems):
    """Reads one split of a CSV file (UTF-8, commas).

    A header is optional; with one, the columns may be in any order. A row `path,,,,,` is an image without boxes. Paths
    are relative to the folder of the file. Without a column `split`, a hash of the path as written divides the images
    80/10/10 into train, val and test, on every machine alike. The class names are the sorted labels of the whole file,
    the image id is the path as written, and the size of each image is read from its header.

    Args:
        file: Path.
        split: "train", "val", "test", or another word of the column `split`.
        problems: `Problems`, told of each row and image that cannot be used.

    Raises:
        DataError: no such file or split, or the file is not such a table.
    """
    rows = _read_rows(file, problems)
    class_names = tuple(sorted({row["label"] for row in rows if row["label"]}))

    images = {}  # path as written: its split and its rows
    for row in rows:
        home, members = images.setdefault(row["path"], (row["split"], []))
        if row["split"] != home:
            where = f"{file}: image {row['path']}"
            problems.report(
                f'{where}: line {row["line"]} puts it in split "{row["split"]}", an earlier line in "{home}"'
            )
            continue
        members.append(row)

    splits = {home for home, _ in images.values()}
    if split not in splits:
        raise DataError(f'{file}: no split "{split}"; there are {", ".join(sorted(splits)) or "no images"}')
    examples = []
    for path, (home, members) in images.items():
        if home == split:
            example = _read_example(file, path, members, class_names, problems)
            if example is not None:
                examples.append(example)
    return Dataset(
        name=f"csv:{file.stem} {split}",
        class_names=class_names,
        category_ids=tuple(range(1, len(class_names) + 1)),
        examples=tuple(examples),
        skipped=tuple(problems.lines),
    )


def split_names(file):
    """The splits that `read_csv` can read, in the order of the file.

    Raises:
        DataError: no such file, or it is not such a table, or has no images.
    """
    rows = _read_rows(file, Problems("skip"))
    if not rows:
        raise DataError(f"{file}: there are no images")
    return tuple(dict.fromkeys(row["split"] for row in rows))


def hashed_split(path):
    """ "train", "val" or "test" for 80, 10 and 10 % of all paths; the same path is always in the same split."""
    part = int.from_bytes(hashlib.sha256(path.encode()).digest()[:8], "big") % 10
    return "val" if part == 8 else "test" if part == 9 else "train"


def _read_rows(file, problems):
    """A dictionary for each row: its columns as stripped text, its line number and its split."""
    try:
        text = file.read_bytes().decode("utf-8-sig")
        reader = csv.reader(io.StringIO(text, newline=""), strict=True)
        table = [(reader.line_num, [cell.strip() for cell in cells]) for cells in reader if any(map(str.strip, cells))]
    except FileNotFoundError:
        raise DataError(f"{file}: there is no such file") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{file}: cannot be read as CSV in UTF-8 ({error})") from None
    if not table:
        raise DataError(f"{file}: is empty")

    first = table[0][1]
    header = [cell.lower() for cell in first]
    if set(COLUMNS) <= set(header):
        if len(set(header)) < len(header):
            raise DataError(f"{file}: a column occurs twice in the header {','.join(header)}")
        table = table[1:]
    elif len(first) in (6, 7) and (not any(first[1:5]) or any(_number(cell) is not None for cell in first[1:5])):
        header = [*COLUMNS, "split"][: len(first)]
    else:
        expected = "path,x1,y1,x2,y2,label[,split]"
        raise DataError(f"{file}: line 1 is neither a header nor a row of {expected}: {quoted(','.join(first))}")

    rows = []
    for line, cells in table:
        row = dict(zip(header, cells, strict=False))
        if len(cells) != len(header):
            problems.report(f"{file}: line {line}: has {len(cells)} columns, not {len(header)}")
        elif not row["path"]:
            problems.report(f"{file}: line {line}: has no path")
        elif not row.get("split", "any"):
            problems.report(f"{file}: line {line}: has no split")
        else:
            rows.append({"split": hashed_split(row["path"]), **row, "line": line})
    return rows


def _read_example(file, path, members, class_names, problems):
    where = f"{file}: image {path}"
    image = os.path.join(file.parent, path)
    size = check_image(problems, where, image)
    if size is None:
        return None

    rows = []
    for number, row in enumerate(members):
        cells = [row[column] for column in COLUMNS[1:5]]
        if not any(cells) and not row["label"]:
            continue  # says that the image is there, nothing more
        box = [_number(cell) for cell in cells]
        name = f"{quoted(row['label'])} (line {row['line']})"
        if None in box:
            problems.report(box_line(where, number, None, name, f"{quoted(','.join(cells))} is not four numbers"))
        elif not row["label"]:
            problems.report(box_line(where, number, box, name, "has no label"))
        else:
            rows.append((number, name, box, class_names.index(row["label"])))

    boxes, keep = check_boxes(problems, [box for *_, box, _ in rows], size, lambda i: (where, *rows[i][:2]))
    boxes = boxes[keep]
    rows = list(itertools.compress(rows, keep))
    return Example(
        image_id=path,
        image=image,
        height=size[1],
        width=size[0],
        boxes=boxes,
        labels=np.array([label for *_, label in rows], np.int32),
        crowd=np.zeros(len(rows), bool),
        difficult=np.zeros(len(rows), bool),
        areas=(boxes[:, 2:] - boxes[:, :2]).prod(axis=1),
    )


def _number(text):
    try:
        return float(text)
    except ValueError:
        return None
