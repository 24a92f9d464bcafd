"""Pictures for people: boxes and skeletons on images, ground truth beside predictions, curves of a training run.

Images are PIL's or uint8 [H, W, 3] arrays (RGB); boxes are xyxy in pixels of the image they are drawn on.
"""

import os
import re
from collections.abc import Sequence

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image, ImageDraw, ImageFont

from tfdet import extreme_points, skeleton
from tfdet.data.dataset import Example
from tfdet.inference import Detections

# Okabe and Ito, "Color Universal Design" (2008), without black: told apart by people with any kind of colour vision.
# The order puts unlike colours first, because most data sets that are looked at closely have few classes.
PALETTE = ((230, 159, 0), (86, 180, 233), (213, 94, 0), (0, 158, 115), (204, 121, 167), (240, 228, 66), (0, 114, 178))
# After each turn through the palette the hues come back with the next of these: lighter (> 0) or darker (< 0).
SHADES = (0, -0.5, 0.5, -0.25, 0.25, -0.65, 0.7, -0.37, 0.37, -0.12, 0.12, 0.6)

# Of keypoints and limbs, by tfdet.skeleton.side; a limb between the two sides has that of the middle. Neither is the
# colour of the first class, in whose boxes they mostly lie.
SIDE_COLORS = {"left": PALETTE[1], "right": PALETTE[4], "": PALETTE[5]}

MARGIN = 8  # pixels between the pictures of a grid
CAPTION = 26  # height in pixels of a line of text above each of them
CELL = 640  # longest side in pixels of an image in `truth_and_predictions`


def class_color(label: int) -> tuple[int, int, int]:
    """RGB of class `label`: 84 different ones, the first seven unlike each other in hue; tags tell the others apart."""
    color = np.array(PALETTE[label % len(PALETTE)], float)
    shade = SHADES[label // len(PALETTE) % len(SHADES)]
    color = color + (255 - color) * shade if shade > 0 else color * (1 + shade)
    return tuple(round(channel) for channel in color)


def draw_boxes(image, boxes, labels, class_names: Sequence[str], scores=None, color=None) -> Image.Image:
    """A copy of the image with a frame in the colour of its class, and a tag with its name, for every box.

    Lines and letters grow with the image. With `scores` the tags show them, and better boxes lie over worse ones.

    Args:
        image: PIL image or uint8 [H, W, 3].
        boxes: [K, 4] xyxy pixels. labels: [K], 0 .. C-1. scores: [K] or None.
        color: RGB for all boxes instead of the colours of the classes.
    """
    image = _as_image(image).copy()
    draw = ImageDraw.Draw(image)
    side = (image.width * image.height) ** 0.5
    line = max(2, round(side / 300))
    font = ImageFont.load_default(max(11, round(side / 48)))
    best_first = range(len(boxes)) if scores is None else np.argsort(-np.asarray(scores), kind="stable").tolist()
    colors = [tuple(color) if color is not None else class_color(int(label)) for label in labels]
    texts = [class_names[int(label)] for label in labels]
    if scores is not None:
        texts = [f"{text} {float(score):.2f}" for text, score in zip(texts, scores, strict=True)]

    for i in reversed(best_first):
        x1, y1, x2, y2 = (round(float(value)) for value in boxes[i])
        draw.rectangle((x1, y1, max(x1, x2 - 1), max(y1, y2 - 1)), outline=colors[i], width=line)

    # Tags come after all the frames, so that no frame crosses a name.
    height = draw.textbbox((0, 0), "Hg", font=font)[3] + 2 * line
    places = {}
    for i in best_first:
        width = round(draw.textlength(texts[i], font=font)) + 4 * line
        places[i] = free_place(boxes[i], width, height, image.size, places.values())
    for i in reversed(best_first):
        x1, y1, x2, y2 = places[i]
        dark = np.dot(colors[i], (0.299, 0.587, 0.114)) < 110
        # The rim keeps tags of one class apart where they lie upon each other.
        draw.rectangle((x1, y1, x2 - 1, y2 - 1), fill=colors[i], outline="white" if dark else "black")
        draw.text((x1 + 2 * line, y1 + line), texts[i], fill="white" if dark else "black", font=font)
    return image


def draw_keypoints(image, keypoints, shown, names: Sequence[str]) -> Image.Image:
    """A copy of the image with a dot for each keypoint and a line for each limb; left is blue, right is pink.

    Of extreme points the octagon is drawn that they stand for, if all four are shown.

    Args:
        image: PIL image or uint8 [H, W, 3].
        keypoints: [K, J, 2] x, y in pixels. shown: bool [K, J]; a limb is drawn if both of its ends are.
        names: of the keypoints.
    """
    image = _as_image(image).copy()
    draw = ImageDraw.Draw(image)
    line = max(2, round((image.width * image.height) ** 0.5 / 180))
    sides = [skeleton.side(name) for name in names]
    limbs = [(a, b, _of_limb(sides[a], sides[b])) for a, b in skeleton.limbs(names)]
    of_outlines = tuple(names) == skeleton.EXTREME_POINTS
    for points, visible in zip(np.asarray(keypoints).tolist(), np.asarray(shown).tolist(), strict=True):
        if of_outlines and all(visible):
            outline = extreme_points.octagons(points).ravel().tolist()
            draw.polygon(outline, outline=SIDE_COLORS[""], width=line)
        for a, b, side in limbs:
            if visible[a] and visible[b]:
                draw.line((*points[a], *points[b]), fill=SIDE_COLORS[side], width=line)
        for (x, y), side, drawn in zip(points, sides, visible, strict=True):
            if drawn:
                box = (x - 1.5 * line, y - 1.5 * line, x + 1.5 * line, y + 1.5 * line)
                draw.ellipse(box, fill=SIDE_COLORS[side], outline="black")
    return image


def draw_peaks(image, peaks, found: Detections, min_score: float = 0.3) -> Image.Image:
    """A copy of the image with what detections are made of: a dot for each peak of a heatmap, the larger the better.

    Peaks that a detection is made of are filled, and joined to the middle of its box by a line; others are hollow, and
    drawn if they score at least `min_score`. A legend says which colour is what.

    Args:
        peaks: {name: {"points" [N, 2] in pixels, "scores" [N], "labels" [N]}} (see `detectors.base.unscaled_peaks`).
        found: the detections to show.
    """
    image = _as_image(image).copy()
    draw = ImageDraw.Draw(image)
    line = max(1, round((image.width * image.height) ** 0.5 / 300))
    middles = (found.boxes[:, :2] + found.boxes[:, 2:]) / 2
    for color, (name, peak) in zip(PALETTE, peaks.items(), strict=False):
        points = np.clip(peak["points"], 0, image.size)
        parts = _parts(name, points, peak["labels"], found)
        for middle, part in zip(middles, parts, strict=True):
            if part >= 0:
                draw.line((*middle, *points[part]), fill=color, width=line)
        used = np.isin(np.arange(len(points)), parts)
        for i in np.flatnonzero(used | (peak["scores"] >= min_score))[::-1].tolist():  # the best lies on top
            (x, y), radius = points[i], line * (2 + 3 * peak["scores"][i])
            circle = (x - radius, y - radius, x + radius, y + radius)
            draw.ellipse(circle, fill=color if used[i] else None, outline="black" if used[i] else color, width=line)
    size = max(11, 6 * line)
    font = ImageFont.load_default(size)
    width = max(draw.textlength(name, font=font) for name in peaks)
    draw.rectangle((0, 0, width + 2 * size, (len(peaks) + 0.5) * size * 1.2), fill="black")
    for row, (color, name) in enumerate(zip(PALETTE, peaks, strict=False)):
        y = (row + 0.75) * size * 1.2
        draw.ellipse((size * 0.3, y - size * 0.35, size, y + size * 0.35), fill=color)
        draw.text((size * 1.3, y), name.replace("_", " "), fill="white", font=font, anchor="lm")
    return image


def _parts(name, points, labels, found):
    """int [K]: which of the peaks [N] of that name each detection is made of, or -1."""
    boxes = found.boxes
    if name in skeleton.EXTREME_POINTS:
        places = found.keypoints[:, skeleton.EXTREME_POINTS.index(name)]
    else:
        places = {"top_left": boxes[:, :2], "bottom_right": boxes[:, 2:]}.get(name, (boxes[:, :2] + boxes[:, 2:]) / 2)
    distances = np.linalg.norm(points - places[:, None], axis=-1)
    if name == "centre":  # that of a box which the border of the image cuts off is not its middle
        near = ((points >= boxes[:, None, :2]) & (points <= boxes[:, None, 2:])).all(axis=-1)
    else:
        near = distances < 1
    near &= labels == found.labels[:, None]
    return np.where(near.any(axis=1), np.where(near, distances, np.inf).argmin(axis=1), -1)


def _of_limb(one, other):
    """The side of a limb between keypoints of these sides."""
    sides = {one, other} - {""}
    return sides.pop() if len(sides) == 1 else ""


def free_place(box, width, height, image_size, taken):
    """Where a tag of this size goes, xyxy: above its box, or else inside a tall one, below a flat one, where it finds
    room between the tags already placed; always inside the image, if it is as large as the tag."""
    x = max(0, min(round(float(box[0])), image_size[0] - width))
    top, bottom = round(float(box[1])), round(float(box[3]))
    second = (top, bottom) if bottom - top > 3 * height else (bottom, top)
    ys = [y for y in (top - height, *second, bottom - height) if 0 <= y <= image_size[1] - height] or [0]
    places = [(x, y, x + width, y + height) for y in ys]
    for place in places:
        x1, y1, x2, y2 = place
        if all(x2 <= left or right <= x1 or y2 <= upper or lower <= y1 for left, upper, right, lower in taken):
            return place
    return places[0]


def grid(images: Sequence, columns: int, captions: Sequence[str] | None = None) -> Image.Image:
    """The images in rows of `columns`, scaled to fit one cell size, on white, each with its caption above.

    The cell has the median width and the median height of the images; shapes are kept, and small images are enlarged.
    A row is as high as its highest picture.

    Raises:
        ValueError: no images, or not as many captions as images.
    """
    images = [_as_image(image) for image in images]
    if not images:
        raise ValueError("a grid needs at least one image")
    if captions is not None and len(captions) != len(images):
        raise ValueError(f"{len(images)} images but {len(captions)} captions")
    cell_width = int(np.median([image.width for image in images]))
    cell_height = int(np.median([image.height for image in images]))
    images = [_scaled(image, min(cell_width / image.width, cell_height / image.height)) for image in images]
    lines = 0 if captions is None else max(len(caption.splitlines()) for caption in captions)
    above = lines * CAPTION
    columns = min(columns, len(images))
    heights = [above + max(image.height for image in images[i : i + columns]) for i in range(0, len(images), columns)]
    size = (columns * (cell_width + MARGIN) + MARGIN, sum(heights) + (len(heights) + 1) * MARGIN)
    sheet = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(16)
    for i, image in enumerate(images):
        row, column = divmod(i, columns)
        x, y = MARGIN + column * (cell_width + MARGIN), MARGIN + sum(heights[:row]) + row * MARGIN
        sheet.paste(image, (x + (cell_width - image.width) // 2, y + above))
        for number, text in enumerate(captions[i].splitlines() if captions is not None else ()):
            place = (x + cell_width // 2, y + number * CAPTION + CAPTION // 2)
            draw.text(place, _shortened(text, cell_width, font), fill="black", font=font, anchor="mm")
    return sheet


def truth_and_predictions(
    images: Sequence,
    examples: Sequence[Example],
    detections: Sequence[Detections],
    class_names: Sequence[str],
    min_score: float = 0.3,
    keypoint_names: Sequence[str] = (),
) -> Image.Image:
    """Pairs of pictures: annotated objects at the left, detections that score at least `min_score` at the right.

    Up to four images stand one below the other, more of them in two columns of pairs.

    Args:
        images: the pictures, as stored, of the examples. examples, detections: of the same images in the same order.
        keypoint_names: if there are any, skeletons are drawn, too.

    Raises:
        ValueError: the three differ in length, or an example and its detections in their image.
    """
    pictures, captions = [], []
    for image, example, found in zip(images, examples, detections, strict=True):
        if example.image_id != found.image_id:
            raise ValueError(f"detections of image {found.image_id!r} beside image {example.image_id!r}")
        image = _as_image(image)
        # Scaled before it is drawn on, so that lines and letters have the same size in every row.
        scale = CELL / max(image.size)
        image = _scaled(image, scale)
        found = found.where(found.scores >= min_score)
        truth = draw_boxes(image, example.boxes * scale, example.labels, class_names)
        predicted = draw_boxes(image, found.boxes * scale, found.labels, class_names, found.scores)
        if keypoint_names:
            own = example.keypoints
            truth = draw_keypoints(truth, own[..., :2] * scale, own[..., 2] > 0, keypoint_names)
            shown = found.keypoint_scores > 0
            predicted = draw_keypoints(predicted, found.keypoints * scale, shown, keypoint_names)
        pictures += [truth, predicted]
        captions.append(f"{example.image_id}: {len(example.boxes)} annotated")
        captions.append(f"{len(found.scores)} predicted with a score of at least {min_score:.2f}")
    return grid(pictures, 2 if len(images) <= 4 else 4, captions)


def curves(history: dict[str, list[float]], path: str | os.PathLike) -> None:
    """Draw a training run: losses, AP where there is any, the learning rate where it was logged; epochs along x.

    Args:
        history: as `History.history`: one value an epoch. "val_x" is drawn dashed in the colour of "x". Average
            precisions (AP, keypoint_AP50, .. with or without "val_") share an axis, recalls (AR..) are left out, all
            other names count as losses. NaN leaves a gap.
        path: of the picture, PNG or whatever the suffix says. Its folder exists.
    """
    precision = [
        name for name in history if re.fullmatch(r"(val_)?(((keypoint|mask)_)?AP(50|75|s|m|l)?|VOC_AP\w*)", name)
    ]
    recall = [name for name in history if re.fullmatch(r"(val_)?((keypoint|mask)_)?AR(1|10|100|50|75|s|m|l)?", name)]
    rate = [name for name in history if name in ("learning_rate", "lr")]
    losses = [name for name in history if name not in precision + recall + rate]
    parts = [("loss", losses), ("average precision", precision), ("learning rate", rate)]
    parts = [(title, names) for title, names in parts if names]

    figure = Figure(figsize=(9, 3.6 * max(1, len(parts))), layout="constrained")
    FigureCanvasAgg(figure)
    last = max((len(values) for values in history.values()), default=1)
    for row, (title, names) in enumerate(parts):
        axis = figure.add_subplot(len(parts), 1, row + 1)
        stems = list(dict.fromkeys(name.removeprefix("val_") for name in names))
        for name in names:
            stem = name.removeprefix("val_")
            color = np.array(class_color(stems.index(stem))) / 255 * 0.9  # a little darker: the ground is white
            dashed = name != stem and stem in names
            epochs = np.arange(1, len(history[name]) + 1)
            axis.plot(epochs, history[name], "--" if dashed else "-", marker=".", color=color, label=name)
        _scale(axis, title, [value for name in names for value in history[name]])
        axis.set_xlim(0.5, last + 0.5)
        axis.set_xlabel("epoch")
        axis.set_ylabel(title)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axis.grid(alpha=0.3)
        if names != rate:
            axis.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize="small")
    figure.savefig(path, dpi=110)


def _scale(axis, title, values):
    """AP starts at 0. Losses and rates do too, unless they span two decades, which only a logarithmic axis shows."""
    values = np.array(values, float)
    values = values[np.isfinite(values)]
    if title != "average precision" and len(values) and values.min() > 0 and values.max() > 100 * values.min():
        axis.set_yscale("log")
    elif not len(values) or values.min() >= 0:
        axis.set_ylim(bottom=0)


def _as_image(image) -> Image.Image:
    return (image if isinstance(image, Image.Image) else Image.fromarray(np.asarray(image))).convert("RGB")


def _scaled(image, scale):
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image if size == image.size else image.resize(size, Image.Resampling.LANCZOS)


def _shortened(text, width, font):
    """The text, or as much of its beginning as fits into `width` pixels, with dots for the rest."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."
