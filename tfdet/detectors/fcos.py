"""FCOS (Tian et al. 2019, arXiv:1904.01355; released code: tianzhi0549/FCOS).

No anchors. A feature pyramid has one location in every cell, and two towers of four convolutions, shared by all levels,
predict for it a yes or no to every class, the distances to the four sides of the object's box, and the centerness: how
near to the middle of that box it is.

Which samples count? A location is positive if it lies in a box, of several in the smallest, and if the furthest side of
the box is as far away as its level answers for: up to 64 pixels on P3, 64 to 128 on P4, and so on. With centre sampling
("improved") it must also be near the middle. All others are negative; crowd regions and padding are ignored. Then
nothing is drawn: all negatives enter the loss, and the focal loss makes the easy ones cheap.

What do the positives learn? The box by its IoU with the object; the nearer to the middle, the more it counts.

How is the score made? From the probability of the class and that of centerness, the root of their product: a box seen
from its border is seldom a good one, and so loses against the others in NMS. (The paper takes the product; the order is
the same.)
"""

import math

import keras
from keras import ops

from tfdet import assigners, backbones, losses, nms
from tfdet import boxes as box_ops
from tfdet.anchors import AnchorPyramid, PointGenerator, per_anchor
from tfdet.assigners import IGNORED
from tfdet.coders import LTRB
from tfdet.data.transforms import RandomShortSide
from tfdet.detectors.base import Detector
from tfdet.distribution import sum_over_replicas
from tfdet.inspection.samples import Samples, serving
from tfdet.necks import FPN
from tfdet.resizers import ShortSide, size_without_padding, without_padding

STRIDES = (8, 16, 32, 64, 128)  # of P3 to P7
RANGES = ((0, 64), (64, 128), (128, 256), (256, 512), (512, math.inf))  # of the furthest side, in pixels

REASONS = (  # why no location serves an object
    "too small or too thin: no location lies in it",
    "outside all ranges: its locations are on levels for other sizes",
    "no location is near its centre",
    "crowded out: smaller boxes have its locations",
)


class FCOSHead(keras.layers.Layer):
    """A tower for classes and one for boxes; both run over every level with the same weights.

    Only a scale is each level's own. The distances are exp(scale * x) pixels, improved: max(scale * x, 0) strides.
    Centerness is a branch of the tower for classes, improved: of that for boxes.

    Args:
        channels: a multiple of 32, the groups of the normalisation.
        prior: the probability that an untrained head gives to every class, so that the many negatives of the first
            steps cost little.
    """

    def __init__(self, num_classes, channels=256, improved=False, prior=0.01, **kwargs):
        super().__init__(**kwargs)

        def convolution(filters, **options):
            initial = keras.initializers.RandomNormal(stddev=0.01)
            return keras.layers.Conv2D(filters, 3, padding="same", kernel_initializer=initial, **options)

        def block():
            return convolution(channels), keras.layers.GroupNormalization(32, epsilon=1e-5), keras.layers.ReLU()

        self.num_classes, self.improved = num_classes, improved
        self.class_tower = [layer for _ in range(4) for layer in block()]
        self.box_tower = [layer for _ in range(4) for layer in block()]
        rare = keras.initializers.Constant(-math.log((1 - prior) / prior))
        self.class_conv = convolution(num_classes, bias_initializer=rare)
        self.box_conv, self.centerness_conv = convolution(4), convolution(1)

    def build(self, input_shape):
        # In half precision a scale would move a large box by whole pixels.
        self.scales = self.add_weight(shape=(len(input_shape),), initializer="ones", name="scales", autocast=False)

    def call(self, levels):
        """Levels [B, H, W, channels] -> (class logits, distances, centerness logits), each with one array a level:
        [B, H * W, C], [B, H * W, 4], [B, H * W].
        """
        return tuple(zip(*(self._level(level, self.scales[i]) for i, level in enumerate(levels)), strict=True))

    def _level(self, level, scale):
        of_class = of_box = level
        for in_class_tower, in_box_tower in zip(self.class_tower, self.box_tower, strict=True):
            of_class, of_box = in_class_tower(of_class), in_box_tower(of_box)
        distances = per_anchor(self.box_conv(of_box), 4) * ops.cast(scale, "float32")
        distances = ops.relu(distances) if self.improved else ops.exp(distances)
        centerness = per_anchor(self.centerness_conv(of_box if self.improved else of_class), 1)[..., 0]
        return per_anchor(self.class_conv(of_class), self.num_classes), distances, centerness


class FCOSTargetEncoder:
    """What every location should predict for one image.

    Args:
        pyramid: AnchorPyramid of points.
        largest: height and width of the image where none is given.
        radius: of centre sampling, in strides; None: anywhere in the box.
        ranges: least and greatest distance of the furthest side that each level answers for, in pixels.
    """

    def __init__(self, pyramid, coder, largest, radius=None, ranges=RANGES):
        self.pyramid, self.coder, self.largest = pyramid, coder, largest
        self.radius, self.ranges = radius, ranges

    def __call__(self, boxes, labels, size=None):
        """boxes [M, 4] xyxy pixels of the fed image, labels int [M] (-1: a crowd region), its size without padding.

        Returns:
            {"labels" int32 [H, W, 1], "distances" float32 [H, W, 1, 4]}, each a tuple with one map a level. A negative
            has label -1, an ignored location -2, and both have distances 0.
        """
        height, width = self.largest if size is None else size
        boxes, labels = ops.cast(boxes, "float32"), ops.cast(labels, "int32")
        points, _, matched = self.match(boxes, labels, (height, width))

        # A 0 at the end, so that there is something to take also when there are no boxes.
        own_labels = ops.take(ops.pad(labels, [[0, 1]]), ops.maximum(matched, 0))
        distances = self.coder.encode_matched(points, boxes, matched)
        return {
            "labels": self.pyramid.split(ops.where(matched >= 0, own_labels, matched), height, width),
            "distances": self.pyramid.split(distances, height, width),
        }

    def match(self, boxes, labels, size):
        """The points [N, 3] of an image of that size, their ranges [N, 2], and int32 [N] as `assigners.fcos_points`.

        A location on the padding is ignored.
        """
        height, width = size
        levels = self.pyramid(height, width)
        points = ops.concatenate(levels)
        limits = [ops.convert_to_tensor(limits, "float32") for limits in self.ranges]
        ranges = [ops.zeros_like(level[:, :2]) + limit for level, limit in zip(levels, limits, strict=True)]
        ranges = ops.concatenate(ranges)
        matched = assigners.fcos_points(points, ranges, boxes, self.radius, crowd=labels < 0)
        on_image = (points[:, 0] < ops.cast(width, "float32")) & (points[:, 1] < ops.cast(height, "float32"))
        return points, ranges, ops.where(on_image, matched, IGNORED)


def centerness(distances):
    """1 in the middle of a box, 0 at its border; eq. 3. Distances to the sides [..., 4] -> [...]; of zeros 0."""
    left, top, right, bottom = ops.unstack(distances, 4, axis=-1)
    across = ops.minimum(left, right) / ops.maximum(ops.maximum(left, right), 1e-12)
    return ops.sqrt(across * ops.minimum(top, bottom) / ops.maximum(ops.maximum(top, bottom), 1e-12))


class FCOSLoss:
    """(focal loss of all locations that are not ignored + cross-entropy of the positives' centerness) / their number,
    and the mean IoU loss of the positives, weighted by what their centerness should be.

    Args:
        giou: take the generalised IoU, and not the logarithm of the IoU.
    """

    parts = ("class", "box", "centerness")

    def __init__(self, pyramid, giou=False):
        self.pyramid, self.box_loss = pyramid, losses.giou_loss if giou else losses.iou_loss

    def __call__(self, targets, outputs):
        """The encoder's targets and the network's outputs, batched -> {"class", "box", "centerness"}, scalars."""
        labels, distances = self.pyramid.join(targets["labels"]), self.pyramid.join(targets["distances"], 4)
        names = "class_logits", "distances", "centerness_logits"
        logits, predicted, centerness_logits = (ops.concatenate(outputs[name], axis=1) for name in names)
        positive, wanted = labels >= 0, centerness(distances)
        count = ops.maximum(sum_over_replicas(ops.sum(ops.cast(positive, "float32"))), 1.0)
        weight = ops.maximum(sum_over_replicas(ops.sum(wanted)), 1e-6)

        # Where nothing is wanted nothing may overflow: zero times that would not be zero.
        predicted = ops.where(positive[..., None], predicted, distances)
        class_loss = losses.sigmoid_focal(labels, logits)
        centerness_loss = losses.sigmoid_cross_entropy(wanted, centerness_logits)
        return {
            "class": ops.sum(ops.where(labels == IGNORED, 0.0, class_loss)) / count,
            "box": ops.sum(wanted * self.box_loss(distances, predicted)) / weight,
            "centerness": ops.sum(ops.where(positive, centerness_loss, 0.0)) / count,
        }


class FCOSDecoder:
    """The best of every level, clipped to the image, and NMS inside each class; the released code's test settings.

    Args:
        class_threshold: of a class's probability alone; score_threshold: of the score.
        root: whether the score is the root of the product (released code, torchvision), or the product (paper).
    """

    def __init__(
        self, coder, class_threshold=0.05, score_threshold=0.0, iou_threshold=0.6, pre_nms=1000, keep=100, root=True
    ):
        self.coder, self.pre_nms, self.keep, self.root = coder, pre_nms, keep, root
        self.class_threshold, self.score_threshold = class_threshold, score_threshold
        self.iou_threshold = iou_threshold

    def __call__(self, outputs):
        """The network's outputs -> detections in pixels of the fed image (see Detector)."""
        names, sizes = ("class_logits", "distances", "centerness_logits", "points"), outputs["sizes"]
        candidates = [self._candidates(*level, sizes) for level in zip(*(outputs[name] for name in names), strict=True)]
        boxes, scores = (ops.concatenate(parts, axis=1) for parts in zip(*candidates, strict=True))
        heights, widths = ops.unstack(outputs["sizes"][:, None, :], 2, axis=-1)
        boxes = box_ops.clip(boxes, heights, widths)
        every = ops.shape(boxes)[1]
        return nms.multiclass_nms(boxes, scores, self.iou_threshold, self.score_threshold, every, self.keep)

    def _candidates(self, logits, distances, centerness_logits, points, sizes):
        """Boxes [B, K, 4] and scores [B, K, C] of a level's best locations; all but its best K scores are 0."""
        classes = ops.sigmoid(logits)
        scores = classes * ops.sigmoid(centerness_logits)[..., None]
        # What lies beside the image was ignored in training and may say anything.
        on_image = ops.all(points[:, :2] < ops.flip(sizes, axis=-1)[:, None, :], axis=-1)[..., None]
        counts = (classes > self.class_threshold) & on_image
        best, scores = nms.best_pairs(ops.where(counts, scores, 0.0), self.pre_nms)
        distances = ops.take_along_axis(distances, best[..., None], axis=1)
        boxes, scores = self.coder.decode(ops.take(points, best, axis=0), distances), ops.maximum(scores, 0.0)
        return boxes, ops.sqrt(scores) if self.root else scores


@keras.saving.register_keras_serializable("tfdet")
class FCOS(Detector):
    """The detector: see `fcos` for the published settings.

    Args:
        backbone: keras.Model from images [B, H, W, 3], RGB 0..255, to {"C3": ..., "C4": ..., "C5": ...}.
        class_names: names of the classes, or their number.
        short_sides, long_side: of the fed image in pixels (see tfdet.resizers.ShortSide). Training draws one of the
            short sides for each image, prediction takes the last.
        channels: of the pyramid and the heads, a multiple of 32.
        improved: see `fcos`.
        offset: of the location in its cell, in cells: 0.5, the middle, or 0 (torchvision).
        fitted: see AnchorPyramid.
        thresholds: for a class's probability alone, and for the score.
    """

    def __init__(
        self,
        backbone,
        class_names,
        short_sides,
        long_side,
        channels=256,
        improved=False,
        offset=0.5,
        fitted=False,
        thresholds=(0.05, 0.0),
        **kwargs,
    ):
        super().__init__(class_names, **kwargs)
        self.settings = {"backbone": backbone, "short_sides": tuple(short_sides), "long_side": long_side}
        self.settings |= {"channels": channels, "improved": improved, "offset": offset, "fitted": fitted}
        self.settings |= {"thresholds": tuple(thresholds)}
        self.backbone = backbone
        self.neck = FPN(("C3", "C4", "C5"), channels, extra="conv", p6_from="P5", name="neck")
        self.head = FCOSHead(self.num_classes, channels, improved, name="head")

        self.pyramid = AnchorPyramid([PointGenerator(stride, offset) for stride in STRIDES], fitted)
        coder = LTRB(in_strides=improved)
        self.resizer = ShortSide(short_sides[-1], long_side)
        self.augmentation = RandomShortSide(short_sides, long_side)
        self.encoder = FCOSTargetEncoder(self.pyramid, coder, (long_side, long_side), 1.5 if improved else None)
        self.detection_loss = FCOSLoss(self.pyramid, giou=improved)
        self.decoder = FCOSDecoder(coder, *thresholds)
        self.supports_jit = False  # XLA would compile a step for every size of image
        self.create_weights(128, 128)

    def call(self, images, training=None):
        images, sizes = without_padding(images)
        levels = self.neck(self.backbone(images, training=training))
        class_logits, distances, centerness_logits = self.head(list(levels.values()))
        outputs = {"class_logits": class_logits, "distances": distances, "centerness_logits": centerness_logits}
        return {**outputs, "points": self.pyramid(*ops.shape(images)[1:3]), "sizes": sizes}

    wants_crowds = True

    def encode(self, image, boxes, labels, seed):
        return self.encoder(boxes, labels, size_without_padding(image))

    def samples(self, image, boxes, labels, seed):
        size, count = size_without_padding(image), ops.shape(boxes)[0]
        points, ranges, matched = self.encoder.match(boxes, labels, size)
        box, _, in_range, near = assigners.fcos_pairs(points, ranges, boxes, self.encoder.radius)

        def missing(pairs):  # bool [M]: which boxes are in none of them
            return ops.segment_sum(ops.cast(pairs, "int32"), ops.cast(box, "int32"), num_segments=count) == 0

        why = ops.where(missing(in_range), 2, ops.where(missing(in_range & near), 3, 4))
        why = ops.where(missing(ops.ones_like(near)), 1, why)
        half = points[:, 2:] / 2
        return (
            Samples(
                stage="locations",
                shape="point",
                boxes=ops.concatenate([points[:, :2] - half, points[:, :2] + half], axis=-1),
                levels=self.pyramid.levels(*size),
                matched=matched,
                drawn=matched != IGNORED,
                why=ops.where((serving(matched, count) > 0) | (labels < 0), 0, why),
                reasons=REASONS,
            ),
        )


def fcos(num_classes, backbone="resnet50", weights=None, short_sides=None, long_side=1333, improved=False):
    """FCOS on a feature pyramid, P3 to P7, of which P6 is made of P5.

    Args:
        num_classes: the number of classes, or their names.
        backbone: "resnet50" (or 18, 34, 101), or any with the maps C3, C4 and C5. With "mobilenet_v2" and
            "resnet_slim" (trains from nothing), which a CPU can train, pyramid and heads are a quarter as wide.
        weights: of the backbone: None, "imagenet", or a file (see tfdet.backbones.build).
        short_sides, long_side: see FCOS; None is 800 pixels.
        improved: the released code's "imprv" models, 1.6 AP better on COCO with ResNet-50: centre sampling within 1.5
            strides, distances in strides, generalised IoU, and centerness a branch of the tower for boxes.
    """
    channels = 64 if backbone in ("mobilenet_v2", "resnet_slim") else 256
    backbone = backbones.build(backbone, weights)
    return FCOS(backbone, num_classes, short_sides or (800,), long_side, channels, improved, name="fcos")
