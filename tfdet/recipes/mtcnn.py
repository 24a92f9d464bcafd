"""Train MTCNN's three networks one after the other, see how good they are together, and get a SavedModel.

    python -m tfdet.recipes.mtcnn --data wider_face:DIR --landmarks landmarks:FILE

P-Net learns from squares that are drawn by lot, R-Net from those that P-Net finds then, O-Net from those that are left
of them behind R-Net (see tfdet.data.mtcnn_samples). The run folder has a folder for each of them.

What was measured: recipes/mtcnn/README.md.
"""

import dataclasses
import re
import sys

import keras
import tensorflow as tf

from tfdet import commandline, drawing, evaluation, runs, training
from tfdet.data import face_crops, load_dataset, split_names
from tfdet.data.images import decode
from tfdet.data.mtcnn_samples import NAMES, SHARES, PNetSamples
from tfdet.data.pipeline import annotations, read
from tfdet.data.validation import raise_unreadable
from tfdet.data.wider_face import LEVELS
from tfdet.detectors.base import StopOnNonFiniteLoss
from tfdet.detectors.mtcnn import mtcnn
from tfdet.detectors.mtcnn_training import compile_network
from tfdet.distribution import (
    dealt_out,
    is_chief,
    num_workers,
    one_of_several,
    strategy,
    strategy_scope,
)
from tfdet.errors import TfdetError, require_tensorflow
from tfdet.keras_multi_worker import prepare_for_workers
from tfdet.skeleton import FACE


@dataclasses.dataclass(frozen=True)
class Settings(training.CommonSettings):
    """Train MTCNN; leave a run folder: settings, checkpoints, best model, history, evaluation, pictures, export.

    Steps, epochs and what belongs to them are those of each of the three networks. An epoch takes as many batches as it
    takes to draw 96 negatives an image.
    """

    data: str = ""
    """Faces: wider_face:DIR, or any other data set of one class."""
    landmarks: str = ""
    """Faces with five landmarks: landmarks:FILE or dlib:DIR; its splits are called as those of the data."""
    min_face: int = 20
    """Side of the smallest face that is learnt and found, in pixels."""
    batch_size: int | None = None
    """Crops a step, over all devices; a multiple of seven."""


DEFAULTS = {
    "batch_size": 224,
    "steps": 10_000,
    "optimizer": "adam",
    "learning_rate": 4e-3,
    "drops": (),
    "warmup_steps": 100,
    "weight_decay": 0.0,
}
SIDES = {"pnet": 12, "rnet": 24, "onet": 48}
# Probabilities of a face above which squares are learnt from: what is almost taken for one, too. The lower ones are for
# networks that know nothing yet, or all, so that they leave hardly any squares of some kind.
LEARNT_FROM = (0.4, 0.1, 0.0)


def main(args=None):
    """The recipe; `args` is the command line without the program's name. Returns the run folder."""
    settings = commandline.parse(Settings, args, prog="python -m tfdet.recipes.mtcnn")
    return commandline.run(lambda: run(resolve(settings)))


def resolve(settings):
    """The settings with everything filled in that was not given.

    Raises:
        TfdetError: something is missing, or cannot be.
    """
    if not (settings.data and settings.landmarks):
        raise TfdetError("MTCNN learns from faces and from landmarks: --data wider_face:DIR --landmarks landmarks:FILE")
    settings = training.fill_in(settings, DEFAULTS)
    if settings.batch_size % face_crops.GROUP:
        raise TfdetError(f"--batch-size must be a multiple of {face_crops.GROUP}: {settings.batch_size}")
    if settings.min_face < 12:
        raise TfdetError(f"--min-face must be at least 12, the pixels that P-Net looks at: {settings.min_face}")
    return settings


def inspected(settings, dataset):
    """What `tfdet inspect` asks for samples.

    Raises:
        TfdetError: the data set has other classes than faces.
    """
    _check_faces(dataset)
    return PNetSamples(settings.min_face, landmarks=dataset.keypoint_names == FACE)


def _check_faces(dataset):
    if dataset.num_classes != 1:
        raise TfdetError(f"{dataset.name}: MTCNN finds faces, one class, not {', '.join(dataset.class_names)}")


def run(settings):
    """Data, three networks, evaluation, pictures, export. Returns the run folder."""
    require_tensorflow("a recipe")
    with one_of_several():
        return _run(settings)


def _run(settings):
    training.check_replicas(settings, face_crops.GROUP)
    keras.utils.set_random_seed(settings.seed)
    keras.mixed_precision.set_dtype_policy(settings.precision)
    faces = training.splits_of(settings.data, settings)
    _check_faces(faces[0])
    landmarks = training.splits_of(settings.landmarks, settings)
    for split in (*faces[:2], *landmarks[:2]):
        if len(split) < num_workers(strategy()):
            raise TfdetError(f"{split.name}: fewer images than workers")
    settings = training.with_epochs_of(settings, _steps_per_epoch(faces[0], settings))

    with strategy_scope():
        model = mtcnn(settings.min_face, landmarks=True)
    folder = runs.find_folder(settings, "mtcnn")
    runs.make_folder(folder, settings)
    for name in SIDES:
        with runs.writing_in(folder):
            trained = train(name, model, list(zip(faces[:2], landmarks[:2], strict=True)), settings, folder / name)
        getattr(model, name).set_weights(trained.get_weights())
    if is_chief():
        with runs.writing_in(folder):
            model.save(folder / "best.keras")
    test, others = faces[2], [landmarks[2]]
    harder = [f"{settings.test_split or settings.val_split}_{level}" for level in LEVELS]
    others += [load_dataset(settings.data, name, "skip") for name in split_names(settings.data) if name in harder]
    figures = runs.report(model, test, folder, others=others)
    runs.say_what_was_made(settings, "mtcnn", test, figures, folder)
    for other in others:
        shown = {key: figures[other.name].get(key) for key in ("VOC_AP_area", *evaluation.LANDMARK_FIGURES)}
        said = ", ".join(f"{key} {value:.3f}" for key, value in shown.items() if value is not None)
        print(f"{other.name} ({len(other)} images): {said}")
    return folder


def _steps_per_epoch(dataset, settings):
    return face_crops.steps_per_epoch(dataset, settings.batch_size, num_workers(strategy()))


def train(name, model, splits, settings, folder):
    """Train the network of that name on, from wherever its folder says that it stands; returns the best one.

    Args:
        model: MTCNN, of which the networks before this one are trained.
        splits: (faces, landmarks) to train on, and to validate on.
    """
    if is_chief():
        folder.mkdir(exist_ok=True)
    with strategy_scope():
        network = runs.last_checkpoint(folder)
        if network is None:
            network = keras.models.clone_model(getattr(model, name))
            network.set_weights(getattr(model, name).get_weights())  # the same, wherever the run has begun
            compile_network(network, training.optimizer(settings))
    training.decay_weights(network, settings.weight_decay)
    done = int(network.optimizer.iterations.numpy())
    if done < settings.steps:
        _fit(name, network, model, splits, settings, folder, done * settings.epochs // settings.steps)
        if is_chief():
            losses = {key: values for key, values in runs.read_history(folder).items() if "loss" in key}
            drawing.curves(losses, folder / "curves.png")
    return runs.best_model(folder)


def _fit(name, network, model, splits, settings, folder, epoch):
    batches = []
    for first, (faces, landmarks) in zip((epoch, None), splits, strict=True):
        found = None if name == "pnet" else squares(model, name, faces, settings)
        arguments = (faces, landmarks, SIDES[name], settings.batch_size, settings.min_face, settings.seed, found, first)
        among = network.distribute_strategy
        batches.append(face_crops.crop_batches(*arguments, augment=first is not None, among=among))
    callbacks = [StopOnNonFiniteLoss()]
    if is_chief():
        runs.forget_history_after(folder, epoch)
        callbacks += [
            keras.callbacks.CSVLogger(folder / "history.csv", append=True),
            runs.Checkpoints(folder, lambda logs: -logs["val_loss"]),
        ]
    prepare_for_workers(network)
    shares = " : ".join(f"{share} {NAMES[kind]}" for kind, share in SHARES.items())
    print(f"{name}: an epoch has {settings.steps // settings.epochs} batches of {settings.batch_size} crops, {shares}")
    try:
        network.fit(
            batches[0],
            validation_data=batches[1],
            steps_per_epoch=settings.steps // settings.epochs,
            validation_steps=_steps_per_epoch(splits[1][0], settings),
            initial_epoch=epoch,
            epochs=settings.epochs,
            shuffle=False,  # or Keras warns that the pipeline does it
            verbose=1 if sys.stdout.isatty() else 2,
            callbacks=callbacks,
        )
    except (tf.errors.InvalidArgumentError, tf.errors.NotFoundError) as error:  # what tf.data says, nameless
        examples = [example for pair in splits for dataset in pair for example in dataset.examples]
        images = [example.image for example in examples]
        raise_unreadable([example.image_id for example in examples], images, ' (on_error="skip" leaves it out)')
        if said := re.search(f"{face_crops.NONE_OF_A_KIND}[^']*?images", error.message):
            raise TfdetError(f"{name}: {said.group()}") from None
        raise


def squares(model, name, faces, settings):
    """What the network of that name looks at in each image of a Dataset, ragged [images, N, 4]; says what it is.

    Raises:
        TfdetError: there is a kind of square of which there is none.
    """
    for least in LEARNT_FROM:
        found = _squares(model, name, faces, settings.min_face, least)
        counts = face_crops.kinds_found(faces, found, settings.min_face)
        said = ", ".join(f"{counts[kind]} {NAMES.get(kind, 'not used')}" for kind in counts)
        print(f"{name}: squares of {faces.name} with a probability above {least}: {said}")
        groups = settings.batch_size // face_crops.GROUP
        if all(counts[kind] >= groups * SHARES[kind] for kind in face_crops.MOST):
            break
    if missing := [NAMES[kind] for kind in face_crops.MOST if not counts[kind]]:
        raise TfdetError(f"{name}: {faces.name} leaves no {missing[0]} to learn from")
    return found


def _squares(model, name, faces, min_face, least):
    willing = mtcnn(min_face, (least, least, 1.0), landmarks=True)
    willing.set_weights(model.get_weights())
    images = tf.TensorSpec([None, None, 3], tf.float32)
    look = tf.function(lambda image: willing.squares(image, name), input_signature=[images], autograph=False)
    look_up = annotations(faces)

    def look_at(numbers):
        images = tf.data.Dataset.from_tensor_slices(tf.constant(numbers, tf.int64))
        images = images.map(lambda i: decode(read(look_up(i)["source"])), tf.data.AUTOTUNE)
        return [look(tf.cast(image, tf.float32)).numpy() for image in images]

    found = dealt_out(range(len(faces)), look_at)
    return tf.RaggedTensor.from_row_lengths(tf.concat(found, axis=0), [len(some) for some in found])


if __name__ == "__main__":
    main()
