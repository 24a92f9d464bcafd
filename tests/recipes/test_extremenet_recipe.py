import csv
import dataclasses
import json

import keras
import numpy as np
import pytest

from tfdet import commandline, runs, serving, training
from tfdet.data.shapes import CLASS_NAMES, draw_example
from tfdet.recipes import extremenet

SHAPES = {"backbone": "hourglass_slim", "backbone_weights": "none", "side": 256, "test_size": "side", "drops": ()}
SHAPES |= {"steps": 2000, "batch_size": 8, "test_split": "test"}
COCO = {"backbone": "hourglass104", "backbone_weights": "CornerNet_500000.pkl", "side": 511, "test_size": "own"}
COCO |= {"steps": 250_000, "drops": (200_000,), "batch_size": 24, "learning_rate": 2.5e-4, "optimizer": "adam"}


@pytest.mark.parametrize(("data", "expected"), [("shapes", SHAPES), ("coco_masks:a", COCO)])
def test_what_is_not_given_follows_from_the_data(data, expected):
    settings = extremenet.resolve(extremenet.Settings(data=data))
    assert {key: getattr(settings, key) for key in expected} == expected
    optional = {"data_service", "config", "output", "resume", "test_split", "epochs", "weights"}
    assert {key for key, value in dataclasses.asdict(settings).items() if value is None} <= optional


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """COCO's JSON of 4 + 2 generated photographs, whose objects have the outline of their extreme points."""
    folder = tmp_path_factory.mktemp("masks")
    (folder / "annotations").mkdir()
    for split, numbers in (("train", range(4)), ("val", range(4, 6))):
        images, annotations = [], []
        (folder / f"{split}2017").mkdir()
        for i in numbers:
            example = draw_example("train", i)
            (folder / f"{split}2017" / f"{i}.jpg").write_bytes(example.image)
            images.append({"id": i, "file_name": f"{i}.jpg", "width": example.width, "height": example.height})
            for box, label, points in zip(example.boxes, example.labels, example.keypoints, strict=True):
                x1, y1, x2, y2 = box.tolist()
                one = {"id": len(annotations), "image_id": i, "category_id": int(label), "iscrowd": 0}
                one |= {"bbox": [x1, y1, x2 - x1, y2 - y1], "segmentation": [points[:, :2].ravel().tolist()]}
                annotations.append(one)
        categories = [{"id": i, "name": name} for i, name in enumerate(CLASS_NAMES)]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (folder / f"annotations/instances_{split}2017.json").write_text(json.dumps(content))
    return folder


FLAGS = ["--backbone", "resnet_slim_up", "--backbone-weights", "none", "--side", "63", "--test-size", "side"]
FLAGS += ["--batch-size", "2", "--steps", "2", "--warmup-steps", "1", "--drops"]


def test_a_run_leaves_everything(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(serving, "export", lambda model, folder: folder.mkdir())
    output = tmp_path / "run"
    assert extremenet.main(["--data", f"coco_masks:{folder}", *FLAGS, "--output", str(output)]) == output
    settings = commandline.parse(extremenet.Settings, ["--config", str(output / "settings.toml")])
    assert (settings.side, settings.epochs, settings.steps) == (63, 1, 2)
    with open(output / "history.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    for column in ("loss", "heatmap_loss", "offset_loss", "val_AP", "val_keypoint_AP", "val_mask_AP"):
        assert np.isfinite(float(row[column])), column
    assert "mask_AP50" in json.loads((output / "evaluation.json").read_text())
    assert "masks: AP 0.0" in capsys.readouterr().out
    best = keras.models.load_model(output / "best.keras")
    assert (best.settings["side"], best.augmentation.size, best.class_names) == (63, 63, CLASS_NAMES)


def test_released_weights_are_evaluated_without_training(folder, tmp_path, monkeypatch):
    asked, reported = [], []
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    monkeypatch.setattr(extremenet, "extremenet_original", lambda *all: asked.append(all) or model)
    monkeypatch.setattr(runs, "report", lambda *all: reported.append(all) or {"AP": 0.0, "AP50": 0.0})
    flags = ["--data", f"coco_masks:{folder}", *FLAGS, "--weights", "released.pkl", "--epochs", "0"]
    extremenet.main([*flags, "--output", str(tmp_path / "run")])
    assert asked == [("released.pkl", CLASS_NAMES, 63, False)]
    assert reported[0][0] is model


WRONG = {
    "boxes only": ("csv:{table}", [], "has no extreme points: --data coco_masks:DIR reads those of outlines"),
    "a side that the network cannot take": ("coco_masks:{folder}", ["--side", "100"], "or one pixel less"),
    "no such weights": ("coco_masks:{folder}", ["--backbone", "dla34", "--backbone-weights", "no.pth"], "no.pth"),
}


@pytest.mark.parametrize(("data", "flags", "message"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_ends_with_one_line(table, folder, tmp_path, capsys, monkeypatch, data, flags, message):
    monkeypatch.setattr(training, "fit", lambda *_: pytest.fail("training began"))
    data = data.format(table=table, folder=folder)
    with pytest.raises(SystemExit) as stop:
        extremenet.main(["--data", data, *FLAGS[:-1], "--output", str(tmp_path / "run"), *flags])
    assert stop.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith("tfdet: error: ") and message in err
    assert err.count("\n") == 1
