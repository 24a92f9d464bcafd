"""MTCNN against facenet-pytorch's, with its weights: times an image, and whether both find the same faces.

    python benchmarks/mtcnn.py --peer PYTHON --weights WHEEL [--dlib-faces FOLDER] [PHOTOGRAPHS...]

PYTHON is the interpreter of an environment with the peers (benchmarks/requirements.txt), WHEEL the file that `pip
download --no-deps facenet-pytorch==2.6.0` leaves. Times are of scikit-image's photograph `astronaut`, 512 x 512.
"1 thread" is what can be trusted on a busy machine, where PyTorch's threads wait for each other.
FOLDER is dlib's examples/faces, whose annotations say where faces are; its photographs are compared as well.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import turns

TASKS = {  # name: (question, rounds)
    "smallest face 20, batch 1": ((20, 1), 15),
    "smallest face 40, batch 1": ((40, 1), 15),
    "smallest face 20, batch 8": ((20, 8), 7),
}
SPLITS = ("training_with_face_landmarks", "testing_with_face_landmarks")

# Photographs, as .npy -> a line of JSON for each: boxes, scores, landmarks.
FIND = """
import json, sys
import numpy as np
from facenet_pytorch import MTCNN
model = MTCNN(keep_all=True, select_largest=False)
for path in sys.argv[1:]:
    found = model.detect(np.load(path), landmarks=True)
    print(json.dumps([[] if found[0] is None else np.asarray(values, float).tolist() for values in found]))
"""

ASTRONAUT = "import sys, numpy, skimage; numpy.save(sys.argv[1], skimage.data.astronaut())"


def main():
    arguments = turns.arguments(__doc__, SIDES, add_arguments)
    with tempfile.TemporaryDirectory() as folder:
        astronaut = f"{folder}/astronaut.npy"
        subprocess.run([arguments.peer, "-c", ASTRONAUT, astronaut], check=True)
        sys.argv += ["--astronaut", astronaut]
        for threads in ("", ", 1 thread"):
            print(turns.HEADER + threads)
            ours = turns.Process(sys.executable, f"tfdet{threads}")
            theirs = turns.Process(arguments.peer, f"facenet-pytorch{threads}")
            for name, (question, rounds) in TASKS.items():
                turns.compare(name, ours, theirs, question, rounds)
            print(f"{'peak memory':40} {ours.end():8.2f} GB {theirs.end():8.2f} GB", flush=True)
        compare_faces(arguments, Path(folder))


def add_arguments(parser):
    parser.add_argument("--weights", required=True, help="facenet_pytorch-2.6.0-py3-none-any.whl")
    parser.add_argument("--dlib-faces", help="folder with dlib's examples/faces")
    parser.add_argument("--astronaut", help="made by the script itself")
    parser.add_argument("photographs", nargs="*")


def argument(name):
    return sys.argv[sys.argv.index(name) + 1]


def tfdet_side(threads=None):
    import numpy as np
    import tensorflow as tf

    from tfdet.detectors.mtcnn_original import mtcnn_original

    if threads:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(threads)
    models, astronaut = {}, np.load(argument("--astronaut"))

    def run(min_face, batch):
        if min_face not in models:
            models[min_face] = mtcnn_original(argument("--weights"), min_face)
        models[min_face].predict_on_batch(np.repeat(astronaut[None], batch, axis=0))
        return batch

    return run


def facenet_side(threads=None):
    import numpy as np
    import torch
    from facenet_pytorch import MTCNN

    if threads:
        torch.set_num_threads(threads)
    models, astronaut = {}, np.load(argument("--astronaut"))

    def run(min_face, batch):
        if min_face not in models:
            models[min_face] = MTCNN(keep_all=True, min_face_size=min_face)
        models[min_face].detect(np.repeat(astronaut[None], batch, axis=0), landmarks=True)
        return batch

    return run


SIDES = {
    "tfdet": tfdet_side,
    "tfdet, 1 thread": lambda: tfdet_side(1),
    "facenet-pytorch": facenet_side,
    "facenet-pytorch, 1 thread": lambda: facenet_side(1),
}


def compare_faces(arguments, folder):
    """Prints how many of facenet-pytorch's faces are found alike, and how well annotated ones are found."""
    import numpy as np

    import tfdet
    from tfdet.data.images import load_image

    datasets = [
        tfdet.load_dataset(f"dlib:{arguments.dlib_faces}", split) for split in SPLITS * bool(arguments.dlib_faces)
    ]
    examples = [example for dataset in datasets for example in dataset.examples]
    paths = [example.image for example in examples] + arguments.photographs
    if not paths:
        return
    arrays = [f"{folder}/{i}.npy" for i in range(len(paths))]
    for path, array in zip(paths, arrays, strict=True):
        np.save(array, load_image(path))
    command = [arguments.peer, "-c", FIND, *arrays]
    answers = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    model = tfdet.mtcnn_original(arguments.weights)
    ours = tfdet.detect_files(model, paths, batch_size=1)

    theirs = []
    for answer in map(json.loads, answers):
        boxes, scores, points = (np.array(one, np.float32) for one in answer)
        theirs.append((boxes.reshape(-1, 4), scores, points.reshape(-1, 5, 2)))
    same = total = 0
    for path, found, (boxes, scores, _) in zip(paths, ours, theirs, strict=True):
        height, width = load_image(path).shape[:2]
        boxes = np.clip(boxes, 0, (width, height, width, height))
        alike = np.asarray(tfdet.boxes.iou(boxes, found.boxes)) > 0.95
        alike &= abs(scores[:, None] - found.scores) < 0.01
        same, total = same + alike.any(axis=1).sum(), total + len(boxes)
        for box in [*boxes[~alike.any(axis=1)], *found.boxes[~alike.any(axis=0)]]:
            print(f"  only one of the two: {path} {box.astype(float).round(1).tolist()}, of {width} x {height}")
    print(f"found alike (IoU > 0.95, score within 0.01): {same} of facenet-pytorch's {total} faces")

    for name, found in (
        ("tfdet", [(one.boxes, one.scores, one.keypoints) for one in ours]),
        ("facenet-pytorch", theirs),
    ):
        print(f"{name:16}", annotated(examples, found[: len(examples)]))


def annotated(examples, found):
    """How many of the annotated faces are found (IoU > 0.4), and how far off their landmarks are."""
    import numpy as np

    import tfdet

    hits, false, errors = 0, 0, []
    for example, (boxes, _, points) in zip(examples, found, strict=True):
        overlaps = np.asarray(tfdet.boxes.iou(example.boxes, boxes))
        best = overlaps.argmax(axis=1)
        hit = overlaps.max(axis=1) > 0.4
        hits, false = hits + hit.sum(), false + (overlaps.max(axis=0) <= 0.4).sum()
        truth = example.keypoints[hit, :, :2]
        eyes = np.linalg.norm(truth[:, 0] - truth[:, 1], axis=-1)
        errors += list(np.linalg.norm(points[best[hit]] - truth, axis=-1).mean(axis=1) / eyes)
    count = sum(len(example.boxes) for example in examples)
    off = f"mean {np.mean(errors):.4f}, median {np.median(errors):.4f}" if errors else "unknown"
    return f"{hits} of {count} annotated faces, {false} false; landmarks off by {off} of the distance of the eyes"


if __name__ == "__main__":
    main()
