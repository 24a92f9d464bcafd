"""Corner pooling against the released code's C++, and how long it takes to make boxes of corners.

    python benchmarks/corner_pooling.py --peer PYTHON --source DIR

PYTHON is the interpreter of an environment with the peers (benchmarks/requirements.txt); DIR is a copy of
princeton-vl/CornerNet, whose C++ is compiled (g++, ninja) as it is, but for what PyTorch no longer has: CUDA tensors as
the type of what the gradient needs (here: those of the processor) and masks of bytes. Batch 1, float32, one after the
other in all four directions. Decoding is ours alone: 100 corners of either kind, 128 x 128 cells, 80 classes, soft-NMS;
of logits that are noise, so that everything overlaps something.
"""

import functools
import pathlib
import re
import sys
import tempfile

import turns

DIRECTIONS = ("top", "left", "bottom", "right")
SHAPES = ((128, 128, 256), (128, 128, 128), (64, 64, 128))  # height, width, channels


def main():
    arguments = turns.arguments(__doc__, {"tfdet": tfdet, "released": released}, add_more)
    ours, theirs = turns.Process(sys.executable, "tfdet"), turns.Process(arguments.peer, "released")
    print(turns.HEADER)
    for height, width, channels in SHAPES:
        for direction in ("forward", "forward, gradient"):
            name = f"{channels} x {height} x {width}, {direction}"
            question = ("pool", height, width, channels, direction != "forward")
            turns.compare(name, ours, theirs, question, rounds=9)
    times = sorted([ours.time("decode") for _ in range(12)][1:])
    print(f"{'decoding':40} {times[5] * 1000:8.2f} ms")
    print(f"{'peak memory':40} {ours.end():8.2f} GB {theirs.end():8.2f} GB")


def add_more(parser):
    parser.add_argument("--source", required=True, type=pathlib.Path, help="folder of princeton-vl/CornerNet")


def inputs(*shape):
    """Features as a ReLU leaves them, half of them 0, and the gradient of what is made of them."""
    import numpy as np

    rng = np.random.default_rng(0)
    return np.maximum(rng.normal(size=shape), 0).astype("float32"), rng.normal(size=shape).astype("float32")


def tfdet():
    import numpy as np
    import tensorflow as tf

    from tfdet.corner_pooling import CornerPooling
    from tfdet.detectors.cornernet import MAPS, POOLS, CornerNetDecoder

    pools, decode = [CornerPooling(direction) for direction in DIRECTIONS], tf.function(CornerNetDecoder())

    @functools.cache
    def tensors(*shape):
        return [tf.constant(array[None]) for array in inputs(*shape)]

    @tf.function
    def forward(features, _):
        return [pool(features) for pool in pools]

    @tf.function
    def forward_and_gradient(features, slopes):
        results = []  # of both, or the graph would leave out what of the forward way the gradient does not need
        for pool in pools:
            with tf.GradientTape() as tape:
                tape.watch(features)
                result = pool(features)
            results.append((result, tape.gradient(result, features, slopes)))
        return results

    rng = np.random.default_rng(0)
    maps = {name: tf.constant([[511.0, 511.0]]) for name in ("image_sizes", "fed_sizes")}
    for corner in POOLS:
        for name, channels in zip(MAPS, (80, 1, 2), strict=True):
            maps[f"{corner}_{name}"] = [tf.constant(rng.normal(size=(1, 128, 128, channels)), tf.float32)]

    def run(what, *question):
        if what == "decode":
            decode(maps)
        else:
            *shape, gradient = question
            (forward_and_gradient if gradient else forward)(*tensors(*shape))
        return 1

    return run


def released():
    import torch
    from torch.utils import cpp_extension

    source = pathlib.Path(sys.argv[sys.argv.index("--source") + 1]) / "models/py_utils/_cpools/src"
    code, functions = ["#include <torch/extension.h>"], []
    for direction in DIRECTIONS:
        text = (source / f"{direction}_pool.cpp").read_text().partition("PYBIND11_MODULE")[0]
        text = text.replace("#include <torch/torch.h>", "").replace("#include <vector>", "")
        text = text.replace("at::kByte", "at::kBool").replace("top_pool_", "pool_")
        # Or PyTorch warns in each of the steps, which takes time.
        text = text.replace("at::masked_select_out(max_temp", "max_temp.resize_({0}); at::masked_select_out(max_temp")
        text = re.sub(r"at::zeros\(torch::CUDA\((at::k\w+)\),\s*(\{.*?\})\)", r"at::zeros(\2, \1)", text)
        code.append(f"namespace {direction} {{ {text} }}")
        functions += [f'm.def("{direction}_{way}", &{direction}::pool_{way});' for way in ("forward", "backward")]
    code.append(f"PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {{ {' '.join(functions)} }}")
    folder = pathlib.Path(tempfile.mkdtemp())
    (folder / "pools.cpp").write_text("\n".join(code))
    pools = cpp_extension.load("pools", [str(folder / "pools.cpp")], build_directory=str(folder))

    @functools.cache
    def tensors(*shape):
        return [torch.from_numpy(array).permute(2, 0, 1)[None].contiguous() for array in inputs(*shape)]

    def run(what, *question):
        *shape, gradient = question
        features, slopes = tensors(*shape)
        for direction in DIRECTIONS:
            getattr(pools, f"{direction}_forward")(features)
            if gradient:
                getattr(pools, f"{direction}_backward")(features, slopes)
        return 1

    return run


if __name__ == "__main__":
    main()
