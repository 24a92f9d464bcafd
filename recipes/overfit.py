"""Can a detector learn eight photographs by heart? The first eight of a data set that have objects.

    python recipes/overfit.py --data coco:DIR --detector faster_rcnn [--steps 400] [--seed 0]
    python recipes/overfit.py --data coco_keypoints:DIR --detector centernet_pose
    python recipes/overfit.py --data coco_masks:DIR --detector extremenet

All eight are one batch, so that batch normalisation sees while training what it sees later; Adam, a cosine from 0.001,
the slim ResNet from nothing. Images have a short side of 384 pixels, about half of the published 800, so anchors are
half as large as published as well: with the published ones, 10 of the 96 objects of tiny_coco's eight have no anchor
with an IoU of 0.3. Poses are learnt from images with a long side of 256 pixels. Evaluation is that of any data set, on
the same images.
"""

import argparse
import dataclasses
import time

import keras
import numpy as np

import tfdet
from tfdet.anchors import AnchorGenerator
from tfdet.detectors.centernet import CenterNet
from tfdet.detectors.centernet_pose import CenterNetPose
from tfdet.detectors.cornernet import CornerNet
from tfdet.detectors.extremenet import ExtremeNet
from tfdet.detectors.faster_rcnn import FasterRCNN
from tfdet.detectors.fcos import FCOS
from tfdet.detectors.retinanet import RetinaNet

SIDES = {"short_sides": (384,), "long_side": 768}
RATIOS = (0.5, 1.0, 2.0)
POINTS = {"side": 384, "keep_size": False, "channels": 64, "multiple": 32}


def faster_rcnn(class_names):
    anchors = [AnchorGenerator((4 * 2**k,), RATIOS, 2**k) for k in range(2, 7)]
    widths = {"channels": 64, "rpn_channels": 64, "box_width": 256, "regions": 128}
    return FasterRCNN(tfdet.backbones.resnet_slim(), class_names, anchors, **SIDES, **widths)


def retinanet(class_names):
    anchors = [AnchorGenerator([2 * 2 ** (k + octave / 3) for octave in range(3)], RATIOS, 2**k) for k in range(3, 8)]
    return RetinaNet(tfdet.backbones.resnet_slim(), class_names, anchors, **SIDES, channels=64)


def fcos(class_names):
    return FCOS(tfdet.backbones.resnet_slim(), class_names, **SIDES, channels=64, improved=True)


def centernet(class_names):
    return CenterNet(tfdet.backbones.resnet18_up(), class_names, side=384)


def centernet_pose(class_names):
    return CenterNetPose(tfdet.backbones.resnet_slim_up(), class_names, tfdet.skeleton.PERSON, side=256, channels=32)


def cornernet(class_names):
    return CornerNet(tfdet.backbones.resnet_slim_up(), class_names, **POINTS)


def extremenet(class_names):
    return ExtremeNet(tfdet.backbones.resnet_slim_up(), class_names, **POINTS)


DETECTORS = {
    "faster_rcnn": faster_rcnn,
    "retinanet": retinanet,
    "fcos": fcos,
    "centernet": centernet,
    "centernet_pose": centernet_pose,
    "cornernet": cornernet,
    "extremenet": extremenet,
}


def first(count, spec):
    """The first images with objects, and of the classes those that occur."""
    dataset = tfdet.load_dataset(spec, split="train", on_error="skip")
    examples = [example for example in dataset.examples if len(example.boxes)][:count]
    used = np.unique(np.concatenate([example.labels for example in examples]))
    examples = [
        dataclasses.replace(example, labels=np.searchsorted(used, example.labels).astype("int32"))
        for example in examples
    ]
    names, ids = ([values[label] for label in used] for values in (dataset.class_names, dataset.category_ids))
    return dataclasses.replace(dataset, class_names=tuple(names), category_ids=tuple(ids), examples=tuple(examples))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="as --data of a recipe")
    parser.add_argument("--detector", required=True, choices=DETECTORS)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--every", type=int, default=100, help="evaluate after so many steps")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", help="save the detector there whenever it is evaluated, a .keras file")
    arguments = parser.parse_args()
    keras.utils.set_random_seed(arguments.seed)
    dataset = first(arguments.images, arguments.data)
    print(f"{sum(len(e.boxes) for e in dataset.examples)} objects of {dataset.num_classes} classes", flush=True)

    detector = DETECTORS[arguments.detector](dataset.class_names)
    rest, highest = arguments.steps - 50, arguments.learning_rate
    schedule = keras.optimizers.schedules.CosineDecay(0.0, rest, warmup_target=highest, warmup_steps=50)
    detector.compile(keras.optimizers.Adam(schedule, global_clipnorm=10.0))
    batches = tfdet.validation_batches(dataset, detector, arguments.batch_size).cache().repeat()
    start = time.time()
    for step in range(arguments.every, arguments.steps + 1, arguments.every):
        losses = detector.fit(batches, steps_per_epoch=arguments.every, verbose=0).history
        figures = tfdet.evaluate(detector, dataset)
        parts = ", ".join(f"{name} {values[-1]:.4f}" for name, values in losses.items())
        names = ("AP", "AP50", "APs", "APm", "APl", "keypoint_AP", "keypoint_AP50", "mask_AP", "mask_AP50")
        scores = ", ".join(f"{name} {figures[name]:.3f}" for name in names if figures.get(name) is not None)
        print(f"step {step}, {time.time() - start:.0f} s: {parts}; {scores}", flush=True)
        if arguments.output:
            detector.save(arguments.output)


if __name__ == "__main__":
    main()
