from pathlib import Path

import pytest
import tensorflow as tf

from tfdet import serving


@pytest.fixture(scope="module")
def exported(untrained, tmp_path_factory):
    """A folder with the versions 1 and 2 of one detector."""
    detector, _ = untrained
    folder = tmp_path_factory.mktemp("export")
    for version in (1, 2):
        assert serving.export(detector, folder, version) == folder / str(version)
    return folder


@pytest.fixture(scope="module")
def loaded(exported):
    return tf.saved_model.load(exported / "2")


def test_the_folder_is_what_tf_serving_looks_for(exported):
    assert {path.name for path in exported.iterdir()} == {"1", "2"}
    for version in ("1", "2"):
        assert (exported / version / "saved_model.pb").is_file()
        assert (exported / version / "variables" / "variables.index").is_file()
        names = (exported / version / "assets.extra" / "class_names.txt").read_text(encoding="utf-8")
        assert names == "red\nblue\n"


@pytest.mark.parametrize(
    ("name", "argument", "spec"),
    [
        ("serving_default", "image_bytes", tf.TensorSpec([None], tf.string)),
        ("images", "images", tf.TensorSpec([None, None, None, 3], tf.uint8)),
    ],
)
def test_signatures(loaded, name, argument, spec):
    assert {"serving_default", "images"} <= set(loaded.signatures)
    signature = loaded.signatures[name]
    _, inputs = signature.structured_input_signature
    assert {key: (value.shape.as_list(), value.dtype) for key, value in inputs.items()} == {
        argument: (spec.shape.as_list(), spec.dtype)
    }
    assert {key: value.dtype for key, value in signature.structured_outputs.items()} == {
        "boxes": tf.float32,
        "scores": tf.float32,
        "labels": tf.int32,
        "num_detections": tf.int32,
    }


def test_batches_of_any_size(loaded, draw_image):
    pictures = [draw_image(90, 140, [(5, 5, 60, 60)], [0]), draw_image(120, 70, [], [], "JPEG")]
    for size in (1, 2):
        calls = {"serving_default": tf.constant(pictures[:size]), "images": tf.zeros([size, 50, 60, 3], tf.uint8)}
        for name, batch in calls.items():
            found = loaded.signatures[name](batch)
            kept = found["scores"].shape[1]
            shapes = {key: tuple(value.shape) for key, value in found.items()}
            expected = {"boxes": (size, kept, 4), "scores": (size, kept), "labels": (size, kept)}
            assert shapes == expected | {"num_detections": (size,)}


def test_bytes_that_are_no_image_are_refused(loaded):
    with pytest.raises(tf.errors.InvalidArgumentError, match="image"):
        loaded.signatures["serving_default"](tf.constant([b"no image"]))


def test_an_existing_version_is_left_as_it_is(exported, untrained):
    files = {path: path.stat().st_mtime_ns for path in exported.rglob("*")}
    with pytest.raises(FileExistsError, match=r"1: this version exists already"):
        serving.export(untrained[0], exported, 1)
    assert {path: path.stat().st_mtime_ns for path in exported.rglob("*")} == files


def test_a_version_appears_only_when_it_is_complete(untrained, tmp_path, monkeypatch):
    def cut_off(*args, **kwargs):
        raise OSError("disk full")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_text", cut_off)  # the last file of all
        with pytest.raises(OSError, match="disk full"):
            serving.export(untrained[0], tmp_path, 1)
    assert not (tmp_path / "1").exists()

    serving.export(untrained[0], tmp_path, 1)  # what was left there is not in the way
    assert {path.name for path in tmp_path.iterdir()} == {"1"}
    found = tf.saved_model.load(tmp_path / "1").signatures["images"](tf.zeros([1, 9, 9, 3], tf.uint8))
    assert found["scores"].shape[0] == 1
