"""tf.data service: other processes, on this machine or others, decode and augment; the batches stay what they are.

A dispatcher deals out the turns of a stream one by one, to whichever worker is free: so a slow worker takes fewer of
them, and slows nobody else. What a worker has taken nobody else is given, and what a worker that died had taken never
comes. Hence this process, which knows the turns, puts what comes back into their order, and computes itself what is
missing when `WINDOW` later ones have come: every batch is, bit for bit, the one that it is without a service.

    python -m tfdet data-service dispatcher --port 5050
    python -m tfdet data-service worker --dispatcher grpc://HOST:5050
"""

import contextlib
import os
import queue
import re
import signal
import socket
import threading
import time

import grpc
import tensorflow as tf

from tfdet.errors import TfdetError, one_line

WINDOW = 256  # images that wait here for an earlier one before that is given up
QUIET = 10  # seconds without any image after which those that are missing are given up
DEAD = 60  # seconds without any image after which the run is
CONNECT = 30  # seconds to wait for a dispatcher
TELL = 60  # seconds between two lines about missing images
NAMED = 10  # images in such a line
MOST_BYTES = 2**31 - 2**26  # of a graph: protobuf's, and room for boxes


def mapped(address, numbers, function, name_of):
    """As `numbers.map(function)`, but the workers of a service compute it.

    Args:
        address: of the dispatcher, "grpc://HOST:PORT".
        numbers: tf.data.Dataset of int64 scalars, each one more than the one before, of known
            cardinality or endless.
        function: from such a number to tensors; its graph is sent to the workers.
        name_of: function (number) -> what its image is called, in the line that says what was missing.
    Returns:
        tf.data.Dataset. Where it is iterated over, a worker's error is one that `raise_failure` knows.
    Raises:
        TfdetError: no dispatcher answers there, or the graph is too large to be sent.
    """
    find_dispatcher(address)
    here = tf.function(function, input_signature=[tf.TensorSpec([], tf.int64)], autograph=False)
    _check_size(here.get_concrete_function().captured_inputs)
    spec, count = tf.data.Dataset.range(0).map(here).element_spec, int(numbers.cardinality())

    def examples():
        first = int(next(iter(numbers)))
        stop = tf.int64.max if count == tf.data.INFINITE_CARDINALITY else first + count
        # Splits of a range are what a dispatcher deals out.
        dealt = tf.data.Dataset.range(first, stop)
        numbered = dealt.map(lambda number: (number, here(number)), tf.data.AUTOTUNE, deterministic=False)
        with _arrivals(_distributed(numbered, address)) as arrivals, _Missing(name_of) as missing:
            yield from _in_order(first, stop, arrivals, here, missing)

    examples = tf.data.Dataset.from_generator(examples, output_signature=spec)
    return examples.apply(tf.data.experimental.assert_cardinality(count))


def _distributed(examples, address):
    service = tf.data.experimental.service
    # Pixels hardly become fewer by compression, and it costs more than it saves.
    return examples.apply(service.distribute(service.ShardingPolicy.DYNAMIC, address, compression=None))


def _check_size(tensors):
    """TensorFlow would end the process."""
    texts = [tensor for tensor in tensors if tensor.dtype == tf.string]
    size = sum(int(tf.reduce_sum(tf.strings.length(text), keepdims=False)) for text in texts)
    if size >= MOST_BYTES:
        raise TfdetError(f"data service: {size / 1e9:.1f} GB of images and paths; what it is sent is less than 2 GB")


END = object()  # comes after the last


@contextlib.contextmanager
def _arrivals(examples):
    """A queue of what comes, (number, example), until `END` or an error; unlike tf.data's it can be waited for a
    while."""
    arrivals, left = queue.Queue(2), threading.Event()

    def pass_on():
        try:
            with tf.device("CPU:0"):
                for number, example in examples:
                    arrivals.put((int(number), example))
                    if left.is_set():
                        return
            arrivals.put(END)
        except tf.errors.OpError as error:
            arrivals.put(error.with_traceback(None))  # which would keep the iterator, and that a worker waiting

    threading.Thread(target=pass_on, daemon=True).start()
    try:
        yield arrivals
    finally:
        left.set()
        with contextlib.suppress(queue.Empty):
            arrivals.get_nowait()  # there may be no room for the one that it is about to pass on


def _in_order(first, stop, arrivals, here, missing):
    """The examples first .. stop - 1, each once: what comes, or else what is computed `here`."""
    held, silence = {}, 0

    def give_up(until):
        numbers = [number for number in range(turn, until) if number not in held]
        missing.add(numbers)
        with tf.device("CPU:0"):
            # Called at once, and not by tf.data, it would be optimised in another way and differ in the last bits.
            slices = tf.data.Dataset.from_tensor_slices(tf.constant(numbers, tf.int64))
            held.update(zip(numbers, slices.map(here, tf.data.AUTOTUNE), strict=True))

    for turn in range(first, stop):
        while turn not in held:
            if len(held) >= WINDOW:
                give_up(sorted(held)[WINDOW // 2])
                continue
            try:
                arrived, silence = arrivals.get(timeout=QUIET), 0
            except queue.Empty:
                arrived, silence = None, silence + QUIET
            match arrived:
                case number, example:
                    if number >= turn:  # else it was given up
                        held.setdefault(number, example)
                case tf.errors.NotFoundError():
                    raise TfdetError(f"data service: {_reason(arrived)}; workers have to see the same files")
                case tf.errors.OpError():
                    raise arrived
                case _ if arrived is END or stop - turn <= WINDOW:
                    give_up(stop)
                case _ if held:
                    give_up(max(held))
                case _ if silence >= DEAD:
                    raise TfdetError(f"data service: no image for {DEAD} seconds: no worker that can be reached?")
        yield held.pop(turn)


class _Missing:
    """Says which images never came, or too late: at once, then once in a while, and at the end."""

    def __init__(self, name_of):
        self.name_of, self.names, self.said = name_of, [], -TELL

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.say()

    def add(self, numbers):
        self.names += map(self.name_of, numbers)
        if time.monotonic() - self.said >= TELL:
            self.say()

    def say(self):
        if self.names:
            others = f" and {len(self.names) - NAMED} others" if len(self.names) > NAMED else ""
            names = one_line(", ".join(map(str, self.names[:NAMED])))
            print(
                f"data service: {len(self.names)} images did not come, and are read here: {names}{others}", flush=True
            )
            self.names, self.said = [], time.monotonic()


def raise_failure(error):
    """Raises the TfdetError that ended a dataset of `mapped`, if it is what TensorFlow's error tells of."""
    if found := re.search(r"TfdetError: (.*)", error.message):
        raise TfdetError(found[1]) from error


def _reason(error):
    """The first line of a worker's error, without the names of ops."""
    return re.sub(r"\{\{.*?\}\}|\[Op:.*", "", str(error)).strip().splitlines()[0]


def find_dispatcher(address):
    """Waits for a dispatcher; gives its HOST:PORT.

    Raises:
        TfdetError: no grpc://HOST:PORT, or nobody answers there as a dispatcher does.
    """
    found = re.fullmatch(r"grpc://(.+:\d+)", address)
    if not found:
        raise TfdetError(f"data service: {address}: expected grpc://HOST:PORT")
    with grpc.insecure_channel(found[1]) as channel:
        ask = channel.unary_unary("/tensorflow.data.DispatcherService/GetVersion")
        try:
            ask(b"", timeout=CONNECT, wait_for_ready=True)
        except grpc.RpcError as error:
            late = error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            reason = f"no answer within {CONNECT} seconds" if late else error.details()
            raise TfdetError(f"data service: {address}: no dispatcher there: {reason}") from error
    return found[1]


def run_dispatcher(port, work_dir=None):
    """Deals out turns until the process is told to end.

    Args:
        port: to listen at; 0 takes any.
        work_dir: folder; a dispatcher that is started with it again goes on where the one before was cut off.
    Raises:
        TfdetError: the port is taken, or the folder cannot be written.
    """
    _check_port(port)
    config = tf.data.experimental.service.DispatcherConfig(
        port=port, work_dir=work_dir, fault_tolerant_mode=work_dir is not None
    )
    server = _started(tf.data.experimental.service.DispatchServer, config)
    _serve("dispatcher", server.target)


def run_worker(dispatcher, port=0, address=None):
    """Decodes and augments until the process is told to end.

    Args:
        dispatcher: its address, grpc://HOST:PORT.
        port: to listen at; 0 takes any.
        address: name or number of this machine as trainers reach it; by default the one it has towards the dispatcher.
    Raises:
        TfdetError: the port is taken, or no dispatcher answers.
    """
    host_and_port = find_dispatcher(dispatcher)
    _check_port(port)
    address = address or _own_address(host_and_port)
    config = tf.data.experimental.service.WorkerConfig(host_and_port, f"{address}:%port%", port)
    server = _started(tf.data.experimental.service.WorkerServer, config)
    _serve(f"worker of {dispatcher}", f"grpc://{address}:{server._address.rpartition(':')[2]}")


def _check_port(port):
    # gRPC would share a port with whoever has it.
    try:
        with socket.create_server(("", port)):
            pass
    except (OSError, OverflowError) as error:
        raise TfdetError(f"data service: port {port} cannot be used: {error}") from error


def _own_address(host_and_port):
    """This machine's, as it is seen from there."""
    host, _, port = host_and_port.rpartition(":")
    with socket.create_connection((host.strip("[]"), int(port))) as connection:
        address = connection.getsockname()[0]
    return f"[{address}]" if ":" in address else address


def _started(server, config):
    try:
        return server(config)
    except (tf.errors.OpError, RuntimeError) as error:
        raise TfdetError(f"data service: {_reason(error)}") from error


def _serve(role, address):
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    print(f"data service: {role}: ready at {address}", flush=True)
    ended.wait()
    try:
        print(f"data service: {role}: ended", flush=True)
    finally:  # also where nobody reads that any more
        os._exit(0)  # TensorFlow's way waits for whoever still reads from a worker
