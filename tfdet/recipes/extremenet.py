"""Train ExtremeNet, see how good it is, look at what it finds, and get a SavedModel.

    python -m tfdet.recipes.extremenet                       the built-in shapes, on a small hourglass
    python -m tfdet.recipes.extremenet --data coco_masks:DIR the authors' settings

It learns from outlines: --data must be one of the two. What was measured: recipes/extremenet/README.md.
"""

import dataclasses

from tfdet import commandline, skeleton, training
from tfdet.detectors.extremenet import extremenet
from tfdet.detectors.originals import extremenet_original
from tfdet.errors import TfdetError
from tfdet.recipes.cornernet import Backbone


@dataclasses.dataclass(frozen=True)
class Settings(training.PointSettings):
    """Train ExtremeNet; leave a run folder: settings, checkpoints, best model, history, evaluation, pictures, export.

    Without any flag it trains a small network on a generated set of shapes, and with other data Hourglass-104 by the
    published schedule. Whatever is not given follows from the data.
    """

    backbone: Backbone | None = None
    """Network; mobilenet_v2_up is one for CPUs, hourglass_slim and resnet_slim_up train from nothing on one."""


# What follows from the data where the command line is silent.
SHAPES = {
    "backbone": "hourglass_slim",
    "backbone_weights": "none",
    "side": 256,
    "test_size": "side",
    "test_split": "test",
    "batch_size": 8,
    "steps": 2000,
    "optimizer": "adam",
    "learning_rate": 1e-3,
    "drops": (),
    "warmup_steps": 100,
    "weight_decay": 0.0,
}
AUTHORS = {
    "backbone": "hourglass104",
    "backbone_weights": "CornerNet_500000.pkl",
    "side": 511,
    "test_size": "own",
    "batch_size": 24,
    "steps": 250_000,
    "optimizer": "adam",
    "learning_rate": 2.5e-4,
    "drops": (200_000,),
    "warmup_steps": 0,
    "weight_decay": 0.0,
}


def resolve(settings):
    """The settings with everything filled in that follows from the data."""
    return training.fill_in(settings, SHAPES if settings.data == "shapes" else AUTHORS)


def build(settings, dataset):
    """A compiled ExtremeNet for the classes of a Dataset.

    Raises:
        TfdetError: it has no extreme points.
    """
    if dataset.keypoint_names != skeleton.EXTREME_POINTS:
        raise TfdetError(f"{dataset.name} has no extreme points: --data coco_masks:DIR reads those of outlines")
    sizes = settings.side, settings.test_size == "own"
    if settings.weights:
        model = extremenet_original(settings.weights, dataset.class_names, *sizes)
    else:
        weights = None if settings.backbone_weights == "none" else settings.backbone_weights
        model = extremenet(dataset.class_names, settings.backbone, weights, *sizes)
    model.compile(training.optimizer(settings))
    return model


def main(args=None):
    """The recipe; `args` is the command line without the program's name. Returns the run folder."""
    settings = commandline.parse(Settings, args, prog="python -m tfdet.recipes.extremenet")
    return commandline.run(lambda: training.run(resolve(settings), "extremenet", build))


if __name__ == "__main__":
    main()
