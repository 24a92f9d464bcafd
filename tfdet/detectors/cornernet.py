"""CornerNet (Law & Deng 2018, arXiv:1808.01244; released code: princeton-vl/CornerNet).

An object is a pair of points, the top left and the bottom right corner of its box. On a map of stride 4 the network
draws two heatmaps for every class, one a corner, and gives each corner an embedding: a number that both corners of an
object share, by which they find each other.

Which locations are positive? The two cells in which an object's corners lie, for its class: there the heatmaps should
be 1. All others are negatives, of which those close by cost less: (1 - y)^4, where y is a Gaussian around the corner as
wide as both corners may move until the IoU falls to 0.3. Nothing is ignored, and none is drawn by lot.

What do they regress? Each corner alone, in its own cell: where in the cell it lies. And the embeddings of an object's
corners should be alike (pull), those of all objects of an image, of whatever class, at least 1 apart (push).

How is the score made? Of 100 peaks of either heatmap (`heatmaps.peaks`) all pairs of one class are boxes, if the second
corner is not above or left of the first, and their embeddings no more than 0.5 apart. The score is the mean of both
heatmaps' values; soft-NMS inside each class lowers it where a better box is.

Differences from the released code: crowd regions are no objects; what lies beside the image is black as there, but the
image lies in the corner and not in the middle of it; boxes of no area are left out; soft-NMS counts no "+1" pixels, and
what it drops is gone (the released one leaves old rows behind); the mirror image is looked at on request only, whereas
the published figures are with it (`tfdet.with_flip_and_scales`).
"""

import keras
from keras import ops

from tfdet import backbones, heatmaps, losses, nms
from tfdet import boxes as box_ops
from tfdet.backbones.keypoints import point_map
from tfdet.corner_pooling import corner_pooling_module
from tfdet.detectors.centernet import heatmap_loss
from tfdet.detectors.point_groups import PointGroups, backbone_settings, cells_of, in_pixels, offset_loss
from tfdet.inspection.samples import of_points

POOLS = {"top_left": ("top", "left"), "bottom_right": ("bottom", "right")}
MAPS = ("heatmap", "tag", "offset")


def corner_heads(width, num_classes, channels, stack):
    """Builds what follows a stack: for each corner a corner pooling module, and three maps.

    Args:
        width: channels of the stack.
        channels: of the convolutions.
        stack: its number from 0 on, for the names of the layers, which are those of the released code.
    Returns: keras.Model, [B, h, w, width] -> {"top_left_heatmap": [B, h, w, num_classes], "top_left_tag": [B, h, w, 1],
        "top_left_offset": [B, h, w, 2], "bottom_right_heatmap": ...}.
    """
    features, outputs = keras.Input((None, None, width)), {}
    for (corner, directions), short in zip(POOLS.items(), ("tl", "br"), strict=True):
        x = corner_pooling_module(features, channels, directions, f"{short}_cnvs.{stack}")
        outputs[f"{corner}_heatmap"] = point_map(x, channels, num_classes, f"{short}_heats.{stack}", rare=True)
        outputs[f"{corner}_tag"] = point_map(x, channels, 1, f"{short}_tags.{stack}")
        outputs[f"{corner}_offset"] = point_map(x, channels, 2, f"{short}_regrs.{stack}")
    return keras.Model(features, outputs, name=f"heads{stack + 1}")


class CornerNetTargetEncoder:
    """What the maps should say for one image.

    Args:
        size: height and width of the fed image where none is given.
        max_objects: only so many have embeddings and offsets to learn; the heatmaps have all. (With more the released
            code fails.)
    """

    def __init__(self, num_classes, size, min_overlap=0.3, max_objects=128):
        self.num_classes, self.size = num_classes, size
        self.min_overlap, self.max_objects = min_overlap, max_objects

    def __call__(self, boxes, labels, size=None):
        """boxes [M, 4] xyxy pixels of the fed image, labels int [M], its size with padding. M = 0 is legal.

        Boxes are cut where the last row and column of pixels begin (released code); what then has no area is no object.

        Returns:
            {"top_left_heatmap" float32 [h, w, C], "top_left_cells" int32 [max_objects, 2], "top_left_offset" float32
            [max_objects, 2], and the same of "bottom_right"}: of each object the row and column of the corner's cell,
            and where in it the corner lies, x and y. Cells of rows without an object are -1.
        """
        size = self.size if size is None else size
        rows, columns, _ = cells_of(size)
        labels = ops.cast(labels, "int32")
        sizes, points, cells = self.place(boxes, labels, size)
        widths, heights = ops.unstack(ops.ceil(sizes), 2, axis=-1)
        radii = ops.cast(heatmaps.gaussian_radius(heights, widths, self.min_overlap, legacy=False), "int32")
        radii, labels = ops.where(cells["top_left"][:, 0] < 0, -1, radii), ops.maximum(labels, 0)
        targets = {}
        for corner, own in cells.items():
            shape, offsets = (rows, columns, self.num_classes), points[corner] - ops.floor(points[corner])
            targets[f"{corner}_heatmap"] = heatmaps.draw_gaussians(shape, own, radii, labels)
            targets[f"{corner}_cells"] = heatmaps.first_rows(own, self.max_objects, -1)
            targets[f"{corner}_offset"] = heatmaps.first_rows(offsets, self.max_objects, 0.0)
        return targets

    def place(self, boxes, labels, size):
        """Where the objects lie on the maps of a fed image of that size.

        Returns:
            width and height float32 [M, 2] in cells; {corner: x and y float32 [M, 2] in cells}; {corner: row and column
            of its cell int32 [M, 2], -1 for what is no object}.
        """
        height, width = size
        boxes = box_ops.clip(boxes, ops.cast(height - 1, "float32"), ops.cast(width - 1, "float32"))
        boxes = boxes * ops.tile(cells_of(size)[-1], 2)
        sizes, points = boxes[:, 2:] - boxes[:, :2], {"top_left": boxes[:, :2], "bottom_right": boxes[:, 2:]}
        real = ops.all(sizes > 0, axis=-1) & (labels >= 0)
        return sizes, points, {corner: heatmaps.cells(where, real) for corner, where in points.items()}


class CornerNetLoss:
    """Focal loss of the heatmaps + 0.1 pull + 0.1 push + smooth L1 of the offsets, the mean over the stacks.

    The focal loss of each heatmap is divided by the number of its cells that are 1, the offsets by that of objects,
    over the whole batch; pull and push are means over an image's objects, and summed over the images. (The released run
    had 49 images on ten GPUs, each with its own numbers, and took the mean over these: sums of four or five images.)
    """

    parts = ("heatmap", "pull", "push", "offset")

    def __init__(self, pull_weight=0.1, push_weight=0.1):
        self.pull_weight, self.push_weight = pull_weight, push_weight

    def __call__(self, targets, outputs):
        """The encoder's targets and the network's outputs, batched -> {"heatmap", "pull", "push", "offset": scalar}."""
        cells = {corner: ops.cast(targets[f"{corner}_cells"], "int32") for corner in POOLS}
        valid = ops.cast(cells["top_left"][..., 0] >= 0, "float32")
        stacks = len(outputs["top_left_tag"])
        parts = dict.fromkeys(self.parts, 0.0)
        for corner in POOLS:
            heatmap, offset = f"{corner}_heatmap", f"{corner}_offset"
            parts["heatmap"] += heatmap_loss(targets[heatmap], outputs[heatmap])
            parts["offset"] += offset_loss(targets[offset], outputs[offset], cells[corner])
        for maps in zip(*(outputs[f"{corner}_tag"] for corner in POOLS), strict=True):
            tags = (heatmaps.at(tag, cells[corner])[..., 0] for tag, corner in zip(maps, POOLS, strict=True))
            pull, push = losses.pull_and_push(*tags, valid)
            parts["pull"] += self.pull_weight * ops.sum(pull) / stacks
            parts["push"] += self.push_weight * ops.sum(push) / stacks
        return parts


class CornerNetDecoder:
    """All pairs of the best peaks of the last stack's heatmaps that may be an object.

    Args:
        max_distance: of the embeddings of an object's corners.
        corners: so many peaks of each heatmap, over all classes.
        pairs: the best so many go into soft-NMS.
        score_threshold: of boxes, see CenterNetDecoder.
        keep: K.
    """

    def __init__(self, max_distance=0.5, corners=100, pairs=1000, score_threshold=0.005, keep=100):
        self.max_distance, self.corners, self.pairs = max_distance, corners, pairs
        self.score_threshold, self.keep = score_threshold, keep

    def __call__(self, outputs):
        """The network's outputs -> detections in pixels of the fed image (see Detector)."""
        return self.best([self.candidates(outputs)])

    def best(self, views):
        """What was found in the same images once or several times, each time `candidates` -> detections."""
        return nms.soft_merge(views, self.keep, score_threshold=self.score_threshold)

    def candidates(self, outputs, mirrored=False):
        """{"boxes" [B, pairs, 4], "scores" [B, pairs], "labels" int32 [B, pairs]}, in pixels of the fed image.

        Boxes end at the image's border; the score of what is no box is 0. `mirrored`: the outputs, but for
        "image_sizes", are of the mirror image.
        """
        first, second = self.peaks(outputs).values()
        (x1, y1), (x2, y2) = (ops.unstack(points, 2, axis=-1) for points in (first["points"], second["points"]))

        def both(a, b, function):  # of all pairs; not ops.add, which takes [1, K, 1] + [1, 1, K] for a bias
            return function(a[:, :, None], b[:, None, :])

        allowed = both(first["labels"], second["labels"], ops.equal)
        allowed &= both(first["tags"], second["tags"], lambda a, b: ops.abs(a - b) <= self.max_distance)
        allowed &= both(x1, x2, ops.less_equal) & both(y1, y2, ops.less_equal)
        allowed &= both(first["scores"], second["scores"], lambda a, b: ops.minimum(a, b) > 0)
        scores = ops.where(allowed, both(first["scores"], second["scores"], lambda a, b: (a + b) / 2), 0.0)
        scores, chosen = ops.top_k(ops.reshape(scores, (-1, self.corners**2)), min(self.pairs, self.corners**2))

        i, j = chosen // self.corners, chosen % self.corners
        x1, y1, x2, y2 = (ops.take_along_axis(*pair, axis=1) for pair in ((x1, i), (y1, i), (x2, j), (y2, j)))
        if mirrored:
            width = outputs["fed_sizes"][:, 1:]
            x1, x2 = width - x2, width - x1
        heights, widths = ops.unstack(outputs["image_sizes"][:, None, :], 2, axis=-1)
        boxes = box_ops.clip(ops.stack([x1, y1, x2, y2], axis=-1), heights, widths)
        real = ops.all(boxes[..., 2:] > boxes[..., :2], axis=-1)
        labels = ops.take_along_axis(first["labels"], i, axis=1)
        return {"boxes": boxes, "scores": ops.where(real, scores, 0.0), "labels": labels}

    def peaks(self, outputs):
        """The best of each corner: {"top_left": {"points", x and y in pixels of the fed image [B, N, 2], "scores",
        "labels", "tags" [B, N]}, "bottom_right": ...}."""
        return {corner: self._corners(outputs, corner) for corner in POOLS}

    def _corners(self, outputs, corner):
        heatmap, tag, offset = (outputs[f"{corner}_{name}"][-1] for name in MAPS)
        best, labels, rows, columns = heatmaps.peaks(heatmap, self.corners)
        cells = ops.stack([rows, columns], axis=-1)
        points = in_pixels(heatmaps.corners(cells) + heatmaps.at(offset, cells), heatmap, outputs)
        tags = heatmaps.at(tag, cells)[..., 0]
        return {"points": points, "scores": ops.sigmoid(best), "labels": labels, "tags": tags}


@keras.saving.register_keras_serializable("tfdet")
class CornerNet(PointGroups):
    """The detector: see `cornernet` for the published settings, and PointGroups for the arguments."""

    def point_heads(self, width, channels, stack):
        return corner_heads(width, self.num_classes, channels, stack)

    def set_up(self, size):
        self.encoder = CornerNetTargetEncoder(self.num_classes, size)
        self.detection_loss = CornerNetLoss()
        self.decoder = CornerNetDecoder()

    def samples(self, image, boxes, labels, seed):
        size, targets = ops.shape(image)[:2], self.encode(image, boxes, labels, seed)
        *_, cells = self.encoder.place(boxes, labels, size)
        maps, pixels = {corner: targets[f"{corner}_heatmap"] for corner in cells}, 1 / cells_of(size)[-1]
        return (of_points("corners", cells, maps, labels, pixels, self.encoder.max_objects),)


def cornernet(num_classes, backbone="hourglass104", weights=None, side=511, keep_size=False):
    """CornerNet on a map of stride 4.

    Args:
        num_classes: the number of classes, or their names.
        backbone: "hourglass104" (published), "hourglass54", "hourglass_slim" (trains from nothing on a CPU),
            "mobilenet_v2_up" and the others of CenterNet, or any backbone model with maps "stack1", ... of stride 4.
        weights: of the backbone: None, "imagenet", or a file (see tfdet.backbones.build).
        side, keep_size: see CornerNet.
    """
    channels, multiple = backbone_settings(backbone)
    backbone = backbones.build(backbone, weights)
    return CornerNet(backbone, num_classes, side, keep_size, channels, multiple, name="cornernet")
