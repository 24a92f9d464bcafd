"""Targets of FPN, RetinaNet and FCOS against torchvision's: time an image, as ratios measured in one run.

    python benchmarks/targets.py --peer PYTHON

PYTHON is the interpreter of an environment with the peers (benchmarks/requirements.txt). Square images of 512 and 1024
pixels with 20 objects each; ours go through `tf.data`, one after the other. Deltas are those of the positives, but for
FPN and FCOS torchvision encodes all anchors. FCOS is the improved one, as torchvision's.
"""

import sys
import types

import numpy as np
import turns

OBJECTS, IMAGES = 20, 8
SIZES = (32, 64, 128, 256, 512)  # of the anchors, finest level first
TASKS = {  # name: question
    "FPN, matching": ("match", "fpn"),
    "FPN, matching, deltas, sampling": ("targets", "fpn"),
    "RetinaNet, matching and deltas": ("targets", "retinanet"),
    "FCOS, matching": ("match", "fcos"),
    "FCOS, all targets": ("targets", "fcos"),
}


def main():
    arguments = turns.arguments(__doc__, {"tfdet": tfdet_side, "torchvision": torchvision_side})
    ours, theirs = turns.Process(sys.executable, "tfdet"), turns.Process(arguments.peer, "torchvision")
    print(turns.HEADER)
    for name, question in TASKS.items():
        for side in (512, 1024):
            turns.compare(f"{name}, {side} px", ours, theirs, (*question, side), rounds=15)


def levels_of(detector):
    """(stride, sizes of the anchors) of each level."""
    if detector == "fpn":
        return [(size // 8, (size,)) for size in SIZES]
    if detector == "fcos":
        return [(size // 4, (size // 4,)) for size in SIZES]
    return [(size // 4, tuple(size * 2 ** (k / 3) for k in range(3))) for size in SIZES]


def objects_of(side):
    """Boxes [IMAGES, OBJECTS, 4] of 16 pixels to a third of the image, evenly spread in the logarithm."""
    rng = np.random.default_rng(0)
    sides = np.exp(rng.uniform(np.log(16), np.log(side / 3), (IMAGES, OBJECTS, 2)))
    corners = rng.uniform(0, side - sides)
    return np.concatenate([corners, corners + sides], axis=-1).astype("float32")


def tfdet_side():
    import tensorflow as tf

    from tfdet import anchors, assigners, coders, samplers
    from tfdet.detectors import fcos

    coder, sampler, prepared = coders.DeltaXYWH(), samplers.RandomSampler(256, 0.5), {}

    def stream(side, encode):
        unknown_count = tf.TensorSpec([None, 4], tf.float32)  # of objects, as of real images
        boxes = tf.data.Dataset.from_generator(lambda: iter(objects_of(side)), output_signature=unknown_count)
        # Many times over: to begin costs milliseconds, but training does it once an epoch.
        boxes = boxes.enumerate().cache().repeat(10)
        return boxes.map(tf.autograph.experimental.do_not_convert(encode))

    def prepare(what, detector, side):
        if detector == "fcos":
            return prepare_fcos(what, side)
        levels = [
            (stride, anchors.AnchorGenerator(sizes, (0.5, 1, 2), stride)) for stride, sizes in levels_of(detector)
        ]
        every = tf.concat([generator((side // stride, side // stride)) for stride, generator in levels], axis=0)

        def encode(seed, boxes):
            thresholds = (0.7, 0.3, 0.3) if detector == "fpn" else (0.5, 0.4)
            matched = assigners.max_iou(every, boxes, *thresholds)
            if what == "match":
                return matched
            places = tf.where(matched >= 0)
            deltas = coder.encode(tf.gather_nd(every, places), tf.gather(boxes, tf.gather_nd(matched, places)))
            deltas = tf.scatter_nd(places, deltas, tf.shape(every, tf.int64))
            return (matched, deltas) if detector == "retinanet" else (*sampler(matched, seed), deltas)

        return stream(side, encode)

    def prepare_fcos(what, side):
        pyramid = anchors.AnchorPyramid([anchors.PointGenerator(stride) for stride in fcos.STRIDES])
        encoder = fcos.FCOSTargetEncoder(pyramid, coders.LTRB(in_strides=True), (side, side), radius=1.5)
        levels = pyramid(side, side)
        ranges = np.concatenate([[limits] * len(level) for limits, level in zip(fcos.RANGES, levels, strict=True)])
        points, labels = tf.concat(levels, axis=0), tf.range(OBJECTS)
        if what == "match":
            return stream(side, lambda _, boxes: assigners.fcos_points(points, ranges, boxes, 1.5))
        return stream(side, lambda _, boxes: encoder(boxes, labels, (side, side)))

    def run(*question):
        if question not in prepared:
            prepared[question] = prepare(*question)
        return sum(1 for _ in prepared[question])

    return run


def torchvision_side():
    import torch
    from torchvision.models.detection import FCOS, _utils, anchor_utils, image_list
    from torchvision.ops import box_iou

    coder, sampler = _utils.BoxCoder((1.0, 1.0, 1.0, 1.0)), _utils.BalancedPositiveNegativeSampler(256, 0.5)
    matchers = {"fpn": _utils.Matcher(0.7, 0.3, True), "retinanet": _utils.Matcher(0.5, 0.4, True)}
    linear, prepared = _utils.BoxLinearCoder(normalize_by_size=True), {}

    def prepare(detector, side):
        strides, sizes = zip(*levels_of(detector), strict=True)
        ratios = (1.0,) if detector == "fcos" else (0.5, 1.0, 2.0)
        generator = anchor_utils.AnchorGenerator(sizes, (ratios,) * len(sizes))
        maps = [torch.zeros(1, 1, side // stride, side // stride) for stride in strides]
        images = image_list.ImageList(torch.zeros(1, 3, side, side), [(side, side)])
        return generator(images, maps)[0], torch.from_numpy(objects_of(side))

    def run(what, detector, side):
        if (detector, side) not in prepared:
            prepared[detector, side] = prepare(detector, side)
        anchors, images = prepared[detector, side]
        for boxes in images:
            if detector == "fcos":
                fcos(what, boxes, anchors, side)
                continue
            matched = matchers[detector](box_iou(boxes, anchors))
            if what == "match":
                continue
            if detector == "retinanet":
                positive = matched >= 0
                coder.encode_single(boxes[matched[positive]], anchors[positive])
            else:
                coder.encode([boxes[matched.clamp(min=0)]], [anchors])
                labels = (matched >= 0).float()
                labels[matched == -2] = -1.0
                sampler([labels])
        return len(images)

    def fcos(what, boxes, anchors, side):
        def encode(_, __, ___, matched):
            """As FCOSHead.compute_loss does it."""
            if what == "match":
                return
            (matched,), labels = matched, torch.arange(OBJECTS)
            labels = labels[matched.clip(min=0)]
            labels[matched < 0] = -1
            own = boxes[matched.clip(min=0)]
            left, top, right, bottom = linear.encode(anchors, own).unbind(-1)
            across, down = torch.stack([left, right], -1), torch.stack([top, bottom], -1)
            torch.sqrt(across.min(-1)[0] / across.max(-1)[0] * (down.min(-1)[0] / down.max(-1)[0]))

        # Its matching is a part of a method of the whole detector, of which it needs this much.
        detector = types.SimpleNamespace(center_sampling_radius=1.5, head=types.SimpleNamespace(compute_loss=encode))
        counts = [(side // stride) ** 2 for stride, _ in levels_of("fcos")]
        FCOS.compute_loss(detector, [{"boxes": boxes}], None, [anchors], counts)

    return run


if __name__ == "__main__":
    main()
