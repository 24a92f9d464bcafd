"""Faces brought to one size and position by their landmarks, as networks that recognise faces want them."""

import math

import numpy as np
from PIL import Image

SIDE = 112
# Where tfdet.skeleton.FACE come to lie in a picture of 112 x 112 pixels: InsightFace's (Deng et al. 2019, ArcFace).
PLACES = ((38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655), (70.7299, 92.2041))


def similarity(points, targets):
    """The turn, scale and shift that bring points as near as possible to targets, by least squares (Umeyama 1991).

    Args:
        points, targets: [J, 2], x and y; not all points in one place.
    Returns:
        float64 [2, 3]: a point p goes to M[:, :2] @ p + M[:, 2].
    """
    # As complex numbers: target = turn * point + shift, of which the turn holds the scale.
    points, targets = (np.asarray(one, float) @ (1, 1j) for one in (points, targets))
    centre, target_centre = points.mean(), targets.mean()
    turn = np.vdot(points - centre, targets - target_centre) / np.vdot(points - centre, points - centre).real
    shift = target_centre - turn * centre
    return np.array([[turn.real, -turn.imag, shift.real], [turn.imag, turn.real, shift.imag]])


def aligned(image, landmarks, side=SIDE):
    """A face of an image, upright, its landmarks near PLACES: a PIL image of side x side, black beside the photograph.

    Args:
        image: uint8 [H, W, 3]. landmarks: [5, 2], x and y in pixels, in the order of tfdet.skeleton.FACE.
    """
    # From the picture into the photograph. A pixel of the picture is the mean of several, where it is coarser.
    back = similarity(np.array(PLACES) * side / SIDE, landmarks)
    finer = max(1, math.ceil(math.hypot(*back[:, 0])))
    coefficients = back / [finer, finer, 1]
    picture = Image.fromarray(image).transform(
        (side * finer, side * finer), Image.Transform.AFFINE, coefficients.ravel(), Image.Resampling.BILINEAR
    )
    return picture.reduce(finer)
