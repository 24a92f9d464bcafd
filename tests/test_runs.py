"""What is left in a run folder when something there cannot be written."""

import errno
import os
import shutil
import zipfile
from pathlib import Path

import keras
import pytest
import tensorflow as tf

from tfdet import CenterNetPose, runs, training
from tfdet.errors import TfdetError

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def no_space(*_, **__):
    raise FULL


@pytest.fixture
def checkpoints(untrained, tmp_path):
    """The callback, after an epoch that found a best model."""
    callback = runs.Checkpoints(tmp_path)
    callback.set_model(untrained[0])
    callback.on_epoch_end(0, {"val_AP": 0.25})
    return callback


def half_of_it(path):
    """As `Detector.save` on a disk with little space."""
    Path(path).write_bytes(b"PK\3\4 and so on")
    no_space()


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize(
    ("owner", "name", "fails"),
    [(keras.Model, "save", lambda self, path: half_of_it(path)), (zipfile.ZipFile, "writestr", no_space)]
    + [(os, name, no_space) for name in ("fsync", "replace")],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_full_disk_leaves_the_checkpoints_that_there_are(checkpoints, tmp_path, monkeypatch, owner, name, fails):
    kept = {file: (tmp_path / file).read_bytes() for file in files(tmp_path)}
    assert list(kept) == ["best.keras", "checkpoints/epoch-00001.keras"]
    with monkeypatch.context() as patch, pytest.raises(TfdetError) as error, runs.writing_in(tmp_path):
        patch.setattr(owner, name, fails)
        checkpoints.on_epoch_end(1, {"val_AP": 0.5})
    assert str(error.value) == (
        f"{tmp_path}: cannot be written: [Errno 28] No space left on device; "
        f"--resume {tmp_path} goes on; whole checkpoints: epoch-00001.keras"
    )
    assert {file: (tmp_path / file).read_bytes() for file in files(tmp_path)} == kept
    assert runs.last_checkpoint(tmp_path).class_names == ("red", "blue")

    again = runs.Checkpoints(tmp_path)
    assert again.best == 0.25, "not that of the epoch that was lost"
    again.set_model(checkpoints.model)
    again.on_epoch_end(1, {"val_AP": 0.5})
    assert runs.Checkpoints(tmp_path).best == 0.5
    assert files(tmp_path) == ["best.keras", *(f"checkpoints/epoch-0000{number}.keras" for number in (1, 2))]


def test_the_best_model_is_on_the_disk_before_a_checkpoint_says_so(checkpoints, tmp_path, monkeypatch):
    """A kill between the two files loses no best model: the run goes on from before the epoch that found it."""
    saved = []
    monkeypatch.setattr(os, "replace", lambda _, path: saved.append(path.name))
    checkpoints.on_epoch_end(1, {"val_AP": 0.5})
    checkpoints.on_epoch_end(2, {"val_AP": 0.5})
    assert saved == ["best.keras", "epoch-00002.keras", "epoch-00003.keras"]


def test_the_detector_says_which_figure_decides(checkpoints, tmp_path, monkeypatch):
    assert (checkpoints.model.main_figure, CenterNetPose.main_figure) == ("AP", "keypoint_AP")
    monkeypatch.setattr(type(checkpoints.model), "main_figure", "keypoint_AP")
    monkeypatch.setattr(checkpoints, "_save", lambda path: saved.append(path.name))
    checkpoints.best, bests = float("-inf"), []
    for epoch, figures in enumerate([(0.9, 0.1), (0.1, 0.2), (0.95, 0.15)]):
        saved = []
        checkpoints.on_epoch_end(epoch, dict(zip(("val_AP", "val_keypoint_AP"), figures, strict=True)))
        bests.append("best.keras" in saved)
    assert bests == [True, True, False] and checkpoints.best == 0.2
    checkpoints.on_epoch_end(3, {"val_AP": 0.3})  # of a data set without them
    assert checkpoints.best == 0.3


def test_only_the_last_two_checkpoints_are_kept(checkpoints, tmp_path):
    for epoch in (1, 2):
        shutil.copy(tmp_path / "best.keras", tmp_path / "checkpoints" / f"epoch-0000{epoch + 1}.keras")
    checkpoints.on_epoch_end(3, {"val_AP": 0.0})
    assert files(tmp_path / "checkpoints") == ["epoch-00003.keras", "epoch-00004.keras"]


@pytest.mark.parametrize("what", ["history", "tensorboard", "curves"])
def test_training_on_a_full_disk_ends_in_one_line(tmp_path, monkeypatch, what):
    class Detector(keras.Model):
        """Whose `fit` fails to write the history, or as TensorBoard does."""

        def fit(self, *args, **kwargs):
            (tmp_path / "history.csv").write_text("epoch,loss\n0,1.5\n")
            if what == "history":
                no_space()
            if what == "tensorboard":
                message = f"{{{{function_node x}}}} {tmp_path}/events; No space left on device\n\tFlushing first event."
                raise tf.errors.ResourceExhaustedError(None, None, message)

    detector = Detector()
    detector.compile("sgd")
    monkeypatch.setattr(training.pipeline, "training_batches", lambda *_, **__: tf.data.Dataset.range(1))
    if what == "curves":
        monkeypatch.setattr(training.drawing, "curves", no_space)
    with pytest.raises(TfdetError, match=rf"^{tmp_path}: cannot be written: .*No space left .*no checkpoint yet$"):
        training.fit(detector, None, None, training.Settings(batch_size=1, steps=1, epochs=1), tmp_path)


def test_an_error_of_training_is_not_taken_for_one_of_the_disk(tmp_path):
    with pytest.raises(tf.errors.ResourceExhaustedError), runs.writing_in(tmp_path):
        raise tf.errors.ResourceExhaustedError(None, None, "out of memory while allocating")


def run_folder(settings):
    folder = runs.find_folder(settings, "ssd300")
    runs.make_folder(folder, settings)
    return folder


def test_a_folder_of_no_settings_is_not_left_behind(tmp_path, monkeypatch):
    settings = training.Settings(output=str(tmp_path / "run"))
    with (
        monkeypatch.context() as patch,
        pytest.raises(TfdetError, match=r"written: .*no checkpoint yet$"),
    ):
        patch.setattr(os, "fsync", no_space)
        run_folder(settings)
    assert files(tmp_path) == []
    assert files(run_folder(settings)) == ["settings.toml"]


# --- history ---

HISTORY = b"epoch,loss,val_AP,val_AP50\r\n0,2.5,0.1,0.25\r\n1,1.5,nan,0.5\r\n2,1.0,0.2"


@pytest.mark.parametrize(
    ("epochs", "rows", "figures"),
    [
        (2, 3, {"AP": pytest.approx(float("nan"), nan_ok=True), "AP50": 0.5}),  # the third was half written
        (1, 2, {"AP": 0.1, "AP50": 0.25}),
        (0, 0, None),
    ],
)
def test_history_after_the_last_checkpoint_is_forgotten(tmp_path, epochs, rows, figures):
    (tmp_path / "history.csv").write_bytes(HISTORY)
    runs.forget_history_after(tmp_path, epochs)
    assert (tmp_path / "history.csv").read_bytes() == b"".join(HISTORY.splitlines(keepends=True)[:rows])
    assert runs.last_figures(tmp_path) == figures


def test_a_run_without_history(tmp_path):
    runs.forget_history_after(tmp_path, 3)
    assert runs.read_history(tmp_path) == {}
    assert runs.last_figures(tmp_path) is None
