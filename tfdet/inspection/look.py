"""What samples and objects look like and are called, in the pictures and on the page of a report alike."""

import numpy as np

from tfdet import drawing

# What a sample is called, and how it is told in legends; what comes later lies on top of what comes earlier.
KINDS = {
    "negative": "negative, some of those drawn",
    "ignored": "ignored",
    "landmark": "landmarks",
    "part": "part of an object",
    "positive": "positive, colour of its object",
}
ORDER = list(KINDS)
DASHES = {"ignored": (5, 4), "part": (9, 5), "landmark": (2, 4)}  # pixels drawn, pixels left out
WHITE, GREY, DARK, RED = (255, 255, 255), (170, 175, 181), (20, 22, 26), (255, 45, 60)
COLORLESS = {"negative": GREY, "ignored": WHITE}

# Of the colours of classes those that are seen on a darkened photograph.
LIGHT = [label for label in range(84) if np.dot(drawing.class_color(label), (0.299, 0.587, 0.114)) > 105]

# The strokes of points that are not just a place, in units of about a hundredth of the image: x, y of each bend.
MARKS = {
    "top_left": ((0, 2), (0, 0), (2, 0)),
    "bottom_right": ((0, -2), (0, 0), (-2, 0)),
    "top": ((-1.5, 1.2), (0, 0), (1.5, 1.2)),
    "left": ((1.2, -1.5), (0, 0), (1.2, 1.5)),
    "bottom": ((-1.5, -1.2), (0, 0), (1.5, -1.2)),
    "right": ((-1.2, -1.5), (0, 0), (-1.2, 1.5)),
}
# RGBA of the values 0 .. 255 of a heatmap: from nothing through violet to white.
HEAT = [np.interp(np.arange(256), (0, 128, 255), to) for to in ((110, 190, 255), (40, 90, 255), (235, 245, 255))]
HEAT = np.stack([*HEAT, np.minimum(np.arange(256) * 1.3, 235)], axis=1).round().astype(np.uint8)

CROWDED = 100  # boxes of positives of a panel from which on their lines are thinner
MANY = 40  # of so many objects each has a name and a large cross; of more only the largest, and small crosses


def title(part) -> str:
    """Of a panel or row: its detector, the stage of it, and the settings that were changed."""
    return " · ".join(part[key] for key in ("detector", "stage", "settings") if part[key])


def counted(counts) -> str:
    """How many samples of the whole image are what; "...s drawn" stands in brackets behind what some are drawn of."""
    parts = []
    for kind, number in counts.items():
        drawn = counts.get(f"{kind}s drawn", number)
        if kind.removesuffix("s drawn") == kind or kind.removesuffix("s drawn") not in counts:
            parts.append(f"{number:,} {kind}" + (f" ({drawn:,} drawn)" if drawn != number else ""))
    return ", ".join(parts)


def truth_counted(objects) -> str:
    """How many of the objects are no crowd regions, and how many are."""
    crowds = sum(thing["crowd"] for thing in objects)
    return _several(len(objects) - crowds, "object") + (f", {_several(crowds, 'crowd region')}" if crowds else "")


def _several(number, things):
    return f"{number:,} {things}" if number == 1 else f"{number:,} {things}s"


def name(thing) -> str:
    """What an object is called."""
    return f"{thing['label']} (crowd)" if thing["crowd"] else str(thing["label"])


def object_color(index) -> tuple[int, int, int]:
    """RGB of the object with this index in its image."""
    return drawing.class_color(object_class(index))


def object_class(index) -> int:
    """A class whose colour is light, for each index another one; after 84 the colours come back."""
    return LIGHT[index % len(LIGHT)] + 84 * (index // len(LIGHT))


def color_of(sample) -> tuple[int, int, int]:
    """RGB of a sample: that of its object, or of its kind if it serves none."""
    if sample["object"] is None or sample["kind"] in COLORLESS:
        return COLORLESS.get(sample["kind"], WHITE)
    return object_color(sample["object"])


def is_dot(sample) -> bool:
    """Whether a sample is a point that no stroke of MARKS tells from others."""
    return sample["shape"] == "point" and sample["text"] not in MARKS


def bends(sample, unit) -> np.ndarray:
    """The stroke that marks a point, float [P, 2] x, y; of a dot its middle, twice."""
    x1, y1, x2, y2 = sample["box"]
    return np.array([(x1 + x2) / 2, (y1 + y2) / 2]) + unit * np.array(MARKS.get(sample["text"], ((0, 0), (0, 0))))


def heat(values) -> np.ndarray:
    """Values float [h, w] between 0 and 1 -> uint8 [h, w]: which row of HEAT they are."""
    return (np.clip(values, 0, 1) * 255).round().astype(np.uint8)


def is_crowded(panel) -> bool:
    """Whether a panel has so many boxes that thick lines would hide the photograph."""
    return sum(s["shape"] == "box" and s["kind"] not in COLORLESS for s in panel["samples"]) >= CROWDED


def named(objects) -> list[int]:
    """The indices of those objects whose names have room in a picture, the largest."""
    largest_first = sorted(range(len(objects)), key=lambda i: -box_area(objects[i]["box"]))
    return sorted(largest_first[:MANY])


def box_area(box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def cross(box, reach) -> np.ndarray:
    """The two lines of a cross in the middle of a box, float [2, 2, 2]: of each both ends, x and y."""
    middle = (np.array(box[:2], float) + box[2:]) / 2
    return middle + reach * np.array([[(-1, -1), (1, 1)], [(-1, 1), (1, -1)]])


def legend_entries(panels) -> list[tuple[str, str]]:
    """What the panels have, as pairs of a kind, one of KINDS or "truth", "heatmap" or "lost", and what it means."""
    present = {sample["kind"] for panel in panels for sample in panel["samples"]}
    entries = [("truth", "ground truth")]
    entries += [(kind, meaning) for kind, meaning in reversed(KINDS.items()) if kind in present]
    if any(panel["heatmaps"] for panel in panels):
        entries.append(("heatmap", "heatmap"))
    if any(panel["lost"] for panel in panels):
        entries.append(("lost", "lost object"))
    return entries
