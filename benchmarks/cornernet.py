"""CornerNet, ExtremeNet and corner pooling against the released code: networks with decoding, decoding alone, pooling.

    python benchmarks/cornernet.py --peer PYTHON --source DIR

PYTHON is the interpreter of an environment with the peers (benchmarks/requirements.txt); DIR is a checkout of
xingyizhou/ExtremeNet, which has CornerNet's code as well. Its C++ is compiled (g++, ninja) as it is, but for what
PyTorch no longer has: CUDA tensors as the type of what the gradient needs (here: those of the processor) and masks of
bytes. Batch 1, float32, random weights, 80 classes. Pooling is in all four directions, one after the other. Decoding is
of maps that are noise, more of it than a trained network leaves. The released decoding is without soft-NMS, which is
another file's; ours is with it.
"""

import functools
import pathlib
import re
import sys
import tempfile
import types

import turns

DIRECTIONS = ("top", "left", "bottom", "right")
SHAPES = ((128, 128, 256), (128, 128, 128), (64, 64, 128))  # height, width, channels
SIDE, CELLS, CLASSES = 511, 128, 80


def main():
    arguments = turns.arguments(__doc__, {"tfdet": tfdet, "released": released}, add_more)
    print(turns.HEADER)
    questions = []
    for detector in ("CornerNet", "ExtremeNet"):
        questions.append((f"{detector}, forward and decoding", ("network", detector), 3))
        questions.append((f"{detector}, decoding", ("decode", detector), 9))
    for height, width, channels in SHAPES:
        for ways in ("forward", "forward, gradient"):
            name = f"pooling {channels} x {height} x {width}, {ways}"
            questions.append((name, ("pool", height, width, channels, ways != "forward"), 9))
    for name, question, rounds in questions:
        ours, theirs = turns.Process(sys.executable, "tfdet"), turns.Process(arguments.peer, "released")
        turns.compare(name, ours, theirs, question, rounds)
        print(f"{'  peak memory':40} {ours.end():8.2f} GB {theirs.end():8.2f} GB", flush=True)


def add_more(parser):
    parser.add_argument("--source", required=True, type=pathlib.Path, help="checkout of xingyizhou/ExtremeNet")


def inputs(*shape):
    """Features as a ReLU leaves them, half of them 0, and the gradient of what is made of them."""
    import numpy as np

    rng = np.random.default_rng(0)
    return np.maximum(rng.normal(size=shape), 0).astype("float32"), rng.normal(size=shape).astype("float32")


def maps(detector):
    """Of each kind of points the heatmap's logits, float32 [CELLS, CELLS, CLASSES], and further maps."""
    import numpy as np

    rng = np.random.default_rng(0)
    further, kinds = ((1, 2), 2) if detector == "CornerNet" else ((2,), 4)
    shapes = [(CLASSES, *further)] * kinds + ([(CLASSES,)] if detector == "ExtremeNet" else [])  # its centres
    return [
        [rng.normal(-3 if n == CLASSES else 0, 1, (CELLS, CELLS, n)).astype("float32") for n in kind] for kind in shapes
    ]


def tfdet():
    import numpy as np
    import tensorflow as tf

    from tfdet.corner_pooling import CornerPooling
    from tfdet.detectors.cornernet import MAPS, POOLS, CornerNetDecoder, cornernet
    from tfdet.detectors.extremenet import POINTS, ExtremeNetDecoder, extremenet

    pools = [CornerPooling(direction) for direction in DIRECTIONS]

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

    @functools.cache
    def network(detector):
        model = {"CornerNet": cornernet, "ExtremeNet": extremenet}[detector](CLASSES)
        image = np.random.default_rng(0).integers(0, 256, (1, SIDE, SIDE, 3), "uint8")
        return lambda: model.predict_on_batch(image)

    @functools.cache
    def decoder(detector):
        points, names = (POOLS, MAPS) if detector == "CornerNet" else ((*POINTS, "centre"), ("heatmap", "offset"))
        outputs = {name: tf.constant([[float(SIDE), SIDE]]) for name in ("image_sizes", "fed_sizes")}
        for point, values in zip(points, maps(detector), strict=True):
            outputs |= {f"{point}_{name}": (tf.constant(one[None]),) for name, one in zip(names, values, strict=False)}
        decode = CornerNetDecoder() if detector == "CornerNet" else ExtremeNetDecoder()
        decode = tf.function(decode, autograph=False)
        return lambda: decode(outputs)["boxes"].numpy()

    def pool(*question):
        *shape, gradient = question
        (forward_and_gradient if gradient else forward)(*tensors(*shape))

    def run(what, *question):
        pool(*question) if what == "pool" else {"network": network, "decode": decoder}[what](*question)()
        return 1

    return run


def released():
    import torch
    from torch.utils import cpp_extension

    checkout = sys.argv[sys.argv.index("--source") + 1]
    source = pathlib.Path(checkout) / "models/py_utils/_cpools/src"
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

    for direction in DIRECTIONS:
        forward, backward = (getattr(pools, f"{direction}_{way}") for way in ("forward", "backward"))
        sys.modules[f"{direction}_pool"] = types.SimpleNamespace(forward=forward, backward=backward)
    # Its drawing, which needs OpenCV.
    sys.modules["utils"] = types.ModuleType("utils")
    sys.modules["utils.debugger"] = types.SimpleNamespace(Debugger=None)
    sys.path.insert(0, checkout)
    from models import py_utils
    from models.py_utils import _cpools, kp_utils

    for name in ("TopPool", "BottomPool", "LeftPool", "RightPool"):  # commented out, for ExtremeNet has none
        setattr(py_utils, name, getattr(_cpools, name))
    from models import CornerNet, ExtremeNet

    # Of CornerNet.json and ExtremeNet.json
    settings = {"CornerNet": {"K": 100, "kernel": 3, "ae_threshold": 0.5}, "ExtremeNet": {"K": 40, "kernel": 3}}
    # ExtremeNet's maps come out of its aggregation in an order that today's view() refuses.
    topk = kp_utils._topk
    kp_utils._topk = lambda scores, K: topk(scores.contiguous(), K)

    @functools.cache
    def tensors(*shape):
        return [torch.from_numpy(array).permute(2, 0, 1)[None].contiguous() for array in inputs(*shape)]

    @functools.cache
    def network(detector):
        module = {"CornerNet": CornerNet, "ExtremeNet": ExtremeNet}[detector]
        model, image, more = module.model(None).eval(), torch.randn(1, 3, SIDE, SIDE), settings[detector]
        if detector == "ExtremeNet":
            more = more | {"debug": False}
        return lambda: model(image, **more)

    @functools.cache
    def decoder(detector):
        kinds = [[torch.from_numpy(one).permute(2, 0, 1)[None].contiguous() for one in kind] for kind in maps(detector)]
        inputs = [kind[i] for i in range(3) for kind in kinds if i < len(kind)]  # all heatmaps first
        decode = kp_utils._decode if detector == "CornerNet" else kp_utils._exct_decode
        # Its aggregation writes on what it is given.
        return lambda: decode(*inputs, **settings[detector])

    def pool(*question):
        *shape, gradient = question
        features, slopes = tensors(*shape)
        for direction in DIRECTIONS:
            getattr(pools, f"{direction}_forward")(features)
            if gradient:
                getattr(pools, f"{direction}_backward")(features, slopes)

    @torch.no_grad()
    def run(what, *question):
        pool(*question) if what == "pool" else {"network": network, "decode": decoder}[what](*question)()
        return 1

    return run


if __name__ == "__main__":
    main()
