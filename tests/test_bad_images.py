"""Images that turn out broken when they are decoded: what training, prediction and check-data make of them."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tfdet import checking, drawing, inference, training
from tfdet.__main__ import main
from tfdet.data import load_dataset, split_names
from tfdet.data.pipeline import training_batches
from tfdet.detectors.ssd import ssd300
from tfdet.errors import DataError, TfdetError


@pytest.fixture
def photos(tmp_path, draw_image):
    """csv:FILE of six photographs in "train" and two in "val"; train's 3.jpg is cut in half, its header is whole."""
    lines = ["path,x1,y1,x2,y2,label,split"]
    for number in range(8):
        encoded = draw_image(40 + number, 60, [(5, 5, 30, 30)], [0], "JPEG")
        (tmp_path / f"{number}.jpg").write_bytes(encoded[: len(encoded) // (2 if number == 3 else 1)])
        lines.append(f"{number}.jpg,5,5,30,30,red,{'train' if number < 6 else 'val'}")
    (tmp_path / "boxes.csv").write_text("\n".join(lines))
    return f"csv:{tmp_path / 'boxes.csv'}"


class FakeDetector(SimpleNamespace):
    """As much of a detector as training needs; its `fit` reads one epoch."""

    def __init__(self):
        super().__init__(optimizer=SimpleNamespace(iterations=tf.Variable(0)))

    @staticmethod
    def augmentation(image, boxes, labels, seed):
        return tf.image.resize(image, (8, 8)), boxes, labels

    wants_crowds, keypoint_names = False, ()

    @staticmethod
    def encode(image, boxes, labels, seed):
        return {"boxes": boxes}

    def fit(self, batches, steps_per_epoch, **options):
        self.seen = [len(images) for images, _ in batches.take(steps_per_epoch)]


def train(spec, on_error, folder):
    settings = training.Settings(data=spec, on_error=on_error, batch_size=1, epochs=1)
    splits = training.load_splits(settings)
    settings = training.with_whole_epochs(settings, len(splits[0]))
    detector = FakeDetector()
    training.fit(detector, *splits[:2], settings, folder)
    return detector


def test_training_stops_with_the_name_of_a_broken_image(photos, tmp_path):
    with pytest.raises(
        DataError, match=r"3.jpg: image 3.jpg: not an image .*Invalid JPEG data.*skip\" leaves it out"
    ) as e:
        train(photos, "raise", tmp_path)
    assert "\n" not in str(e.value)


def test_training_goes_on_without_a_broken_image(photos, tmp_path, capsys):
    assert train(photos, "skip", tmp_path).seen == [1] * 5
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "csv:boxes train: 5 images, 5 boxes; 1 left out or clipped"
    assert lines[1].startswith("  left out: ") and "3.jpg" in lines[1]


def test_the_order_is_that_of_a_set_without_the_broken_image(photos, tmp_path):
    with_broken = load_dataset(photos, on_error="skip")
    table = (tmp_path / "boxes.csv").read_text().splitlines()
    (tmp_path / "boxes.csv").write_text("\n".join(line for line in table if not line.startswith("3.jpg")))
    without = load_dataset(photos)
    for start in (0, 3):
        one, other = (training_batches(d, FakeDetector(), 1, start_step=start).take(7) for d in (with_broken, without))
        for (a, _), (b, _) in zip(one, other, strict=True):
            np.testing.assert_array_equal(a, b)


def test_a_split_of_broken_images_only(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no image")
    (tmp_path / "boxes.csv").write_text("a.png,1,1,5,5,red,train\nb.png,1,1,5,5,red,val\n")
    with pytest.raises(TfdetError, match="boxes train: no image of this split can be used"):
        train(f"csv:{tmp_path / 'boxes.csv'}", "skip", tmp_path)


def test_prediction_names_a_broken_image(photos, tmp_path, untrained):
    with pytest.raises(DataError, match=r"^[^ ]*3.jpg: not an image that can be read: .*Invalid JPEG data"):
        inference.detect_files(untrained[0], [tmp_path / "0.jpg", tmp_path / "3.jpg"])


def test_five_hundred_boxes():
    detector = ssd300(("red", "blue"), "vgg_slim")
    draw = np.random.default_rng(0)
    corners = draw.uniform(0, 280, (500, 2)).astype(np.float32)
    boxes = np.concatenate([corners, corners + draw.uniform(2, 20, (500, 2))], axis=1).astype(np.float32)
    labels = draw.integers(0, 2, 500).astype(np.int32)
    targets = detector.encoder(boxes, labels)
    assert all(np.isfinite(target).all() for target in targets.values())
    picture = drawing.draw_boxes(np.full((300, 300, 3), 128, np.uint8), boxes, labels, ("red", "blue"))
    assert picture.size == (300, 300)


# --- check-data ---


def check(spec, folder, *flags):
    """Status, and check.json."""
    with pytest.raises(SystemExit) as stop:
        main(["check-data", "--data", spec, "-o", str(folder), *flags])
    return stop.value.code, json.loads((folder / "check.json").read_text())


def test_check_data_counts_and_names_defects(photos, tmp_path, capsys):
    Image.new("RGB", (9, 9)).save(tmp_path / "0.jpg")  # so that its box leaves it
    (tmp_path / "7.jpg").write_bytes((tmp_path / "1.jpg").read_bytes())
    with open(tmp_path / "boxes.csv", "a") as file:
        file.write("\n6.jpg,5,5,5,30,red,val\n6.jpg,1,1,,9,red,val\n1.jpg,1,1,60,40,blue,train")
    status, found = check(photos, tmp_path / "out")
    assert status == 1
    train = found["splits"]["train"]
    assert (train["images"], train["images_without_boxes"], train["boxes"]) == (5, 0, 6)
    assert (train["width"], train["height"]) == ([9, 60], [9, 45])
    assert train["classes"]["red"] == {"boxes": 5, "small": 5, "medium": 0, "large": 0}
    assert train["classes"]["blue"] == {"boxes": 1, "small": 0, "medium": 1, "large": 0}
    assert found["splits"]["val"]["classes"]["blue"]["boxes"] == 0
    expected = [
        '0.jpg: box 0 (5, 5, 30, 30) "red" (line 2): leaves the image of 9x9 pixels: clipped',
        "3.jpg: not an image that can be read",
        'box 1 (5, 5, 5, 30) "red" (line 10): has zero area',
        '"1,1,,9" is not four numbers',
        "image 7.jpg: is also in split train, as image 1.jpg",
    ]
    assert len(found["defects"]) == len(expected)
    out = capsys.readouterr().out
    for words in expected:
        assert sum(words in line for line in found["defects"]) == 1
        assert words in out
    assert "5 defects" in out.splitlines()[-1]
    with Image.open(tmp_path / "out" / "contact_sheet.png") as sheet:
        assert sheet.width > 800


def test_check_data_without_a_defect(photos, tmp_path, capsys):
    status, found = check(photos, tmp_path / "out", "--split", "val")
    assert (status, found["defects"], list(found["splits"])) == (0, [], ["val"])
    assert "no defects" in capsys.readouterr().out.splitlines()[-1]


def test_check_data_of_what_is_not_there(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["check-data", "--data", f"coco:{tmp_path / 'nowhere'}", "-o", str(tmp_path / "out")])
    assert stop.value.code == 2
    assert capsys.readouterr().err == f"tfdet: error: {tmp_path / 'nowhere'}: there is no such folder\n"
    assert not (tmp_path / "out").exists()


def write_coco(folder, name, categories, images=()):
    (folder / "annotations").mkdir(exist_ok=True)
    content = {"images": list(images), "annotations": [], "categories": categories}
    (folder / "annotations" / name).write_text(json.dumps(content))


def test_check_data_goes_on_after_a_split_that_cannot_be_read(tmp_path):
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    image = {"id": 1, "file_name": "a.png"}
    cat, dog = {"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}
    write_coco(tmp_path, "instances_train.json", [cat, dog], [image])
    write_coco(tmp_path, "instances_val.json", [dog], [image])
    (tmp_path / "annotations" / "instances_test.json").write_text('{"images": [')
    assert split_names(f"coco:{tmp_path}") == ("test", "train", "val")
    found = checking.check(f"coco:{tmp_path}")
    assert list(found.datasets) == ["train", "val"]
    broken, classes, twice = found.defects
    assert "instances_test.json: cannot be read as JSON" in broken
    assert "its classes are not those of" in classes and "cat not in both" in classes
    assert "is also in split train" in twice
    assert checking.contact_sheet(found.datasets) is None, "there is no box"


@pytest.mark.parametrize(
    ("data", "images", "defects"), [("voc:{}/bccd", 364, 2), ("coco:{}/tiny_coco", 100, 0)], ids=["bccd", "tiny_coco"]
)
def test_check_data_of_real_sets(shared_data, data, images, defects):
    found = checking.check(data.format(shared_data))
    counts = checking.summary(found)
    assert sum(split["images"] for split in counts["splits"].values()) == images
    assert len(found.defects) == defects
    assert len(checking.tables(counts)) == 2
