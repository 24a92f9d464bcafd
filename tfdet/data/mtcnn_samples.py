"""Which squares of photographs MTCNN's networks learn from (Zhang et al. 2016, section II.C; gen_12net_data.py).

    positive   IoU with a face above 0.65                 that it is a face, and where
    part       IoU with a face from 0.4 to 0.65           where the face is
    negative   IoU below 0.3 with each of all faces       that it is none
    landmark   a square around a face whose landmarks     where the landmarks are
               are known, IoU of 0.4 or more

What is between 0.3 and 0.4 is not used. "All" faces: also those that cannot be judged, and those too small to be
learnt from. A square overlaps a face that is w wide and h > w high by sqrt(w/h) / (2 - sqrt(w/h)) at best: one whose
sides differ by more than 8 to 5 has no positives at all.

Every batch has 3 negatives and 2 landmark squares for each positive and each part. (The paper says 3 : 1 : 1 : 2 of
negatives, positives, parts and landmark faces.)

Where do the squares come from? P-Net's by lot: anywhere in the image, beside faces, on faces. R-Net's are those that
P-Net has found, and O-Net's those that are left of them behind R-Net, so each network learns from what the ones before
it get wrong. Landmark squares are drawn around faces for all three. They may be half as large again as the face, and
less like it than in the released code (0.65): data sets of landmarks have tighter boxes than those of faces, and it is
of these that the cascade makes its squares.

Squares are as in `mtcnn`, from the first pixel to the last, counting from 1; faces are boxes like all others.
"""

import tensorflow as tf

from tfdet import assigners
from tfdet import boxes as box_ops
from tfdet.data.transforms import Draw
from tfdet.detectors.mtcnn import WINDOW, moves_to, whole_pixels
from tfdet.inspection.samples import Samples, serving
from tfdet.resizers import KeepSize
from tfdet.skeleton import FACE, mirrored

DROPPED, NEGATIVE, POSITIVE, PART, LANDMARK = -1, 0, 1, 2, 3
SHARES = {NEGATIVE: 3, POSITIVE: 1, PART: 1, LANDMARK: 2}  # of a batch
NAMES = {NEGATIVE: "negatives", POSITIVE: "positives", PART: "parts", LANDMARK: "landmarks"}

ANYWHERE, BESIDE, AROUND = 50, 30, 100  # squares that are drawn in an image
LANDMARK_SQUARES = 1.5  # times as large as the face, at most


def kinds(squares, faces, learnt):
    """What squares are good for.

    Args:
        squares: [N, 4]; faces: [M, 4], M = 0 is legal.
        learnt: bool [M], false where a face is neither to be found nor to be taken for none.
    Returns:
        (NEGATIVE, POSITIVE, PART or DROPPED int32 [N], face int32 [N] that it overlaps most; 0 without one).
    """
    corners, sizes = tf.split(tf.cast(whole_pixels(squares), tf.float32), 2, axis=1)
    cut = tf.concat([corners, corners + sizes], axis=1)
    matched = assigners.max_iou(cut, faces, pos_iou=0.4, neg_iou=0.3, match_low_quality=False)
    # A face more, of no area, so that there is one to look up.
    faces, learnt = tf.pad(faces, [[0, 1], [0, 0]]), tf.pad(learnt, [[0, 1]])
    face = tf.maximum(matched, 0)
    iou = box_ops.iou(cut[:, None], tf.gather(faces, face)[:, None])[:, 0, 0]
    near = tf.where(tf.gather(learnt, face), tf.where(iou > 0.65, POSITIVE, PART), DROPPED)
    of_all = tf.where(matched == assigners.NEGATIVE, NEGATIVE, DROPPED)
    return tf.where(matched >= 0, near, of_all), face


def drawn_squares(faces, learnt, height, width, smallest, draw):
    """P-Net's squares of an image -> [ANYWHERE + BESIDE + AROUND, 4], without faces [ANYWHERE, 4]; of whole pixels.

    Anywhere: sides from that of the smallest face to half of the image, each octave as often as another, all of it
    inside the image. Beside a face: as large, and touching it or almost. Around a face: sides 0.8 to 1.25 times those
    of the face, middles up to a fifth of its sides away. The released code draws 50, 5 a face and 20 a face; here each
    image has as many whatever is on it, around faces that are drawn anew each time. Those may leave the image.

    Args:
        faces: [M, 4]; learnt: bool [M], which are to be found. smallest: int, pixels. draw: `transforms.Draw`.
    """
    longest = tf.maximum(tf.cast(tf.minimum(height, width), tf.float32) / 2, smallest + 1.0)
    side = smallest * (longest / smallest) ** draw.uniform(0.0, 1.0, (ANYWHERE,))
    room = tf.cast(tf.stack([width, height]), tf.float32) - side[:, None]
    anywhere = _square(tf.maximum(room, 0.0) * draw.uniform(0.0, 1.0, (ANYWHERE, 2)), side)

    faces = tf.boolean_mask(faces, learnt)
    some = tf.shape(faces)[0]
    place = draw.uniform(0.0, 1.0, (BESIDE + AROUND,)) * tf.cast(some, tf.float32)
    faces = tf.gather(tf.pad(faces, [[0, 1], [0, 0]]), tf.cast(place, tf.int32))
    corners, sizes = faces[:, :2], faces[:, 2:] - faces[:, :2]
    side = tf.reduce_mean(sizes[:BESIDE], axis=1) * draw.uniform(0.8, 1.25, (BESIDE,))
    beside = _square(corners[:BESIDE] + sizes[:BESIDE] * draw.uniform(-1.0, 1.0, (BESIDE, 2)), side)
    near = tf.concat([beside, jittered(faces[BESIDE:], draw)], axis=0)
    return tf.concat([anywhere, near[: tf.where(some > 0, BESIDE + AROUND, 0)]], axis=0)


def jittered(faces, draw, largest=1.25):
    """Faces [N, 4] -> squares [N, 4] around them, up to `largest` times as large, and a bit beside the middle."""
    count, sizes = tf.shape(faces)[0], faces[:, 2:] - faces[:, :2]
    shorter, longer = tf.reduce_min(sizes, axis=1), tf.reduce_max(sizes, axis=1)
    side = 0.8 * shorter + (largest * longer - 0.8 * shorter) * draw.uniform(0.0, 1.0, (count,))
    middle = faces[:, :2] + sizes * (0.5 + draw.uniform(-0.2, 0.2, (count, 2)))
    return _square(middle - side[:, None] / 2, side)


def _square(corners, side):
    """Corners [N, 2] and sides [N], in pixels -> squares of whole pixels [N, 4]."""
    corners, side = tf.round(corners), tf.maximum(tf.round(side), 1.0)[:, None]
    return tf.concat([corners + 1, corners + side], axis=1)


class PNetSamples:
    """What `tfdet inspect` shows of MTCNN: the squares that P-Net learns from, as they are drawn in an image.

    It has of a `Detector` what it takes to ask for samples. Batches are then mixed of them, as SHARES says. Those of
    R-Net and O-Net depend on the networks before them.

    Args:
        smallest: pixels. landmarks: whether the data set has any, so that there are landmark squares, too.
    """

    name, keypoint_names, wants_crowds = "mtcnn", (), True

    def __init__(self, smallest, landmarks=False):
        self.smallest, self.landmarks, self.resizer = smallest, landmarks, KeepSize(multiple=1)

    def augmentation(self, image, boxes, labels, seed):
        """Nothing: it is crops that are mirrored and turned."""
        return image, boxes, labels

    def samples(self, image, boxes, labels, seed):
        boxes = tf.convert_to_tensor(boxes)
        sizes = boxes[:, 2:] - boxes[:, :2]
        shorter, longer = tf.reduce_min(sizes, axis=1), tf.reduce_max(sizes, axis=1)
        large, draw = longer >= self.smallest, Draw(tf.stack([tf.cast(seed, tf.int64), 0]))
        squares = drawn_squares(boxes, large & (labels >= 0), *tf.unstack(tf.shape(image)[:2]), self.smallest, draw)
        kind, face = kinds(squares, boxes, large & (labels >= 0))
        root = tf.sqrt(shorter / longer)
        why = tf.where(~large, 1, tf.where(root / (2 - root) <= 0.65, 2, 3))
        reasons = (
            f"smaller than {self.smallest} pixels",
            "too narrow: no square overlaps it by more than 0.65",
            "by lot no square overlaps it by more than 0.65, this time",
        )
        stages = [self._stage("pnet, before mixing", squares, kind, face, labels, why, reasons, ("positive", "part"))]
        if self.landmarks:
            squares = jittered(boxes, draw, LANDMARK_SQUARES)
            kind, face = kinds(squares, boxes, labels >= 0)
            kind = tf.where((kind == POSITIVE) | (kind == PART), POSITIVE, DROPPED)
            why, reasons = tf.ones_like(labels), ("by lot its square overlaps it by less than 0.4, this time",)
            stages.append(self._stage("landmarks", squares, kind, face, labels, why, reasons, ("landmark",)))
        return tuple(stages)

    def _stage(self, stage, squares, kind, face, labels, why, reasons, names):
        corners, sides = tf.split(tf.cast(whole_pixels(squares), tf.float32), 2, axis=1)
        others = tf.where(kind == NEGATIVE, assigners.NEGATIVE, assigners.IGNORED)
        own = serving(tf.where(kind == POSITIVE, face, assigners.NEGATIVE), tf.shape(labels)[0])
        return Samples(
            stage=stage,
            shape="box",
            boxes=tf.concat([corners, corners + sides], axis=1),
            levels=tf.zeros_like(kind),
            matched=tf.where((kind == POSITIVE) | (kind == PART), face, others),
            drawn=kind != DROPPED,
            why=tf.where((own > 0) | (labels < 0), 0, why),
            reasons=reasons,
            kinds=names,
            kind=tf.cast(kind == PART, tf.int32),
        )


def box_targets(squares, faces, of_pnet):
    """What the network should say of the box of the face [N, 4] that is in each of the squares [N, 4].

    P-Net's own box goes from the first to the last of its 12 pixels (see `mtcnn`), the others' is the square.
    """
    if not of_pnet:
        return moves_to(faces, squares)
    first = squares[:, :2] - 1 + (squares[:, 2:] - squares[:, :2] + 1) / WINDOW
    return moves_to(faces, tf.concat([first, squares[:, 2:]], axis=1), added=0)


def landmark_targets(squares, landmarks):
    """Landmarks [N, 5, 2] in pixels -> [N, 10] as a network says them: all x, then all y, in sides of the square."""
    corners, sizes = tf.split(tf.cast(whole_pixels(squares), tf.float32)[:, None], 2, axis=2)
    places = (landmarks - corners) / sizes
    return tf.concat([places[..., 0], places[..., 1]], axis=1)


def mirror_crops(crops, which):
    """Left and right exchanged in crops [N, side, side, 3] where `which` [N] says so."""
    return tf.where(which[:, None, None, None], tf.reverse(crops, axis=[2]), crops)


def mirror_faces(squares, faces, which):
    """The boxes [N, 4] of faces in squares [N, 4] that are mirrored where `which` [N] says so."""
    x1, y1, x2, y2 = tf.unstack(faces, axis=1)
    both = _left_and_right(squares)
    return tf.where(which[:, None], tf.stack([both - x2, y1, both - x1, y2], axis=1), faces)


def mirror_landmarks(squares, landmarks, which):
    """Landmarks [N, 5, 2] in such squares: eyes and corners of the mouth change places as well."""
    swapped = tf.gather(landmarks, mirrored(FACE), axis=1)
    swapped = tf.stack([_left_and_right(squares)[:, None] - swapped[..., 0], swapped[..., 1]], axis=-1)
    return tf.where(which[:, None, None], swapped, landmarks)


def _left_and_right(squares):
    """The sum of left and right edge of what is cut out: a mirror takes x to it less x."""
    x, _, width, _ = tf.unstack(tf.cast(whole_pixels(squares), tf.float32), axis=1)
    return 2 * x + width


def rotated_crops(table, squares, landmarks, side, angles):
    """What is cut out for squares [N, 4], turned around its middle.

    Args:
        table: `AreaTable` of the image. landmarks: [N, 5, 2]. side: of the crops in pixels.
        angles: [N], radians; positive ones turn the picture to the right.
    Returns:
        crops [N, side, side, 3] and landmarks [N, 5, 2], turned alike.
    """
    cut = whole_pixels(squares)
    corners, sizes = cut[:, :2], cut[:, 2:]
    # As much of the image as any angle may bring into sight, in pixels half as large.
    margins = sizes // 4
    patches = table.crops(corners - margins, sizes + 2 * margins, 3 * side)
    sizes, margins, corners = (tf.cast(value, tf.float32) for value in (sizes, margins, corners))
    scale = 3 * (sizes / (sizes + 2 * margins))  # patch pixels of a crop pixel
    cos, sin = tf.cos(angles), tf.sin(angles)
    # From the middle of a pixel of the crop to the place in the patch, around both middles.
    a, b, c, d = scale[:, 0] * cos, scale[:, 0] * sin, -scale[:, 1] * sin, scale[:, 1] * cos
    middle, patch_middle = (side - 1) / 2, (3 * side - 1) / 2
    zero = tf.zeros_like(a)
    transforms = [a, b, patch_middle - (a + b) * middle, c, d, patch_middle - (c + d) * middle, zero, zero]
    crops = tf.raw_ops.ImageProjectiveTransformV3(
        images=patches,
        transforms=tf.stack(transforms, axis=1),
        output_shape=[side, side],
        interpolation="BILINEAR",
        fill_mode="CONSTANT",
        fill_value=0.0,
    )
    middles = (corners + sizes / 2)[:, None]
    x, y = tf.unstack(landmarks - middles, axis=-1)
    cos, sin = cos[:, None], sin[:, None]
    return crops, middles + tf.stack([x * cos - y * sin, x * sin + y * cos], axis=-1)
