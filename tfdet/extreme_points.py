"""Extreme points: where an object reaches furthest up, left, down and right; and the octagon that they stand for.

After ExtremeNet (Zhou et al. 2019, arXiv:1901.08043; released code: xingyizhou/ExtremeNet). Four points are x, y in
pixels in the order of `skeleton.EXTREME_POINTS`. Where an object ends in a nearly flat edge any point of it would be as
extreme; the middle is taken.
"""

import numpy as np

REACH = 0.02  # of the object's height (for the top and the bottom) or width: so near to the extreme is as extreme

# From its extreme points to the vertices of an octagon, in sides of its box; two for each point.
STEPS = np.array([(1, 0), (-1, 0), (0, -1), (0, 1), (-1, 0), (1, 0), (0, 1), (0, -1)]) / 8


def of_polygons(polygons):
    """The extreme points of an object that is given by its outline.

    Of the first vertex that is extreme and of those right before and after it that are within `REACH`, the middle.
    Height and width are counted with one pixel more. The outline is closed, but seen with one vertex beyond either end
    of the list only: what else goes on there is missed.

    Rounded down to whole pixels they are exactly those of the released code (tools/gen_coco_extreme_points.py). But
    that costs small objects much of their IoU: of boxes that are made of such points of COCO, a tenth of the AP.

    Args:
        polygons: float [N, 2] each, x and y of their vertices. Several are joined to one, in their order.
    Returns:
        float64 [4, 2].
    """
    vertices = np.concatenate(polygons)
    vertices = np.concatenate([vertices[-1:], vertices, vertices[:1]])
    (left, top), (right, bottom) = vertices.min(axis=0), vertices.max(axis=0)
    across, down = REACH * (right - left + 1), REACH * (bottom - top + 1)
    x, y = vertices.T
    points = [
        (_middle(y - top <= down, y.argmin(), x), top),
        (left, _middle(x - left <= across, x.argmin(), y)),
        (_middle(bottom - y <= down, y.argmax(), x), bottom),
        (right, _middle(right - x <= across, x.argmax(), y)),
    ]
    return np.array(points)


def of_mask(mask):
    """The extreme points of an object that is given by its pixels.

    The same rule for a mask: of the columns (for the top and the bottom) with a pixel in the first 2 % of the object's
    rows, those that hang together with the first one that is extreme. The points lie on the edges of its box, as if a
    polygon ran around its pixels.

    (The released code takes pixels, one row after the other, for vertices. For the top and the bottom that is the same,
    but that it jumps over gaps; for the left and the right the pixels that it looks at are mostly those of one row.)

    Args:
        mask: bool [H, W], not all False.
    Returns:
        float64 [4, 2].
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    top, left, bottom, right = rows[0], columns[0], rows[-1] + 1, columns[-1] + 1
    mask = mask[top:bottom, left:right]
    from_top, from_left, from_bottom, from_right = (
        _middle(view[: 1 + int(REACH * len(view))].any(axis=0), view[0].argmax(), np.arange(view.shape[1]), 1)
        for view in (mask, mask.T, mask[::-1], mask.T[::-1])
    )
    points = [(left + from_top, top), (left, top + from_left), (left + from_bottom, bottom), (right, top + from_right)]
    return np.array(points, float)


def _middle(near, extreme, places, size=0):
    """The middle of a stretch of [N] places, each of some size: of those that are near, and their neighbours are, too,
    up to the extreme one, the index of one of them."""
    gaps = np.flatnonzero(~near)
    after = gaps.searchsorted(extreme)
    stretch = places[gaps[after - 1] + 1 if after else 0 : gaps[after] if after < len(gaps) else None]
    return (stretch.min() + stretch.max() + size) / 2


def octagons(points):
    """The octagons of objects of which only the extreme points are known (section 4.4 of the paper; released code).

    At each point there is an edge along the side of the box, a quarter as long as that, cut off at the box's corners.

    Args:
        points: [..., 4, 2].
    Returns:
        float64 [..., 8, 2], x and y of the vertices, from the right end of the top edge on against the clock.
    """
    points = np.asarray(points, float)
    x, y = points[..., 0], points[..., 1]
    low = np.stack([x[..., 1], y[..., 0]], axis=-1)[..., None, :]
    high = np.stack([x[..., 3], y[..., 2]], axis=-1)[..., None, :]
    return np.clip(points.repeat(2, axis=-2) + STEPS * (high - low), low, high)
