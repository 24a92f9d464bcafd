"""The little that training on several devices needs beyond what Keras does by itself."""

import contextlib

import keras
import tensorflow as tf


def strategy_scope():
    """`with strategy_scope():` builds a model for all GPUs of the machine (MirroredStrategy), or for its one device.

    With Keras on another backend it does nothing: on JAX `keras.distribution.DataParallel` is the way.
    """
    if keras.backend.backend() == "tensorflow" and len(tf.config.list_logical_devices("GPU")) > 1:
        return tf.distribute.MirroredStrategy().scope()
    return contextlib.nullcontext()


def num_replicas():
    """How many replicas share a batch where this is called (1 outside tf.distribute)."""
    return tf.distribute.get_strategy().num_replicas_in_sync if keras.backend.backend() == "tensorflow" else 1


def sum_over_replicas(value):
    """The sum of a scalar over all replicas, for a normaliser such as the number of positives.

    Keras adds the gradients of the replicas up. Each replica must therefore divide by the count of the whole batch:
    divided by its own, two replicas would take twice the step.
    """
    if num_replicas() == 1:
        return value
    context = tf.distribute.get_replica_context()
    # There is no replica while Keras builds a model symbolically, nor in cross-replica context.
    return value if context is None else context.all_reduce(tf.distribute.ReduceOp.SUM, value)
