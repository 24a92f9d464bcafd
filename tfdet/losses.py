"""Losses of single samples, in float32; who is summed and what it is divided by is each detector's own story."""

from keras import ops


def smooth_l1(target, prediction, beta=1.0):
    """0.5 x^2 / beta below `beta`, |x| - beta / 2 above, elementwise: shapes [...] -> [...] (Fast R-CNN, eq. 3)."""
    distance = ops.abs(ops.cast(prediction, "float32") - ops.cast(target, "float32"))
    return ops.where(distance < beta, 0.5 * distance * distance / beta, distance - 0.5 * beta)


def iou_loss(target, prediction):
    """-log IoU of two boxes that hold one point, given as its distances to their sides: [..., 4] twice -> [...].

    Left, top, right, bottom, none of them negative (UnitBox's loss; FCOS, eq. 2). The released code (tianzhi0549/FCOS,
    layers/iou_loss.py) adds 1 to intersection and union, and so does this: in pixels it does little, in strides much.
    """
    intersection, union, _ = _areas_around_a_point(target, prediction)
    return -ops.log((intersection + 1) / (union + 1))


def giou_loss(target, prediction):
    """1 - generalised IoU (Rezatofighi et al. 2019), otherwise as `iou_loss`; the 1 is added in the IoU alone."""
    intersection, union, enclosing = _areas_around_a_point(target, prediction)
    enclosing = enclosing + 1e-7
    return 1 - (intersection + 1) / (union + 1) + (enclosing - union) / enclosing


def _areas_around_a_point(target, prediction):
    """Areas of the intersection, of the union and of the smallest box around both."""
    target, prediction = ops.cast(target, "float32"), ops.cast(prediction, "float32")
    both, either = ops.minimum(target, prediction), ops.maximum(target, prediction)
    intersection = _area(both)
    return intersection, _area(target) + _area(prediction) - intersection, _area(either)


def _area(distances):
    left, top, right, bottom = ops.unstack(distances, 4, axis=-1)
    return (left + right) * (top + bottom)


def softmax_cross_entropy(labels, logits):
    """-log softmax(logits)[label]: labels int [...], logits [..., C] -> float32 [...]."""
    logits = ops.cast(logits, "float32")
    return ops.sparse_categorical_crossentropy(labels, logits, from_logits=True)


def sigmoid_cross_entropy(targets, logits):
    """-log of the probability that sigmoid(logit) gives a target of 0 or 1, elementwise: [...] -> float32 [...]."""
    logits, targets = ops.cast(logits, "float32"), ops.cast(targets, "float32")
    return ops.softplus(logits) - targets * logits


def sigmoid_focal(labels, logits, alpha=0.25, gamma=2.0):
    """Focal loss of a sample with a binary classifier for each class, summed over the classes (RetinaNet, eq. 5).

    FL(p) = -alpha (1 - p)^gamma log(p) for the sample's own class, -(1 - alpha) p^gamma log(1 - p) for all others.

    Args:
        labels: int [...], 0 .. C-1; a negative label is background: no class is its own.
        logits: [..., C].
    Returns:
        float32 [...].
    """
    logits = ops.cast(logits, "float32")
    # No one-hot targets of the size of the logits: all classes cost what others cost, then each own class is put right.
    cost = (1 - alpha) * ops.sum(_modulated(logits, gamma), axis=-1)
    own = ops.take_along_axis(logits, ops.maximum(labels, 0)[..., None], axis=-1)[..., 0]
    own_cost, other_cost = alpha * _modulated(-own, gamma), (1 - alpha) * _modulated(own, gamma)
    return cost + ops.where(labels >= 0, own_cost - other_cost, 0.0)


def heatmap_focal(targets, logits):
    """Focal loss of a heatmap, which forgives what is near a point (CornerNet, eq. 1; CenterNet, eq. 1); elementwise.

    -(1 - p)^2 log(p) where the target y is 1, and -(1 - y)^4 p^2 log(1 - p) everywhere else.

    The released codes hold p inside [1e-4, 1 - 1e-4], where its slope is 0; from logits nothing needs to be held.

    Args:
        targets: [...] in [0, 1]; exactly 1 in the cell of a point. logits: [...].
    Returns:
        float32 [...].
    """
    targets, logits = ops.cast(targets, "float32"), ops.cast(logits, "float32")
    point = ops.cast(targets == 1, "float32")
    against = logits * (1 - 2 * point)  # the logit of what should not be
    # Squares of squares: a power takes longer than all the rest.
    weight = ops.square(1 - targets) + point
    return ops.square(weight * ops.sigmoid(against)) * ops.softplus(against)


def pull_and_push(first, second, valid):
    """Embeddings of both corners of an object should be alike, unlike those of other objects (CornerNet, eq. 4 and 5).

    Pull: the squares of how far both are from their mean, the mean over the objects. Push: max(0, 1 - distance) of the
    means of two objects, the mean over all ordered pairs.

    As in the released code the denominators are larger by 1e-4, and an object takes part in pairs with itself, of which
    a constant is subtracted; for an image with one object that leaves a push of 0.9999, without a slope.

    Args:
        first, second: [B, M], one embedding a corner.
        valid: [B, M], 1 or true where there is an object.
    Returns:
        pull and push of each image, float32 [B] each.
    """
    first, second, valid = (ops.cast(values, "float32") for values in (first, second, valid))
    count = ops.sum(valid, axis=1)
    mean = (first + second) / 2
    pull = ops.sum(valid * (ops.square(first - mean) + ops.square(second - mean)), axis=1) / (count + 1e-4)
    closeness = ops.relu(1 - ops.abs(mean[:, :, None] - mean[:, None, :])) - 1 / (count + 1e-4)[:, None, None]
    pairs = valid[:, :, None] * valid[:, None, :]
    return pull, ops.sum(pairs * closeness, axis=(1, 2)) / (count * (count - 1) + 1e-4)


def _modulated(logits, gamma):
    """p^gamma * -log(1 - p) of p = sigmoid(logit)."""
    cost = ops.softplus(logits)
    return ops.exp(gamma * (logits - cost)) * cost  # log p = logit - softplus; p ** gamma has no slope at p = 0
