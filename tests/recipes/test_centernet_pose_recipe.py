import csv
import dataclasses
import json
from pathlib import Path

import keras
import numpy as np
import pytest

from tfdet import commandline, serving, training
from tfdet.data.shapes import CLASS_NAMES, draw_example
from tfdet.recipes import centernet_pose
from tfdet.skeleton import EXTREME_POINTS

SHAPES = {"backbone": "resnet_slim_up", "backbone_weights": "none", "side": 256, "test_size": "side", "drops": ()}
SHAPES |= {"steps": 2000, "batch_size": 8, "test_split": "test"}
# 140 epochs of COCO's 118,287 images, with drops after 90 and 120.
COCO = {"backbone": "dla34", "side": 512, "test_size": "own", "batch_size": 128, "learning_rate": 5e-4}
COCO |= {
    "backbone_weights": "ctdet_coco_dla_2x.pth",
    "steps": 140 * 924,
    "drops": (90 * 924, 120 * 924),
    "warmup_steps": 0,
    "weight_decay": 0.0,
}


@pytest.mark.parametrize(("data", "expected"), [("shapes", SHAPES), ("coco_keypoints:coco", COCO)])
def test_what_is_not_given_follows_from_the_data(data, expected):
    settings = centernet_pose.resolve(centernet_pose.Settings(data=data))
    assert {key: getattr(settings, key) for key in expected} == expected
    assert 118_287 // 128 == 924
    optional = {"data_service", "config", "output", "resume", "test_split", "epochs", "weights"}
    assert {key for key, value in dataclasses.asdict(settings).items() if value is None} <= optional


@pytest.mark.parametrize(("file", "batch_size", "epochs"), [("coco_dla_3x", 128, 320), ("coco_hourglass_1x", 24, 50)])
def test_the_settings_files_are_the_published_schedules(file, batch_size, epochs):
    path = Path(__file__).parents[2] / "recipes" / "centernet_pose" / f"{file}.toml"
    settings = commandline.parse(centernet_pose.Settings, ["--config", str(path), "--data", "coco_keypoints:a"])
    assert (settings.batch_size, settings.steps) == (batch_size, epochs * (118_287 // batch_size))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """COCO's JSON of 4 + 2 generated photographs with keypoints."""
    folder = tmp_path_factory.mktemp("keypoints")
    (folder / "annotations").mkdir()
    for split, numbers in (("train", range(4)), ("val", range(4, 6))):
        images, annotations = [], []
        (folder / f"{split}2017").mkdir()
        for i in numbers:
            example = draw_example("train", i)
            (folder / f"{split}2017" / f"{i}.jpg").write_bytes(example.image)
            images.append({"id": i, "file_name": f"{i}.jpg", "width": example.width, "height": example.height})
            for box, label, keypoints in zip(example.boxes, example.labels, example.keypoints, strict=True):
                x1, y1, x2, y2 = box.tolist()
                one = {
                    "id": len(annotations),
                    "image_id": i,
                    "category_id": int(label),
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                }
                annotations.append(one | {"keypoints": keypoints.ravel().tolist()})
        categories = [{"id": i, "name": name, "keypoints": EXTREME_POINTS} for i, name in enumerate(CLASS_NAMES)]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (folder / f"annotations/person_keypoints_{split}2017.json").write_text(json.dumps(content))
    return folder


FLAGS = ["--backbone", "resnet_slim_up", "--backbone-weights", "none", "--side", "64", "--test-size", "side"]
FLAGS += ["--batch-size", "2", "--steps", "2", "--warmup-steps", "1", "--drops"]


def test_a_run_leaves_everything(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(serving, "export", lambda model, folder: folder.mkdir())
    output = tmp_path / "run"
    assert centernet_pose.main(["--data", f"coco_keypoints:{folder}", *FLAGS, "--output", str(output)]) == output
    settings = commandline.parse(centernet_pose.Settings, ["--config", str(output / "settings.toml")])
    assert (settings.side, settings.epochs, settings.steps) == (64, 1, 2)
    with open(output / "history.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    for column in ("loss", "joints_loss", "joint_heatmap_loss", "joint_offset_loss", "val_AP", "val_keypoint_AP"):
        assert np.isfinite(float(row[column])), column
    assert "keypoint_AP50" in json.loads((output / "evaluation.json").read_text())
    assert "keypoints: AP 0.0" in capsys.readouterr().out
    best = keras.models.load_model(output / "best.keras")
    assert (best.keypoint_names, best.class_names) == (EXTREME_POINTS, CLASS_NAMES)


WRONG = {
    "data without keypoints": ("csv:{table}", [], "has no keypoints: --data coco_keypoints:DIR reads some"),
    "weights of people": ("coco_keypoints:{folder}", ["--weights", "a.pth"], "a.pth: is for the joints of people"),
    "a backbone that is not there": ("coco_keypoints:{folder}", ["--backbone", "vgg_slim"], "--backbone"),
    "no such weights": ("coco_keypoints:{folder}", ["--backbone", "dla34", "--backbone-weights", "no.pth"], "no.pth"),
}


@pytest.mark.parametrize(("data", "flags", "message"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_ends_with_one_line(table, folder, tmp_path, capsys, monkeypatch, data, flags, message):
    monkeypatch.setattr(training, "fit", lambda *_: pytest.fail("training began"))
    data = data.format(table=table, folder=folder)
    with pytest.raises(SystemExit) as stop:
        centernet_pose.main(["--data", data, *FLAGS[:-1], "--output", str(tmp_path / "run"), *flags])
    assert stop.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith("tfdet: error: ") and message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "run").exists()
