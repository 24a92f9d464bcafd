"""Non-maximum suppression: of boxes that mean the same object, keep the best.

A box is suppressed when its IoU with a better one is greater than the threshold (no "+1" pixels, as in torchvision).
Order is by falling score, and by rising index among equals. TensorFlow's own kernels do the work; they run on the CPU.
"""

import tensorflow as tf
from keras import ops


def nms(boxes, scores, iou_threshold, max_outputs=None):
    """Greedy NMS among boxes of one kind.

    Args:
        boxes: [N, 4] xyxy; scores: [N]; N = 0 is legal.
        max_outputs: stop after so many.
    Returns:
        int32 [K], indices of what is kept, best first.
    """
    boxes, scores = tf.cast(boxes, tf.float32), tf.cast(scores, tf.float32)
    # The kernel reads y1, x1, y2, x2, but IoU does not change when x and y are swapped.
    limit = tf.shape(boxes)[0] if max_outputs is None else max_outputs
    return tf.image.non_max_suppression(boxes, scores, limit, iou_threshold)


def batched_nms(boxes, scores, labels, iou_threshold, max_outputs=None):
    """Greedy NMS inside each label: boxes of different labels (classes, levels, images) never suppress each other.

    Args:
        boxes: [N, 4] xyxy; scores: [N]; labels: int [N].
    Returns:
        int32 [K], indices of what is kept, best first over all labels.
    """
    return nms(_apart(boxes, labels), scores, iou_threshold, max_outputs)


def soft_nms(boxes, scores, sigma=0.5, score_threshold=0.001, max_outputs=None):
    """Gaussian soft-NMS (Bodla et al. 2017): a box that overlaps a better one loses score instead of its life.

    Each kept box multiplies the scores of those after it by exp(-IoU^2 / sigma).

    Args:
        boxes: [N, 4] xyxy; scores: [N].
        score_threshold: what falls to it or below is dropped.
    Returns:
        int32 [K], indices of what is kept, and their new scores float32 [K], best first.
    """
    boxes, scores = tf.cast(boxes, tf.float32), tf.cast(scores, tf.float32)
    limit = tf.shape(boxes)[0] if max_outputs is None else max_outputs
    # TensorFlow's sigma is that of exp(-IoU^2 / (2 sigma)).
    return tf.image.non_max_suppression_with_scores(
        boxes, scores, limit, iou_threshold=1.0, score_threshold=score_threshold, soft_nms_sigma=sigma / 2
    )


def soft_merge(detections, max_detections, sigma=0.5, score_threshold=0.001):
    """What was found in the same images several times: soft-NMS inside each class of each image, then the best of all.

    Args:
        detections: list of what `padded` returns; their numbers are not needed, nor any order.
        max_detections: K.
        score_threshold: what has no better score, from the start or after all, is dropped.
    Returns:
        as `padded`.
    """
    names = [name for name in detections[0] if name != "num_detections"]
    columns = {name: tf.concat([found[name] for found in detections], axis=1) for name in names}

    def merge(found):
        boxes, scores, labels = found["boxes"], found["scores"], found["labels"]
        kept, scores = soft_nms(_apart(boxes, labels), scores, sigma, score_threshold, max_detections)
        missing = [[0, max_detections - tf.shape(kept)[0]]]
        kept, scores = (tf.ensure_shape(tf.pad(one, missing), [max_detections]) for one in (kept, scores))
        return {name: tf.gather(values, kept) for name, values in found.items()} | {"scores": scores}

    signature = {name: values.dtype for name, values in columns.items()}
    merged = tf.map_fn(merge, columns, fn_output_signature=signature)
    return padded(**merged, valid=merged["scores"] > 0)


def best_pairs(scores, count):
    """Of one level of a pyramid the best pairs of place (anchor or point) and class: all that NMS looks at.

    Args:
        scores: [B, N, C], of any scale that grows with the score.
        count: of the pairs; more where several are as good as the last.
    Returns:
        int [B, K], the places in which they are, K = min(count, N), and the scores of all their classes [B, K, C]; what
        is not among the best pairs is -inf.
    """
    # The best K pairs are among the classes of those K places whose best class is best.
    kept = ops.minimum(count, ops.shape(scores)[1])
    _, places = ops.top_k(ops.max(scores, axis=-1), kept)
    scores = ops.take_along_axis(scores, places[..., None], axis=1)
    pairs = ops.reshape(scores, (-1, kept * scores.shape[-1]))
    last = ops.top_k(pairs, ops.minimum(count, ops.shape(pairs)[1]))[0][:, -1]
    return places, ops.where(scores >= last[:, None, None], scores, float("-inf"))


def multiclass_nms(boxes, scores, iou_threshold, score_threshold, pre_nms, max_detections):
    """Greedy NMS inside each class of each image, then the best over all classes.

    Args:
        boxes: [B, N, 4] xyxy, shared by the classes, or [B, N, C, 4]; scores: [B, N, C]. B = 0 and N = 0 are legal.
        score_threshold: only scores above it count.
        pre_nms: per class, only so many of the best scores go into NMS.
        max_detections: K.
    Returns:
        {"boxes" float32 [B, K, 4], "scores" float32 [B, K], "labels" int32 [B, K], "num_detections" int32 [B]}, best
        first (among equals the kernel's order), padded with 0, 0 and -1.
    """
    boxes, scores = tf.cast(boxes, tf.float32), tf.cast(scores, tf.float32)
    shared = boxes.shape.rank == 3
    boxes = boxes[:, :, None, :] if shared else boxes
    pre_nms = tf.minimum(pre_nms, tf.shape(scores)[1])

    def suppress(boxes, scores):
        # One op for the batch, the fastest there is on a CPU; like nms() it does not mind that x and y are swapped.
        return tf.image.combined_non_max_suppression(
            boxes,
            scores,
            max_output_size_per_class=tf.maximum(tf.minimum(pre_nms, max_detections), 1),  # also where N = 0
            max_total_size=max_detections,
            iou_threshold=iou_threshold,
            score_threshold=score_threshold,
            clip_boxes=False,
        )

    def suppress_best():
        best, index = tf.math.top_k(tf.transpose(scores, [0, 2, 1]), pre_nms)  # [B, C, pre_nms]
        if shared:
            own_boxes = tf.gather(boxes[:, :, 0], index, batch_dims=1)
        else:
            own_boxes = tf.gather(tf.transpose(boxes, [0, 2, 1, 3]), index, batch_dims=2)
        return suppress(tf.transpose(own_boxes, [0, 2, 1, 3]), tf.transpose(best, [0, 2, 1]))

    # Sorting out the best is dear, and in a trained detector hardly ever is a class so crowded that it is needed.
    crowd = tf.reduce_max(tf.reduce_sum(tf.cast(scores > score_threshold, tf.int32), axis=1))
    boxes, scores, labels, count = tf.cond(crowd > pre_nms, suppress_best, lambda: suppress(boxes, scores))
    return padded(boxes, scores, tf.cast(labels, tf.int32), tf.range(max_detections)[None, :] < count[:, None])


def padded(boxes, scores, labels, valid, **others):
    """Boxes [B, K, 4], scores [B, K] and labels int32 [B, K], best first, as `multiclass_nms` returns them.

    Args:
        valid: bool [B, K], true for the first ones, which count, and false for the rest.
        others: [B, K, J, ...], what else is known of each.
    """
    return {
        "boxes": tf.where(valid[..., None], boxes, 0.0),
        "scores": tf.where(valid, scores, 0.0),
        "labels": tf.where(valid, labels, -1),
        "num_detections": tf.reduce_sum(tf.cast(valid, tf.int32), axis=1),
        **{name: tf.where(_like(valid, values), values, 0.0) for name, values in others.items()},
    }


def _like(valid, values):
    return tf.reshape(valid, tf.concat([tf.shape(valid), [1] * (len(values.shape) - 2)], axis=0))


def _apart(boxes, labels):
    """Boxes [N, 4], those of each label moved to a place of their own: boxes of two labels cannot overlap."""
    boxes = tf.cast(boxes, tf.float32)
    extent = tf.reduce_max(tf.concat([tf.reshape(tf.abs(boxes), [-1]), [0.0]], 0)) * 2 + 1
    return boxes + tf.cast(labels, tf.float32)[:, None] * extent
