"""Of the samples that the assigner called positive and negative, which enter the loss?"""

from keras import ops


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
