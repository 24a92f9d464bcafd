"""Training on several devices and on several machines: the little that neither Keras nor TensorFlow does of it.

A cluster is as many processes as there are workers. All run the same program; what they compute together (batches,
`gathered`) they all have to come to, in the same order.
"""

import contextlib
import functools
import os
import pickle
import re

import keras
import numpy as np
import tensorflow as tf

from tfdet.errors import TfdetError


@functools.cache
def strategy():
    """What this process trains with: MultiWorkerMirroredStrategy where it is one of a cluster's workers, else
    MirroredStrategy where it has several GPUs, else None, as with Keras on another backend.

    It is a worker where TF_CONFIG names several of them, or where Slurm's `srun` has started several tasks. TensorFlow
    has to hear of a cluster before it computes anything.

    Raises:
        TfdetError: TF_CONFIG cannot be used.
    """
    if keras.backend.backend() != "tensorflow":  # on JAX keras.distribution.DataParallel is the way
        return None
    if cluster := _cluster():
        return tf.distribute.MultiWorkerMirroredStrategy(cluster)
    return tf.distribute.MirroredStrategy() if len(tf.config.list_logical_devices("GPU")) > 1 else None


def strategy_scope():
    """`with strategy_scope():` builds a model for all devices that this process trains with (see `strategy`)."""
    return strategy().scope() if strategy() else contextlib.nullcontext()


def _cluster():
    """TensorFlow's resolver of the cluster that this process belongs to, or None."""
    if "TF_CONFIG" in os.environ:
        return _cluster_of_tf_config()
    return _cluster_of_slurm() if int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1 else None


def _cluster_of_tf_config():
    try:
        cluster = tf.distribute.cluster_resolver.TFConfigClusterResolver()
        addresses, kind, number = cluster.cluster_spec().as_dict(), cluster.task_type, cluster.task_id
    except (ValueError, TypeError, AttributeError) as error:
        raise TfdetError(f"TF_CONFIG cannot be read: {error}") from error
    if others := ", ".join(sorted(set(addresses) - {"chief", "worker"})):
        raise TfdetError(f"TF_CONFIG: a cluster of tfdet has a chief and workers, no {others}")
    if addresses and number not in range(len(addresses.get(kind, ()))):
        raise TfdetError(f"TF_CONFIG: its cluster has no task {number} of the type {kind}")
    return cluster if sum(map(len, addresses.values())) > 1 else None


def _cluster_of_slurm():
    # Of TensorFlow's resolver the addresses alone are used: it deals out the GPUs of a machine, which Slurm has done
    # already, cannot do so where there are none, and sorts node10 before node2.
    resolvers = tf.distribute.cluster_resolver
    slurm = resolvers.SlurmClusterResolver(gpus_per_node=MOST_TASKS, gpus_per_task=1, auto_set_gpu=False)
    addresses = sorted(slurm.cluster_spec().as_dict()["worker"], key=_with_numbers)
    return resolvers.SimpleClusterResolver(
        tf.train.ClusterSpec({"worker": addresses}),
        task_type="worker",
        task_id=int(os.environ["SLURM_PROCID"]),
        num_accelerators={"GPU": len(tf.config.list_physical_devices("GPU"))},
        rpc_layer="grpc",
    )


MOST_TASKS = 1000  # on a machine


def _with_numbers(address):
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", address)]


def is_cluster(strategy):
    """Whether it trains with several processes."""
    return num_workers(strategy) > 1


def num_workers(strategy):
    """How many processes train by it together."""
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return 1
    return max(1, sum(map(len, strategy.cluster_resolver.cluster_spec().as_dict().values())))


def is_chief():
    """Whether this process writes for all: it is the cluster's chief, or else its first worker, or alone."""
    return not is_cluster(strategy()) or worker_number() == 0


def worker_number():
    """Which of the cluster's processes this is, counted from the chief, which is 0."""
    cluster = strategy().cluster_resolver
    chiefs = len(cluster.cluster_spec().as_dict().get("chief", ()))
    return cluster.task_id + (chiefs if cluster.task_type == "worker" else 0)


def gathered(value):
    """What every worker has called this with, in their order; [value] where there is no cluster.

    value: anything that can be pickled.
    """
    if not is_cluster(strategy()):
        return [value]
    data = pickle.dumps(value)
    words = np.frombuffer(data + bytes(-len(data) % 4), np.int32)  # collective operations know no bytes
    lengths = _gathered(np.array([len(words)], np.int32))
    return [pickle.loads(part.tobytes()) for part in np.split(_gathered(words), np.cumsum(lengths)[:-1])]


def _gathered(array):
    """The arrays [N] of all workers, one behind the other; N may differ."""

    def of_replica(context):
        first = context.replica_id_in_sync_group % (context.num_replicas_in_sync // num_workers(strategy())) == 0
        return tf.constant(array if first else array[:0])

    values = strategy().experimental_distribute_values_from_function(of_replica)
    return strategy().gather(values, axis=0).numpy()


def from_chief(value):
    """The chief's."""
    return gathered(value)[0]


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
