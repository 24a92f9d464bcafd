"""tf.data: from photographs of faces to the batches of crops that MTCNN's networks learn from (see `mtcnn_samples`)."""

import math
from types import SimpleNamespace

import tensorflow as tf

from tfdet.area import AreaTable
from tfdet.data import mtcnn_samples as samples
from tfdet.data.images import decode
from tfdet.data.mtcnn_samples import DROPPED, LANDMARK, NEGATIVE, PART, POSITIVE, SHARES
from tfdet.data.pipeline import annotations, read
from tfdet.data.transforms import Draw, distort_colours
from tfdet.distribution import shared_batches
from tfdet.skeleton import FACE

# Crops of 32 images lie in one pool, of which batches are drawn: so an image is decoded once for many of them. No image
# puts more than this into it.
POOL = 32
MOST = {NEGATIVE: 96, POSITIVE: 32, PART: 32}
OF_A_FACE = 2  # landmark crops, each time its image is read
ANGLE = math.radians(15)  # to which landmark crops are turned to either side

NONE_OF_A_KIND = "MTCNN learns from all kinds of crops, but there are no"
LEARNER = SimpleNamespace(name="mtcnn", keypoint_names=FACE)  # of landmarks
GROUP = sum(SHARES.values())  # of seven crops: batches are made of groups
BOXES = SHARES[POSITIVE] + SHARES[PART]  # crops of a group that learn boxes


def steps_per_epoch(dataset, batch_size, workers=1):
    """How many batches it takes until as many negatives have been drawn as the images put into the pools at most."""
    own = len(dataset) // workers
    pool = min(POOL, own)
    return own // pool * _batches_of(pool, batch_size // workers)


def crop_batches(
    faces, landmarks, side, batch_size, smallest, seed=0, found=None, epoch=None, augment=True, among=None
):
    """Batches for `fit` of one of MTCNN's networks.

    Each has negatives, positives, parts and landmark crops as SHARES says, and so has each replica's part of it, if
    that is a multiple of seven. All of it follows from `seed` and the number of the epoch. In a cluster each worker
    reads its part of the images and draws its part of every batch from them.

    Args:
        faces: Dataset of annotated faces; landmarks: Dataset of faces with landmarks.
        side: 12, 24 or 48, of the crops. batch_size: a multiple of seven.
        smallest: pixels; smaller faces are not learnt from, nor taken for none.
        found: for each image the squares [N, 4] to learn from, a RaggedTensor; None draws them (P-Net).
        epoch: the first of an endless stream; None for one epoch each time the result is iterated over.
        augment: mirror all, turn landmark crops, and distort colours.
        among: the strategy by which the network was made.
    Raises:
        tf.errors.InvalidArgumentError, when it is iterated over: an image cannot be decoded; or NONE_OF_A_KIND, there
            being no crop of some kind in any of a pool's images.
    Returns:
        tf.data.Dataset of (crops float32 [B, side, side, 3], {"face": kind int32 [B], "box": [B, 4], "landmarks":
        [B, 10]}, weights {the same names: [B]}): 0 for crops that say nothing of a box or of landmarks, and for the
        others so much that a mean over the batch is the mean over them.
    """
    face_crops = _face_crops(faces, side, smallest, found, augment)
    landmark_crops = _landmark_crops(landmarks, side, augment)

    def batches(worker, workers, of_replica):
        groups, pool = of_replica // GROUP, min(POOL, len(faces) // workers)
        pools, replicas = len(faces) // workers // pool, batch_size // workers // of_replica
        of_pool = _batches_of(pool, batch_size // workers) * replicas

        def of_epoch(number):
            key = tf.stack([tf.constant(seed, tf.int64), number])
            images = _map(_shuffled(len(faces), key).shard(workers, worker), face_crops)
            crops = images.batch(pool, drop_remainder=True).take(pools)
            crops = crops.flat_map(_plain(lambda crops: _drawn(crops, of_pool, groups)))
            others = _map(_shuffled(len(landmarks), key).shard(workers, worker).repeat(), landmark_crops).unbatch()
            others = others.filter(lambda crop: crop["kind"] == LANDMARK).batch(groups * SHARES[LANDMARK])
            return tf.data.Dataset.zip(crops, others)

        epochs = tf.data.Dataset.range(1) if epoch is None else tf.data.Dataset.range(epoch, tf.int64.max)
        return _map(epochs.flat_map(_plain(of_epoch)), _grouped).prefetch(tf.data.AUTOTUNE)

    return shared_batches(batches, batch_size, among)


def kinds_found(dataset, found, smallest):
    """How many squares there are of each kind -> {kind: count} of NEGATIVE, POSITIVE, PART and DROPPED.

    Args: as those of `crop_batches`.
    """
    look_up = annotations(dataset)
    counts = dict.fromkeys((*MOST, DROPPED), 0)
    for i in range(len(dataset)):
        kind, _ = samples.kinds(found[i], *_faces(look_up(i), smallest))
        for name in counts:
            counts[name] += int(tf.math.count_nonzero(kind == name))
    return counts


def _face_crops(dataset, side, smallest, found, augment):
    """A function: the number of an image, a seed [2] -> crops of it: {"crops" uint8 [N, side, side, 3], "kind" [N],
    "box" [N, 4], "seed" [2]} with N = the sum of MOST; what is not used of it is DROPPED."""
    look_up = annotations(dataset)

    def crops_of(i, seed):
        example, draw = look_up(i), Draw(seed)
        image = decode(read(example["source"]))
        faces, learnt = _faces(example, smallest)
        if found is None:
            squares = samples.drawn_squares(faces, learnt, *tf.unstack(tf.shape(image)[:2]), smallest, draw)
        else:
            squares = found[i]
        kind, face = samples.kinds(squares, faces, learnt)
        order = tf.argsort(draw.uniform(0.0, 1.0, tf.shape(kind)))
        chosen = tf.concat([_some(order, kind, name, most) for name, most in MOST.items()], axis=0)
        squares, kind = tf.gather(squares, chosen), tf.gather(kind, chosen)
        faces = tf.gather(tf.pad(faces, [[0, 1], [0, 0]]), tf.gather(face, chosen))
        crops = AreaTable(image).crops(*tf.split(samples.whole_pixels(squares), 2, axis=1), side)
        if augment:
            mirrored = draw.uniform(0.0, 1.0, tf.shape(kind)) < 0.5
            faces = samples.mirror_faces(squares, faces, mirrored)
            crops = distort_colours(samples.mirror_crops(crops, mirrored), draw)
        box = samples.box_targets(squares, faces, of_pnet=side == samples.WINDOW)
        rest = [[0, sum(MOST.values()) - tf.shape(kind)[0]]]
        return {
            "crops": _padded(_as_pixels(crops), rest + [[0, 0]] * 3),
            "kind": _padded(kind, rest, DROPPED),
            "box": _padded(box, [*rest, [0, 0]]),
            "seed": seed,
        }

    return crops_of


def _landmark_crops(dataset, side, augment):
    """A function: the number of an image, a seed [2] -> crops of faces in it whose landmarks are known, drawn by lot:
    {"crops" uint8 [N, side, side, 3], "kind" [N], LANDMARK or DROPPED, "landmarks" [N, 10]} with N = OF_A_FACE."""
    look_up = annotations(dataset, LEARNER)

    def crops_of(i, seed):
        example, draw = look_up(i), Draw(seed)
        known = tf.reduce_all(example["keypoints"][..., 2] > 0, axis=1) & ~example["crowd"]
        count = tf.math.count_nonzero(known, dtype=tf.int32)
        face = tf.cast(draw.uniform(0.0, 1.0, (OF_A_FACE,)) * tf.cast(count, tf.float32), tf.int32)
        faces = tf.gather(tf.pad(example["boxes"][known], [[0, 1], [0, 0]]), face)
        landmarks = tf.gather(tf.pad(example["keypoints"][known], [[0, 1], [0, 0], [0, 0]]), face)[..., :2]
        squares = samples.jittered(faces, draw, samples.LANDMARK_SQUARES)
        kind, _ = samples.kinds(squares, faces, tf.ones(OF_A_FACE, tf.bool))
        table = AreaTable(decode(read(example["source"])))
        angles = draw.uniform(-ANGLE, ANGLE, (OF_A_FACE,)) if augment else tf.zeros(OF_A_FACE)
        crops, landmarks = samples.rotated_crops(table, squares, landmarks, side, angles)
        if augment:
            mirrored = draw.uniform(0.0, 1.0, (OF_A_FACE,)) < 0.5
            landmarks = samples.mirror_landmarks(squares, landmarks, mirrored)
            crops = distort_colours(samples.mirror_crops(crops, mirrored), draw)
        return {
            "crops": _as_pixels(crops),
            "kind": tf.where(((kind == POSITIVE) | (kind == PART)) & (count > 0), LANDMARK, DROPPED),
            "landmarks": samples.landmark_targets(squares, landmarks),
        }

    return crops_of


def _faces(example, smallest):
    """Boxes [M, 4] of all faces, and bool [M], which of them are learnt from."""
    boxes = example["boxes"]
    longest = tf.reduce_max(boxes[:, 2:] - boxes[:, :2], axis=1)
    return boxes, (longest >= tf.cast(smallest, tf.float32)) & ~example["crowd"]


def _some(order, kind, name, most):
    """Up to `most` of the numbers in `order` whose kind is `name`."""
    return tf.boolean_mask(order, tf.gather(kind, order) == name)[:most]


def _as_pixels(crops):
    return tf.cast(tf.round(tf.clip_by_value(crops, 0.0, 255.0)), tf.uint8)


def _padded(values, paddings, value=0):
    count = sum(MOST.values())
    return tf.ensure_shape(tf.pad(values, paddings, constant_values=value), (count, *values.shape[1:]))


def _batches_of(pool, batch_size):
    """Batches that are drawn of a pool of so many images."""
    return max(1, pool * MOST[NEGATIVE] * GROUP // (batch_size * SHARES[NEGATIVE]))


def _drawn(pool, batches, groups):
    """Batches of a pool of images [P, N, ...]: a Dataset of {name: [groups, 5, ...]}, in each group the crops in the
    order of MOST. No crop is drawn again before all of its kind have been."""
    draw = Draw(pool["seed"][0])
    columns = {name: tf.reshape(pool[name], (-1, *pool[name].shape[2:])) for name in ("crops", "kind", "box")}
    rows = []
    for kind in MOST:
        numbers = tf.where(columns["kind"] == kind)[:, 0]
        message = f"{NONE_OF_A_KIND} {samples.NAMES[kind]} in {pool['kind'].shape[0]} images"
        with tf.control_dependencies([tf.debugging.Assert(tf.size(numbers) > 0, [message])]):
            numbers = tf.identity(numbers)
        numbers = tf.gather(numbers, tf.argsort(draw.uniform(0.0, 1.0, tf.shape(numbers))))
        places = tf.range(batches * groups * SHARES[kind]) % tf.shape(numbers)[0]
        rows.append(tf.reshape(tf.gather(numbers, places), (batches, groups, SHARES[kind])))
    rows = tf.concat(rows, axis=2)

    def batch(rows):
        return {name: tf.gather(column, rows) for name, column in columns.items()}

    return _map(tf.data.Dataset.from_tensor_slices(rows), batch)


def _grouped(of_faces, of_landmarks):
    """Groups of crops of both kinds -> a batch as `crop_batches` gives it."""
    groups, of_landmarks = tf.shape(of_faces["kind"])[0], dict(of_landmarks)

    def joined(name, size):
        """Of crops that have no such column zeros."""
        parts = []
        for columns, count in ((of_faces, GROUP - SHARES[LANDMARK]), (of_landmarks, SHARES[LANDMARK])):
            missing = tf.zeros((groups, count, *size))
            parts.append(tf.reshape(columns[name], (groups, count, *size)) if name in columns else missing)
        return tf.reshape(tf.concat(parts, axis=1), (-1, *size))

    crops = joined("crops", of_faces["crops"].shape[2:])
    kind = joined("kind", ())
    of_box = (kind == POSITIVE) | (kind == PART)
    weights = {
        "face": tf.ones_like(kind, tf.float32),
        "box": tf.where(of_box, GROUP / BOXES, 0.0),
        "landmarks": tf.where(kind == LANDMARK, GROUP / SHARES[LANDMARK], 0.0),
    }
    box = tf.where(of_box[:, None], joined("box", (4,)), 0.0)
    targets = {"face": kind, "box": box, "landmarks": joined("landmarks", (10,))}
    return tf.cast(crops, tf.float32), targets, weights


def _shuffled(count, key):
    """A Dataset of (number, seed [2]) of `count` images, in an order that follows from the key [2]."""
    order = tf.random.experimental.stateless_shuffle(tf.range(count, dtype=tf.int64), key)
    fold_in = tf.random.experimental.stateless_fold_in
    return _map(tf.data.Dataset.from_tensor_slices(order), lambda i: (i, fold_in(key, i)))


def _plain(function):
    """The function for tf.data: all of it is TensorFlow ops already, AutoGraph would only rewrite it."""
    return tf.autograph.experimental.do_not_convert(function)


def _map(examples, function):
    return examples.map(_plain(function), tf.data.AUTOTUNE)
