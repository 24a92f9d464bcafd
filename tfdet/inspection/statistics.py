"""A whole set in figures: how many samples of each kind its images have, and which of its objects nobody serves.

What is counted comes from the detectors' own encoders (`tfdet.inspection.samples`), in two passes over the annotations:

- Samples of an image: one epoch of training, as `training_batches` with seed 0 augments it.
- Objects: each once, in images as they are fed in evaluation, so that every object is there, in its own size.

Of Faster R-CNN it is the first stage: what the second one learns from, the network proposes, and it changes with every
step. No image is decoded, and what is kept does not grow with their number.
"""

from collections import Counter

import numpy as np

from tfdet.checking import SIZES
from tfdet.data.pipeline import blank_images, fed_blank
from tfdet.inspection.samples import COUNTS, counts, summary

SEED = 0
LIMITS = 32**2, 96**2  # between COCO's sizes, in square pixels
REACHED = 0.5  # IoU

COLUMNS = [  # key, title, help
    ("positives", "positives", "Positive samples of an image: mean over one epoch of training, with its augmentation."),
    ("negatives", "negatives", "Negative samples of an image, before any are drawn."),
    ("softened", "softened", "Of the negatives those near a point, which a Gaussian makes cheaper."),
    ("ignored", "ignored", "Samples of an image that never enter the loss."),
    ("positives_drawn", "positives in loss", "Positives of an image that enter the loss, after sampling."),
    (
        "negatives_drawn",
        "negatives in loss",
        "Negatives of an image that enter the loss, after sampling. SSD takes the costliest: how many is known, which "
        "ones depends on the network.",
    ),
    ("ratio", "negatives : positive", "Negatives in the loss for each positive in it."),
    ("per_object", "all sizes", "Positives of an object: median (least-most), images as fed in evaluation."),
    *((f"per_object_{size}", size, f"The same of COCO's {size} objects.") for size in SIZES),
    ("lost", "lost", "Objects that nobody is responsible for, or not fully: see why."),
    ("why", "why", "The reasons, and how many objects each of them loses."),
    ("collisions", "collisions", "Of the lost ones those whose cell another object of their class has."),
    ("undrawn", "none drawn", "Objects that have positives, none of which is drawn into the loss."),
    ("best_iou", "best IoU", "The best IoU of an object with the anchors that serve it: mean over all objects."),
    ("recall", "recall ceiling", f"Share of all objects for which that is at least {REACHED}."),
]
OF_SAMPLES = ("positives", "negatives", "softened", "ignored", "positives_drawn", "negatives_drawn", "ratio")
OF_OBJECTS = ("per_object", *(f"per_object_{size}" for size in SIZES), "best_iou", "recall")
OF_LOST = ("lost", "collisions", "undrawn", "why")


class Tally:
    """Figures of one stage of a detector, image after image.

    Args:
        stage: `Samples` of any image; only what is the same for all images is read.
        keep: so many of the lost objects are kept.
    """

    def __init__(self, stage, keep):
        self.stage, self.keep = stage, keep
        self.images, self.counts = 0, np.zeros(len(COUNTS), np.int64)
        self.positives = [Counter() for _ in SIZES]  # of each size, how many objects have so many
        self.why = [Counter() for _ in SIZES]
        self.overlap, self.reached = np.zeros(len(SIZES)), np.zeros(len(SIZES), int)
        self.undrawn, self.lost = 0, []

    def add_image(self, counts):
        self.images += 1
        self.counts += counts

    def add_objects(self, example, objects, found):
        """An Example, which of its objects the detector is given, int [M], and the `summary` of them."""
        known = ~example.crowd[objects]
        sizes = np.digitize(example.areas[objects], LIMITS)
        self.undrawn += int(((found["positives"] > 0) & (found["drawn"] == 0) & known).sum())
        for size, (positives, why, overlaps) in enumerate(zip(self.positives, self.why, self.overlap, strict=True)):
            these = known & (sizes == size)
            positives.update(found["positives"][these].tolist())
            why.update(found["why"][these & (found["why"] > 0)].tolist())
            self.overlap[size] = overlaps + found["best"][these].sum(dtype=float)
            self.reached[size] += int((found["best"][these] >= REACHED).sum())
        for i in np.flatnonzero(found["why"])[: self.keep - len(self.lost)]:
            self.lost.append((example, int(objects[i]), self.stage.reasons[found["why"][i] - 1]))

    def sizes(self):
        """{"all" and each of COCO's sizes: figures of its objects, numbers or None where there is none}."""
        rows = {size: self._objects([i]) for i, size in enumerate(SIZES)}
        return {"all": self._objects(range(len(SIZES))), **rows}

    def _objects(self, sizes):
        positives = sum((self.positives[i] for i in sizes), Counter())
        count, boxes = positives.total(), self.stage.shape == "box"
        return {
            "objects": count,
            "median": median(positives),
            "least": min(positives, default=None),
            "most": max(positives, default=None),
            "none": positives[0],
            "lost": sum(self.why[i].total() for i in sizes),
            "best_iou": float(sum(self.overlap[i] for i in sizes)) / count if boxes and count else None,
            "recall": int(sum(self.reached[i] for i in sizes)) / count if boxes and count else None,
        }

    def reasons(self):
        """{reason: how many objects it loses}, the most frequent first."""
        found = sum(self.why, Counter())
        return {self.stage.reasons[i - 1]: number for i, number in found.most_common()}

    def figures(self):
        """{key of COLUMNS: number, text or None}."""
        means = dict(zip(COUNTS, (self.counts / max(self.images, 1)).tolist(), strict=True))
        drawn, sizes, reasons = means["positives_drawn"], self.sizes(), self.reasons()
        collisions = self.stage.collisions
        return {
            **means,
            "softened": means["softened"] if self.stage.heatmaps else None,
            "ratio": means["negatives_drawn"] / drawn if drawn else None,
            "per_object": spread(sizes["all"]),
            **{f"per_object_{size}": spread(sizes[size]) for size in SIZES},
            "lost": sizes["all"]["lost"],
            "why": "; ".join(f"{number} {reason}" for reason, number in reasons.items()),
            "collisions": sum(reasons.get(reason, 0) for reason in collisions) if collisions else None,
            "undrawn": self.undrawn,
            "best_iou": sizes["all"]["best_iou"],
            "recall": sizes["all"]["recall"],
        }


def objects(dataset):
    """{"all" and each of COCO's sizes: number of objects of a Dataset}, no crowds."""
    areas = [example.areas[~example.crowd] for example in dataset.examples]
    numbers = np.bincount(np.digitize(np.concatenate(areas), LIMITS), minlength=len(SIZES)).tolist()
    return {"all": sum(numbers), **dict(zip(SIZES, numbers, strict=True))}


def median(numbers):
    """Of a Counter; None of an empty one."""
    if not numbers:
        return None
    values, ends = np.array(sorted(numbers)), np.cumsum([numbers[value] for value in sorted(numbers)])
    middle = values[np.searchsorted(ends, ((ends[-1] - 1) // 2, ends[-1] // 2), side="right")]
    return float(middle.mean())


def spread(objects):
    """The median and the extremes as text."""
    return f"{objects['median']:g} ({objects['least']}-{objects['most']})" if objects["objects"] else None


def measure(detector, dataset, keep, advance=lambda: None):
    """A Tally for each stage of a detector, of a whole data set, which must have an image.

    Args:
        keep: so many lost objects are kept.
        advance: called after each image of each of the two passes.
    Raises:
        TfdetError: the detector learns keypoints that the data set has not.
    """

    def of_image(function):
        def found(image, boxes, labels, *others):
            stages = detector.samples(image, boxes, labels, *others)
            return {samples.stage: function(samples, boxes) for samples in stages}

        return found

    epoch = blank_images(dataset, detector, of_image(lambda samples, boxes: counts(samples)), SEED)
    whole = blank_images(dataset, detector, of_image(summary))
    first = detector.samples(*fed_blank(dataset.examples[0], 0, detector))
    tallies = {samples.stage: Tally(samples, keep) for samples in first}
    for found in epoch.as_numpy_iterator():
        for stage, tally in tallies.items():
            tally.add_image(found[stage])
        advance()
    for example, found in zip(dataset.examples, whole.as_numpy_iterator(), strict=True):
        objects = objects_of(example, detector)
        for stage, tally in tallies.items():
            tally.add_objects(example, objects, found[stage])
        advance()
    return tallies


def objects_of(example, detector):
    """The indices of those objects of an Example that the detector is given."""
    return np.arange(len(example.labels)) if detector.wants_crowds else np.flatnonzero(~example.crowd)
