"""SSD300-VGG16 against torchvision's: inference, training step and post-processing, as ratios measured in one run.

    python benchmarks/ssd300.py --peer PYTHON

PYTHON is the interpreter of an environment with the peers (benchmarks/requirements.txt). Each side works in a process
of its own that waits while the other is timed; the two take turns, so that both see the same machine.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time

TASKS = {  # name: (what, batch size, rounds)
    "inference, batch 1": ("infer", 1, 9),
    "inference, batch 8": ("infer", 8, 5),
    "training step, batch 8": ("train", 8, 3),
    "post-processing, batch 8": ("decode", 8, 9),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", required=True, help="python of an environment with torch and torchvision")
    parser.add_argument("--worker", choices=WORKERS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work(WORKERS[arguments.worker]())
        return
    print(f"{'':32} {'tfdet':>10} {'peer':>10} {'ratio':>7}   (median; spread of the ratio)")
    for peer in ("torchvision", "torchvision channels_last"):
        for name, (what, batch, rounds) in TASKS.items():
            if peer != "torchvision" and what == "decode":
                continue  # does not depend on the memory format
            # New processes for each task, so that the peak of memory is its own.
            ours, theirs = Process(sys.executable, "tfdet"), Process(arguments.peer, peer)
            pairs = []
            for turn in range(rounds + 1):
                pair = ours.time(what, batch), theirs.time(what, batch)
                if turn:  # the first is a warm-up
                    pairs.append(pair)
            ratios = [a / b for a, b in pairs]
            a, b = (statistics.median(times) / batch * 1000 for times in zip(*pairs, strict=True))
            spread = f"{min(ratios):.2f} .. {max(ratios):.2f}"
            print(f"{name:32} {a:7.1f} ms {b:7.1f} ms {statistics.median(ratios):7.2f}   {spread}   per image; {peer}")
            print(f"{'  peak memory':32} {ours.peak():7.2f} GB {theirs.peak():7.2f} GB", flush=True)


class Process:
    """One side, in a process that is asked for one timing at a time."""

    def __init__(self, python, worker):
        command = [python, __file__, "--peer", python, "--worker", worker]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )

    def ask(self, *question):
        print(json.dumps(question), file=self.process.stdin, flush=True)
        for line in self.process.stdout:
            if line.startswith("answer "):
                return float(line.removeprefix("answer "))
        raise SystemExit(f"{' '.join(self.process.args)} died")

    def time(self, what, batch):
        return self.ask(what, batch)

    def peak(self):
        """Peak memory of the process in GB; ends it."""
        peak = self.ask("peak", 0)
        self.process.stdin.close()
        self.process.wait()
        return peak


def work(tasks):
    for line in sys.stdin:
        what, batch = json.loads(line)
        if what == "peak":
            answer = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        else:
            start = time.perf_counter()
            tasks(what, batch)
            answer = time.perf_counter() - start
        print(f"answer {answer}", flush=True)


def boxes_of(rng, count=8):
    import numpy as np

    corner = rng.uniform(0, 200, (count, 2))
    return np.concatenate([corner, corner + rng.uniform(20, 100, (count, 2))], axis=1).astype("float32")


def head_outputs(rng, batch, logits=21):
    """As of a trained network: nearly all priors are background, some dozens are not."""

    classes = rng.normal(0, 1, (batch, 8732, logits)).astype("float32")
    classes[..., 0] += 9
    classes[:, ::97, 3] += 10
    classes[:, ::131, 7] += 10
    return classes, rng.normal(0, 1, (batch, 8732, 4)).astype("float32")


def tfdet_worker():
    import keras
    import numpy as np
    import tensorflow as tf

    import tfdet

    model = tfdet.ssd300(20)
    model.compile(keras.optimizers.SGD(1e-4, momentum=0.9))
    decode = tf.function(model.decoder)
    rng, inputs = np.random.default_rng(0), {}

    def run(what, batch):
        if what == "infer":
            images = inputs.setdefault((what, batch), rng.integers(0, 256, (batch, 300, 300, 3)).astype("uint8"))
            model.predict_on_batch(images)
        elif what == "train":
            if (what, batch) not in inputs:
                images = rng.uniform(0, 255, (batch, 300, 300, 3)).astype("float32")
                targets = [model.encoder(boxes_of(rng), np.arange(8) % 20) for _ in range(batch)]
                inputs[what, batch] = images, {key: np.stack([t[key] for t in targets]) for key in targets[0]}
            model.train_on_batch(*inputs[what, batch])
        else:
            if (what, batch) not in inputs:
                classes, deltas = head_outputs(rng, batch)
                inputs[what, batch] = {"class_logits": tf.constant(classes), "box_deltas": tf.constant(deltas)}
            decode(inputs[what, batch])

    return run


def torchvision_worker(channels_last=False):
    import numpy as np
    import torch
    import torchvision

    build = torchvision.models.detection.ssd300_vgg16
    model = build(weights=None, weights_backbone=None, num_classes=21)
    if channels_last:
        model = model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), 1e-4, momentum=0.9)
    rng, inputs = np.random.default_rng(0), {}

    def run(what, batch):
        if what == "decode":
            if (what, batch) not in inputs:
                classes, deltas = head_outputs(rng, batch)
                head = {"cls_logits": torch.from_numpy(classes), "bbox_regression": torch.from_numpy(deltas)}
                images = torchvision.models.detection.image_list.ImageList(
                    torch.zeros(batch, 3, 300, 300), [(300, 300)] * batch
                )
                maps = [torch.zeros(batch, 1, n, n) for n in (38, 19, 10, 5, 3, 1)]
                inputs[what, batch] = head, model.anchor_generator(images, maps), images.image_sizes
            with torch.no_grad():
                model.postprocess_detections(*inputs[what, batch])
            return
        if (what, batch) not in inputs:
            images = [torch.rand(3, 300, 300) for _ in range(batch)]
            if channels_last:
                images = [image[None].contiguous(memory_format=torch.channels_last)[0] for image in images]
            labels = torch.arange(8) % 20 + 1
            targets = [{"boxes": torch.from_numpy(boxes_of(rng)), "labels": labels} for _ in range(batch)]
            inputs[what, batch] = images, targets
        images, targets = inputs[what, batch]
        if what == "infer":
            model.eval()
            with torch.no_grad():
                model(images)
        else:
            model.train()
            loss = sum(model(images, targets).values())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return run


WORKERS = {
    "tfdet": tfdet_worker,
    "torchvision": torchvision_worker,
    "torchvision channels_last": lambda: torchvision_worker(channels_last=True),
}

if __name__ == "__main__":
    main()
