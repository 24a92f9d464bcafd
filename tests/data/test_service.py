import dataclasses
import os
import queue
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

import tfdet
from tfdet.__main__ import main
from tfdet.data import pipeline, service
from tfdet.errors import DataError, TfdetError

SERVICE = """
import threading
import tensorflow as tf

servers = tf.data.experimental.service
dispatcher = servers.DispatchServer(servers.DispatcherConfig(port=0))
config = servers.WorkerConfig(dispatcher.target.removeprefix("grpc://"), "localhost:%port%")
workers = [servers.WorkerServer(config) for _ in range(2)]
print(dispatcher.target, flush=True)
threading.Event().wait()
"""


@pytest.fixture(scope="module")
def address():
    """That of a service of two workers, all in one process."""
    with subprocess.Popen([sys.executable, "-c", SERVICE], stdout=subprocess.PIPE, text=True) as process:
        yield process.stdout.readline().strip()
        process.kill()


@pytest.fixture(scope="module")
def nine(make_dataset):
    """Nine images of several sizes."""
    return make_dataset(
        *((30 + 5 * n, 80 - 5 * n, [(5, 5, 25, 30), (8, 10, 20, 20)][: n % 3], [0, 1][: n % 3]) for n in range(9))
    )


@pytest.fixture(scope="module")
def detector(small):
    return small[0]


def arrays(batches):
    return [tf.nest.map_structure(lambda tensor: tensor.numpy(), batch) for batch in batches]


def assert_same(batches, others):
    tf.nest.map_structure(np.testing.assert_array_equal, arrays(batches), arrays(others))


def losing(monkeypatch, is_lost):
    """From now on workers lose what they have taken where is_lost(number)."""
    distributed = service._distributed

    def lossy(examples, address):
        return distributed(examples.filter(lambda number, _: ~is_lost(number)), address)

    monkeypatch.setattr(service, "_distributed", lossy)


# --- the same batches ---


@pytest.mark.parametrize("start_step", [0, 5, None])
def test_batches_are_those_without_a_service(nine, detector, address, start_step):
    plain, served = (
        pipeline.training_batches(nine, detector, 4, seed=3, start_step=start_step, service=where)
        for where in (None, address)
    )
    for _ in range(2):  # two epochs where there is no start_step
        assert_same(plain.take(5), served.take(5))
    assert served.element_spec == plain.element_spec
    assert served.cardinality() == plain.cardinality()


def test_each_of_several_trainers_has_its_part(nine, detector, address):
    """As in a cluster, whose strategy asks for the parts."""
    whole = arrays(pipeline.training_batches(nine, detector, 4, start_step=0).take(2))
    order = pipeline.turns(len(nine), 4, 0, 0, workers=2)
    for worker in range(2):
        draw = pipeline.drawn(len(nine), 4, 0, worker, workers=2)
        part = service.mapped(address, order, draw, str)
        expected = list(tfdet.data.order.random_order(len(nine), 4, 0, 0, worker, 2).take(4))
        assert_same(part.take(4), expected)
    assert len(whole) == 2


def test_detections_are_those_without_a_service(nine, detector, address):
    plain, served = (tfdet.detect(detector, nine, 4, service=where) for where in (None, address))
    assert [one.image_id for one in served] == [example.image_id for example in nine.examples]
    for one, other in zip(plain, served, strict=True):
        for ours, theirs in zip(one[1:], other[1:], strict=True):
            np.testing.assert_array_equal(ours, theirs)


# --- what is lost ---


def test_what_a_worker_loses_in_training_is_read_here_and_said(nine, detector, address, monkeypatch, capsys):
    plain = arrays(pipeline.training_batches(nine, detector, 4, seed=3, start_step=0).take(6))
    losing(monkeypatch, lambda number: (number == 0) | (number == 6) | (number == 7))
    monkeypatch.setattr(service, "WINDOW", 64)  # many times what comes out of order without any loss
    served = pipeline.training_batches(nine, detector, 4, seed=3, start_step=0, service=address)
    iterator = iter(served)
    tf.nest.map_structure(np.testing.assert_array_equal, plain, arrays(next(iterator) for _ in range(6)))
    del iterator
    order = [int(number) for number, _ in tfdet.data.order.random_order(9, 4, 3).take(8)]
    names = ", ".join(f"image {order[turn]}" for turn in (0, 6, 7))
    assert capsys.readouterr().out == f"data service: 3 images did not come, and are read here: {names}\n"


def test_what_a_worker_loses_in_evaluation_is_read_here_and_said(nine, detector, address, monkeypatch, capsys):
    plain = tfdet.detect(detector, nine)
    losing(monkeypatch, lambda number: (number == 2) | (number == 8))
    served = tfdet.detect(detector, nine, service=address)
    for one, other in zip(plain, served, strict=True):
        np.testing.assert_array_equal(one.boxes, other.boxes)
    assert capsys.readouterr().out == "data service: 2 images did not come, and are read here: image 2, image 8\n"


class Arrivals:
    """Like a queue, of what comes in that order; None: nothing for a while; behind it nothing comes any more."""

    def __init__(self, *arrivals):
        self.arrivals = iter(arrivals)

    def get(self, timeout):
        arrived = next(self.arrivals, None)
        if arrived is None:
            raise queue.Empty
        return arrived if not isinstance(arrived, int) else (arrived, 10 * arrived)


END = service.END


@pytest.mark.parametrize(
    ("stop", "arrivals", "here"),
    [
        (3, [0, 1, 2, END], []),
        (3, [2, 0, 1, END], []),
        (3, [0, END], [1, 2]),
        (3, [END], [0, 1, 2]),
        (3, [1, END], [0, 2]),
        (9, [1, 2, 3, 4, 0, 5, 6, 7, 8, END], [0]),  # 0 comes too late, when four wait for it
        (9, [1, 2, 3, 0, 4, 5, 6, 7, 8, END], []),
        # Not 4, which is no older than what comes now.
        (9, [1, 2, 3, 5, 4, 6, 7, 8, END], [0]),
        (9, [2, 3, 4, 8, 5, 6, 7, END], [0, 1]),
        (9, [0, 1, 2, 4, None, 5, 6, 7, 8, END], [3]),  # silence
        (9, [0, None, 1, 2, 3, 4, 5, 6, 7, 8, END], []),  # who knows what is on its way
        (9, [0, 1, 2, 3, 4, 5], [6, 7, 8]),  # but here it can only be the end
        (6, [0, 1, 1, 2, 2, 3, 4, 5, END], []),
        (6, [0, 1, 2, 3, 0, 1, 2, 3, 5, 4, END], []),  # what comes twice does not fill the window
    ],
)
def test_the_order_of_turns_is_restored(monkeypatch, stop, arrivals, here):
    monkeypatch.setattr(service, "WINDOW", 4)
    computed, missing = [], service._Missing(str)

    def example(number):
        tf.py_function(lambda n: computed.append(int(n)), [number], [])
        return 10 * number

    examples = service._in_order(0, stop, Arrivals(*arrivals), example, missing)
    assert [int(example) for example in examples] == [10 * number for number in range(stop)]
    assert sorted(computed) == here


def test_a_line_is_said_at_once_and_then_once_in_a_while(monkeypatch, capsys):
    with service._Missing(lambda number: f"photo {number}\n") as missing:
        missing.add([3])
        assert capsys.readouterr().out == "data service: 1 images did not come, and are read here: photo 3\\n\n"
        missing.add([])
        missing.add(range(4, 10))
        missing.add(range(10, 16))
        assert not capsys.readouterr().out
    names = ", ".join(f"photo {number}\\n" for number in range(4, 14))
    assert capsys.readouterr().out == f"data service: 12 images did not come, and are read here: {names} and 2 others\n"


# --- what cannot work ---


def test_no_image_for_long_ends_the_run():
    with pytest.raises(TfdetError, match="no image for 60 seconds: no worker that can be reached"):
        list(service._in_order(0, 10**9, Arrivals(), None, None))


def test_an_image_that_workers_cannot_find_ends_the_run(nine, detector, address, tmp_path):
    gone = dataclasses.replace(nine.examples[4], image=str(tmp_path / "gone.png"))
    data = dataclasses.replace(nine, examples=(*nine.examples[:4], gone))
    line = r"data service: .*gone\.png.*; workers have to see the same files"
    with pytest.raises(TfdetError, match=line):
        tfdet.detect(detector, data, service=address)
    with pytest.raises(tf.errors.OpError) as failure:
        list(pipeline.training_batches(data, detector, 2, start_step=0, service=address).take(3))
    with pytest.raises(TfdetError, match=line):
        service.raise_failure(failure.value)


def test_a_broken_image_is_named_as_without_a_service(nine, detector, address):
    broken = dataclasses.replace(nine.examples[4], image=b"no image")
    data = dataclasses.replace(nine, examples=(*nine.examples[:4], broken))
    with pytest.raises(DataError, match="image 4: not an image that can be read"):
        tfdet.detect(detector, data, service=address)


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("localhost:5050", "localhost:5050: expected grpc://HOST:PORT"),
        ("http://localhost:5050", "expected grpc://HOST:PORT"),
        ("grpc://localhost", "expected grpc://HOST:PORT"),
        ("grpc://localhost:1", "no dispatcher there: no answer within 0.2 seconds"),
    ],
)
def test_addresses_without_a_dispatcher(nine, detector, monkeypatch, where, message):
    monkeypatch.setattr(service, "CONNECT", 0.2)
    with pytest.raises(TfdetError, match=f"data service: .*{message}"):
        pipeline.training_batches(nine, detector, 4, service=where)


def test_another_server_is_no_dispatcher(monkeypatch):
    monkeypatch.setattr(service, "CONNECT", 0.2)
    with socket.create_server(("localhost", 0)) as server, pytest.raises(TfdetError, match="no dispatcher there"):
        service.find_dispatcher(f"grpc://localhost:{server.getsockname()[1]}")


def test_no_cache_and_no_endless_graph(nine, detector, address, monkeypatch):
    with pytest.raises(ValueError, match="no cache with a service"):
        pipeline.training_batches(nine, detector, 4, cache=True, service=address)
    monkeypatch.setattr(service, "MOST_BYTES", 1000)
    with pytest.raises(TfdetError, match="GB of images and paths"):
        pipeline.training_batches(nine, detector, 4, service=address)


# --- the command ---


def test_what_the_command_complains_of(address, monkeypatch, capsys):
    monkeypatch.setattr(service, "CONNECT", 0.2)
    port = address.rpartition(":")[2]
    for arguments, message in (
        (["dispatcher", "--port", port], f"port {port} cannot be used"),
        (["worker", "--dispatcher", address, "--port", port], f"port {port} cannot be used"),
        (["worker", "--dispatcher", "grpc://localhost:1"], "no dispatcher there"),
        (["dispatcher", "--port", "0", "--work-dir", "/dev/null/folder"], "/dev/null is not a directory"),
    ):
        with pytest.raises(SystemExit) as stop:
            main(["data-service", *arguments])
        assert stop.value.code == 2
        error = capsys.readouterr().err
        assert error.startswith("tfdet: error: data service: ") and message in error and error.count("\n") == 1


def started(*arguments):
    environment = {**os.environ, "PYTHONPATH": str(Path(tfdet.__file__).parents[1])}
    command = [sys.executable, "-m", "tfdet", "data-service", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment)


def test_a_worker_process_that_is_killed_loses_nothing(nine, detector, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(service, "WINDOW", 32)
    dispatcher = started("dispatcher", "--port", "0", "--work-dir", str(tmp_path / "state"))
    ready = dispatcher.stdout.readline()
    where = ready.split()[-1]
    workers = [started("worker", "--dispatcher", where) for _ in range(2)]
    try:
        for worker in workers:
            assert worker.stdout.readline().startswith(f"data service: worker of {where}: ready at grpc://127.0.0.1:")
        plain = iter(pipeline.training_batches(nine, detector, 4, start_step=0))
        served = iter(pipeline.training_batches(nine, detector, 4, start_step=0, service=where))
        for step in range(60):
            if step == 10:
                time.sleep(3)  # by when each of them has taken some
                workers[0].kill()
            tf.nest.map_structure(np.testing.assert_array_equal, arrays([next(plain)]), arrays([next(served)]))
        assert "images did not come, and are read here: image" in capsys.readouterr().out
        del served
        for process in (workers[1], dispatcher):
            process.send_signal(signal.SIGTERM)
        assert workers[1].wait(10) == dispatcher.wait(10) == 0
        assert dispatcher.stdout.read() == "data service: dispatcher: ended\n"
    finally:
        for process in (*workers, dispatcher):
            process.kill()
            process.wait()
            process.stdout.close()
