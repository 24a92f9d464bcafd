"""COCO's figures of 5,000 images with 80 classes and 100 detections each: tfdet against the evaluator that it runs.

    python benchmarks/evaluation.py

needs tfdet with its extra fast-eval. tfdet is timed from a Dataset and a list of Detections to the twelve figures. The
evaluator alone starts at what suits it best: its ground truth, already read and indexed, and the detections as the one
array that loadRes takes. loadRes, evaluate, accumulate and summarize are timed. Both work in one process, in turns.
"""

import contextlib
import io
import statistics
import time

import hotcoco
import numpy as np
import pycocotools.coco
import pycocotools.cocoeval

from tfdet import evaluation
from tfdet.data import Dataset, Example
from tfdet.inference import Detections

IMAGES, CLASSES, OBJECTS, DETECTIONS, SIDE = 5000, 80, 7.36, 100, 640  # val2017 has 7.36 objects an image


def main():
    dataset, detections = synthetic(np.random.default_rng(0))
    objects = sum(len(example.boxes) for example in dataset.examples)
    print(f"{IMAGES} images, {objects} objects, {IMAGES * DETECTIONS} detections")
    truth = evaluation.coco_ground_truth(dataset)
    rows = evaluation.coco_results(dataset, detections)
    results = np.array([(row["image_id"], *row["bbox"], row["score"], row["category_id"]) for row in rows])

    compare("hotcoco", dataset, detections, hotcoco.COCO(truth), results, hotcoco.COCOeval, rounds=15)
    evaluation.coco.hotcoco = None  # as without the extra
    indexed = pycocotools.coco.COCO()
    indexed.dataset = truth
    with contextlib.redirect_stdout(io.StringIO()):  # it prints, like the evaluators
        indexed.createIndex()
    compare("pycocotools", dataset, detections, indexed, results, pycocotools.cocoeval.COCOeval, rounds=3)


def compare(name, dataset, detections, truth, results, evaluator, rounds):
    def ours():
        return list(evaluation.coco_figures(dataset, detections).values())

    def alone():
        run = evaluator(truth, truth.loadRes(results), "bbox")
        run.evaluate()
        run.accumulate()
        run.summarize()
        return run.stats

    pairs = []
    for _ in range(rounds):
        (a, figures), (b, stats) = timed(ours), timed(alone)
        np.testing.assert_allclose(figures, stats, rtol=0, atol=1e-9)
        pairs.append((a, b))
    ratios = [a / b for a, b in pairs]
    a, b = (statistics.median(times) for times in zip(*pairs, strict=True))
    ratio = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} .. {max(ratios):.2f})"
    print(f"{name:12} tfdet {a:6.2f} s   alone {b:6.2f} s   ratio {ratio}", flush=True)


def timed(work):
    with contextlib.redirect_stdout(io.StringIO()):
        start = time.perf_counter()
        result = work()
        return time.perf_counter() - start, result


def synthetic(rng):
    """Up to 30 detections an image are objects, shaken, with the better scores; the others lie anywhere."""
    examples, detections = [], []
    for image_id in range(IMAGES):
        count = rng.poisson(OBJECTS)
        boxes, labels = boxes_anywhere(rng, count), rng.integers(0, CLASSES, count, np.int32)
        sizes = boxes[:, 2:] - boxes[:, :2]
        example = Example(
            image_id=image_id,
            image=f"{image_id}.jpg",
            height=SIDE,
            width=SIDE,
            boxes=boxes,
            labels=labels,
            crowd=rng.random(count) < 0.01,
            difficult=np.zeros(count, bool),
            areas=sizes.prod(axis=1) * np.float32(0.7),
        )
        examples.append(example)

        hit = rng.integers(0, count, min(4 * count, 30)) if count else np.zeros(0, int)
        missed = DETECTIONS - len(hit)
        shaken = boxes[hit] + rng.normal(0, 0.08, (len(hit), 4)) * np.tile(sizes[hit], 2)
        found = np.concatenate([shaken, boxes_anywhere(rng, missed)]).astype(np.float32)
        classes = np.concatenate([labels[hit], rng.integers(0, CLASSES, missed, np.int32)])
        scores = np.concatenate([rng.beta(3, 2, len(hit)), rng.beta(1, 8, missed)]).astype(np.float32)
        best_first = np.argsort(-scores)
        detections.append(Detections(image_id, found[best_first], scores[best_first], classes[best_first]))
    names = tuple(f"class {label}" for label in range(CLASSES))
    return Dataset("synthetic", names, tuple(range(1, CLASSES + 1)), tuple(examples)), detections


def boxes_anywhere(rng, count):
    sizes = np.exp(rng.normal(4.2, 0.9, (count, 2))).clip(4, 400)
    corner = rng.uniform(0, SIDE - sizes)
    return np.concatenate([corner, corner + sizes], axis=1).astype(np.float32)


if __name__ == "__main__":
    main()
