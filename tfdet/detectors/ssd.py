"""SSD: Single Shot MultiBox Detector (Liu et al. 2016, arXiv:1512.02325; released code: weiliu89/caffe, branch ssd).

Thousands of prior boxes of fixed sizes lie on feature maps of falling resolution. For each one a 3x3 convolution
predicts a class and the shift from the prior to the object.

Which samples count? A prior is positive if it is the best prior of some object, or overlaps one with IoU >= 0.5
(`assigners.ssd`). All others are negatives; of these only the costliest enter the loss, three for every positive of the
image (`samplers.hard_negatives`). None is ignored.
"""

import keras
import numpy as np
from keras import ops

from tfdet import assigners, backbones, losses, nms, samplers
from tfdet import boxes as box_ops
from tfdet.anchors import PriorBox, ssd_sizes
from tfdet.coders import DeltaXYWH
from tfdet.data.transforms import SSDAugmentation
from tfdet.detectors.base import Detector
from tfdet.distribution import sum_over_replicas
from tfdet.errors import TfdetError, WeightsError
from tfdet.inspection.samples import Samples, serving
from tfdet.resizers import Warp
from tfdet.weights import load_torch, read_state_dict

BACKBONE_LEVELS = ("C3", "C4", "C5")  # strides 8, 16 and, if the backbone reaches it, 32


class SSDNeck(keras.layers.Layer):
    """The extra feature layers: pairs of a 1x1 and a 3x3 convolution that carry on where the backbone ends.

    Args:
        extras: (squeeze, width, kernel, stride, padding) for each further level.
    """

    def __init__(self, extras, **kwargs):
        super().__init__(**kwargs)
        self.blocks = [
            keras.Sequential(
                [
                    keras.layers.Conv2D(squeeze, 1, activation="relu"),
                    # Padded by hand, on both sides alike: "same" pads an even map on one side only when it strides.
                    keras.layers.ZeroPadding2D(padding),
                    keras.layers.Conv2D(width, kernel, stride, activation="relu"),
                ],
                name=f"extra_{i + 1}",
            )
            for i, (squeeze, width, kernel, stride, padding) in enumerate(extras)
        ]

    def call(self, features):
        """The backbone's {"C3": [B, H, W, channels], ...} -> list of all levels, finest (stride 8) first."""
        levels = [features[name] for name in BACKBONE_LEVELS if name in features]
        for block in self.blocks:
            levels.append(block(levels[-1]))
        return levels


class SSDHead(keras.layers.Layer):
    """Two 3x3 convolutions a level, one for classes and one for boxes, with weights of their own on each level."""

    def __init__(self, num_priors, num_classes, **kwargs):
        """num_priors: P of each level, finest first."""
        super().__init__(**kwargs)
        self.class_convs = [keras.layers.Conv2D(p * (num_classes + 1), 3, padding="same") for p in num_priors]
        self.box_convs = [keras.layers.Conv2D(p * 4, 3, padding="same") for p in num_priors]
        # Raw outputs leave in float32 also under mixed precision.
        self.class_flat = keras.layers.Reshape((-1, num_classes + 1), dtype="float32")
        self.box_flat = keras.layers.Reshape((-1, 4), dtype="float32")

    def call(self, levels):
        """Levels [B, H, W, channels] -> {"class_logits" [B, N, 1 + C], background first, "box_deltas" [B, N, 4]}.

        The order of the N priors is that of PriorBox, level after level.
        """
        classes = [self.class_flat(conv(level)) for conv, level in zip(self.class_convs, levels, strict=True)]
        boxes = [self.box_flat(conv(level)) for conv, level in zip(self.box_convs, levels, strict=True)]
        return {"class_logits": ops.concatenate(classes, axis=1), "box_deltas": ops.concatenate(boxes, axis=1)}


class SSDTargetEncoder:
    """What every prior should predict for one image."""

    def __init__(self, priors, coder, iou=0.5):
        self.priors, self.coder, self.iou = priors, coder, iou

    def __call__(self, boxes, labels):
        """boxes [M, 4] xyxy pixels of the fed image, labels int [M] -> {"labels" int32 [N], "box_deltas" [N, 4]}.

        A negative prior has label -1 and deltas that mean nothing. M = 0 is legal: all priors are negative.
        """
        matched = self.match(boxes)
        # Index -1 finds the stand-in at the end, also when there are no boxes.
        boxes = ops.pad(ops.cast(boxes, "float32"), [[0, 1], [0, 0]])
        labels = ops.pad(ops.cast(labels, "int32"), [[0, 1]], constant_values=-1)
        deltas = self.coder.encode(self.priors, ops.take(boxes, matched, axis=0))
        return {"labels": ops.take(labels, matched, axis=0), "box_deltas": deltas}

    def match(self, boxes):
        """int32 [N]: see `assigners.ssd`."""
        return assigners.ssd(self.priors, boxes, self.iou)


class SSDLoss:
    """(cross-entropy of positives and hard negatives + smooth L1 of positives) / number of positives.

    The number is that of the whole batch, over all replicas (the released code's VALID normalisation); a batch without
    any positive costs nothing.
    """

    parts = ("class", "box")

    def __init__(self, negatives_per_positive=3):
        self.negatives_per_positive = negatives_per_positive

    def __call__(self, targets, outputs):
        """The encoder's targets and the head's outputs, batched -> {"class": scalar, "box": scalar}."""
        labels = ops.cast(targets["labels"], "int32")
        positive = labels >= 0
        count = sum_over_replicas(ops.sum(ops.cast(positive, "float32")))

        class_loss = losses.softmax_cross_entropy(labels + 1, outputs["class_logits"])  # of a negative: -log p(bg)
        negative = samplers.hard_negatives(class_loss, positive, self.negatives_per_positive)
        box_loss = ops.sum(losses.smooth_l1(targets["box_deltas"], outputs["box_deltas"]), axis=-1)
        return {
            "class": ops.sum(ops.where(positive | negative, class_loss, 0.0)) / ops.maximum(count, 1.0),
            "box": ops.sum(ops.where(positive, box_loss, 0.0)) / ops.maximum(count, 1.0),
        }


class SSDDecoder:
    """Softmax, boxes clipped to the image, and NMS inside each class; the released code's test settings."""

    def __init__(self, priors, coder, image_size, score_threshold=0.01, iou_threshold=0.45, pre_nms=400, keep=200):
        self.priors, self.coder, self.image_size = priors, coder, image_size
        self.score_threshold, self.iou_threshold = score_threshold, iou_threshold
        self.pre_nms, self.keep = pre_nms, keep

    def __call__(self, outputs):
        """The head's outputs -> detections in pixels of the fed image (see Detector)."""
        scores = ops.softmax(ops.cast(outputs["class_logits"], "float32"), axis=-1)[..., 1:]
        boxes = self.coder.decode(self.priors, outputs["box_deltas"])
        boxes = box_ops.clip(boxes, self.image_size, self.image_size)
        return nms.multiclass_nms(boxes, scores, self.iou_threshold, self.score_threshold, self.pre_nms, self.keep)


@keras.saving.register_keras_serializable("tfdet")
class SSD(Detector):
    """The detector: see `ssd300` and `ssd512` for the published settings.

    Args:
        backbone: keras.Model from images [B, H, W, 3], RGB 0..255, to {"C3": ..., "C4": ...} (see tfdet.backbones).
        class_names: names of the classes, or their number.
        image_size: side of the square that images are warped to, in pixels.
        priors: a PriorBox for each level, finest first.
        extras: the neck's further levels (see SSDNeck).
    """

    def __init__(self, backbone, class_names, image_size, priors, extras, **kwargs):
        super().__init__(class_names, **kwargs)
        extras = tuple(tuple(extra) for extra in extras)
        self.settings = {"backbone": backbone, "image_size": image_size, "priors": list(priors), "extras": extras}
        self.backbone = backbone
        self.neck = SSDNeck(extras, name="neck")
        self.head = SSDHead([prior.num_priors for prior in priors], self.num_classes, name="head")

        levels = self.neck(self.backbone(keras.Input((image_size, image_size, 3))))
        if len(levels) != len(priors):
            raise ValueError(f"{len(levels)} feature levels, but prior boxes for {len(priors)}")
        maps = zip(priors, levels, strict=True)
        of_levels = [ops.convert_to_numpy(prior(level.shape[1:3])) for prior, level in maps]
        self.priors = np.concatenate(of_levels)
        self.levels = np.repeat(np.arange(len(priors), dtype="int32"), [len(rows) for rows in of_levels])

        coder = DeltaXYWH(stds=(0.1, 0.1, 0.2, 0.2))
        self.resizer = Warp(image_size)
        self.augmentation = SSDAugmentation(image_size)
        self.encoder = SSDTargetEncoder(self.priors, coder)
        self.detection_loss = SSDLoss()
        self.decoder = SSDDecoder(self.priors, coder, image_size)
        self.create_weights(image_size, image_size)

    def call(self, images, training=None):
        features = self.backbone(images, training=training)
        return self.head(self.neck(features))

    def samples(self, image, boxes, labels, seed):
        matched = self.encoder.match(boxes)
        positive, served = matched >= 0, serving(matched, ops.shape(boxes)[0])
        # The costliest negatives are drawn, which nobody but the network knows; here any cost will do to count them.
        hard = samplers.hard_negatives(ops.zeros_like(matched), positive, self.detection_loss.negatives_per_positive)
        return (
            Samples(
                stage="priors",
                shape="box",
                boxes=ops.convert_to_tensor(self.priors),
                levels=ops.convert_to_tensor(self.levels),
                matched=matched,
                drawn=positive,
                why=ops.where(served > 0, 0, 1),
                reasons=("it overlaps no prior that is free",),
                drawn_negatives=ops.sum(ops.cast(hard, "int32")),
            ),
        )


# (first, lowest) ratio of prior size to image size: see anchors.ssd_sizes.
SSD300_RATIOS = {"voc": (0.1, 0.2), "coco": (0.07, 0.15)}
SSD512_RATIOS = {"voc": (0.07, 0.15), "coco": (0.04, 0.1)}


def ssd300(num_classes, backbone="vgg16", weights=None, priors="voc"):
    """SSD300 with 8732 priors on maps of 38, 19, 10, 5, 3 and 1 cells.

    Args:
        num_classes: the number of classes, or their names.
        backbone: "vgg16", "mobilenet_v2", "vgg_slim" (small, trains from nothing on a CPU) or any backbone model.
        weights: of the backbone: None, "imagenet", or a file (see tfdet.backbones.build).
        priors: sizes of the released "voc" or "coco" models; or seven lengths in pixels of the fed image, those of the
            voc models being 30, 60, 111, 162, 213, 264, 315: of each level's small square, and of one level more, as
            the large square's is the root of its own and the next one's (see PriorBox).
    Raises:
        TfdetError: the lengths are not seven that rise.
    """
    return _ssd(num_classes, backbone, weights, 300, ssd300_priors(priors), SSD300_EXTRAS, "ssd300")


def ssd512(num_classes, backbone="vgg16", weights=None, priors="voc"):
    """SSD512 with 24564 priors on maps of 64, 32, 16, 8, 4, 2 and 1 cells; arguments as for `ssd300`."""
    sizes = zip(*ssd_sizes(512, 7, *SSD512_RATIOS[priors]), strict=True)
    ratios, steps = ((2,), (2, 3), (2, 3), (2, 3), (2, 3), (2,), (2,)), (8, 16, 32, 64, 128, 256, 512)
    levels = [PriorBox(low, high, r, step) for (low, high), r, step in zip(sizes, ratios, steps, strict=True)]
    extras = ((256, 512, 3, 2, 1), *[(128, 256, 3, 2, 1)] * 3, (128, 256, 4, 1, 1))
    return _ssd(num_classes, backbone, weights, 512, levels, extras, "ssd512")


SSD300_EXTRAS = ((256, 512, 3, 2, 1), (128, 256, 3, 2, 1), (128, 256, 3, 1, 0), (128, 256, 3, 1, 0))


def ssd300_priors(kind, largest=None):
    """The PriorBox of each level; `kind` as the priors of `ssd300`, `largest` as PriorBox's."""
    if isinstance(kind, str):
        low, high = ssd_sizes(300, 6, *SSD300_RATIOS[kind])
    else:
        low, high = kind[:-1], kind[1:]
        if len(low) != 6 or not all(0 < a < b for a, b in zip(low, high, strict=True)):
            raise TfdetError(f"sizes of priors must be seven that rise: {', '.join(map(str, kind))}")
    ratios, steps = ((2,), (2, 3), (2, 3), (2, 3), (2,), (2,)), (8, 16, 32, 64, 100, 300)
    levels = zip(low, high, ratios, steps, strict=True)
    return [PriorBox(*sizes, r, step, largest=largest) for *sizes, r, step in levels]


def _ssd(num_classes, backbone, weights, image_size, priors, extras, name):
    if backbone == "vgg_slim":
        extras = [(squeeze // 4, width // 4, *geometry) for squeeze, width, *geometry in extras]
    backbone = backbones.build(backbone, weights)
    # A backbone that reaches stride 32 by itself needs one extra level less.
    missing = len(priors) - sum(name in backbone.output for name in BACKBONE_LEVELS)
    return SSD(backbone, num_classes, image_size, priors, extras[len(extras) - missing :], name=name)


def ssd300_torchvision(path, class_names=None):
    """SSD300 on VGG16 with the weights of torchvision's `ssd300_vgg16`, whose outputs it then gives.

    Args:
        path: its state dict, .pth or .safetensors.
        class_names: {logit: name}, the background being logit 0; the rest is called "unused 12" and so on. The
            published weights have a logit for each of COCO's category ids up to 90, ten of which name nothing.
    Raises:
        WeightsError: the file cannot be read or does not fit.
    """
    state = read_state_dict(path)
    bias = state.get("head.classification_head.module_list.0.bias")
    if bias is None:
        raise WeightsError(f"{path}: not a state dict of torchvision's ssd300_vgg16: it has no classification head")
    names = [(class_names or {}).get(logit, f"unused {logit}") for logit in range(1, len(bias) // 4)]
    # torchvision cuts the priors' sides to the image's.
    model = SSD(backbones.build("vgg16"), names, 300, ssd300_priors("coco", largest=300), SSD300_EXTRAS, name="ssd300")

    convolutions = [layer for layer in model.backbone.layers if isinstance(layer, keras.layers.Conv2D)]
    features = [f"backbone.features.{i}" for i in (0, 2, 5, 7, 10, 12, 14, 17, 19, 21)]
    features += [f"backbone.extra.0.{i}" for i in ("1", "3", "5", "7.1", "7.3")]
    pairs = list(zip(convolutions, features, strict=True))
    for i, block in enumerate(model.neck.blocks, 1):
        squeeze, _, widen = block.layers
        pairs += [(squeeze, f"backbone.extra.{i}.0"), (widen, f"backbone.extra.{i}.2")]
    for i, (classes, boxes) in enumerate(zip(model.head.class_convs, model.head.box_convs, strict=True)):
        pairs.append((classes, f"head.classification_head.module_list.{i}"))
        pairs.append((boxes, f"head.regression_head.module_list.{i}"))
    load_torch(pairs, state, path, ignore="backbone.scale_weight")
    model.backbone.get_layer("conv4_3_norm").set_weights([state["backbone.scale_weight"]])
    return model
