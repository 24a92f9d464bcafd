"""Train CornerNet, see how good it is, look at what it finds, and get a SavedModel.

    python -m tfdet.recipes.cornernet                        the built-in shapes, on a small hourglass
    python -m tfdet.recipes.cornernet --data csv:FILE        your own photographs, on MobileNetV2
    python -m tfdet.recipes.cornernet --data coco:DIR        the authors' settings

Measured runs, their settings and pictures: recipes/cornernet/README.md.
"""

import dataclasses
from typing import Literal

from tfdet import commandline, training
from tfdet.detectors.cornernet import cornernet
from tfdet.detectors.originals import cornernet_original

# Those that a map of stride 4 comes of: what CornerNet and ExtremeNet are built on.
Backbone = Literal[
    "hourglass104",
    "hourglass54",
    "hourglass_slim",
    "resnet18_dcn",
    "resnet101_dcn",
    "resnet18_up",
    "resnet101_up",
    "dla34",
    "mobilenet_v2_up",
    "resnet_slim_up",
]


@dataclasses.dataclass(frozen=True)
class Settings(training.PointSettings):
    """Train CornerNet and leave a run folder: settings, checkpoints, best model, history, evaluation, pictures, export.

    Without any flag it trains a small network on a generated set of shapes, with --data csv:FILE MobileNetV2, and with
    other data Hourglass-104 by the published schedule. Whatever is not given follows from the data.
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
PHOTOGRAPHS = {  # some hundreds of one's own; what BCCD's were measured with
    "backbone": "mobilenet_v2_up",
    "backbone_weights": "imagenet",
    "side": 320,
    "test_size": "side",
    "batch_size": 8,
    "epochs": 30,
    "optimizer": "adam",
    "learning_rate": 5e-4,
    "drops": (),
    "warmup_steps": 50,
    "weight_decay": 0.0,
}
AUTHORS = {
    "backbone": "hourglass104",
    "backbone_weights": "none",
    "side": 511,
    "test_size": "own",
    "batch_size": 49,
    "steps": 500_000,
    "optimizer": "adam",
    "learning_rate": 2.5e-4,
    "drops": (450_000,),
    "warmup_steps": 0,
    "weight_decay": 0.0,
}


def resolve(settings):
    """The settings with everything filled in that follows from the data."""
    kind = settings.data.partition(":")[0]
    return training.fill_in(settings, {"shapes": SHAPES, "csv": PHOTOGRAPHS}.get(kind, AUTHORS))


def build(settings, dataset):
    """A compiled CornerNet for the classes of a Dataset."""
    sizes = settings.side, settings.test_size == "own"
    if settings.weights:
        model = cornernet_original(settings.weights, dataset.class_names, *sizes)
    else:
        weights = None if settings.backbone_weights == "none" else settings.backbone_weights
        model = cornernet(dataset.class_names, settings.backbone, weights, *sizes)
    model.compile(training.optimizer(settings))
    return model


def main(args=None):
    """The recipe; `args` is the command line without the program's name. Returns the run folder."""
    settings = commandline.parse(Settings, args, prog="python -m tfdet.recipes.cornernet")
    return commandline.run(lambda: training.run(resolve(settings), "cornernet", build))


if __name__ == "__main__":
    main()
