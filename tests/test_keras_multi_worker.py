"""Two real processes that train together by TF_CONFIG, each with one device, over the sockets of this machine."""

import csv
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import worker
from PIL import Image

from tfdet import distribution, keras_multi_worker
from tfdet.data.images import load_image

BATCH = 8


@pytest.fixture(scope="module")
def data(make_dataset, tmp_path_factory):
    """A CSV file of 16 drawn images to train on and 5 to validate on; their objects are not equally many."""
    folder = tmp_path_factory.mktemp("data")
    random = np.random.default_rng(0)
    rows = []
    for i in range(21):
        corners = random.integers(0, 60, (1 + i % 4, 2))
        boxes = [(x, y, x + 40 + 5 * i, y + 60) for x, y in corners.tolist()]
        (example,) = make_dataset((160, 210, boxes, [(i + j) % 2 for j in range(len(boxes))])).examples
        Image.fromarray(load_image(example.image)).save(folder / f"{i}.png")
        names = [("red", "blue")[label] for label in example.labels]
        rows += [(f"{i}.png", *box, name, "train" if i < 16 else "val") for box, name in zip(boxes, names, strict=True)]
    with open(folder / "boxes.csv", "w", newline="") as file:
        csv.writer(file).writerows([("path", "x1", "y1", "x2", "y2", "label", "split"), *rows])
    return folder / "boxes.csv"


def start(*arguments):
    """Two workers -> their processes."""
    with socket.socket() as one, socket.socket() as other:
        for free in (one, other):
            free.bind(("localhost", 0))
        addresses = [f"localhost:{free.getsockname()[1]}" for free in (one, other)]
    processes = []
    for number in range(2):
        task = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": number}}
        environment = os.environ | {"TF_CONFIG": json.dumps(task)}
        command = [sys.executable, Path(__file__).with_name("worker.py"), *map(str, arguments)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        processes.append(subprocess.Popen(command, env=environment, **pipes))
    return processes


def ended(processes):
    """(status, stdout, lines of errors, or the end of a traceback) of each, when all have ended."""
    found = []
    for process in processes:
        try:
            out, err = process.communicate(timeout=180)
        except subprocess.TimeoutExpired:
            for other in processes:
                other.kill()
            raise
        lines = err.splitlines()
        found.append(
            (process.returncode, out, [line for line in lines if line.startswith("tfdet: error")] or lines[-9:])
        )
    return found


@pytest.fixture(scope="module")
def said(data, tmp_path_factory):
    """What two workers have written down in `worker.together`."""
    folder = tmp_path_factory.mktemp("together")
    found = ended(start("together", data, BATCH, folder))
    assert [status for status, *_ in found] == [0, 0], found
    arrays = {name: dict(np.load(folder / f"{name}.npz")) for name in ("steps", "found")}
    return json.loads((folder / "said.json").read_text()) | arrays


def test_what_workers_tell_each_other(said):
    assert said["workers"] == [0, 1]
    assert said["rows"] == [[], [0, 1, 2, 3, 4]]
    assert said["squares"] == [[1, 0], [4, 1], [9, 0], [16, 1], [25, 0]]


def test_two_workers_take_the_step_that_one_takes(said, data):
    """Of SSD, whose loss is divided by the number of positives in the whole batch."""
    expected = worker.gradients(data, BATCH)
    assert set(said["steps"]) == set(expected)
    assert any(np.abs(value).max() > 1e-3 for value in expected.values())
    for name, value in expected.items():
        np.testing.assert_allclose(said["steps"][name], value, rtol=0, atol=1e-5 * max(1e-3, np.abs(value).max()))


def test_evaluation_is_split_and_finds_the_same(said, data):
    """Each of the two looks at some of the five images."""
    expected = worker.evaluated(data)
    assert len(expected["boxes"]) > 100
    assert set(said["found"]) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(said["found"][name], value, rtol=1e-5, atol=1e-5, err_msg=name)


@pytest.fixture(scope="module")
def undisturbed(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "undisturbed"
    found = ended(start("recipe", data, BATCH, folder))
    assert [status for status, *_ in found] == [0, 0], found
    return folder, found


def test_the_chief_alone_writes_and_speaks(undisturbed):
    folder, ((_, chief, _), (_, other, _)) = undisturbed
    assert "the end" in chief
    assert "Epoch 4/4" in chief
    assert other.splitlines() == [line for line in other.splitlines() if line.startswith("worker 1 waits")] != []
    names = {path.name for path in folder.iterdir()}
    assert names >= {"best.keras", "history.csv", "settings.toml", "evaluation.json", "predictions.png", "curves.png"}
    assert len(list((folder / "tensorboard" / "train").iterdir())) == 1
    assert len((folder / "history.csv").read_text().splitlines()) == 5


@pytest.mark.parametrize("victim", [0, 1])
def test_a_worker_is_killed_and_the_same_command_goes_on(undisturbed, data, tmp_path, victim):
    expected, _ = undisturbed
    folder = tmp_path / "run"
    found = ended(start("recipe", data, BATCH, folder, f"{victim} 2"))
    assert found[victim][0] == -9
    status, _, lines = found[1 - victim]
    assert status == 2
    (line,) = lines
    assert f"worker {victim} of the cluster is gone, so worker {1 - victim} of 2 stops, too" in line
    assert len((folder / "history.csv").read_text().splitlines()) == 3
    again = ended(start("recipe", data, BATCH, folder))
    assert [status for status, *_ in again] == [0, 0], again
    assert "Epoch 3/4" in again[0][1]
    assert "Epoch 2/4" not in again[0][1]
    assert (folder / "history.csv").read_text() == (expected / "history.csv").read_text()
    assert (folder / "evaluation.json").read_text() == (expected / "evaluation.json").read_text()
    ends = [keras.models.load_model(path / "checkpoints" / "epoch-00004.keras") for path in (folder, expected)]
    for one, other in zip(*(model.get_weights() for model in ends), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_folder_with_another_run_is_refused(undisturbed, data):
    folder, _ = undisturbed
    before = sorted(folder.rglob("*"))
    found = ended(start("recipe", data, 2 * BATCH, folder))
    assert [status for status, *_ in found] == [2, 2]
    assert "has a run of other settings" in found[0][2][0]
    assert "worker 0 of the cluster is gone" in found[1][2][0]
    assert sorted(folder.rglob("*")) == before


def test_a_batch_that_cannot_be_shared_is_refused(data, tmp_path):
    for status, _, (line,) in ended(start("recipe", data, 7, tmp_path / "run")):
        assert status == 2
        assert "--batch-size must be a multiple of 2, since 2 devices of the cluster share it: 7" in line


def test_other_models_are_left_alone(untrained):
    model, _ = untrained
    keras_multi_worker.prepare_for_workers(model)
    assert "train_step" not in vars(model)
    with keras_multi_worker.alone(model):
        assert not distribution.is_cluster(model.distribute_strategy)
