"""What every detector promises, whatever its algorithm. A new detector is one more row of DETECTORS."""

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from typing import NamedTuple

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfdet
from tfdet.anchors import AnchorGenerator
from tfdet.data.images import load_image
from tfdet.data.pipeline import prediction_batches
from tfdet.detectors.centernet_pose import CenterNetPose
from tfdet.detectors.faster_rcnn import FasterRCNN
from tfdet.resizers import Warp

KEYPOINTS = tfdet.skeleton.EXTREME_POINTS  # of the boxes of `make_dataset`


class Row(NamedTuple):
    """build: class names -> a small instance that trains from nothing, fast on a CPU. learning_rate and steps: how it
    comes to know one image by heart, with Adam; everything it is sure of then overlaps an object by `overlap`."""

    name: str
    build: Callable
    learning_rate: float = 2e-3
    steps: int = 60
    overlap: float = 0.5


def original_faster_rcnn(class_names):
    """One map of stride 16, nine anchors, none of which may leave the image: as faster_rcnn_vgg16, without dropout."""
    anchors = [AnchorGenerator((32, 64, 128), (0.5, 1.0, 2.0), 16, offset=0.5)]
    sizes = {"short_sides": (160,), "long_side": 256, "channels": None, "rpn_channels": 64, "box_width": 128}
    rest = {"pre_nms": (600, 300), "post_nms": (200, 100), "regions": 64, "crossing": False}
    return FasterRCNN(tfdet.backbones.vgg_slim(), class_names, anchors, **sizes, **rest)


DETECTORS = [
    Row("ssd300", lambda class_names: tfdet.ssd300(class_names, backbone="vgg_slim")),
    Row(
        "retinanet",
        lambda class_names: tfdet.retinanet(class_names, "resnet_slim", None, (160,), 256),
        steps=120,
        # One image never trains the anchors that it ignores, of IoU 0.4 to 0.5, and NMS does not reach what they say.
        overlap=0.4,
    ),
    Row("faster_rcnn_original", original_faster_rcnn, steps=120),
    Row("fcos", lambda class_names: tfdet.fcos(class_names, "resnet_slim", None, (160,), 256), 1e-3, 200),
    Row(
        "faster_rcnn_fpn",
        lambda class_names: tfdet.faster_rcnn_fpn(class_names, "resnet_slim", None, (160,), 256),
        1e-3,
        120,
    ),
    Row("centernet", lambda class_names: tfdet.centernet(class_names, "resnet_slim_up", side=256), steps=120),
    Row(
        "centernet_pose",
        lambda class_names: CenterNetPose(tfdet.backbones.resnet_slim_up(), class_names, KEYPOINTS, 256),
        steps=120,
    ),
    Row("cornernet", lambda class_names: tfdet.cornernet(class_names, "resnet_slim_up", side=128)),
    Row("extremenet", lambda class_names: tfdet.extremenet(class_names, "resnet_slim_up", side=128), steps=120),
]

TALL = (330, 210, [(20, 30, 110, 140), (90, 180, 190, 300)], [0, 1])  # height, width, boxes, labels
EMPTY = (200, 260, [], [])
# Objects of all sizes from 25 pixels to the whole of an image of 300, so that no level of a pyramid goes without.
SIZES = [(300, 300, [(10, 10, 10 + side, 10 + side)], [i % 2]) for i, side in enumerate((25, 60, 110, 160, 215, 280))]


@pytest.fixture(scope="module", params=DETECTORS, ids=lambda row: row.name)
def row(request):
    return request.param


@pytest.fixture(scope="module")
def detector(row):
    """One that knows nothing. Tests leave its weights alone."""
    keras.utils.set_random_seed(0)
    return row.build(("red", "blue"))


@pytest.fixture(scope="module")
def tall(make_dataset):
    """A data set of one image that is taller than wide."""
    return make_dataset(TALL)


@pytest.fixture(scope="module")
def trained(row, tall):
    """One that has learned the image `tall`, compiled. Tests leave its weights as they find them."""
    keras.utils.set_random_seed(0)
    detector = row.build(tall.class_names)
    detector.compile(keras.optimizers.Adam(row.learning_rate))
    batches = tfdet.validation_batches(tall, detector, 1).cache().repeat()
    detector.fit(batches, steps_per_epoch=row.steps, verbose=0)
    return detector


@pytest.fixture(autouse=True)
def float32_afterwards():
    yield
    keras.mixed_precision.set_dtype_policy("float32")


def pixels(example):
    return load_image(example.image)[None]


def gradients(detector, batch):
    images, targets = batch
    with tf.GradientTape() as tape:
        loss = detector.compute_loss(images, targets, detector(images, training=True))
    return float(loss), tape.gradient(loss, detector.trainable_variables)


def raw_outputs(detector, images):
    """What the network says, as a list; not the pyramid, which Faster R-CNN hands to its second stage."""
    return tf.nest.flatten({name: output for name, output in detector(images).items() if name != "levels"})


def without_padding(detections, i=0):
    count = int(detections["num_detections"][i])
    return {key: np.asarray(value[i][:count]) for key, value in detections.items() if key != "num_detections"}


def assert_same_detections(found, expected, sizes):
    """Equal to 1e-5, boxes and keypoints in units of the image; sizes: (height, width) of every image."""
    assert set(found) == set(expected)
    for key in expected:
        tolerance = 1e-5 * max(max(size) for size in sizes) if key in ("boxes", "keypoints") else 1e-5
        np.testing.assert_allclose(found[key], expected[key], rtol=0, atol=tolerance, err_msg=key)


@pytest.mark.parametrize("batches", [tfdet.validation_batches, tfdet.training_batches], ids=lambda f: f.__name__)
@pytest.mark.parametrize("images", [(TALL, EMPTY), (EMPTY, EMPTY)], ids=["some without boxes", "no boxes at all"])
def test_images_without_boxes_give_finite_loss_and_gradients(detector, make_dataset, images, batches):
    weights = detector.get_weights()
    loss, grads = gradients(detector, next(iter(batches(make_dataset(*images), detector, 2))))
    detector.set_weights(weights)  # batch normalisation keeps statistics
    assert np.isfinite(loss)
    for variable, gradient in zip(detector.trainable_variables, grads, strict=True):
        assert np.isfinite(gradient).all(), variable.path


def test_gradients_reach_every_weight(detector, make_dataset):
    weights = detector.get_weights()
    batch = next(iter(tfdet.validation_batches(make_dataset(*SIZES), detector, len(SIZES))))
    _, grads = gradients(detector, batch)
    detector.set_weights(weights)
    unreached = [v.path for v, g in zip(detector.trainable_variables, grads, strict=True) if g is None or not np.any(g)]
    assert not unreached


def test_learns_one_image_by_heart(row, trained, tall):
    example = tall.examples[0]
    found = without_padding(trained.predict(pixels(example), verbose=0))
    sure = found["scores"] > 0.5
    boxes, labels = found["boxes"][sure], found["labels"][sure]
    overlaps = np.asarray(tfdet.boxes.iou(example.boxes, boxes))
    for i, label in enumerate(example.labels):
        assert (overlaps[i, labels == label] > 0.7).any(), f"object {i} not found among {boxes}, {labels}"
    assert (overlaps.max(axis=0) > row.overlap).all(), "sure of something that is not there"
    if trained.keypoint_names:
        best = [overlaps[i].argmax() for i in range(len(example.boxes))]
        np.testing.assert_allclose(found["keypoints"][sure][best], example.keypoints[..., :2], atol=5)
        assert (found["keypoint_scores"][sure][best] > 0.3).all()


def test_detections_have_one_form(trained, detector, tall):
    height, width = TALL[:2]
    noise = np.random.default_rng(0).integers(0, 256, (2, height, width, 3), np.uint8)
    images = np.concatenate([pixels(tall.examples[0]), noise])
    untrained = keras.tree.map_structure(np.asarray, detector.predict_step(images))  # saves the tracing
    for found in (untrained, trained.predict(images, verbose=0)):
        kept = found["scores"].shape[1]
        forms = {key: (value.shape, value.dtype) for key, value in found.items()}
        expected = {
            "boxes": ((3, kept, 4), np.float32),
            "scores": ((3, kept), np.float32),
            "labels": ((3, kept), np.int32),
            "num_detections": ((3,), np.int32),
        }
        if count := len(detector.keypoint_names):
            expected |= {
                "keypoints": ((3, kept, count, 2), np.float32),
                "keypoint_scores": ((3, kept, count), np.float32),
            }
        assert forms == expected
        padding = np.arange(kept) >= found["num_detections"][:, None]
        assert (found["boxes"][padding] == 0).all()
        assert (found["scores"][padding] == 0).all()
        assert (found["labels"][padding] == -1).all()
        assert all((found[key][padding] == 0).all() for key in found if key.startswith("keypoint"))
        for i in range(3):
            real = without_padding(found, i)
            assert np.isin(real["labels"], (0, 1)).all()
            assert ((real["scores"] > 0) & (real["scores"] <= 1)).all()
            assert (np.diff(real["scores"]) <= 0).all()
            assert (real["boxes"] >= 0).all()
            assert (real["boxes"] <= [width, height, width, height]).all()
            assert (real["boxes"][:, 2:] >= real["boxes"][:, :2]).all()
    # The trained one has found something, and less than there is room for: all of the above was about something.
    assert 2 <= found["num_detections"][0] < kept


def test_the_input_pipeline_detects_what_predict_does(trained, tall, make_dataset):
    dataset = make_dataset(TALL, EMPTY)
    # Beside a larger image one is padded, which its border feels a little.
    found = tfdet.detect(trained, dataset, batch_size=2 if isinstance(trained.resizer, Warp) else 1)
    assert [one.image_id for one in found] == ["image 0", "image 1"]
    for one, example in zip(found, dataset.examples, strict=True):
        expected = without_padding(trained.predict(pixels(example), verbose=0))
        assert_same_detections({key: getattr(one, key) for key in expected}, expected, [TALL[:2]])


def test_saved_and_loaded_it_goes_on_where_it_stopped(trained, tall, tmp_path):
    trained.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert type(loaded) is type(trained)
    assert loaded.class_names == ("red", "blue")
    images = pixels(tall.examples[0])
    found, expected = loaded.predict(images, verbose=0), trained.predict(images, verbose=0)
    assert all(np.array_equal(found[key], expected[key]) for key in expected)

    assert int(loaded.optimizer.iterations) == int(trained.optimizer.iterations) > 0
    for mine, other in zip(loaded.optimizer.variables, trained.optimizer.variables, strict=True):
        np.testing.assert_array_equal(mine, other, err_msg=other.path)

    before = trained.get_weights()
    batch, logs = tfdet.validation_batches(tall, trained, 1), []
    for model in (loaded, trained):
        model.run_eagerly, model.train_function = True, None  # tracing would take longer than the one step
        logs.append(model.fit(batch, verbose=0).history)
    after = trained.get_weights()
    trained.set_weights(before)
    trained.run_eagerly, trained.train_function = False, None
    assert logs[0] == {name: pytest.approx(value, rel=1e-4) for name, value in logs[1].items()}
    assert distance(loaded.get_weights(), after) < 1e-3 * distance(before, after)


def distance(weights, others):
    return np.sqrt(sum(np.sum((a - b) ** 2) for a, b in zip(weights, others, strict=True)))


# Runs where neither Keras nor tfdet can be imported, as in TF Serving; a line of JSON: model, inputs, outputs (npz).
SERVE = """
import json
import sys
sys.modules["keras"] = sys.modules["tfdet"] = None
import numpy as np
import tensorflow as tf

def serve(folder, source, target):
    inputs = dict(np.load(source))
    calls = {
        "images": ("images", "images", inputs["images"]),
        "bytes": ("serving_default", "image_bytes", inputs["image_bytes"].astype(object)),
        "first": ("serving_default", "image_bytes", inputs["image_bytes"][:1].astype(object)),
        "second": ("serving_default", "image_bytes", inputs["image_bytes"][1:].astype(object)),
    }
    found = {}
    model = tf.saved_model.load(folder)
    for name, (signature, argument, value) in calls.items():
        for key, output in model.signatures[signature](**{argument: tf.constant(value)}).items():
            found[f"python/{name}/{key}"] = output.numpy()
    with tf.compat.v1.Session(graph=tf.Graph()) as session:
        signatures = tf.compat.v1.saved_model.loader.load(session, ["serve"], folder).signature_def
        for name, (signature, argument, value) in calls.items():
            signature = signatures[signature]
            fetches = {key: tensor.name for key, tensor in signature.outputs.items()}
            for key, output in session.run(fetches, {signature.inputs[argument].name: value}).items():
                found[f"graph/{name}/{key}"] = output
    np.savez(target, **found)

for line in sys.stdin:
    serve(*json.loads(line))
    print("served", flush=True)
"""


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """A function (model, inputs, outputs) that has them served, all by one process: TensorFlow takes long to start."""
    errors = tmp_path_factory.mktemp("server") / "errors"
    with open(errors, "w") as file:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": file, "text": True}
        process = subprocess.Popen([sys.executable, "-c", SERVE], **pipes)

    def serve(*paths):
        process.stdin.write(json.dumps([str(path) for path in paths]) + "\n")
        process.stdin.flush()
        assert process.stdout.readline() == "served\n", errors.read_text()[-2000:]

    yield serve
    process.communicate()


def test_the_export_equals_predict_without_keras_and_without_tfdet(trained, tall, draw_image, tmp_path, server):
    folder = tfdet.export(trained, tmp_path / "export")
    tall_png, wide_jpeg = tall.examples[0].image, draw_image(180, 400, [(30, 20, 150, 160)], [1], "JPEG")
    images = np.concatenate([pixels(tall.examples[0]), pixels(tall.examples[0])[:, ::-1]])
    np.savez(tmp_path / "inputs.npz", images=images, image_bytes=np.array([tall_png, wide_jpeg]))
    server(folder, tmp_path / "inputs.npz", tmp_path / "outputs.npz")
    outputs = np.load(tmp_path / "outputs.npz")

    names = folder / "assets.extra" / "keypoint_names.txt"
    assert (names.read_text().split() if names.exists() else []) == list(trained.keypoint_names)

    tall_size, wide_size = TALL[:2], (180, 400)
    singles = [trained.predict(load_image(encoded)[None], verbose=0) for encoded in (tall_png, wide_jpeg)]
    together = trained.predict(prediction_batches([tall_png, wide_jpeg], trained, 2), verbose=0)
    expected = {
        "images": (trained.predict(images, verbose=0), [tall_size] * 2),
        "bytes": (together, [tall_size, wide_size]),
        "first": (singles[0], [tall_size]),
        "second": (singles[1], [wide_size]),
    }
    for loader in ("python", "graph"):
        for call, (detections, sizes) in expected.items():
            found = {key: outputs[f"{loader}/{call}/{key}"] for key in detections}
            assert_same_detections(found, detections, sizes)
    assert len(outputs.files) == 2 * 4 * len(together)
    assert singles[0]["num_detections"][0] > 0


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision(row, tall, policy):
    keras.mixed_precision.set_dtype_policy(policy)
    keras.utils.set_random_seed(0)
    detector = row.build(tall.class_names)
    assert detector.compute_dtype == policy.removeprefix("mixed_")
    detector.compile(keras.optimizers.SGD(1e-3), run_eagerly=True)  # tracing would take longer than the one step
    before = detector.get_weights()
    history = detector.fit(tfdet.validation_batches(tall, detector, 1), verbose=0).history
    assert all(np.isfinite(value) for values in history.values() for value in values)
    assert all(np.isfinite(weight).all() for weight in detector.get_weights())
    assert distance(before, detector.get_weights()) > 0

    images = next(iter(tfdet.validation_batches(tall, detector, 1)))[0]
    assert {output.dtype for output in raw_outputs(detector, images)} == {tf.float32}
    found = detector.predict_on_batch(pixels(tall.examples[0]))
    assert found["boxes"].dtype == found["scores"].dtype == np.float32
    assert np.isfinite(found["boxes"]).all()

    # Pixels are not rounded: both would be 200 in bfloat16.
    first, second = (raw_outputs(detector, np.full_like(images, value)) for value in (199.55, 200.45))
    assert distance(first, second) > 0


def test_a_copy_in_bfloat16_finds_the_same(trained, tall):
    image = pixels(tall.examples[0])
    before = trained.predict_on_batch(image)
    copy = tfdet.in_bfloat16(trained)
    convolutions = [layer for layer in copy._flatten_layers() if isinstance(layer, keras.layers.Conv2D)]
    assert {layer.compute_dtype for layer in convolutions} == {"bfloat16"}
    assert {weight.dtype for weight in copy.weights} == {"float32"}
    assert distance(copy.get_weights(), trained.get_weights()) == 0

    found = copy.predict_on_batch(image)
    best = slice(0, len(tall.examples[0].boxes))
    np.testing.assert_array_equal(found["labels"][0, best], before["labels"][0, best])
    np.testing.assert_allclose(found["boxes"][0, best], before["boxes"][0, best], atol=0.02 * image.shape[1])
    np.testing.assert_allclose(found["scores"][0, best], before["scores"][0, best], atol=0.05)
    assert found["boxes"].dtype == found["scores"].dtype == np.float32
    assert (found["boxes"] != before["boxes"]).any()
    after = trained.predict_on_batch(image)
    assert all((after[key] == before[key]).all() for key in before)  # the original is as it was


# The first replica gets the first half of the batch. Both have objects, so that each could divide by its own number,
# but not the same number.
UNEVEN = (TALL, SIZES[4], SIZES[1], EMPTY)


def after_one_step(row, dataset, strategy, run_eagerly=False):
    """-> (detector, its weights before the step, logged figures).

    In double precision: in float32 the other order of sums may turn a ReLU or the choice of a pool, as it does on one
    device when the images of the batch change places (6e-5 of the step were seen).
    """
    keras.utils.set_random_seed(0)
    keras.mixed_precision.set_dtype_policy("float64")
    with strategy.scope():
        detector = row.build(dataset.class_names)
        detector.compile(keras.optimizers.SGD(0.01), run_eagerly=run_eagerly)
    before = detector.get_weights()
    logs = detector.fit(tfdet.validation_batches(dataset, detector, 4), verbose=0).history
    return detector, before, logs


@pytest.fixture(scope="module")
def on_two_replicas(row, make_dataset, two_replicas):
    return after_one_step(row, make_dataset(*UNEVEN), two_replicas)


def test_two_replicas_do_the_step_that_one_does(row, make_dataset, on_two_replicas):
    device = tf.distribute.OneDeviceStrategy("CPU:0")
    one, before, logs = after_one_step(row, make_dataset(*UNEVEN), device, run_eagerly=True)
    two, two_before, two_logs = on_two_replicas
    assert distance(before, two_before) == 0
    assert two_logs == {name: pytest.approx(value, rel=1e-5) for name, value in logs.items()}
    assert logs["loss"][0] == pytest.approx(sum(v[0] for k, v in logs.items() if k != "loss"), rel=1e-5)

    trainable = np.array([variable.trainable for variable in one.weights])
    for chosen in (trainable, ~trainable):  # the others are the statistics of batch normalisation
        places = np.flatnonzero(chosen)
        start, first, second = ([w[i] for i in places] for w in (before, one.get_weights(), two.get_weights()))
        assert distance(first, second) <= 1e-5 * distance(start, first)


def test_all_of_keras_works_on_two_replicas(make_dataset, on_two_replicas):
    detector, _, _ = on_two_replicas
    dataset = make_dataset(TALL, *SIZES[:3])
    batches = tfdet.training_batches(dataset, detector, 4, start_step=0)
    evaluation = tfdet.Evaluation(dataset)
    logs = detector.fit(batches, epochs=2, steps_per_epoch=2, verbose=0, callbacks=[evaluation])
    assert np.isfinite(logs.history["loss"]).all()
    assert len(logs.history["val_AP50"]) == 2

    # In the last batch the shares of the replicas differ.
    seven = dataclasses.replace(dataset, examples=dataset.examples + dataset.examples[:3])
    figures = detector.evaluate(tfdet.validation_batches(seven, detector, 4), verbose=0, return_dict=True)
    assert np.isfinite(list(figures.values())).all()
    images = np.concatenate([pixels(example) for example in dataset.examples[1:]])
    found = detector.predict(images, verbose=0)
    alone = [detector.predict_step(image[None]) for image in images]
    expected = {key: np.concatenate([one[key] for one in alone]) for key in found}
    assert_same_detections(found, expected, [(300, 300)])
