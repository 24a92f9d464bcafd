"""Train CenterNet to find people and their joints, see how good it is, look at what it finds, and get a SavedModel.

    python -m tfdet.recipes.centernet_pose                                the built-in shapes, on a small network
    python -m tfdet.recipes.centernet_pose --data coco_keypoints:DIR      the authors' settings for COCO

The joints of the built-in shapes are the four points where they touch their boxes. What was measured, which is no run
of this recipe to its end: recipes/centernet_pose/README.md.
"""

import dataclasses
from typing import Literal

from tfdet import commandline, skeleton, training
from tfdet.detectors.centernet_pose import centernet_pose
from tfdet.detectors.originals import centernet_pose_original
from tfdet.errors import TfdetError


@dataclasses.dataclass(frozen=True)
class Settings(training.PointSettings):
    """Train CenterNet for poses and leave a run folder: settings, checkpoints, best model, history, evaluation,
    pictures, export.

    Without any flag it trains a small network on a generated set of shapes, and with --data coco_keypoints:DIR DLA-34
    by the published schedule, from the authors' CenterNet for boxes (--backbone-weights ctdet_coco_dla_2x.pth).
    Whatever is not given follows from the data.
    """

    backbone: (
        Literal["dla34", "hourglass104", "resnet18_dcn", "resnet101_dcn", "mobilenet_v2_up", "resnet_slim_up"] | None
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
# multi_pose_dla_1x.sh: 140 epochs of the 64,115 images with people, drops after 90 and 120. Here images without people
# are trained on as well, and every one with people is seen as often: 140 epochs of all 118,287.
COCO = {
    "backbone": "dla34",
    "backbone_weights": "ctdet_coco_dla_2x.pth",
    "side": 512,
    "test_size": "own",
    "batch_size": 128,
    "steps": 129_360,
    "optimizer": "adam",
    "learning_rate": 5e-4,
    "drops": (83_160, 110_880),
    "warmup_steps": 0,
    "weight_decay": 0.0,
}


def resolve(settings):
    """The settings with everything filled in that follows from the data."""
    return training.fill_in(settings, SHAPES if settings.data == "shapes" else COCO)


def build(settings, dataset):
    """A compiled CenterNet for the classes and the keypoints of a Dataset.

    Raises:
        TfdetError: it has none, or the weights are of others.
    """
    names, sizes = dataset.keypoint_names, (settings.side, settings.test_size == "own")
    if not names:
        raise TfdetError(f"{dataset.name} has no keypoints: --data coco_keypoints:DIR reads some")
    if settings.weights and names != skeleton.PERSON:
        raise TfdetError(f"{settings.weights}: is for the joints of people; {dataset.name} has {', '.join(names)}")
    if settings.weights:
        model = centernet_pose_original(settings.weights, dataset.class_names, *sizes)
    else:
        weights = None if settings.backbone_weights == "none" else settings.backbone_weights
        model = centernet_pose(dataset.class_names, settings.backbone, weights, *sizes, names)
    model.compile(training.optimizer(settings))
    return model


def main(args=None):
    """The recipe; `args` is the command line without the program's name. Returns the run folder."""
    settings = commandline.parse(Settings, args, prog="python -m tfdet.recipes.centernet_pose")
    return commandline.run(lambda: training.run(resolve(settings), "centernet_pose", build))


if __name__ == "__main__":
    main()
