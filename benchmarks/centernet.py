"""CenterNet against the released code on PyTorch: networks with decoding, decoding alone, targets; as ratios.

    python benchmarks/centernet.py --peer PYTHON --original FOLDER

PYTHON is the interpreter of an environment with the peers (benchmarks/requirements.txt), FOLDER a checkout of
xingyizhou/CenterNet, of which the networks, `ctdet_decode` and the drawing of heatmaps run here. Its deformable
convolution needs CUDA; torchvision's takes its place. One image of 512 x 512, 80 classes, float32, random weights;
deformable convolutions look 0.8 pixels aside (standard deviation).
"""

import functools
import math
import os
import sys
import types

import numpy as np
import turns

SIZE, CLASSES, OBJECTS, IMAGES = 512, 80, 20, 80
NETWORKS = {"resnet18_dcn": 9, "dla34": 7, "hourglass104": 3}  # name: rounds


def main():
    arguments = turns.arguments(__doc__, {"tfdet": tfdet, "original": original}, add_more)
    print(turns.HEADER)
    for name, question, rounds in [
        *((f"{network}, forward and decoding", ("network", network), n) for network, n in NETWORKS.items()),
        ("decoding, 128 x 128 x 80", ("decode", None), 15),
        ("targets, 20 objects", ("encode", None), 15),
    ]:
        ours, theirs = turns.Process(sys.executable, "tfdet"), turns.Process(arguments.peer, "original")
        turns.compare(name, ours, theirs, question, rounds)
        print(f"{'  peak memory':40} {ours.end():8.2f} GB {theirs.end():8.2f} GB", flush=True)


def add_more(parser):
    parser.add_argument("--original", required=True, help="checkout of xingyizhou/CenterNet")


def maps():
    """Logits of the heatmap [128, 128, C], sizes and offsets [128, 128, 2], as of a trained network."""
    rng, side = np.random.default_rng(0), SIZE // 4
    logits = rng.normal(-6, 1.5, (side, side, CLASSES))
    sizes, offsets = rng.uniform(1, 40, (side, side, 2)), rng.uniform(0, 1, (side, side, 2))
    return [values.astype("float32") for values in (logits, sizes, offsets)]


def objects():
    """Boxes float32 [IMAGES, OBJECTS, 4] in pixels, labels int32 [IMAGES, OBJECTS]."""
    rng = np.random.default_rng(0)
    centres, sizes = rng.uniform(0, SIZE, (IMAGES, OBJECTS, 2)), rng.uniform(8, 200, (IMAGES, OBJECTS, 2))
    boxes = np.concatenate([centres - sizes / 2, centres + sizes / 2], axis=-1)
    return boxes.astype("float32"), rng.integers(0, CLASSES, (IMAGES, OBJECTS)).astype("int32")


def once_prepared(prepare):
    """prepare(what, network) -> the work, which gives the number of its pieces."""
    prepared = functools.cache(prepare)
    return lambda *question: prepared(*question)()


def tfdet():
    import tensorflow as tf

    from tfdet.deformable import DeformableConv2D
    from tfdet.detectors.centernet import CenterNetDecoder, CenterNetTargetEncoder, centernet

    def prepare(what, network):
        if what == "network":
            model = centernet(CLASSES, network)
            for layer in model.backbone.layers:
                if isinstance(layer, DeformableConv2D):
                    layer.offset_convolution.bias.assign(np.random.default_rng(0).normal(size=27) * 0.8)
            image = np.random.default_rng(0).integers(0, 256, (1, SIZE, SIZE, 3), "uint8")
            return lambda: len(model.predict_on_batch(image)["boxes"])
        if what == "decode":
            logits, sizes, offsets = ((tf.constant(values[None]),) for values in maps())
            outputs = {"heatmap": logits, "size": sizes, "offset": offsets}
            outputs["image_sizes"] = tf.constant([[SIZE, SIZE]], tf.float32)
            decode = tf.function(CenterNetDecoder(), autograph=False)
            return lambda: len(decode(outputs)["boxes"].numpy())
        unknown_count = tf.TensorSpec([None, 4], tf.float32), tf.TensorSpec([None], tf.int32)  # as of real images
        boxes = tf.data.Dataset.from_generator(lambda: zip(*objects(), strict=True), output_signature=unknown_count)
        encoder = CenterNetTargetEncoder(CLASSES, (SIZE, SIZE))
        stream = boxes.cache().map(tf.autograph.experimental.do_not_convert(encoder))
        return lambda: sum(1 for _ in stream)

    return once_prepared(prepare)


def original():
    import torch
    from torchvision import ops

    class DCN(torch.nn.Module):
        """DCNv2's layer by torchvision's operator."""

        def __init__(self, channels, filters, kernel_size, stride, padding, dilation, deformable_groups):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.randn(filters, channels, 3, 3) / math.sqrt(9 * channels))
            self.bias = torch.nn.Parameter(torch.zeros(filters))
            self.conv_offset_mask = torch.nn.Conv2d(channels, 27, 3, padding=1)
            torch.nn.init.zeros_(self.conv_offset_mask.weight)
            torch.nn.init.normal_(self.conv_offset_mask.bias, std=0.8)

        def forward(self, features):
            rows, columns, mask = self.conv_offset_mask(features).chunk(3, dim=1)
            offsets = torch.cat([rows, columns], dim=1)
            return ops.deform_conv2d(features, offsets, self.weight, self.bias, padding=1, mask=torch.sigmoid(mask))

    folder = sys.argv[sys.argv.index("--original") + 1]
    sys.path.insert(0, os.path.join(folder, "src", "lib"))
    # What cannot be had here: its CUDA operator, and OpenCV, which the functions below do not use.
    sys.modules["models.networks.DCNv2.dcn_v2"] = types.SimpleNamespace(DCN=DCN)
    sys.modules["cv2"] = types.ModuleType("cv2")
    from models.decode import ctdet_decode
    from models.networks import large_hourglass, pose_dla_dcn, resnet_dcn
    from utils.image import draw_umich_gaussian, gaussian_radius

    heads = {"hm": CLASSES, "wh": 2, "reg": 2}

    def build(network):
        if network == "dla34":
            # Not by its own builder, which downloads weights.
            return pose_dla_dcn.DLASeg("dla34", heads, False, down_ratio=4, final_kernel=1, last_level=5, head_conv=256)
        if network == "hourglass104":
            return large_hourglass.HourglassNet(heads, 2)
        block, layers = resnet_dcn.resnet_spec[18]
        return resnet_dcn.PoseResNet(block, layers, heads, head_conv=64)

    def prepare(what, network):
        if what == "network":
            model = build(network).eval()
            image = torch.randn(1, 3, SIZE, SIZE)

            @torch.no_grad()
            def forward():
                output = model(image)[-1]
                return len(ctdet_decode(output["hm"].sigmoid_(), output["wh"], output["reg"]))

            return forward
        if what == "decode":
            logits, sizes, offsets = (torch.from_numpy(values).permute(2, 0, 1)[None].contiguous() for values in maps())
            return torch.no_grad()(lambda: len(ctdet_decode(logits.sigmoid(), sizes, offsets)))
        return lambda: sum(encode(*image) for image in zip(*objects(), strict=True))

    def encode(boxes, labels):
        """As the data set of the released code does it, after the augmentation."""
        side = SIZE // 4
        heatmap = np.zeros((CLASSES, side, side), np.float32)
        sizes, offsets = np.zeros((128, 2), np.float32), np.zeros((128, 2), np.float32)
        for k, (box, label) in enumerate(zip(boxes, labels, strict=True)):
            box = np.clip(box / 4, 0, side - 1)
            width, height = box[2:] - box[:2]
            radius = max(0, int(gaussian_radius((math.ceil(height), math.ceil(width)))))
            centre = (box[:2] + box[2:]) / 2
            draw_umich_gaussian(heatmap[label], centre.astype(np.int32), radius)
            sizes[k], offsets[k] = (width, height), centre - centre.astype(np.int32)
        return 1

    return once_prepared(prepare)


if __name__ == "__main__":
    main()
