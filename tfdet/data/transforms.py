"""Training augmentation, per image, in TensorFlow ops inside tf.data. Every draw follows from the seed it is given."""

import tensorflow as tf

from tfdet.resizers import ShortSide


class Draw:
    """Random numbers that follow from one seed [2]; each call of a method draws anew."""

    def __init__(self, seed):
        self.seed = seed
        self.calls = 0

    def uniform(self, low, high, shape=()):
        """float32 in [low, high)."""
        return tf.random.stateless_uniform(shape, self._next(), low, high)

    def normal(self, deviation, shape=()):
        """float32, around 0."""
        return tf.random.stateless_normal(shape, self._next(), 0.0, deviation)

    def integer(self, high):
        """int32 in [0, high)."""
        return tf.random.stateless_uniform((), self._next(), 0, high, dtype=tf.int32)

    def chance(self, probability):
        """bool."""
        return self.uniform(0.0, 1.0) < probability

    def _next(self):
        self.calls += 1
        return tf.random.experimental.stateless_fold_in(self.seed, self.calls)


class SSDAugmentation:
    """SSD's training augmentation (weiliu89/caffe, ssd_pascal.py): expand, crop, resize, distort, flip.

    The released code distorts, pastes the image on a canvas of up to four times its size, and crops from that. Here
    the crop's window is computed first and only what it shows is cut, resized and distorted, the rest filled with the
    mean colour: the same pictures without the canvas. Sizes are rounded to pixels of the fed image.

    Args:
        size: side of the fed image in pixels.
    """

    mean = (123.0, 117.0, 104.0)  # RGB

    def __init__(self, size):
        self.size = size

    def __call__(self, image, boxes, labels, seed):
        """image uint8 [H, W, 3], boxes float32 [M, 4], labels int32 [M], seed int [2] -> the same in the fed image.

        The image comes back as float32 0..255 [size, size, 3], with those boxes whose centre is inside, clipped.
        """
        draw = Draw(seed)
        height, width = (tf.cast(side, tf.float32) for side in tf.unstack(tf.shape(image)[:2]))
        unit = boxes / tf.stack([width, height, width, height])  # in fractions of the image

        canvas = expand(draw)  # xyxy, the canvas in fractions of the image
        on_canvas = to_window(unit, canvas)
        crop = iou_constrained_crop(on_canvas, draw)
        window = from_window(crop, canvas)

        kept = centre_inside(unit, window)
        boxes = tf.boolean_mask(tf.clip_by_value(to_window(unit, window), 0.0, 1.0) * self.size, kept)
        labels = tf.boolean_mask(labels, kept)
        image = self._show(image, window, draw)
        return *flip(image, boxes, draw.chance(0.5)), labels

    def _show(self, image, window, draw):
        """What of the image lies in `window` (fractions of the image), at the place where it shows in the result."""
        part, shape, padding = visible(image, window, self.size)
        part = distort_colours(resize_randomly(part, shape, draw), draw) - tf.constant(self.mean)
        return tf.ensure_shape(tf.pad(part, padding), (self.size, self.size, 3)) + tf.constant(self.mean)


class CenterNetAugmentation:
    """The training augmentation of CenterNet (xingyizhou/CenterNet, ctdet.py) and CornerNet: a window, colours, flip.

    The square window is 0.6, 0.7, .. 1.3 times as large as the image's long side, around a point that keeps 128 pixels
    away from the border; in a small image 64, 32, ... (see `inner_point`). What of it lies outside the image is black.

    The released codes count pixels from their centres, and mirror one pixel off; here the window lies on whole pixels
    and all is exact.

    Args:
        size: side of the fed image in pixels.
        of_own_size: the window is so many times as large as the fed image, whatever the size of the image, so that
            objects appear in about their own size (CornerNet, princeton-vl/CornerNet, sample/utils.py).
        mirrored: of keypoints, which one is which in the mirror image (tfdet.skeleton.mirrored).
    """

    def __init__(self, size, of_own_size=False, mirrored=()):
        self.size, self.of_own_size, self.mirrored = size, of_own_size, mirrored

    def __call__(self, image, boxes, labels, seed, keypoints=None):
        """As SSDAugmentation, with those boxes of which anything is left inside. Bright pixels may exceed 255.

        keypoints: float32 [M, J, 3], x, y and visibility; if given, those of the boxes that are left come back as well,
            wherever they are now: some may lie beside the fed image.
        """
        draw = Draw(seed)
        height, width = tf.unstack(tf.shape(image)[:2])
        unit = tf.cast(self.size if self.of_own_size else tf.maximum(height, width), tf.float32)
        side = tf.cast(tf.round(unit * (0.6 + 0.1 * tf.cast(draw.integer(8), tf.float32))), tf.int32)
        side = tf.maximum(side, 1)
        left, top = (inner_point(length, draw) - side // 2 for length in (width, height))
        sides = tf.cast(tf.stack([width, height, width, height]), tf.float32)
        window = tf.cast(tf.stack([left, top, left + side, top + side]), tf.float32) / sides

        boxes = tf.clip_by_value(to_window(boxes / sides, window), 0.0, 1.0) * self.size
        kept = tf.reduce_all(boxes[:, 2:] > boxes[:, :2], axis=-1)
        part, shape, padding = visible(image, window, self.size)
        image = tf.ensure_shape(tf.pad(tf.image.resize(part, shape), padding), (self.size, self.size, 3))
        image, mirrored = blend_colours(image, draw), draw.chance(0.5)
        image, boxes = flip(image, tf.boolean_mask(boxes, kept), mirrored)
        labels = tf.boolean_mask(labels, kept)
        if keypoints is None:
            return image, boxes, labels
        places = (keypoints[..., :2] / sides[:2] - window[:2]) / (window[2:] - window[:2]) * self.size
        keypoints = tf.boolean_mask(tf.concat([places, keypoints[..., 2:]], axis=-1), kept)
        return image, boxes, labels, flip_keypoints(keypoints, self.size, self.mirrored, mirrored)


class RandomShortSide:
    """Mirror with chance 1/2 and resize to one of several sizes: the training augmentation of the R-CNN family.

    Args:
        short_sides, long_side: pixels (see tfdet.resizers.ShortSide).
    """

    def __init__(self, short_sides, long_side):
        self.short_sides, self.long_side = tuple(short_sides), long_side

    def __call__(self, image, boxes, labels, seed):
        """As SSDAugmentation; the image comes back as ShortSide makes it."""
        draw = Draw(seed)
        image, boxes = flip(image, boxes, draw.chance(0.5))
        resize = ShortSide(tf.constant(self.short_sides)[draw.integer(len(self.short_sides))], self.long_side)
        scale = resize.scale(*tf.unstack(tf.shape(image)[:2]))
        return resize(image), boxes * scale, labels


def expand(draw, probability=0.5, max_ratio=4.0):
    """A canvas of 1 to `max_ratio` times the image's size, the image anywhere on it: xyxy [4] in image fractions."""
    ratio = tf.where(draw.chance(probability), draw.uniform(1.0, max_ratio), 1.0)
    left, top = draw.uniform(0.0, 1.0) * (ratio - 1), draw.uniform(0.0, 1.0) * (ratio - 1)
    return tf.stack([-left, -top, ratio - left, ratio - top])


def iou_constrained_crop(boxes, draw, trials=50):
    """One of the crops that SSD's seven samplers propose: xyxy [4] in fractions, for boxes [M, 4] in fractions.

    The samplers: the whole image; a crop that has IoU >= 0.1, 0.3, 0.5, 0.7 or 0.9 with some box; any crop (IoU <= 1,
    which holds only if there is a box). A crop has 0.3 to 1 of the image's side as scale and a ratio of 0.5 to 2. Each
    sampler has `trials` trials and proposes its first success; one of all proposals is drawn (GenerateBatchSamples).
    """
    limits = tf.constant([0.1, 0.3, 0.5, 0.7, 0.9, 0.0])
    shape = (limits.shape[0], trials)
    scale = draw.uniform(0.3, 1.0, shape)
    low, high = tf.maximum(0.5, scale**2), tf.minimum(2.0, 1 / scale**2)
    ratio = tf.sqrt(low + (high - low) * draw.uniform(0.0, 1.0, shape))
    w, h = scale * ratio, scale / ratio
    x, y = draw.uniform(0.0, 1.0, shape) * (1 - w), draw.uniform(0.0, 1.0, shape) * (1 - h)
    crops = tf.stack([x, y, x + w, y + h], axis=-1)  # [6, trials, 4]

    # Crops against boxes, in fractions: the best IoU of each, or -1 when there is no box at all.
    top_left = tf.maximum(crops[..., None, :2], boxes[:, :2])
    bottom_right = tf.minimum(crops[..., None, 2:], boxes[:, 2:])
    intersection = tf.reduce_prod(tf.maximum(bottom_right - top_left, 0.0), axis=-1)  # [6, trials, M]
    areas = tf.reduce_prod(boxes[:, 2:] - boxes[:, :2], axis=-1)
    overlap = intersection / tf.maximum((w * h)[..., None] + areas - intersection, 1e-12)
    overlap = tf.reduce_max(tf.pad(overlap, [[0, 0], [0, 0], [0, 1]], constant_values=-1.0), axis=-1)

    success = overlap >= limits[:, None]
    first = tf.argmax(success, axis=1)  # the first that holds
    proposals = tf.concat([[[0.0, 0.0, 1.0, 1.0]], tf.gather(crops, first, batch_dims=1)], axis=0)
    valid = tf.concat([[True], tf.reduce_any(success, axis=1)], axis=0)
    proposals = tf.boolean_mask(proposals, valid)
    return proposals[draw.integer(tf.shape(proposals)[0])]


def to_window(boxes, window):
    """Boxes [M, 4] in fractions of an image -> in fractions of a window [4] of it."""
    origin, size = tf.tile(window[:2], [2]), tf.tile(window[2:] - window[:2], [2])
    return (boxes - origin) / size


def from_window(box, window):
    """A box [4] in fractions of a window -> in fractions of the image that the window [4] is given in."""
    return box * tf.tile(window[2:] - window[:2], [2]) + tf.tile(window[:2], [2])


def visible(image, window, size):
    """What of an image lies in a window [4] of it (fractions of the image), which is shown `size` pixels a side.

    Returns:
        pixels [h, w, 3] of the image; (height, width) that they have in the result; the padding around them, for
        tf.pad. A window beside the image still shows one pixel, at the border.
    """
    height, width, _ = tf.unstack(tf.shape(image))
    sides = tf.cast(tf.stack([width, height, width, height]), tf.float32)
    seen = tf.clip_by_value(window, 0.0, 1.0)
    source = tf.cast(tf.round(seen * sides), tf.int32)
    target = tf.cast(tf.round(to_window(seen[None], window)[0] * size), tf.int32)
    x1, y1 = tf.minimum(source[0], width - 1), tf.minimum(source[1], height - 1)
    x2, y2 = tf.maximum(source[2], x1 + 1), tf.maximum(source[3], y1 + 1)
    left, top = tf.unstack(tf.clip_by_value(target[:2], 0, size - 1))
    right = tf.clip_by_value(target[2], left + 1, size)
    bottom = tf.clip_by_value(target[3], top + 1, size)
    return image[y1:y2, x1:x2], (bottom - top, right - left), [[top, size - bottom], [left, size - right], [0, 0]]


def inner_point(length, draw, border=128):
    """A pixel of a line of `length`, the border and its mirror image left out; int32.

    Where the line is too short for two borders, their width is halved until it is not (released code).
    """
    borders = border // 2 ** tf.range(border.bit_length() + 1)
    border = tf.reduce_max(tf.where(2 * borders < length, borders, 0))
    return border + draw.integer(length - 2 * border)


def centre_inside(boxes, window):
    """bool [M]: is the centre of each box [M, 4] inside the window [4]?"""
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    return tf.reduce_all((centre >= window[:2]) & (centre <= window[2:]), axis=-1)


def flip(image, boxes, mirrored):
    """Left and right exchanged where `mirrored` (bool scalar) says so; boxes [M, 4] in pixels of the image."""
    width = tf.cast(tf.shape(image)[1], tf.float32)
    x1, y1, x2, y2 = tf.unstack(boxes, axis=-1)
    return (
        tf.cond(mirrored, lambda: tf.reverse(image, axis=[1]), lambda: image),
        tf.where(mirrored, tf.stack([width - x2, y1, width - x1, y2], axis=-1), boxes),
    )


def flip_keypoints(keypoints, width, counterparts, mirrored):
    """Keypoints [M, J, 3] of an image `width` pixels wide, as `flip` has mirrored it; see tfdet.skeleton.mirrored."""
    x, y, visibility = tf.unstack(tf.gather(keypoints, counterparts, axis=1), axis=-1)
    return tf.where(mirrored, tf.stack([width - x, y, visibility], axis=-1), keypoints)


def resize_randomly(image, size, draw):
    """image [H, W, 3] -> float32 [*size, 3] by one of five interpolations, drawn with equal chance."""
    methods = ("bilinear", "area", "nearest", "bicubic", "lanczos3")
    branches = [lambda method=method: tf.cast(tf.image.resize(image, size, method), tf.float32) for method in methods]
    resized = tf.ensure_shape(tf.switch_case(draw.integer(len(methods)), branches), (None, None, 3))
    return tf.clip_by_value(resized, 0.0, 255.0)  # bicubic and Lanczos overshoot


def distort_colours(image, draw):
    """Brightness, contrast, saturation and hue, each with chance 1/2, contrast first or last; image float32 0..255."""
    contrast_first = draw.chance(0.5)
    brightness = tf.where(draw.chance(0.5), draw.uniform(-32.0, 32.0), 0.0)
    contrast = tf.where(draw.chance(0.5), draw.uniform(0.5, 1.5), 1.0)
    saturation = tf.where(draw.chance(0.5), draw.uniform(0.5, 1.5), 1.0)
    hue = tf.where(draw.chance(0.5), draw.uniform(-18.0, 18.0) / 180, 0.0)  # OpenCV's circle has 180 steps

    def clipped(values):
        return tf.clip_by_value(values, 0.0, 1.0)

    image = clipped((image / 255 + brightness / 255) * tf.where(contrast_first, contrast, 1.0))
    # The two dear ones are left out where they would change nothing.
    image = tf.cond(saturation != 1, lambda: tf.image.adjust_saturation(image, saturation), lambda: image)
    image = tf.cond(hue != 0, lambda: tf.image.adjust_hue(image, hue), lambda: image)
    return clipped(image * tf.where(contrast_first, 1.0, contrast)) * 255


GREY = (0.299, 0.587, 0.114)  # of RGB, as OpenCV weighs them
# The main directions in which the colours of ImageNet's pixels vary, one a column (rows are RGB), and how much they do,
# pixels being 0..1: the released code's numbers.
DIRECTIONS = [
    [-0.56089297, 0.71832671, 0.41158938],
    [-0.5832747, 0.00994535, -0.81221408],
    [-0.58752847, -0.69563484, 0.41340352],
]
VARIANCES = [0.2141788, 0.01817699, 0.00341571]


def blend_colours(image, draw, strength=0.4, lighting=0.1):
    """Brightness, contrast and saturation in random order, then lighting (CornerNet, CenterNet); image float32 0..255.

    The three blend the image with black, with the mean of its grey picture, and with its grey picture; the image's own
    share is 1 +- `strength`. Lighting adds a colour along ImageNet's principal directions. Nothing is clipped.
    """
    # Shares of the image, its grey picture and that one's mean: all of it is one matrix for every pixel.
    others = tf.constant([[0.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    order = tf.argsort(draw.uniform(0.0, 1.0, (3,)))
    shares = tf.constant([1.0, 0.0, 0.0])
    for i in range(3):
        own = draw.uniform(1 - strength, 1 + strength)
        shares = own * shares + (1 - own) * others[order[i]]
    grey = tf.constant(GREY)[:, None]
    matrix = shares[0] * tf.eye(3) + shares[1] * tf.tile(grey, [1, 3])
    mean = tf.reduce_mean(image, axis=(0, 1))[None] @ grey
    light = 255 * tf.linalg.matvec(DIRECTIONS, VARIANCES * draw.normal(lighting, (3,)))
    pixels = tf.reshape(image, (-1, 3)) @ matrix + (shares[2] * mean + light)
    return tf.reshape(pixels, tf.shape(image))
