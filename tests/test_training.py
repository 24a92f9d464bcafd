import dataclasses
import math
import tomllib

import keras
import numpy as np
import pytest

from tfdet import commandline, runs, ssd300, training, validation_batches
from tfdet.errors import TfdetError

SETTINGS = training.Settings(batch_size=2, steps=100, learning_rate=0.1, drops=(), warmup_steps=20, weight_decay=0.01)
HALF_COSINE = 0.1 * (1 + math.cos(math.pi / 4)) / 2


@pytest.mark.parametrize(
    ("changes", "rates"),
    [
        ({"drops": (10, 20), "warmup_steps": 0}, {0: 0.1, 10: 0.1, 11: 0.01, 20: 0.01, 21: 0.001, 99: 0.001}),
        ({"drops": (10,), "warmup_steps": 5}, {0: 0.0, 1: 0.02, 5: 0.1, 10: 0.1, 11: 0.01}),
        # A line to the peak at 20, then the half turn of a cosine over the 80 steps that are left.
        ({}, {0: 0.0, 5: 0.025, 20: 0.1, 40: HALF_COSINE, 60: 0.05, 100: 0.0}),
        ({"drops": None}, {5: 0.025, 60: 0.05}),
        ({"warmup_steps": 0}, {0: 0.1, 25: HALF_COSINE, 50: 0.05, 100: 0.0}),
        ({"steps": 10}, {0: 0.0, 5: 0.1, 10: 0.0}),  # a warm-up longer than half the run is cut
    ],
)
def test_learning_rate(changes, rates):
    schedule = training.learning_rate(dataclasses.replace(SETTINGS, **changes))
    assert {step: float(schedule(step)) for step in rates} == {
        step: pytest.approx(rate, rel=1e-4, abs=1e-7) for step, rate in rates.items()
    }


@pytest.mark.parametrize(
    ("steps", "epochs", "images", "expected"),
    [
        (100, None, 20, (10, 100)),  # (epochs, steps), 10 steps an epoch
        (104, None, 20, (10, 100)),
        (106, None, 21, (11, 110)),
        (1, None, 20, (1, 10)),
        (100, 3, 20, (3, 30)),
        (100, 0, 20, (0, 0)),
    ],
)
def test_whole_epochs(steps, epochs, images, expected):
    settings = training.with_whole_epochs(dataclasses.replace(SETTINGS, steps=steps, epochs=epochs), images)
    assert (settings.epochs, settings.steps) == expected


def test_weight_decay_pulls_kernels_and_nothing_else(make_dataset):
    """Without any object an SSD's loss is nothing but the decay: one step of SGD shows what it is the gradient of."""
    keras.utils.set_random_seed(0)
    detector = ssd300(2, "vgg_slim")
    training.decay_weights(detector, 0.01)
    detector.compile(keras.optimizers.SGD(1.0), run_eagerly=True)
    before = [variable.numpy() for variable in detector.trainable_variables]
    logs = detector.fit(validation_batches(make_dataset((50, 60, [], [])), detector, 1), verbose=0).history

    kernels = 0
    for variable, old in zip(detector.trainable_variables, before, strict=True):
        is_kernel = variable.name == "kernel"
        kernels += is_kernel
        np.testing.assert_allclose(variable.numpy(), old * (0.99 if is_kernel else 1), rtol=1e-5, atol=1e-9)
    assert 0 < kernels < len(before)
    penalty = 0.01 / 2 * sum(float(np.sum(old**2)) for old in before if old.ndim > 1)
    assert logs["loss"] == [pytest.approx(penalty, rel=1e-5)]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"data": 'csv:"quoted" \\ ü.csv', "drops": (80, 90), "cache": True, "precision": "mixed_bfloat16"},
        {"drops": (), "learning_rate": 1e-5, "epochs": 0, "test_split": "none", "seed": -1},
    ],
)
def test_written_settings_are_read_again(tmp_path, changes):
    settings = dataclasses.replace(SETTINGS, **changes)
    path = tmp_path / "settings.toml"
    runs.write_settings(dataclasses.replace(settings, config="other.toml", resume="other"), path)
    assert commandline.parse(training.Settings, ["--config", str(path)]) == dataclasses.replace(
        settings, config=str(path)
    )


def test_a_run_folder_is_made_with_its_settings(tmp_path):
    settings = dataclasses.replace(SETTINGS, output=str(tmp_path / "runs" / "one"))
    folder = runs.create_folder(settings, "ssd300")
    assert folder == tmp_path / "runs" / "one"
    assert tomllib.loads((folder / "settings.toml").read_text())["learning_rate"] == 0.1
    with pytest.raises(TfdetError, match=r"one: this run folder is not empty.*--resume"):
        runs.create_folder(settings, "ssd300")


def test_a_run_folder_has_a_name_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = runs.create_folder(dataclasses.replace(SETTINGS, data="voc:some/where"), "ssd300")
    assert folder.parent.name == "runs"
    assert folder.name.startswith("ssd300-voc-20")


@pytest.fixture
def table(tmp_path, draw_image):
    """A CSV file with 3 images in "train", one of them broken, 2 in "val" and 1 in "test"."""
    lines = ["path,x1,y1,x2,y2,label,split"]
    for i, split in enumerate(("train", "train", "train", "val", "val", "test")):
        (tmp_path / f"{i}.png").write_bytes(draw_image(40, 50, [(5, 5, 30, 30)], [0]) if i else b"")
        lines += [f"{i}.png,5,5,30,30,red,{split}"] * (1 + (i == 1))
    (tmp_path / "boxes.csv").write_text("\n".join(lines))
    return f"csv:{tmp_path / 'boxes.csv'}"


@pytest.mark.parametrize(("test_split", "names"), [(None, ["train", "val", "val"]), ("test", ["train", "val", "test"])])
def test_splits_are_loaded_and_what_is_left_out_is_said(table, capsys, test_split, names):
    settings = dataclasses.replace(SETTINGS, data=table, on_error="skip", test_split=test_split)
    splits = training.load_splits(settings)
    assert [split.name for split in splits] == [f"csv:boxes {name}" for name in names]
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "csv:boxes train: 2 images, 3 boxes; 1 left out or clipped"
    assert lines[1].startswith("  left out: ")
    assert "0.png" in lines[1]
    assert lines[2] == "csv:boxes val: 2 images, 2 boxes"
    assert len(lines) == 1 + len(set(names))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"on_error": "skip", "batch_size": 3}, "csv:boxes train: fewer images than one batch of 3"),
        ({}, "0.png"),
        ({"on_error": "skip", "val_split": "dev"}, 'no split "dev"'),
    ],
)
def test_splits_that_cannot_be_used(table, changes, message):
    with pytest.raises(TfdetError, match=message):
        training.load_splits(dataclasses.replace(SETTINGS, data=table, **changes))
