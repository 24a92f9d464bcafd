"""Three recipes at once: they differ in the detector, and in little else."""

import csv
import dataclasses
import json
import shutil

import keras
import numpy as np
import pytest
from PIL import Image

import tfdet
from tfdet import commandline, runs, serving, training
from tfdet.recipes import faster_rcnn, fcos, retinanet

RECIPES = {"faster_rcnn": faster_rcnn, "retinanet": retinanet, "fcos": fcos}
PARTS = {"faster_rcnn": ("rpn_class", "rpn_box", "class", "box"), "retinanet": ("class", "box")}
PARTS["fcos"] = ("class", "box", "centerness")


@pytest.fixture(scope="module", params=RECIPES)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def recipe(name):
    return RECIPES[name]


SHAPES = {"backbone": "resnet_slim", "backbone_weights": "none", "steps": 620, "test_split": "test", "drops": ()}
SHAPES |= {"short_sides": (192, 224, 256), "long_side": 400, "batch_size": 8}
PHOTOGRAPHS = {"backbone": "mobilenet_v2", "backbone_weights": "imagenet", "epochs": 15, "drops": ()}
PHOTOGRAPHS |= {"short_sides": (224, 256, 288), "long_side": 480, "batch_size": 8}
# detectron2's schedule "1x": 90,000 steps of 16 images, a tenth of the rate after 60,000 and 80,000.
PAPER = {"backbone": "resnet50", "backbone_weights": "imagenet", "steps": 90_000, "drops": (60_000, 80_000)}
PAPER |= {"short_sides": (640, 672, 704, 736, 768, 800), "long_side": 1333, "batch_size": 16, "warmup_steps": 1000}
FCOS_PAPER = {**PAPER, "short_sides": (800,), "warmup_steps": 500}  # tianzhi0549/FCOS, fcos_R_50_FPN_1x.yaml


@pytest.mark.parametrize(
    ("data", "expected"), [("shapes", SHAPES), ("csv:boxes.csv", PHOTOGRAPHS), ("coco:coco", PAPER), ("voc:a", PAPER)]
)
def test_what_is_not_given_follows_from_the_data(name, recipe, data, expected):
    settings = recipe.resolve(recipe.Settings(data=data))
    expected = FCOS_PAPER if (name, expected) == ("fcos", PAPER) else expected
    assert {key: getattr(settings, key) for key in expected} == expected
    if expected in (PAPER, FCOS_PAPER):
        rate = {"faster_rcnn": 0.02, "retinanet": 0.01, "fcos": 0.01}[name]
        assert (settings.optimizer, settings.learning_rate) == ("sgd", rate)
    else:
        assert settings.optimizer == ("sgd" if name == "faster_rcnn" else "adam")
    assert settings.weight_decay == 1e-4
    assert (settings.steps is None) != (settings.epochs is None)
    optional = {"data_service", "config", "output", "resume", "test_split", "steps", "epochs", "weights"}
    optional |= set() if name == "fcos" else {"anchor_sizes"}  # others than the detector's own
    assert {key for key, value in dataclasses.asdict(settings).items() if value is None} <= optional


@pytest.mark.parametrize("data", ["shapes", "coco:a", "csv:a"])
def test_what_is_given_is_kept(recipe, data):
    flags = "--backbone resnet18 --backbone-weights some.pth --short-sides 96 64 --long-side 128 --batch-size 3"
    flags += " --steps 7 --optimizer adam --learning-rate 0.5 --warmup-steps 0 --weight-decay 0 --test-split o --drops"
    version = ["--version", "original"] if recipe is fcos else []
    given = commandline.parse(recipe.Settings, ["--data", data, *version, *flags.split()])
    assert (given.short_sides, given.long_side, given.drops, given.warmup_steps) == ((96, 64), 128, (), 0)
    assert recipe.resolve(given) == given


FLAGS = ["--backbone", "resnet_slim", "--backbone-weights", "none", "--short-sides", "64", "96", "--long-side", "128"]
FLAGS += ["--batch-size", "2", "--steps", "2", "--warmup-steps", "1", "--drops"]


WRONG = {
    "no short side": (["--short-sides"], "--short-sides"),
    "a short side of nothing": (["--short-sides", "64", "0"], "--short-sides must be at least 1"),
    "a flag that is not there": (["--nonsense", "1"], "--nonsense"),
    "a backbone that is not there": (["--backbone", "vgg_slim"], "--backbone"),
    "a short side that is no number": (["--short-sides", "64", "wide"], "--short-sides"),
    "a long side that is no number": (["--long-side", "1e3"], "--long-side"),
    "a file of weights that is not there": (["--weights", "nowhere.pth", "--epochs", "0"], "nowhere.pth: no such file"),
    "weights for a network from nothing": (["--backbone-weights", "imagenet"], "resnet_slim has no published weights"),
    "a data set that is not there": (["--data", "csv:nowhere.csv"], "nowhere.csv"),
    "a batch that is too large": (["--batch-size", "7"], "csv:boxes train: fewer images than one batch of 7"),
    "a config that is not there": (["--config", "nowhere.toml"], "nowhere.toml"),
}


@pytest.mark.parametrize(("flags", "message"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_ends_with_one_line(recipe, table, tmp_path, capsys, monkeypatch, flags, message):
    monkeypatch.setattr(training, "fit", lambda *_: pytest.fail("training began"))
    with pytest.raises(SystemExit) as stop:
        recipe.main(["--data", f"csv:{table}", *FLAGS, "--output", str(tmp_path / "run"), *flags])
    assert stop.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith("tfdet: error: ") and message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_only_faster_rcnn_has_its_original_backbone(capsys):
    assert commandline.parse(faster_rcnn.Settings, ["--backbone", "vgg16"]).backbone == "vgg16"
    with pytest.raises(SystemExit):
        commandline.parse(retinanet.Settings, ["--backbone", "vgg16"])
    assert "vgg16" in capsys.readouterr().err


def tiny(weight=1.0):
    """A model that is quickly made and known by its weight."""
    return keras.Sequential(
        [keras.Input((1,)), keras.layers.Dense(1, kernel_initializer=keras.initializers.Constant(weight))]
    )


BUILDERS = {
    ("faster_rcnn", "vgg16"): "faster_rcnn_vgg16",  # the original, on one map
    ("faster_rcnn", "resnet18"): "faster_rcnn_fpn",
    ("retinanet", "resnet18"): "retinanet",
    ("fcos", "resnet18"): "fcos",
}


@pytest.mark.parametrize("weights", ["none", "imagenet", "some.pth"])
@pytest.mark.parametrize(("recipe", "backbone", "function"), [(*key, value) for key, value in BUILDERS.items()])
def test_which_detector_is_built(monkeypatch, make_dataset, recipe, backbone, function, weights):
    asked = []
    for each in {key: value for key, value in BUILDERS.items() if key[0] == recipe}.values():
        monkeypatch.setattr(
            RECIPES[recipe], each, lambda *all, each=each, **named: asked.append((each, *all, named)) or tiny()
        )
    given = {"backbone": backbone, "backbone_weights": weights, "short_sides": (64, 96), "long_side": 128}
    settings = RECIPES[recipe].resolve(
        RECIPES[recipe].Settings(**given, optimizer="sgd", learning_rate=0.5, warmup_steps=0)
    )
    model = RECIPES[recipe].build(settings, make_dataset())
    backbone = () if function == "faster_rcnn_vgg16" else (backbone,)
    last = {"fcos": (True, {}), "faster_rcnn_fpn": (None, {}), "retinanet": ({"anchor_sizes": None},)}
    given = None if weights == "none" else weights, (64, 96), 128, *last.get(function, ({},))
    assert asked == [(function, ("red", "blue"), *backbone, *given)]
    assert (model.optimizer.momentum, float(model.optimizer.learning_rate)) == (0.9, 0.5)


@pytest.mark.parametrize(("flags", "improved"), [([], True), (["--version", "original"], False)])
def test_fcos_has_two_versions(make_dataset, monkeypatch, flags, improved):
    asked = []
    monkeypatch.setattr(fcos, "fcos", lambda *all: asked.append(all) or tiny())
    fcos.build(fcos.resolve(commandline.parse(fcos.Settings, flags)), make_dataset())
    assert asked == [(("red", "blue"), "resnet_slim", None, (192, 224, 256), 400, improved)]


@pytest.fixture(scope="module")
def run(recipe, table, tmp_path_factory):
    """The run folder that main() left, after two epochs of two steps; its export, which takes long, is left out."""
    output = tmp_path_factory.mktemp("run") / "folder"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(serving, "export", lambda model, folder: folder.mkdir())
        folder = recipe.main(["--data", f"csv:{table}", *FLAGS, "--epochs", "2", "--output", str(output)])
    assert folder == output
    return folder


def test_the_run_folder_holds_everything(run, name, recipe, table):
    settings = commandline.parse(recipe.Settings, ["--config", str(run / "settings.toml")])
    assert (settings.data, settings.short_sides, settings.long_side) == (f"csv:{table}", (64, 96), 128)
    assert (settings.epochs, settings.steps) == (2, 4)
    with open(run / "history.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["0", "1"]
    for column in ("loss", *(f"{part}_loss" for part in PARTS[name]), "val_AP", "val_AP50"):
        assert all(np.isfinite(float(row[column])) for row in rows), column
    assert list((run / "tensorboard").rglob("events.out.tfevents.*"))
    assert [path.name for path in sorted((run / "checkpoints").iterdir())] == ["epoch-00001.keras", "epoch-00002.keras"]
    assert json.loads((run / "evaluation.json").read_text())["images"] == 2
    assert (run / "export").is_dir()
    for picture in ("curves.png", "predictions.png"):
        with Image.open(run / picture) as image:
            image.verify()


def test_its_best_model_is_what_was_asked_for(run, table):
    best = keras.models.load_model(run / "best.keras")
    assert best.class_names == tfdet.load_dataset(f"csv:{table}", "val").class_names
    assert (best.resizer.short, best.resizer.long) == (96, 128)
    assert best.augmentation.short_sides == (64, 96)


@pytest.mark.parametrize("name", ["faster_rcnn"], indirect=True)  # the one whose loss draws lots
def test_a_run_that_was_cut_off_ends_as_if_it_had_not_been(run, recipe, tmp_path, monkeypatch):
    """With the same weights: so the same samples were drawn, of images of the same sizes."""
    monkeypatch.setattr(runs, "report", lambda *_: {"AP": 0.0, "AP50": 0.0})  # is no part of this
    cut = tmp_path / "cut"
    shutil.copytree(run, cut)
    (cut / "checkpoints" / "epoch-00002.keras").unlink()
    recipe.main(["--resume", str(cut)])
    models = [keras.models.load_model(folder / "checkpoints" / "epoch-00002.keras") for folder in (run, cut)]
    assert [int(model.optimizer.iterations) for model in models] == [4, 4]
    for a, b in zip(*(model.get_weights() for model in models), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)
    assert (run / "history.csv").read_bytes() == (cut / "history.csv").read_bytes()


LOADERS = {name: f"{name}_torchvision" for name in RECIPES}


def test_published_weights_are_evaluated_without_training(name, recipe, table, tmp_path, monkeypatch):
    """They go to their own loader, with the names of the classes and the size of the fed image."""
    asked, reported = [], []
    monkeypatch.setattr(recipe, LOADERS[name], lambda *all: asked.append(all) or tiny(3.0))
    monkeypatch.setattr(runs, "report", lambda *all: reported.append(all) or {"AP": 0.0, "AP50": 0.0})
    flags = ["--data", f"csv:{table}", *FLAGS, "--weights", "published.pth", "--epochs", "0"]
    folder = recipe.main([*flags, "--output", str(tmp_path / "run")])
    names = dict(enumerate(tfdet.load_dataset(f"csv:{table}", "val").class_names, 1))
    assert asked == [("published.pth", names, (64, 96), 128)]
    assert {path.name for path in folder.iterdir()} == {"settings.toml", "best.keras"}
    for model in (keras.models.load_model(folder / "best.keras"), reported[0][0]):
        assert float(model.layers[0].kernel[0, 0]) == 3
    assert reported[0][1].name == "csv:boxes val"
