"""Functions of keras.ops in the graph of tf.data, whatever backend Keras computes with."""

import keras
import tensorflow as tf
from keras import ops


def in_graph(function, *example):
    """Makes `function` one that tf.data can call.

    With Keras on TensorFlow it is that already. Otherwise the graph calls back into Python, where it runs on the CPU.

    Args:
        function: of keras.ops, from tensors to a tensor or {name: tensor}.
        example: arrays that it takes; what it makes of them shows the names, dtypes and ranks of its results.
    """
    if keras.backend.backend() == "tensorflow":
        return function

    def on_cpu(*arrays):
        with keras.device("cpu"):
            return tf.nest.map_structure(ops.convert_to_numpy, function(*arrays))

    form = on_cpu(*example)

    def call_back(*tensors):
        dtypes = [result.dtype for result in tf.nest.flatten(form)]
        results = tf.numpy_function(lambda *arrays: tf.nest.flatten(on_cpu(*arrays)), tensors, dtypes)
        for result, like in zip(results, tf.nest.flatten(form), strict=True):
            result.set_shape([None] * like.ndim)
        return tf.nest.pack_sequence_as(form, results)

    return call_back


def compiled(function):
    """`function`, compiled if Keras is on JAX: once for every shape. Eagerly JAX would compile loops at every call."""
    if keras.backend.backend() != "jax":
        return function
    import jax

    return jax.jit(function)
