"""Train CenterNet, see how good it is, look at what it finds, and get a SavedModel.

    python -m tfdet.recipes.centernet                        the built-in shapes, on a small network
    python -m tfdet.recipes.centernet --data csv:FILE        your own photographs, on MobileNetV2
    python -m tfdet.recipes.centernet --data voc:DIR         the authors' settings for VOC, and ...
    python -m tfdet.recipes.centernet --data coco:DIR        ... for COCO

Measured runs, their settings and pictures: recipes/centernet/README.md.
"""

import dataclasses
from typing import Literal

from tfdet import commandline, training
from tfdet.detectors.centernet import centernet
from tfdet.detectors.originals import centernet_original


@dataclasses.dataclass(frozen=True)
class Settings(training.PointSettings):
    """Train CenterNet and leave a run folder: settings, checkpoints, best model, history, evaluation, pictures, export.

    Without any flag it trains a small network on a generated set of shapes, with --data csv:FILE MobileNetV2, and on
    VOC and COCO ResNet-18 with deformable convolutions by the published schedule, from a file of torchvision's
    ImageNet weights (--backbone-weights). Whatever is not given follows from the data.
    """

    backbone: (
        Literal[
            "resnet18_dcn",
            "resnet101_dcn",
            "resnet18_up",
            "resnet101_up",
            "dla34",
            "hourglass104",
            "mobilenet_v2_up",
            "resnet_slim_up",
        ]
        | None
    ) = None
    """Network; mobilenet_v2_up is one for CPUs, resnet_slim_up trains from nothing on one."""


# What follows from the data where the command line is silent.
SHAPES = {
    "backbone": "resnet_slim_up",
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
    "backbone": "resnet18_dcn",
    "backbone_weights": "imagenet",
    "test_size": "side",
    "optimizer": "adam",
    "warmup_steps": 0,
    "weight_decay": 0.0,
}
PHOTOGRAPHS = AUTHORS | {  # some hundreds of one's own; what BCCD's were measured with
    "backbone": "mobilenet_v2_up",
    "side": 384,
    "batch_size": 8,
    "epochs": 30,
    "learning_rate": 5e-4,
    "drops": (),
    "warmup_steps": 50,
}
VOC = AUTHORS | {  # 70 epochs of 2007 and 2012, drops after 45 and 60
    "side": 384,
    "batch_size": 32,
    "steps": 36_190,
    "learning_rate": 1.25e-4,
    "drops": (23_265, 31_020),
}
COCO = AUTHORS | {  # 140 epochs, drops after 90 and 120
    "side": 512,
    "test_size": "own",
    "batch_size": 114,
    "steps": 145_180,
    "learning_rate": 5e-4,
    "drops": (93_330, 124_440),
}


def resolve(settings):
    """The settings with everything filled in that follows from the data."""
    kind = settings.data.partition(":")[0]
    return training.fill_in(settings, {"shapes": SHAPES, "csv": PHOTOGRAPHS, "voc": VOC}.get(kind, COCO))


def build(settings, dataset):
    """A compiled CenterNet for the classes of a Dataset."""
    sizes = settings.side, settings.test_size == "own"
    if settings.weights:
        model = centernet_original(settings.weights, dataset.class_names, *sizes)
    else:
        weights = None if settings.backbone_weights == "none" else settings.backbone_weights
        model = centernet(dataset.class_names, settings.backbone, weights, *sizes)
    model.compile(training.optimizer(settings))
    return model


def main(args=None):
    """The recipe; `args` is the command line without the program's name. Returns the run folder."""
    settings = commandline.parse(Settings, args, prog="python -m tfdet.recipes.centernet")
    return commandline.run(lambda: training.run(resolve(settings), "centernet", build))


if __name__ == "__main__":
    main()
