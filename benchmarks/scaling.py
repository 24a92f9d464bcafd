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

# Images a second in training on one GPU, and images it is given a step. Nobody has measured tfdet on a GPU.
#   SSD300: NVIDIA/DeepLearningExamples, PyTorch/Detection/SSD: on ResNet-50, one A100 of 80 GB, TF32, batches of 64.
#   Faster R-CNN: pytorch/vision#937: ResNet-50-FPN, 8 V100, float32, 0.2288 s a step of 16 images.
GPUS = {"SSD300": ("A100", 364.27, 32), "Faster R-CNN": ("V100", 16 / 0.2288 / 8, 2)}
# Batch and learning rate of the released schedules, and the largest batch with which somebody has published a like
# figure: SSD300 in the README above (8 x 128: AP 0.268), Faster R-CNN in MegDet (Peng et al. 2018, synchronised norms).
RATES = {"SSD300": (32, 1e-3), "Faster R-CNN": (16, 0.02)}
LARGEST = {"SSD300": 1024, "Faster R-CNN": 256}
# Bytes a second into and out of a machine of 8 GPUs.
NETWORKS = {"10 Gb/s": 10e9 / 8, "100 Gb/s": 100e9 / 8, "8 x 200 Gb/s": 1600e9 / 8}
NVLINK = 230e9  # bytes a second of an all-reduce among 8 A100 of a machine; assumed
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
    """Prints what follows; nothing is taken to overlap, and so many cores of input keep up on the middle network."""
    gpu, speed, own = GPUS[name]
    images, (batch, rate) = SCHEDULES[name][kind], RATES[name]
    print(f"\n{name}, {kind}: {images / 1e6:.1f} million images, {gradients / 1e6:.0f} MB of gradients, {gpu}")
    networks = " | ".join(f"all-reduce, {network}" for network in NETWORKS)
    print(
        f"| GPUs | images each | batch | learning rate | steps | compute | {networks} | computing | images a second |"
        " cores of input | hours |"
    )
    for count, each in ((8, own), (64, own), (512, own), (LARGEST[name] // max(1, own // 16), max(1, own // 16))):
        machines, whole, compute = count // MACHINE, each * count, each / speed
        inside = 2 * (MACHINE - 1) / MACHINE * gradients / NVLINK
        reduce = [inside + 2 * (machines - 1) / machines * gradients / network for network in NETWORKS.values()]
        computing = " / ".join(f"{compute / (compute + seconds):.0%}" for seconds in reduce)
        fast, hours = whole / (compute + reduce[1]), images / whole * (compute + reduce[1]) / 3600
        shown = [count, each, whole, f"{rate * whole / batch:.3g}", f"{images / whole:,.0f}"]
        shown += [f"{1000 * seconds:.0f} ms" for seconds in (compute, *reduce)]
        shown += [computing, f"{fast:,.0f}", f"{fast / fed:,.0f}", f"{hours:.2g}"]
        print(f"| {' | '.join(map(str, shown))} |")


if __name__ == "__main__":
    main()
