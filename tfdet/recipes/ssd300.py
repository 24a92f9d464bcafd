"""Train SSD300, see how good it is, look at what it finds, and get a SavedModel.

    python -m tfdet.recipes.ssd300                        the built-in shapes: under 10 minutes on 2 cores
    python -m tfdet.recipes.ssd300 --data csv:FILE        your own photographs, on MobileNetV2
    python -m tfdet.recipes.ssd300 --data voc:DIR         the paper's SSD300 on VGG16, with its schedule

Measured runs, their settings and pictures: recipes/ssd300/README.md.
"""

import dataclasses
from typing import Literal

from tfdet import commandline, training
from tfdet.detectors.ssd import ssd300, ssd300_torchvision


@dataclasses.dataclass(frozen=True)
class Settings(training.Settings):
    """Train SSD300 and leave a run folder: settings, checkpoints, best model, history, evaluation, pictures, export.

    Without any flag it trains a small network on a generated set of shapes, with --data csv:FILE MobileNetV2 for some
    minutes, and with other data the paper's network with the paper's schedule. Whatever is not given follows from the
    data.
    """

    backbone: Literal["vgg16", "mobilenet_v2", "vgg_slim"] | None = None
    """Feature extractor: VGG16 (the paper's), MobileNetV2, or a slim VGG that trains from nothing on a CPU."""
    backbone_weights: str | None = None
    """Weights of the backbone: imagenet, none, or a file (torchvision state dict, Keras weights)."""
    priors: Literal["voc", "coco"] | None = None
    """Prior box sizes of the released VOC or COCO models."""
    prior_sizes: tuple[float, ...] | None = None
    """Other sizes, in pixels of the fed image: seven that rise (see tfdet.ssd300; `tfdet inspect` suggests some)."""
    weights: str | None = None
    """Start from these weights of the whole detector: a state dict of torchvision's ssd300_vgg16."""


# What follows from the data where the command line is silent. The paper's schedules are the released code's.
SHAPES = {
    "backbone": "vgg_slim",
    "backbone_weights": "none",
    "priors": "voc",
    "test_split": "test",
    "batch_size": 16,
    "steps": 1000,
    "optimizer": "sgd",
    "learning_rate": 0.02,
    "drops": (),
    "warmup_steps": 100,
    "weight_decay": 5e-4,
}
PHOTOGRAPHS = {  # some hundreds of one's own; what was measured on BCCD
    "backbone": "mobilenet_v2",
    "backbone_weights": "imagenet",
    "priors": "voc",
    "batch_size": 16,
    "epochs": 40,
    "optimizer": "sgd",
    "learning_rate": 0.01,
    "drops": (),
    "warmup_steps": 50,
    "weight_decay": 5e-4,
}
PAPER = {
    "backbone": "vgg16",
    "backbone_weights": "imagenet",
    "priors": "voc",
    "batch_size": 32,
    "steps": 120_000,
    "optimizer": "sgd",
    "learning_rate": 1e-3,
    "drops": (80_000, 100_000),
    "warmup_steps": 0,
    "weight_decay": 5e-4,
}
PAPER_COCO = {**PAPER, "priors": "coco", "steps": 400_000, "drops": (280_000, 360_000)}


def resolve(settings):
    """The settings with everything filled in that follows from the data."""
    kind = settings.data.partition(":")[0]
    return training.fill_in(settings, {"shapes": SHAPES, "csv": PHOTOGRAPHS, "coco": PAPER_COCO}.get(kind, PAPER))


def main(args=None):
    """The recipe; `args` is the command line without the program's name. Returns the run folder."""
    settings = commandline.parse(Settings, args, prog="python -m tfdet.recipes.ssd300")
    return commandline.run(lambda: training.run(resolve(settings), "ssd300", build))


def build(settings, dataset):
    """A compiled SSD300 for the classes of a Dataset.

    Raises:
        TfdetError: sizes of priors that cannot be, or for published weights.
    """
    if settings.weights:
        training.refuse_own_anchors(settings, "prior_sizes")
        model = ssd300_torchvision(settings.weights, dict(zip(dataset.category_ids, dataset.class_names, strict=True)))
    else:
        weights = None if settings.backbone_weights == "none" else settings.backbone_weights
        model = ssd300(dataset.class_names, settings.backbone, weights, settings.prior_sizes or settings.priors)
    model.compile(training.optimizer(settings))
    return model


if __name__ == "__main__":
    main()
