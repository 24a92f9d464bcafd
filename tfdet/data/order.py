"""Which image is read when in training, and by which worker: told from numbers alone, before anything is decoded."""

import tensorflow as tf


def random_order(count, batch_size, seed, start_step=0, worker=0, workers=1):
    """The numbers of images in another order in each epoch, and for each the seed of what is drawn for it by lot.

    Both follow from `seed`, the epoch and the place in it, and from nothing that was read before: so a run can go on
    anywhere at no cost, and each of several workers knows its part of every batch, which is the same batch however many
    they are. What is left over at the end of an epoch and fills no batch is left out.

    Args:
        count: of images. batch_size: images of a step, of all workers together.
        start_step: where the endless stream starts; None for one epoch, another one each time it is iterated over.
        worker, workers: the stream holds the worker-th of so many equal parts of each batch.
    Returns:
        tf.data.Dataset of (number, seed), both int64.
    """
    draw = drawn(count, batch_size, seed, worker, workers)
    return turns(count, batch_size, seed, start_step, workers).map(draw, tf.data.AUTOTUNE)


def turns(count, batch_size, seed, start_step=0, workers=1):
    """Which turns `random_order` takes, a tf.data.Dataset of numbers: counted from 0, the first one of the first epoch,
    through all epochs."""
    own = batch_size // workers
    per_epoch = count // batch_size * own
    if start_step is None:
        epochs = tf.data.Dataset.random(seed=seed, rerandomize_each_iteration=True).take(1)
        one = epochs.flat_map(lambda epoch: tf.data.Dataset.range(epoch * per_epoch, (epoch + 1) * per_epoch))
        return one.apply(tf.data.experimental.assert_cardinality(per_epoch))  # or Keras warns at its end
    return tf.data.Dataset.range(start_step * own, tf.int64.max)


def drawn(count, batch_size, seed, worker=0, workers=1):
    """A function: a turn, a scalar int64 tensor -> what `random_order` draws for it, (number, seed)."""
    own = batch_size // workers
    per_epoch = count // batch_size * own
    last = tf.constant(count - 1, tf.int64)

    def draw(turn):
        epoch, turn = turn // per_epoch, turn % per_epoch
        place = turn // own * batch_size + worker * own + turn % own
        key = tf.stack([tf.constant(seed, tf.int64), epoch])
        # tf.random.experimental.index_shuffle stirs in 4 rounds, after which two epochs still resemble each other.
        number = tf.raw_ops.RandomIndexShuffle(index=place, seed=tf.concat([key, [0]], 0), max_index=last, rounds=16)
        key = tf.random.experimental.stateless_fold_in(key, place)
        return number, tf.random.stateless_uniform([], key, 0, tf.int64.max, tf.int64)

    return draw
