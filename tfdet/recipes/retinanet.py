"""Train RetinaNet, see how good it is, look at what it finds, and get a SavedModel.

    python -m tfdet.recipes.retinanet                        the built-in shapes, on a small network
    python -m tfdet.recipes.retinanet --data csv:FILE        your own photographs, on MobileNetV2
    python -m tfdet.recipes.retinanet --data coco:DIR        the paper's ResNet-50, with detectron2's schedule

Measured runs, their settings and pictures: recipes/retinanet/README.md.
"""

import dataclasses
from typing import Literal

from tfdet import commandline, training
from tfdet.detectors.retinanet import retinanet
from tfdet.detectors.torchvision import retinanet_torchvision


@dataclasses.dataclass(frozen=True)
class Settings(training.Settings):
    """Train RetinaNet and leave a run folder: settings, checkpoints, best model, history, evaluation, pictures, export.

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
    anchor_sizes: tuple[float, ...] | None = None
    """Sizes of the anchors of each level, of three the smallest, finest first, in pixels of the fed image;
    `tfdet inspect` suggests some."""
    weights: str | None = None
    """Start from these weights of the whole detector: a state dict of torchvision's retinanet_resnet50_fpn."""


# What follows from the data where the command line is silent.
SHAPES = {
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
    "backbone": "resnet50",
    "backbone_weights": "imagenet",
    "short_sides": (640, 672, 704, 736, 768, 800),
    "long_side": 1333,
    "batch_size": 16,
    "steps": 90_000,
    "optimizer": "sgd",
    "learning_rate": 0.01,
    "drops": (60_000, 80_000),
    "warmup_steps": 1000,
    "weight_decay": 1e-4,
}


def resolve(settings):
    """The settings with everything filled in that follows from the data."""
    kind = settings.data.partition(":")[0]
    return training.fill_in(settings, {"shapes": SHAPES, "csv": PHOTOGRAPHS}.get(kind, PAPER))


def build(settings, dataset):
    """A compiled RetinaNet for the classes of a Dataset.

    Raises:
        TfdetError: sizes of anchors that cannot be, or for published weights.
    """
    if settings.weights:
        training.refuse_own_anchors(settings, "anchor_sizes")
        names = dict(zip(dataset.category_ids, dataset.class_names, strict=True))
        model = retinanet_torchvision(settings.weights, names, settings.short_sides, settings.long_side)
    else:
        weights = None if settings.backbone_weights == "none" else settings.backbone_weights
        sizes = settings.short_sides, settings.long_side
        anchors = {"anchor_sizes": settings.anchor_sizes}
        model = retinanet(dataset.class_names, settings.backbone, weights, *sizes, **anchors)
    model.compile(training.optimizer(settings))
    return model


def main(args=None):
    """The recipe; `args` is the command line without the program's name. Returns the run folder."""
    settings = commandline.parse(Settings, args, prog="python -m tfdet.recipes.retinanet")
    return commandline.run(lambda: training.run(resolve(settings), "retinanet", build))


if __name__ == "__main__":
    main()
