"""Training on several devices and on several machines: the little that neither Keras nor TensorFlow does of it.

A cluster is as many processes as there are workers. All run the same program; what they compute together (batches,
`gathered`) they all have to come to, in the same order.
"""

import contextlib
import faulthandler
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
        return _with_all_workers(cluster)
    return tf.distribute.MirroredStrategy() if len(tf.config.list_logical_devices("GPU")) > 1 else None


def _with_all_workers(cluster):
    me, others = f"{cluster.task_type} {cluster.task_id}", cluster.cluster_spec().as_dict()
    print(f"{me} waits for the others of {others}, {PATIENCE} s at most", flush=True)
    # TensorFlow would wait for an hour, and Python stands still meanwhile: this ends the program from outside of both.
    faulthandler.dump_traceback_later(PATIENCE, exit=True)
    try:
        return tf.distribute.MultiWorkerMirroredStrategy(cluster)
    finally:
        faulthandler.cancel_dump_traceback_later()


PATIENCE = 600


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


def num_workers(among):
    """How many processes train together by that strategy."""
    if not isinstance(among, tf.distribute.MultiWorkerMirroredStrategy):
        return 1
    return max(1, sum(map(len, among.cluster_resolver.cluster_spec().as_dict().values())))


def is_cluster(among):
    """Whether that strategy trains with several processes."""
    return num_workers(among) > 1


def worker_number(among):
    """Which of that strategy's processes this one is, counted from the chief, which is 0."""
    if not is_cluster(among):
        return 0
    cluster = among.cluster_resolver
    chiefs = len(cluster.cluster_spec().as_dict().get("chief", ()))
    return cluster.task_id + (chiefs if cluster.task_type == "worker" else 0)


def is_chief():
    """Whether this process writes what comes of a run: of a cluster's the chief does, or else the first worker."""
    return worker_number(strategy()) == 0


def shared_batches(batches, batch_size, among):
    """Batches for `fit`; in a cluster each worker's are its part of every batch.

    Args:
        batches: function (number of this worker, number of workers, size of a replica's batch) -> tf.data.Dataset.
        batch_size: over all replicas of all workers. among: the strategy by which the model was made, or None.
    Raises:
        ValueError: the replicas cannot share a batch equally.
    """
    if not is_cluster(among):
        return batches(0, 1, batch_size)
    return among.distribute_datasets_from_function(
        lambda context: batches(
            context.input_pipeline_id, context.num_input_pipelines, context.get_per_replica_batch_size(batch_size)
        )
    )


def gathered(value, among=None):
    """What every worker has called this with, in their order; of a single process [value].

    value: anything that can be pickled. among: the strategy by which they train together; this process' own.
    """
    among = among or strategy()
    if not is_cluster(among):
        return [value]
    data = pickle.dumps(value)
    words = np.frombuffer(data + bytes(-len(data) % 4), np.int32)  # collective operations know no bytes
    lengths = _joined(np.array([len(words)], np.int32), among)
    return [pickle.loads(part.tobytes()) for part in np.split(_joined(words, among), np.cumsum(lengths)[:-1])]


def dealt_out(items, work, among=None):
    """work(items) -> a list of as much, done by all workers together: each does every so-many-th item."""
    number, workers = worker_number(among or strategy()), num_workers(among or strategy())
    parts = gathered(work(items[number::workers]), among)
    return [parts[i % workers][i // workers] for i in range(len(items))]


def _joined(array, among):
    """The arrays [N] of all workers, one behind the other; N may differ."""
    replicas = among.num_replicas_in_sync // num_workers(among)  # of a worker; its first one has the array

    def of_replica(context):
        return tf.constant(array if context.replica_id_in_sync_group % replicas == 0 else array[:0])

    return among.gather(among.experimental_distribute_values_from_function(of_replica), axis=0).numpy()


def from_chief(value):
    """What the chief has called this with. It waits for all workers: what the chief wrote before is there for them."""
    return gathered(value)[0]


@contextlib.contextmanager
def one_of_several():
    """Around a run: the chief alone says what it does, and if another worker is lost, this one ends in one line.

    Raises:
        TfdetError: a worker cannot be reached any more. TensorFlow knows at once where a process has ended, and after
            some seconds without a sign of life.
    """
    if not is_cluster(strategy()):
        yield
        return
    number, workers = worker_number(strategy()), num_workers(strategy())
    try:
        with contextlib.ExitStack() as stack:
            if not is_chief():
                stack.enter_context(contextlib.redirect_stdout(stack.enter_context(open(os.devnull, "w"))))
            yield
            from_chief(None)  # who ends before the others is taken for lost
    except LOST as error:
        tasks = re.findall(r"/job:(\w+)/(?:replica:0/)?task:(\d+)", error.message)
        cluster = strategy().cluster_resolver
        others = [
            (kind, int(task)) for kind, task in tasks if (kind, int(task)) != (cluster.task_type, cluster.task_id)
        ]
        lost = f"{others[0][0]} {others[0][1]}" if others else "another worker"
        raise TfdetError(
            f"{lost} of the cluster is gone, so worker {number} of {workers} stops, too; the same command, started "
            "again on all of them, goes on from the last checkpoint"
        ) from error


LOST = (  # what collective operations end with when one of the workers does not answer
    tf.errors.UnavailableError,
    tf.errors.DeadlineExceededError,
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.FailedPreconditionError,
)


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
