"""Deformable convolution, 3x3 and modulated, against torchvision's operator.

    python benchmarks/deformable.py --peer PYTHON

PYTHON is the interpreter of an environment with the peers (benchmarks/requirements.txt). Batch 1, float32, offsets of
2 pixels (standard deviation). The gradient is that of features, offsets, mask and kernel.
"""

import sys

import turns

SHAPES = ((64, 256, 256), (128, 64, 64), (16, 512, 256))  # side of the map, channels, filters


def main():
    arguments = turns.arguments(__doc__, {"tfdet": tfdet, "torchvision": torchvision})
    print(turns.HEADER)
    for side, channels, filters in SHAPES:
        for direction in ("forward", "forward, gradient"):
            ours, theirs = turns.Process(sys.executable, "tfdet"), turns.Process(arguments.peer, "torchvision")
            name, gradient = f"{side} x {side}, {channels} -> {filters}, {direction}", direction != "forward"
            question = (side, channels, filters, gradient)
            turns.compare(name, ours, theirs, question, rounds=5 if gradient else 9)
            print(f"{'  peak memory':40} {ours.end():8.2f} GB {theirs.end():8.2f} GB", flush=True)


def inputs(side, channels, filters):
    """Features [H, W, channels], offsets [H, W, 18], mask [H, W, 9] and kernel [3, 3, channels, filters]."""
    import numpy as np

    rng = np.random.default_rng(0)
    shapes = (side, side, channels), (side, side, 18), (side, side, 9), (3, 3, channels, filters)
    features, offsets, mask, kernel = (rng.normal(size=shape).astype("float32") for shape in shapes)
    return features, 2 * offsets, 1 / (1 + np.exp(-mask)), kernel / (9 * channels) ** 0.5


def tfdet():
    import functools

    import tensorflow as tf

    from tfdet.deformable import deform_conv2d

    @functools.cache
    def tensors(*shape):
        features, offsets, mask, kernel = (tf.constant(array) for array in inputs(*shape))
        return [features[None], offsets[None], mask[None], kernel]

    forward = tf.function(deform_conv2d)

    @tf.function
    def forward_and_gradient(*given):
        with tf.GradientTape() as tape:
            tape.watch(given)
            result = deform_conv2d(*given)
        return tape.gradient(result, given)

    def run(*question):
        *shape, gradient = question
        (forward_and_gradient if gradient else forward)(*tensors(*shape))
        return 1

    return run


def torchvision():
    import functools

    import torch
    from torchvision import ops

    @functools.cache
    def tensors(*shape):
        *maps, kernel = (torch.from_numpy(array) for array in inputs(*shape))
        return [array.permute(2, 0, 1)[None].contiguous() for array in maps] + [kernel.permute(3, 2, 0, 1).contiguous()]

    def run(*question):
        *shape, gradient = question
        for tensor in tensors(*shape):
            tensor.requires_grad_(gradient)
            tensor.grad = None
        features, offsets, mask, kernel = tensors(*shape)
        result = ops.deform_conv2d(features, offsets, kernel, padding=1, mask=mask)
        if gradient:
            result.sum().backward()
        return 1

    return run


if __name__ == "__main__":
    main()
