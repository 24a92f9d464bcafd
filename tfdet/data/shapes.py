"""A data set that needs no download: circles, squares and triangles on a noisy ground, drawn from a seed."""

import functools
import io

import numpy as np
from PIL import Image

from tfdet.data.dataset import Dataset, Example
from tfdet.errors import DataError
from tfdet.skeleton import EXTREME_POINTS

CLASS_NAMES = ("circle", "square", "triangle")
SPLITS = {"train": 1000, "val": 200, "test": 200}  # split: number of images
MIN_SIZE, MAX_SIZE = 29, 158  # pixels, the longer side of an object; then both sides are within 24 .. 160


@functools.cache
def shapes(split):
    """Draws one split: 240 to 400 pixels a side, 1 to 6 objects of 24 to 160 pixels, 3 % of the images without any.

    Every image has a seed of its own, made of its split and number, so that no image is in two splits and every call,
    on every machine, gives the same boxes. Kept for the life of the process; the arrays are read-only.

    Args:
        split: "train" (1000 images), "val" (200) or "test" (200).

    Returns:
        A `Dataset` whose images are JPEG bytes. Each box is the tightest one around the pixels of its object, and the
        keypoints are where it touches them; an object may hide up to 30 % of the box of another.

    Raises:
        DataError: there is no such split.
    """
    if split not in SPLITS:
        raise DataError(f'shapes: no split "{split}"; there are {", ".join(SPLITS)}')
    return Dataset(
        name=f"shapes {split}",
        class_names=CLASS_NAMES,
        category_ids=tuple(range(1, len(CLASS_NAMES) + 1)),
        examples=tuple(draw_example(split, index) for index in range(SPLITS[split])),
        keypoint_names=EXTREME_POINTS,
    )


def draw_example(split, index):
    """Example number `index` of a split."""
    rng = np.random.default_rng((list(SPLITS).index(split), index))
    width, height = (int(side) for side in rng.integers(240, 401, 2))
    pixels, ground_colors = _draw_ground(rng, width, height)

    boxes, labels, keypoints = [], [], []
    count = 0 if rng.random() < 0.03 else rng.integers(1, 7)
    for _ in range(count):
        for _ in range(30):  # tries to find room
            label = int(rng.integers(3))
            size = np.exp(rng.uniform(np.log(MIN_SIZE), np.log(MAX_SIZE)))
            center = rng.uniform(size * 0.6, (width - size * 0.6, height - size * 0.6))
            angle = rng.uniform(-20, 20)
            box, mask = _rasterise(CLASS_NAMES[label], center, size, angle)
            x1, y1, x2, y2 = box
            if x1 >= 0 and y1 >= 0 and x2 <= width and y2 <= height and not any(_hides(box, other) for other in boxes):
                pixels[y1:y2, x1:x2][mask] = _pick_color(rng, ground_colors)
                boxes.append(box)
                labels.append(label)
                keypoints.append(_extremes(box, mask))
                break

    pixels += rng.integers(-8, 9, (height, width, 1), dtype=np.int8)  # the grain of a photograph
    encoded = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255, out=pixels).astype(np.uint8)).save(encoded, "JPEG", quality=90, subsampling=0)
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    arrays = {
        "boxes": boxes,
        "labels": np.array(labels, np.int32),
        "crowd": np.zeros(len(boxes), bool),
        "difficult": np.zeros(len(boxes), bool),
        "areas": (boxes[:, 2:] - boxes[:, :2]).prod(axis=1),
        "keypoints": np.array(keypoints, np.float32).reshape(-1, len(EXTREME_POINTS), 3),
    }
    for array in arrays.values():
        array.setflags(write=False)  # shared by all who ask for this split
    return Example(
        image_id=f"shapes/{split}/{index:06d}", image=encoded.getvalue(), height=height, width=width, **arrays
    )


def _draw_ground(rng, width, height):
    """A gradient between two muted colours, with faint waves over it.

    Returns:
        pixels float32 [H, W, 3], and the colours that an object must stand out from, [3, 3].
    """
    colors = (rng.uniform(70, 185) + rng.uniform(-25, 25, (2, 3))).astype(np.float32)
    across, down = rng.dirichlet((1, 1)).astype(np.float32)[:, None] * (colors[1] - colors[0])
    x = np.linspace(0, 1, width, dtype=np.float32)
    y = np.linspace(0, 1, height, dtype=np.float32)[:, None]
    waves_x, waves_y = rng.uniform(15, 150, 2).astype(np.float32)  # radians over the image
    waves = 10 * np.sin(y * waves_y) * np.sin(x * waves_x)
    # A plane a channel, seen as [H, W, 3]: numpy is much faster over long rows than over three channels.
    planes = [(colors[0, c] + x * across[c]) + (y * down[c] + waves) for c in range(3)]
    return np.stack(planes).transpose(1, 2, 0), np.stack([colors[0], colors.mean(axis=0), colors[1]])


def _pick_color(rng, ground_colors):
    """Of 16 colours, one that is far from those of the ground."""
    colors = rng.uniform(0, 255, (16, 3))
    distance = np.linalg.norm(colors[:, None] - ground_colors, axis=-1).min(axis=1)
    return colors[np.argmax(distance > 130) if (distance > 130).any() else np.argmax(distance)]


def _rasterise(name, center, size, angle):
    """The pixels whose centres lie in the shape.

    Args:
        center: x, y in pixels.
        size: the longer side of the box, in pixels.
        angle: by which a square or triangle is turned, in degrees.

    Returns:
        box (x1, y1, x2, y2), whole numbers, tight around these pixels, and mask bool [y2 - y1, x2 - x1].
    """
    corner = np.floor(center - size / 2).astype(int)
    x, y = corner[:, None] + np.arange(int(size) + 2) + 0.5  # centres of the pixels of a window around it
    y = y[:, None]
    if name == "circle":
        mask = (x - center[0]) ** 2 + (y - center[1]) ** 2 <= (size / 2) ** 2
    else:
        turns = {"square": (45, 135, 225, 315), "triangle": (30, 150, 270)}[name]
        angles = np.deg2rad(np.array(turns) + angle)
        corners = np.stack([np.cos(angles), np.sin(angles)], axis=1)
        corners -= (corners.max(axis=0) + corners.min(axis=0)) / 2  # the box, not the centroid, is at the center
        corners = center + corners * size / np.ptp(corners, axis=0).max()
        mask = np.ones((len(y), len(x)), bool)
        for (ax, ay), (bx, by) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
            mask &= (bx - ax) * (y - ay) - (by - ay) * (x - ax) >= 0  # inside of each edge
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    x1, y1, x2, y2 = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    return (corner[0] + x1, corner[1] + y1, corner[0] + x2, corner[1] + y2), mask[y1:y2, x1:x2]


def _extremes(box, mask):
    """The keypoints of a shape, x, y and visibility, 4 of them; the middle of the edge where it lies flat."""
    x1, y1, x2, y2 = box
    top, bottom = (x1 + np.flatnonzero(mask[row]).mean() + 0.5 for row in (0, -1))
    left, right = (y1 + np.flatnonzero(mask[:, column]).mean() + 0.5 for column in (0, -1))
    return (top, y1, 2), (x1, left, 2), (bottom, y2, 2), (x2, right, 2)


def _hides(a, b):
    """Do two boxes share over 30 % of the smaller one? (Their IoU is below 0.3 where they do not.)"""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    smaller = min((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return width > 0 and height > 0 and width * height > 0.3 * smaller
