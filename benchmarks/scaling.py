"""The figures of docs/scaling.md: what is measured here, and what follows from it for many GPUs.

    taskset -c 0 python benchmarks/scaling.py --data coco:DIR

Measured on one core: images a second from JPEG files to what a detector is fed, with augmentation and targets; bytes of
gradients and checkpoints, and seconds to write one. GPUS, NETWORKS and SCHEDULES are what others have published; the
tables say what they mean together.
"""

import argparse
import tempfile
import time
from pathlib import Path

# Images a second in training on one GPU, and images it is given a step.
#   SSD300: NVIDIA/DeepLearningExamples, PyTorch/Detection/SSD: ResNet-50, one A100 of 80 GB, TF32 and mixed precision.
#   Faster R-CNN: pytorch/vision#937: ResNet-50-FPN, 8 V100, 0.2288 s a step of 16 images in float32; A100 as many times
#   as fast as in the SSD300 above (364.27 in TF32 against 107.22 on V100 in float32), which nobody has measured here.
GPUS = {"SSD300": {"A100, TF32": (364.27, 64), "A100, mixed": (662.91, 64)}}
GPUS["Faster R-CNN"] = {
    "V100, float32": (16 / 0.2288 / 8, 2),
    "A100, TF32 (guessed)": (16 / 0.2288 / 8 * 364.27 / 107.22, 4),
}
# Bytes a second into and out of a machine of 8 GPUs.
NETWORKS = {"10 Gb/s": 10e9 / 8, "100 Gb/s": 100e9 / 8, "8 x 200 Gb/s": 1600e9 / 8}
NVLINK = 230e9  # bytes a second of an all-reduce within a machine of A100 (nccl-tests' bus bandwidth)
MACHINE = 8
# Images that a schedule looks at: of COCO the published ones, of Open Images 12 passes.
COCO, OPEN_IMAGES = 118_287, 1_743_042
SCHEDULES = {
    "SSD300": {"COCO": 400_000 * 32, "Open Images": 12 * OPEN_IMAGES},
    "Faster R-CNN": {"COCO": 90_000 * 16, "Open Images": 12 * OPEN_IMAGES},
}
CLASSES = {"COCO": 80, "Open Images": 600}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="photographs, as in a recipe")
    arguments = parser.parse_args()
    import tfdet

    data = tfdet.load_dataset(arguments.data, "train", on_error="skip")
    print("| | classes | parameters, millions | gradients, MB | checkpoint, MB | written in, s |")
    gradients = {}
    for name, build in detectors().items():
        for kind, classes in CLASSES.items():
            gradients[name, kind] = sizes(name, kind, build(classes), classes)
    rates = {name: rate(build(data.class_names), data, name) for name, build in detectors().items()}
    for name in gradients:
        table(*name, gradients[name], rates[name[0]])


def detectors():
    import tfdet

    return {
        "SSD300": lambda classes: tfdet.ssd300(classes, "vgg16"),
        "Faster R-CNN": lambda classes: tfdet.faster_rcnn_fpn(
            classes, "resnet50", None, (640, 672, 704, 736, 768, 800)
        ),
    }


def sizes(name, kind, model, classes):
    """Prints them; returns the bytes of the gradients."""
    import keras

    model.compile(keras.optimizers.SGD(0.01, momentum=0.9))
    model.optimizer.build(model.trainable_variables)
    count = sum(int(variable.value.shape.num_elements()) for variable in model.trainable_variables)
    with tempfile.TemporaryDirectory() as folder:
        start, path = time.perf_counter(), Path(folder) / "model.keras"
        model.save(path)
        seconds, size = time.perf_counter() - start, path.stat().st_size
    print(
        f"| {name}, {kind} | {classes} | {count / 1e6:.1f} | {4 * count / 1e6:.0f} | {size / 1e6:.0f} | {seconds:.1f} |"
    )
    return 4 * count


def rate(model, data, name):
    """Prints and returns images a second on one core."""
    from tfdet.data import pipeline
    from tfdet.data.images import decode

    batch = 8
    look_up = pipeline.annotations(data)
    import tensorflow as tf

    decoded = tf.data.Dataset.range(len(data)).repeat().map(lambda i: decode(pipeline.read(look_up(i)["source"])))
    fed = pipeline.training_batches(data, model, batch, start_step=0)
    rates = []
    for images, count in ((iter(decoded), 1), (iter(fed), batch)):
        for _ in range(10):
            next(images)
        start, seen = time.perf_counter(), 0
        while (seconds := time.perf_counter() - start) < 20:
            next(images)
            seen += count
        rates.append(seen / seconds)
    print(f"{name}: {rates[0]:.0f} images a second decoded, {rates[1]:.0f} fed, on one core")
    return rates[1]


def table(name, kind, gradients, fed):
    print(f"\n{name}, {kind}: {SCHEDULES[name][kind] / 1e6:.1f} million images, {gradients / 1e6:.0f} MB of gradients")
    networks = " | ".join(f"all-reduce, {network}" for network in NETWORKS)
    print(f"| GPU | GPUs | batch | steps | compute a step | {networks} | images a second | cores of input | hours |")
    for gpu, (speed, own) in GPUS[name].items():
        for count in (8, 64, 512):
            machines, batch, compute = count // MACHINE, own * count, own / speed
            inside = 2 * (MACHINE - 1) / MACHINE * gradients / NVLINK
            reduce = [inside + 2 * (machines - 1) / machines * gradients / network for network in NETWORKS.values()]
            shown = " | ".join(f"{1000 * seconds:.0f} ms" for seconds in reduce)
            steps, speeds = SCHEDULES[name][kind] / batch, [batch / (compute + seconds) for seconds in reduce]
            ends = " .. ".join(f"{SCHEDULES[name][kind] / speed / 3600:.1f}" for speed in (speeds[-1], speeds[0]))
            print(
                f"| {gpu} | {count} | {batch} | {steps:,.0f} | {1000 * compute:.0f} ms | {shown} | "
                f"{speeds[0]:,.0f} .. {speeds[-1]:,.0f} | {speeds[-1] / fed:,.0f} | {ends} |"
            )


if __name__ == "__main__":
    main()
