"""SSD300 gives the outputs of torchvision's ssd300_vgg16 when it is given its weights.

The numbers were printed by torchvision 0.28 with the weights that `state_dict()` makes; nothing here needs torch.
"""

import numpy as np
import pytest
from safetensors.numpy import save_file

from tfdet import boxes
from tfdet.detectors.ssd import ssd300_torchvision
from tfdet.errors import WeightsError

NUM_LOGITS = 4
VGG = (0, 64, 3), (2, 64, 64), (5, 128, 64), (7, 128, 128), (10, 256, 128), (12, 256, 256), (14, 256, 256)
VGG += (17, 512, 256), (19, 512, 512), (21, 512, 512)
EXTRAS = (256, 1024, 512), (128, 512, 256), (128, 256, 256), (128, 256, 256)
HEADS = (512, 4), (1024, 6), (512, 6), (256, 6), (256, 4), (256, 4)

ROWS = [0, 5775, 5776, 7941, 7942, 8541, 8542, 8691, 8692, 8728, 8731]
CLASS_LOGITS = [
    [0.039797, -0.005696, -0.197615, 0.009907],
    [0.020835, -0.086861, 0.077441, 0.089716],
    [-0.849204, -0.279474, 0.353056, -0.540332],
    [-1.65134, 1.353489, 0.119953, -0.717385],
    [-0.399044, -0.388399, -0.141496, -1.193616],
    [-0.111092, -0.271431, 0.856926, -1.245534],
    [0.046359, 0.446932, -0.031201, 0.102288],
    [0.811429, -0.759053, -1.611852, 0.100628],
    [0.397451, 0.863388, -0.451735, 0.741131],
    [0.047498, -0.318957, -0.151796, 0.028578],
    [0.001836, -0.04261, -0.081882, 0.067788],
]
BOX_DELTAS = [
    [-0.037084, -0.059147, -0.185186, -0.095849],
    [-0.170088, 0.048188, -0.25092, 0.063733],
    [1.776875, 1.848733, -1.712628, -0.69813],
    [-0.337508, -0.957612, -1.786142, 1.221449],
    [0.178519, 1.026686, 2.13151, -1.08005],
    [-0.978012, -1.407773, -1.62602, 2.421717],
    [0.52714, -0.267762, -0.070062, 1.292236],
    [1.391838, 0.425951, -1.046267, -0.753806],
    [0.029499, 0.090589, -0.017587, 0.346411],
    [0.102213, -0.072361, 0.077276, -0.094757],
    [-0.509376, -0.612182, -0.372062, 0.478837],
]
# Some of torchvision's 200 detections, best first: their ranks, boxes, scores and labels (from 1).
RANKS = [0, 1, 2, 50, 100, 199]
BOXES = [
    [66.45897, 91.59557, 89.82317, 118.14943],
    [66.52857, 48.55856, 91.32214, 72.59819],
    [63.839684, 79.32739, 86.09082, 103.93982],
    [7.462534, 35.60907, 44.175323, 59.92267],
    [117.54472, 109.12811, 126.88728, 200.0],
    [159.22751, 151.73387, 172.06194, 200.0],
]
SCORES = [0.996309, 0.996239, 0.99599, 0.977713, 0.944093, 0.8652]
LABELS = [2, 2, 2, 2, 1, 2]


def state_dict():
    """Weights that any numpy makes again, under torchvision's names and in its order."""
    shapes = {"backbone.scale_weight": (512,)}

    def convolution(name, outputs, inputs, kernel=3):
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (outputs, inputs, kernel, kernel), (outputs,)

    for index, outputs, inputs in VGG:
        convolution(f"backbone.features.{index}", outputs, inputs)
    for index in (1, 3, 5):
        convolution(f"backbone.extra.0.{index}", 512, 512)
    convolution("backbone.extra.0.7.1", 1024, 512)
    convolution("backbone.extra.0.7.3", 1024, 1024, 1)
    for i, (squeeze, inputs, outputs) in enumerate(EXTRAS, 1):
        convolution(f"backbone.extra.{i}.0", squeeze, inputs, 1)
        convolution(f"backbone.extra.{i}.2", outputs, squeeze)
    for kind, size in (("classification", NUM_LOGITS), ("regression", 4)):
        for i, (inputs, priors) in enumerate(HEADS):
            convolution(f"head.{kind}_head.module_list.{i}", priors * size, inputs)

    rng, state = np.random.RandomState(0), {}
    for name, shape in shapes.items():
        if len(shape) == 4:
            values = rng.standard_normal(shape) * (1.6 / np.prod(shape[1:])) ** 0.5
            values *= 0.05 if "head.class" in name else 0.1 if "head.regr" in name else 1
        else:
            values = np.full(shape, 20.0) if "scale" in name else rng.standard_normal(shape) * 0.1
        state[name] = values.astype("float32")
    return state


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "ssd300_vgg16.safetensors"
    save_file(state_dict(), path)
    return ssd300_torchvision(path, {1: "cat", 3: "dog"})


@pytest.fixture(scope="module")
def image():
    y, x = np.mgrid[:200, :260]
    return np.stack([(x * 3 + y) % 256, (x + y * 5) % 256, (x * y // 7) % 256], axis=-1).astype("uint8")


@pytest.mark.parametrize(("output", "expected"), [("class_logits", CLASS_LOGITS), ("box_deltas", BOX_DELTAS)])
def test_head_outputs_are_torchvisions(model, image, output, expected):
    given = np.asarray(model(model.resizer(image[None]))[output])[0]
    assert given.shape == (8732, 4)
    assert np.max(np.abs(given[ROWS] - expected)) < 1e-4 * np.max(np.abs(given))


def test_detections_are_torchvisions(model, image):
    found = model.predict(image[None], verbose=0)
    assert found["num_detections"] == [200]
    overlap = np.asarray(boxes.iou(np.array(BOXES, "float32"), found["boxes"][0]))
    same = found["labels"][0][None] + 1 == np.array(LABELS)[:, None]
    match = np.argmax(np.where(same, overlap, 0), axis=1)
    assert np.all(np.abs(match - RANKS) <= 1)  # neighbours of nearly equal score may change places
    assert np.min(overlap[np.arange(len(match)), match]) > 0.99
    assert np.max(np.abs(found["scores"][0][match] - SCORES)) < 1e-3


def test_logits_without_a_name_are_called_unused(model):
    assert model.class_names == ("cat", "unused 2", "dog")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("head.classification_head.module_list.0.bias"), "no classification head"),
        (lambda state: state.pop("backbone.extra.2.0.weight"), r"backbone\.extra\.2\.0\.weight is missing"),
        (lambda state: state.update({"backbone.more": np.zeros(3, "float32")}), r"backbone\.more is not used"),
    ],
)
def test_another_file_is_refused_by_name(tmp_path, change, message):
    state = state_dict()
    change(state)
    path = tmp_path / "other.safetensors"
    save_file(state, path)
    with pytest.raises(WeightsError, match=message) as error:
        ssd300_torchvision(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)
