from collections import Counter

import pytest
from PIL import Image

from tfdet.data import load_dataset
from tfdet.data.voc import VOC_NAMES
from tfdet.errors import DataError


def item(name, *box, extra=""):
    sides = "".join(f"<{s}>{v}</{s}>" for s, v in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
    return f"<object><name>{name}</name>{extra}<bndbox>{sides}</bndbox></object>"


def annotation(*items, filename="", size="<size><width>64</width><height>48</height></size>"):
    return f"<annotation><filename>{filename}</filename>{size}{''.join(items)}</annotation>"


def write(folder, annotations, splits=None, extension="jpg"):
    """A VOC folder of these annotations (stem: XML) with an image of 64 x 48 pixels each, all in split train."""
    for part in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for stem, text in annotations.items():
        (folder / "Annotations" / f"{stem}.xml").write_text(text, encoding="utf-8")
        Image.new("RGB", (64, 48)).save(folder / "JPEGImages" / f"{stem}.{extension}")
    for split, stems in (splits or {"train": annotations}).items():
        (folder / "ImageSets" / "Main" / f"{split}.txt").write_text("".join(f"{stem}\n" for stem in stems))
    return f"voc:{folder}"


def test_reads_what_the_file_says(tmp_path):
    part = "<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></part>"
    text = annotation(
        item("dog", 1, 1, 64, 48, extra="<difficult>1</difficult>" + part),
        item(" cat ", "2.5", 3, 20, "30.25", extra="<difficult>0</difficult>"),
        item("cat", 0, 0, 10, 10),
    )
    dataset = load_dataset(write(tmp_path, {"one": text, "two": annotation(size="")}))
    one, two = dataset.examples
    assert dataset.class_names == VOC_NAMES and dataset.category_ids == tuple(range(1, 21))
    assert dataset.name == f"voc:{tmp_path.name} train"
    assert one.image_id == "one" and one.image == str(tmp_path / "JPEGImages" / "one.jpg")
    assert one.boxes.tolist() == [[0, 0, 64, 48], [1.5, 2, 20, 30.25], [0, 0, 10, 10]]
    assert [VOC_NAMES[label] for label in one.labels] == ["dog", "cat", "cat"]
    assert one.difficult.tolist() == [True, False, False]
    assert one.areas[0] == 64 * 48
    assert (two.width, two.height, len(two.boxes)) == (64, 48, 0), "the size is that of the image where none is given"


def test_every_split_has_the_same_labels(tmp_path):
    annotations = {"a": annotation(item("wheel", 2, 2, 9, 9)), "b": annotation(item("car", 2, 2, 9, 9))}
    spec = write(tmp_path, annotations, {"train": "a", "val": "b"})
    for split, label in (("train", 1), ("val", 0)):
        dataset = load_dataset(spec, split)
        assert dataset.class_names == ("car", "wheel")
        assert dataset.examples[0].labels.tolist() == [label]


def test_the_folder_may_be_the_one_above(tmp_path):
    write(tmp_path / "VOC2007", {"000001": annotation(item("cat", 2, 2, 9, 9))})
    (tmp_path / "other").mkdir()
    assert len(load_dataset(f"voc:{tmp_path}")) == 1
    write(tmp_path / "VOC2012", {"2008_000001": annotation(item("dog", 2, 2, 9, 9))})
    with pytest.raises(DataError, match=r"more than one VOC folder \(VOC2007, VOC2012\)"):
        load_dataset(f"voc:{tmp_path}")
    joined = load_dataset(f"voc:{tmp_path / 'VOC2007'},{tmp_path / 'VOC2012'}")
    assert [example.image_id for example in joined.examples] == ["000001", "2008_000001"]
    assert joined.name == "voc:VOC2007,VOC2012 train"
    with pytest.raises(DataError, match="is not a VOC folder"):
        load_dataset(f"voc:{tmp_path / 'other'}")


def test_an_image_of_two_folders_is_a_duplicate(tmp_path):
    for name in ("A", "B"):
        write(tmp_path / name, {"same": annotation()})
    spec = f"voc:{tmp_path / 'A'},{tmp_path / 'B'}"
    with pytest.raises(DataError, match=r"same.xml: image same: this image id occurs twice"):
        load_dataset(spec)
    assert len(load_dataset(spec, on_error="skip")) == 1


def test_a_missing_or_empty_split_lists_what_there_is(tmp_path):
    spec = write(tmp_path, {"a": annotation()}, {"train": "a", "val": [], "cat_train": ["a -1"], "my_own": "a"})
    for split in ("test", ""):
        with pytest.raises(DataError, match=rf'{tmp_path}: no split "{split}" .* there are my_own, train, val$'):
            load_dataset(spec, split)
    with pytest.raises(DataError, match=r"val.txt: the split is empty"):
        load_dataset(spec, "val")
    assert len(load_dataset(spec, "cat_train")) == 1, "lists of one class have a flag behind the stem"
    (tmp_path / "ImageSets" / "Main" / "bad.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"bad.txt: cannot be read as text"):
        load_dataset(spec, "bad")


@pytest.mark.parametrize(
    ("filename", "extension", "found"),
    [("", "png", "a.png"), ("a.jpg", "jpeg", "a.jpeg"), ("b.jpg", "jpg", "b.jpg"), ("gone.png", "jpg", "a.jpg")],
)
def test_finds_the_image(tmp_path, filename, extension, found):
    spec = write(tmp_path, {"a": annotation(filename=filename), "b": annotation()}, extension=extension)
    assert load_dataset(spec).examples[0].image == str(tmp_path / "JPEGImages" / found)


BOMB = '<!DOCTYPE a [<!ENTITY b "boom"><!ENTITY c "&b;&b;">]><annotation><filename>&c;</filename></annotation>'
FILES = [
    (annotation()[:-10], "cannot be read as XML"),
    ("", "cannot be read as XML"),
    ("\x00\x01", "cannot be read as XML"),
    ('<?xml version="1.0" encoding="klingon"?><annotation/>', "cannot be read as XML"),
    (BOMB, "has forbidden XML"),
    ('<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><annotation>&x;</annotation>', "has forbidden XML"),
    ("<html></html>", "is not a VOC annotation but <html>"),
]


@pytest.mark.parametrize(("text", "fault"), FILES)
def test_a_file_that_is_not_voc_is_named_and_left_out(tmp_path, text, fault):
    spec = write(tmp_path, {"good": annotation(item("cat", 2, 2, 9, 9)), "bad": text})
    with pytest.raises(DataError, match=r"bad.xml: ") as error:
        load_dataset(spec)
    assert fault in str(error.value) and "\n" not in str(error.value)
    dataset = load_dataset(spec, on_error="skip")
    assert len(dataset) == 1 and len(dataset.skipped) == 1


@pytest.mark.parametrize(
    ("bad", "fault"),
    [
        (item("cat", 5, 7, 5, 7), 'image a: box 1 (5, 7, 5, 7) "cat": has zero area'),
        (item("cat", 9, 7, 5, 20), "is inverted"),
        (item("cat", "nan", 7, 5, 20), "not finite"),
        (item("cat", 0.1, 0.1, 0.5, 0.5), "normalised units"),
        (item("cat", 70, 7, 90, 20), "lies outside the image of 64x48 pixels"),
        (item("cat", "left", 7, 5, 20), 'image a: box 1 "cat": has no <bndbox> with the numbers'),
        ("<object><name>cat</name></object>", "has no <bndbox>"),
        (item("", 2, 2, 9, 9), "has no <name>"),
        (item("cat", 2, 2, 9, 9, extra="<difficult>very</difficult>"), '<difficult> is "very", not 0 or 1'),
    ],
)
def test_a_bad_object_is_named_and_left_out(tmp_path, bad, fault):
    spec = write(tmp_path, {"a": annotation(item("dog", 2, 2, 9, 9), bad, item("dog", 3, 3, 9, 9))})
    with pytest.raises(DataError, match=r"a.xml: image a: box 1 ") as error:
        load_dataset(spec)
    assert fault in str(error.value)
    dataset = load_dataset(spec, on_error="skip")
    assert dataset.examples[0].boxes.tolist() == [[1, 1, 9, 9], [2, 2, 9, 9]]
    assert len(dataset.skipped) == 1 and fault in dataset.skipped[0]


def test_a_box_that_leaves_the_image_is_clipped(tmp_path):
    spec = write(tmp_path, {"a": annotation(item("dog", 2, 2, 90, 9))})
    dataset = load_dataset(spec, on_error="skip")
    assert dataset.examples[0].boxes.tolist() == [[1, 1, 64, 9]]
    assert dataset.skipped[0].endswith("leaves the image of 64x48 pixels: clipped")


def test_missing_files_are_named(tmp_path):
    spec = write(tmp_path, {"a": annotation(), "b": annotation()}, {"train": ["a", "b", "c"]})
    (tmp_path / "JPEGImages" / "a.jpg").unlink()
    lines = load_dataset(spec, on_error="skip").skipped
    assert len(lines) == 2
    assert "a.xml: image a: there is no image file" in lines[0]
    assert "c.xml: image c: there is no annotation file" in lines[1]


def test_real_voc(shared_data):
    sizes = {"train": 205, "val": 87, "test": 72}
    counts, lines = Counter(), []
    for split, images in sizes.items():
        dataset = load_dataset(f"voc:{shared_data / 'bccd'}", split, on_error="skip")
        assert dataset.class_names == ("Platelets", "RBC", "WBC")
        assert len(dataset) == images
        assert all((example.width, example.height) == (640, 480) for example in dataset.examples)
        counts.update(dataset.class_names[label] for example in dataset.examples for label in example.labels)
        lines += dataset.skipped
        if dataset.skipped:
            with pytest.raises(DataError, match=r"BloodImage_003(38|43).xml: .*has zero area"):
                load_dataset(f"voc:{shared_data / 'bccd'}", split)
    assert sorted(line[line.index("image Blood") :] for line in lines) == [
        'image BloodImage_00338: box 12 (504, 337, 504, 337) "RBC": has zero area',
        'image BloodImage_00343: box 3 (181, 329, 181, 329) "RBC": has zero area',
    ]
    assert counts == {"RBC": 4155 - 2, "WBC": 372, "Platelets": 361}
