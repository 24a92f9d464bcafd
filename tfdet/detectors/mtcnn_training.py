"""What MTCNN's networks learn (Zhang et al. 2016, II.B and II.C): three tasks, each from the crops that know of it.

    face        cross-entropy of negatives and positives; of the hardest 70 % in the batch alone, as those that the
                network knows already teach it nothing ("online hard sample mining")
    box         squared distance of positives and parts
    landmarks   squared distance of landmark crops

Each is a mean over the crops that take part, and they weigh 1, 0.5 and 0.5; O-Net's landmarks weigh 1.
"""

import keras
from keras import ops

from tfdet.data.mtcnn_samples import NAMES, NEGATIVE, POSITIVE

HARDEST = 0.7


def compile_network(network, optimizer):
    """Make one of MTCNN's networks ready for `fit` with what `face_crops.crop_batches` gives.

    Beside its losses it says how many crops of each kind it has seen in the epoch: `face_positives`, ...
    """
    network.compile(
        optimizer,
        loss={"face": hardest_cross_entropy, "box": squared_distance, "landmarks": squared_distance},
        loss_weights={"face": 1.0, "box": 0.5, "landmarks": 1.0 if network.name == "onet" else 0.5},
        metrics={"face": [Count(kind, name=name) for kind, name in NAMES.items()]},
    )


@keras.saving.register_keras_serializable("tfdet")
def hardest_cross_entropy(kind, logits):
    """-log p of the right answer for the hardest 70 % of negatives and positives, 0 for all other crops.

    Args:
        kind: int [B], see `mtcnn_samples`. logits: [B, 2] or [B, 1, 1, 2]: no face, face.
    Returns:
        float32 [B], so much larger that its mean is the mean over those that count.
    """
    kind, logits = ops.reshape(kind, (-1,)), ops.cast(ops.reshape(logits, (-1, 2)), "float32")
    taking_part = ops.logical_or(kind == NEGATIVE, kind == POSITIVE)
    costs = ops.sparse_categorical_crossentropy(ops.cast(kind == POSITIVE, "int32"), logits, from_logits=True)
    rank = ops.argsort(ops.argsort(ops.where(taking_part, -costs, float("inf"))))
    count = ops.floor(HARDEST * ops.sum(ops.cast(taking_part, "float32")))
    share = ops.cast(ops.shape(kind)[0], "float32") / ops.maximum(count, 1.0)
    return ops.where(ops.cast(rank, "float32") < count, costs * share, 0.0)


@keras.saving.register_keras_serializable("tfdet")
def squared_distance(targets, outputs):
    """Sum of squares of [B, n] less [B, n] or [B, 1, 1, n] -> float32 [B]."""
    outputs = ops.reshape(ops.cast(outputs, "float32"), ops.shape(targets))
    return ops.sum(ops.square(outputs - targets), axis=-1)


@keras.saving.register_keras_serializable("tfdet")
class Count(keras.metrics.Metric):
    """How many crops of a kind there were."""

    def __init__(self, kind, name, **kwargs):
        super().__init__(name=name, **kwargs)
        self.kind = kind
        self.count = self.add_weight(name="count", initializer="zeros")

    def update_state(self, kind, logits, sample_weight=None):
        self.count.assign_add(ops.sum(ops.cast(kind == self.kind, "float32")))

    def result(self):
        return self.count + 0.0  # and not the variable, which is set back before Keras reads what was returned

    def get_config(self):
        return {**super().get_config(), "kind": self.kind}
