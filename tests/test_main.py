import json
import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from pycocotools.coco import COCO

import tfdet
from tfdet.__main__ import drawn_names, main, tables
from tfdet.evaluation import COCO_FIGURES, MASK_FIGURES
from tfdet.extreme_points import octagons

TALL = (150, 90, [(10, 20, 60, 70)], [0])
WIDE = (60, 160, [(80, 10, 120, 50), (5, 5, 30, 50)], [1, 0])


@pytest.fixture(scope="module")
def model(untrained):
    """The path of a model that finds much, all of it wrong."""
    return str(untrained[1])


@pytest.fixture
def photos(tmp_path, draw_image):
    """A folder: a.jpg and b.PNG, something that is no image, and a folder "more" with another a.jpg."""
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    (folder / "a.jpg").write_bytes(draw_image(*TALL, "JPEG"))
    (folder / "b.PNG").write_bytes(draw_image(*WIDE))
    (folder / "notes.txt").write_text("not an image")
    (folder / "more" / "a.jpg").write_bytes(draw_image(*WIDE, "JPEG"))
    return folder


def fails(capsys, args):
    """The one line that the command ends with; Keras' progress may stand on stdout."""
    with pytest.raises(SystemExit) as stop:
        main([str(arg) for arg in args])
    assert stop.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith("tfdet: error: ")
    assert err.count("\n") == 1
    return err


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        (["a.jpg"], {"a.jpg": "a.jpg"}),
        (["."], {"a.jpg": "a.jpg", "b.PNG": "b.jpg"}),
        (["*.jpg"], {"a.jpg": "a.jpg"}),
        (["**/*.jpg"], {"a.jpg": "a.jpg", "more/a.jpg": "a-2.jpg"}),
        (["b.PNG", "more"], {"b.PNG": "b.jpg", "more/a.jpg": "a.jpg"}),
    ],
)
def test_predict_finds_draws_and_writes(untrained, photos, tmp_path, capsys, images, expected):
    detector, model = untrained
    output = tmp_path / "new" / "found"
    main(["predict", *(str(photos / image) for image in images), "--model", str(model), "-o", str(output)])
    assert str(output) in capsys.readouterr().out
    assert {path.name for path in output.iterdir()} == {*expected.values(), "detections.json"}
    for file, drawn in expected.items():
        original, picture = Image.open(photos / file), Image.open(output / drawn)
        assert picture.size == original.size
        assert np.abs(np.asarray(picture, int) - np.asarray(original, int)).max() > 100  # something is drawn on it

    coco = COCO(output / "detections.json")
    capsys.readouterr()  # pycocotools talks
    assert [category["name"] for category in coco.loadCats(coco.getCatIds())] == ["red", "blue"]
    found = tfdet.detect_files(detector, [photos / file for file in expected])
    for number, (file, one) in enumerate(zip(expected, found, strict=True), start=1):
        image = coco.loadImgs(number)[0]
        assert Path(image["file_name"]).resolve() == (photos / file).resolve()
        assert (image["width"], image["height"]) == Image.open(photos / file).size
        annotations = coco.loadAnns(coco.getAnnIds(imgIds=number))
        kept = one.scores >= 0.3
        assert len(annotations) == kept.sum() > 0
        x, y, w, h = np.array([annotation["bbox"] for annotation in annotations]).T
        np.testing.assert_allclose(np.stack([x, y, x + w, y + h], 1), one.boxes[kept], atol=1e-2)
        np.testing.assert_allclose([annotation["area"] for annotation in annotations], w * h)
        assert [annotation["category_id"] - 1 for annotation in annotations] == one.labels[kept].tolist()
        np.testing.assert_allclose([annotation["score"] for annotation in annotations], one.scores[kept], atol=1e-5)


def test_predict_draws_and_writes_keypoints(photos, tmp_path, capsys):
    """By one that knows nothing: it is as sure of everything as of nothing."""
    image = keras.Input((None, None, 3))
    backbone = keras.Model(image, {"stack1": keras.layers.Conv2D(4, 4, 4)(image)})
    names = ("top", "left", "bottom", "right")
    detector = tfdet.centernet_pose(("red", "blue"), backbone, side=64, keypoint_names=names)
    detector.save(tmp_path / "pose.keras")
    output = tmp_path / "found"
    flags = ["--model", str(tmp_path / "pose.keras"), "-o", str(output), "--min-score", "0.08"]
    main(["predict", str(photos / "a.jpg"), *flags])
    found = json.loads((output / "detections.json").read_text())
    assert all(one["keypoints"] == list(names) and one["skeleton"] == [] for one in found["categories"])
    (expected,) = tfdet.detect_files(detector, [photos / "a.jpg"])
    assert len(found["annotations"]) == (expected.scores >= 0.08).sum() > 0
    for i, one in enumerate(found["annotations"]):
        keypoints = np.reshape(one["keypoints"], (4, 3))
        np.testing.assert_allclose(keypoints[:, :2], expected.keypoints[i], atol=1e-3)
        np.testing.assert_array_equal(keypoints[:, 2], np.where(expected.keypoint_scores[i] > 0, 2, 1))
        assert one["num_keypoints"] == 4
        (polygon,) = one["segmentation"]
        np.testing.assert_allclose(np.reshape(polygon, (8, 2)), octagons(expected.keypoints[i]), atol=1e-3)

    main(["predict", str(photos / "a.jpg"), *flags[:-1], "1.1"])
    assert json.loads((output / "detections.json").read_text())["annotations"] == []


def test_predict_shows_what_boxes_are_made_of(untrained, photos, tmp_path, capsys):
    """No picture is drawn over another, either."""
    image = keras.Input((None, None, 3))
    backbone = keras.Model(image, {"stack1": keras.layers.Conv2D(4, 4, 4)(image)})
    tfdet.centernet(("red", "blue"), backbone, side=64).save(tmp_path / "centernet.keras")
    (photos / "a_peaks.jpg").write_bytes((photos / "a.jpg").read_bytes())
    output = tmp_path / "found"
    flags = ["--peaks", "-o", str(output), "--min-score", "0.08", "--model"]
    main(["predict", str(photos / "*a*.jpg"), *flags, str(tmp_path / "centernet.keras")])
    pictures = {path.name: np.asarray(Image.open(path), int) for path in output.glob("*.jpg")}
    assert set(pictures) == {"a.jpg", "a_peaks.jpg", "a_peaks-2.jpg", "a_peaks_peaks.jpg"}
    boxes, own = pictures["a.jpg"], pictures["a_peaks-2.jpg"]
    np.testing.assert_array_equal(boxes, pictures["a_peaks.jpg"])
    np.testing.assert_array_equal(own, pictures["a_peaks_peaks.jpg"])
    original = np.asarray(Image.open(photos / "a.jpg"), int)
    assert np.abs(own - original).max() > 100 and np.abs(own - boxes).max() > 100
    said = fails(capsys, ["predict", photos / "a.jpg", *flags, untrained[1]])
    assert said == "tfdet: error: --peaks: ssd300 has none to show: its boxes are not made of peaks of heatmaps\n"


def test_predict_in_bfloat16(model, photos, tmp_path):
    scores = []
    for precision in ("float32", "bfloat16"):
        main(["predict", str(photos / "a.jpg"), "--model", model, "-o", str(tmp_path), "--precision", precision])
        found = json.loads((tmp_path / "detections.json").read_text())["annotations"]
        scores.append(np.sort([one["score"] for one in found])[-50:])
    np.testing.assert_allclose(*scores, atol=0.02)
    assert (scores[0] != scores[1]).any()


def test_predict_keeps_what_is_good_enough(model, photos, tmp_path, capsys):
    main(["predict", str(photos / "a.jpg"), "--model", model, "-o", str(tmp_path), "--min-score", "0.9999"])
    assert json.loads((tmp_path / "detections.json").read_text())["annotations"] == []
    assert "0 objects in 1 images" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("files", "names"),
    [
        (["a.jpg", "b.png"], ["a.jpg", "b.jpg"]),
        (["x/a.jpg", "y/a.jpg", "a.png"], ["a.jpg", "a-2.jpg", "a-3.jpg"]),
        (["a-2.jpg", "a.jpg", "a.png"], ["a-2.jpg", "a.jpg", "a-3.jpg"]),
    ],
)
def test_no_picture_is_drawn_over_another(files, names):
    assert drawn_names([Path(file) for file in files]) == names


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        ("missing.jpg", "no such file"),
        ("*.bmp", "no such file"),
        ("empty", "a folder without images"),
        ("text.jpg", "not an image"),
        ("cut.jpg", "not an image"),
        ("nothing.png", "not an image"),
    ],
)
def test_predict_names_what_it_cannot_read(model, photos, tmp_path, capsys, image, reason):
    (photos / "empty").mkdir()
    (photos / "text.jpg").write_text("not an image")
    (photos / "cut.jpg").write_bytes((photos / "a.jpg").read_bytes()[:1000])
    (photos / "nothing.png").write_bytes(b"")
    good = photos / "b.PNG"
    line = fails(capsys, ["predict", good, photos / image, "--model", model, "-o", tmp_path / "found"])
    assert line.startswith(f"tfdet: error: {photos / image}: ")
    assert reason in line
    assert "{{" not in line
    assert "Op:" not in line


def test_predict_wants_images(model, tmp_path, capsys):
    assert "no images" in fails(capsys, ["predict", "--model", model, "-o", tmp_path / "found"])
    assert not (tmp_path / "found").exists()


@pytest.fixture(scope="module")
def no_models(tmp_path_factory, untrained):
    """A folder of what looks like a model and is none."""
    folder = tmp_path_factory.mktemp("no models")
    other = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    other.save(folder / "other.keras")
    other.export(folder / "saved_model", verbose=False)
    (folder / "text.keras").write_text("not a model")
    (folder / "half.keras").write_bytes(untrained[1].read_bytes()[:100_000])
    with zipfile.ZipFile(folder / "archive.keras", "w") as archive:
        archive.writestr("readme.txt", "not a model")
    return folder


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("missing.keras", "no such file"),
        ("text.keras", "not a .keras model"),
        ("half.keras", "not a .keras model"),
        ("saved_model", "a folder, but not a .keras model"),
        ("archive.keras", "not a model that tfdet can load"),
        ("other.keras", "a Keras model, but not a detector"),
    ],
)
@pytest.mark.parametrize("command", ["predict", "evaluate", "export"])
def test_every_command_names_a_model_that_is_none(no_models, photos, tmp_path, capsys, command, name, reason):
    rest = {"predict": [photos], "evaluate": ["--data", "shapes"], "export": []}[command]
    output = tmp_path / "out"
    line = fails(capsys, [command, *rest, "--model", no_models / name, "-o", output])
    assert line.startswith(f"tfdet: error: {no_models / name}: ")
    assert reason in line
    assert not output.exists()


@pytest.fixture
def table(tmp_path, draw_image):
    """A CSV file with a "val" of two images, of the classes "red" and "blue"."""
    lines = ["path,x1,y1,x2,y2,label,split"]
    for name, (height, width, boxes, labels) in {"tall.png": TALL, "wide.png": WIDE}.items():
        (tmp_path / name).write_bytes(draw_image(height, width, boxes, labels))
        for box, label in zip(boxes, labels, strict=True):
            lines.append(",".join(map(str, (name, *box, ("red", "blue")[label], "val"))))
    file = tmp_path / "boxes.csv"
    file.write_text("\n".join(lines) + "\n")
    return file


def test_evaluate_prints_and_writes_the_figures(tmp_path, table, untrained, capsys):
    # The file sorts its classes, so its labels are not those of the model.
    detector, model = untrained
    output = tmp_path / "new" / "figures.json"
    main(["evaluate", "--model", str(model), "--data", f"csv:{table}", "-o", str(output)])
    figures = json.loads(output.read_text())
    assert figures == tfdet.evaluate(detector, tfdet.load_dataset(f"csv:{table}", "val"))
    assert {name: row["objects"] for name, row in figures["per_class"].items()} == {"blue": 1, "red": 2}
    out = capsys.readouterr().out
    for text in ("csv:boxes val: 2 images", "red", "blue", "all", f"{figures['AP50']:.3f}", "AR100"):
        assert text in out


def test_flip_and_scales_are_flags(tmp_path, table, monkeypatch):
    tfdet.centernet(("red", "blue"), "resnet_slim_up", side=128).save(tmp_path / "centernet.keras")
    seen = []
    monkeypatch.setattr("tfdet.evaluation.evaluate", lambda model, *_, **__: seen.append(model) or untouched)
    untouched = dict.fromkeys((*COCO_FIGURES, "VOC_AP_11point", "VOC_AP_area")) | {"images": 0, "per_class": {}}
    command = ["evaluate", "--model", str(tmp_path / "centernet.keras"), "--data", f"csv:{table}"]
    main(command)
    main([*command, "--flip", "--scales", "0.5", "1"])
    assert [(model.flip, model.scales) for model in seen] == [(False, (1.0,)), (True, (0.5, 1.0))]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--flip"], "ssd300: this detector looks at an image once"),
        (["--scales", "1", "0"], "--scales must be above 0"),
    ],
)
def test_flags_that_do_not_fit_the_model(table, model, capsys, flags, said):
    assert said in fails(capsys, ["evaluate", "--model", model, "--data", f"csv:{table}", *flags])


def test_evaluate_refuses_classes_that_the_model_does_not_know(table, model, capsys):
    table.write_text(table.read_text().replace("blue", "green"))
    line = fails(capsys, ["evaluate", "--model", model, "--data", f"csv:{table}"])
    assert all(name in line for name in (model, "csv:boxes val", "green"))
    assert "red" not in line.partition("classes")[2]


@pytest.mark.parametrize(
    ("data", "names"), [("csv:none.csv", ["none.csv"]), ("voc", ['"voc"']), ("csv:{}", ["tall.png"])]
)
def test_evaluate_names_what_is_wrong_with_the_data(table, model, capsys, data, names):
    (table.parent / "tall.png").write_text("not an image")
    line = fails(capsys, ["evaluate", "--model", model, "--data", data.format(table)])
    assert all(name in line for name in names)


def test_evaluate_says_what_it_leaves_out(table, model, capsys):
    (table.parent / "tall.png").write_text("not an image")
    main(["evaluate", "--model", model, "--data", f"csv:{table}", "--on-error", "skip"])
    out = capsys.readouterr().out
    assert "left out: " in out
    assert "tall.png" in out
    assert "csv:boxes val: 1 images" in out


def test_export_makes_the_next_version_beside_the_first(tmp_path, small, capsys):
    (tmp_path / "1").mkdir()
    line = fails(capsys, ["export", "--model", small[1], "-o", tmp_path])
    assert f"{tmp_path / '1'}: this version exists already" in line
    main(["export", "--model", str(small[1]), "-o", str(tmp_path), "--version", "2"])
    assert str(tmp_path / "2") in capsys.readouterr().out
    assert (tmp_path / "2" / "saved_model.pb").is_file()


def test_export_in_bfloat16(tmp_path, model, exported):
    main(["export", "--model", model, "-o", str(tmp_path), "--precision", "bfloat16"])
    image = tf.constant(np.random.default_rng(0).integers(0, 256, (1, 90, 80, 3)), tf.uint8)
    scores = [
        tf.saved_model.load(folder).signatures["images"](image)["scores"].numpy()[0]
        for folder in (exported / "1", tmp_path / "1")
    ]
    np.testing.assert_allclose(*scores, atol=0.02)
    assert (scores[0] != scores[1]).any()


def test_convert_writes_all_splits_and_says_what_it_leaves_out(tmp_path, table, capsys):
    lines = table.read_text().splitlines()
    (tmp_path / "broken.png").write_text("not an image")
    table.write_text("\n".join([*lines, "tall.png,1,1,9,9,red,train", "broken.png,1,1,9,9,red,train"]) + "\n")
    table.write_text(table.read_text().replace("tall.png,1,", "twin.png,1,"))
    (tmp_path / "twin.png").write_bytes((tmp_path / "tall.png").read_bytes())
    output = tmp_path / "new" / "shards"
    command = ["convert", "--data", f"csv:{table}", "-o", str(output), "--shards", "2"]
    assert "broken.png" in fails(capsys, command)
    assert "at least one" in fails(capsys, [*command[:-1], "0"])
    main(["convert", "--data", f"csv:{table}", "--split", "val", "-o", str(tmp_path / "val")])
    assert sorted(path.name for path in (tmp_path / "val").iterdir()) == [
        "label_map.pbtxt",
        "val-00000-of-00001.tfrecord",
        "val.index.npz",
        "val.manifest.json",
    ]
    capsys.readouterr()

    output = tmp_path / "all"
    main(["convert", "--data", f"csv:{table}", "-o", str(output), "--shards", "2", "--on-error", "skip"])
    out = capsys.readouterr().out
    for text in ("left out: ", "broken.png", "train: 1 images, 1 boxes, 2 shards", "val: 2 images, 3 boxes, 2 shards"):
        assert text in out
    skipped = json.loads((output / "train.manifest.json").read_text())["skipped"]
    assert [f"left out: {line}" for line in skipped] == [line for line in out.splitlines() if "broken.png" in line]
    again = tfdet.load_dataset(f"tfrecord:{output}", "val")
    assert again.class_names == ("blue", "red")
    assert [example.image_id for example in again.examples] == ["tall.png", "wide.png"]


def test_convert_says_what_is_there_already(tmp_path, table, capsys):
    output = tmp_path / "shards"
    command = ["convert", "--data", f"csv:{table}", "--split", "val", "-o", str(output)]
    assert "--workers 0: at least one" in fails(capsys, [*command, "--workers", "0"])
    main(command)
    files = {path: path.stat().st_mtime_ns for path in output.iterdir()}
    capsys.readouterr()
    main(command)
    out = capsys.readouterr().out
    assert "val: all shards are there already" in out
    assert "val: 2 images, 3 boxes, 1 shards" in out
    assert {path: path.stat().st_mtime_ns for path in output.iterdir()} == files
    assert "shards of split val are there already; remove them first" in fails(capsys, [*command, "--shards", "2"])
    table.write_text(table.read_text().replace("blue", "navy"))
    assert "are there already; remove them first" in fails(capsys, command)


def test_check_data_finds_a_changed_byte_in_a_shard(tmp_path, table, capsys):
    output = tmp_path / "shards"
    main(["convert", "--data", f"csv:{table}", "--split", "val", "-o", str(output)])
    check = ["check-data", "--data", f"tfrecord:{output}", "-o", str(tmp_path / "check")]
    with pytest.raises(SystemExit) as stop:
        main(check)
    assert stop.value.code == 0
    shard = output / "val-00000-of-00001.tfrecord"
    content = bytearray(shard.read_bytes())
    content[-2] ^= 1  # of the last record's checksum
    shard.write_bytes(content)
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(check)
    assert stop.value.code == 1
    assert f"{shard}: has changed since it was written: its SHA-256 is not that in {output}" in capsys.readouterr().out


def test_convert_says_that_masks_are_not_written(tmp_path, draw_image, capsys):
    (tmp_path / "annotations").mkdir()
    (tmp_path / "a.png").write_bytes(draw_image(*TALL))
    outline = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 20, 50, 50]}
    outline["segmentation"] = [[10, 20, 60, 20, 60, 70, 10, 70]]
    image = {"id": 1, "file_name": "a.png", "width": 90, "height": 150}
    content = {"images": [image], "annotations": [outline], "categories": [{"id": 1, "name": "red"}]}
    (tmp_path / "annotations" / "instances_val.json").write_text(json.dumps(content))
    main(["convert", "--data", f"coco_masks:{tmp_path}", "-o", str(tmp_path / "shards")])
    assert f"coco_masks:{tmp_path.name} val: keypoints and masks are not written, only boxes" in capsys.readouterr().out


def test_the_table_of_figures_shows_masks():
    figures = {"images": 1, "per_class": {}} | dict.fromkeys(COCO_FIGURES + MASK_FIGURES, 0.125)
    shown = tables(figures | dict.fromkeys(("VOC_AP_11point", "VOC_AP_area"), 0.5) | {"mask_APs": None}, "some")
    assert "mask_AP 0.125  mask_AP50 0.125  mask_AP75 0.125  mask_APs -" in shown.caption


def console_script():
    path = Path(sysconfig.get_path("scripts")) / "tfdet"
    return [str(path)] if path.exists() else None


@pytest.mark.parametrize("command", [[sys.executable, "-m", "tfdet"], console_script()], ids=["module", "script"])
def test_help_of_the_program(command):
    if command is None:
        pytest.skip("tfdet is not installed in this environment")
    root = str(Path(tfdet.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": root}
    result = subprocess.run([*command, "--help"], capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 0, result.stderr
    assert all(name in result.stdout for name in ("predict", "evaluate", "export", "convert"))
