"""Losses of single samples, in float32; who is summed and what it is divided by is each detector's own story."""

from keras import ops


def smooth_l1(target, prediction, beta=1.0):
    """0.5 x^2 / beta below `beta`, |x| - beta / 2 above, elementwise: shapes [...] -> [...] (Fast R-CNN, eq. 3)."""
    distance = ops.abs(ops.cast(prediction, "float32") - ops.cast(target, "float32"))
    return ops.where(distance < beta, 0.5 * distance * distance / beta, distance - 0.5 * beta)


def softmax_cross_entropy(labels, logits):
    """-log softmax(logits)[label]: labels int [...], logits [..., C] -> float32 [...]."""
    logits = ops.cast(logits, "float32")
    return ops.sparse_categorical_crossentropy(labels, logits, from_logits=True)
