"""Faster R-CNN, RetinaNet and FCOS give the outputs of torchvision's networks when they are given their weights.

The numbers were printed by torchvision 0.28 with the weights that `state_dict` makes; nothing here needs torch.
"""

import functools
import re

import numpy as np
import pytest
from safetensors.numpy import save_file

from tfdet import boxes
from tfdet.detectors.torchvision import faster_rcnn_torchvision, fcos_torchvision, retinanet_torchvision
from tfdet.errors import WeightsError

NUM_LOGITS = 4
SHORT, LONG = 128, 203
# Batch normalisation's: 1e-5 in what torchvision builds, and 0 for its published COCO weights. (Of its RetinaNet it was
# asked for 100 detections, not 300.)
EPSILON = {"faster_rcnn": 1e-5, "retinanet": 0.0, "fcos": 1e-5}
# Boxes for the second stage, two for each level from P2 to P5. Some reach beyond the image of 121 x 203 pixels.
REGIONS = [(9, 20, 31, 38), (0, 0, 100, 100), (60, 5, 200, 120), (1.5, 0, 213, 128)]
REGIONS += [(-40, -90, 210, 160), (0, 0, 300, 300), (-200, -200, 300, 280), (-50, -50, 613, 700)]


def shapes(detector):
    """Names and shapes of torchvision's state dict, without num_batches_tracked."""
    shapes = {}

    def norm(name, channels):
        shapes.update({f"{name}.{part}": (channels,) for part in ("weight", "bias", "running_mean", "running_var")})

    def layer(name, *shape):
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = shape, shape[:1]

    body = "backbone.body."
    shapes[f"{body}conv1.weight"] = (64, 3, 7, 7)
    norm(f"{body}bn1", 64)
    channels = 64
    for stage, count in enumerate((3, 4, 6, 3), 1):
        width = 32 * 2**stage
        for i in range(count):
            block = f"{body}layer{stage}.{i}"
            convolutions = [(channels, width, 1), (width, width, 3), (width, 4 * width, 1)]
            for j, (inputs, outputs, size) in enumerate(convolutions, 1):
                shapes[f"{block}.conv{j}.weight"] = (outputs, inputs, size, size)
                norm(f"{block}.bn{j}", outputs)
            if i == 0:
                shapes[f"{block}.downsample.0.weight"] = (4 * width, channels, 1, 1)
                norm(f"{block}.downsample.1", 4 * width)
            channels = 4 * width

    for i, width in enumerate((256, 512, 1024, 2048) if detector == "faster_rcnn" else (512, 1024, 2048)):
        layer(f"backbone.fpn.inner_blocks.{i}.0", 256, width, 1, 1)
        layer(f"backbone.fpn.layer_blocks.{i}.0", 256, 256, 3, 3)
    if detector == "faster_rcnn":
        layer("rpn.head.conv.0.0", 256, 256, 3, 3)
        layer("rpn.head.cls_logits", 3, 256, 1, 1)
        layer("rpn.head.bbox_pred", 12, 256, 1, 1)
        layer("roi_heads.box_head.fc6", 1024, 256 * 7 * 7)
        layer("roi_heads.box_head.fc7", 1024, 1024)
        layer("roi_heads.box_predictor.cls_score", NUM_LOGITS, 1024)
        layer("roi_heads.box_predictor.bbox_pred", NUM_LOGITS * 4, 1024)
        return shapes
    for level in ("p6", "p7"):
        layer(f"backbone.fpn.extra_blocks.{level}", 256, 256, 3, 3)
    for kind in ("classification", "regression"):
        for i in range(4):
            if detector == "retinanet":
                layer(f"head.{kind}_head.conv.{i}.0", 256, 256, 3, 3)
            else:  # convolution, normalisation and activation are counted alike
                layer(f"head.{kind}_head.conv.{3 * i}", 256, 256, 3, 3)
                layer(f"head.{kind}_head.conv.{3 * i + 1}", 256)
    anchors = 9 if detector == "retinanet" else 1
    layer("head.classification_head.cls_logits", anchors * NUM_LOGITS, 256, 3, 3)
    layer("head.regression_head.bbox_reg", anchors * 4, 256, 3, 3)
    if detector == "fcos":
        layer("head.regression_head.bbox_ctrness", 1, 256, 3, 3)
    return shapes


# Of the layers that give logits and deltas: how far the answers spread, and how much likelier some classes are. It
# makes some dozens of detections, and many more that NMS takes away.
SPREAD = {
    "faster_rcnn": {"cls_logits": 5.0, "cls_score": 5.0, "bbox_pred": 0.3},
    "retinanet": {"cls_logits": 5.0, "bbox_reg": 0.3},
    "fcos": {"cls_logits": 5.0, "bbox_reg": 2.0, "bbox_ctrness": 3.0},
}
LIKELY = {
    ("retinanet", "head.classification_head.cls_logits.bias"): (-11.4, -9.4, -11.4, -12.4) * 9,
    ("faster_rcnn", "roi_heads.box_predictor.cls_score.bias"): (9.5, 0, -1.5, 11),
    ("fcos", "head.classification_head.cls_logits.bias"): (-5.0, -6.4, -4.2, -5.8),
    ("fcos", "head.regression_head.bbox_reg.bias"): 4.0,  # strides
}


@functools.cache
def state_dict(detector):
    """Weights that any numpy makes again, under torchvision's names."""
    # As many normal numbers as there are weights would take seconds; each tensor begins somewhere else in these.
    noise, start, state = np.random.RandomState(0).standard_normal(1_000_003).astype("float32"), 0, {}
    for name, shape in shapes(detector).items():
        size = int(np.prod(shape))
        values = np.resize(np.roll(noise, -start), size).reshape(shape)
        start = (start + size + 7919) % len(noise)
        module, part = name.split(".")[-2:]
        spread = SPREAD[detector].get(module)
        if spread and part == "weight":
            # What all inputs have in common would make the same class win everywhere.
            values = (values - values.mean(axis=1, keepdims=True)) * spread / np.prod(shape[1:]) ** 0.5
        elif len(shape) > 1:
            values = values * 1.4 / np.prod(shape[1:]) ** 0.5
        elif part == "running_var":
            values = 0.01 + np.abs(values) / 1000  # so small that epsilon matters
        elif part == "weight" and name.startswith("head."):
            values = 1 + values / 10
        elif part == "weight":
            values = 0.05 + values / 100
        else:
            values = values / 10 + LIKELY.get((detector, name), 0)
        state[name] = values.astype("float32")
    return state


def images():
    """One that is fed as it is, and one that is enlarged to 121 x 203 and padded to 128 x 224 pixels."""
    found = []
    for height, width in ((128, 128), (90, 150)):
        y, x = np.mgrid[:height, :width]
        waves = [np.sin(x / 9 + y / 17), np.sin(x / 23 - y / 7), np.sin(x * y / 400)]
        found.append((127 + 120 * np.stack(waves, axis=-1)).astype("uint8"))
    return found


def summary(values):
    """Mean, deviation, a sum to which every place adds with a weight of its own, and five of the values."""
    values = np.ravel(values).astype("float64")
    weighted = np.sum(values * np.cos(np.arange(len(values)))) / len(values) ** 0.5
    places = np.linspace(0, len(values) - 1, 5).astype(int)
    return [values.mean(), values.std(), weighted, *values[places]]


# `summary` of what the network answers to the second image, level by level.
SUMMARIES = {
    ("faster_rcnn", "objectness"): [
        (-3.75186, 6.76767, -0.0604361, -1.53703, -0.477179, -0.347752, -0.014012, -0.769418),
        (-2.441, 2.64027, 0.126824, -3.25798, -2.38578, -0.9966, -2.7105, -0.841339),
        (-0.91559, 2.63556, 0.493493, -0.160985, -0.396678, -0.115473, 0.0501217, 1.44271),
        (-0.950531, 1.43896, 0.126751, -1.13098, 1.7395, -0.520386, -0.0288373, -2.3836),
        (-0.489696, 1.32525, 1.21355, -1.03251, -0.227982, 1.96362, -1.06018, -1.87828),
    ],
    ("faster_rcnn", "rpn_deltas"): [
        (-0.0188144, 0.363373, -0.45193, 0.112409, 0.178187, 0.174813, 0.19457, 0.0874662),
        (0.0345294, 0.28429, -0.00911738, 0.0295948, 0.114364, 0.0924797, 0.0774909, 0.0208263),
        (0.0261663, 0.202532, -0.070883, 0.0796353, 0.0813777, 0.0600808, 0.0501344, -0.0107238),
        (-0.0211623, 0.135971, -0.0360978, 0.114153, 0.106114, 0.157425, 0.111667, 0.110852),
        (-0.0111124, 0.129259, 0.034804, 0.132903, 0.0245866, 0.116164, 0.172105, 0.102317),
    ],
    ("faster_rcnn", "anchors"): [
        (86.0, 60.4152, -1.74882, -23.0, 51.0, 83.0, 115.0, 147.0),
        (84.0, 67.3548, 0.111209, -45.0, 69.0, 101.0, 133.0, 165.0),
        (80.0, 90.1591, -2.41384, -91.0, 107.0, 139.0, 171.0, 203.0),
        (72.0, 149.686, 2.67554, -181.0, 181.0, 213.0, 245.0, 277.0),
        (58.0, 282.126, 6.72671, -362.0, 362.0, 362.0, 426.0, 426.0),
    ],
    ("retinanet", "class_logits"): [
        (-11.2994, 3.82423, 0.133917, -11.2646, -14.432, -14.6717, -15.1666, -14.5242),
        (-11.6178, 3.19686, -0.0620607, -9.39877, -13.7392, -15.4857, -15.6302, -14.2353),
        (-11.1004, 1.74999, -0.198479, -10.5178, -12.6601, -12.0508, -13.4891, -12.5967),
        (-11.1023, 1.27137, 1.14614, -9.04601, -11.3231, -11.9378, -12.2404, -11.9064),
        (-11.154, 1.11263, -1.30075, -11.2031, -9.47467, -12.4242, -9.49542, -12.5067),
    ],
    ("retinanet", "box_deltas"): [
        (-0.0839511, 0.241499, -0.0169353, 0.023082, 0.101835, 0.0945481, 0.0924646, -0.112314),
        (-0.0269004, 0.160166, 0.0106436, 0.0644939, 0.0352882, -0.0321029, -0.018612, -0.00797344),
        (-0.0266537, 0.123226, 0.0231058, 0.0201172, -0.1006, -0.102805, -0.0884859, -0.0133889),
        (-0.00837825, 0.0993562, 0.0209834, 0.0696322, -0.0799762, -0.0588352, -0.0011842, -0.0127412),
        (-0.0162003, 0.0947428, 0.15452, 0.0178335, 0.0337657, -0.0442862, 0.0338696, -0.0509696),
    ],
    ("retinanet", "anchors"): [
        (84.0, 61.9641, -0.473697, -23.0, 59.0, 91.0, 123.0, 155.0),
        (80.0, 73.0297, -0.279066, -45.0, 87.0, 119.0, 151.0, 183.0),
        (72.0, 106.847, -7.76067, -91.0, 144.0, 176.0, 208.0, 240.0),
        (58.0, 188.848, -20.555, -181.0, 287.0, 287.0, 351.0, 351.0),
        (28.0, 363.745, -204.114, -362.0, -322.0, 574.0, -322.0, 574.0),
    ],
    ("fcos", "class_logits"): [
        (-5.14834, 1.73108, 0.169168, -8.02473, -5.50247, -6.86359, -7.56101, -8.13167),
        (-6.14946, 2.1363, -0.57175, -5.59785, -5.43224, -6.30227, -7.52191, -9.36139),
        (-6.68564, 2.26561, -0.28254, -7.24832, -4.49423, -4.62192, -4.85536, -7.39328),
        (-7.11939, 2.22964, -1.53616, -6.64098, -5.73302, -4.19516, -8.16885, -11.0794),
        (-5.98991, 1.236, -4.09488, -5.48209, -6.69993, -4.39662, -6.78562, -8.51967),
    ],
    ("fcos", "distances"): [
        (3.81773, 1.37491, -0.172613, 3.8776, 4.51349, 4.70367, 4.65232, 3.09595),
        (4.15259, 1.36198, 0.30411, 3.98266, 3.03907, 3.42865, 3.12116, 3.77292),
        (4.12326, 1.04432, 0.0756242, 4.9267, 4.81926, 3.51176, 2.8948, 3.10189),
        (4.19642, 1.06311, -0.168622, 4.66557, 4.09453, 4.98223, 2.91363, 3.87339),
        (3.9757, 0.695643, 2.50463, 4.42927, 2.71195, 3.34762, 4.81142, 4.13371),
    ],
    ("fcos", "centerness_logits"): [
        (1.17198, 1.293, -0.50855, -3.43757, 0.625662, 1.36698, 0.695639, 0.0916705),
        (0.985713, 1.24562, -0.0809868, 0.477854, 0.753328, 2.12025, 2.38227, 3.56706),
        (0.244421, 1.42569, 0.0257481, -0.600173, -0.492386, -0.724048, -0.319784, 1.8742),
        (-0.226481, 1.07116, -0.155275, -2.12487, 0.932738, -0.779594, 0.484986, 0.50333),
        (-0.795223, 0.706598, -1.09581, -1.50182, -1.50182, -1.50182, -1.50182, -0.0886243),
    ],
    ("fcos", "points"): [
        (58.6667, 59.2696, -1.02926, 0.0, 8.0, 8.0, 8.0, 8.0),
        (58.6667, 55.9365, 7.45171, 0.0, 16.0, 16.0, 16.0, 16.0),
        (58.6667, 50.3146, 11.7849, 0.0, 32.0, 32.0, 32.0, 32.0),
        (60.0, 45.8984, -40.7965, 0.0, 64.0, 64.0, 64.0, 64.0),
        (61.3333, 61.5648, -52.1893, 0.0, 0.0, 128.0, 112.0, 128.0),
    ],
}
# Of the second image, ten of its proposals, best first; and what the second stage says of REGIONS.
NUM_PROPOSALS = 937
PROPOSALS = [
    (192.332, 105.648, 203.0, 121.0),
    (85.639, 2.8677, 143.749, 19.075),
    (71.664, 0.0, 98.9991, 36.792),
    (0.0, 37.8174, 53.8346, 54.4891),
    (138.405, 7.42463, 203.0, 21.1141),
    (124.656, 0.0, 152.834, 59.622),
    (0.0, 0.0, 39.1881, 40.4334),
    (188.626, 11.6906, 203.0, 79.3648),
    (60.4234, 70.7425, 138.853, 112.968),
    (84.4981, 44.4269, 183.061, 121.0),
]
REGION_LOGITS = [
    (13.8203, -0.332126, 3.93738, 2.12932),
    (12.9422, 2.50754, 0.672132, 2.55654),
    (4.78272, -1.59458, 4.34826, 13.1328),
    (4.68417, -0.235428, 3.74532, 13.7351),
    (11.0199, 1.18657, -0.940149, 14.1838),
    (10.1256, 2.56626, -1.2972, 14.2682),
    (9.13392, -0.387634, 0.219432, 11.9529),
    (9.25306, 0.0820397, -0.777919, 11.2815),
]
REGION_DELTAS = [
    (
        -0.163094,
        -0.467535,
        -0.0461357,
        0.2667,
        -0.0727809,
        -0.0442794,
        0.104724,
        0.234813,
        -0.228244,
        -0.348806,
        0.0853621,
        0.0606963,
    ),
    (
        0.143802,
        -0.337231,
        -0.199358,
        0.201794,
        -0.106169,
        0.190589,
        0.149492,
        0.230166,
        -0.0975151,
        -0.286873,
        0.023484,
        0.0377804,
    ),
    (
        0.221973,
        -0.045758,
        -0.148826,
        -0.0158051,
        0.183511,
        0.208453,
        0.172267,
        -0.182581,
        0.312185,
        -0.481267,
        -0.154797,
        0.278704,
    ),
    (
        0.256237,
        -0.0371423,
        -0.144024,
        -0.0649739,
        0.207224,
        0.308592,
        0.153184,
        -0.0600944,
        0.32547,
        -0.415125,
        -0.103992,
        0.362566,
    ),
    (
        0.0425342,
        0.0122898,
        -0.131543,
        0.324715,
        0.140026,
        0.122874,
        0.257792,
        -0.0555316,
        -0.163807,
        -0.213471,
        -0.0738843,
        0.228657,
    ),
    (
        -0.0179413,
        0.0915,
        -0.0768601,
        -0.120846,
        0.0233787,
        0.132046,
        0.00600505,
        0.0699333,
        0.0785598,
        -0.210047,
        0.110887,
        0.0434693,
    ),
    (
        0.0648056,
        0.0224738,
        -0.118792,
        0.166821,
        0.0441836,
        -0.0337943,
        0.0997534,
        0.062028,
        -0.0254217,
        -0.0530001,
        0.0159305,
        0.101991,
    ),
    (
        0.08133,
        -0.0442109,
        -0.125918,
        0.0401716,
        0.0940386,
        -0.0428249,
        0.149579,
        0.0312241,
        -0.042708,
        -0.113721,
        0.0515613,
        0.0524748,
    ),
]
# Of each image the number of its detections, and ten of them, best first: box, score and label, here the logit.
DETECTIONS = {
    ("faster_rcnn", 0): (
        68,
        [
            (5.0833, 18.3053, 128.0, 127.631, 0.999963, 3),
            (117.992, 0.0, 128.0, 30.8193, 0.573007, 1),
            (94.0872, 67.3722, 128.0, 80.3948, 0.462601, 2),
            (117.9, 91.541, 127.876, 126.586, 0.252008, 1),
            (95.7835, 67.852, 127.285, 108.649, 0.16985, 1),
            (71.7409, 110.442, 92.6373, 128.0, 0.122292, 2),
            (40.744, 0.0, 101.107, 18.1933, 0.0953754, 3),
            (0.0, 111.361, 14.237, 128.0, 0.0705188, 3),
            (55.0137, 0.175352, 87.7988, 34.225, 0.0591965, 3),
            (34.7409, 76.5688, 61.2658, 126.193, 0.0501974, 1),
        ],
    ),
    ("faster_rcnn", 1): (
        33,
        [
            (7.48056, 20.995, 134.304, 89.8495, 0.999928, 3),
            (64.119, 89.9594, 85.4863, 89.9992, 0.583321, 3),
            (71.869, 30.5026, 104.128, 41.6846, 0.231746, 1),
            (85.1765, 73.6933, 125.21, 85.5043, 0.15969, 1),
            (53.989, 36.4359, 74.4328, 70.7985, 0.121943, 1),
            (108.55, 0.435638, 149.76, 44.439, 0.111562, 2),
            (102.028, 8.08692, 122.809, 38.5971, 0.0687548, 3),
            (122.195, 1.19395, 141.001, 52.1252, 0.0604946, 2),
            (19.0861, 8.72368, 36.1142, 64.6867, 0.0540158, 1),
            (60.9366, 34.0433, 80.4412, 67.5847, 0.0500176, 1),
        ],
    ),
    ("retinanet", 0): (
        79,
        [
            (40.9189, 43.4279, 78.1592, 77.0387, 0.548335, 3),
            (90.1474, 63.4882, 114.299, 113.342, 0.243152, 0),
            (71.1202, 29.781, 107.695, 69.7386, 0.179613, 3),
            (97.2398, 66.1965, 127.91, 114.172, 0.126257, 3),
            (26.2698, 12.8919, 62.9117, 51.605, 0.102193, 2),
            (92.0979, 41.8069, 112.447, 95.1678, 0.0881454, 0),
            (57.5817, 11.2777, 93.671, 47.3447, 0.0737469, 3),
            (82.2365, 58.6513, 113.301, 103.346, 0.0621883, 3),
            (75.9076, 77.9957, 97.6395, 118.625, 0.0588604, 0),
            (57.6046, 45.6066, 97.7388, 60.9483, 0.0502002, 1),
        ],
    ),
    ("retinanet", 1): (
        100,
        [
            (112.188, 0.0, 141.276, 24.2987, 0.606479, 2),
            (29.1855, 41.6221, 54.8061, 72.5602, 0.261765, 3),
            (59.3967, 17.6962, 85.4996, 42.434, 0.200511, 3),
            (76.5649, 35.4734, 99.242, 62.9153, 0.146661, 3),
            (44.0818, 40.0091, 69.826, 62.2626, 0.119909, 2),
            (72.5708, 11.9422, 97.9996, 38.6049, 0.101895, 3),
            (0.0, 47.0548, 17.3314, 90.0, 0.0882332, 3),
            (118.793, 5.56182, 146.519, 31.0675, 0.0746986, 3),
            (42.1673, 57.6741, 57.9782, 85.1942, 0.0642745, 0),
            (28.1814, 15.5811, 52.1957, 43.2951, 0.0564057, 3),
        ],
    ),
    ("fcos", 0): (
        48,
        [
            (63.7033, 0.0, 105.054, 54.6154, 0.614079, 3),
            (0.0, 63.7318, 29.7159, 128, 0.481132, 2),
            (0.0, 47.2243, 44.3081, 128, 0.371887, 3),
            (57.5008, 3.14899, 91.4036, 79.9262, 0.338048, 1),
            (54.5975, 34.0657, 82.048, 103.285, 0.296961, 3),
            (15.7028, 48.3323, 52.8992, 116.144, 0.258514, 3),
            (0.0, 12.4457, 23.3514, 80.2953, 0.238862, 0),
            (5.82731, 38.6971, 57.2777, 106.498, 0.228988, 3),
            (70.5658, 35.2119, 104.578, 103.988, 0.214667, 3),
            (0.0, 47.2243, 44.3081, 128, 0.20122, 0),
        ],
    ),
    ("fcos", 1): (
        97,
        [
            (69.4418, 38.857, 117.18, 90, 0.753501, 3),
            (106.098, 0.0, 136.581, 41.4447, 0.411764, 3),
            (74.7522, 8.64988, 97.4059, 61.6706, 0.339737, 0),
            (117.002, 40.5107, 150, 90, 0.317797, 0),
            (13.8008, 0.0, 150, 90, 0.289251, 3),
            (34.1653, 43.5008, 76.7951, 90, 0.27099, 3),
            (41.8806, 0.0, 61.9617, 45.981, 0.246878, 3),
            (81.3934, 12.5748, 105.901, 67.5091, 0.227017, 3),
            (89.9622, 33.8936, 117.069, 90, 0.213475, 0),
            (105.054, 67.8414, 140.842, 90, 0.200332, 0),
        ],
    ),
}


BUILD = {"faster_rcnn": faster_rcnn_torchvision, "retinanet": retinanet_torchvision, "fcos": fcos_torchvision}
DETECTORS = list(BUILD)


def load(name, state, folder, **arguments):
    path = folder / "model.safetensors"
    save_file(state, path)
    return BUILD[name](path, short_sides=(SHORT,), long_side=LONG, epsilon=EPSILON[name], **arguments)


@pytest.fixture(scope="module", params=DETECTORS)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def model(name, tmp_path_factory):
    return load(name, state_dict(name), tmp_path_factory.mktemp(name), class_names={1: "cat", 3: "dog"})


@pytest.fixture(scope="module")
def outputs(model):
    """What the network answers to the second image."""
    fed = model.resizer(images()[1][None])
    assert fed.shape == (1, 128, 224, 3)
    return model(fed)


faster_rcnn_only = pytest.mark.parametrize("name", ["faster_rcnn"], indirect=True)


def test_every_level_answers_as_torchvisions(name, model, outputs):
    outputs, compared = {**outputs, "anchors": model.pyramid(121, 203)}, 0
    for (detector, output), levels in SUMMARIES.items():
        if detector == name:
            for given, expected in zip(outputs[output], levels, strict=True):
                assert np.max(np.abs(summary(given) - np.array(expected))) < 1e-4 * np.max(np.abs(given)), output
                compared += 1
    assert compared == {"faster_rcnn": 15, "retinanet": 15, "fcos": 20}[name]


@faster_rcnn_only
def test_proposals_are_torchvisions(outputs):
    found = outputs["proposals"][0]
    assert abs(np.sum(np.asarray(boxes.area(found)) > 0) - NUM_PROPOSALS) <= 1  # one may be at the threshold of NMS
    ranks = np.linspace(0, NUM_PROPOSALS - 1, len(PROPOSALS)).astype(int)
    overlap = np.asarray(boxes.iou(np.float32(PROPOSALS), found))
    assert np.all(np.max(overlap, axis=1) > 0.99)
    assert np.all(np.abs(np.argmax(overlap, axis=1) - ranks) <= 1)  # neighbours of nearly equal score may change places


@faster_rcnn_only
def test_the_second_stage_answers_as_torchvisions(model, outputs):
    given = model.second_stage(outputs["levels"], np.float32([REGIONS]))
    deltas = np.reshape(given["box_deltas"], (len(REGIONS), -1))
    for found, expected in ((given["class_logits"][0], REGION_LOGITS), (deltas, REGION_DELTAS)):
        assert np.max(np.abs(found - np.array(expected))) < 1e-4 * np.max(np.abs(found))


@pytest.mark.parametrize("number", [0, 1])
def test_detections_are_torchvisions(name, model, number):
    count, expected = DETECTIONS[name, number]
    found = {key: np.asarray(value)[0] for key, value in model.predict_step(images()[number][None]).items()}
    assert abs(found["num_detections"] - count) <= 1  # one may be at the threshold
    expected = np.float32(expected)
    overlap = np.asarray(boxes.iou(expected[:, :4], found["boxes"]))
    background = name == "faster_rcnn"
    match = np.argmax(np.where(found["labels"] + background == expected[:, 5:], overlap, 0), axis=1)
    assert np.all(overlap[np.arange(len(match)), match] > 0.99)
    assert np.max(np.abs(found["scores"][match] - expected[:, 4])) < 1e-3
    assert np.all(np.abs(match - np.linspace(0, count - 1, len(match)).astype(int)) <= 1)


def test_logits_without_a_name_are_called_unused(name, model):
    assert model.class_names == ("unused 0",) * (name != "faster_rcnn") + ("cat", "unused 2", "dog")


def older(key):
    """The name that a tensor has in older files; the published COCO weights are such."""
    key = re.sub(r"(inner_blocks|layer_blocks)\.(\d)\.0", r"\1.\2", key)
    key = key.replace("rpn.head.conv.0.0", "rpn.head.conv")
    return re.sub(r"_head\.conv\.(\d)\.0", lambda found: f"_head.conv.{2 * int(found[1])}", key)


def test_the_names_of_older_files_will_do(name, model, tmp_path):
    state = {older(key): value for key, value in state_dict(name).items()}
    assert len(state.keys() - shapes(name).keys()) == {"faster_rcnn": 18, "retinanet": 28, "fcos": 12}[name]
    loaded = load(name, state, tmp_path)
    for weight, expected in zip(loaded.weights, model.weights, strict=True):
        np.testing.assert_array_equal(weight, expected, err_msg=weight.path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("faster_rcnn", r"fasterrcnn_resnet50_fpn: it has no roi_heads\.box_predictor\.cls_score\.bias"),
        ("retinanet", r"retinanet_resnet50_fpn: it has no head\.classification_head\.cls_logits\.bias"),
        ("fcos", r"fcos_resnet50_fpn: it has no head\.classification_head\.cls_logits\.bias"),
    ],
)
def test_a_file_of_something_else_is_refused(tmp_path, name, message):
    with pytest.raises(WeightsError, match=f"model.safetensors: not a state dict of torchvision's {message}") as error:
        load(name, {"conv1.weight": np.zeros((64, 3, 7, 7), "float32")}, tmp_path)
    assert "\n" not in str(error.value)


FC6 = "roi_heads.box_head.fc6.weight"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        # As in fasterrcnn_resnet50_fpn_v2, whose second stage begins with convolutions.
        (None, r"box_head\.fc6\.weight is missing"),
        (np.zeros((1024, 256), "float32"), r"box_head\.fc6\.weight has shape \[1024, 256\]"),
    ],
    ids=["missing", "another shape"],
)
def test_a_file_that_does_not_fit_is_refused(tmp_path, value, message):
    state = {key: array for key, array in {**state_dict("faster_rcnn"), FC6: value}.items() if array is not None}
    with pytest.raises(WeightsError, match=f"model.safetensors: does not fit the network: .*{message}") as error:
        load("faster_rcnn", state, tmp_path)
    assert "\n" not in str(error.value)
