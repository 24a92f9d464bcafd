import dataclasses
import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tfdet.data import Dataset, convert, load_dataset, pipeline
from tfdet.data.convert import write_shards
from tfdet.data.images import load_image
from tfdet.data.records import encoded
from tfdet.data.shapes import draw_example
from tfdet.data.tfrecord import FEATURES
from tfdet.detectors.ssd import ssd300
from tfdet.errors import DataError, TfdetError


@pytest.fixture(scope="module")
def drawn():
    """24 images of the generated set; some objects are difficult, some a crowd, and the areas are a segment's."""
    examples = []
    for number in range(24):
        one = draw_example("train", number)
        count = len(one.labels)
        changed = {"difficult": np.arange(count) % 3 == 1, "crowd": np.arange(count) % 4 == 3, "areas": one.areas / 3}
        examples.append(dataclasses.replace(one, image_id=100 + number, **changed))
    return Dataset("drawn", ("zebra", "ä cat", "dog"), (4, 17, 90), tuple(examples))


def assert_same(dataset, expected):
    assert dataset.class_names == expected.class_names
    assert dataset.category_ids == expected.category_ids
    for one, other in zip(dataset.examples, expected.examples, strict=True):
        assert (one.image_id, one.width, one.height) == (other.image_id, other.width, other.height)
        assert encoded(one.image) == encoded(other.image)
        np.testing.assert_allclose(one.boxes, other.boxes, atol=1e-3)
        for name in ("labels", "crowd", "difficult", "areas"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
            assert getattr(one, name).dtype == getattr(other, name).dtype


def test_what_was_written_is_read_again(drawn, tmp_path):
    paths = write_shards(drawn, tmp_path / "new" / "set", "train", shards=5)
    assert [path.name for path in paths] == [f"train-{number:05d}-of-00005.tfrecord" for number in range(5)]
    assert sorted(path.name for path in (tmp_path / "new" / "set").iterdir()) == [
        "label_map.pbtxt",
        *(path.name for path in paths),
    ]
    again = load_dataset(f"tfrecord:{tmp_path / 'new' / 'set'}")
    assert_same(again, drawn)
    write_shards(again, tmp_path / "second", "train", shards=5)
    for path in paths:
        assert (tmp_path / "second" / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("split", ["train", "val"])
def test_round_trip_of_coco(shared_data, tmp_path, split):
    expected = load_dataset(f"coco:{shared_data / 'tiny_coco'}", split)
    write_shards(expected, tmp_path, split, shards=3)
    again = load_dataset(f"tfrecord:{tmp_path}", split)
    assert_same(again, expected)
    assert again.category_ids[-1] == 90  # of 80 classes
    assert any(example.crowd.any() for example in again.examples) or split == "train"


def test_features_are_those_of_the_object_detection_api(drawn, tmp_path):
    (path,) = write_shards(drawn, tmp_path, "train")
    record = next(iter(tf.data.TFRecordDataset(str(path)).as_numpy_iterator()))
    feature = tf.train.Example.FromString(record).features.feature
    assert set(feature) == set(FEATURES) | {"image/format", "image/key/sha256"}
    assert feature["image/format"].bytes_list.value[:] == [b"jpeg"]
    assert feature["image/source_id"].bytes_list.value[:] == [b"100"]
    first = drawn.examples[0]
    np.testing.assert_allclose(
        feature["image/object/bbox/ymax"].float_list.value, first.boxes[:, 3] / first.height, rtol=1e-6
    )
    names = [drawn.class_names[label].encode() for label in first.labels]
    assert feature["image/object/class/text"].bytes_list.value[:] == names
    ids = [drawn.category_ids[label] for label in first.labels]
    assert feature["image/object/class/label"].int64_list.value[:] == ids


@pytest.mark.parametrize("start_step", [None, 3])
def test_training_batches_are_those_of_the_source(drawn, tmp_path, start_step):
    write_shards(drawn, tmp_path, "train", shards=4)
    model = ssd300(drawn.class_names, "vgg_slim")

    def batches(dataset):
        return list(pipeline.training_batches(dataset, model, 8, seed=3, start_step=start_step).take(2))

    for one, other in zip(batches(load_dataset(f"tfrecord:{tmp_path}")), batches(drawn), strict=True):
        np.testing.assert_array_equal(one[0], other[0])
        for name in other[1]:
            np.testing.assert_allclose(one[1][name], other[1][name], atol=1e-3)


def test_the_bytes_do_not_hang_on_the_number_of_workers(drawn, tmp_path):
    for workers in (1, 4):
        write_shards(drawn, tmp_path / str(workers), "train", shards=4, workers=workers)
    for path in (tmp_path / "1").iterdir():
        assert (tmp_path / "4" / path.name).read_bytes() == path.read_bytes()


def test_more_shards_than_images(drawn, tmp_path):
    write_shards(dataclasses.replace(drawn, examples=drawn.examples[:2]), tmp_path, "train", shards=5)
    assert len(load_dataset(f"tfrecord:{tmp_path}")) == 2


def test_no_shard_has_its_name_before_all_are_complete(drawn, tmp_path, monkeypatch):
    written = []
    original = convert._example_record

    def broken(example, dataset):
        assert not list(tmp_path.glob("train-*"))
        written.append(example)
        if len(written) == 15:
            raise DataError("image 15")
        return original(example, dataset)

    monkeypatch.setattr(convert, "_example_record", broken)
    with pytest.raises(DataError, match="image 15"):
        write_shards(drawn, tmp_path, "train", shards=4)
    assert [path.name for path in tmp_path.iterdir()] == ["label_map.pbtxt"]
    monkeypatch.undo()
    write_shards(drawn, tmp_path, "train", shards=4)
    assert len(load_dataset(f"tfrecord:{tmp_path}")) == 24


def test_nothing_is_written_over(drawn, tmp_path):
    write_shards(drawn, tmp_path, "train", shards=2)
    with pytest.raises(TfdetError, match=r"train-00000-of-00002.tfrecord: shards of split train are there already"):
        write_shards(drawn, tmp_path, "train", shards=3)
    with pytest.raises(TfdetError, match=r"label_map.pbtxt: is of other classes than drawn"):
        write_shards(dataclasses.replace(drawn, class_names=("a", "b", "c")), tmp_path, "val")
    write_shards(drawn, tmp_path, "val", shards=1)
    (tmp_path / "file").write_text("")
    with pytest.raises(TfdetError, match="cannot be written"):
        write_shards(drawn, tmp_path / "file", "train")


def test_images_that_the_api_does_not_know_become_png(drawn, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 9, 3)).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "BMP")
    one = dataclasses.replace(drawn.examples[0], image=file.getvalue(), height=8, width=9)
    empty = {name: getattr(one, name)[:0] for name in ("boxes", "labels", "crowd", "difficult", "areas")}
    one = dataclasses.replace(one, **empty)
    write_shards(dataclasses.replace(drawn, examples=(one,)), tmp_path, "train")
    (example,) = load_dataset(f"tfrecord:{tmp_path}").examples
    assert encoded(example.image).startswith(b"\x89PNG")
    np.testing.assert_array_equal(load_image(example.image), pixels)


def test_an_image_that_cannot_be_read_is_named(drawn, tmp_path):
    for image, words in ((b"text", "100: not an image"), ("no/such.jpg", r"no/such.jpg: not an image .*FileNotFound")):
        one = dataclasses.replace(drawn.examples[0], image=image)
        with pytest.raises(DataError, match=words):
            write_shards(dataclasses.replace(drawn, examples=(one,)), tmp_path, "train")
