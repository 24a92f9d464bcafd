import csv
import dataclasses
import json

import keras
import numpy as np
import pytest

from tfdet import commandline, runs, serving, training
from tfdet.data.shapes import CLASS_NAMES
from tfdet.recipes import cornernet

SHAPES = {"backbone": "hourglass_slim", "backbone_weights": "none", "side": 256, "test_size": "side", "drops": ()}
SHAPES |= {"steps": 2000, "batch_size": 8, "test_split": "test"}
PHOTOGRAPHS = {"backbone": "mobilenet_v2_up", "backbone_weights": "imagenet", "side": 320, "test_size": "side"}
PHOTOGRAPHS |= {"epochs": 30, "batch_size": 8, "drops": ()}
COCO = {"backbone": "hourglass104", "side": 511, "test_size": "own", "steps": 500_000, "drops": (450_000,)}
COCO |= {"batch_size": 49, "learning_rate": 2.5e-4, "optimizer": "adam", "weight_decay": 0.0}


@pytest.mark.parametrize(("data", "expected"), [("shapes", SHAPES), ("csv:boxes.csv", PHOTOGRAPHS), ("coco:a", COCO)])
def test_what_is_not_given_follows_from_the_data(data, expected):
    settings = cornernet.resolve(cornernet.Settings(data=data))
    assert {key: getattr(settings, key) for key in expected} == expected
    assert (settings.steps is None) != (settings.epochs is None)
    optional = {"data_service", "config", "output", "resume", "test_split", "steps", "epochs", "weights"}
    assert {key for key, value in dataclasses.asdict(settings).items() if value is None} <= optional


def tiny(weight=1.0):
    """A model that is quickly made and known by its weight."""
    return keras.Sequential(
        [keras.Input((1,)), keras.layers.Dense(1, kernel_initializer=keras.initializers.Constant(weight))]
    )


def test_which_detector_is_built(monkeypatch, make_dataset):
    asked = []
    monkeypatch.setattr(cornernet, "cornernet", lambda *all: asked.append(all) or tiny())
    given = {"backbone": "hourglass54", "backbone_weights": "none", "side": 95, "test_size": "own"}
    settings = cornernet.resolve(cornernet.Settings(**given, learning_rate=0.5, warmup_steps=0))
    model = cornernet.build(settings, make_dataset())
    assert asked == [(("red", "blue"), "hourglass54", None, 95, True)]
    assert isinstance(model.optimizer, keras.optimizers.Adam)
    assert float(model.optimizer.learning_rate) == 0.5


FLAGS = ["--backbone", "resnet_slim_up", "--backbone-weights", "none", "--side", "63", "--batch-size", "2"]
FLAGS += ["--steps", "2", "--warmup-steps", "1", "--drops"]

WRONG = {
    "a side that the network cannot take": (["--side", "100"], "multiple of 32, or one pixel less"),
    "weights for a network from nothing": (["--backbone-weights", "some.pth"], "resnet_slim_up has no published"),
}


@pytest.mark.parametrize(("flags", "message"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_ends_with_one_line(table, tmp_path, capsys, monkeypatch, flags, message):
    monkeypatch.setattr(training, "fit", lambda *_: pytest.fail("training began"))
    with pytest.raises(SystemExit) as stop:
        cornernet.main(["--data", f"csv:{table}", *FLAGS, "--output", str(tmp_path / "run"), *flags])
    assert stop.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith("tfdet: error: ") and message in err
    assert err.count("\n") == 1


def test_a_run_leaves_everything(table, tmp_path, monkeypatch):
    monkeypatch.setattr(serving, "export", lambda model, folder: folder.mkdir())
    output = tmp_path / "run"
    assert cornernet.main(["--data", f"csv:{table}", *FLAGS, "--output", str(output)]) == output
    settings = commandline.parse(cornernet.Settings, ["--config", str(output / "settings.toml")])
    assert (settings.side, settings.test_size, settings.epochs, settings.steps) == (63, "side", 1, 2)
    with open(output / "history.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    for column in ("loss", "heatmap_loss", "pull_loss", "push_loss", "offset_loss", "val_AP"):
        assert np.isfinite(float(row[column])), column
    assert json.loads((output / "evaluation.json").read_text())["images"] == 2
    best = keras.models.load_model(output / "best.keras")
    assert (best.settings["side"], best.augmentation.size) == (63, 63)


def test_released_weights_are_evaluated_without_training(table, tmp_path, monkeypatch):
    asked, reported = [], []
    monkeypatch.setattr(cornernet, "cornernet_original", lambda *all: asked.append(all) or tiny(3.0))
    monkeypatch.setattr(runs, "report", lambda *all: reported.append(all) or {"AP": 0.0, "AP50": 0.0})
    flags = ["--data", f"csv:{table}", *FLAGS, "--weights", "released.pkl", "--epochs", "0", "--test-size", "own"]
    cornernet.main([*flags, "--output", str(tmp_path / "run")])
    ((path, names, *sizes),) = asked
    assert (path, set(names), sizes) == ("released.pkl", set(CLASS_NAMES), [63, True])
    assert float(reported[0][0].layers[0].kernel[0, 0]) == 3
