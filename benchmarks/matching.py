"""SSD's matching and encoding against torchvision's: time an image, as ratios measured in one run.

    python benchmarks/matching.py --peer PYTHON

PYTHON is the interpreter of an environment with the peers (benchmarks/requirements.txt). 20 boxes on the 8732 priors of
SSD300. "One call" is one image after the other, ours in a tf.function; "stream" is many through a parallel map of
tf.data, as in training. torchvision has no stream: it matches in the training step, in a loop over the images.
"""

import sys

import numpy as np
import turns

OBJECTS, IMAGES = 20, 64
TASKS = {  # name: question
    "matching, one call": ("match", "call"),
    "matching, stream": ("match", "stream"),
    "matching and encoding, one call": ("encode", "call"),
    "matching and encoding, stream": ("encode", "stream"),
}


def main():
    arguments = turns.arguments(__doc__, SIDES)
    for peer in list(SIDES)[1:]:
        ours, theirs = turns.Process(sys.executable, "tfdet"), turns.Process(arguments.peer, peer)
        print(f"{turns.HEADER}; {peer}")
        for name, question in TASKS.items():
            turns.compare(name, ours, theirs, question, rounds=15)
        ours.end(), theirs.end()


def objects():
    """Boxes [IMAGES, OBJECTS, 4] of 20 to 100 pixels in an image of 300."""
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 200, (IMAGES, OBJECTS, 2))
    return np.concatenate([corners, corners + rng.uniform(20, 100, corners.shape)], axis=-1).astype("float32")


def tfdet_side():
    import tensorflow as tf

    import tfdet
    from tfdet import assigners

    model = tfdet.ssd300(20, "vgg_slim")  # the priors are the same on any backbone
    boxes, labels = tf.constant(objects()), tf.range(OBJECTS)
    functions = {
        "match": lambda boxes: assigners.ssd(model.priors, boxes),
        "encode": lambda boxes: model.encoder(boxes, labels),
    }
    calls, streams = {}, {}
    for what, function in functions.items():
        calls[what] = tf.function(function, [tf.TensorSpec([None, 4])], autograph=False)
        images = tf.data.Dataset.from_tensor_slices(boxes)
        streams[what] = images.map(tf.autograph.experimental.do_not_convert(function), tf.data.AUTOTUNE).prefetch(8)

    def run(what, how):
        for _ in map(calls[what], tf.unstack(boxes)) if how == "call" else streams[what]:
            pass
        return IMAGES

    return run


def torchvision_side(threads):
    import torch
    import torchvision
    from torchvision.models.detection import _utils, image_list

    torch.set_num_threads(threads)
    model = torchvision.models.detection.ssd300_vgg16(weights=None, weights_backbone=None, num_classes=21)
    images = image_list.ImageList(torch.zeros(1, 3, 300, 300), [(300, 300)])
    (priors,) = model.anchor_generator(images, [torch.zeros(1, 1, cells, cells) for cells in (38, 19, 10, 5, 3, 1)])
    boxes, labels, matcher = torch.from_numpy(objects()), torch.arange(OBJECTS), _utils.SSDMatcher(0.5)

    def run(what, how):
        for one in boxes:
            matched = matcher(torchvision.ops.box_iou(one, priors))
            if what == "encode":  # as SSD.compute_loss does it, of the positives
                (positive,) = torch.where(matched >= 0)
                served = matched[positive]
                model.box_coder.encode_single(one[served], priors[positive])
                torch.zeros(len(priors), dtype=torch.int64)[positive] = labels[served]
        return IMAGES

    return run


SIDES = {
    "tfdet": tfdet_side,
    "torchvision, 2 threads": lambda: torchvision_side(2),
    "torchvision, 1 thread": lambda: torchvision_side(1),
}

if __name__ == "__main__":
    main()
