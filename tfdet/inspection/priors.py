"""Sizes of priors and anchors that fit the boxes of a data set."""

from functools import partial

import numpy as np
from keras import ops

from tfdet.anchors import PriorBox
from tfdet.detectors.faster_rcnn import fpn_anchors
from tfdet.detectors.retinanet import retinanet_anchors
from tfdet.detectors.ssd import ssd300_priors
from tfdet.errors import TfdetError
from tfdet.inspection.statistics import REACHED

SETTINGS = {"ssd300": "prior_sizes", "faster_rcnn_fpn": "anchor_sizes", "retinanet": "anchor_sizes"}  # of the recipe
BOXES = 20_000  # so many, drawn by lot, stand for all
APART = 1.15  # the size of a level is at least so many times that of the finer one


def suggest(name, detector, dataset):
    """Sizes that fit the boxes of a Dataset as they are fed in evaluation, for one of the detectors of SETTINGS.

    The boxes are clustered by IoU (`k_means`). Each cluster is a size for a level, the finest first; what levels are
    left go on in equal steps to the largest size that there is now. The cells of coarse levels lie far apart, and small
    boxes between them; so all numbers of clusters are tried, and that is taken with which most objects are reached.

    Returns:
        list of float, for the recipe's setting; None if none of these reach more objects than the present ones.
    Raises:
        TfdetError: there are no boxes.
    """
    present, generators, largest = _levels(name, detector)
    boxes = fed_boxes(detector, dataset)
    sides, candidates = boxes[:, 2:] - boxes[:, :2], []
    for clusters in range(1, len(present) + 1):
        sizes = np.sort(k_means(sides, clusters).prod(axis=1) ** 0.5 / largest**0.5)
        sizes = _apart(np.maximum(sizes, 1.0))  # no recipe takes less
        rest = len(present) - len(sizes)
        top = max(present[-1], sizes[-1] * APART**rest)
        candidates.append([*sizes[:-1], *np.geomspace(sizes[-1], top, rest + 1)])
    candidates = [[round(float(size), 1) for size in sizes] for sizes in candidates]

    reached = [recall(boxes, generators(sizes)) for sizes in (*candidates, present)]
    best = max(range(len(candidates)), key=reached.__getitem__)
    return candidates[best] if reached[best][0] > reached[-1][0] else None


def _levels(name, detector):
    """Of a detector its sizes, a function from sizes to its PriorBoxes or AnchorGenerators, and how many times as large
    as the smallest the largest anchor of a level is."""
    if name == "ssd300":
        priors = detector.settings["priors"]
        return [*(prior.min_size for prior in priors), priors[-1].max_size], ssd300_priors, 1.0
    sizes = [generator.sizes[0] for generator in detector.settings["anchors"]]
    if name == "retinanet":
        return sizes, retinanet_anchors, 2 ** (2 / 3)
    return sizes, partial(fpn_anchors, finest=7 - len(sizes)), 1.0


def _apart(sizes):
    """Those of rising sizes that are so much larger than the one before."""
    kept = []
    for size in sizes:
        if not kept or size >= APART * kept[-1]:
            kept.append(size)
    return kept


def fed_boxes(detector, dataset):
    """Boxes float64 [N, 4], at most BOXES, in pixels of the fed image, as they are fed in evaluation; no crowds.

    Raises:
        TfdetError: there are none.
    """
    own = [example.boxes[~example.crowd] for example in dataset.examples]
    sides = np.repeat([(one.height, one.width) for one in dataset.examples], [len(boxes) for boxes in own], axis=0)
    boxes = np.concatenate(own)
    if not len(boxes):
        raise TfdetError(f"{dataset.name}: no boxes, so there are no sizes to suggest")
    if len(boxes) > BOXES:
        chosen = np.random.default_rng(0).choice(len(boxes), BOXES, replace=False)
        boxes, sides = boxes[chosen], sides[chosen]
    return boxes * ops.convert_to_numpy(detector.resizer.scale(*sides.T)).astype(float)


def k_means(sizes, clusters, rounds=100):
    """Clusters of boxes by 1 - IoU, all boxes being laid on one centre; it starts with groups of like areas.

    Args:
        sizes: float [N, 2], widths and heights.
    Returns:
        float [K, 2], the mean of each cluster, K being `clusters`, or the number of boxes if there are fewer.
    """
    groups = np.array_split(sizes[np.argsort(sizes.prod(axis=1), kind="stable")], min(clusters, len(sizes)))
    centres = np.array([group.mean(axis=0) for group in groups])
    for _ in range(rounds):
        own = overlaps(sizes, centres).argmax(axis=1)
        counts = np.bincount(own, minlength=len(centres))[:, None]
        sums = np.stack([np.bincount(own, side, minlength=len(centres)) for side in sizes.T], axis=1)
        before, centres = centres, np.where(counts > 0, sums / np.maximum(counts, 1), centres)
        if np.array_equal(before, centres):
            break
    return centres


def overlaps(sizes, others, distances=0.0):
    """IoU [N, K] of boxes of widths and heights [N, 2] and [K, 2] whose centres are so far apart, [N, 2], across and
    down."""
    a, b = sizes[:, None], others[None]
    distances = np.broadcast_to(distances, sizes.shape)[:, None]
    shared = np.clip((a + b) / 2 - distances, 0, np.minimum(a, b)).prod(axis=-1)
    return shared / (a.prod(axis=-1) + b.prod(axis=-1) - shared)


def recall(boxes, generators):
    """Which share of boxes [N, 4] has a prior or anchor of enough IoU, and the mean of their best IoUs.

    The best one is in the cell whose centre is nearest. (That there are no cells beside the image is left out.)
    """
    sizes, centres = boxes[:, 2:] - boxes[:, :2], (boxes[:, :2] + boxes[:, 2:]) / 2
    best = np.zeros(len(boxes))
    for generator in generators:
        if isinstance(generator, PriorBox):
            own, stride = generator.sizes(), generator.step
        else:
            own, stride = generator.widths_and_heights(), generator.stride
        cells = centres / stride - generator.offset
        best = np.maximum(best, overlaps(sizes, own, abs(cells - cells.round()) * stride).max(axis=1))
    return (best >= REACHED).mean(), best.mean()
