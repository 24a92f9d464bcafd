import csv
import dataclasses
import json

import keras
import numpy as np
import pytest

from tfdet import commandline, runs, serving, training
from tfdet.data.shapes import CLASS_NAMES
from tfdet.recipes import centernet

SHAPES = {"backbone": "resnet_slim_up", "backbone_weights": "none", "side": 256, "test_size": "side", "drops": ()}
SHAPES |= {"steps": 2000, "batch_size": 8, "test_split": "test"}
AUTHORS = {"backbone": "resnet18_dcn", "backbone_weights": "imagenet", "weight_decay": 0.0}
PHOTOGRAPHS = AUTHORS | {
    "backbone": "mobilenet_v2_up",
    "side": 384,
    "test_size": "side",
    "epochs": 30,
    "batch_size": 8,
    "drops": (),
}
# 36,190 steps are 70 epochs of the 16,551 images of VOC 2007 and 2012; 145,180 are 140 of COCO's 118,287.
VOC = AUTHORS | {"side": 384, "test_size": "side", "steps": 36_190, "drops": (23_265, 31_020), "batch_size": 32}
VOC |= {"learning_rate": 1.25e-4}
COCO = AUTHORS | {"side": 512, "test_size": "own", "steps": 145_180, "drops": (93_330, 124_440), "batch_size": 114}
COCO |= {"learning_rate": 5e-4}


@pytest.mark.parametrize(
    ("data", "expected"), [("shapes", SHAPES), ("csv:boxes.csv", PHOTOGRAPHS), ("coco:coco", COCO), ("voc:a", VOC)]
)
def test_what_is_not_given_follows_from_the_data(data, expected):
    settings = centernet.resolve(centernet.Settings(data=data))
    assert {key: getattr(settings, key) for key in expected} == expected
    assert (settings.steps is None) != (settings.epochs is None)
    optional = {"data_service", "config", "output", "resume", "test_split", "steps", "epochs", "weights"}
    assert {key for key, value in dataclasses.asdict(settings).items() if value is None} <= optional


@pytest.mark.parametrize("data", ["shapes", "coco:a", "csv:a"])
def test_what_is_given_is_kept(data):
    flags = "--backbone dla34 --backbone-weights some.pth --side 128 --test-size side --batch-size 3 --steps 7"
    flags += " --optimizer sgd --learning-rate 0.5 --warmup-steps 0 --weight-decay 0.1 --test-split other --drops"
    given = commandline.parse(centernet.Settings, ["--data", data, *flags.split()])
    assert (given.side, given.test_size, given.drops) == (128, "side", ())
    assert centernet.resolve(given) == given


def tiny(weight=1.0):
    """A model that is quickly made and known by its weight."""
    return keras.Sequential(
        [keras.Input((1,)), keras.layers.Dense(1, kernel_initializer=keras.initializers.Constant(weight))]
    )


@pytest.mark.parametrize("weights", ["none", "some.pth"])
def test_which_detector_is_built(monkeypatch, make_dataset, weights):
    asked = []
    monkeypatch.setattr(centernet, "centernet", lambda *all: asked.append(all) or tiny())
    given = {"backbone": "dla34", "backbone_weights": weights, "side": 96, "test_size": "own", "learning_rate": 0.5}
    settings = centernet.resolve(centernet.Settings(**given, warmup_steps=0))
    model = centernet.build(settings, make_dataset())
    assert asked == [(("red", "blue"), "dla34", None if weights == "none" else weights, 96, True)]
    assert isinstance(model.optimizer, keras.optimizers.Adam)
    assert float(model.optimizer.learning_rate) == 0.5


FLAGS = ["--backbone", "resnet_slim_up", "--backbone-weights", "none", "--side", "64", "--batch-size", "2"]
FLAGS += ["--steps", "2", "--warmup-steps", "1", "--drops"]

WRONG = {
    "no side": (["--side", "0"], "--side must be at least 1"),
    "a side that the network cannot take": (["--side", "100"], "multiple"),
    "a backbone that is not there": (["--backbone", "vgg_slim"], "--backbone"),
    "a file of weights that is not there": (["--weights", "nowhere.pth", "--epochs", "0"], "nowhere.pth: no such file"),
    "weights for a network from nothing": (["--backbone-weights", "imagenet"], "resnet_slim_up has no published"),
}


@pytest.mark.parametrize(("flags", "message"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_ends_with_one_line(table, tmp_path, capsys, monkeypatch, flags, message):
    monkeypatch.setattr(training, "fit", lambda *_: pytest.fail("training began"))
    with pytest.raises(SystemExit) as stop:
        centernet.main(["--data", f"csv:{table}", *FLAGS, "--output", str(tmp_path / "run"), *flags])
    assert stop.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith("tfdet: error: ") and message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_run_leaves_everything(table, tmp_path, monkeypatch):
    monkeypatch.setattr(serving, "export", lambda model, folder: folder.mkdir())
    output = tmp_path / "run"
    assert centernet.main(["--data", f"csv:{table}", *FLAGS, "--output", str(output)]) == output
    settings = commandline.parse(centernet.Settings, ["--config", str(output / "settings.toml")])
    assert (settings.side, settings.test_size, settings.epochs, settings.steps) == (64, "side", 1, 2)
    with open(output / "history.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    for column in ("loss", "heatmap_loss", "size_loss", "offset_loss", "val_AP"):
        assert np.isfinite(float(row[column])), column
    assert json.loads((output / "evaluation.json").read_text())["images"] == 2
    best = keras.models.load_model(output / "best.keras")
    assert (best.settings["side"], best.augmentation.size) == (64, 64)


def test_released_weights_are_evaluated_without_training(table, tmp_path, monkeypatch):
    asked, reported = [], []
    monkeypatch.setattr(centernet, "centernet_original", lambda *all: asked.append(all) or tiny(3.0))
    monkeypatch.setattr(runs, "report", lambda *all: reported.append(all) or {"AP": 0.0, "AP50": 0.0})
    flags = ["--data", f"csv:{table}", *FLAGS, "--weights", "released.pth", "--epochs", "0", "--test-size", "own"]
    centernet.main([*flags, "--output", str(tmp_path / "run")])
    ((path, names, *sizes),) = asked
    assert (path, set(names), sizes) == ("released.pth", set(CLASS_NAMES), [64, True])
    assert float(reported[0][0].layers[0].kernel[0, 0]) == 3
