"""COCO's two ways to write which pixels are an object's: polygons, and run lengths (RLE) of a mask.

RLE counts the pixels of the columns, one after the other, that are not the object's, that are, that are not, ...
Compressed, each count is a few characters (pycocotools, maskApi.c). A mask is kept so, as pycocotools takes it:
{"size": [height, width], "counts": bytes}.
"""

import numpy as np
from pycocotools import mask as coco_mask

from tfdet import extreme_points
from tfdet.data.validation import TOLERANCE, is_number, quoted


def read_segmentation(segmentation, width, height):
    """The "segmentation" of an annotation.

    pycocotools is not asked about what may be wrong: it would read beyond the end of runs that are too short, and take
    two points for a box.

    Args:
        segmentation: as it stands in the JSON, or None.
        width, height: of the image in pixels.
    Returns:
        The mask, its extreme points float64 [4, 2] (see `extreme_points`), and None; or None, None, and what is wrong.
    """
    if segmentation is None:
        return None, None, 'has no "segmentation"'
    if isinstance(segmentation, dict):
        runs, fault = _runs(segmentation, width, height)
        if fault:
            return None, None, f"segmentation: {fault}"
        mask = np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(width, height).T
        points = extreme_points.of_mask(mask)
        rle = {"size": [height, width], "counts": runs}
        return coco_mask.frPyObjects(rle, height, width), points, None
    polygons, fault = _polygons(segmentation, width, height)
    if fault:
        return None, None, f"segmentation: {fault}"
    points = np.clip(extreme_points.of_polygons(polygons), 0, (width, height))
    rles = coco_mask.frPyObjects([polygon.ravel() for polygon in polygons], height, width)
    return coco_mask.merge(rles), points, None


def _polygons(segmentation, width, height):
    """float64 [N, 2] of each, and None; or None and what is wrong."""
    if not isinstance(segmentation, list) or not segmentation:
        return None, f"{quoted(segmentation)} is neither a list of polygons nor an RLE"
    polygons = []
    for i, values in enumerate(segmentation):
        if not isinstance(values, list) or not all(map(is_number, values)):
            return None, f"polygon {i}, {quoted(values)}, is not a list of numbers"
        if len(values) < 6 or len(values) % 2:
            return None, f"polygon {i} has {len(values)} numbers, not x and y of at least 3 points"
        polygon = np.array(values, float).reshape(-1, 2)
        if not np.isfinite(polygon).all():
            return None, f"polygon {i} has a coordinate that is not finite"
        if (abs(polygon - np.clip(polygon, 0, (width, height))) > TOLERANCE).any():
            return None, f"polygon {i} leaves the image of {width}x{height} pixels"
        polygons.append(polygon)
    return polygons, None


def _runs(rle, width, height):
    """The run lengths of an RLE, compressed or not, as a list, and None; or None and what is wrong."""
    size, runs = rle.get("size"), rle.get("counts")
    if size != [height, width]:
        return None, f"the RLE's size is {quoted(size)}, not [height, width] = [{height}, {width}]"
    runs = _decompressed(runs) if isinstance(runs, str) else runs
    if not isinstance(runs, list) or not all(type(run) is int and run >= 0 for run in runs):
        return None, f"the RLE's counts, {quoted(rle.get('counts'))}, are no run lengths"
    if sum(runs) != width * height:
        return None, f"the RLE has {sum(runs)} pixels, not {width}x{height}"
    if not any(runs[1::2]):
        return None, "the RLE has no pixel of the object"
    return runs, None


def _decompressed(text):
    """The run lengths that the text of a compressed RLE says; None where it says none.

    A character holds five bits, the lowest first, and whether more follow; the last one's highest bit is the sign. From
    the fourth on numbers are differences from the one before the last.
    """
    runs, value, bits = [], 0, 0
    for character in text:
        code = ord(character) - 48
        if not 0 <= code < 64 or bits > 30:
            return None
        value |= (code & 31) << bits
        bits += 5
        if code < 32:  # the last one of a number
            value -= (1 << bits) if code & 16 else 0
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = bits = 0
    return None if bits else runs
