"""ExtremeNet (Zhou et al. 2019, arXiv:1901.08043; released code: xingyizhou/ExtremeNet).

An object is five points: the topmost, the leftmost, the bottommost and the rightmost one of its outline, and the middle
of the box that these span. On a map of stride 4 the network draws five heatmaps for every class. No embedding says
which points belong together: they do if they fit.

Which locations are positive? The five cells in which an object's points lie, for its class: there the heatmaps should
be 1. All others are negatives, of which those close by cost less: (1 - y)^4, where y is a Gaussian around the point as
wide as CenterNet's. Where an edge of the object is straight, its middle is the extreme point, and the rest of the edge
is negative. Nothing is ignored, and none is drawn by lot.

What do they regress? Each extreme point alone, in its own cell: where in the cell it lies, whatever its class. Centres
regress nothing: a box needs none.

How is the score made? Along edges the heatmaps of extreme points are added up. Of the 40 best peaks of each kind all
quadruples of one class are boxes in which no point contradicts another, and whose middle is likely to be a centre
(`tfdet.grouping`). The score is the mean of the points' and of the centre's, which counts twice; soft-NMS inside each
class lowers it where a better box is, and that of ghosts, boxes around several objects, is halved.

Differences from the released code: the centre's cell is half way between those of the extreme points, where detection
looks for it, and not the cell of the point half way, which is another one for almost half of all objects: the better a
network knows that, the less it finds; objects without an outline and crowd regions teach nothing; what lies beside the
image is black as there, but the image lies in the corner and not in the middle of it; boxes of no area are left out;
soft-NMS counts no "+1" pixels, and what it drops is gone; ghosts are looked for all at once, not each after those
before it have been halved; the mirror image is looked at on request only, whereas the published figures are with it
(`tfdet.with_flip_and_scales`). The paper's score is the mean of all five; the code is followed here.
"""

import keras
from keras import ops

from tfdet import backbones, grouping, heatmaps, nms, skeleton
from tfdet import boxes as box_ops
from tfdet.backbones.keypoints import point_map
from tfdet.detectors.centernet import heatmap_loss
from tfdet.detectors.point_groups import PointGroups, backbone_settings, cells_of, in_pixels, offset_loss
from tfdet.inspection.samples import of_points

POINTS = skeleton.EXTREME_POINTS
EDGES = {"top": 2, "left": 1, "bottom": 2, "right": 1}  # the axis of a map along which such an edge lies


def extreme_heads(width, num_classes, channels, stack):
    """Builds what follows a stack: five heatmaps and four maps of offsets.

    Args:
        width: channels of the stack.
        channels: of the convolutions.
        stack: its number from 0 on, for the names of the layers, which are those of the released code.
    Returns: keras.Model, [B, h, w, width] -> {"top_heatmap": [B, h, w, num_classes], "top_offset": [B, h, w, 2], ...,
        "centre_heatmap": [B, h, w, num_classes]}.
    """
    features, outputs = keras.Input((None, None, width)), {}
    for point in POINTS:
        outputs[f"{point}_heatmap"] = point_map(features, channels, num_classes, f"{point[0]}_heats.{stack}", rare=True)
        outputs[f"{point}_offset"] = point_map(features, channels, 2, f"{point[0]}_regrs.{stack}")
    outputs["centre_heatmap"] = point_map(features, channels, num_classes, f"ct_heats.{stack}", rare=True)
    return keras.Model(features, outputs, name=f"heads{stack + 1}")


class ExtremeNetTargetEncoder:
    """What the maps should say for one image.

    Args:
        size: height and width of the fed image where none is given.
        max_objects: only so many have offsets to learn; the heatmaps have all. (With more the released code fails.)
    """

    def __init__(self, num_classes, size, min_overlap=0.7, max_objects=128):
        self.num_classes, self.size = num_classes, size
        self.min_overlap, self.max_objects = min_overlap, max_objects

    def __call__(self, boxes, labels, keypoints, size=None):
        """boxes [M, 4] xyxy pixels of the fed image, labels int [M], keypoints [M, 4, 3] of the same pixels (see
        `Example`), the extreme points, which may lie beside it, its size with padding. M = 0 is legal.

        Boxes and points are moved to where the last row and column of pixels begin, if they lie beyond (released code);
        what then has no area is no object. The box says how wide the Gaussians are.

        Returns:
            {"top_heatmap" float32 [h, w, C], "top_cells" int32 [max_objects, 2], "top_offset" float32 [max_objects, 2],
            and the same of "left", "bottom" and "right", "centre_heatmap"}: of each object the row and column of the
            point's cell, and where in it the point lies, x and y. Cells of rows without an object are -1.
        """
        size = self.size if size is None else size
        rows, columns, _ = cells_of(size)
        labels = ops.cast(labels, "int32")
        sizes, points, cells = self.place(boxes, labels, keypoints, size)
        widths, heights = ops.unstack(ops.ceil(sizes), 2, axis=-1)
        radii = ops.cast(heatmaps.gaussian_radius(heights, widths, self.min_overlap), "int32")
        radii, labels = ops.where(cells["top"][:, 0] < 0, -1, radii), ops.maximum(labels, 0)
        shape, offsets, targets = (rows, columns, self.num_classes), points - ops.floor(points), {}
        for name, own in cells.items():
            targets[f"{name}_heatmap"] = heatmaps.draw_gaussians(shape, own, radii, labels)
        for i, name in enumerate(POINTS):
            targets[f"{name}_cells"] = heatmaps.first_rows(cells[name], self.max_objects, -1)
            targets[f"{name}_offset"] = heatmaps.first_rows(offsets[:, i], self.max_objects, 0.0)
        return targets

    def place(self, boxes, labels, keypoints, size):
        """Where the objects lie on the maps of a fed image of that size.

        Returns:
            width and height float32 [M, 2] in cells; the extreme points float32 [M, 4, 2] in cells, x and y; row and
            column of the cell of each point, {name: int32 [M, 2]}, -1 for what is no object.
        """
        height, width = size
        cells_per_pixel, last = cells_of(size)[-1], ops.cast(ops.stack([width - 1, height - 1]), "float32")
        sizes = box_ops.clip(boxes, last[1], last[0])
        sizes = (sizes[:, 2:] - sizes[:, :2]) * cells_per_pixel
        keypoints = ops.cast(keypoints, "float32")
        real = ops.all(sizes > 0, axis=-1) & (labels >= 0) & ops.all(keypoints[..., 2] > 0, axis=-1)
        points = ops.clip(keypoints[..., :2], 0.0, last) * cells_per_pixel
        top, left, bottom, right = ops.unstack(heatmaps.cells(points, real), 4, axis=1)
        centre = ops.stack([(top[:, 0] + bottom[:, 0]) // 2, (left[:, 1] + right[:, 1]) // 2], axis=-1)
        return sizes, points, dict(zip((*POINTS, "centre"), (top, left, bottom, right, centre), strict=True))


class ExtremeNetLoss:
    """Focal loss of the five heatmaps + smooth L1 of the four offsets, the mean over the stacks.

    The focal loss of each heatmap is divided by the number of its cells that are 1, the offsets by that of objects,
    over the whole batch.
    """

    parts = ("heatmap", "offset")

    def __call__(self, targets, outputs):
        """The encoder's targets and the network's outputs, batched -> {"heatmap", "offset": scalar}."""
        parts = dict.fromkeys(self.parts, 0.0)
        for name in (*POINTS, "centre"):
            parts["heatmap"] += heatmap_loss(targets[f"{name}_heatmap"], outputs[f"{name}_heatmap"])
        for name in POINTS:
            cells = ops.cast(targets[f"{name}_cells"], "int32")
            parts["offset"] += offset_loss(targets[f"{name}_offset"], outputs[f"{name}_offset"], cells)
        return parts


class ExtremeNetDecoder:
    """All groups of the best peaks of the last stack's heatmaps that may be an object.

    Args:
        points: so many peaks of each kind, over all classes.
        point_threshold, centre_threshold: of the scores of points, after edges have been added up, and of centres.
        groups: the best so many go into soft-NMS.
        score_threshold: of boxes, see CenterNetDecoder.
        keep: K.
    """

    def __init__(
        self, points=40, point_threshold=0.1, centre_threshold=0.1, groups=1000, score_threshold=0.005, keep=100
    ):
        self.points, self.point_threshold, self.centre_threshold = points, point_threshold, centre_threshold
        self.groups, self.score_threshold, self.keep = groups, score_threshold, keep

    def __call__(self, outputs):
        """The network's outputs -> detections in pixels of the fed image (see Detector)."""
        return self.best([self.candidates(outputs)])

    def best(self, views):
        """What was found in the same images once or several times, each time `candidates` -> detections."""
        return grouping.suppress_ghosts(nms.soft_merge(views, self.keep, score_threshold=self.score_threshold))

    def candidates(self, outputs, mirrored=False):
        """{"boxes" [B, N, 4], "scores" [B, N], "labels" int32 [B, N], "keypoints" [B, N, 4, 2], "keypoint_scores"
        [B, N, 4]}, N = `groups`, in pixels of the fed image.

        Boxes and points end at the image's border; the score of what is no box is 0. `mirrored`: the outputs, but for
        "image_sizes", are of the mirror image.
        """
        peaks = [self._extreme(outputs, name) for name in POINTS]
        centres = ops.sigmoid(outputs["centre_heatmap"][-1])
        thresholds = self.point_threshold, self.centre_threshold
        scores, members = grouping.quadruples(peaks, centres, *thresholds, self.groups)

        def of_members(name, kind):
            values, index = peaks[kind][name], members[..., kind]
            return ops.take_along_axis(values, index[..., None] if len(values.shape) == 3 else index, axis=1)

        points = ops.stack([of_members("points", kind) for kind in range(4)], axis=2)
        point_scores = ops.stack([of_members("scores", kind) for kind in range(4)], axis=2)
        if mirrored:
            points = ops.concatenate([outputs["fed_sizes"][:, None, None, 1:] - points[..., :1], points[..., 1:]], -1)
            points, point_scores = (ops.take(one, skeleton.mirrored(POINTS), axis=2) for one in (points, point_scores))
        points = ops.clip(points, 0.0, ops.flip(outputs["image_sizes"], axis=-1)[:, None, None, :])
        top, left, bottom, right = ops.unstack(points, 4, axis=2)
        boxes = ops.stack([left[..., 0], top[..., 1], right[..., 0], bottom[..., 1]], axis=-1)
        real = ops.all(boxes[..., 2:] > boxes[..., :2], axis=-1)
        return {
            "boxes": boxes,
            "scores": ops.where(real, scores, 0.0),
            "labels": of_members("labels", 0),
            "keypoints": points,
            "keypoint_scores": point_scores,
        }

    def peaks(self, outputs):
        """The best of each kind: {"top": {"points", x and y in pixels of the fed image [B, K, 2], "scores", "labels"
        [B, K], ...}, ..., "centre": ...}."""
        heatmap = ops.sigmoid(outputs["centre_heatmap"][-1])
        scores, labels, cells = self._best(heatmap)
        points = in_pixels(heatmaps.corners(cells) + 0.5, heatmap, outputs)
        centres = {"points": points, "scores": scores, "labels": labels}
        return {name: self._extreme(outputs, name) for name in POINTS} | {"centre": centres}

    def _extreme(self, outputs, name):
        """Of one kind, with their cells int32 [B, K, 2] as well."""
        heatmap, offset = outputs[f"{name}_heatmap"][-1], outputs[f"{name}_offset"][-1]
        scores, labels, cells = self._best(grouping.aggregate_edge(ops.sigmoid(heatmap), EDGES[name]))
        points = in_pixels(heatmaps.corners(cells) + heatmaps.at(offset, cells), heatmap, outputs)
        return {"points": points, "cells": cells, "scores": scores, "labels": labels}

    def _best(self, heatmap):
        scores, labels, rows, columns = heatmaps.peaks(heatmap, self.points)
        return ops.clip(scores, 0.0, 1.0), labels, ops.stack([rows, columns], axis=-1)


@keras.saving.register_keras_serializable("tfdet")
class ExtremeNet(PointGroups):
    """The detector: see `extremenet` for the published settings, and PointGroups for the arguments.

    It finds the extreme points as keypoints, of which `tfdet.extreme_points` makes an octagon, the object's mask.
    """

    keypoint_names = POINTS
    mirrored = skeleton.mirrored(POINTS)

    def point_heads(self, width, channels, stack):
        return extreme_heads(width, self.num_classes, channels, stack)

    def set_up(self, size):
        self.encoder = ExtremeNetTargetEncoder(self.num_classes, size)
        self.detection_loss = ExtremeNetLoss()
        self.decoder = ExtremeNetDecoder()

    def samples(self, image, boxes, labels, seed, keypoints):
        size, targets = ops.shape(image)[:2], self.encode(image, boxes, labels, seed, keypoints)
        *_, cells = self.encoder.place(boxes, labels, keypoints, size)
        maps, pixels = {name: targets[f"{name}_heatmap"] for name in cells}, 1 / cells_of(size)[-1]
        nowhere = "it has no outline, or nothing of it is left on the map"
        return (of_points("points", cells, maps, labels, pixels, self.encoder.max_objects, nowhere),)


def extremenet(num_classes, backbone="hourglass104", weights=None, side=511, keep_size=False):
    """ExtremeNet on a map of stride 4.

    Args:
        num_classes: the number of classes, or their names.
        backbone, weights, side, keep_size: as `tfdet.cornernet`. (The published one started from CornerNet's weights.)
    """
    channels, multiple = backbone_settings(backbone)
    backbone = backbones.build(backbone, weights)
    return ExtremeNet(backbone, num_classes, side, keep_size, channels, multiple, name="extremenet")
