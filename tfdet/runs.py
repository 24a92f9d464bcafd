"""The folder that a run leaves everything in: settings, checkpoints, history, report."""

import contextlib
import csv
import dataclasses
import datetime
import json
import os
import re
import shutil
import zipfile
from pathlib import Path

import keras
import tensorflow as tf

from tfdet import drawing, evaluation, inference, serving
from tfdet.data.images import load_image
from tfdet.distribution import from_chief, is_chief, is_cluster, strategy, strategy_scope
from tfdet.errors import TfdetError


def find_folder(settings, recipe):
    """The folder of a run: that of the run to resume, or else one for a new run, which need not be there.

    The workers of a cluster, whose command starts the same run again when one of them was lost, go on with the run that
    the folder has, if its settings are the same.

    Raises:
        TfdetError: the folder has another run.
    """
    if settings.resume:
        return Path(settings.resume)
    return from_chief(_new_folder(settings, recipe) if is_chief() else None)


def _new_folder(settings, recipe):
    kind, cluster = settings.data.partition(":")[0], is_cluster(strategy())
    stamp = "cluster" if cluster else datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    folder = Path(settings.output or f"runs/{recipe}-{kind}-{stamp}")
    if folder.exists() and any(folder.iterdir()):
        if not cluster:
            raise TfdetError(f"{folder}: this run folder is not empty; --resume {folder} goes on with its run")
        if not _has_settings(folder, settings):
            raise TfdetError(f"{folder}: has a run of other settings (see its settings.toml); choose another --output")
    return folder


def make_folder(folder, settings):
    """Make the folder of a run, with its settings in it, unless it is there.

    Raises:
        TfdetError: it cannot be written.
    """
    if is_chief() and not (folder / "settings.toml").exists():
        with writing_in(folder):
            folder.mkdir(parents=True, exist_ok=True)
            write_settings(settings, folder / "settings.toml")


def _has_settings(folder, settings):
    path = folder / "settings.toml"
    return path.is_file() and path.read_text(encoding="utf-8") == _as_toml(settings)


@contextlib.contextmanager
def writing_in(folder):
    """Around everything that writes in a run folder: a full disk and the like end as one line.

    Raises:
        TfdetError: something there cannot be written; says which checkpoints are whole.
    """
    try:
        yield
    except (OSError, tf.errors.OpError) as error:
        reason = error
        if isinstance(error, tf.errors.OpError):
            if str(folder) not in error.message:  # not of TensorBoard nor the export, but of training
                raise
            reason = re.sub(r"\{\{.*?\}\}|\[Op:.*", "", error.message).strip().splitlines()[0]
        kept = ", ".join(path.name for path in _checkpoints(folder))
        hint = f"--resume {folder} goes on; whole checkpoints: {kept}" if kept else "there is no checkpoint yet"
        raise TfdetError(f"{folder}: cannot be written: {reason}; {hint}") from error


@contextlib.contextmanager
def _complete(path):
    """A name to write a file under; it becomes `path` once all of it is on the disk, and is removed if it never is."""
    unfinished = path.with_name(f".unfinished-{path.name}")
    try:
        yield unfinished
        with open(unfinished, "rb") as file:
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def write_settings(settings, path):
    """Settings as TOML that `--config` reads."""
    with _complete(Path(path)) as unfinished:  # half of them would be a run of other settings
        unfinished.write_text(_as_toml(settings), encoding="utf-8")


def _as_toml(settings):
    values = dataclasses.asdict(settings) | {"config": None, "resume": None}
    values = {key: value for key, value in values.items() if value is not None}
    # JSON's strings, numbers, booleans and lists are TOML's.
    return "".join(f"{key} = {json.dumps(value, ensure_ascii=False)}\n" for key, value in values.items())


class Checkpoints(keras.callbacks.Callback):
    """After each epoch: a checkpoint to go on from, and best.keras whenever the main figure is better than ever before.

    That is val_AP, or another figure that the model names (see Detector) and that there is; or what `figure` makes of
    the logs, a number that is greater for better models.

    Both are whole .keras models with their optimizer (so with its step, from which schedule and shuffle position
    follow). A file gets its name only when it is complete and on the disk: one that was half written when the power
    went is never taken for a checkpoint. The last two checkpoints are kept.

    Without `figure` it must follow `evaluation.Evaluation` among the callbacks.
    """

    def __init__(self, folder, figure=None):
        super().__init__()
        self.folder = Path(folder)
        self.figure = figure or (lambda logs: logs.get(f"val_{self.model.main_figure}", logs["val_AP"]))
        self.best = max((_best_so_far(path) for path in _checkpoints(folder)[-1:]), default=float("-inf"))

    def on_epoch_end(self, epoch, logs=None):
        figure = self.figure(logs)
        improved = figure > self.best
        self.best = max(self.best, figure)
        (self.folder / "checkpoints").mkdir(exist_ok=True)
        # In this order: were the run cut off between the two, it would go on from before this epoch and save it again.
        if improved or not (self.folder / "best.keras").exists():
            self._save(self.folder / "best.keras")
        self._save(self.folder / "checkpoints" / f"epoch-{epoch + 1:05d}.keras")
        for old in _checkpoints(self.folder)[:-2]:
            old.unlink()

    def _save(self, path):
        with _complete(path) as unfinished:
            self.model.save(unfinished)
            with zipfile.ZipFile(unfinished, "a") as archive:
                archive.writestr(STATE, json.dumps({"best_val_AP": self.best}))


STATE = "tfdet-run.json"  # inside the .keras archive, beside what Keras puts there


def last_checkpoint(folder):
    """The compiled model of the last checkpoint in a run folder, or None if there is none yet."""
    paths = from_chief(_checkpoints(folder))
    return keras.models.load_model(paths[-1]) if paths else None


def best_model(folder):
    """The best model of a run, once the chief has written it."""
    with strategy_scope():
        return keras.models.load_model(from_chief(Path(folder) / "best.keras"))


def _checkpoints(folder):
    return sorted((Path(folder) / "checkpoints").glob("epoch-*.keras"))


def _best_so_far(path):
    with zipfile.ZipFile(path) as archive:
        return json.loads(archive.read(STATE))["best_val_AP"]


def read_history(folder):
    """history.csv -> {column: [value of each epoch]}; no file, no columns."""
    path = Path(folder) / "history.csv"
    if not path.exists():
        return {}
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {name: [float(row[name]) for row in rows] for name in (rows[0] if rows else ()) if name != "epoch"}


def last_figures(folder):
    """The figures of the last evaluation in history.csv, {"AP": ...}; None before the first."""
    columns = {name: values for name, values in read_history(folder).items() if name.startswith("val_")}
    return {name.removeprefix("val_"): values[-1] for name, values in columns.items()} or None


def forget_history_after(folder, epochs):
    """Keep the first `epochs` rows of history.csv: those after the last checkpoint are about to be written again."""
    path = Path(folder) / "history.csv"
    if path.exists():
        kept = path.read_bytes().splitlines(keepends=True)[: epochs + 1] if epochs else []
        os.truncate(path, sum(map(len, kept)))  # needs no space, whereas a full disk would lose a file written anew


def report(model, test, folder, examples=8, others=()):
    """Evaluate on a Dataset, draw predictions beside ground truth, export; returns the figures.

    others: Datasets that it is evaluated on as well; their figures are in the first one's, under their names.
    """
    figures = evaluation.evaluate(model, test)
    figures |= {other.name: evaluation.evaluate(model, other) for other in others}
    if is_chief():
        _write_report(model, test, folder, figures, examples)
    return figures


def _write_report(model, test, folder, figures, examples):
    shown = dataclasses.replace(test, examples=test.examples[:examples])
    images = [load_image(example.image) for example in shown.examples]
    found = inference.detect(model, shown)
    names = model.keypoint_names if model.keypoint_names == test.keypoint_names else ()
    picture = drawing.truth_and_predictions(images, shown.examples, found, test.class_names, keypoint_names=names)
    with writing_in(folder):
        (folder / "evaluation.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
        picture.save(folder / "predictions.png")
        shutil.rmtree(folder / "export", ignore_errors=True)  # of a run that is resumed
        serving.export(model, folder / "export")


# Of recipes that need more than boxes
OWN_DATA = {
    "centernet_pose": "coco_keypoints:DIR   your photographs",
    "extremenet": "coco_masks:DIR   your photographs",
}


def say_what_was_made(settings, recipe, test, figures, folder):
    """The last lines of a run: how good, what lies where, and what to type next."""
    shapes = settings.data == "shapes"
    if shapes:
        print("\nThis was the built-in set of generated shapes: it shows that all works, not what photographs give.")
    print(f"\n{test.name} ({len(test)} images): AP {figures['AP']:.3f}, AP50 {figures['AP50']:.3f}")
    if figures.get("keypoint_AP") is not None:
        print(f"keypoints: AP {figures['keypoint_AP']:.3f}, AP50 {figures['keypoint_AP50']:.3f}")
    if figures.get("mask_AP") is not None:
        print(f"masks: AP {figures['mask_AP']:.3f}, AP50 {figures['mask_AP50']:.3f}")
    print(f"{folder}/ holds best.keras, export/ (SavedModel), evaluation.json, predictions.png, curves.png, ...")
    print("Next:")
    print(f"  python -m tfdet predict photo.jpg --model {folder}/best.keras")
    if shapes:
        own = OWN_DATA.get(recipe, "csv:boxes.csv   your photographs: path,x1,y1,x2,y2,label")
        print(f"  python -m tfdet.recipes.{recipe} --data {own}")
