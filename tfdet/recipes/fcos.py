"""Train FCOS, see how good it is, look at what it finds, and get a SavedModel.

    python -m tfdet.recipes.fcos                        the built-in shapes, on a small network
    python -m tfdet.recipes.fcos --data csv:FILE        your own photographs, on MobileNetV2
    python -m tfdet.recipes.fcos --data coco:DIR        the paper's ResNet-50, with its schedule 1x

Measured runs, their settings and pictures: recipes/fcos/README.md.
"""

import dataclasses
from typing import Literal

from tfdet import commandline, training
from tfdet.detectors.fcos import fcos
from tfdet.detectors.torchvision import fcos_torchvision


@dataclasses.dataclass(frozen=True)
class Settings(training.Settings):
    """Train FCOS and leave a run folder: settings, checkpoints, best model, history, evaluation, pictures, export.

    Without any flag it trains a small network on a generated set of shapes, with --data csv:FILE MobileNetV2 for some
    minutes, and with other data ResNet-50 with the published schedule. Whatever is not given follows from the data.
    """

    backbone: Literal["resnet50", "resnet18", "resnet34", "resnet101", "mobilenet_v2", "resnet_slim"] | None = None
    """Feature extractor; resnet_slim is one that trains from nothing on a CPU."""
    backbone_weights: str | None = None
    """Weights of the backbone: imagenet, none, or a file (torchvision state dict)."""
    short_sides: tuple[int, ...] | None = None
    """The short side of an image in pixels: training draws one of these, prediction takes the last."""
    long_side: int | None = None
    """The long side is at most so many pixels."""
    version: Literal["original", "improved"] | None = None
    """The paper's, or the released code's later one: centre sampling, generalised IoU, distances in strides."""
    weights: str | None = None
    """Start from these weights of the whole detector, an improved one: a state dict of torchvision's
    fcos_resnet50_fpn."""


# What follows from the data where the command line is silent.
SHAPES = {
    "version": "improved",
    "backbone": "resnet_slim",
    "backbone_weights": "none",
    "short_sides": (192, 224, 256),
    "long_side": 400,
    "test_split": "test",
    "batch_size": 8,
    "steps": 620,
    "optimizer": "adam",
    "learning_rate": 0.001,
    "drops": (),
    "warmup_steps": 100,
    "weight_decay": 1e-4,
}
PHOTOGRAPHS = {  # some hundreds of one's own; what BCCD's were measured with
    "version": "improved",
    "backbone": "mobilenet_v2",
    "backbone_weights": "imagenet",
    "short_sides": (224, 256, 288),
    "long_side": 480,
    "batch_size": 8,
    "epochs": 15,
    "optimizer": "adam",
    "learning_rate": 0.0005,
    "drops": (),
    "warmup_steps": 50,
    "weight_decay": 1e-4,
}
PAPER = {
    "version": "original",
    "backbone": "resnet50",
    "backbone_weights": "imagenet",
    "short_sides": (800,),
    "long_side": 1333,
    "batch_size": 16,
    "steps": 90_000,
    "optimizer": "sgd",
    "learning_rate": 0.01,
    "drops": (60_000, 80_000),
    "warmup_steps": 500,
    "weight_decay": 1e-4,
}


def resolve(settings):
    """The settings with everything filled in that follows from the data."""
    kind = settings.data.partition(":")[0]
    return training.fill_in(settings, {"shapes": SHAPES, "csv": PHOTOGRAPHS}.get(kind, PAPER))


def build(settings, dataset):
    """A compiled FCOS for the classes of a Dataset."""
    if settings.weights:
        names = dict(zip(dataset.category_ids, dataset.class_names, strict=True))
        model = fcos_torchvision(settings.weights, names, settings.short_sides, settings.long_side)
    else:
        weights = None if settings.backbone_weights == "none" else settings.backbone_weights
        sizes = settings.short_sides, settings.long_side
        model = fcos(dataset.class_names, settings.backbone, weights, *sizes, settings.version == "improved")
    model.compile(training.optimizer(settings))
    return model


def main(args=None):
    """The recipe; `args` is the command line without the program's name. Returns the run folder."""
    settings = commandline.parse(Settings, args, prog="python -m tfdet.recipes.fcos")
    return commandline.run(lambda: training.run(resolve(settings), "fcos", build))


if __name__ == "__main__":
    main()
