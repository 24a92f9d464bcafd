import io
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tfdet import inference
from tfdet.assigners import IGNORED
from tfdet.data import pipeline
from tfdet.data.dataset import Dataset, Example
from tfdet.data.images import decode, load_image
from tfdet.data.transforms import SSDAugmentation
from tfdet.detectors.base import Detector
from tfdet.errors import TfdetError
from tfdet.resizers import ShortSide, Warp, size_without_padding, without_padding

SIZE = 16


def encode(pixels, **options):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, options.pop("format", "PNG"), **options)
    return file.getvalue()


def example(number, boxes, crowd=None, size=(8, 12)):
    """An image of one grey that tells its number, 10 times that."""
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    return Example(
        image_id=f"image {number}",
        image=encode(np.full((*size, 3), 10 * number, np.uint8)),
        height=size[0],
        width=size[1],
        boxes=boxes,
        labels=np.arange(len(boxes), dtype=np.int32) + number,
        crowd=np.array(crowd or [False] * len(boxes)),
        difficult=np.zeros(len(boxes), bool),
        areas=(boxes[:, 2:] - boxes[:, :2]).prod(axis=1),
    )


def dataset(*examples):
    return Dataset("seven", ("a", "b", "c"), (1, 2, 3), examples)


@pytest.fixture(scope="module")
def seven():
    """Seven images, the second of them without a box."""
    box = [(2, 1, 9, 7)]
    return dataset(*(example(n, [] if n == 2 else box * (1 + n % 3)) for n in range(1, 8)))


class FakeDetector(Detector):
    """Finds, in every image, its left half as class 0, then one pixel as class 1 if the image is bright."""

    def __init__(self, augmentation=None):
        super().__init__(("a", "b", "c"))
        self.resizer = Warp(SIZE)
        self.augmentation = augmentation or SSDAugmentation(SIZE)

    def call(self, images, training=None):
        return keras.ops.mean(images, axis=(1, 2, 3))

    @staticmethod
    def encoder(boxes, labels):
        """As they are, padded to six."""
        room = 6 - tf.shape(labels)[0]
        return {
            "boxes": tf.ensure_shape(tf.pad(boxes, [[0, room], [0, 0]]), (6, 4)),
            "labels": tf.ensure_shape(tf.pad(labels, [[0, room]], constant_values=-1), (6,)),
        }

    @staticmethod
    def decoder(outputs):
        bright = tf.cast(outputs > 35, tf.int32)
        boxes = tf.constant([[0, 0, SIZE / 2, SIZE], [4.0, 4, 5, 5], [0, 0, 0, 0]])
        return {
            "boxes": tf.tile(boxes[None], [tf.shape(outputs)[0], 1, 1]),
            "scores": tf.stack([outputs / 255, tf.cast(bright, tf.float32) / 100, outputs * 0], axis=1),
            "labels": tf.stack([bright * 0, bright * 2 - 1, bright * 0 - 1], axis=1),
            "num_detections": 1 + bright,
        }


@pytest.fixture(scope="module")
def detector():
    return FakeDetector()


@pytest.fixture(scope="module")
def plain():
    """A detector whose augmentation only resizes, so that an image is known by its grey."""
    warp = Warp(SIZE)
    return FakeDetector(lambda image, boxes, labels, seed: (warp(image), boxes, labels))


def flat(batches):
    """[(images, boxes, labels)] as numpy."""
    return [(images.numpy(), targets["boxes"].numpy(), targets["labels"].numpy()) for images, targets in batches]


def same(one, other):
    pairs = [(a, b) for ones, others in zip(one, other, strict=True) for a, b in zip(ones, others, strict=True)]
    return all(np.array_equal(a, b) for a, b in pairs)


def numbers(images):
    return [round(float(image.mean() / 10)) for image in images]


# --- training ---


def test_training_batches_have_fixed_shapes(seven, detector):
    batches = flat(pipeline.training_batches(seven, detector, 3))
    assert len(batches) == 2  # the seventh image is left out
    for images, boxes, labels in batches:
        assert (images.shape, images.dtype) == ((3, SIZE, SIZE, 3), np.float32)
        assert boxes.shape == (3, 6, 4) and labels.shape == (3, 6)


@pytest.mark.parametrize("start_step", [None, 0])
def test_the_same_seed_gives_the_same_batches(seven, detector, start_step):
    def take(seed):
        return flat(pipeline.training_batches(seven, detector, 3, seed=seed, start_step=start_step).take(5))

    first = take(4)
    assert same(first, take(4))
    assert not same(first, take(5))


def test_every_iteration_is_another_epoch(seven, detector):
    batches = pipeline.training_batches(seven, detector, 3)
    first, second = flat(batches), flat(batches)
    assert len(first) == len(second) == 2
    assert not same(first, second)


def test_epochs_have_another_order_and_hold_each_image_once(seven, plain):
    stream = pipeline.training_batches(seven, plain, 7, start_step=0).take(6)
    orders = [tuple(numbers(images)) for images, _, _ in flat(stream)]
    assert all(sorted(order) == [1, 2, 3, 4, 5, 6, 7] for order in orders)
    assert len(set(orders)) >= 5
    batches = pipeline.training_batches(seven, plain, 7)
    orders = [tuple(numbers(images)) for _ in range(4) for images, _, _ in flat(batches)]
    assert all(sorted(order) == [1, 2, 3, 4, 5, 6, 7] for order in orders)
    assert len(set(orders)) >= 3


def test_an_endless_stream_leaves_out_what_does_not_fill_a_batch(seven, plain):
    steps = [numbers(images) for images, _, _ in flat(pipeline.training_batches(seven, plain, 3, start_step=0).take(8))]
    for first, second in zip(steps[::2], steps[1::2], strict=True):
        assert len(set(first + second)) == 6


def test_augmentation_differs_from_epoch_to_epoch_and_image_to_image(seven):
    drawn = []

    def augmentation(image, boxes, labels, seed):
        tf.py_function(lambda s: drawn.append(tuple(s.numpy())), [seed], [])
        return tf.ensure_shape(tf.zeros((SIZE, SIZE, 3)), (SIZE, SIZE, 3)), boxes, labels

    list(pipeline.training_batches(seven, FakeDetector(augmentation), 7, start_step=0).take(3))
    assert len(drawn) >= 21  # some are made in advance
    assert len(set(drawn)) == len(drawn)


# An epoch has 2 steps: inside the first, at its end, and inside a later one.
@pytest.mark.parametrize(("start_step", "cache"), [(1, False), (2, False), (5, False), (5, True)])
def test_a_stream_goes_on_where_it_stopped(seven, detector, start_step, cache):
    whole = flat(pipeline.training_batches(seven, detector, 3, seed=1, start_step=0).take(10))
    rest = pipeline.training_batches(seven, detector, 3, seed=1, cache=cache, start_step=start_step)
    assert same(flat(rest.take(10 - start_step)), whole[start_step:])


def test_a_cache_changes_nothing_but_the_reading(seven, detector, tmp_path):
    paths = [tmp_path / f"{i}.png" for i in range(len(seven))]
    for path, one in zip(paths, seven.examples, strict=True):
        path.write_bytes(one.image)
    on_disk = dataset(*(Example(**{**vars(e), "image": str(p)}) for e, p in zip(seven.examples, paths, strict=True)))
    cached = pipeline.training_batches(on_disk, detector, 3, cache=True)
    fresh = pipeline.training_batches(seven, detector, 3)
    assert same(flat(cached), flat(fresh))
    for path in paths:
        path.unlink()
    assert same(flat(cached), flat(fresh))


def test_a_crowd_is_no_target(plain):
    data = dataset(example(3, [(0, 0, 6, 4), (6, 4, 12, 8), (3, 2, 9, 6)], crowd=[False, True, False]))
    ((_, boxes, labels),) = flat(pipeline.training_batches(data, plain, 1))
    np.testing.assert_array_equal(labels, [[3, 5, -1, -1, -1, -1]])
    np.testing.assert_array_equal(boxes[0, :2], [(0, 0, 6, 4), (3, 2, 9, 6)])
    ((_, boxes, labels),) = flat(pipeline.validation_batches(data, plain, 1))
    np.testing.assert_array_equal(labels, [[3, 5, -1, -1, -1, -1]])


def test_too_few_images_for_one_batch(seven, detector):
    with pytest.raises(ValueError, match="seven: 7 images do not fill one batch of 8"):
        pipeline.training_batches(seven, detector, 8)


def test_fed_images_of_one_size_make_batches_of_a_shape_known_in_advance(seven, detector):
    """So a step that is compiled for every shape is compiled once."""
    images, targets = pipeline.training_batches(seven, detector, 3).element_spec
    assert images.shape == (3, SIZE, SIZE, 3)
    assert (targets["boxes"].shape, targets["labels"].shape) == ((3, 6, 4), (3, 6))
    images, targets = pipeline.validation_batches(seven, detector, 3).element_spec
    assert images.shape.as_list() == [None, SIZE, SIZE, 3]
    assert targets["boxes"].shape.as_list() == [None, 6, 4]
    batch = pipeline.prediction_batches([b""], detector, 3).element_spec
    assert batch["images"].shape.as_list() == [None, SIZE, SIZE, 3]
    assert batch["scale"].shape.as_list() == [None, 4]


# --- images that differ in size ---


class FakeShortSide(FakeDetector):
    """Resizes to 20 pixels, but the long side to 40 at most, and finds in every image all of it."""

    def __init__(self):
        super().__init__()
        self.resizer = ShortSide(20, 40)

        def augmentation(image, boxes, labels, seed):
            scale = self.resizer.scale(*tf.unstack(tf.shape(image)[:2]))
            return self.resizer(image), boxes * scale, labels

        self.augmentation = augmentation

    wants_crowds = True

    def encode(self, image, boxes, labels, seed):
        """What it is given; and a map as large as the image without its padding."""
        height, width = size_without_padding(image)
        return {
            "boxes": boxes,
            "labels": labels,
            "maps": (tf.fill((height, width), 7), tf.ones((height, width, 4))),
            "seed": tf.cast(seed, tf.int64),
        }

    def call(self, images, training=None):
        return without_padding(images)[1]

    @staticmethod
    def decoder(sizes):
        height, width = tf.unstack(sizes, axis=-1)
        whole = tf.stack([height * 0, width * 0, width, height], axis=-1)
        return {
            "boxes": whole[:, None],
            "scores": tf.ones_like(sizes[:, :1]),
            "labels": tf.zeros_like(sizes[:, :1], tf.int32),
            "num_detections": tf.ones_like(height, tf.int32),
        }


@pytest.fixture(scope="module")
def short_side():
    return FakeShortSide()


@pytest.fixture(scope="module")
def two_sizes():
    """Images of 8 x 12 and 16 x 8 pixels, fed as 20 x 30 and 40 x 20; a crowd in the first."""
    boxes = [(0, 0, 6, 4), (6, 4, 12, 8), (3, 2, 9, 6)]
    wide = example(3, boxes, crowd=[False, True, False], size=(8, 12))
    return dataset(wide, example(5, [(0, 8, 8, 16)], size=(16, 8)))


@pytest.mark.parametrize("seed", [None, 3])
def test_blank_images_are_what_the_batches_are_made_of(two_sizes, short_side, seed):
    if seed is None:
        batches = pipeline.validation_batches(two_sizes, short_side, 1)
    else:
        batches = pipeline.training_batches(two_sizes, short_side, 1, seed, start_step=0).take(2)
    found = list(pipeline.blank_images(two_sizes, short_side, short_side.encode, seed))
    assert len(found) == 2
    for blank, (_, targets) in zip(found, batches, strict=True):
        tf.nest.map_structure(lambda a, b: np.testing.assert_array_equal(a, b[0]), blank, targets)
    if seed is None:
        for number, one in enumerate(two_sizes.examples):
            alone = short_side.encode(*pipeline.fed_blank(one, number, short_side))
            tf.nest.map_structure(np.testing.assert_array_equal, alone, found[number])


BATCHES = [pipeline.validation_batches, pipeline.training_batches]


@pytest.mark.parametrize("batches", BATCHES, ids=lambda f: f.__name__)
def test_images_that_differ_in_size_are_padded_to_one_batch(two_sizes, short_side, batches):
    images, targets = next(iter(batches(two_sizes, short_side, 2)))
    assert images.shape == (2, 64, 32, 3)  # 32 x 32 and 64 x 32
    first, second = (0, 1) if images[0, 0, 0, 0] == 30 else (1, 0)  # shuffled, when training
    expected = np.full((2, 64, 32, 3), np.nan)
    expected[first, :20, :30], expected[second, :40, :20] = 30, 50
    np.testing.assert_allclose(images, expected, rtol=1e-6)

    maps = {name: np.array(targets["maps"][i]) for i, name in enumerate(("numbers", "fractions"))}
    assert maps["numbers"].shape == (2, 40, 30) and maps["fractions"].shape == (2, 40, 30, 4)
    inside = np.zeros((2, 40, 30), bool)
    inside[first, :20, :30] = inside[second, :40, :20] = True
    np.testing.assert_array_equal(maps["numbers"], np.where(inside, 7, IGNORED))
    np.testing.assert_array_equal(maps["fractions"], np.repeat(inside[..., None], 4, axis=-1))

    # In pixels of the fed image; the crowd is there, but without its label.
    np.testing.assert_array_equal(targets["labels"][first], [3, -1, 5])
    np.testing.assert_array_equal(targets["labels"][second], [5, IGNORED, IGNORED])
    np.testing.assert_allclose(targets["boxes"][first], [(0, 0, 15, 10), (15, 10, 30, 20), (7.5, 5, 22.5, 15)])
    np.testing.assert_allclose(targets["boxes"][second], [(0, 20, 20, 40), (0,) * 4, (0,) * 4])


def test_shapes_of_batches_of_any_size(two_sizes, short_side):
    images, targets = pipeline.training_batches(two_sizes, short_side, 2).element_spec
    assert images.shape.as_list() == [2, None, None, 3]
    assert targets["boxes"].shape.as_list() == [2, None, 4]
    assert (targets["seed"].shape, targets["seed"].dtype) == ((2,), tf.int64)


def test_no_boxes_in_any_image_of_a_padded_batch(short_side):
    data = dataset(example(1, []), example(2, [], size=(12, 8)))
    ((images, boxes, labels),) = flat(pipeline.validation_batches(data, short_side, 2))
    assert (images.shape, boxes.shape, labels.shape) == ((2, 32, 32, 3), (2, 0, 4), (2, 0))


def test_images_to_predict_are_padded_and_their_scale_is_not(short_side):
    grey = [encode(np.full((*size, 3), 9, np.uint8)) for size in ((8, 32), (20, 20))] + [encode(GREY)]
    batches = list(pipeline.prediction_batches(grey, short_side, 2))
    assert [batch["images"].shape for batch in batches] == [(2, 32, 64, 3), (1, 32, 32, 3)]
    sizes = [np.stack(size_without_padding(batch["images"]), axis=-1).tolist() for batch in batches]
    assert sizes == [[[10, 40], [20, 20]], [[20, 28]]]
    scales = [batch["scale"] for batch in batches]
    np.testing.assert_allclose(scales[0], [(1.25,) * 4, (1,) * 4])
    np.testing.assert_allclose(scales[1], [(4,) * 4])


def test_detections_in_padded_images_are_in_pixels_of_the_originals(short_side):
    sizes = [(8, 12), (32, 64), (16, 16), (1, 1), (1, 300), (77, 3)]
    data = dataset(*(example(i, [], size=size) for i, size in enumerate(sizes)))
    for batch_size in (1, 4):
        found = inference.detect(short_side, data, batch_size=batch_size)
        whole = [[(0, 0, width, height)] for height, width in sizes]
        np.testing.assert_allclose([one.boxes for one in found], whole, rtol=1e-6)


def seeds(batches):
    """[(number of the image, its seed)] of each batch."""
    numbered = [(images[:, 0, 0, 0].numpy() / 10, targets["seed"].numpy()) for images, targets in batches]
    return [list(zip(map(int, images), map(int, seeds), strict=True)) for images, seeds in numbered]


def test_an_example_gets_another_seed_in_every_epoch_and_the_same_after_a_resume(seven, short_side):
    def stream(start_step, seed=1):
        return pipeline.training_batches(seven, short_side, 3, seed=seed, start_step=start_step)

    whole = seeds(stream(0).take(8))
    drawn = [pair for batch in whole for pair in batch]
    assert len({seed for _, seed in drawn}) == len(drawn) == 24
    per_image = [image for image, _ in drawn]
    assert max(map(per_image.count, per_image)) >= 3  # so seen with several seeds
    for start_step in (1, 2, 5):
        assert seeds(stream(start_step).take(8 - start_step)) == whole[start_step:]
    assert not set(drawn) & {pair for batch in seeds(stream(0, seed=2).take(8)) for pair in batch}


def test_the_seed_of_augmentation_is_that_of_the_encoder(seven, monkeypatch):
    detector, drawn = FakeShortSide(), []

    def augmentation(image, boxes, labels, seed):
        tf.py_function(lambda s: drawn.append(tuple(s.numpy())), [seed], [])
        return tf.fill((32, 32, 3), 10.0), boxes, labels

    detector.augmentation = augmentation
    found = seeds(pipeline.training_batches(seven, detector, 7).take(1))
    assert sorted(drawn) == sorted((seed, 0) for _, seed in found[0])


def test_validation_has_the_same_seeds_each_time(seven, short_side):
    batches = pipeline.validation_batches(seven, short_side, 3)
    first = seeds(batches)
    assert seeds(batches) == first
    assert len({seed for batch in first for _, seed in batch}) == 7


# --- validation and prediction ---


def test_validation_batches_are_in_order_complete_and_not_augmented(seven, detector):
    batches = flat(pipeline.validation_batches(seven, detector, 3))
    assert [len(images) for images, _, _ in batches] == [3, 3, 1]
    for number, image in enumerate((i for images, _, _ in batches for i in images), 1):
        np.testing.assert_array_equal(image, np.full((SIZE, SIZE, 3), 10 * number))
    labels = np.concatenate([labels for _, _, labels in batches])
    assert [row[row >= 0].tolist() for row in labels] == [[1, 2], [], [3], [4, 5], [5, 6, 7], [6], [7, 8]]


def test_validation_boxes_are_in_pixels_of_the_fed_image(detector):
    data = dataset(example(1, [(3, 2, 12, 8)], size=(8, 12)), example(2, [(3, 2, 12, 8)], size=(32, 16)))
    ((_, boxes, _),) = flat(pipeline.validation_batches(data, detector, 2))
    np.testing.assert_allclose(boxes[:, 0], [(4, 4, 16, 16), (3, 1, 12, 4)], rtol=1e-6)


def test_prediction_batches_resize_and_tell_the_scale(detector, tmp_path):
    path = tmp_path / "image.png"
    path.write_bytes(encode(np.full((8, 32, 3), 7, np.uint8)))
    batches = list(pipeline.prediction_batches([str(path), encode(np.full((4, 4, 3), 9, np.uint8))], detector, 2))
    assert len(batches) == 1
    np.testing.assert_allclose(batches[0]["scale"], [(0.5, 2, 0.5, 2), (4, 4, 4, 4)])
    np.testing.assert_array_equal(
        batches[0]["images"], np.float32([7, 9])[:, None, None, None] + np.zeros((2, 16, 16, 3))
    )


def test_detections_are_in_pixels_of_the_original_images(detector):
    data = dataset(example(3, [], size=(8, 12)), example(4, [], size=(32, 64)), example(5, [], size=(16, 16)))
    found = inference.detect(detector, data, batch_size=2)
    assert [one.image_id for one in found] == ["image 3", "image 4", "image 5"]
    np.testing.assert_allclose(found[0].boxes, [(0, 0, 6, 8)])
    np.testing.assert_allclose(found[1].boxes, [(0, 0, 32, 32), (16, 8, 20, 10)])
    np.testing.assert_allclose(found[2].boxes, [(0, 0, 8, 16), (4, 4, 5, 5)])
    assert [one.labels.tolist() for one in found] == [[0], [0, 1], [0, 1]]
    np.testing.assert_allclose([one.scores[0] for one in found], [30 / 255, 40 / 255, 50 / 255], rtol=1e-5)
    assert inference.detect(detector, dataset()) == []


def test_detections_have_the_labels_of_the_data_set(detector):
    data = Dataset("other", ("z", "b"), (1, 2), (example(4, [], size=(32, 64)),))
    (found,) = inference.detect(detector, data)
    assert found.labels.tolist() == [1]  # "a" is unknown there
    np.testing.assert_allclose(found.boxes, [(16, 8, 20, 10)])


def test_a_detector_without_class_names_has_those_of_the_data_set(detector, monkeypatch):
    monkeypatch.setattr(detector, "class_names", ("0", "1"))
    (found,) = inference.detect(detector, Dataset("other", ("x", "y"), (1, 2), (example(4, [], size=(32, 64)),)))
    assert found.labels.tolist() == [0, 1]


def test_no_class_in_common_is_an_error(detector):
    data = Dataset("other", ("x", "y"), (1, 2), (example(4, [], size=(32, 64)),))
    with pytest.raises(TfdetError, match="other has the classes x, y, the detector only a, b"):
        inference.detect(detector, data)


def test_detections_in_files_are_named_by_their_path(detector, tmp_path):
    paths = [tmp_path / "one.png", tmp_path / "two.jpg"]
    paths[0].write_bytes(encode(np.full((8, 12, 3), 30, np.uint8)))
    paths[1].write_bytes(encode(np.full((32, 64, 3), 30, np.uint8), format="JPEG"))
    found = inference.detect_files(detector, paths)
    assert [one.image_id for one in found] == [str(path) for path in paths]
    np.testing.assert_allclose([one.boxes[0] for one in found], [(0, 0, 6, 8), (0, 0, 32, 32)])


# --- decoding ---

COLOUR = np.random.default_rng(0).integers(0, 256, (5, 7, 3)).astype(np.uint8)
GREY = COLOUR[..., 0]


def palette():
    image = Image.fromarray(COLOUR).quantize(8)
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue(), np.asarray(image.convert("RGB"))


def deep():
    """16 bits a pixel."""
    file = io.BytesIO()
    Image.fromarray(GREY.astype(np.uint16) * 257).save(file, "PNG")
    return file.getvalue()


ENCODED = {
    "png": (encode(COLOUR), COLOUR),
    "grey png": (encode(GREY), np.repeat(GREY[..., None], 3, axis=-1)),
    "png with alpha": (encode(np.dstack([COLOUR, GREY])), COLOUR),
    "grey png with alpha": (encode(np.dstack([GREY, GREY])), np.repeat(GREY[..., None], 3, axis=-1)),
    "png with a palette": palette(),
    "png of 16 bits": (deep(), np.repeat(GREY[..., None], 3, axis=-1)),
    "bmp": (encode(COLOUR, format="BMP"), COLOUR),
}


@pytest.mark.parametrize(("encoded", "expected"), ENCODED.values(), ids=ENCODED)
def test_decode(encoded, expected):
    image = decode(encoded)
    assert image.dtype == tf.uint8
    np.testing.assert_array_equal(image, expected)


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_decode_jpeg(mode):
    pixels = np.full((5, 7, 3), (200, 100, 50), np.uint8) if mode == "RGB" else np.full((5, 7), 100, np.uint8)
    expected = np.broadcast_to(pixels if mode == "RGB" else pixels[..., None], (5, 7, 3)).astype(int)
    np.testing.assert_allclose(decode(encode(pixels, format="JPEG", quality=95)), expected, atol=3)


def test_decode_takes_the_first_frame_of_a_gif():
    frames = [Image.fromarray(np.full((5, 7, 3), grey, np.uint8)) for grey in (40, 200)]
    file = io.BytesIO()
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(decode(file.getvalue()), np.full((5, 7, 3), 40))


def test_load_image_takes_a_path_or_bytes(tmp_path):
    path = Path(tmp_path, "image.png")
    path.write_bytes(encode(COLOUR))
    for source in (str(path), encode(COLOUR)):
        image = load_image(source)
        assert isinstance(image, np.ndarray)
        np.testing.assert_array_equal(image, COLOUR)
