"""What MultiWorkerMirroredStrategy costs: the time of a training image with two processes of a core each, against one
process with both cores.

    python benchmarks/workers.py

SSD300 on the built-in shapes, whole steps with their input; the batch is the same. The gradients go over the sockets of
this machine: 1.8 MB a step with `vgg_slim`, 96 MB with `vgg16`.
"""

import json
import os
import socket
import subprocess
import sys

import turns

BACKBONES = {"vgg_slim": (16, 8, 7), "vgg16": (8, 1, 5)}  # batch, steps of a turn, turns


def main():
    if sys.argv[1:2] == ["worker"]:
        os.sched_setaffinity(0, [1])
        steps = steps_of(sys.argv[2])
        while count := from_chief(None):
            steps(count)
        return
    turns.arguments(__doc__, {f"{side} {name}": SIDES[side](name) for side in SIDES for name in BACKBONES}, peer=False)
    print(turns.HEADER.replace("tfdet", "two", 1).replace(" peer", "  one"))
    for name, (batch, count, rounds) in BACKBONES.items():
        two, one = turns.Process(sys.executable, f"two {name}"), turns.Process(sys.executable, f"one {name}")
        turns.compare(f"{name}, batch {batch}, an image", two, one, (count,), rounds)
        two.time(0), two.end(), one.end()


def one(name):
    def prepare():
        return steps_of(name)

    return prepare


def two(name):
    def prepare():
        with socket.socket() as first, socket.socket() as second:
            for free in (first, second):
                free.bind(("localhost", 0))
            addresses = [f"localhost:{free.getsockname()[1]}" for free in (first, second)]
        configs = [
            json.dumps({"cluster": {"worker": addresses}, "task": {"type": "worker", "index": number}})
            for number in range(2)
        ]
        command = [sys.executable, sys.argv[0], "worker", name]
        subprocess.Popen(command, env=os.environ | {"TF_CONFIG": configs[1]}, stdout=subprocess.DEVNULL)
        os.environ["TF_CONFIG"] = configs[0]
        os.sched_setaffinity(0, [0])
        steps = steps_of(name)

        def run(count):
            from_chief(count)
            return steps(count) if count else 1

        return run

    return prepare


SIDES = {"one": one, "two": two}


def steps_of(name):
    """A function: takes so many steps; returns the number of images."""
    import keras

    import tfdet
    from tfdet import distribution
    from tfdet.keras_multi_worker import prepare_for_workers

    batch, *_ = BACKBONES[name]
    with distribution.strategy_scope():
        model = tfdet.ssd300(3, backbone=name)
        model.compile(keras.optimizers.SGD(1e-4, momentum=0.9))
        model.optimizer.build(model.trainable_variables)
    prepare_for_workers(model)
    model.make_train_function()
    batches = iter(tfdet.training_batches(tfdet.load_dataset("shapes"), model, batch, start_step=0))

    def run(count):
        for _ in range(count):
            logs = model.train_function(batches)
        float(logs["loss"])
        return count * batch

    return run


def from_chief(count):
    from tfdet import distribution

    return distribution.from_chief(count)


if __name__ == "__main__":
    main()
