"""What there is to draw of an image: its objects, and the samples that each detector has in it, in its own pixels."""

import numpy as np
from keras import ops

from tfdet.assigners import IGNORED, NEGATIVE
from tfdet.data.images import load_image
from tfdet.data.pipeline import fed_blank
from tfdet.inspection.samples import COUNTS, counts, positives
from tfdet.inspection.statistics import objects_of

MOST = {"positive": 600, "ignored": 60, "negative": 60}  # samples of each kind


def picture(dataset, number, rows):
    """All of one image, decoded.

    Args:
        number: of the image in the set.
        rows: pairs of a `choice.Choice` and its detector.
    Returns:
        {"image": id, "width", "height", "pixels" uint8 [H, W, 3], "objects": [{"box", "label", "crowd"}], "panels"}.
    """
    example = dataset.examples[number]
    names = [dataset.class_names[label] for label in example.labels]
    columns = example.boxes.tolist(), names, example.crowd.tolist()
    return {
        "image": example.image_id,
        "width": example.width,
        "height": example.height,
        "pixels": load_image(example.image),
        "objects": [dict(zip(("box", "label", "crowd"), row, strict=True)) for row in zip(*columns, strict=True)],
        "panels": [panel for choice, detector in rows for panel in panels(dataset, number, choice, detector)],
    }


def panels(dataset, number, choice, detector):
    """One for each stage of a detector, as the image is fed in evaluation.

    Returns:
        list of {"detector", "stage", "settings", "counts" of all samples, "samples" (the best positives, some ignored
        ones, some negatives of the loss), "heatmaps", "lost": {index of the object, as text: why}}.
    """
    example = dataset.examples[number]
    image, boxes, *others = fed_blank(example, number, detector)
    scale = ops.convert_to_numpy(detector.resizer.scale(example.height, example.width))
    objects, rng = objects_of(example, detector), np.random.default_rng(number)
    for samples in detector.samples(image, boxes, *others):
        heatmaps = _heatmaps(samples, dataset, example, np.array(image.shape[1::-1]) / scale[:2])
        yield {
            "detector": choice.detector,
            "stage": samples.stage,
            "settings": choice.settings,
            "counts": _counts(samples),
            "samples": _positives(samples, boxes, objects, scale, rng) + _others(samples, example, scale, rng),
            "heatmaps": list(heatmaps),
            "lost": {str(objects[i]): samples.reasons[why - 1] for i, why in enumerate(_array(samples.why)) if why},
        }


def _array(tensor):
    return ops.convert_to_numpy(tensor)


def _counts(samples):
    number = dict(zip(COUNTS, _array(counts(samples)).tolist(), strict=True))
    shown = {"positive": "positives", "ignored": "ignored", "negative": "negatives"}
    drawn = {"positives drawn": "positives_drawn", "negatives drawn": "negatives_drawn"}
    soft = {"negatives near a point": "softened"} if samples.heatmaps else {}
    found = {name: number[key] for name, key in (shown | drawn | soft).items()}
    if samples.shape == "box" and samples.kinds:  # of MTCNN, whose parts serve their objects too
        kinds = _array(samples.kind)[_array(samples.matched) >= 0]
        found.pop("positives drawn")
        found |= {kind: np.count_nonzero(kinds == i) for i, kind in enumerate(samples.kinds)}
    return found


def _positives(samples, boxes, objects, scale, rng):
    places, own, overlaps = map(_array, positives(samples, boxes))
    better = -overlaps if samples.shape == "box" else rng.random(len(own))  # of points some, by lot
    order = np.lexsort((better, own))
    starts = np.flatnonzero(np.diff(own[order], prepend=-1))
    rank = np.arange(len(own)) - np.repeat(starts, np.diff(starts, append=len(own)))
    order = order[np.argsort(rank, kind="stable")][: MOST["positive"]]  # of each object the best one first
    if samples.shape == "box":
        texts = [f"IoU {overlap:.2f}" for overlap in overlaps[order]]
        names = [samples.kinds[kind] for kind in _array(samples.kind)[places[order]]] if samples.kinds else "positive"
    else:
        kinds = _array(samples.kind)[places[order]] if samples.kinds else []
        texts, names = [samples.kinds[kind] for kind in kinds] or [""] * len(order), "positive"
    return _rows(names, samples, places[order], scale, objects[own[order]].tolist(), texts)


def _others(samples, example, scale, rng):
    """Some of those that serve nobody and lie on the image, by lot."""
    boxes, matched = _array(samples.boxes) / scale, _array(samples.matched)
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    seen = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    seen &= ((centres >= 0) & (centres <= (example.width, example.height))).all(axis=1)
    rows = []
    for kind, which in (("ignored", matched == IGNORED), ("negative", (matched == NEGATIVE) & _array(samples.drawn))):
        places = np.flatnonzero(which & seen)
        places = np.sort(rng.choice(places, min(MOST[kind], len(places)), replace=False))
        rows += _rows(kind, samples, places, scale, [None] * len(places), [""] * len(places))
    return rows


def _rows(kinds, samples, places, scale, objects, texts):
    kinds = [kinds] * len(places) if isinstance(kinds, str) else kinds
    boxes, levels = (_array(samples.boxes)[places] / scale).tolist(), _array(samples.levels)[places].tolist()
    return [
        {"kind": kind, "shape": samples.shape, "box": box, "object": owner, "level": level, "text": text}
        for kind, box, owner, level, text in zip(kinds, boxes, objects, levels, texts, strict=True)
    ]


def _heatmaps(samples, dataset, example, size):
    """Those of the classes that are in the image; size: width and height of the fed image in the image's pixels."""
    for kind, heatmap in samples.heatmaps.items():
        for label in np.unique(example.labels[~example.crowd]):
            title = dataset.class_names[label] + (f", {kind}" if len(samples.heatmaps) > 1 else "")
            yield {"title": title, "values": _array(heatmap[..., label]), "box": [0.0, 0.0, *size.tolist()]}
