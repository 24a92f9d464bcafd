"""RetinaNet (Lin et al. 2017, arXiv:1708.02002; released code: facebookresearch/Detectron).

A feature pyramid with nine anchors in every cell. Two towers of four convolutions, shared by all levels, predict for
each anchor a yes or no to every class, and the shift from the anchor to the object.

Which samples count? An anchor is positive from IoU 0.5 with an object, negative below 0.4, and ignored in between; the
best anchors of an object are positive however low their IoU (released code; the paper has no such rule). Crowd regions
and padding are ignored. Then nothing is drawn: all negatives enter the loss, and the focal loss makes the easy ones
cheap.
"""

import math

import keras
from keras import ops

from tfdet import assigners, backbones, losses, nms
from tfdet import boxes as box_ops
from tfdet.anchors import AnchorGenerator, AnchorPyramid, inside, per_anchor, sizes_of_levels
from tfdet.assigners import IGNORED
from tfdet.coders import DeltaXYWH
from tfdet.data.transforms import RandomShortSide
from tfdet.detectors.base import Detector
from tfdet.distribution import sum_over_replicas
from tfdet.inspection.samples import of_anchors
from tfdet.necks import FPN
from tfdet.resizers import ShortSide, size_without_padding, without_padding


class RetinaNetHead(keras.layers.Layer):
    """A tower for classes and one for boxes; both run over every level with the same weights.

    Args:
        num_anchors: A of each cell.
        prior: the probability that an untrained head gives to every class, so that the many negatives of the first
            steps cost little.
    """

    def __init__(self, num_anchors, num_classes, channels=256, prior=0.01, **kwargs):
        super().__init__(**kwargs)

        def convolution(filters, initial=None, **options):
            initial = initial or keras.initializers.RandomNormal(stddev=0.01)
            return keras.layers.Conv2D(filters, 3, padding="same", kernel_initializer=initial, **options)

        def tower():
            # 0.01 is for 256 channels: a tower of 64 would pass on a thousandth of what it is fed, and hardly learn.
            initial = keras.initializers.HeNormal if channels < 256 else lambda: None
            return [convolution(channels, initial(), activation="relu") for _ in range(4)]

        self.num_classes = num_classes
        self.class_tower, self.box_tower = tower(), tower()
        rare = keras.initializers.Constant(-math.log((1 - prior) / prior))
        self.class_conv = convolution(num_anchors * num_classes, bias_initializer=rare)
        self.box_conv = convolution(num_anchors * 4)

    def call(self, levels):
        """Levels [B, H, W, channels] -> (class logits, box deltas), each with one [B, H * W * A, C or 4] a level."""
        logits = [self._run(self.class_tower, self.class_conv, level) for level in levels]
        deltas = [self._run(self.box_tower, self.box_conv, level) for level in levels]
        return tuple(per_anchor(x, self.num_classes) for x in logits), tuple(per_anchor(x, 4) for x in deltas)

    def _run(self, tower, last, x):
        for convolution in tower:
            x = convolution(x)
        return last(x)


class RetinaNetTargetEncoder:
    """What every anchor should predict for one image.

    Args:
        pyramid: AnchorPyramid.
        largest: height and width of the image where none is given.
    """

    def __init__(self, pyramid, coder, largest, pos_iou=0.5, neg_iou=0.4, min_pos_iou=0.0):
        self.pyramid, self.coder, self.largest = pyramid, coder, largest
        self.pos_iou, self.neg_iou, self.min_pos_iou = pos_iou, neg_iou, min_pos_iou

    def __call__(self, boxes, labels, size=None):
        """boxes [M, 4] xyxy pixels of the fed image, labels int [M] (-1: a crowd region), its size without padding.

        Returns:
            {"labels" int32 [H, W, A], "box_deltas" float32 [H, W, A, 4]}, each a tuple with one map a level. A negative
            has label -1, an ignored anchor -2, and both have deltas 0.
        """
        height, width = self.largest if size is None else size
        boxes, labels = ops.cast(boxes, "float32"), ops.cast(labels, "int32")
        anchors, matched = self.match(boxes, labels, (height, width))
        # A 0 at the end, so that there is something to take also when there are no boxes.
        own_labels = ops.take(ops.pad(labels, [[0, 1]]), ops.maximum(matched, 0))
        deltas = self.coder.encode_matched(anchors, boxes, matched)
        return {
            "labels": self.pyramid.split(ops.where(matched >= 0, own_labels, matched), height, width),
            "box_deltas": self.pyramid.split(deltas, height, width),
        }

    def match(self, boxes, labels, size):
        """The anchors [N, 4] of an image of that size, and int32 [N] as `assigners.max_iou`.

        An anchor on the padding is ignored. It comes back without an area, so that it is no object's best.
        """
        anchors = ops.concatenate(self.pyramid(*size))
        usable = inside(anchors, *size)
        anchors = ops.where(usable[:, None], anchors, 0.0)
        matched = assigners.max_iou(anchors, boxes, self.pos_iou, self.neg_iou, self.min_pos_iou, crowd=labels < 0)
        return anchors, ops.where(usable, matched, IGNORED)


class RetinaNetLoss:
    """(focal loss of all anchors that are not ignored + smooth L1 of the positives) / number of positives."""

    parts = ("class", "box")

    def __init__(self, pyramid):
        self.pyramid = pyramid

    def __call__(self, targets, outputs):
        """The encoder's targets and the network's outputs, batched -> {"class": scalar, "box": scalar}."""
        labels = self.pyramid.join(targets["labels"])
        logits, deltas = (ops.concatenate(outputs[name], axis=1) for name in ("class_logits", "box_deltas"))
        positive = labels >= 0
        count = ops.maximum(sum_over_replicas(ops.sum(ops.cast(positive, "float32"))), 1.0)

        class_loss = losses.sigmoid_focal(labels, logits)
        box_loss = losses.smooth_l1(self.pyramid.join(targets["box_deltas"], 4), deltas, beta=0.1)
        return {
            "class": ops.sum(ops.where(labels == IGNORED, 0.0, class_loss)) / count,
            "box": ops.sum(ops.where(positive[..., None], box_loss, 0.0)) / count,
        }


class RetinaNetDecoder:
    """The best of every level, clipped to the image, and NMS inside each class; the released code's test settings."""

    def __init__(self, coder, score_threshold=0.05, iou_threshold=0.5, pre_nms=1000, keep=100):
        self.coder, self.pre_nms, self.keep = coder, pre_nms, keep
        self.score_threshold, self.iou_threshold = score_threshold, iou_threshold

    def __call__(self, outputs):
        """The network's outputs -> detections in pixels of the fed image (see Detector)."""
        levels = zip(outputs["class_logits"], outputs["box_deltas"], outputs["anchors"], strict=True)
        heights, widths = ops.unstack(outputs["sizes"][:, None, :], 2, axis=-1)
        candidates = [self._candidates(*level, heights, widths) for level in levels]
        boxes, scores = (ops.concatenate(parts, axis=1) for parts in zip(*candidates, strict=True))
        boxes = box_ops.clip(boxes, heights, widths)
        every = ops.shape(boxes)[1]
        return nms.multiclass_nms(boxes, scores, self.iou_threshold, self.score_threshold, every, self.keep)

    def _candidates(self, logits, deltas, anchors, heights, widths):
        """Boxes [B, K, 4] and scores [B, K, C] of a level's best anchors; all but its best K scores are 0."""
        # What lies beside the image was ignored in training and may say anything.
        logits = ops.where(inside(anchors, heights, widths)[..., None], logits, float("-inf"))
        best, logits = nms.best_pairs(logits, self.pre_nms)
        deltas = ops.take_along_axis(deltas, best[..., None], axis=1)
        return self.coder.decode(ops.take(anchors, best, axis=0), deltas), ops.sigmoid(logits)


@keras.saving.register_keras_serializable("tfdet")
class RetinaNet(Detector):
    """The detector: see `retinanet` for the published settings.

    Args:
        backbone: keras.Model from images [B, H, W, 3], RGB 0..255, to {"C3": ..., "C4": ..., "C5": ...}.
        class_names: names of the classes, or their number.
        anchors: an AnchorGenerator for each of the levels P3 to P7.
        short_sides, long_side: of the fed image in pixels (see tfdet.resizers.ShortSide). Training draws one of the
            short sides for each image, prediction takes the last.
        channels: of the pyramid and the heads.
        p6_from: the map that P6 is made of: "C5" (the released code) or "P5".
        fitted: see AnchorPyramid.
    """

    def __init__(
        self,
        backbone,
        class_names,
        anchors,
        short_sides,
        long_side,
        channels=256,
        p6_from="C5",
        fitted=False,
        **kwargs,
    ):
        super().__init__(class_names, **kwargs)
        self.settings = {"backbone": backbone, "anchors": list(anchors), "short_sides": tuple(short_sides)}
        self.settings |= {"long_side": long_side, "channels": channels, "p6_from": p6_from, "fitted": fitted}
        self.backbone = backbone
        self.neck = FPN(("C3", "C4", "C5"), channels, extra="conv", p6_from=p6_from, name="neck")
        self.head = RetinaNetHead(anchors[0].num_anchors, self.num_classes, channels, name="head")

        self.pyramid, coder = AnchorPyramid(anchors, fitted), DeltaXYWH()
        self.resizer = ShortSide(short_sides[-1], long_side)
        self.augmentation = RandomShortSide(short_sides, long_side)
        self.encoder = RetinaNetTargetEncoder(self.pyramid, coder, (long_side, long_side))
        self.detection_loss = RetinaNetLoss(self.pyramid)
        self.decoder = RetinaNetDecoder(coder)
        self.supports_jit = False  # XLA would compile a step for every size of image
        self.create_weights(128, 128)

    def call(self, images, training=None):
        images, sizes = without_padding(images)
        levels = self.neck(self.backbone(images, training=training))
        class_logits, box_deltas = self.head(list(levels.values()))
        anchors = self.pyramid(*ops.shape(images)[1:3])
        return {"class_logits": class_logits, "box_deltas": box_deltas, "anchors": anchors, "sizes": sizes}

    wants_crowds = True

    def encode(self, image, boxes, labels, seed):
        return self.encoder(boxes, labels, size_without_padding(image))

    def samples(self, image, boxes, labels, seed):
        size = size_without_padding(image)
        anchors, matched = self.encoder.match(boxes, labels, size)
        found = anchors, self.pyramid.levels(*size), matched, matched != IGNORED
        return (of_anchors("anchors", boxes, labels, *found, self.encoder.min_pos_iou),)


def retinanet(
    num_classes,
    backbone="resnet50",
    weights=None,
    short_sides=None,
    long_side=1333,
    p6_from="C5",
    anchor_sizes=None,
):
    """RetinaNet on a feature pyramid, P3 to P7; anchors of 32 to 813 pixels: three sizes and three ratios in a cell.

    Args:
        num_classes: the number of classes, or their names.
        backbone: "resnet50" (or 18, 34, 101), or any with the maps C3, C4 and C5. With "mobilenet_v2" and
            "resnet_slim" (trains from nothing), which a CPU can train, pyramid and heads are a quarter as wide.
        weights: of the backbone: None, "imagenet", or a file (see tfdet.backbones.build).
        short_sides, long_side, p6_from: see RetinaNet; None draws from 640 to 800 pixels.
        anchor_sizes: the smallest one of each level, finest first, others than 32, 64, ... 512.
    """
    short_sides = short_sides or range(640, 801, 32)
    channels = 64 if backbone in ("mobilenet_v2", "resnet_slim") else 256
    backbone = backbones.build(backbone, weights)
    sizes = retinanet_anchors(anchor_sizes), short_sides, long_side
    return RetinaNet(backbone, num_classes, *sizes, channels, p6_from, name="retinanet")


def retinanet_anchors(sizes=None):
    """The AnchorGenerator of each of the levels P3 to P7; sizes as the `anchor_sizes` of `retinanet`."""
    strides = [2**k for k in range(3, 8)]
    sizes = sizes_of_levels(sizes or [4 * stride for stride in strides], strides)
    return [
        AnchorGenerator([size * 2 ** (octave / 3) for octave in range(3)], (0.5, 1.0, 2.0), stride)
        for size, stride in zip(sizes, strides, strict=True)
    ]
