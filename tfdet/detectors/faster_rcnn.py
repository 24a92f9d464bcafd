"""Faster R-CNN (Ren et al. 2015, arXiv:1506.01497) on one feature map, and on a feature pyramid (FPN, Lin et al. 2017,
arXiv:1612.03144). Released codes: rbgirshick/py-faster-rcnn, facebookresearch/Detectron.

Two stages. The region proposal network (RPN) says of every anchor whether there is any object, and where; what is left
of its answers after NMS are the proposals. The second stage cuts each of them out of the features (RoIAlign), names its
class and corrects its box.

Which samples count? First stage: an anchor is positive from IoU 0.7 with an object, or as the best anchor of one if
that is at least 0.3; negative below 0.3; ignored in between, in crowd regions and on padding. 256 of an image are drawn
by lot, at most half of them positives. Second stage: a proposal is positive from IoU 0.5, otherwise negative; the
objects themselves are added to the proposals, so that there are positives from the first step on; 512 are drawn, at
most a quarter of them positives. The rules are `assigners.max_iou` and `samplers.RandomSampler`.
"""

import keras
from keras import ops

from tfdet import assigners, backbones, losses, nms, rois
from tfdet import boxes as box_ops
from tfdet.anchors import AnchorGenerator, AnchorPyramid, inside, sizes_of_levels
from tfdet.assigners import IGNORED, NEGATIVE
from tfdet.coders import DeltaXYWH
from tfdet.data.transforms import RandomShortSide
from tfdet.detectors.base import Detector
from tfdet.distribution import sum_over_replicas
from tfdet.errors import TfdetError
from tfdet.inspection.samples import of_anchors
from tfdet.necks import FPN
from tfdet.resizers import ShortSide, size_without_padding, without_padding
from tfdet.samplers import RandomSampler
from tfdet.weights import load_arrays


class RPNHead(keras.layers.Layer):
    """A 3x3 convolution, then for each of A anchors in a cell one logit and four deltas; the same for all levels."""

    def __init__(self, num_anchors, channels, **kwargs):
        super().__init__(**kwargs)

        def convolution(filters, size, **options):
            initial = keras.initializers.RandomNormal(stddev=0.01)
            return keras.layers.Conv2D(filters, size, padding="same", kernel_initializer=initial, **options)

        self.conv = convolution(channels, 3, activation="relu")
        self.logit_conv, self.delta_conv = convolution(num_anchors, 1), convolution(num_anchors * 4, 1)
        # Raw outputs leave in float32 also under mixed precision.
        self.logits = keras.layers.Reshape((-1,), dtype="float32")
        self.deltas = keras.layers.Reshape((-1, 4), dtype="float32")

    def call(self, levels):
        """Levels [B, H, W, channels] -> logits [B, H * W * A] and deltas [B, H * W * A, 4], each a tuple of levels."""
        levels = [self.conv(level) for level in levels]
        logits = tuple(self.logits(self.logit_conv(level)) for level in levels)
        return logits, tuple(self.deltas(self.delta_conv(level)) for level in levels)


class BoxHead(keras.layers.Layer):
    """Two fully connected layers, then a logit for each class and the background, and four deltas for each class."""

    def __init__(self, num_classes, width, dropout=0.0, **kwargs):
        super().__init__(**kwargs)

        def dense(units, stddev):
            return keras.layers.Dense(units, kernel_initializer=keras.initializers.RandomNormal(stddev=stddev))

        self.num_classes = num_classes
        self.fc6 = keras.layers.Dense(width, activation="relu")
        self.fc7 = keras.layers.Dense(width, activation="relu")
        self.dropout = keras.layers.Dropout(dropout)
        self.classes, self.deltas = dense(num_classes + 1, 0.01), dense(num_classes * 4, 0.001)

    def call(self, regions, training=None):
        """Regions [B, R, 7, 7, channels] -> {"class_logits" [B, R, 1 + C], "box_deltas" [B, R, C, 4]}.

        Background comes first.
        """
        _, count, height, width, channels = ops.shape(regions)
        x = ops.reshape(regions, (-1, count, height * width * channels))
        x = self.dropout(self.fc6(x), training=training)
        x = self.dropout(self.fc7(x), training=training)
        deltas = ops.reshape(self.deltas(x), (-1, count, self.num_classes, 4))
        return {"class_logits": ops.cast(self.classes(x), "float32"), "box_deltas": ops.cast(deltas, "float32")}


class Proposals:
    """From the RPN's answers to the regions that the second stage looks at.

    Args:
        pre_nms, post_nms: how many of the best to keep on each level before NMS, and of all levels after it; each a
            pair, for training and for testing.
        min_size: proposals with a shorter side, in pixels, are dropped.
    """

    def __init__(self, coder, pre_nms, post_nms, iou_threshold=0.7, min_size=1e-3):
        self.coder, self.pre_nms, self.post_nms = coder, pre_nms, post_nms
        self.iou_threshold, self.min_size = iou_threshold, min_size

    def __call__(self, logits, deltas, anchors, sizes, training=False):
        """What RPNHead gives, the anchors [n, 4] of each level and the images' sizes [B, 2] -> boxes [B, R, 4].

        In pixels of the fed image, inside it, best first, padded with boxes of no area. No gradient passes.
        """
        pre_nms, post_nms = (pair[0 if training else 1] for pair in (self.pre_nms, self.post_nms))
        levels = [self._best(*level, sizes, pre_nms) for level in zip(logits, deltas, anchors, strict=True)]
        boxes, scores = (ops.stop_gradient(ops.stack(parts, axis=2)) for parts in zip(*levels, strict=True))
        # Levels do not suppress each other, just as classes do not elsewhere.
        return nms.multiclass_nms(boxes, scores, self.iou_threshold, 0.0, pre_nms, post_nms)["boxes"]

    def _best(self, logits, deltas, anchors, sizes, count):
        """Boxes [B, count, 4] and scores [B, count] of one level's best anchors; where there are too few, 0."""
        count_here = ops.minimum(count, ops.shape(logits)[1])
        scores, best = ops.top_k(logits, count_here)
        deltas = ops.take_along_axis(deltas, best[..., None], axis=1)
        boxes = self.coder.decode(ops.take(anchors, best, axis=0), deltas)
        heights, widths = ops.unstack(sizes[:, None, :], 2, axis=-1)
        x1, y1, x2, y2 = ops.unstack(box_ops.clip(boxes, heights, widths), 4, axis=-1)
        large = ops.logical_and(x2 - x1 >= self.min_size, y2 - y1 >= self.min_size)
        scores = ops.where(large, ops.sigmoid(scores), 0.0)
        padding = [[0, 0], [0, count - count_here]]
        return ops.pad(ops.stack([x1, y1, x2, y2], axis=-1), [*padding, [0, 0]]), ops.pad(scores, padding)


class FasterRCNNTargetEncoder:
    """What every anchor should say of one image, for the anchors that were drawn; and what the second stage needs.

    Args:
        pyramid: AnchorPyramid.
        largest: height and width of the image where none is given.
        crossing: whether anchors that reach beyond the image count (they do since FPN; not in the original).
        pos_iou, neg_iou, min_pos_iou: see `assigners.max_iou`.
    """

    def __init__(self, pyramid, coder, largest, sampler, crossing=True, pos_iou=0.7, neg_iou=0.3, min_pos_iou=0.3):
        self.pyramid, self.coder, self.largest = pyramid, coder, largest
        self.sampler, self.crossing = sampler, crossing
        self.pos_iou, self.neg_iou, self.min_pos_iou = pos_iou, neg_iou, min_pos_iou

    def __call__(self, boxes, labels, size=None, seed=0):
        """boxes [M, 4] xyxy pixels of the fed image, labels int [M] (-1: a crowd region), its size without padding.

        Returns:
            {"rpn_labels" int32 [H, W, A], "rpn_deltas" float32 [H, W, A, 4]}, each a tuple with one map a level: 0 for
            a positive, -1 for a negative, -2 for an anchor that is ignored or was not drawn; and, for the second stage,
            the "boxes" float32 [M, 4], "labels" int32 [M] and "seed" int64 [] themselves.
        """
        height, width = self.largest if size is None else size
        boxes, labels = ops.cast(boxes, "float32"), ops.cast(labels, "int32")
        anchors, matched = self.match(boxes, labels, (height, width))
        positive, negative = self.sampler(matched, seed)
        deltas = self.coder.encode_matched(anchors, boxes, ops.where(positive, matched, IGNORED))
        rpn_labels = ops.where(positive, 0, ops.where(negative, NEGATIVE, IGNORED))
        return {
            "rpn_labels": self.pyramid.split(rpn_labels, height, width),
            "rpn_deltas": self.pyramid.split(deltas, height, width),
            "boxes": boxes,
            "labels": labels,
            "seed": ops.cast(seed, "int64"),
        }

    def match(self, boxes, labels, size):
        """The anchors [N, 4] of an image of that size, and int32 [N] as `assigners.max_iou`.

        An anchor that lies outside is ignored. It comes back without an area, so that it is no object's best.
        """
        anchors = ops.concatenate(self.pyramid(*size))
        usable = inside(anchors, *size, whole=not self.crossing)
        anchors = ops.where(usable[:, None], anchors, 0.0)
        matched = assigners.max_iou(anchors, boxes, self.pos_iou, self.neg_iou, self.min_pos_iou, crowd=labels < 0)
        return anchors, ops.where(usable, matched, IGNORED)


class RegionTargets:
    """Which proposals the second stage learns from, and what it should say of them."""

    def __init__(self, coder, sampler, pos_iou=0.5, neg_iou=0.5):
        self.coder, self.sampler, self.pos_iou, self.neg_iou = coder, sampler, pos_iou, neg_iou

    def __call__(self, proposals, boxes, labels, seed):
        """proposals [B, R, 4], boxes [B, M, 4] and labels [B, M] (crowds and padding: below 0), seed [B].

        Returns:
            {"regions" [B, S, 4], "region_labels" int32 [B, S]: -1 for background, -2 for the padding where there were
            not enough, "region_deltas" [B, S, 4]} of the S that were drawn. No gradient passes.
        """
        proposals = ops.stop_gradient(proposals)
        # One of padding more, so that there is something to take also when there are no boxes.
        boxes = ops.pad(boxes, [[0, 0], [0, 1], [0, 0]])
        labels = ops.pad(labels, [[0, 0], [0, 1]], constant_values=IGNORED)
        candidates, valid = self.sampler.candidates(proposals, box_ops.area(proposals) > 0, boxes, labels)
        matched = ops.map(self._match, (candidates, boxes, labels))
        index, drawn = self.sampler.pick(ops.where(valid, matched, IGNORED), seed)
        regions = ops.take_along_axis(candidates, index[..., None], axis=1)
        matched = ops.take_along_axis(matched, index, axis=1)
        own = ops.maximum(matched, 0)
        labels = ops.where(matched >= 0, ops.take_along_axis(labels, own, axis=1), NEGATIVE)
        return {
            "regions": regions,
            "region_labels": ops.where(drawn, labels, IGNORED),
            "region_deltas": self.coder.encode(regions, ops.take_along_axis(boxes, own[..., None], axis=1)),
        }

    def _match(self, image):
        proposals, boxes, labels = image
        return assigners.max_iou(
            proposals, boxes, self.pos_iou, self.neg_iou, match_low_quality=False, crowd=labels < 0
        )


class FasterRCNNLoss:
    """Cross-entropy of what was drawn and smooth L1 of the positives among it, in each stage, by the number drawn.

    Both parts of a stage are divided by all that was drawn in the batch, over all replicas.
    """

    parts = ("rpn_class", "rpn_box", "class", "box")

    def __init__(self, pyramid):
        self.pyramid = pyramid

    def __call__(self, targets, outputs):
        """The targets of both stages and the network's outputs, batched -> {part: scalar}."""
        rpn_labels = self.pyramid.join(targets["rpn_labels"])
        logits, deltas = (ops.concatenate(outputs[name], axis=1) for name in ("objectness", "rpn_deltas"))
        rpn_class = losses.sigmoid_cross_entropy(rpn_labels >= 0, logits)
        rpn_box = losses.smooth_l1(self.pyramid.join(targets["rpn_deltas"], 4), deltas, beta=1 / 9)

        labels = targets["region_labels"]
        drawn, positive = labels != IGNORED, labels >= 0
        own = ops.maximum(labels, 0)[..., None, None]
        deltas = ops.take_along_axis(outputs["box_deltas"], own, axis=2)[:, :, 0]
        class_loss = losses.softmax_cross_entropy(ops.where(positive, labels + 1, 0), outputs["class_logits"])
        box_loss = ops.sum(losses.smooth_l1(targets["region_deltas"], deltas), axis=-1)

        rpn_drawn, rpn_positive = rpn_labels != IGNORED, rpn_labels >= 0
        return {
            "rpn_class": _mean(rpn_class, rpn_drawn, rpn_drawn),
            "rpn_box": _mean(ops.sum(rpn_box, axis=-1), rpn_positive, rpn_drawn),
            "class": _mean(class_loss, drawn, drawn),
            "box": _mean(box_loss, positive, drawn),
        }


def _mean(loss, counted, drawn):
    """The sum of the loss where it is counted, by the number of those drawn over all replicas."""
    number = sum_over_replicas(ops.sum(ops.cast(drawn, "float32")))
    return ops.sum(ops.where(counted, loss, 0.0)) / ops.maximum(number, 1.0)


class FasterRCNNDecoder:
    """Softmax, each class's own boxes clipped to the image, and NMS inside each class."""

    def __init__(self, coder, score_threshold=0.05, iou_threshold=0.5, keep=100):
        self.coder, self.score_threshold, self.iou_threshold, self.keep = coder, score_threshold, iou_threshold, keep

    def __call__(self, outputs):
        """The network's outputs -> detections in pixels of the fed image (see Detector)."""
        proposals = outputs["proposals"]
        scores = ops.softmax(outputs["class_logits"], axis=-1)[..., 1:]
        scores = ops.where(box_ops.area(proposals)[..., None] > 0, scores, 0.0)  # the others are padding
        boxes = self.coder.decode(proposals[:, :, None, :], outputs["box_deltas"])
        heights, widths = ops.unstack(outputs["sizes"][:, None, None, :], 2, axis=-1)
        boxes = box_ops.clip(boxes, heights, widths)
        every = ops.shape(proposals)[1]
        return nms.multiclass_nms(boxes, scores, self.iou_threshold, self.score_threshold, every, self.keep)


@keras.saving.register_keras_serializable("tfdet")
class FasterRCNN(Detector):
    """The detector: see `faster_rcnn_fpn` and `faster_rcnn_vgg16` for the published settings.

    Args:
        backbone: keras.Model from images [B, H, W, 3], RGB 0..255, to {"C2": ..., ...} (see tfdet.backbones).
        class_names: names of the classes, or their number.
        anchors: an AnchorGenerator for each level that the RPN looks at, finest first.
        short_sides, long_side: of the fed image in pixels (see tfdet.resizers.ShortSide). Training draws one of the
            short sides for each image, prediction takes the last.
        channels: of the pyramid; None for the original detector, which looks at the backbone's C4 alone.
        rpn_channels, box_width, dropout: of RPNHead and BoxHead.
        pre_nms, post_nms: of Proposals.
        regions: how many proposals of an image the second stage learns from.
        crossing: of FasterRCNNTargetEncoder.
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
        rpn_channels=256,
        box_width=1024,
        dropout=0.0,
        pre_nms=(2000, 1000),
        post_nms=(1000, 1000),
        regions=512,
        crossing=True,
        fitted=False,
        **kwargs,
    ):
        super().__init__(class_names, **kwargs)
        self.settings = {
            "backbone": backbone,
            "anchors": list(anchors),
            "short_sides": tuple(short_sides),
            "long_side": long_side,
            "channels": channels,
            "rpn_channels": rpn_channels,
            "box_width": box_width,
            "dropout": dropout,
            "pre_nms": tuple(pre_nms),
            "post_nms": tuple(post_nms),
            "regions": regions,
            "crossing": crossing,
            "fitted": fitted,
        }
        self.backbone = backbone
        self.neck = FPN(sorted(backbone.output), channels, extra="pool", name="neck") if channels else None
        self.rpn = RPNHead(anchors[0].num_anchors, rpn_channels, name="rpn")
        self.box_head = BoxHead(self.num_classes, box_width, dropout, name="box_head")

        self.pyramid = AnchorPyramid(anchors, fitted)
        rpn_coder, box_coder = DeltaXYWH(), DeltaXYWH(stds=(0.1, 0.1, 0.2, 0.2))
        self.resizer = ShortSide(short_sides[-1], long_side)
        self.augmentation = RandomShortSide(short_sides, long_side)
        self.encoder = FasterRCNNTargetEncoder(
            self.pyramid, rpn_coder, (long_side, long_side), RandomSampler(256, 0.5), crossing
        )
        self.proposals = Proposals(rpn_coder, pre_nms, post_nms)
        self.region_targets = RegionTargets(box_coder, RandomSampler(regions, 0.25, add_gt_as_proposals=True))
        self.detection_loss = FasterRCNNLoss(self.pyramid)
        self.decoder = FasterRCNNDecoder(box_coder)
        self.supports_jit = False  # NMS has no XLA kernel, and training needs it here
        self.create_weights(128, 128)

    def call(self, images, training=None):
        images, sizes = without_padding(images)
        features = self.backbone(images, training=training)
        levels = self.neck(features) if self.neck else {"P4": features["C4"]}
        logits, deltas = self.rpn(list(levels.values()))
        anchors = self.pyramid(*ops.shape(images)[1:3])
        proposals = self.proposals(logits, deltas, anchors, sizes, training)
        outputs = {"objectness": logits, "rpn_deltas": deltas, "proposals": proposals, "sizes": sizes, "levels": levels}
        # In training the second stage looks at what `region_targets` draws, once the objects are known.
        return outputs if training else {**outputs, **self.second_stage_image_by_image(levels, proposals)}

    def second_stage(self, levels, regions, training=False):
        """Pyramid and boxes [B, R, 4] -> {"class_logits", "box_deltas"} of BoxHead."""
        finest, coarsest = (2, 5) if self.neck else (4, 4)
        finest = max(finest, min(int(name[1:]) for name in levels))
        parts = rois.multilevel_roi_align(levels, regions, 7, 2, False, finest, coarsest)
        return self.box_head(parts, training=training)

    def second_stage_image_by_image(self, levels, regions):
        """The same, no slower on a CPU, in less memory: the regions of one image are 50 MB."""
        shapes = {"class_logits": (None, self.num_classes + 1), "box_deltas": (None, self.num_classes, 4)}
        return rois.image_by_image(self.second_stage, (levels, regions), shapes)

    wants_crowds = True

    def encode(self, image, boxes, labels, seed):
        return self.encoder(boxes, labels, size_without_padding(image), seed)

    def samples(self, image, boxes, labels, seed):
        # Of the first stage. The second one's are what the network proposes, and it changes with every step.
        size = size_without_padding(image)
        anchors, matched = self.encoder.match(boxes, labels, size)
        positive, negative = self.encoder.sampler(matched, seed)
        found = anchors, self.pyramid.levels(*size), matched, positive | negative
        return (of_anchors("rpn", boxes, labels, *found, self.encoder.min_pos_iou),)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        drawn = self.region_targets(y_pred["proposals"], y["boxes"], y["labels"], y["seed"])
        answers = self.second_stage(y_pred["levels"], drawn["regions"], training)
        return super().compute_loss(x, {**y, **drawn}, {**y_pred, **answers}, sample_weight, training)


def faster_rcnn_fpn(
    num_classes, backbone="resnet50", weights=None, short_sides=None, long_side=1333, anchor_sizes=None
):
    """Faster R-CNN on a feature pyramid, P2 to P6; anchors of 32 to 512 pixels with three ratios.

    Args:
        num_classes: the number of classes, or their names.
        backbone: "resnet50" (or 18, 34, 101), or any with the map C5; one whose finest map is C3 has a pyramid of P3 to
            P6, with anchors of 32 to 256 pixels. With "mobilenet_v2" and "resnet_slim" (trains from nothing), which a
            CPU can train, pyramid and heads are a quarter as wide, and 128 regions of an image are learned from.
        weights: of the backbone: None, "imagenet", or a file (see tfdet.backbones.build).
        short_sides, long_side: see FasterRCNN; None draws from 640 to 800 pixels.
        anchor_sizes: of each level, finest first, others than these.
    """
    short_sides = short_sides or range(640, 801, 32)
    slim = {"channels": 64, "rpn_channels": 64, "box_width": 256, "regions": 128}
    widths = slim if backbone in ("mobilenet_v2", "resnet_slim") else {}
    backbone = backbones.build(backbone, weights)
    if "C5" not in backbone.output:
        raise TfdetError(f"{backbone.name}: a pyramid needs the map C5, and there is only {', '.join(backbone.output)}")
    anchors = fpn_anchors(anchor_sizes, finest=min(int(name[1:]) for name in backbone.output))
    return FasterRCNN(backbone, num_classes, anchors, short_sides, long_side, **widths, name="faster_rcnn_fpn")


def fpn_anchors(sizes=None, finest=2):
    """The AnchorGenerator of each level from P`finest` to P6; sizes as the `anchor_sizes` of `faster_rcnn_fpn`."""
    strides = [2**k for k in range(finest, 7)]
    sizes = sizes_of_levels(sizes or [32 * stride // strides[0] for stride in strides], strides)
    return [AnchorGenerator((size,), (0.5, 1.0, 2.0), stride) for size, stride in zip(sizes, strides, strict=True)]


def faster_rcnn_vgg16(num_classes, weights=None, short_sides=(600,), long_side=1000):
    """The original Faster R-CNN: one map of stride 16, nine anchors in a cell, VGG16 with its fc6 and fc7.

    Not the original's are RoIAlign in the place of RoI pooling; batches of any size; no "+ 1" in the widths of boxes
    (see tfdet.anchors.AnchorGenerator); that an object's best anchor needs an IoU of 0.3 (py-faster-rcnn takes any);
    that proposals of fewer than 16 pixels are kept; and NMS at 0.5, not 0.3, in the end.

    Args:
        num_classes, short_sides, long_side: as for `faster_rcnn_fpn`.
        weights: of VGG16, its fully connected layers included: None, "imagenet", or a file (see tfdet.backbones.vgg16).
            Where a file has no fc6 and fc7 they stay random, with a warning.
    """
    anchors = [AnchorGenerator((128, 256, 512), (0.5, 1.0, 2.0), 16, offset=0.5)]
    model = FasterRCNN(
        backbones.vgg16(weights),
        num_classes,
        anchors,
        short_sides,
        long_side,
        channels=None,
        rpn_channels=512,
        box_width=4096,
        dropout=0.5,
        pre_nms=(12000, 6000),
        post_nms=(2000, 300),
        regions=128,
        crossing=False,
        name="faster_rcnn_vgg16",
    )
    for name, arrays in backbones.vgg16_fully_connected(weights).items():
        load_arrays(getattr(model.box_head, name), arrays, weights)
    return model
