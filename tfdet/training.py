"""What every recipe does around `model.fit`: settings, optimizer, checkpoints, run folder, final report."""

import dataclasses
import datetime
import json
import sys
from pathlib import Path
from typing import Literal

import keras

from tfdet import drawing, evaluation, inference, serving
from tfdet.data import load_dataset, pipeline
from tfdet.errors import TfdetError


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings that every recipe has."""

    data: str = "shapes"
    """The data: coco:DIR, voc:DIR, csv:FILE, or shapes, a generated set that needs no download."""
    train_split: str = "train"
    """Split to train on."""
    val_split: str = "val"
    """Split that is evaluated while training and chooses the best model."""
    test_split: str | None = None
    """Split for the final evaluation of the best model; the validation split if none is given."""
    on_error: Literal["raise", "skip"] = "raise"
    """What to do with a broken image or box: stop, or leave it out, say so and count it."""
    config: str | None = None
    """TOML file with settings; flags override it."""
    output: str | None = None
    """Run folder to make; by default runs/NAME-DATE."""
    batch_size: int | None = None
    """Images a step, over all devices."""
    steps: int | None = None
    """Training steps in total."""
    learning_rate: float | None = None
    """Highest learning rate."""
    drops: tuple[int, ...] | None = None
    """Steps at which the learning rate falls to a tenth; none: a cosine down to zero."""
    warmup_steps: int | None = None
    """Steps in which the learning rate rises from zero (with the cosine)."""
    weight_decay: float | None = None
    """L2 weight decay of all kernels, as in Caffe: added to the gradient, before momentum."""
    evaluate_every: int = 1
    """Evaluate on the validation split every so many epochs (passes over the training split)."""
    precision: Literal["float32", "mixed_bfloat16", "mixed_float16"] = "float32"
    """Precision policy of Keras."""
    cache: bool = False
    """Keep decoded images in memory."""
    seed: int = 0
    """Of weights, order and augmentation."""


def load_splits(settings):
    """The training, validation and test Datasets of the settings; says what was left out of them."""
    names = (settings.train_split, settings.val_split, settings.test_split or settings.val_split)
    splits = {name: load_dataset(settings.data, name, settings.on_error) for name in dict.fromkeys(names)}
    for split in splits.values():
        print(f"{split.name}: {len(split)} images, {sum(len(e.boxes) for e in split.examples)} boxes")
        for line in split.skipped:
            print(f"  left out: {line}")
    if len(splits[names[0]]) < settings.batch_size:
        raise TfdetError(f"{splits[names[0]].name}: fewer images than one batch of {settings.batch_size}")
    return [splits[name] for name in names]


def create_run_folder(settings, recipe):
    """Make the folder that a run leaves everything in, with its settings in it."""
    kind = settings.data.partition(":")[0]
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    folder = Path(settings.output or f"runs/{recipe}-{kind}-{stamp}")
    if folder.exists() and any(folder.iterdir()):
        raise TfdetError(f"{folder}: this run folder is not empty")
    folder.mkdir(parents=True, exist_ok=True)
    write_settings(settings, folder / "settings.toml")
    return folder


def write_settings(settings, path):
    """Settings as TOML that `--config` reads."""
    values = dataclasses.asdict(settings) | {"config": None}
    values = {key: value for key, value in values.items() if value is not None}
    # JSON's strings, numbers, booleans and lists are TOML's.
    lines = [f"{key} = {json.dumps(value, ensure_ascii=False)}\n" for key, value in values.items()]
    Path(path).write_text("".join(lines), encoding="utf-8")


def learning_rate(settings):
    """Steps to a tenth at `drops`, or a cosine after a linear warm-up."""
    peak = settings.learning_rate
    if settings.drops:
        rates = [peak * 0.1**n for n in range(len(settings.drops) + 1)]
        return keras.optimizers.schedules.PiecewiseConstantDecay(list(settings.drops), rates)
    return keras.optimizers.schedules.CosineDecay(
        0.0, settings.steps - settings.warmup_steps, warmup_target=peak, warmup_steps=settings.warmup_steps
    )


def decay_weights(model, weight_decay):
    """L2 penalty on every kernel, whose gradient is `weight_decay` times the kernel; biases and norms have none."""
    for variable in model.trainable_variables:
        if len(variable.shape) > 1:
            variable.regularizer = keras.regularizers.L2(weight_decay / 2)


def fit(model, train, val, settings, folder):
    """Train a compiled detector; the folder then holds its checkpoints, best model, history and curves."""
    per_epoch = len(train) // settings.batch_size
    batches = pipeline.training_batches(
        train, model, settings.batch_size, seed=settings.seed, cache=settings.cache, start_step=0
    )
    checkpoints = folder / "checkpoints"
    checkpoints.mkdir()
    model.fit(
        batches,
        steps_per_epoch=per_epoch,
        epochs=max(1, round(settings.steps / per_epoch)),
        shuffle=False,  # the pipeline does it
        verbose=1 if sys.stdout.isatty() else 2,
        callbacks=[
            evaluation.Evaluation(val, every=settings.evaluate_every),
            keras.callbacks.ModelCheckpoint(folder / "best.keras", "val_AP", mode="max", save_best_only=True),
            keras.callbacks.ModelCheckpoint(checkpoints / "last.keras"),
            keras.callbacks.CSVLogger(folder / "history.csv"),
            keras.callbacks.TensorBoard(folder / "tensorboard", write_graph=False),
        ],
    )
    drawing.curves(model.history.history, folder / "curves.png")


def report(model, test, folder, examples=8):
    """Evaluate on a Dataset, draw predictions beside ground truth, export; returns the figures."""
    figures = evaluation.evaluate(model, test)
    (folder / "evaluation.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    shown = dataclasses.replace(test, examples=test.examples[:examples])
    images = [pipeline.load_image(example.image) for example in shown.examples]
    found = inference.detect(model, shown)
    picture = drawing.truth_and_predictions(images, shown.examples, found, test.class_names)
    picture.save(folder / "predictions.png")
    serving.export(model, folder / "export")
    return figures


def say_what_was_made(settings, test, figures, folder):
    """The last lines of a run: how good, what lies where, and what to type next."""
    if settings.data == "shapes":
        print(
            "\nThis was the built-in set of generated shapes: it shows that all works, not what photographs give."
        )
    print(f"\n{test.name} ({len(test)} images): AP {figures['AP']:.3f}, AP50 {figures['AP50']:.3f}")
    print(f"{folder}/ holds best.keras, export/ (SavedModel), evaluation.json, predictions.png, curves.png, ...")
    print("Next:")
    print(f"  python -m tfdet predict photo.jpg --model {folder}/best.keras")
    if settings.data == "shapes":
        print("  python -m tfdet.recipes.ssd300 --data csv:boxes.csv   your photographs: path,x1,y1,x2,y2,label a line")
