"""Sparse matrices times dense ones: what reads pixels at points between them is such a product.

TensorFlow computes it on all cores, and reads a pixel's channels as one run of memory. It has no XLA kernel.
"""

import tensorflow as tf


def matmul(indices, values, shape, dense, transposed=False):
    """A sparse matrix [R, Q], or its transpose, times a dense one; no gradient.

    The matrix is made here each time: a SavedModel takes no gradient, and no branch of tf.cond, that is handed one.

    Args:
        indices: int64 [E, 2], the row and the column of each entry, in order of rows; entries of one place are summed.
        values: float32 or float64 [E].
        shape: int64 [2], R and Q; 0 is legal.
        dense: [Q, C], or [R, C] if transposed; of the values' dtype.
    Returns: [R, C], or [Q, C] if transposed.
    """

    def product():
        matrix = tf.raw_ops.SparseTensorToCSRSparseMatrix(indices=indices, values=values, dense_shape=shape)
        if transposed:  # rather than transpose_a=True, for which every thread fills a table of its own
            matrix = tf.raw_ops.SparseMatrixTranspose(input=matrix, type=values.dtype)
        return tf.raw_ops.SparseMatrixMatMul(a=matrix, b=dense)

    # Without rows it would kill the process (TensorFlow 2.21); then the result has none either
    return tf.cond(shape[1 if transposed else 0] > 0, product, lambda: dense[:0])
