"""What CornerNet and ExtremeNet share: points of objects on maps of stride 4, and groups of them that are an object."""

from keras import ops

from tfdet import heatmaps, losses
from tfdet.data.transforms import CenterNetAugmentation
from tfdet.detectors.base import Detector, unscaled, unscaled_peaks
from tfdet.distribution import sum_over_replicas
from tfdet.errors import TfdetError
from tfdet.resizers import KeepSize, ShortSide, rescale, without_padding

STRIDE = 4  # pixels of a cell, but for the one that an odd side has less
BLACK = 0.0


class PointGroups(Detector):
    """Such a detector. A subclass defines

        point_heads(width, channels, stack) -> keras.Model from a stack's map [B, h, w, width] to its raw outputs
        set_up(size)                        sets encoder, detection_loss and decoder, for fed images of that size
        mirrored                            of keypoints, see tfdet.skeleton.mirrored

    and its decoder `candidates(outputs, mirrored)`, what may be an object, `best(views)`, the best of several such, and
    `peaks(outputs)`, the points that there are.

    Args:
        backbone: keras.Model from images [B, H, W, 3], RGB 0..255, to {"stack1": [B, H/4, W/4, any], ...}; detections
            are read from the last stack, in the order of their names, and all of them are trained.
        class_names: names of the classes, or their number.
        side: of the square that training crops, in pixels; a multiple of `multiple`, or one pixel less, as are then the
            sides of all fed images.
        keep_size: detect in images of their own size (the released code), and train on crops of about that size; or in
            ones whose long side is `side`.
        channels: of the heads.
        multiple: of pixels, by which the backbone divides.
        flip: detect in the mirror image too.
        scales: detect at each of these sizes, relative to the fed image. Soft-NMS merges what all of them find.
    Raises:
        TfdetError: `side` is no multiple, or the backbone is not of this kind.
    """

    mirrored = ()

    def __init__(self, backbone, class_names, side, keep_size, channels, multiple, flip=False, scales=(1.0,), **kwargs):
        super().__init__(class_names, **kwargs)
        if not all(name.startswith("stack") for name in backbone.output):
            raise TfdetError(
                f"{backbone.name}: {type(self).__name__} needs maps stack1, ..., not {', '.join(backbone.output)}"
            )
        if -side % multiple > 1:
            raise TfdetError(f"side {side}: this backbone needs a multiple of {multiple}, or one pixel less")
        self.settings = {"backbone": backbone, "side": side, "keep_size": keep_size, "channels": channels}
        self.settings |= {"multiple": multiple, "flip": flip, "scales": tuple(scales)}
        self.backbone, self.flip, self.scales = backbone, flip, tuple(scales)
        widths = [backbone.output[name].shape[-1] for name in sorted(backbone.output)]
        self.heads = [self.point_heads(width, channels, stack) for stack, width in enumerate(widths)]

        self.padding = multiple, side % multiple
        self.resizer = KeepSize(*self.padding) if keep_size else ShortSide(side, side, *self.padding)
        self.augmentation = CenterNetAugmentation(side, of_own_size=keep_size, mirrored=self.mirrored)
        self.set_up((side, side))
        self.supports_jit = False  # XLA would compile a step for every size of image
        self.create_weights(side, side)

    def call(self, images, training=None):
        fed = ops.cast(ops.stack(ops.shape(images)[1:3]), "float32")
        images, sizes = without_padding(images, BLACK)
        stacks = self.backbone(images, training=training)
        maps = [head(stacks[name], training=training) for head, name in zip(self.heads, sorted(stacks), strict=True)]
        # Raw outputs leave in float32 also under mixed precision.
        outputs = {name: tuple(ops.cast(stack[name], "float32") for stack in maps) for name in maps[0]}
        return {**outputs, "image_sizes": sizes, "fed_sizes": ops.ones_like(sizes) * fed}

    def encode(self, image, boxes, labels, seed, *keypoints):
        return self.encoder(boxes, labels, *keypoints, size=ops.shape(image)[:2])

    def detect(self, images, scale):
        views = [view for factor in self.scales for view in self._views(images, factor)]
        return unscaled(self.decoder.best(views), scale)

    def peaks(self, images, scale):
        """The points that boxes are made of (see `unscaled_peaks`); flip and scales do not count here."""
        return unscaled_peaks(self.decoder.peaks(self(images, training=False)), scale)

    def _views(self, images, factor):
        """What may be an object at that size, and in the mirror image: a list of the decoder's candidates."""
        if factor != 1:
            images = rescale(images, factor, *self.padding)
        outputs = self(images, training=False)
        views = [self.decoder.candidates(outputs)]
        if self.flip:
            mirrored = {**self(images[:, :, ::-1], training=False), "image_sizes": outputs["image_sizes"]}
            views.append(self.decoder.candidates(mirrored, mirrored=True))
        return [unscaled(view, ops.full((1, 4), factor)) for view in views]


def backbone_settings(backbone):
    """Of a backbone or its name: channels of the heads, and what the sides of an image must be a multiple of."""
    name = getattr(backbone, "name", backbone)
    return 256 if name in ("hourglass104", "hourglass54") else 64, 128 if name == "hourglass104" else 32


def cells_of(size):
    """Of the maps of a fed image: rows, columns, and how many cells a pixel is, float32 [2], across and down."""
    rows, columns = (-(-side // STRIDE) for side in size)
    cells = ops.cast(ops.stack([columns, rows]), "float32")
    return rows, columns, cells / ops.cast(ops.stack([size[1], size[0]]), "float32")  # 511 pixels are 128 cells


def in_pixels(points, heatmap, outputs):
    """Points [B, ..., 2], x and y in cells of a heatmap [B, h, w, C], in pixels of the fed image."""
    cells = ops.cast(ops.stack(ops.shape(heatmap)[1:3]), "float32")
    factors = ops.flip(outputs["fed_sizes"] / cells, axis=-1)
    return points * ops.reshape(factors, (-1, *[1] * (len(points.shape) - 2), 2))


def offset_loss(targets, stacks, cells):
    """Smooth L1 between targets [B, K, 2] and maps [B, h, w, 2] in cells int32 [B, K, 2], for each cell that is none of
    -1; the mean over the stacks."""
    valid = ops.cast(cells[..., :1] >= 0, "float32")
    count = sum_over_replicas(ops.sum(valid))
    total = sum(ops.sum(valid * losses.smooth_l1(targets, heatmaps.at(maps, cells))) for maps in stacks)
    return total / (count + 1e-4) / len(stacks)
