import dataclasses

import numpy as np
import pytest

from tfdet.data import load_dataset
from tfdet.errors import DataError


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (
            "pickle:somewhere",
            [
                "pickle:somewhere",
                "expected coco:DIR, coco_keypoints:DIR, coco_masks:DIR, voc:DIR, csv:FILE, wider_face:DIR, ",
            ],
        ),
        ("nothing", ['"nothing"', "expected coco:DIR"]),
        ("", ["expected coco:DIR"]),
        ("coco:", ["coco:", "expected coco:DIR"]),
        ("coco:no/such/folder", ["no/such/folder", "no such folder"]),
        ("voc:no/such/folder", ["no/such/folder", "no such folder"]),
        ("voc:no/such,neither", ["no/such", "no such folder"]),
        ("voc:,", ["voc:,"]),
        ("csv:no/such.csv", ["no/such.csv", "no such file"]),
        ("wider_face:no/such/folder", ["no/such/folder", "no such folder"]),
        ("dlib:", ["dlib:", "expected coco:DIR"]),
        ("shapes:big", ["shapes:big"]),
    ],
)
def test_a_wrong_spec_is_one_line_that_names_it(spec, words):
    with pytest.raises(DataError) as error:
        load_dataset(spec)
    for word in words:
        assert word in str(error.value)
    assert "\n" not in str(error.value)


def test_on_error_is_raise_or_skip():
    for on_error in ("ignore", "", None):
        with pytest.raises(ValueError, match="on_error"):
            load_dataset("shapes", on_error=on_error)


@pytest.mark.parametrize("spec", ["coco:{}/tiny_coco", "voc:{}/bccd", "shapes"])
@pytest.mark.parametrize("split", ["val", "test"])
def test_every_example_keeps_the_promises_of_the_format(shared_data, spec, split):
    if (spec, split) == ("coco:{}/tiny_coco", "test"):
        pytest.skip("tiny_coco has no test split")
    dataset = load_dataset(spec.format(shared_data), split, on_error="skip")
    assert len({example.image_id for example in dataset.examples}) == len(dataset)
    assert len(dataset.category_ids) == dataset.num_classes
    for example in dataset.examples:
        count = len(example.boxes)
        wanted = {"boxes": ((count, 4), np.float32), "labels": ((count,), np.int32), "areas": ((count,), np.float32)}
        wanted |= {"crowd": ((count,), np.bool_), "difficult": ((count,), np.bool_)}
        for name, (shape, dtype) in wanted.items():
            array = getattr(example, name)
            assert (array.shape, array.dtype) == (shape, dtype), name
        assert np.isfinite(example.boxes).all()
        assert (example.boxes >= 0).all()
        assert (example.boxes[:, 2:] <= (example.width, example.height)).all()
        assert ((example.boxes[:, 2:] - example.boxes[:, :2]).prod(axis=1) > 0).all()
        assert ((example.labels >= 0) & (example.labels < dataset.num_classes)).all()
    with pytest.raises(dataclasses.FrozenInstanceError):
        dataset.name = "other"
