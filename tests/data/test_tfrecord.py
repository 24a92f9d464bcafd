import io
import tracemalloc

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tfdet import inference
from tfdet.data import load_dataset, pipeline, split_names
from tfdet.data.images import load_image
from tfdet.data.label_map import read_label_map
from tfdet.data.records import Record, encoded
from tfdet.errors import DataError


def jpeg(height=40, width=80, grey=100, **options):
    file = io.BytesIO()
    Image.fromarray(np.full((height, width, 3), grey, np.uint8)).save(file, "JPEG", **options)
    return file.getvalue()


def record(**features):
    """A serialised tf.train.Example; image__encoded=... is the feature image/encoded. None leaves it out."""
    example = tf.train.Example()
    for name, values in features.items():
        if values is None:
            continue
        values = values if isinstance(values, list) else [values]
        feature = example.features.feature[name.replace("__", "/")]
        if values and isinstance(values[0], bytes):
            feature.bytes_list.value.extend(values)
        elif values and isinstance(values[0], int):
            feature.int64_list.value.extend(values)
        else:
            feature.float_list.value.extend(values)
    return example.SerializeToString()


def as_the_api_writes_it(source_id=b"7", **changes):
    """What dataset_tools/create_pet_tf_record.py writes of one image of 80x40 pixels with two objects."""
    features = {
        "image__height": 40,
        "image__width": 80,
        "image__filename": b"dog.jpg",
        "image__source_id": source_id,
        "image__key__sha256": b"0" * 64,
        "image__encoded": jpeg(),
        "image__format": b"jpeg",
        "image__object__bbox__xmin": [0.25, 0.5],
        "image__object__bbox__xmax": [0.75, 1.0],
        "image__object__bbox__ymin": [0.5, 0.0],
        "image__object__bbox__ymax": [1.0, 0.25],
        "image__object__class__text": [b"dog", b"cat"],
        "image__object__class__label": [2, 1],
        "image__object__difficult": [0, 1],
        "image__object__truncated": [0, 0],
        "image__object__view": [b"Frontal", b"Rear"],
    }
    return record(**features | changes)


NO_BOXES = {f"image__object__bbox__{side}": None for side in ("xmin", "ymin", "xmax", "ymax")}
NO_BOXES |= {f"image__object__{name}": None for name in ("class__text", "class__label", "difficult")}


def write(file, *records):
    with tf.io.TFRecordWriter(str(file)) as writer:
        for one in records:
            writer.write(one)
    return f"tfrecord:{file.parent}"


def test_a_file_of_the_object_detection_api_is_read_as_it_is(tmp_path):
    spec = write(tmp_path / "pets_val.record-00000-of-00001", as_the_api_writes_it())
    (tmp_path / "pet_label_map.pbtxt").write_text(
        """# comment
        item { id: 1 name: 'cat' }
        item { name: "/m/0bt9lr" id: 2 display_name: "dog" keypoints { id: 1 label: "nose" } }"""
    )
    dataset = load_dataset(spec, "val")
    assert dataset.name == f"tfrecord:{tmp_path.name} val"
    assert (dataset.class_names, dataset.category_ids) == (("cat", "dog"), (1, 2))
    (example,) = dataset.examples
    assert (example.image_id, example.width, example.height) == (7, 80, 40)
    np.testing.assert_array_equal(example.boxes, [(20, 20, 60, 40), (40, 0, 80, 10)])
    np.testing.assert_array_equal(example.labels, [1, 0])
    np.testing.assert_array_equal(example.difficult, [False, True])
    np.testing.assert_array_equal(example.crowd, [False, False])
    np.testing.assert_array_equal(example.areas, [800, 400])
    assert encoded(example.image) == jpeg()


def test_all_that_is_optional_may_be_absent(tmp_path):
    optional = ("height", "width", "filename", "source_id", "key__sha256", "format", "object__class__text")
    bare = {f"image__{name}": None for name in (*optional, "object__difficult", "object__truncated", "object__view")}
    spec = write(tmp_path / "train.tfrecord", as_the_api_writes_it(**bare), as_the_api_writes_it(**bare | NO_BOXES))
    first, second = load_dataset(spec, "train").examples
    assert (first.image_id, second.image_id) == ("train.tfrecord:0", "train.tfrecord:1")
    assert (first.width, first.height) == (80, 40)
    assert load_dataset(spec, "train").class_names == ("1", "2")
    np.testing.assert_array_equal(first.labels, [1, 0])
    assert second.boxes.shape == (0, 4)


@pytest.mark.parametrize(
    ("labels", "names", "ids"),
    [([5, 3], ("cat", "dog"), (3, 5)), (None, ("cat", "dog"), (1, 2))],
)
def test_without_a_label_map_the_texts_are_the_names(tmp_path, labels, names, ids):
    spec = write(tmp_path / "train.record", as_the_api_writes_it(image__object__class__label=labels))
    dataset = load_dataset(spec)
    assert (dataset.class_names, dataset.category_ids) == (names, ids)
    np.testing.assert_array_equal(dataset.examples[0].labels, [1, 0])


@pytest.mark.parametrize(
    ("source_ids", "expected"),
    [([b"10", b"2"], [10, 2]), ([b"007", b"2"], ["007", "2"]), ([b"1", b"1"], ["s.record:0", "s.record:1"])],
)
def test_image_ids(tmp_path, source_ids, expected):
    spec = write(tmp_path / "s.record", *map(as_the_api_writes_it, source_ids))
    assert [example.image_id for example in load_dataset(spec, "s").examples] == expected


# --- which shards ---


@pytest.mark.parametrize(
    ("files", "where", "splits"),
    [
        (["train-00000-of-00001.tfrecord", "val-00000-of-00001.tfrecord"], "", ["train", "val"]),
        (["train-00000-of-00001.tfrecord", "val-00000-of-00001.tfrecord"], "/*.tfrecord", ["train", "val"]),
        (["pets_train.record-00000-of-00001", "pets_val.record-00000-of-00001"], "", ["train", "val"]),
        (["minival.record", "val.record"], "", ["minival", "val"]),
        (["train/a.tfrecord", "valid/a.tfrecord"], "/{split}/*.tfrecord", ["train", "valid"]),
        (["a-train-x.rec", "a-val-x.rec"], "/a-{split}-?.rec", ["train", "val"]),
    ],
)
def test_the_split_chooses_shards_by_their_names(tmp_path, files, where, splits):
    for number, file in enumerate(files):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        write(tmp_path / file, as_the_api_writes_it(b"%d" % number))
    spec = f"tfrecord:{tmp_path}{where}"
    assert list(split_names(spec)) == splits
    for number, split in enumerate(splits):
        assert [example.image_id for example in load_dataset(spec, split).examples] == [number]


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(DataError, match="no such shards"):
        load_dataset(f"tfrecord:{tmp_path}")
    spec = write(tmp_path / "train-00001-of-00003.tfrecord", as_the_api_writes_it())
    with pytest.raises(DataError, match=r'no shards of split "val"; there are train$'):
        load_dataset(spec, "val")
    with pytest.raises(DataError, match=r"train-00000-of-00003.tfrecord: this shard is missing$"):
        load_dataset(spec)
    write(tmp_path / "train-00000-of-00001.tfrecord", as_the_api_writes_it())
    with pytest.raises(DataError, match="two sets, -of-00001 and -of-00003"):
        load_dataset(spec)


def test_an_empty_shard_is_no_fault_but_an_empty_split_is(tmp_path):
    spec = write(tmp_path / "train-00000-of-00002.tfrecord", as_the_api_writes_it())
    write(tmp_path / "train-00001-of-00002.tfrecord")
    assert len(load_dataset(spec)) == 1
    write(tmp_path / "train-00000-of-00002.tfrecord")
    with pytest.raises(DataError, match='of split "train" hold no image'):
        load_dataset(spec)


@pytest.mark.parametrize("content", ["item { id: x }", "item { id: 1 }", "", "item { id: 1 name: 'a' }" * 2, "\xff"])
def test_a_bad_label_map_is_one_line(tmp_path, content):
    file = tmp_path / "label_map.pbtxt"
    file.write_text(content, encoding="latin-1")
    with pytest.raises(DataError, match=r"label_map.pbtxt: ") as error:
        read_label_map(file)
    assert "\n" not in str(error.value)


# --- defects ---


def refused(spec, words):
    """The first record is faulty, the second is not."""
    with pytest.raises(DataError) as error:
        load_dataset(spec)
    dataset = load_dataset(spec, on_error="skip")
    assert len(dataset.skipped) == 1
    for text in (str(error.value), dataset.skipped[0]):
        assert "\n" not in text
        for word in words:
            assert word in text
    return dataset


X, LABEL = "image__object__bbox__xmin", "image__object__class__label"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({X: [float("nan"), 0.5]}, ["image 7: box 0 (nan, 20, 60, 40)", "not finite"]),
        ({X: [0.75, 0.5]}, ["image 7: box 0 (60, 20, 60, 40)", '"dog"', "stored as 0.75, 0.5, 0.75, 1", "zero area"]),
        ({X: [0.25, 1.5]}, ["box 1 (120, 0, 80, 10)", '"cat"', "inverted"]),
        ({X: [0.25, 20.0], "image__object__bbox__xmax": [0.75, 40.0]}, ["box 1", "lies outside", "80x40"]),
        ({LABEL: [9, 1]}, ["box 0", '"dog"', "label 9 is not in", "label_map.pbtxt"]),
    ],
)
def test_a_bad_box_is_named_and_left_out(tmp_path, changes, words):
    (tmp_path / "label_map.pbtxt").write_text("item { id: 1 name: 'cat' } item { id: 2 name: 'dog' }")
    file = tmp_path / "train.tfrecord"
    dataset = refused(write(file, as_the_api_writes_it(**changes)), [f"{file}: record 0: ", *words])
    assert [len(example.boxes) for example in dataset.examples] == [1]


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (as_the_api_writes_it(image__encoded=None), ["image 7: has no image/encoded"]),
        (as_the_api_writes_it(image__encoded=b"text"), ["image 7", "header of the image cannot be read"]),
        (as_the_api_writes_it(image__width=90), ["image 7", "90x40", "80x40"]),
        (as_the_api_writes_it(**{X: [0.25]}), ["bbox/ymin has 2 values, image/object/bbox/xmin has 1"]),
        (as_the_api_writes_it(**{LABEL: [1, 2, 3]}), ["class/label has 3 values"]),
        (as_the_api_writes_it(**{LABEL: None, "image__object__class__text": None}), ["neither", "class/label"]),
        (as_the_api_writes_it(**{LABEL: [1.0, 2.0]}), ["image/object/class/label has the wrong type"]),
        (b"no protocol buffer", ["is no tf.train.Example"]),
    ],
)
def test_a_bad_record_is_named_and_left_out(tmp_path, bad, words):
    file = tmp_path / "train.tfrecord"
    dataset = refused(write(file, bad, as_the_api_writes_it(b"8")), [f"{file}: record 0: ", *words])
    assert [(example.image_id, example.image.number) for example in dataset.examples] == [(8, 1)]
    assert encoded(dataset.examples[0].image) == jpeg()


def test_damaged_shards(tmp_path):
    file = tmp_path / "train.tfrecord"
    spec = write(file, *(as_the_api_writes_it(b"%d" % number) for number in range(3)))
    sound = file.read_bytes()
    offsets = [example.image.offset for example in load_dataset(spec).examples]
    assert offsets[0] == 0

    def with_byte(at, value):
        return sound[:at] + bytes([value]) + sound[at + 1 :]

    for content, words, left in (
        (with_byte(offsets[1] + 100, sound[offsets[1] + 100] ^ 1), ["record 1: ", "checksum"], [0, 2]),
        (with_byte(offsets[1] + 9, sound[offsets[1] + 9] ^ 1), ["record 1: ", "checksum"], [0, 2]),  # of the length
        (with_byte(offsets[1] + 5, 1), ["record 1: ", "cut off"], [0]),  # the length
        (sound[:-1], ["record 2: ", "cut off"], [0, 1]),
        (sound[: offsets[2] + 5], ["record 2: ", "cut off"], [0, 1]),
        (sound + bytes(1000), ["record 3: ", "is empty"], [0, 1, 2]),
    ):
        file.write_bytes(content)
        dataset = refused(spec, [str(file), *words])
        assert [example.image_id for example in dataset.examples] == left


def test_an_image_that_cannot_be_decoded_is_named_by_its_record(tmp_path):
    noise = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 80, 3)).astype(np.uint8)).save(noise, "JPEG")
    broken = as_the_api_writes_it(image__encoded=noise.getvalue()[:2000])
    file = tmp_path / "train.tfrecord"
    spec = write(file, broken, as_the_api_writes_it(b"8"))
    dataset = load_dataset(spec, on_error="skip")
    assert [example.image_id for example in dataset.examples] == [8]
    assert f"{file}: record 0: image 7: not an image that can be read" in dataset.skipped[0]


# --- reading images ---


class Plain:
    """Stands in for a detector: gives the grey of an image, and its boxes are the targets."""

    @staticmethod
    def augmentation(image, boxes, labels, seed):
        return tf.cast(image[:1, :1], tf.float32), boxes, labels

    class resizer:
        def __new__(cls, image):
            return tf.cast(image[:1, :1], tf.float32)

        @staticmethod
        def scale(height, width):
            return tf.ones(4)

    wants_crowds, keypoint_names = False, ()
    encode = staticmethod(lambda image, boxes, labels, seed: {"count": tf.shape(labels)[0]})


def test_any_mixture_of_sources_can_be_read(tmp_path):
    spec = write(tmp_path / "train.tfrecord", *(as_the_api_writes_it(image__encoded=jpeg(grey=g)) for g in (30, 60)))
    shown = [example.image for example in load_dataset(spec).examples]
    assert isinstance(shown[0], Record)
    assert str(shown[1]) == f"{tmp_path / 'train.tfrecord'}: record 1"
    (tmp_path / "one.jpg").write_bytes(jpeg(grey=90))
    images = [shown[1], str(tmp_path / "one.jpg"), jpeg(grey=120), shown[0]]
    (batch,) = pipeline.prediction_batches(images, Plain, 4)
    np.testing.assert_array_equal(batch["images"][:, 0, 0, 0], [60, 90, 120, 30])
    assert [load_image(image)[0, 0, 0] for image in images] == [60, 90, 120, 30]


def test_a_shard_that_changes_under_a_run_is_an_error_and_not_another_image(tmp_path, untrained):
    spec = write(tmp_path / "val.tfrecord", as_the_api_writes_it())
    dataset = load_dataset(spec, "val")
    write(tmp_path / "val.tfrecord", record(image__encoded=jpeg(), filler=b"1"))
    (tmp_path / "val.tfrecord").write_bytes(b"x" + (tmp_path / "val.tfrecord").read_bytes()[1:])
    with pytest.raises(DataError, match=r"val.tfrecord: record 0: image 7"):
        inference.detect(untrained[0], dataset)


def test_memory_does_not_grow_with_the_images(tmp_path):
    """2,000 records, of together 40 MB, which neither loading nor two epochs may hold."""
    filler = np.random.default_rng(0).bytes(20_000)  # for a comment in the JPEG
    image = (
        jpeg()[:-2] + b"\xff\xfe\x4e\x20" + filler[: 0x4E20 - 2].replace(b"\xff", b"\xfe") + b"\xff\xd9"
    )  # a comment
    for number in range(4):
        one = [as_the_api_writes_it(b"%d" % (500 * number + i), image__encoded=image) for i in range(500)]
        write(tmp_path / f"train-{number:05d}-of-00004.tfrecord", *one)

    def resident():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * 4096

    tracemalloc.start()
    try:
        dataset = load_dataset(f"tfrecord:{tmp_path}")
        assert len(dataset) == 2000
        assert tracemalloc.get_traced_memory()[0] / len(dataset) < 3000  # bytes held for an image
    finally:
        tracemalloc.stop()
    batches = pipeline.training_batches(dataset, Plain, 50)
    seen = []
    for epoch in range(3):
        count = sum(len(images) for images, _ in batches)
        assert count == 2000, epoch
        seen.append(resident())
    assert seen[2] - seen[0] < 15e6
