"""Of the samples that the assigner called positive and negative, which enter the loss?"""

from keras import ops

from tfdet.assigners import NEGATIVE


def hard_negatives(loss, positive, ratio=3):
    """The negatives that cost most, `ratio` for every positive of the same image (SSD; Caffe's MAX_NEGATIVE mining).

    Ties go to the earlier sample, so that the count is exact. An image without positives gets no negatives.

    Args:
        loss: float [..., N], what each sample would cost as background: -log p(background).
        positive: bool [..., N].
    Returns:
        bool [..., N], at most ratio * positives (fewer when there are not enough negatives), none of them positive.
    """
    wanted = ratio * ops.sum(ops.cast(positive, "int32"), axis=-1, keepdims=True)
    order = ops.argsort(ops.where(positive, float("inf"), -ops.cast(loss, "float32")), axis=-1)
    rank = ops.argsort(order, axis=-1)
    return ops.logical_and(rank < ops.cast(wanted, rank.dtype), ops.logical_not(positive))


class RandomSampler:
    """So many samples of an image, drawn by lot, at most a share of them positives (py-faster-rcnn; mmdetection).

    Positives: int(num * pos_fraction), or all if there are fewer. Negatives fill up to `num`, as far as there are any.
    Ignored samples are never drawn, and do not count.

                        num  pos_fraction  add_gt_as_proposals
        RPN             256      0.5              False
        RoI stage (FPN) 512      0.25             True

    What is drawn depends on the seed alone: not on the batch that an image is in, nor on device, backend or replica.
    The k-th sample of two stages gets the same lot from the same seed, so each stage should have a seed of its own.

    Args:
        neg_pos_ub: at most int(neg_pos_ub * positives drawn) negatives, counting no positive as one; -1 is no bound. So
            1.5 leaves one negative in an image without positives.
        add_gt_as_proposals: whether `candidates` adds the objects themselves.
    """

    def __init__(self, num, pos_fraction, neg_pos_ub=-1, add_gt_as_proposals=False):
        self.num, self.add_gt_as_proposals = num, add_gt_as_proposals
        self.max_positives = int(num * pos_fraction)
        # For every number of positives that may be drawn.
        self.max_negatives = [num - drawn for drawn in range(self.max_positives + 1)]
        if neg_pos_ub >= 0:
            bounds = [int(neg_pos_ub * max(1, drawn)) for drawn in range(self.max_positives + 1)]
            self.max_negatives = [min(pair) for pair in zip(self.max_negatives, bounds, strict=True)]

    def __call__(self, matched, seed):
        """matched int32 [..., N], an assigner's, and seed int [...] -> (positive, negative), each bool [..., N]."""
        shape = ops.shape(matched)
        matched = ops.reshape(matched, (-1, shape[-1]))
        lots = noise(ops.reshape(seed, (-1,)), shape[-1])
        positive, drawn = _draw(matched >= 0, lots, self.max_positives, self.max_positives)
        bound = ops.take(ops.convert_to_tensor(self.max_negatives, "int32"), drawn)
        negative, _ = _draw(matched == NEGATIVE, lots, self.num, bound[:, None])
        return ops.reshape(positive, shape), ops.reshape(negative, shape)

    def pick(self, matched, seed):
        """The same draw, for what needs a fixed shape: matched int32 [B, N], seed int [B] -> (indices, valid).

        Returns:
            indices int32 [B, num] of the samples drawn, positives first, then negatives, then padding; valid bool
            [B, num], false for padding, whose index is 0.
        """
        positive, negative = self(matched, seed)
        order = 2 * ops.cast(positive, "int32") + ops.cast(negative, "int32")
        kind, indices = ops.top_k(_at_least(self.num, order, 0), self.num)
        return ops.where(kind > 0, ops.cast(indices, "int32"), 0), kind > 0

    def candidates(self, proposals, valid, boxes, labels):
        """The proposals to assign and draw from; with `add_gt_as_proposals` the objects stand before them.

        An untrained network proposes nothing that overlaps an object, so the second stage would see no positives. The
        shift of indices is that of mmdetection: object m is candidate m, proposal r is candidate M + r. There an added
        object serves itself; here it is assigned like the others, with IoU 1 (an object of no area is negative).

        Args:
            proposals: [B, R, 4], valid: bool [B, R], which of them are none of padding.
            boxes: [B, M, 4], labels: int [B, M], -1 for padding.
        Returns:
            (boxes [B, M + R, 4], valid bool [B, M + R]), or [B, R, 4] and [B, R] as they came.
        """
        if not self.add_gt_as_proposals:
            return proposals, valid
        return ops.concatenate([boxes, proposals], axis=1), ops.concatenate([labels >= 0, valid], axis=1)


def noise(seed, count):
    """Numbers that look random and depend on nothing but the seed and their place: [...] -> float32 [..., count].

    In [0, 1), in steps of 2 ** -24, equally distributed. Seed and place go through MurmurHash3's finaliser (Appleby
    2011, fmix32), twice, in int32, whose products wrap around alike on every device and backend.

    Args:
        seed: int32 or int64 [...]; the same value gives the same numbers in both.
    """
    seed = ops.expand_dims(ops.convert_to_tensor(seed), -1)
    # Of an int32 the upper part is its sign, as it is of an int64 of the same value.
    lower, upper = ops.cast(seed, "int32"), ops.cast(ops.right_shift(seed, 31), "int32")
    key = _mix(lower ^ _mix(upper))
    # Two keys, or the numbers of one seed could be those of another seed, some places on. They lie further apart than
    # there are places: what is mixed twice alike gives 0.
    bits = _mix(_mix(ops.arange(count, dtype="int32") + key) ^ _mix(key ^ -(2**31)))
    return ops.cast(_shift_right(bits, 8), "float32") * 2.0**-24


def _mix(bits):
    """MurmurHash3's fmix32: every bit of an int32 takes part in every bit of the result; no two give the same one."""
    bits = (bits ^ _shift_right(bits, 16)) * (0x85EBCA6B - 2**32)
    bits = (bits ^ _shift_right(bits, 13)) * (0xC2B2AE35 - 2**32)
    return bits ^ _shift_right(bits, 16)


def _shift_right(bits, places):
    """int32, filled up with zeros and not with the sign."""
    return ops.right_shift(bits, places) & (2 ** (32 - places) - 1)


def _draw(eligible, lots, most, wanted):
    """Of the eligible samples the `wanted` ones that have the greatest lots, or all if there are fewer.

    Args:
        eligible: bool [B, N]; lots: float32 [B, N], >= 0; wanted: int or [B, 1], no more than the int `most`.
    Returns:
        bool [B, N], and how many it is, int32 [B].
    """
    num_images, length = ops.shape(eligible)
    lots, places = ops.top_k(_at_least(most, ops.where(eligible, lots, -1.0), -1.0), most)
    drawn = ops.logical_and(lots >= 0, ops.arange(most, dtype="int32") < wanted)
    # Marked place by place, and not by the last lot drawn: two of a quarter of a million may well have the same.
    rows = length * ops.arange(num_images, dtype="int32")[:, None]
    places = rows + ops.where(drawn, ops.cast(places, "int32"), 0)
    drawn = ops.cast(drawn, "int32")
    marks = ops.scatter(ops.reshape(places, (-1, 1)), ops.reshape(drawn, (-1,)), (num_images * length,))
    return ops.reshape(marks > 0, (num_images, length)), ops.sum(drawn, axis=-1)


def _at_least(count, values, filling):
    """values [B, N] with `count` fillings behind them, so that there are always `count` greatest."""
    return ops.pad(values, [[0, 0], [0, count]], constant_values=filling)
