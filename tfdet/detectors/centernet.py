"""CenterNet (Zhou et al. 2019, Objects as Points, arXiv:1904.07850; released code: xingyizhou/CenterNet).

An object is the point at its centre. On one map of stride 4 the network draws a heatmap for every class, and says in
each cell how large an object there is, and where in the cell its centre lies.

Which locations are positive? The one cell in which an object's centre lies, for its class: there the heatmap should be
1. All others are negatives, of which those close by cost less: (1 - y)^4, where y is a Gaussian around the centre as
wide as a corner may move until the IoU falls to 0.7. Nothing is ignored, and none is drawn by lot.

What do they regress? Each object alone, in its own cell: its width and height in cells, one for all classes, and the
place of its centre inside the cell.

How is the score made? It is the heatmap's value in a cell that is not below any of its eight neighbours
(`heatmaps.peaks`); so there is no NMS, but for several scales.

Differences from the released code: crowd regions are no objects; what lies beside the image is black as there, but the
image lies in the corner and not in the middle of it; boxes end at the border of the image.
"""

import keras
import numpy as np
from keras import ops

from tfdet import backbones, heatmaps, losses, nms
from tfdet import boxes as box_ops
from tfdet.data.transforms import CenterNetAugmentation
from tfdet.detectors.base import Detector, unscaled, unscaled_peaks
from tfdet.distribution import sum_over_replicas
from tfdet.errors import TfdetError
from tfdet.inspection.samples import of_points
from tfdet.resizers import KeepSize, ShortSide, rescale, without_padding

STRIDE = 4  # pixels of a cell
BLACK = 0.0


class CenterNetHead(keras.layers.Layer):
    """A 3x3 and a 1x1 convolution for each map that is wanted.

    Args:
        maps: {name: channels}. Those with "heatmap" in their name start with a probability of 0.1 everywhere.
        channels: of the 3x3 convolutions.
    """

    def __init__(self, maps, channels, **kwargs):
        super().__init__(**kwargs)
        self.convs, self.lasts = {}, {}
        for name, count in maps.items():
            rare = "heatmap" in name
            bias = keras.initializers.Constant(-2.19 if rare else 0.0)
            self.convs[name] = keras.layers.Conv2D(
                channels, 3, padding="same", activation="relu", kernel_initializer=_start(rare)
            )
            self.lasts[name] = keras.layers.Conv2D(count, 1, kernel_initializer=_start(rare), bias_initializer=bias)

    def call(self, features):
        """Features [B, h, w, any] -> {name: [B, h, w, channels]}."""
        # Raw outputs leave in float32 also under mixed precision.
        return {name: ops.cast(self.lasts[name](conv(features)), "float32") for name, conv in self.convs.items()}


def _start(heatmap):
    """As PyTorch's convolutions start, uniform in +-1/sqrt(fan in), and the released code's other heads."""
    if heatmap:
        return keras.initializers.VarianceScaling(1 / 3, "fan_in", "uniform")
    return keras.initializers.RandomNormal(stddev=0.001)


class CenterNetTargetEncoder:
    """What the maps should say for one image.

    Args:
        size: height and width of the fed image where none is given.
        max_objects: only so many have a size and an offset to learn; the heatmap has all. (The released code leaves the
            others out altogether.)
    """

    def __init__(self, num_classes, size, min_overlap=0.7, max_objects=128):
        self.num_classes, self.size = num_classes, size
        self.min_overlap, self.max_objects = min_overlap, max_objects

    def __call__(self, boxes, labels, size=None):
        """boxes [M, 4] xyxy pixels of the fed image, labels int [M], its size with padding. M = 0 is legal.

        Returns:
            {"heatmap" float32 [h, w, C]} and, of the first objects, what `heatmaps.place` says: "cells" int32
            [max_objects, 2], "size" and "offset" float32 [max_objects, 2]. Cells of rows without an object are -1.
        """
        (height, width), (cells, radii, sizes, offsets) = self.place(boxes, labels, size)
        shape, labels = (height, width, self.num_classes), ops.maximum(ops.cast(labels, "int32"), 0)
        return {
            "heatmap": heatmaps.draw_gaussians(shape, cells, radii, labels),
            "cells": heatmaps.first_rows(cells, self.max_objects, -1),
            "size": heatmaps.first_rows(sizes, self.max_objects, 0.0),
            "offset": heatmaps.first_rows(offsets, self.max_objects, 0.0),
        }

    def place(self, boxes, labels, size=None):
        """Height and width of the map, and where the objects lie on it: see `heatmaps.place`."""
        height, width = (side // STRIDE for side in (self.size if size is None else size))
        boxes = ops.cast(boxes, "float32") / STRIDE
        return (height, width), heatmaps.place(boxes, labels, height, width, self.min_overlap)


class CenterNetLoss:
    """Focal loss of the heatmap + 0.1 L1 of the sizes + L1 of the offsets, the mean over the stacks.

    The focal loss is divided by the number of cells that are 1, so that two objects of a class in one cell count once;
    the others by that of objects, times two (the paper: by that of objects).
    """

    parts = ("heatmap", "size", "offset")

    def __init__(self, size_weight=0.1):
        self.size_weight = size_weight

    def __call__(self, targets, outputs):
        """The encoder's targets and the network's outputs, batched -> {"heatmap", "size", "offset": scalar}."""
        cells = ops.cast(targets["cells"], "int32")
        valid = cells[..., :1] >= 0
        return {
            "heatmap": heatmap_loss(targets["heatmap"], outputs["heatmap"]),
            "size": distance(targets["size"], outputs["size"], cells, valid) * self.size_weight,
            "offset": distance(targets["offset"], outputs["offset"], cells, valid),
        }


def heatmap_loss(targets, stacks):
    """The focal loss of [B, h, w, C] for each point, a cell that is 1; the mean over the stacks' logits."""
    points = sum_over_replicas(ops.sum(ops.cast(targets == 1, "float32")))
    total = sum(ops.sum(losses.heatmap_focal(targets, logits)) for logits in stacks)
    return total / ops.maximum(points, 1.0) / len(stacks)


def distance(targets, stacks, cells, valid):
    """L1 between targets [B, K, N] and what maps [B, h, w, N] say in cells int32 [B, K, 2]: the mean over the valid
    numbers, bool [B, K, 1 or N], and over the stacks."""
    valid = ops.cast(ops.broadcast_to(valid, ops.shape(targets)), "float32")
    total = sum(ops.sum(valid * ops.abs(heatmaps.at(maps, cells) - targets)) for maps in stacks)
    return total / (sum_over_replicas(ops.sum(valid)) + 1e-4) / len(stacks)


class CenterNetDecoder:
    """The best peaks of the last stack's heatmap.

    Args:
        score_threshold: only better scores count. The released code has none, but writes its results with two decimals,
            of which 0.005 is the least that is not 0.
        keep: K.
    """

    def __init__(self, score_threshold=0.005, keep=100):
        self.score_threshold, self.keep = score_threshold, keep

    def __call__(self, outputs):
        """The network's outputs -> detections in pixels of the fed image (see Detector)."""
        scores, labels, _, boxes = best_objects(outputs, self.keep)
        heights, widths = ops.unstack(outputs["image_sizes"][:, None, :], 2, axis=-1)
        boxes = box_ops.clip(boxes * STRIDE, heights, widths)
        return nms.padded(boxes, scores, labels, scores > self.score_threshold)

    def peaks(self, outputs):
        """{"centre": {"points" [B, K, 2] in pixels of the fed image, "scores", "labels" [B, K]}}."""
        scores, labels, _, boxes = best_objects(outputs, self.keep)
        points = (boxes[..., :2] + boxes[..., 2:]) / 2 * STRIDE
        return {"centre": {"points": points, "scores": scores, "labels": labels}}


def best_objects(outputs, keep):
    """The best peaks of the last stack: scores float32 [B, K], labels int32 [B, K], best first, their cells int32
    [B, K, 2], and boxes float32 [B, K, 4] in units of cells."""
    logits, sizes, offsets = (outputs[name][-1] for name in ("heatmap", "size", "offset"))
    best, labels, rows, columns = heatmaps.peaks(logits, keep)
    cells = ops.stack([rows, columns], axis=-1)
    centres = heatmaps.corners(cells) + heatmaps.at(offsets, cells)
    halves = ops.maximum(heatmaps.at(sizes, cells), 0.0) / 2
    return ops.sigmoid(best), labels, cells, ops.concatenate([centres - halves, centres + halves], axis=-1)


@keras.saving.register_keras_serializable("tfdet")
class CenterNet(Detector):
    """The detector: see `centernet` for the published settings.

    Args:
        backbone: keras.Model from images [B, H, W, 3], RGB 0..255, to {"stack1": [B, H/4, W/4, any], ...}; detections
            are read from the last stack, in the order of their names, and all of them are trained.
        class_names: names of the classes, or their number.
        side: of the square that training crops, in pixels; a multiple of `multiple`.
        keep_size: detect in images of their own size (the released code's test on COCO), or in ones whose long side is
            `side` (its test on VOC).
        channels: of the heads.
        multiple: what the sides of a fed image must be a multiple of, in pixels.
        flip: detect in the mirror image too, with the mean of both heatmaps and sizes (the offset is the image's own).
        scales: detect at each of these sizes, relative to the fed image; soft-NMS merges what is found at several.
    Raises:
        TfdetError: `side` is no multiple, or the backbone is not of this kind.
    """

    def __init__(
        self,
        backbone,
        class_names,
        side,
        keep_size=False,
        channels=64,
        multiple=32,
        flip=False,
        scales=(1.0,),
        **kwargs,
    ):
        super().__init__(class_names, **kwargs)
        check_backbone(backbone, side, multiple)
        self.settings = {"backbone": backbone, "side": side, "keep_size": keep_size, "channels": channels}
        self.settings |= {"multiple": multiple, "flip": flip, "scales": tuple(scales)}
        self.backbone, self.flip, self.scales, self.multiple = backbone, flip, tuple(scales), multiple
        maps = {"heatmap": self.num_classes, "size": 2, "offset": 2}
        self.heads = [CenterNetHead(maps, channels, name=f"head{i}") for i in range(1, len(backbone.output) + 1)]

        self.resizer = KeepSize(multiple) if keep_size else ShortSide(side, side, multiple)
        self.augmentation = CenterNetAugmentation(side)
        self.encoder = CenterNetTargetEncoder(self.num_classes, (side, side))
        self.detection_loss = CenterNetLoss()
        self.decoder = CenterNetDecoder()
        self.supports_jit = False  # XLA would compile a step for every size of image
        self.create_weights(side, side)

    def call(self, images, training=None):
        return raw_outputs(self.backbone, self.heads, images, training)

    def encode(self, image, boxes, labels, seed):
        return self.encoder(boxes, labels, ops.shape(image)[:2])

    def samples(self, image, boxes, labels, seed):
        _, (cells, *_) = self.encoder.place(boxes, labels, ops.shape(image)[:2])
        maps = {"centre": self.encode(image, boxes, labels, seed)["heatmap"]}
        pixels = np.float32((STRIDE, STRIDE))
        return (of_points("centres", {"centre": cells}, maps, labels, pixels, self.encoder.max_objects),)

    def detect(self, images, scale):
        return unscaled(at_scales(self._detect, images, self.scales, self.multiple, self.decoder), scale)

    def peaks(self, images, scale):
        """The centres that boxes are made of (see `unscaled_peaks`); scales do not count here."""
        return unscaled_peaks(self.decoder.peaks(self._outputs(images)), scale)

    def _detect(self, images):
        return self.decoder(self._outputs(images))

    def _outputs(self, images):
        outputs = self(images, training=False)
        if self.flip:
            mirrored = self(images[:, :, ::-1], training=False)
            heatmap, size = (mirrored[name][-1][:, :, ::-1] for name in ("heatmap", "size"))
            outputs["heatmap"] = [heatmaps.mean(outputs["heatmap"][-1], heatmap)]
            outputs["size"] = [(outputs["size"][-1] + size) / 2]
        return outputs


def check_backbone(backbone, side, multiple):
    """Raises TfdetError for a backbone of another kind, and for a side in pixels that it cannot take."""
    if not all(name.startswith("stack") for name in backbone.output):
        raise TfdetError(f"{backbone.name}: CenterNet needs maps stack1, ..., not {', '.join(backbone.output)}")
    if side % multiple:
        raise TfdetError(f"side {side}: this backbone needs a multiple of {multiple}")


def raw_outputs(backbone, heads, images, training):
    """Fed images -> {map: a tuple of one [B, h, w, channels] for each stack, "image_sizes" float32 [B, 2]}."""
    images, sizes = without_padding(images, BLACK)
    stacks = backbone(images, training=training)
    maps = [head(stacks[name]) for head, name in zip(heads, sorted(stacks), strict=True)]
    return {**{name: tuple(stack[name] for stack in maps) for name in maps[0]}, "image_sizes": sizes}


def at_scales(detect, images, scales, multiple, decoder):
    """What `detect` finds in the images at each of these scales, in their pixels; soft-NMS merges several."""
    if scales == (1.0,):
        return detect(images)
    found = [unscaled(detect(rescale(images, scale, multiple)), ops.full((1, 4), scale)) for scale in scales]
    return nms.soft_merge(found, decoder.keep)


def head_settings(backbone):
    """Of a backbone or its name: channels of the released heads, and what an image's sides must be a multiple of."""
    name = getattr(backbone, "name", backbone)
    return (
        256 if name in ("dla34", "hourglass104") else 64,
        128 if name == "hourglass104" else 32,  # 5 times halved from stride 4
    )


def centernet(num_classes, backbone="resnet18_dcn", weights=None, side=512, keep_size=False):
    """CenterNet on a map of stride 4.

    Args:
        num_classes: the number of classes, or their names.
        backbone: "resnet18_dcn", "resnet101_dcn", "resnet18_up", "resnet101_up", "dla34", "hourglass104",
            "resnet_slim_up" (trains from nothing on a CPU), or any backbone model with maps "stack1", ... of stride 4.
        weights: of the backbone: None, "imagenet", or a file (see tfdet.backbones.build).
        side, keep_size: see CenterNet.
    """
    channels, multiple = head_settings(backbone)
    backbone = backbones.build(backbone, weights)
    return CenterNet(backbone, num_classes, side, keep_size, channels, multiple, name="centernet")
