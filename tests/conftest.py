"""Fixtures for all tests."""

import io
import math
import os
import zlib
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # read when TensorFlow is first imported

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tfdet.data import Dataset, Example

KEYPOINTS = {"top": (0, -1), "left": (-1, 0), "bottom": (0, 1), "right": (1, 0)}
SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"

# pytest's workers have a core each.
tf.config.threading.set_intra_op_parallelism_threads(1)
# Two replicas need two devices, and TensorFlow takes this before it does anything else only.
CPUS = [tf.config.LogicalDeviceConfiguration()] * 2
tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], CPUS)


@pytest.fixture(scope="session")
def shared_data():
    """The folder of real data beside the repository (../shared/data); a test that needs it skips without it."""
    if not SHARED_DATA.is_dir():
        pytest.skip("no real data: there is no folder ../shared/data beside the repository")
    return SHARED_DATA


@pytest.fixture(scope="session")
def draw_image():
    """A function (height, width, boxes, labels, format="PNG") -> an encoded image: rectangles on grey, with noise.

    Boxes are xyxy in pixels; those of label 0 are red, of label 1 blue.
    """

    def make(height, width, boxes, labels, format="PNG"):
        noise = np.random.default_rng(height * width).integers(-25, 26, (height, width, 3))
        pixels = np.full((height, width, 3), 128)
        for (x1, y1, x2, y2), label in zip(boxes, labels, strict=True):
            pixels[y1:y2, x1:x2] = [(220, 30, 30), (30, 40, 225)][label]
        encoded = io.BytesIO()
        Image.fromarray((pixels + noise).astype(np.uint8)).save(encoded, format)
        return encoded.getvalue()

    return make


@pytest.fixture(scope="session")
def make_dataset(draw_image):
    """A function (*images) -> Dataset of the classes "red" and "blue"; an image is (height, width, boxes, labels).

    The keypoints of a box are the middles of its sides, its extreme points.
    """

    def make(*images):
        examples = []
        for number, (height, width, boxes, labels) in enumerate(images):
            array = np.array(boxes, np.float32).reshape(-1, 4)
            centres, sizes = (array[:, None, :2] + array[:, None, 2:]) / 2, array[:, None, 2:] - array[:, None, :2]
            places = centres + sizes / 2 * np.array(list(KEYPOINTS.values()), np.float32)
            example = Example(
                image_id=f"image {number}",
                image=draw_image(height, width, boxes, labels),
                height=height,
                width=width,
                boxes=array,
                labels=np.array(labels, np.int32),
                crowd=np.zeros(len(array), bool),
                difficult=np.zeros(len(array), bool),
                areas=(array[:, 2:] - array[:, :2]).prod(axis=1),
                keypoints=np.pad(places, [(0, 0), (0, 0), (0, 1)], constant_values=2),
            )
            examples.append(example)
        return Dataset("drawn", ("red", "blue"), (1, 2), tuple(examples), keypoint_names=tuple(KEYPOINTS))

    return make


@pytest.fixture(scope="session")
def two_replicas():
    """A strategy of two replicas. One for all tests: a second one in the process would get into the first one's way."""
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])


@pytest.fixture(scope="session")
def seeded():
    """A function (name of a PyTorch tensor, its shape) -> numbers that depend on nothing else.

    The reference numbers of backbones come from other codes with weights made by this very function.
    """

    def make(name, shape):
        numbers = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
        if len(shape) > 1:
            numbers *= math.sqrt(2 / math.prod(shape[1:]))
        elif name.endswith("running_var"):
            numbers = 1 + 0.1 * abs(numbers)
        else:
            numbers = 0.1 * numbers + name.endswith("weight")
        return np.asarray(numbers, np.float32)

    return make


@pytest.fixture(scope="session")
def untrained(tmp_path_factory):
    """(a detector of "red" and "blue" that knows nothing, the .keras file of it), for what needs just any detector."""
    from tfdet.detectors.ssd import ssd300

    keras.utils.set_random_seed(0)
    detector = ssd300(("red", "blue"), "vgg_slim")
    path = tmp_path_factory.mktemp("untrained") / "model.keras"
    detector.save(path)
    return detector, path


@pytest.fixture(scope="session")
def small(tmp_path_factory):
    """The same with one convolution as the backbone, for what takes long with a real network."""
    from tfdet.detectors.centernet import centernet

    image = keras.Input((None, None, 3))
    backbone = keras.Model(image, {"stack1": keras.layers.Conv2D(4, 4, 4)(image)})
    detector = centernet(("red", "blue"), backbone, side=64)
    path = tmp_path_factory.mktemp("small") / "model.keras"
    detector.save(path)
    return detector, path


@pytest.fixture(scope="session")
def exported(untrained, tmp_path_factory):
    """A folder with the version 1 of the untrained detector, for TensorFlow Serving."""
    from tfdet import serving

    folder = tmp_path_factory.mktemp("export")
    assert serving.export(untrained[0], folder) == folder / "1"
    return folder
