import copy
import json

import numpy as np
import pytest
from PIL import Image

from tfdet.data import load_dataset
from tfdet.errors import DataError

NAMES = ("a.png", "b.png", "c.png")  # of 64 x 48 pixels
CONTENT = {
    "images": [
        {"id": 30, "file_name": "c.png", "width": 64, "height": 48},
        {"id": 10, "file_name": "a.png", "width": 64, "height": 48},
        {"id": 20, "file_name": "b.png"},
    ],
    "annotations": [
        {"id": 1, "image_id": 10, "category_id": 90, "bbox": [1, 2, 10, 20], "area": 120.5, "iscrowd": 0},
        {"id": 2, "image_id": 30, "category_id": 3, "bbox": [5, 5, 20, 30], "iscrowd": 1},
        {"id": 3, "image_id": 10, "category_id": 3, "bbox": [0.5, 0, 63.5, 48], "area": 3000},
    ],
    "categories": [{"id": 90, "name": "toothbrush"}, {"id": 3, "name": "car"}, {"id": 7, "name": "train"}],
}


def write(folder, content=CONTENT, file="annotations/instances_val2017.json", images="val2017"):
    for path in (folder / file, folder / images / "any"):
        path.parent.mkdir(parents=True, exist_ok=True)
    (folder / file).write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    for name in NAMES:
        Image.new("RGB", (64, 48)).save(folder / images / name)
    return f"coco:{folder}"


def changed(path, value):
    """CONTENT with one value replaced, or removed where value is None."""
    content = copy.deepcopy(CONTENT)
    place = content
    for key in path[:-1]:
        place = place[key]
    if value is None:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return content


def test_reads_what_the_file_says(tmp_path):
    dataset = load_dataset(write(tmp_path), "val")
    assert dataset.class_names == ("car", "train", "toothbrush")
    assert dataset.category_ids == (3, 7, 90)
    assert dataset.name == f"coco:{tmp_path.name} val"
    c, a, b = dataset.examples
    assert [example.image_id for example in dataset.examples] == [30, 10, 20]
    assert a.image == str(tmp_path / "val2017" / "a.png")
    assert a.boxes.tolist() == [[1, 2, 11, 22], [0.5, 0, 64, 48]]
    assert a.labels.tolist() == [2, 0]
    assert a.areas.tolist() == [120.5, 3000]
    assert c.crowd.tolist() == [True] and a.crowd.tolist() == [False, False]
    assert c.areas.tolist() == [600], "the area of the box, where the file gives none"
    assert (b.width, b.height) == (64, 48), "from the header of the image, where the file gives no size"
    assert b.boxes.shape == (0, 4) and b.labels.shape == (0,)


@pytest.mark.parametrize(
    ("file", "images", "split"),
    [
        ("annotations/instances_val2017.json", "val2017", "val"),
        ("annotations/instances_val2014.json", "val2014", "val"),
        ("annotations/instances_val.json", "images/val", "val"),
        ("annotations/my-train-boxes.json", "images", "train"),
        ("annotations/custom_train.json", ".", "train"),
        ("annotations/person_keypoints_val2017.json", "val2017", "val"),
        ("valid/_annotations.coco.json", "valid", "valid"),
        ("valid/_annotations.coco.json", "valid", "val"),
        ("test/_annotations.coco.json", "test", "test"),
    ],
)
def test_finds_files_and_images_in_the_usual_places(tmp_path, file, images, split):
    assert len(load_dataset(write(tmp_path, file=file, images=images), split)) == 3


def test_the_file_of_boxes_is_preferred(tmp_path):
    for other in ("captions_val2017", "person_keypoints_val2017", "instances_minival2017", "instances_val2014"):
        write(tmp_path, "{}", file=f"annotations/{other}.json")
    assert len(load_dataset(write(tmp_path), "val")) == 3


def test_a_missing_or_ambiguous_split_lists_what_there_is(tmp_path):
    spec = write(tmp_path)
    write(tmp_path, file="annotations/instances_train2017.json")
    write(tmp_path, file="annotations/captions_other2017.json")
    for split in ("test", ""):
        with pytest.raises(DataError, match=rf'{tmp_path}: no split "{split}"; there are train, val$'):
            load_dataset(spec, split)
    write(tmp_path, file="annotations/x_test.json")
    write(tmp_path, file="annotations/y_test.json")
    with pytest.raises(DataError, match=r"more than one .* x_test.json, y_test.json"):
        load_dataset(spec, "test")


STRUCTURE = [
    ('{"images": [{"id": 1, "fi', "cannot be read as JSON"),
    ("", "cannot be read as JSON"),
    ("[" * 100_000, "cannot be read as JSON"),
    ("[1, 2]", 'no list "images"'),
    ("null", 'no list "images"'),
    (changed(["annotations"], None), 'no list "annotations"'),
    (changed(["annotations"], {}), 'no list "annotations"'),
    (changed(["categories"], "car"), 'no list "categories"'),
    (changed(["images"], []), "empty"),
    (changed(["categories"], []), "no categories"),
    (changed(["categories", 0], 4), "category number 0"),
    (changed(["categories", 1, "id"], "3"), "category number 1"),
    (changed(["categories", 1, "name"], None), "category number 1"),
    (changed(["categories", 1, "id"], 90), "category id 90 occurs twice"),
]


@pytest.mark.parametrize(("content", "fault"), STRUCTURE)
@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_a_file_that_is_not_coco_is_refused_by_name(tmp_path, content, fault, on_error):
    spec = write(tmp_path, content)
    with pytest.raises(DataError, match=r"instances_val2017.json: ") as error:
        load_dataset(spec, "val", on_error)
    assert fault in str(error.value)


def test_a_file_that_is_not_utf8_is_refused_by_name(tmp_path):
    spec = write(tmp_path)
    (tmp_path / "annotations/instances_val2017.json").write_bytes(b'{"images": ["\xff\xfe"]}')
    with pytest.raises(DataError, match=r"instances_val2017.json: cannot be read as JSON"):
        load_dataset(spec, "val")


BOX = ["annotations", 0, "bbox"]
RECORDS = [  # one defect each; annotation 0 is box 0 of image 10
    (changed(BOX, [1, 2, 0, 20]), 'image 10: box 0 (1, 2, 1, 22) "toothbrush" (annotation 1): has zero area'),
    (changed(BOX, [9, 2, -3, 20]), "is inverted"),
    (changed(BOX, [1, 2, float("nan"), 20]), "not finite"),
    (changed(BOX, [0.1, 0.2, 0.5, 0.5]), "normalised units"),
    (changed(BOX, [100, 2, 10, 20]), "lies outside the image of 64x48 pixels"),
    (changed(BOX, [1, 2, 10]), "annotation 1: bbox is [1, 2, 10], not four numbers"),
    (changed(BOX, []), "bbox is []"),
    (changed(BOX, "1 2 3 4"), "not four numbers"),
    (changed(BOX, [1, 2, "10", 20]), "not four numbers"),
    (changed(BOX, [1, 2, True, 20]), "not four numbers"),
    (changed(BOX, [1, 2, 10**400, 20]), "not four numbers"),
    (changed(BOX, None), 'has no "bbox"'),
    (changed(["annotations", 0], "text"), "annotation number 0: is not an object"),
    (
        changed(["annotations", 0, "category_id"], 4),
        "box 0 (1, 2, 11, 22) category 4 (annotation 1): category 4 is not",
    ),
    (changed(["annotations", 0, "category_id"], [4]), "category_id is [4]"),
    (changed(["annotations", 0, "category_id"], None), 'has no "category_id"'),
    (changed(["annotations", 0, "image_id"], 11), "is of image 11, which is not among the images"),
    (changed(["annotations", 0, "image_id"], {}), "is of image {}"),
    (
        changed(["annotations", 2, "id"], 1),
        'box 1 (0.5, 0, 64, 48) "car" (annotation 1): this annotation id occurs twice',
    ),
    (changed(["annotations", 0, "iscrowd"], "yes"), 'iscrowd is "yes"'),
    (changed(["annotations", 0, "area"], -4), "area is -4"),
    (changed(["annotations", 0, "area"], [1]), "area is [1]"),
]


@pytest.mark.parametrize(("content", "fault"), RECORDS)
def test_a_bad_annotation_is_named_and_left_out(tmp_path, content, fault):
    spec = write(tmp_path, content)
    with pytest.raises(DataError, match=r"instances_val2017.json: .* \(on_error=\"skip\" leaves it out\)$") as error:
        load_dataset(spec, "val")
    assert fault in str(error.value)
    dataset = load_dataset(spec, "val", on_error="skip")
    assert len(dataset.skipped) == 1 and fault in dataset.skipped[0]
    assert len(dataset) == 3
    assert sum(len(example.boxes) for example in dataset.examples) == 2


def test_a_box_that_leaves_the_image_is_clipped(tmp_path):
    dataset = load_dataset(write(tmp_path, changed(BOX, [60, 2, 10, 20])), "val", on_error="skip")
    assert dataset.examples[1].boxes[0].tolist() == [60, 2, 64, 22]
    assert len(dataset.skipped) == 1 and dataset.skipped[0].endswith("leaves the image of 64x48 pixels: clipped")


IMAGES = [  # defects of images[1], image 10 with two boxes
    (changed(["images", 1, "file_name"], "gone.png"), "image 10: there is no image file"),
    (changed(["images", 1, "file_name"], "bro\0ken.png"), "image 10: there is no image file"),
    (
        changed(["images", 1, "width"], "wide"),
        'image 10: width and height are not whole numbers of pixels but "wide" x 48',
    ),
    (changed(["images", 1, "width"], -64), "not whole numbers"),
    (changed(["images", 1, "width"], 10**400), "not whole numbers"),
    (changed(["images", 1, "width"], float("nan")), "not whole numbers"),
]


@pytest.mark.parametrize(("content", "fault"), IMAGES)
def test_a_bad_image_is_named_and_left_out_with_its_boxes(tmp_path, content, fault):
    spec = write(tmp_path, content)
    with pytest.raises(DataError) as error:
        load_dataset(spec, "val")
    assert fault in str(error.value)
    dataset = load_dataset(spec, "val", on_error="skip")
    assert [example.image_id for example in dataset.examples] == [30, 20]
    assert len(dataset.skipped) == 1 and fault in dataset.skipped[0]


def test_other_bad_images(tmp_path):
    for content, fault in (
        (changed(["images", 2, "id"], 10), "image 10: this image id occurs twice"),
        (changed(["images", 2], 5), "image number 2 needs"),
        (changed(["images", 2, "file_name"], None), "image number 2 needs"),
    ):
        dataset = load_dataset(write(tmp_path, content), "val", on_error="skip")
        assert len(dataset) == 2
        assert len(dataset.skipped) == 1 and fault in dataset.skipped[0]


def test_the_header_of_the_image_is_needed_where_the_file_has_no_size(tmp_path):
    spec = write(tmp_path)
    (tmp_path / "val2017" / "b.png").write_bytes(b"not an image")
    with pytest.raises(DataError, match=r"image 20: the header of image file .*b.png cannot be read"):
        load_dataset(spec, "val")


def test_no_image_at_all(tmp_path):
    spec = write(tmp_path)
    for name in NAMES:
        (tmp_path / "val2017" / name).unlink()
    dataset = load_dataset(spec, "val", on_error="skip")
    assert len(dataset) == 0 and len(dataset.skipped) == 3


@pytest.mark.parametrize(("split", "boxes", "without"), [("train", 470, 1), ("val", 382, 2)])
def test_real_coco(shared_data, split, boxes, without):
    dataset = load_dataset(f"coco:{shared_data / 'tiny_coco'}", split)
    assert (len(dataset), dataset.num_classes, dataset.skipped) == (50, 80, ())
    assert sum(len(example.boxes) for example in dataset.examples) == boxes
    assert sum(example.crowd.sum() for example in dataset.examples) == 5
    assert sum(len(example.boxes) == 0 for example in dataset.examples) == without
    assert (dataset.class_names[0], dataset.class_names[79], dataset.category_ids[79]) == ("person", "toothbrush", 90)

    content = json.loads((shared_data / "tiny_coco" / "annotations" / f"instances_{split}2017.json").read_text())
    for example in dataset.examples:
        with Image.open(example.image) as image:
            assert image.size == (example.width, example.height)
        records = [record for record in content["annotations"] if record["image_id"] == example.image_id]
        xywh = np.array([record["bbox"] for record in records]).reshape(-1, 4)
        np.testing.assert_allclose(example.boxes[:, :2], xywh[:, :2], atol=1e-3)
        np.testing.assert_allclose(example.boxes[:, 2:] - example.boxes[:, :2], xywh[:, 2:], atol=1e-3)
        assert [dataset.category_ids[label] for label in example.labels] == [r["category_id"] for r in records]
        np.testing.assert_allclose(example.areas, [r["area"] for r in records], rtol=1e-6)
