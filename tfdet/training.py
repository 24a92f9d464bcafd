"""Settings that every recipe has, and what they mean for `model.fit`."""

import dataclasses
import sys
from typing import Literal

import keras
import tensorflow as tf
from keras import ops

from tfdet import drawing, evaluation, runs
from tfdet.data import load_dataset, pipeline
from tfdet.data import service as data_service
from tfdet.data.validation import raise_unreadable
from tfdet.distribution import from_chief, is_chief, is_cluster, one_of_several, strategy, strategy_scope
from tfdet.errors import TfdetError, require_tensorflow


@dataclasses.dataclass(frozen=True)
class CommonSettings:
    """Settings that every recipe has."""

    data: str = "shapes"
    """The data: coco:DIR, coco_keypoints:DIR, coco_masks:DIR, voc:DIR, csv:FILE, tfrecord:DIR or shapes (generated)."""
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
    resume: str | None = None
    """Run folder of a run that was cut off: goes on from its last checkpoint, with its settings."""
    batch_size: int | None = None
    """Images a step, over all devices."""
    steps: int | None = None
    """Training steps in total, rounded to whole epochs."""
    epochs: int | None = None
    """Passes over the training split, instead of steps; 0 only evaluates."""
    optimizer: Literal["sgd", "adam"] | None = None
    """SGD with momentum 0.9, or Adam."""
    learning_rate: float | None = None
    """Highest learning rate."""
    drops: tuple[int, ...] | None = None
    """Steps at which the learning rate falls to a tenth; none: a cosine down to zero."""
    warmup_steps: int | None = None
    """Steps in which the learning rate rises from zero."""
    weight_decay: float | None = None
    """L2 weight decay of all kernels, as in Caffe: added to the gradient, before momentum."""
    precision: Literal["float32", "mixed_bfloat16", "mixed_float16"] = "float32"
    """Precision policy of Keras."""
    seed: int = 0
    """Of weights, order and augmentation."""


@dataclasses.dataclass(frozen=True)
class Settings(CommonSettings):
    """Settings that recipes of one network have beside these."""

    evaluate_every: int = 1
    """Evaluate on the validation split every so many epochs."""
    cache: bool = False
    """Keep decoded images in memory."""
    data_service: str | None = None
    """Decode and augment in other processes: grpc://HOST:PORT of `python -m tfdet data-service dispatcher`."""


@dataclasses.dataclass(frozen=True)
class PointSettings(Settings):
    """Settings that the recipes of CenterNet, CornerNet and ExtremeNet have beside these."""

    backbone_weights: str | None = None
    """Weights of the network: none, a file (a released checkpoint, or torchvision's state dict of the ResNet), or, of
    MobileNetV2, imagenet."""
    side: int | None = None
    """Training crops squares of so many pixels a side."""
    test_size: Literal["own", "side"] | None = None
    """Detect in images of their own size, or make the long side `side` first."""
    weights: str | None = None
    """Start from these weights of the whole detector: a released checkpoint."""


def load_splits(settings):
    """The training, validation and test Datasets of the settings; says what was left out of them."""
    train, *others = splits_of(settings.data, settings)
    if len(train) < settings.batch_size:
        raise TfdetError(f"{train.name}: fewer images than one batch of {settings.batch_size}")
    return [train, *others]


def splits_of(data, settings):
    """As `load_splits`, of any data set; and it may be small."""
    names = (settings.train_split, settings.val_split, settings.test_split or settings.val_split)
    splits = {name: load_dataset(data, name, settings.on_error) for name in dict.fromkeys(names)}
    for split in splits.values():
        skips = f"; {len(split.skipped)} left out or clipped" if split.skipped else ""
        print(f"{split.name}: {len(split)} images, {sum(len(e.boxes) for e in split.examples)} boxes{skips}")
        for line in split.skipped:
            print(f"  left out: {line}")
        if not len(split):
            raise TfdetError(f"{split.name}: no image of this split can be used")
    return [splits[name] for name in names]


def fill_in(settings, defaults):
    """The settings with `defaults`, {name: value}, where nothing was given; `steps` and `epochs` replace each other.

    Raises:
        TfdetError: a number among them cannot be, or two settings together.
    """
    missing = {name: value for name, value in defaults.items() if getattr(settings, name) is None}
    if settings.steps is not None or settings.epochs is not None:
        missing = {name: value for name, value in missing.items() if name not in ("steps", "epochs")}
    settings = dataclasses.replace(settings, **missing)
    _check_numbers(dataclasses.asdict(settings))
    if getattr(settings, "cache", False) and settings.data_service:
        raise TfdetError("--cache: keeps decoded images in this process, but with --data-service others decode them")
    return settings


def refuse_own_anchors(settings, name):
    """For a network that comes with its priors or anchors.

    Raises:
        TfdetError: the setting of that name has other sizes.
    """
    if getattr(settings, name) is not None:
        raise TfdetError(f"--{name.replace('_', '-')}: {settings.weights or settings.backbone} comes with its own")


LEAST = {"batch_size": 1, "steps": 1, "epochs": 0, "evaluate_every": 1, "short_sides": 1, "long_side": 1, "side": 1}
LEAST |= {"prior_sizes": 1, "anchor_sizes": 1, "learning_rate": 0, "drops": 1, "warmup_steps": 0, "weight_decay": 0}


def _check_numbers(settings):
    for name, value in settings.items():
        flag, values = f"--{name.replace('_', '-')}", value if isinstance(value, tuple) else (value,)
        if name in LEAST and any(number is not None and not number >= LEAST[name] for number in values):
            raise TfdetError(f"{flag} must be at least {LEAST[name]}: {value}")
        if name == "short_sides" and not values:
            raise TfdetError(f"{flag} needs at least one number")
        if name == "drops" and value and list(value) != sorted(value):
            raise TfdetError(f"{flag} must rise: {value}")


def run(settings, recipe, build):
    """The whole of a recipe: data, model, training, evaluation, pictures, export. Returns the run folder.

    Args:
        settings: with everything filled in.
        recipe: its name.
        build: function (settings, training Dataset) -> compiled detector.
    """
    require_tensorflow("a recipe")
    with one_of_several():
        check_replicas(settings)
        if settings.data_service:
            data_service.find_dispatcher(settings.data_service)
        keras.utils.set_random_seed(settings.seed)
        keras.mixed_precision.set_dtype_policy(settings.precision)
        train, val, test = load_splits(settings)
        settings = with_whole_epochs(settings, len(train))
        folder = runs.find_folder(settings, recipe)
        with strategy_scope():
            model = runs.last_checkpoint(folder) or build(settings, train)
            decay_weights(model, settings.weight_decay)
        runs.make_folder(folder, settings)
        fit(model, train, val, settings, folder)
        if settings.epochs:
            model = runs.best_model(folder)
        elif is_chief():
            with runs.writing_in(folder):
                model.save(folder / "best.keras")  # as it came
        figures = runs.report(model, test, folder)
        runs.say_what_was_made(settings, recipe, test, figures, folder)
    return folder


def check_replicas(settings, group=1):
    """Raises TfdetError where the devices of a cluster cannot share a batch equally, in groups of so many."""
    among = strategy()
    if is_cluster(among) and settings.batch_size % (least := among.num_replicas_in_sync * group):
        said = f"{among.num_replicas_in_sync} devices of the cluster share it: {settings.batch_size}"
        raise TfdetError(f"--batch-size must be a multiple of {least}, since {said}")


def with_whole_epochs(settings, num_images):
    """The settings with both `epochs` and `steps`, for a training split of `num_images`."""
    return with_epochs_of(settings, num_images // settings.batch_size)


def with_epochs_of(settings, per_epoch):
    """The settings with both `epochs` and `steps`, where an epoch has so many steps."""
    epochs = max(1, round(settings.steps / per_epoch)) if settings.epochs is None else settings.epochs
    return dataclasses.replace(settings, epochs=epochs, steps=epochs * per_epoch)


def optimizer(settings):
    """That of the settings, with their schedule of learning rates."""
    rate = learning_rate(settings)
    return keras.optimizers.Adam(rate) if settings.optimizer == "adam" else keras.optimizers.SGD(rate, momentum=0.9)


def learning_rate(settings):
    """Steps to a tenth at `drops`, or else a cosine down to zero; either after a linear warm-up."""
    peak, schedules = settings.learning_rate, keras.optimizers.schedules
    warmup = min(settings.warmup_steps, settings.steps // 2)
    if settings.drops:
        rates = [peak * 0.1**n for n in range(len(settings.drops) + 1)]
        schedule = schedules.PiecewiseConstantDecay(list(settings.drops), rates)
        return WarmUp(schedule, warmup) if warmup else schedule
    rest = max(1, settings.steps - warmup)
    if not warmup:
        return schedules.CosineDecay(peak, rest)
    return schedules.CosineDecay(0.0, rest, warmup_target=peak, warmup_steps=warmup)


@keras.saving.register_keras_serializable("tfdet")
class WarmUp(keras.optimizers.schedules.LearningRateSchedule):
    """Another schedule whose rate rises linearly to its full height in the first `steps` steps."""

    def __init__(self, schedule, steps):
        self.schedule, self.steps = schedule, steps

    def __call__(self, step):
        share = ops.cast(step, "float32") / self.steps
        return self.schedule(step) * ops.minimum(share, 1.0)

    def get_config(self):
        return {"schedule": keras.saving.serialize_keras_object(self.schedule), "steps": self.steps}

    @classmethod
    def from_config(cls, config):
        return cls(keras.saving.deserialize_keras_object(config["schedule"]), config["steps"])


def decay_weights(model, weight_decay):
    """L2 penalty on every kernel, whose gradient is `weight_decay` times the kernel; biases and norms have none.

    It is no part of a saved model: call it again after loading one.
    """
    for variable in model.trainable_variables:
        if len(variable.shape) > 1:
            variable.regularizer = keras.regularizers.L2(weight_decay / 2)


def fit(model, train, val, settings, folder):
    """Train a compiled detector to the end of the settings, from wherever its optimizer stands.

    The folder then holds its checkpoints, best model, history and curves.

    Raises:
        DataError: an image of the training split cannot be decoded (on_error="skip" would have found it before).
        TfdetError: the folder cannot be written, the disk being full for instance.
    """
    with runs.writing_in(folder):
        if model.optimizer.iterations.numpy() < settings.steps:
            _fit(model, train, val, settings, folder)
        if is_chief() and (history := runs.read_history(folder)):
            drawing.curves(history, folder / "curves.png")


def _fit(model, train, val, settings, folder):
    per_epoch = settings.steps // settings.epochs
    done = int(model.optimizer.iterations.numpy())
    batches = pipeline.training_batches(
        train,
        model,
        settings.batch_size,
        seed=settings.seed,
        cache=settings.cache,
        start_step=done,
        service=settings.data_service,
    )
    if is_chief():
        runs.forget_history_after(folder, done // per_epoch)
    last = from_chief(runs.last_figures(folder))
    callbacks = [evaluation.Evaluation(val, settings.evaluate_every, last=last, service=settings.data_service)]
    if is_chief():
        callbacks += [
            keras.callbacks.CSVLogger(folder / "history.csv", append=True),
            keras.callbacks.TensorBoard(folder / "tensorboard", write_graph=False),
            runs.Checkpoints(folder),
        ]
    try:
        model.fit(
            batches,
            steps_per_epoch=per_epoch,
            initial_epoch=done // per_epoch,
            epochs=settings.epochs,
            verbose=1 if sys.stdout.isatty() else 2,
            callbacks=callbacks,
        )
    # What tf.data says of an image, nameless; Unknown to it is what a data service has said.
    except (tf.errors.InvalidArgumentError, tf.errors.NotFoundError, tf.errors.UnknownError) as error:
        data_service.raise_failure(error)
        images = [example.image for example in train.examples]
        ids = [example.image_id for example in train.examples]
        raise_unreadable(ids, images, ' (on_error="skip" leaves it out)')
        raise
