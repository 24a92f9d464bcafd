"""RoIAlign of 1,000 boxes in 256 channels against torchvision's operator: one map, and a pyramid of four levels.

    python benchmarks/roi_align.py --peer PYTHON

PYTHON is the interpreter of an environment with the peers (benchmarks/requirements.txt). Boxes of 10 to 200 pixels a
side in an image of 512 x 512, 7 x 7 bins, 2 x 2 points a bin or as many as the box needs (adaptive); float32. The
gradient is that of the features.
"""

import sys

import turns

SIZE, BOXES, CHANNELS, BINS = 512, 1000, 256, 7
LEVELS = (2, 3, 4, 5)


def main():
    arguments = turns.arguments(__doc__, {"tfdet": tfdet, "torchvision": torchvision})
    print(turns.HEADER)
    for sampling_ratio, points in ((2, "2 x 2"), (0, "adaptive")):
        for what in ("one map", "four levels"):
            for direction in ("forward", "forward, gradient"):
                ours, theirs = turns.Process(sys.executable, "tfdet"), turns.Process(arguments.peer, "torchvision")
                name, gradient = f"{what}, {points}, {direction}", direction != "forward"
                turns.compare(name, ours, theirs, (what, sampling_ratio, gradient), rounds=5 if gradient else 9)
                print(f"{'  peak memory':40} {ours.end():8.2f} GB {theirs.end():8.2f} GB", flush=True)


def inputs(shape_of_level):
    """Boxes [BOXES, 4], the features {"P2": ...} of those shapes."""
    import numpy as np

    rng = np.random.default_rng(0)
    corners = rng.uniform(0, SIZE - 100, (BOXES, 2))
    boxes = np.concatenate([corners, np.minimum(corners + rng.uniform(10, 200, (BOXES, 2)), SIZE)], axis=1)
    maps = {f"P{k}": rng.normal(size=shape_of_level(SIZE >> k)).astype("float32") for k in LEVELS}
    return boxes.astype("float32"), maps


def tfdet():
    import tensorflow as tf

    from tfdet import rois

    boxes, maps = inputs(lambda side: (1, side, side, CHANNELS))
    boxes, maps = tf.constant(boxes[None]), {name: tf.constant(features) for name, features in maps.items()}
    upstream = tf.ones((1, BOXES, BINS, BINS, CHANNELS))

    @tf.function
    def pool(boxes, maps, what, sampling_ratio):
        if what == "one map":
            return rois.roi_align(maps["P2"], boxes, BINS, 4, sampling_ratio, aligned=False)
        return rois.multilevel_roi_align(maps, boxes, BINS, sampling_ratio, aligned=False)

    @tf.function
    def pool_and_gradient(boxes, maps, what, sampling_ratio):
        with tf.GradientTape() as tape:
            tape.watch(maps)
            result = pool(boxes, maps, what, sampling_ratio)
        return result, tape.gradient(result, maps, upstream)

    def run(what, sampling_ratio, gradient):
        (pool_and_gradient if gradient else pool)(boxes, maps, what, sampling_ratio)
        return 1

    return run


def torchvision():
    import torch
    from torchvision import ops

    boxes, maps = inputs(lambda side: (1, CHANNELS, side, side))
    boxes, maps = [torch.from_numpy(boxes)], {name: torch.from_numpy(features) for name, features in maps.items()}
    upstream = torch.ones((BOXES, CHANNELS, BINS, BINS))

    def run(what, sampling_ratio, gradient):
        for features in maps.values():
            features.requires_grad_(gradient)
            features.grad = None
        if what == "one map":
            result = ops.roi_align(maps["P2"], boxes, BINS, 1 / 4, sampling_ratio, aligned=False)
        else:
            result = ops.MultiScaleRoIAlign(list(maps), BINS, sampling_ratio)(maps, boxes, [(SIZE, SIZE)])
        if gradient:
            result.backward(upstream)
        return 1

    return run


if __name__ == "__main__":
    main()
