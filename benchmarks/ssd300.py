"""SSD300-VGG16 against torchvision's: inference, training step and post-processing, as ratios measured in one run.

    python benchmarks/ssd300.py --peer PYTHON

PYTHON is the interpreter of an environment with the peers (benchmarks/requirements.txt). Times are those of an image,
memory is the peak of the process, in GB. bfloat16 is ours alone: the peer stays in float32.
"""

import sys

import turns

TASKS = {  # name: (question, rounds)
    "inference, batch 1": (("infer", 1), 9),
    "inference, batch 8": (("infer", 8), 5),
    "training step, batch 8": (("train", 8), 3),
    "post-processing, batch 8": (("decode", 8), 9),
}
PAIRS = [  # (ours, theirs, names of the tasks)
    ("tfdet", "torchvision", list(TASKS)),
    ("tfdet", "torchvision channels_last", list(TASKS)[:3]),
    ("tfdet bfloat16", "torchvision channels_last", list(TASKS)[:2]),
]


def main():
    arguments = turns.arguments(__doc__, SIDES)
    for our_side, their_side, names in PAIRS:
        print(f"{turns.HEADER}; {our_side} against {their_side}")
        for name in names:
            # New processes for each task, so that the peak of memory is its own.
            ours, theirs = turns.Process(sys.executable, our_side), turns.Process(arguments.peer, their_side)
            turns.compare(name, ours, theirs, *TASKS[name])
            print(f"{'  peak memory':40} {ours.end():8.2f} GB {theirs.end():8.2f} GB", flush=True)


def boxes_of(rng, count=8):
    import numpy as np

    corner = rng.uniform(0, 200, (count, 2))
    return np.concatenate([corner, corner + rng.uniform(20, 100, (count, 2))], axis=1).astype("float32")


def head_outputs(rng, batch, logits=21):
    """As of a trained network: nearly all priors are background, some dozens are not."""

    classes = rng.normal(0, 1, (batch, 8732, logits)).astype("float32")
    classes[..., 0] += 9
    classes[:, ::97, 3] += 10
    classes[:, ::131, 7] += 10
    return classes, rng.normal(0, 1, (batch, 8732, 4)).astype("float32")


def tfdet_side(bfloat16=False):
    import keras
    import numpy as np
    import tensorflow as tf

    import tfdet

    model = tfdet.ssd300(20)
    if bfloat16:
        model = tfdet.in_bfloat16(model)
    model.compile(keras.optimizers.SGD(1e-4, momentum=0.9))
    decode = tf.function(model.decoder)
    rng, inputs = np.random.default_rng(0), {}

    def run(what, batch):
        if what == "infer":
            images = inputs.setdefault((what, batch), rng.integers(0, 256, (batch, 300, 300, 3)).astype("uint8"))
            model.predict_on_batch(images)
        elif what == "train":
            if (what, batch) not in inputs:
                images = rng.uniform(0, 255, (batch, 300, 300, 3)).astype("float32")
                targets = [model.encoder(boxes_of(rng), np.arange(8) % 20) for _ in range(batch)]
                inputs[what, batch] = images, {key: np.stack([t[key] for t in targets]) for key in targets[0]}
            model.train_on_batch(*inputs[what, batch])
        else:
            if (what, batch) not in inputs:
                classes, deltas = head_outputs(rng, batch)
                inputs[what, batch] = {"class_logits": tf.constant(classes), "box_deltas": tf.constant(deltas)}
            decode(inputs[what, batch])
        return batch

    return run


def torchvision_side(channels_last=False):
    import numpy as np
    import torch
    import torchvision

    build = torchvision.models.detection.ssd300_vgg16
    model = build(weights=None, weights_backbone=None, num_classes=21)
    if channels_last:
        model = model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), 1e-4, momentum=0.9)
    rng, inputs = np.random.default_rng(0), {}

    def run(what, batch):
        if what == "decode":
            if (what, batch) not in inputs:
                classes, deltas = head_outputs(rng, batch)
                head = {"cls_logits": torch.from_numpy(classes), "bbox_regression": torch.from_numpy(deltas)}
                images = torchvision.models.detection.image_list.ImageList(
                    torch.zeros(batch, 3, 300, 300), [(300, 300)] * batch
                )
                maps = [torch.zeros(batch, 1, n, n) for n in (38, 19, 10, 5, 3, 1)]
                inputs[what, batch] = head, model.anchor_generator(images, maps), images.image_sizes
            with torch.no_grad():
                model.postprocess_detections(*inputs[what, batch])
            return batch
        if (what, batch) not in inputs:
            images = [torch.rand(3, 300, 300) for _ in range(batch)]
            if channels_last:
                images = [image[None].contiguous(memory_format=torch.channels_last)[0] for image in images]
            labels = torch.arange(8) % 20 + 1
            targets = [{"boxes": torch.from_numpy(boxes_of(rng)), "labels": labels} for _ in range(batch)]
            inputs[what, batch] = images, targets
        images, targets = inputs[what, batch]
        if what == "infer":
            model.eval()
            with torch.no_grad():
                model(images)
        else:
            model.train()
            loss = sum(model(images, targets).values())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return batch

    return run


SIDES = {
    "tfdet": tfdet_side,
    "tfdet bfloat16": lambda: tfdet_side(bfloat16=True),
    "torchvision": torchvision_side,
    "torchvision channels_last": lambda: torchvision_side(channels_last=True),
}

if __name__ == "__main__":
    main()
