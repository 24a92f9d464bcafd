import contextlib
import csv
import dataclasses
import io
import json
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import tfdet
from tfdet import commandline, distribution, runs
from tfdet.data.shapes import CLASS_NAMES, draw_example
from tfdet.recipes import ssd300

PAPER = {"backbone": "vgg16", "backbone_weights": "imagenet", "batch_size": 32, "learning_rate": 1e-3}
VOC = {**PAPER, "priors": "voc", "steps": 120_000, "drops": (80_000, 100_000)}
COCO = {**PAPER, "priors": "coco", "steps": 400_000, "drops": (280_000, 360_000)}


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ("shapes", {"backbone": "vgg_slim", "backbone_weights": "none", "priors": "voc", "drops": ()}),
        ("voc:VOCdevkit/VOC2007", VOC),
        ("coco:coco", COCO),
        ("csv:boxes.csv", {"backbone": "mobilenet_v2", "backbone_weights": "imagenet", "epochs": 40, "drops": ()}),
    ],
)
def test_what_is_not_given_follows_from_the_data(data, expected):
    settings = ssd300.resolve(ssd300.Settings(data=data))
    assert {name: getattr(settings, name) for name in expected} == expected
    assert settings.weight_decay == 5e-4
    assert (settings.steps is None) != (settings.epochs is None)
    optional = {"data_service", "config", "output", "resume", "test_split", "steps", "epochs", "weights"}
    optional |= {"prior_sizes"}  # instead of `priors`
    assert {key for key, value in dataclasses.asdict(settings).items() if value is None} <= optional


@pytest.mark.parametrize("data", ["shapes", "voc:a", "coco:a", "csv:a"])
def test_what_is_given_is_kept(data):
    flags = "--backbone mobilenet_v2 --backbone-weights some.pth --priors coco --batch-size 3 --steps 7"
    flags += " --optimizer adam --learning-rate 0.5 --warmup-steps 0 --weight-decay 0 --test-split other --drops"
    given = commandline.parse(ssd300.Settings, ["--data", data, *flags.split()])
    assert given.drops == () and given.weight_decay == given.warmup_steps == 0  # false, but given
    assert ssd300.resolve(given) == given


@pytest.mark.parametrize("data", ["shapes", "voc:a", "csv:a"])
def test_epochs_and_steps_replace_each_other(data):
    settings = ssd300.resolve(ssd300.Settings(data=data, epochs=3))
    assert (settings.epochs, settings.steps) == (3, None)
    settings = ssd300.resolve(ssd300.Settings(data=data, steps=3))
    assert (settings.epochs, settings.steps) == (None, 3)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """A CSV file of 6 + 2 generated photographs."""
    folder = tmp_path_factory.mktemp("photographs")
    lines = ["path,x1,y1,x2,y2,label,split"]
    for i in range(8):
        example = draw_example("train", i)
        (folder / f"{i}.jpg").write_bytes(example.image)
        split = "train" if i < 6 else "val"
        for box, label in zip(example.boxes, example.labels, strict=True):
            lines.append(",".join([f"{i}.jpg", *map(str, box), CLASS_NAMES[label], split]))
        if len(example.boxes) == 0:
            lines.append(f"{i}.jpg,,,,,,{split}")
    (folder / "boxes.csv").write_text("\n".join(lines))
    return folder / "boxes.csv"


FLAGS = ["--backbone", "vgg_slim", "--backbone-weights", "none", "--steps", "9", "--batch-size", "2", "--drops"]


@pytest.fixture(scope="module")
def run(table, tmp_path_factory):
    """(the run folder that main() left, what it printed)."""
    output = tmp_path_factory.mktemp("run") / "folder"
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        flags = [*FLAGS, "--warmup-steps", "2", "--evaluate-every", "2"]
        folder = ssd300.main(["--data", f"csv:{table}", *flags, "--output", str(output)])
    assert folder == output
    return folder, printed.getvalue()


def test_the_run_folder_holds_everything(run, table):
    folder, _ = run
    settings = commandline.parse(ssd300.Settings, ["--config", str(folder / "settings.toml")])
    assert (settings.data, settings.batch_size, settings.steps, settings.drops) == (f"csv:{table}", 2, 9, ())

    with open(folder / "history.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["0", "1", "2"]
    for column in ("loss", "class_loss", "box_loss", "val_AP", "val_AP50"):
        assert all(np.isfinite(float(row[column])) for row in rows), column
    assert list((folder / "tensorboard").rglob("events.out.tfevents.*"))

    def refuse(constant):
        raise ValueError(f"{constant} is not JSON")

    figures = json.loads((folder / "evaluation.json").read_text(), parse_constant=refuse)
    assert figures["images"] == 2
    for picture in ("curves.png", "predictions.png"):
        with Image.open(folder / picture) as image:
            image.verify()


def test_its_models_can_be_used(run, table):
    folder, _ = run
    checkpoints = sorted((folder / "checkpoints").iterdir())
    assert [path.name for path in checkpoints] == ["epoch-00002.keras", "epoch-00003.keras"]
    assert int(keras.models.load_model(checkpoints[-1]).optimizer.iterations) == 9
    best = keras.models.load_model(folder / "best.keras")
    assert best.class_names == tfdet.load_dataset(f"csv:{table}", "val").class_names

    image = tf.io.read_file(str(table.parent / "6.jpg"))
    found = tf.saved_model.load(folder / "export" / "1").signatures["serving_default"](image[None])
    alone = tfdet.detect_files(best, [table.parent / "6.jpg"])[0]
    assert int(found["num_detections"][0]) == len(alone.scores)
    np.testing.assert_allclose(found["scores"][0, : len(alone.scores)], alone.scores, atol=1e-5)


def cut_off(whole, folder):
    """A copy of a run's folder as a kill before its last checkpoint leaves it."""
    shutil.copytree(whole, folder)
    last = max((folder / "checkpoints").iterdir())
    last.unlink()
    # What a kill in the middle of saving leaves is not taken for a checkpoint.
    last.with_name(f".unfinished-{last.name}").write_bytes(b"half of one")
    return folder


def assert_same_run(one, other):
    last = max((one / "checkpoints").glob("*.keras")).name
    for file in ("best.keras", f"checkpoints/{last}"):
        first, second = (keras.models.load_model(folder / file) for folder in (one, other))
        assert int(first.optimizer.iterations) == int(second.optimizer.iterations)
        for a, b in zip(first.get_weights(), second.get_weights(), strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)
        for a, b in zip(first.optimizer.variables, second.optimizer.variables, strict=True):
            np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=0, atol=1e-6)
    assert (one / "history.csv").read_bytes() == (other / "history.csv").read_bytes()


def test_a_run_that_was_cut_off_ends_as_if_it_had_not_been(run, tmp_path):
    """Its third epoch is not evaluated, neither at once nor after a cut."""
    whole, _ = run
    cut = cut_off(whole, tmp_path / "cut")
    ssd300.main(["--resume", str(cut)])
    assert_same_run(whole, cut)
    with open(cut / "history.csv", newline="") as file:
        _, second, third = csv.DictReader(file)
    assert {name: second[name] == third[name] for name in ("loss", "val_AP50")} == {"loss": False, "val_AP50": True}


def test_a_run_of_two_replicas_that_was_cut_off(table, two_replicas, tmp_path, monkeypatch):
    monkeypatch.setattr(distribution, "strategy", lambda: two_replicas)
    whole = tmp_path / "whole"
    ssd300.main(["--data", f"csv:{table}", *FLAGS, "--epochs", "2", "--output", str(whole)])
    assert (whole / "export" / "1" / "saved_model.pb").exists()
    monkeypatch.setattr(runs, "report", lambda *_: {"AP": 0.0, "AP50": 0.0})  # once is enough
    cut = cut_off(whole, tmp_path / "cut")
    ssd300.main(["--resume", str(cut)])
    assert_same_run(whole, cut)


def test_it_says_how_good_where_and_what_next(run):
    folder, printed = run
    figures = json.loads((folder / "evaluation.json").read_text())
    assert printed.startswith("csv:boxes train: 6 images, ")
    assert f"csv:boxes val (2 images): AP {figures['AP']:.3f}, AP50 {figures['AP50']:.3f}" in printed
    *_, after, last = printed.rstrip().splitlines()
    assert after == "Next:"
    assert last == f"  python -m tfdet predict photo.jpg --model {folder}/best.keras"
    assert f"{folder}/ holds best.keras" in printed


def test_it_does_not_run_over_another_run(run, table, capsys):
    folder, _ = run
    with pytest.raises(SystemExit) as stop:
        ssd300.main(["--data", f"csv:{table}", *FLAGS, "--output", str(folder)])
    assert stop.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith(f"tfdet: error: {folder}: this run folder is not empty")
    assert err.count("\n") == 1


@pytest.mark.filterwarnings("error::UserWarning")
def test_a_script_of_ones_own(table, tmp_path):
    """The lines of the README."""
    train, val = (tfdet.load_dataset(f"csv:{table}", split=split) for split in ("train", "val"))
    model = tfdet.ssd300(train.class_names, backbone="vgg_slim")
    model.compile(keras.optimizers.SGD(0.01, momentum=0.9))
    batches = tfdet.training_batches(train, model, batch_size=2)
    history = model.fit(batches, epochs=1, callbacks=[tfdet.Evaluation(val)], verbose=0).history
    assert "val_AP50" in history
    model.save(tmp_path / "shapes.keras")
    paths = [table.parent / f"{i}.jpg" for i in (6, 7)]
    found = tfdet.detect_files(keras.models.load_model(tmp_path / "shapes.keras"), paths)
    assert [one.image_id for one in found] == [str(path) for path in paths]
    picture = tfdet.drawing.draw_boxes(Image.open(paths[0]), found[0].boxes, found[0].labels, model.class_names)
    assert picture.size == Image.open(paths[0]).size


def test_no_epochs_only_evaluate(table, tmp_path):
    ssd300.main(["--data", f"csv:{table}", *FLAGS, "--epochs", "0", "--output", str(tmp_path / "run")])
    left = {path.name for path in (tmp_path / "run").iterdir()}
    assert left == {"settings.toml", "best.keras", "evaluation.json", "predictions.png", "export"}
    assert json.loads((tmp_path / "run" / "evaluation.json").read_text())["images"] == 2
