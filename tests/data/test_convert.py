import dataclasses
import io
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import tfdet
from tfdet.__main__ import main
from tfdet.data import Dataset, convert, load_dataset, pipeline
from tfdet.data.convert import write_shards
from tfdet.data.images import load_image
from tfdet.data.records import encoded
from tfdet.data.shapes import draw_example
from tfdet.data.tfrecord import FEATURES
from tfdet.detectors.ssd import ssd300
from tfdet.errors import DataError, TfdetError


@pytest.fixture(scope="module")
def drawn():
    """24 images of the generated set; some objects are difficult, some a crowd, and the areas are a segment's."""
    examples = []
    for number in range(24):
        one = draw_example("train", number)
        count = len(one.labels)
        changed = {"difficult": np.arange(count) % 3 == 1, "crowd": np.arange(count) % 4 == 3, "areas": one.areas / 3}
        examples.append(dataclasses.replace(one, image_id=100 + number, **changed))
    return Dataset("drawn", ("zebra", "ä cat", "dog"), (4, 17, 90), tuple(examples))


def assert_same(dataset, expected):
    assert dataset.class_names == expected.class_names
    assert dataset.category_ids == expected.category_ids
    for one, other in zip(dataset.examples, expected.examples, strict=True):
        assert (one.image_id, one.width, one.height) == (other.image_id, other.width, other.height)
        assert encoded(one.image) == encoded(other.image)
        np.testing.assert_allclose(one.boxes, other.boxes, atol=1e-3)
        for name in ("labels", "crowd", "difficult", "areas"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
            assert getattr(one, name).dtype == getattr(other, name).dtype


def test_what_was_written_is_read_again(drawn, tmp_path):
    paths = write_shards(drawn, tmp_path / "new" / "set", "train", shards=5)
    assert [path.name for path in paths] == [f"train-{number:05d}-of-00005.tfrecord" for number in range(5)]
    assert sorted(path.name for path in (tmp_path / "new" / "set").iterdir()) == [
        "label_map.pbtxt",
        *(path.name for path in paths),
        "train.index.npz",
        "train.manifest.json",
    ]
    again = load_dataset(f"tfrecord:{tmp_path / 'new' / 'set'}")
    assert_same(again, drawn)
    write_shards(again, tmp_path / "second", "train", shards=5)
    for path in paths:
        assert (tmp_path / "second" / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("split", ["train", "val"])
def test_round_trip_of_coco(shared_data, tmp_path, split):
    expected = load_dataset(f"coco:{shared_data / 'tiny_coco'}", split)
    write_shards(expected, tmp_path, split, shards=3)
    again = load_dataset(f"tfrecord:{tmp_path}", split)
    assert_same(again, expected)
    assert again.category_ids[-1] == 90  # of 80 classes
    assert any(example.crowd.any() for example in again.examples) or split == "train"


def test_features_are_those_of_the_object_detection_api(drawn, tmp_path):
    (path,) = write_shards(drawn, tmp_path, "train")
    record = next(iter(tf.data.TFRecordDataset(str(path)).as_numpy_iterator()))
    feature = tf.train.Example.FromString(record).features.feature
    assert set(feature) == set(FEATURES) | {"image/format", "image/key/sha256"}
    assert feature["image/format"].bytes_list.value[:] == [b"jpeg"]
    assert feature["image/source_id"].bytes_list.value[:] == [b"100"]
    first = drawn.examples[0]
    np.testing.assert_allclose(
        feature["image/object/bbox/ymax"].float_list.value, first.boxes[:, 3] / first.height, rtol=1e-6
    )
    names = [drawn.class_names[label].encode() for label in first.labels]
    assert feature["image/object/class/text"].bytes_list.value[:] == names
    ids = [drawn.category_ids[label] for label in first.labels]
    assert feature["image/object/class/label"].int64_list.value[:] == ids


@pytest.mark.parametrize("start_step", [None, 3])
def test_training_batches_are_those_of_the_source(drawn, tmp_path, start_step):
    write_shards(drawn, tmp_path, "train", shards=4)
    model = ssd300(drawn.class_names, "vgg_slim")

    def batches(dataset):
        return list(pipeline.training_batches(dataset, model, 8, seed=3, start_step=start_step).take(2))

    for one, other in zip(batches(load_dataset(f"tfrecord:{tmp_path}")), batches(drawn), strict=True):
        np.testing.assert_array_equal(one[0], other[0])
        for name in other[1]:
            np.testing.assert_allclose(one[1][name], other[1][name], atol=1e-3)


def test_the_bytes_do_not_hang_on_the_number_of_workers(drawn, tmp_path):
    for workers in (1, 4):
        write_shards(drawn, tmp_path / str(workers), "train", shards=4, workers=workers)
    for path in (tmp_path / "1").iterdir():
        assert (tmp_path / "4" / path.name).read_bytes() == path.read_bytes()


def test_more_shards_than_images(drawn, tmp_path):
    write_shards(dataclasses.replace(drawn, examples=drawn.examples[:2]), tmp_path, "train", shards=5)
    assert len(load_dataset(f"tfrecord:{tmp_path}")) == 2


def test_no_shard_has_its_name_before_all_are_complete(drawn, tmp_path, monkeypatch):
    written = []
    original = convert._example_record

    def broken(example, dataset):
        assert not list(tmp_path.glob("train-*"))
        written.append(example)
        if len(written) == 15:
            raise DataError("image 15")
        return original(example, dataset)

    monkeypatch.setattr(convert, "_example_record", broken)
    with pytest.raises(DataError, match="image 15"):
        write_shards(drawn, tmp_path, "train", shards=4)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".unfinished-train", "label_map.pbtxt"]
    monkeypatch.undo()
    write_shards(drawn, tmp_path, "train", shards=4)
    assert len(load_dataset(f"tfrecord:{tmp_path}")) == 24


def test_nothing_is_written_over(drawn, tmp_path):
    write_shards(drawn, tmp_path, "train", shards=2)
    with pytest.raises(TfdetError, match=r"train-00000-of-00002.tfrecord: shards of split train are there already"):
        write_shards(drawn, tmp_path, "train", shards=3)
    with pytest.raises(TfdetError, match=r"label_map.pbtxt: is of other classes than drawn"):
        write_shards(dataclasses.replace(drawn, class_names=("a", "b", "c")), tmp_path, "val")
    write_shards(drawn, tmp_path, "val", shards=1)
    (tmp_path / "file").write_text("")
    with pytest.raises(TfdetError, match="cannot be written"):
        write_shards(drawn, tmp_path / "file", "train")


def test_images_that_the_api_does_not_know_become_png(drawn, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 9, 3)).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "BMP")
    one = dataclasses.replace(drawn.examples[0], image=file.getvalue(), height=8, width=9)
    empty = {name: getattr(one, name)[:0] for name in ("boxes", "labels", "crowd", "difficult", "areas")}
    one = dataclasses.replace(one, **empty)
    write_shards(dataclasses.replace(drawn, examples=(one,)), tmp_path, "train")
    (example,) = load_dataset(f"tfrecord:{tmp_path}").examples
    assert encoded(example.image).startswith(b"\x89PNG")
    np.testing.assert_array_equal(load_image(example.image), pixels)


def test_an_image_that_cannot_be_read_is_named(drawn, tmp_path):
    for image, words in ((b"text", "100: not an image"), ("no/such.jpg", r"no/such.jpg: not an image .*FileNotFound")):
        one = dataclasses.replace(drawn.examples[0], image=image)
        with pytest.raises(DataError, match=words):
            write_shards(dataclasses.replace(drawn, examples=(one,)), tmp_path, "train")


# --- runs that are cut off ---


def contents(folder):
    """{name: content} of all files, also in folders."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def written(folder):
    """{name: what changes when a file is written anew}, shards by the names that they will have."""
    found = [*folder.glob("*.tfrecord"), *folder.glob(".unfinished-*/*.tfrecord")]
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in found}


@pytest.fixture
def half_done(drawn, tmp_path, monkeypatch):
    """A folder where the first two of four shards are complete: the run met a broken image in the third."""
    original = convert._example_record

    def broken(example, dataset):
        if example.image_id == 114:
            raise DataError("image 114")
        return original(example, dataset)

    with monkeypatch.context() as patch:
        patch.setattr(convert, "_example_record", broken)
        with pytest.raises(DataError, match="image 114"):
            write_shards(drawn, tmp_path / "half", "train", shards=4)
    return tmp_path / "half"


def test_a_run_goes_on_where_it_stopped(drawn, half_done, tmp_path):
    with pytest.raises(DataError, match="no such shards"):
        load_dataset(f"tfrecord:{half_done}")
    before = written(half_done)
    images, lines = [], []
    paths = write_shards(drawn, half_done, "train", shards=4, advance=images.append, tell=lines.append)
    assert (images, lines) == ([6] * 4, ["goes on where it stopped: 2 of 4 shards are complete"])
    after = written(half_done)
    assert [before.get(path.name) == after[path.name] for path in paths] == [True, True, False, False]
    write_shards(drawn, tmp_path / "undisturbed", "train", shards=4)
    assert contents(half_done) == contents(tmp_path / "undisturbed")


def test_what_a_crash_left_half_written_is_written_again(drawn, half_done, tmp_path):
    first, second = sorted((half_done / ".unfinished-train").glob("*.tfrecord"))
    os.truncate(first, 1000)
    os.truncate(f"{second}.npz", 100)
    write_shards(drawn, half_done, "train", shards=4)
    write_shards(drawn, tmp_path / "undisturbed", "train", shards=4)
    assert contents(half_done) == contents(tmp_path / "undisturbed")


@pytest.mark.parametrize("change", ["box", "label", "id", "image", "classes", "left out", "shards"])
def test_unfinished_shards_of_something_else_are_not_mixed(drawn, half_done, change):
    one = drawn.examples[20]
    changes = {
        "box": {"boxes": one.boxes + np.float32(1e-3)},
        "label": {"labels": (one.labels + 1) % 3},
        "id": {"image_id": 7},
        "image": {"image": drawn.examples[0].image},
    }
    examples = list(drawn.examples)
    examples[20] = dataclasses.replace(one, **changes.get(change, {}))
    other = dataclasses.replace(drawn, examples=tuple(examples))
    other = dataclasses.replace(other, class_names=("zebra", "a cat", "dog")) if change == "classes" else other
    other = dataclasses.replace(other, skipped=("a box",)) if change == "left out" else other
    before = contents(half_done)
    with pytest.raises(TfdetError, match=r"/\.unfinished-train: holds unfinished shards of something else") as error:
        write_shards(other, half_done, "train", shards=5 if change == "shards" else 4)
    assert "\n" not in str(error.value)
    assert contents(half_done) == before


def test_a_run_that_is_finished_is_not_repeated(drawn, tmp_path):
    paths = write_shards(drawn, tmp_path, "train", shards=2)
    before, lines = written(tmp_path), []
    assert write_shards(drawn, tmp_path, "train", shards=2, tell=lines.append) == paths
    assert lines == ["all shards are there already"]
    assert written(tmp_path) == before
    os.truncate(paths[0], 1000)
    with pytest.raises(TfdetError, match="shards of split train are there already; remove them first"):
        write_shards(drawn, tmp_path, "train", shards=2)
    assert written(tmp_path).keys() == before.keys()


@pytest.mark.parametrize("moved", range(6))
def test_a_crash_while_the_files_get_their_names(drawn, tmp_path, monkeypatch, moved):
    """Index, four shards and manifest move; whichever is the last to do so, the shards are no set before the end."""
    original, done = os.replace, []

    def replace(source, target):
        if Path(target).parent == tmp_path / "set" and "label_map" not in str(target):
            if len(done) == moved:
                raise OSError("crash")
            done.append(target)
        original(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace)
        with pytest.raises(TfdetError, match="crash"):
            write_shards(drawn, tmp_path / "set", "train", shards=4)
    before = written(tmp_path / "set")
    if moved < 5:
        with pytest.raises(DataError, match=r"this shard is missing|no such shards"):
            load_dataset(f"tfrecord:{tmp_path / 'set'}")
    else:
        assert len(load_dataset(f"tfrecord:{tmp_path / 'set'}")) == 24  # only the manifest is not there yet
    write_shards(drawn, tmp_path / "set", "train", shards=4)
    assert written(tmp_path / "set") == before
    write_shards(drawn, tmp_path / "undisturbed", "train", shards=4)
    assert contents(tmp_path / "set") == contents(tmp_path / "undisturbed")


def test_a_full_disk_is_one_line(drawn, tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limits[1]))  # bytes of a file; a shard here has some 300,000
    try:
        with pytest.raises(TfdetError, match=r"split train cannot be written: ") as error:
            write_shards(drawn, tmp_path / "set", "train", shards=4)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(error.value)
    assert not list((tmp_path / "set").glob("*.tfrecord"))
    write_shards(drawn, tmp_path / "set", "train", shards=4)
    write_shards(drawn, tmp_path / "undisturbed", "train", shards=4)
    assert contents(tmp_path / "set") == contents(tmp_path / "undisturbed")


class Deadly(bytes):
    """An image that ends the process to which it is handed."""

    def __reduce__(self):
        return os._exit, (1,)


def test_a_process_that_dies_is_one_line(drawn, tmp_path):
    examples = list(drawn.examples)
    examples[20] = dataclasses.replace(examples[20], image=Deadly(examples[20].image))
    with pytest.raises(TfdetError, match=r"a process that was writing has died .* goes on where it stopped$") as error:
        write_shards(dataclasses.replace(drawn, examples=tuple(examples)), tmp_path, "train", shards=4, workers=2)
    assert "\n" not in str(error.value)
    write_shards(drawn, tmp_path, "train", shards=4)
    assert_same(load_dataset(f"tfrecord:{tmp_path}"), drawn)


def test_an_image_that_breaks_before_it_is_written(drawn, tmp_path):
    for number in range(3):
        (tmp_path / f"{number}.jpg").write_bytes(drawn.examples[number].image)
    examples = [dataclasses.replace(drawn.examples[i], image=str(tmp_path / f"{i}.jpg")) for i in range(3)]
    dataset = dataclasses.replace(drawn, examples=tuple(examples), skipped=("a box",))
    (tmp_path / "0.jpg").unlink()
    (tmp_path / "1.jpg").write_bytes(drawn.examples[3].image)
    with pytest.raises(DataError, match=r"0.jpg: not an image that can be read: FileNotFoundError"):
        write_shards(dataset, tmp_path / "set", "train", shards=2)
    write_shards(dataset, tmp_path / "set", "train", shards=2, on_error="skip")
    assert [example.image_id for example in load_dataset(f"tfrecord:{tmp_path / 'set'}").examples] == [102]
    manifest = json.loads((tmp_path / "set" / "train.manifest.json").read_text())
    first, second, third = manifest["skipped"]
    assert first == "a box"
    assert second.startswith(f"{tmp_path / '0.jpg'}: not an image that can be read")
    assert third.startswith(f"{tmp_path / '1.jpg'}: image 101: the annotations are for ")
    assert [shard["images"] for shard in manifest["shards"]] == [0, 1]


def test_a_command_that_is_killed_goes_on(draw_image, tmp_path, capsys):
    rows = []
    for number in range(5):
        (tmp_path / f"{number}.png").write_bytes(draw_image(60, 50 + number, [(5, 5, 30, 30)], [number % 2]))
        rows.append(f"{number}.png,5,5,30,30,{('red', 'blue')[number % 2]},train\n")
    for number in range(600):
        (tmp_path / f"copy-{number}.png").hardlink_to(tmp_path / f"{number % 5}.png")
        rows.append(f"copy-{number}.png,5,5,30,30,red,train\n")
    (tmp_path / "boxes.csv").write_text("".join(rows))
    folder = tmp_path / "set"
    command = ["convert", "--data", f"csv:{tmp_path / 'boxes.csv'}", "-o", str(folder), "--shards", "200"]
    two = [sys.executable, "-m", "tfdet", *command, "--workers", "2"]
    environment = {**os.environ, "PYTHONPATH": str(Path(tfdet.__file__).parents[1])}
    process = subprocess.Popen(two, env=environment, stdout=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 60
    while len(list(folder.glob(".unfinished-train/*.npz"))) < 20 and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.005)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 10
    while processes_of(process.pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not processes_of(process.pid)  # those that wrote have ended, too
    complete = {Path(path).stem for path in folder.glob(".unfinished-train/*.tfrecord.npz")}
    before = written(folder)
    assert not list(folder.glob("*.tfrecord"))

    main(command)
    assert f"goes on where it stopped: {len(complete)} of 200 shards are complete" in capsys.readouterr().out
    after = written(folder)
    assert len(complete) >= 20
    assert all(before[name] == after[name] for name in complete)
    write_shards(load_dataset(f"csv:{tmp_path / 'boxes.csv'}"), tmp_path / "undisturbed", "train", shards=200)
    assert contents(folder) == contents(tmp_path / "undisturbed")


def processes_of(session):
    """The ids of the processes of a session that still run."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, own = path.read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue
        if int(own) == session and state != "Z":
            found.append(path.parent.name)
    return found
