"""CenterNet for poses (Zhou et al. 2019, Objects as Points, section 4.2; released code: xingyizhou/CenterNet).

A person is the point at its centre, as in `centernet`, and each of its joints is that point and an offset. Because so
long an offset is never exact, joints are also points of their own, on a heatmap for each kind of joint; a person's
joint is moved to the nearest of these.

Which locations are positive? On the heatmap of people the cell in which a person's centre lies; on the heatmap of a
joint the cell in which that joint of anybody lies, hidden or not, if it is labelled. All other cells are negatives, of
which those close by cost less (see `centernet`); the Gaussian around a joint is as wide as that around its person.
Nothing is ignored.

What do they regress? A person's cell: width and height, the place of the centre inside the cell, and the way from the
cell to each labelled joint. A joint's cell: the place of the joint inside it. A person without any labelled joint is a
positive, but has nothing to regress.

How is the score made? The person's is the heatmap's value in a cell that is not below any of its eight neighbours; a
joint's is that of the peak it was moved to, and 0 if there was none near enough.

Differences from the released code: those of `centernet`; and in the mean with the mirror image (`flip`) the way to a
joint is mirrored inside the cell, too, where the released code only changes its sign.
"""

import keras
import numpy as np
from keras import ops

from tfdet import backbones, heatmaps, nms, skeleton
from tfdet import boxes as box_ops
from tfdet.data.transforms import CenterNetAugmentation
from tfdet.detectors.base import Detector, unscaled
from tfdet.detectors.centernet import (
    STRIDE,
    CenterNetHead,
    at_scales,
    best_objects,
    check_backbone,
    distance,
    head_settings,
    heatmap_loss,
    raw_outputs,
)
from tfdet.resizers import KeepSize, ShortSide

FAR = -1e4  # cells: where a peak is put that does not count


class CenterNetPoseTargetEncoder:
    """What the maps should say for one image.

    Args:
        size: height and width of the fed image where none is given.
        max_objects: only so many have a size, an offset and joints to learn; the heatmaps have all. (The released code
            leaves the others out altogether.)
    """

    def __init__(self, num_classes, num_joints, size, min_overlap=0.7, max_objects=32):
        self.num_classes, self.num_joints, self.size = num_classes, num_joints, size
        self.min_overlap, self.max_objects = min_overlap, max_objects

    def __call__(self, boxes, labels, keypoints, size=None):
        """boxes [M, 4] xyxy pixels of the fed image, labels int [M], keypoints [M, J, 3] of the same pixels (see
        `Example`), which may lie beside it, its size with padding. M = 0 is legal.

        Returns:
            {"heatmap" float32 [h, w, C], "joint_heatmap" float32 [h, w, J]}, and of max_objects objects {"cells" int32
            [K, 2], row and column, "size" float32 [K, 2] in cells, "offset" float32 [K, 2], "joints" float32 [K, J, 2],
            x and y in cells from where the object's cell begins, "joint_cells" int32 [K, J, 2], "joint_offset" float32
            [K, J, 2]}. Cells of what has nothing to learn are -1.
        """
        height, width = (side // STRIDE for side in (self.size if size is None else size))
        boxes, keypoints = ops.cast(boxes, "float32") / STRIDE, ops.cast(keypoints, "float32")
        cells, radii, sizes, offsets = heatmaps.place(boxes, labels, height, width, self.min_overlap)
        labels = ops.maximum(ops.cast(labels, "int32"), 0)

        places, labelled = keypoints[..., :2] / STRIDE, keypoints[..., 2] > 0
        inside = ops.all((places >= 0) & (places < ops.cast(ops.stack([width, height]), "float32")), axis=-1)
        seen = (labelled & inside & (radii >= 0)[:, None])[..., None]
        corners = ops.floor(places)
        joint_cells = ops.where(seen, ops.flip(ops.cast(corners, "int32"), axis=-1), -1)
        joint_radii = ops.where(seen[..., 0], radii[:, None], -1)
        kinds = ops.broadcast_to(ops.arange(self.num_joints, dtype="int32"), ops.shape(joint_radii))
        flat = (ops.reshape(joint_cells, (-1, 2)), ops.reshape(joint_radii, (-1,)), ops.reshape(kinds, (-1,)))

        ways = places - heatmaps.corners(cells)[:, None]
        has_joints = ops.any(labelled, axis=-1)[:, None]
        return {
            "heatmap": heatmaps.draw_gaussians((height, width, self.num_classes), cells, radii, labels),
            "joint_heatmap": heatmaps.draw_gaussians((height, width, self.num_joints), *flat),
            "cells": heatmaps.first_rows(ops.where(has_joints, cells, -1), self.max_objects, -1),
            "size": heatmaps.first_rows(sizes, self.max_objects, 0.0),
            "offset": heatmaps.first_rows(offsets, self.max_objects, 0.0),
            "joints": heatmaps.first_rows(ways, self.max_objects, 0.0),
            "joint_cells": heatmaps.first_rows(joint_cells, self.max_objects, -1),
            "joint_offset": heatmaps.first_rows(places - corners, self.max_objects, 0.0),
        }


class CenterNetPoseLoss:
    """Those of CenterNet, and L1 of the ways to the joints + focal loss of their heatmaps + L1 of the joints' offsets.

    An L1 is the mean over the numbers that there are to learn, a focal loss is for each cell that is 1.
    """

    parts = ("heatmap", "size", "offset", "joints", "joint_heatmap", "joint_offset")

    def __init__(self, size_weight=0.1):
        self.size_weight = size_weight

    def __call__(self, targets, outputs):
        """The encoder's targets and the network's outputs, batched -> {part: scalar}."""
        cells, joint_cells = (ops.cast(targets[name], "int32") for name in ("cells", "joint_cells"))
        _, people, joints, _ = joint_cells.shape
        valid, each = cells[..., :1] >= 0, (-1, people * joints, 2)
        seen = ops.repeat(joint_cells[..., 0] >= 0, 2, axis=-1)  # of x and y
        ways = ops.reshape(targets["joints"], (-1, people, 2 * joints))
        joint_cells, joint_offset = ops.reshape(joint_cells, each), ops.reshape(targets["joint_offset"], each)
        return {
            "heatmap": heatmap_loss(targets["heatmap"], outputs["heatmap"]),
            "size": distance(targets["size"], outputs["size"], cells, valid) * self.size_weight,
            "offset": distance(targets["offset"], outputs["offset"], cells, valid),
            "joints": distance(ways, outputs["joints"], cells, seen),
            "joint_heatmap": heatmap_loss(targets["joint_heatmap"], outputs["joint_heatmap"]),
            "joint_offset": distance(joint_offset, outputs["joint_offset"], joint_cells, joint_cells[..., :1] >= 0),
        }


class CenterNetPoseDecoder:
    """The best peaks of the last stack's heatmap, with their joints.

    A joint is moved to the nearest of the `keep` best peaks of its own heatmap, if that scores more than
    `joint_threshold`, lies inside the person's box, and no further off than 0.3 of the box's longer side.

    Args:
        score_threshold, keep: as CenterNetDecoder.
    """

    def __init__(self, score_threshold=0.005, keep=100, joint_threshold=0.1):
        self.score_threshold, self.keep, self.joint_threshold = score_threshold, keep, joint_threshold

    def __call__(self, outputs):
        """The network's outputs -> detections in pixels of the fed image (see Detector); joints may lie beside it."""
        scores, labels, cells, boxes = best_objects(outputs, self.keep)
        joints, joint_scores = self._joints(outputs, cells, boxes)
        heights, widths = ops.unstack(outputs["image_sizes"][:, None, :], 2, axis=-1)
        boxes, valid = box_ops.clip(boxes * STRIDE, heights, widths), scores > self.score_threshold
        return nms.padded(boxes, scores, labels, valid, keypoints=joints * STRIDE, keypoint_scores=joint_scores)

    def _joints(self, outputs, cells, boxes):
        """Of people in cells int32 [B, K, 2] with boxes [B, K, 4]: joints [B, K, J, 2] and their scores [B, K, J]."""
        logits = outputs["joint_heatmap"][-1]
        _, height, width, count = ops.shape(logits)
        ways = ops.reshape(heatmaps.at(outputs["joints"][-1], cells), (-1, self.keep, count, 2))
        joints = heatmaps.corners(cells)[:, :, None] + ways

        each = ops.reshape(ops.transpose(logits, (0, 3, 1, 2)), (-1, height, width, 1))  # every joint by itself
        best, _, rows, columns = heatmaps.peaks(each, self.keep)
        peak_cells = ops.reshape(ops.stack([rows, columns], axis=-1), (-1, count * self.keep, 2))
        peaks = heatmaps.corners(peak_cells) + heatmaps.at(outputs["joint_offset"][-1], peak_cells)
        peak_scores = ops.reshape(ops.sigmoid(best), (-1, count * self.keep))
        peaks = ops.where(peak_scores[..., None] > self.joint_threshold, peaks, FAR)

        ways = joints[:, :, :, None] - ops.reshape(peaks, (-1, 1, count, self.keep, 2))  # [B, K, J, peaks, 2]
        squares = ops.sum(ops.square(ways), axis=-1)
        nearest = ops.cast(ops.argmin(squares, axis=-1), "int32") + self.keep * ops.arange(count, dtype="int32")
        nearest = ops.reshape(nearest, (-1, self.keep * count))
        places = ops.reshape(ops.take_along_axis(peaks, nearest[..., None], axis=1), (-1, self.keep, count, 2))
        scores = ops.reshape(ops.take_along_axis(peak_scores, nearest, axis=1), (-1, self.keep, count))

        first, last = boxes[:, :, None, :2], boxes[:, :, None, 2:]
        inside = ops.all((places >= first) & (places <= last), axis=-1)
        near = ops.sqrt(ops.min(squares, axis=-1)) <= 0.3 * ops.max(last - first, axis=-1)
        moved = inside & near
        return ops.where(moved[..., None], places, joints), ops.where(moved, scores, 0.0)


@keras.saving.register_keras_serializable("tfdet")
class CenterNetPose(Detector):
    """The detector: see `centernet_pose` for the published settings.

    Args:
        keypoint_names: J names; "left" and "right" in them say which are exchanged in a mirror image.
        others: as CenterNet.
    Raises:
        TfdetError: as CenterNet, or the name of a keypoint has no counterpart.
    """

    main_figure = "keypoint_AP"

    def __init__(
        self,
        backbone,
        class_names,
        keypoint_names,
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
        self.settings = {"backbone": backbone, "keypoint_names": tuple(keypoint_names), "side": side}
        self.settings |= {"keep_size": keep_size, "channels": channels, "multiple": multiple}
        self.settings |= {"flip": flip, "scales": tuple(scales)}
        self.keypoint_names, joints = tuple(keypoint_names), len(keypoint_names)
        self.mirrored = skeleton.mirrored(self.keypoint_names)
        self.backbone, self.flip, self.scales, self.multiple = backbone, flip, tuple(scales), multiple
        maps = {"heatmap": self.num_classes, "size": 2, "offset": 2}
        maps |= {"joints": 2 * joints, "joint_heatmap": joints, "joint_offset": 2}
        self.heads = [CenterNetHead(maps, channels, name=f"head{i}") for i in range(1, len(backbone.output) + 1)]

        self.resizer = KeepSize(multiple) if keep_size else ShortSide(side, side, multiple)
        self.augmentation = CenterNetAugmentation(side, mirrored=self.mirrored)
        self.encoder = CenterNetPoseTargetEncoder(self.num_classes, joints, (side, side))
        self.detection_loss = CenterNetPoseLoss()
        self.decoder = CenterNetPoseDecoder()
        self.supports_jit = False  # XLA would compile a step for every size of image
        self.create_weights(side, side)

    def call(self, images, training=None):
        return raw_outputs(self.backbone, self.heads, images, training)

    def encode(self, image, boxes, labels, seed, keypoints):
        return self.encoder(boxes, labels, keypoints, ops.shape(image)[:2])

    def detect(self, images, scale):
        return unscaled(at_scales(self._detect, images, self.scales, self.multiple, self.decoder), scale)

    def _detect(self, images):
        outputs = self(images, training=False)
        if self.flip:
            mirrored = self(images[:, :, ::-1], training=False)
            outputs |= {name: [self._mean(name, outputs[name][-1], mirrored[name][-1])] for name in AVERAGED}
        return self.decoder(outputs)

    def _mean(self, name, own, mirrored):
        """Of a map and that of the mirror image."""
        mirrored = mirrored[:, :, ::-1]
        if name == "joint_heatmap":
            mirrored = ops.take(mirrored, self.mirrored, axis=-1)
        elif name == "joints":
            _, height, width, channels = ops.shape(own)
            ways = ops.reshape(mirrored, (-1, height, width, channels // 2, 2))
            ways = ops.take(ways, self.mirrored, axis=-2) * np.float32((-1, 1)) + np.float32((1, 0))
            mirrored = ops.reshape(ways, (-1, height, width, channels))
        return heatmaps.mean(own, mirrored) if "heatmap" in name else (own + mirrored) / 2


AVERAGED = ("heatmap", "size", "joints", "joint_heatmap")  # offsets inside a cell are the image's own


def centernet_pose(
    num_classes=("person",),
    backbone="dla34",
    weights=None,
    side=512,
    keep_size=False,
    keypoint_names=skeleton.PERSON,
):
    """CenterNet for people and their joints, on a map of stride 4.

    Args:
        num_classes: the number of classes, or their names; all have the same keypoints.
        keypoint_names: COCO's 17 joints, or others (see CenterNetPose).
        others: as `centernet`.
    """
    channels, multiple = head_settings(backbone)
    backbone = backbones.build(backbone, weights)
    sizes = {"side": side, "keep_size": keep_size, "channels": channels, "multiple": multiple}
    return CenterNetPose(backbone, num_classes, keypoint_names, **sizes, name="centernet_pose")
