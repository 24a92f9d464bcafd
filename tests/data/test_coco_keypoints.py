import json

import numpy as np
import pytest
from PIL import Image

from tfdet.data import load_dataset, split_names
from tfdet.errors import DataError

NAMES = ["nose", "left_hand", "right_hand"]
FIRST = [10, 11, 2, 0, 0, 0, 64.5, 47, 1]


def content(keypoints=FIRST, **other):
    """Two images of 64 x 48 pixels; the first annotation has the given keypoints."""
    return {
        "images": [{"id": i, "file_name": f"{i}.png", "width": 64, "height": 48} for i in (1, 2)],
        "categories": [
            {"id": 1, "name": "person", "keypoints": NAMES, "skeleton": [[1, 2], [1, 3]]},
            {"id": 7, "name": "chair"},
        ],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "bbox": [5, 5, 40, 40], "keypoints": keypoints, "area": 700},
            {"id": 2, "image_id": 1, "category_id": 7, "bbox": [0, 0, 9, 9]},
            {"id": 3, "image_id": 1, "category_id": 1, "bbox": [0, 0, 9, 9], "keypoints": [0] * 9, "iscrowd": 1},
            {"id": 4, "image_id": 1, "category_id": 1, "bbox": [2, 2, 8, 8]},
        ],
    } | other


def write(folder, text, file="person_keypoints_val2017.json"):
    for path in (folder / "annotations", folder / "val2017"):
        path.mkdir(exist_ok=True)
    (folder / "annotations" / file).write_text(json.dumps(text), encoding="utf-8")
    for name in ("1.png", "2.png"):
        Image.new("RGB", (64, 48)).save(folder / "val2017" / name)
    return f"coco_keypoints:{folder}"


def test_reads_what_the_file_says(tmp_path):
    """Of the categories with keypoints; a joint half a pixel beside the image is at its border."""
    spec = write(tmp_path, content())
    write(tmp_path, {}, "instances_val2017.json")
    dataset = load_dataset(spec, "val")
    assert dataset.name == f"coco_keypoints:{tmp_path.name} val"
    assert (dataset.class_names, dataset.category_ids) == (("person",), (1,))
    assert dataset.keypoint_names == tuple(NAMES)
    people, nobody = dataset.examples
    assert people.boxes.tolist() == [[5, 5, 45, 45], [0, 0, 9, 9], [2, 2, 10, 10]]
    assert people.crowd.tolist() == [False, True, False] and people.areas[0] == 700
    assert (people.keypoints.dtype, people.keypoints.shape) == (np.float32, (3, 3, 3))
    assert people.keypoints[0].tolist() == [[10, 11, 2], [0, 0, 0], [64, 47, 1]]
    assert not people.keypoints[1:].any()
    assert nobody.keypoints.shape == (0, 3, 3)
    assert split_names(spec) == ("val",)


@pytest.mark.parametrize("file", ["my_keypoints_val.json", "val.json"])
def test_other_names_of_the_file(tmp_path, file):
    assert len(load_dataset(write(tmp_path, content(), file), "val")) == 2


FAULTS = [
    ([10, 11, 2], "keypoints are [10, 11, 2], not x, y and visibility of 3"),
    ([0] * 12, "not x, y and visibility of 3"),
    ("text", 'keypoints are "text", not'),
    ([*FIRST[:8], "2"], "not x, y and visibility of 3"),
    ([float("nan"), *FIRST[1:]], "keypoint nose (nan, 11, 2) is not finite"),
    ([*FIRST[:8], float("inf")], "keypoint right_hand (64.5, 47, inf) is not finite"),
    ([*FIRST[:8], 3], "keypoint right_hand (64.5, 47, 3) has a visibility that is not 0, 1 or 2"),
    ([*FIRST[:3], 5, 5, 0.5, *FIRST[6:]], "keypoint left_hand (5, 5, 0.5) has a visibility"),
    ([10, 49.5, 1, *FIRST[3:]], "keypoint nose (10, 49.5, 1) is outside the image of 64x48 pixels"),
    ([-1.5, 10, 2, *FIRST[3:]], "keypoint nose (-1.5, 10, 2) is outside the image"),
]


@pytest.mark.parametrize(("keypoints", "fault"), FAULTS)
def test_bad_keypoints_are_named_and_their_person_left_out(tmp_path, keypoints, fault):
    spec = write(tmp_path, content(keypoints))
    with pytest.raises(DataError, match=r'image 1: box 0 \(5, 5, 45, 45\) "person" \(annotation 1\): ') as error:
        load_dataset(spec, "val")
    assert fault in str(error.value) and "\n" not in str(error.value)
    dataset = load_dataset(spec, "val", on_error="skip")
    assert len(dataset.skipped) == 1 and fault in dataset.skipped[0]
    assert [len(example.keypoints) for example in dataset.examples] == [2, 0]


def test_where_a_joint_is_that_nobody_labelled_does_not_count(tmp_path):
    dataset = load_dataset(write(tmp_path, content([*FIRST[:3], 900, -7, 0, *FIRST[6:]])), "val")
    assert dataset.examples[0].keypoints[0, 1].tolist() == [0, 0, 0]


CATEGORIES = [
    ([{"id": 1, "name": "person"}], "no category has keypoints"),
    ([{"id": 1, "name": "person", "keypoints": "nose"}], 'keypoints of a category are "nose", not a list of names'),
    ([{"id": 1, "name": "person", "keypoints": []}], "not a list of names"),
    ([{"id": 1, "name": "a", "keypoints": ["b"]}, {"id": 2, "name": "c", "keypoints": ["d"]}], "different keypoints"),
]


@pytest.mark.parametrize(("categories", "fault"), CATEGORIES)
def test_categories_without_the_same_keypoints(tmp_path, categories, fault):
    spec = write(tmp_path, content(categories=categories))
    with pytest.raises(DataError, match=r"person_keypoints_val2017.json: ") as error:
        load_dataset(spec, "val", on_error="skip")
    assert fault in str(error.value)


def test_a_missing_split_lists_what_there_is(tmp_path):
    with pytest.raises(DataError, match=r'no split "test"; there are val$'):
        load_dataset(write(tmp_path, content()), "test")


def test_real_coco(shared_data):
    dataset = load_dataset(f"coco_keypoints:{shared_data / 'tiny_coco'}", "train")
    assert (len(dataset), dataset.class_names, dataset.skipped) == (50, ("person",), ())
    assert split_names(f"coco_keypoints:{shared_data / 'tiny_coco'}") == ("train", "val")
    keypoints = np.concatenate([example.keypoints for example in dataset.examples])
    content = json.loads((shared_data / "tiny_coco/annotations/person_keypoints_train2017.json").read_text())
    assert len(keypoints) == 99 == len(content["annotations"])
    assert (keypoints[..., 2] > 0).sum() == sum(one["num_keypoints"] for one in content["annotations"])
    assert sum(example.crowd.sum() for example in dataset.examples) == 3
    assert list(dataset.keypoint_names) == content["categories"][0]["keypoints"]
