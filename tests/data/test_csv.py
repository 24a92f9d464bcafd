import csv

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tfdet.data import load_dataset
from tfdet.data.csv import hashed_split
from tfdet.errors import DataError

HEADER = "path,x1,y1,x2,y2,label,split\n"


def write(folder, text, images=("a.png", "b.png", "sub/c.png")):
    for name in images:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 48)).save(path)
    file = folder / "boxes.csv"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return f"csv:{file}"


def test_reads_what_the_file_says(tmp_path):
    text = HEADER + (
        "a.png,1,2,30.5,40,dog,train\nsub/c.png,0,0,64,48,cat,train\n\nb.png,,,,,,train\na.png,5,5,9,9,cat,train\n"
        "v.png,1,1,9,9,bird,val\n"
    )
    dataset = load_dataset(write(tmp_path, text))
    assert dataset.class_names == ("bird", "cat", "dog"), "of the whole file, not of the split"
    assert dataset.category_ids == (1, 2, 3)
    a, c, b = dataset.examples
    assert (a.image_id, c.image_id, b.image_id) == ("a.png", "sub/c.png", "b.png")
    assert c.image == str(tmp_path / "sub" / "c.png")
    assert (a.width, a.height) == (64, 48)
    assert a.boxes.tolist() == [[1, 2, 30.5, 40], [5, 5, 9, 9]]
    assert a.labels.tolist() == [2, 1]
    assert b.boxes.shape == (0, 4)


@pytest.mark.parametrize(
    "text",
    [
        "a.png,1,2,3,4,dog,train\n",
        HEADER + "a.png,1,2,3,4,dog,train\n",
        "\ufeff" + HEADER + "a.png,1,2,3,4,dog,train\n",
        "Label,Split, Path ,x2,y2,x1,y1,score\r\ndog,train,a.png,3,4,1,2,0.5\r\n",
        '"a.png", 1, 2, 3, 4, dog , train\n',
    ],
)
def test_header_and_order_are_free(tmp_path, text):
    dataset = load_dataset(write(tmp_path, text))
    assert dataset.examples[0].image_id == "a.png"
    assert dataset.examples[0].boxes.tolist() == [[1, 2, 3, 4]]
    assert dataset.class_names == ("dog",)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "is empty"),
        ("\n\n", "is empty"),
        (b"a.png,1,2,3,4,caf\xe9\n", "cannot be read as CSV in UTF-8"),
        ('a.png,1,2,3,4,"dog\n', "cannot be read as CSV"),
        ("path,x1,y1,x2,label\na.png,1,2,3,dog\n", "line 1 is neither a header nor a row of path,x1,y1,x2,y2,label"),
        ("name,left,top,right,bottom,label\na.png,1,2,3,4,dog\n", "line 1 is neither a header nor"),
        ("path,x1,y1,x2,y2,label,label\na.png,1,2,3,4,dog,cat\n", "a column occurs twice"),
        (HEADER, 'no split "train"; there are no images'),
        (HEADER + "a.png,1,2,3,4,dog,val\nb.png,,,,,,extra\n", 'no split "train"; there are extra, val'),
    ],
)
@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_a_file_that_is_no_such_table_is_refused_by_name(tmp_path, text, fault, on_error):
    spec = write(tmp_path, text)
    with pytest.raises(DataError, match=r"boxes.csv: ") as error:
        load_dataset(spec, on_error=on_error)
    assert fault in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ("a.png,5,7,5,9,cat,train", 'image a.png: box 1 (5, 7, 5, 9) "cat" (line 3): has zero area'),
        ("a.png,9,7,5,9,cat,train", "is inverted"),
        ("a.png,nan,7,5,9,cat,train", "not finite"),
        ("a.png,0.1,0.2,0.3,0.4,cat,train", "normalised units"),
        ("a.png,65,7,70,9,cat,train", "lies outside the image of 64x48 pixels"),
        ("a.png,one,7,5,9,cat,train", 'image a.png: box 1 "cat" (line 3): "one,7,5,9" is not four numbers'),
        ("a.png,,7,5,9,cat,train", "is not four numbers"),
        ("a.png,,,,,cat,train", "is not four numbers"),
        ("a.png,1,7,5,9,,train", "has no label"),
        ("a.png,1,7,5,9,cat", "line 3: has 6 columns, not 7"),
        (",1,7,5,9,cat,train", "line 3: has no path"),
        ("a.png,1,7,5,9,cat,", "line 3: has no split"),
        ("a.png,1,7,5,9,cat,val", 'image a.png: line 3 puts it in split "val", an earlier line in "train"'),
        ("gone.png,1,7,5,9,cat,train", "image gone.png: there is no image file"),
        ("boxes.csv,1,7,5,9,cat,train", "image boxes.csv: the header of image file"),
    ],
)
def test_a_bad_row_is_named_and_left_out(tmp_path, row, fault):
    spec = write(tmp_path, f"{HEADER}a.png,1,2,30,40,dog,train\n{row}\na.png,2,2,30,40,dog,train\n")
    with pytest.raises(DataError, match=r"boxes.csv: .*\(on_error=\"skip\" leaves it out\)$") as error:
        load_dataset(spec)
    assert fault in str(error.value)
    dataset = load_dataset(spec, on_error="skip")
    assert [example.boxes.tolist() for example in dataset.examples] == [[[1, 2, 30, 40], [2, 2, 30, 40]]]
    assert len(dataset.skipped) == 1 and fault in dataset.skipped[0]


def test_a_box_that_leaves_the_image_is_clipped(tmp_path):
    dataset = load_dataset(write(tmp_path, HEADER + "a.png,1,2,70,40,dog,train\n"), on_error="skip")
    assert dataset.examples[0].boxes.tolist() == [[1, 2, 64, 40]]
    assert dataset.skipped[0].endswith("leaves the image of 64x48 pixels: clipped")


def test_a_hash_divides_the_images_where_no_column_does(tmp_path):
    paths = [f"img{number:03}.png" for number in range(60)]
    spec = write(tmp_path, "".join(f"{path},1,2,30,40,dog\n" for path in paths), images=paths)
    found = {split: [e.image_id for e in load_dataset(spec, split).examples] for split in ("train", "val", "test")}
    assert sorted(path for part in found.values() for path in part) == paths
    # The same on every machine.
    assert found["val"] == [path for path in paths if hashed_split(path) == "val"]
    assert [hashed_split(path) for path in ("a.png", "b.png", "sub/c.png")] == ["train", "train", "train"]


def test_the_hash_gives_80_10_10():
    splits = [hashed_split(f"{number}.jpg") for number in range(5000)]
    for split, share in (("train", 0.8), ("val", 0.1), ("test", 0.1)):
        assert abs(splits.count(split) / 5000 - share) < 0.02


labels = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1, max_size=8)
spans = st.tuples(st.integers(0, 40), st.integers(2, 8))
rows = st.lists(st.tuples(spans, spans, labels), min_size=1, max_size=5)


@given(rows)
def test_what_is_written_is_read(tmp_path_factory, rows):
    folder = tmp_path_factory.getbasetemp() / "csv"
    folder.mkdir(exist_ok=True)
    spec = write(folder, "", images=["a.png"])
    with open(folder / "boxes.csv", "w", newline="", encoding="utf-8") as file:
        for (x, width), (y, height), label in rows:
            csv.writer(file).writerow(["a.png", x, y, x + width, y + height, label, "train"])
    dataset = load_dataset(spec)
    example = dataset.examples[0]
    assert example.boxes.tolist() == [[x, y, x + width, y + height] for (x, width), (y, height), _ in rows]
    assert [dataset.class_names[label] for label in example.labels] == [label for *_, label in rows]
