"""Start-up of `python -m tfdet predict` on one photograph: the whole command, and where its time goes.

    python benchmarks/startup.py [--rounds N]

An untrained SSD300-VGG16 stands in for a trained one. Each round runs the command in a process of its own, and in
another one its steps, one after the other. Medians, in seconds.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

PYTHON = "python starts and ends"
STEPS = """
import json, sys, time
model, photo, output = sys.argv[1:]
taken, last = {}, time.perf_counter()
def step(name):
    global last
    taken[name], last = time.perf_counter() - last, time.perf_counter()
import numpy; step("import numpy")
import tensorflow; step("import tensorflow (with Keras)")
import matplotlib.figure; step("import matplotlib")
import pycocotools.cocoeval; step("import pycocotools")
import tfdet; step("import tfdet")
import tfdet.__main__ as command; step("import the command line (tyro, rich)")
from pathlib import Path
detector = command.load_model(model); step("read the model")
found = command.inference.detect_files(detector, [photo]); step("first image: tracing and running")
command.inference.detect_files(detector, [photo]); step("(second image, not part of the command)")
command.write_predictions(Path(output), [Path(photo)], found, detector.class_names, 0.3); step("draw and write")
print(json.dumps(taken))
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    taken = {}
    with tempfile.TemporaryDirectory() as folder:
        model, photo = make(folder)
        for turn in range(rounds + 1):
            times = {PYTHON: seconds("-c", "pass")}
            steps = subprocess.run([sys.executable, "-c", STEPS, model, photo, folder], capture_output=True, check=True)
            times |= json.loads(steps.stdout.splitlines()[-1])
            times["the command"] = seconds("-m", "tfdet", "predict", photo, "--model", model, "-o", folder)
            for name, value in times.items() if turn else ():  # the first reads everything from the disk
                taken.setdefault(name, []).append(value)
    for name, values in taken.items():
        print(f"{name:44} {statistics.median(values):6.2f} s   {min(values):.2f} .. {max(values):.2f}")


def make(folder):
    """An untrained model and a photograph of noise -> their paths."""
    import numpy as np
    from PIL import Image

    import tfdet

    model, photo = os.path.join(folder, "model.keras"), os.path.join(folder, "photo.jpg")
    tfdet.ssd300(20).save(model)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8)).save(photo)
    return model, photo


def seconds(*arguments):
    start = time.perf_counter()
    subprocess.run([sys.executable, *arguments], capture_output=True, check=True)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
