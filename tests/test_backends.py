"""Keras on JAX and on PyTorch. What needs one of them runs in a process of its own, and skips where it is missing."""

import ast
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfdet
from tfdet.data import portable
from tfdet.data.images import load_image

ROOT = Path(tfdet.__file__).parents[1]
# Where TensorFlow is the point; all else that a detector is made of leaves it to Keras.
OF_TENSORFLOW = (
    "tfdet.data",
    "tfdet.deformable",
    "tfdet.detectors.mtcnn",  # the cascade, which is detection alone: its networks are trained one by one
    "tfdet.distribution",
    "tfdet.grouping",
    "tfdet.nms",
    "tfdet.resizers",
    "tfdet.rois",
)

TALL = (330, 210, [(20, 30, 110, 140), (90, 180, 190, 300)], [0, 1])  # height, width, boxes, labels
EMPTY = (200, 260, [], [])


def imports(path):
    """The names of the modules, and of what is imported from them, in the head of a file."""
    package = path.relative_to(ROOT).parts[:-1]
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            home = ".".join([*package[: len(package) + 1 - node.level], node.module or ""]).strip(".")
            home = home if node.level else node.module
            yield home
            yield from (f"{home}.{alias.name}" for alias in node.names)


def file_of(module):
    path = ROOT.joinpath(*module.split("."))
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


def test_what_a_training_step_touches_imports_no_tensorflow():
    detectors = (ROOT / "tfdet" / "detectors").glob("*.py")
    todo, seen = [path for path in detectors if path.stem != "mtcnn"], set()
    while todo:
        path = todo.pop()
        seen.add(path)
        names = set(imports(path))
        assert "tensorflow" not in names, path
        ours = {file_of(name) for name in names if name.startswith("tfdet.") and not name.startswith(OF_TENSORFLOW)}
        todo += ours - seen - {None}
    assert {"ssd.py", "assigners.py", "samplers.py", "losses.py", "coders.py", "vgg.py", "mtcnn_networks.py"} <= {
        path.name for path in seen
    }


def test_called_back_from_the_graph_the_pipeline_gives_the_same(untrained, make_dataset, monkeypatch):
    """As with another backend, though keras.ops compute with TensorFlow here too."""
    detector, _ = untrained
    dataset = make_dataset(TALL, EMPTY)
    kinds = (
        lambda: tfdet.validation_batches(dataset, detector, 2),
        lambda: tfdet.training_batches(dataset, detector, 2, start_step=0).take(2),
    )
    expected = [list(batches().as_numpy_iterator()) for batches in kinds]
    monkeypatch.setattr(keras.backend, "backend", lambda: "another")
    found = [list(batches().as_numpy_iterator()) for batches in kinds]
    keras.tree.map_structure(np.testing.assert_array_equal, found, expected)


def test_in_the_graph_results_keep_their_names_dtypes_and_ranks(monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "another")
    function = portable.in_graph(lambda x: {"b": x[None] * 2, "a": keras.ops.shape(x)[0]}, np.zeros(1, np.float32))
    batches = tf.data.Dataset.from_tensor_slices(np.ones((2, 3), np.float32)).map(function)
    assert batches.element_spec["a"].shape.rank == 0
    assert batches.element_spec["b"].shape.as_list() == [None, None]
    assert batches.element_spec["b"].dtype == tf.float32
    first = next(batches.as_numpy_iterator())
    assert first["a"] == 3
    np.testing.assert_array_equal(first["b"], [[2, 2, 2]])


# Arguments: the folder.
USE = """
import sys
from pathlib import Path

import keras
import numpy as np
import tfdet
from tfdet import training
from tfdet.data.images import load_image

folder = Path(sys.argv[1])
dataset = tfdet.load_dataset(f"csv:{folder / 'boxes.csv'}", split="train")
model = keras.models.load_model(folder / "start.keras")
batches = tfdet.validation_batches(dataset, model, batch_size=2).cache()

# A step from the weights, and with the optimizer, of a model that TensorFlow saved.
images, targets = next(batches.as_numpy_iterator())
step = model.train_on_batch(images, targets, return_dict=True)
model.save_weights(folder / "step.weights.h5")
found = {f"step/{name}": value for name, value in step.items()}

logs = model.fit(tfdet.training_batches(dataset, model, batch_size=2), epochs=2, verbose=0).history
found["augmented"] = logs["loss"]
model.compile(keras.optimizers.Adam(2e-3))
logs = model.fit(batches.repeat(), steps_per_epoch=20, epochs=3, verbose=0).history
found["fit"] = logs["loss"]
found["evaluate"] = model.evaluate(batches, verbose=0, return_dict=True)["loss"]
model.save(folder / "end.keras")

# NMS, and with it all detection, is TensorFlow's.
attempts = {
    "predict": lambda: model.predict(load_image(dataset.examples[0].image)[None], verbose=0),
    "detect": lambda: tfdet.detect(model, dataset),
    "export": lambda: tfdet.export(model, folder / "export"),
    "recipe": lambda: training.run(training.Settings(), "ssd300", None),
}
for name, attempt in attempts.items():
    try:
        attempt()
    except tfdet.TfdetError as error:
        found[f"refusal/{name}"] = str(error)
np.savez(folder / "found.npz", **found)
"""


@pytest.fixture(params=["jax", "torch"])
def backend(request):
    if importlib.util.find_spec(request.param) is None:
        pytest.skip(f"{request.param} is not installed")
    return request.param


def write_csv(folder, draw_image):
    lines = ["path,x1,y1,x2,y2,label,split", "tall.png,{},{},{},{},a,train", "tall.png,{},{},{},{},b,train"]
    lines = [line.format(*box) for line, box in zip(lines, [(), *TALL[2]], strict=True)]
    (folder / "boxes.csv").write_text("\n".join([*lines, "empty.png,,,,,,train"]))
    for name, image in {"tall": TALL, "empty": EMPTY}.items():
        (folder / f"{name}.png").write_bytes(draw_image(*image))
    return tfdet.load_dataset(f"csv:{folder / 'boxes.csv'}", split="train")


def vector(weights):
    return np.concatenate([np.ravel(weight) for weight in weights])


def test_a_script_trains_as_on_tensorflow(backend, tmp_path, draw_image):
    dataset = write_csv(tmp_path, draw_image)
    keras.utils.set_random_seed(0)
    model = tfdet.ssd300(dataset.class_names, "vgg_slim")
    model.compile(keras.optimizers.SGD(0.01, momentum=0.9))
    model.save(tmp_path / "start.keras")
    env = {**os.environ, "KERAS_BACKEND": backend, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, "-c", USE, str(tmp_path)], env=env, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr[-3000:]
    found = np.load(tmp_path / "found.npz")

    # The same weights and images: the same step.
    start = vector(model.get_weights())
    batches = tfdet.validation_batches(dataset, model, 2)
    images, targets = next(batches.as_numpy_iterator())
    for name, value in model.train_on_batch(images, targets, return_dict=True).items():
        assert found[f"step/{name}"] == pytest.approx(value, rel=1e-5)
    end = vector(model.get_weights())
    model.load_weights(tmp_path / "step.weights.h5")
    # In float32 rounding turns a ReLU now and then, which changes the gradient of all layers before it.
    assert np.linalg.norm(vector(model.get_weights()) - end) < 0.01 * np.linalg.norm(end - start)

    assert np.isfinite(found["augmented"]).all()
    assert found["fit"][-1] < 0.1 * found["fit"][0]
    assert found["evaluate"] < 0.1 * found["fit"][0]
    for what in ("predict", "detect", "export", "recipe"):
        assert "KERAS_BACKEND=tensorflow" in str(found[f"refusal/{what}"])

    # And back to TensorFlow, which goes on and finds what the other has learned.
    trained = keras.models.load_model(tmp_path / "end.keras")
    assert int(trained.optimizer.iterations) == 60
    assert trained.evaluate(batches, verbose=0, return_dict=True)["loss"] == pytest.approx(
        float(found["evaluate"]), rel=1e-3
    )
    image = load_image(dataset.examples[0].image)[None]
    assert (trained.predict(image, verbose=0)["scores"][0, :2] > 0.5).all()
