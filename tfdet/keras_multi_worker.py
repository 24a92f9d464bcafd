"""What `fit` and `predict` of Keras 3.15 lack under MultiWorkerMirroredStrategy; to be removed when they have it.

1. Before the first step `fit` builds the model from a batch, which it takes for tensors; here the batch is a value of
   each replica.
2. What a step says (loss and metrics) is reduced along an axis that scalars do not have.
3. `predict` gathers what it finds from all workers, after each batch. A worker that looks at images of its own has to
   be able to do so alone.
"""

import contextlib

import keras
from keras import ops

from tfdet.distribution import is_cluster


def prepare_for_workers(model):
    """Give a Keras model that was made in the scope of such a strategy what its `fit` and `evaluate` lack; leave others
    alone."""
    strategy = getattr(model, "distribute_strategy", None)
    if not is_cluster(strategy) or "_maybe_symbolic_build" in vars(model):
        return

    def build(iterator=None, data_batch=None):
        for _, _, batches in iterator or ():
            batch = next(batches)
            data_batch = keras.tree.map_structure(lambda part: strategy.experimental_local_results(part)[0], batch)
            break
        with strategy.scope():
            model._symbolic_build(data_batch=data_batch)
        model._maybe_symbolic_build = lambda **_: None  # once: a look at a batch takes it away from who comes later

    def with_an_axis(step):
        return lambda data: keras.tree.map_structure(lambda value: ops.reshape(value, [1]), step(data))

    model._maybe_symbolic_build = build
    model.train_step, model.test_step = with_an_axis(model.train_step), with_an_axis(model.test_step)


@contextlib.contextmanager
def alone(model):
    """Inside, `predict` of a model that was made in the scope of such a strategy computes in this process only."""
    strategy = getattr(model, "distribute_strategy", None)
    if not is_cluster(strategy):
        yield
        return
    model._distribute_strategy = None
    try:
        yield
    finally:
        model._distribute_strategy = strategy
