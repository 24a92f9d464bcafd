"""Pictures of the samples that detectors choose: for each image a sheet with the ground truth and a panel a detector.

They show the dict that `tfdet.inspection.report.write` describes. A positive has the colour of the object it serves;
what serves none is white or grey. The coarser its level, the thicker the line or the larger the dot.
"""

import itertools
import math
import re
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFont

from tfdet import drawing
from tfdet.inspection import look

WIDTH, HEIGHT = 640, 960  # the most pixels of a panel
FINE = 2  # lines are drawn on a ground this many times larger, then made smaller: smooth edges


def write(report, folder) -> list[Path]:
    """Write `<image>.png` for every picture of the report into the folder, which is made if need be -> their paths.

    Letters that not every file system takes become "_" in a name; names that meet are numbered.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / name for name in file_names([picture["image"] for picture in report["pictures"]])]
    for picture, path in zip(report["pictures"], paths, strict=True):
        sheet(picture).save(path)
    return paths


def file_names(images) -> list[str]:
    """Names of PNG files for the ids of images, all different, on file systems that know no capitals as well."""
    names = []
    for image in images:
        stem = re.sub(r"[^\w.-]+", "_", str(image))[-100:]
        name, number = f"{stem}.png", 2
        while name.casefold() in (taken.casefold() for taken in names):
            name, number = f"{stem}-{number}.png", number + 1
        names.append(name)
    return names


def sheet(picture) -> Image.Image:
    """Ground truth and all panels of a picture in a grid, with captions above them and a legend below."""
    scale = min(WIDTH / picture["width"], HEIGHT / picture["height"])
    size = (max(1, round(picture["width"] * scale)), max(1, round(picture["height"] * scale)))
    photo = Image.fromarray(picture["pixels"]).convert("RGB").resize(size, Image.Resampling.LANCZOS)
    objects = picture["objects"]
    boxes = [np.multiply(thing["box"], scale) for thing in objects]
    panels = [
        _draw_truth(photo, boxes, objects),
        *(draw_panel(photo, boxes, panel, scale) for panel in picture["panels"]),
    ]
    captions = [f"{picture['image']}\nground truth: {look.truth_counted(objects)}", *map(_caption, picture["panels"])]
    drawn = drawing.grid(panels, math.ceil(len(panels) ** 0.5), captions)
    below = legend(picture, drawn.width)
    whole = Image.new("RGB", (drawn.width, drawn.height + below.height), "white")
    whole.paste(drawn)
    whole.paste(below, (0, drawn.height))
    return whole


def _caption(panel):
    lost = f", {len(panel['lost']):,} lost" if panel["lost"] else ""
    return f"{look.title(panel)}\n{look.counted(panel['counts'])}{lost}"


def _draw_truth(photo, boxes, objects):
    """The photo with frames and, as far as there is room, names of the objects; boxes in its pixels."""
    truth, own = photo.copy(), look.named(objects)
    draw = ImageDraw.Draw(truth)
    for i in set(range(len(objects))) - set(own):
        draw.rectangle(tuple(boxes[i].tolist()), outline=look.object_color(i))
    names = {look.object_class(i): f"{i} {look.name(objects[i])}" for i in own}
    return drawing.draw_boxes(truth, [boxes[i] for i in own], list(names), names)


def draw_panel(photo, boxes, panel, scale) -> Image.Image:
    """The photo, darkened, with heatmaps, samples, thin frames of the objects, and a red cross on each that is lost.

    Args:
        photo: of the panel's size. boxes: of the objects, in its pixels.
        scale: pixels of the photo for one of the original image, in which the samples are.
    """
    fine = ImageEnhance.Brightness(ImageEnhance.Color(photo).enhance(0.2)).enhance(0.55)
    fine = fine.resize((photo.width * FINE, photo.height * FINE))
    for heatmap in panel["heatmaps"]:
        overlay = Image.fromarray(look.HEAT[look.heat(heatmap["values"])])
        x1, y1, x2, y2 = np.multiply(heatmap["box"], scale * FINE).tolist()
        across, down = overlay.width / (x2 - x1), overlay.height / (y2 - y1)  # cells of the map a pixel
        overlay = overlay.transform(
            fine.size, Image.Transform.AFFINE, (across, 0, -x1 * across, 0, down, -y1 * down), Image.Resampling.NEAREST
        )
        fine.paste(overlay, (0, 0), overlay)
    draw = ImageDraw.Draw(fine)
    samples = sorted(panel["samples"], key=lambda sample: look.ORDER.index(sample["kind"]))
    below = [sample for sample in samples if sample["kind"] in look.COLORLESS]
    unit, thinner = max(photo.size) / 100, 0.6 if look.is_crowded(panel) else 1
    for sample in below:
        _draw_sample(draw, sample, scale, unit)
    for box in boxes:
        _draw_frame(draw, box, look.WHITE, 1)
    for sample in samples[len(below) :]:
        _draw_sample(draw, sample, scale, unit, thinner)
    for index in panel["lost"]:
        _draw_lost(draw, boxes[int(index)], 0.5 if len(panel["lost"]) > look.MANY else 1)
    return fine.resize(photo.size, Image.Resampling.BOX)


def _draw_sample(draw, sample, scale, unit, thinner=1):
    color, colorless, level = look.color_of(sample), sample["kind"] in look.COLORLESS, sample["level"] or 0
    if sample["shape"] == "box":
        width = 1 if colorless else (1.6 + 0.5 * level) * thinner
        _draw_frame(draw, np.multiply(sample["box"], scale), color, width, look.DASHES.get(sample["kind"]))
        return
    points = look.bends(sample, unit / scale) * scale
    if not look.is_dot(sample):
        _draw_lines(draw, points, color, 2.4)
        return
    radius, hollow = 1.6 if colorless else 2.6 + 0.6 * level, sample["kind"] == "ignored"
    _draw_dot(draw, points[0], radius + 1, look.WHITE if hollow else look.DARK)
    _draw_dot(draw, points[0], radius, look.DARK if hollow else color)


def _draw_frame(draw, box, color, width, dashes=None):
    """A frame with a dark line behind it, so that it is seen on everything."""
    x1, y1, x2, y2 = box
    corners = np.array([(x1, y1), (x2, y1), (x2, y2), (x1, y2), (x1, y1)])
    _draw_lines(draw, corners, color, width, dashes)


def _draw_lines(draw, points, color, width, dashes=None):
    for extra, fill in ((1.4, look.DARK), (0, color)):
        line = max(1, round((width + extra) * FINE))
        if dashes is None:
            draw.line([tuple(point) for point in (points * FINE).tolist()], fill=fill, width=line, joint="curve")
            continue
        for start, end in itertools.pairwise(points):
            length = np.linalg.norm(end - start)
            begins = np.arange(0, length, sum(dashes))
            for begin, stop in zip(begins, np.minimum(begins + dashes[0], length), strict=True):
                ends = (start + (end - start) / length * np.array([[begin], [stop]])) * FINE
                draw.line([tuple(point) for point in ends.tolist()], fill=fill, width=line)


def _draw_dot(draw, middle, radius, color):
    (x, y), radius = middle * FINE, radius * FINE
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=color)


def _draw_lost(draw, box, size=1):
    """A red frame with a cross in its middle."""
    _draw_frame(draw, box, look.RED, 2 * size)
    for width, color in ((5.4, look.WHITE), (2.8, look.RED)):
        for line in look.cross(box, 8 * size):
            ends = [tuple(point) for point in (line * FINE).tolist()]
            draw.line(ends, fill=color, width=round(width * size * FINE))


def legend(picture, width) -> Image.Image:
    """A dark strip of this width that shows what the panels have of each kind, in lines."""
    entries = look.legend_entries(picture["panels"])
    font, step, sample = ImageFont.load_default(16), 30, 34
    places, x, y = [], drawing.MARGIN, 0
    for _, text in entries:
        wanted = sample + round(font.getlength(text)) + 3 * drawing.MARGIN
        if x > drawing.MARGIN and x + wanted > width:
            x, y = drawing.MARGIN, y + step
        places.append((x, y))
        x += wanted
    strip = Image.new("RGB", (width * FINE, (y + step + drawing.MARGIN) * FINE), look.DARK)
    draw = ImageDraw.Draw(strip)
    for (kind, _), (x, y) in zip(entries, places, strict=True):
        box = np.array([x + 2, y + 10, x + sample - 10, y + 28])
        if kind == "lost":
            _draw_lost(draw, box)
        elif kind == "truth":
            _draw_frame(draw, box, look.WHITE, 1)
        elif kind == "heatmap":
            draw.rectangle(tuple((box * FINE).tolist()), fill=tuple(look.HEAT[170, :3].tolist()))
        else:
            color = look.COLORLESS.get(kind, look.object_color(0))
            _draw_frame(draw, box, color, 1 if kind == "negative" else 2, look.DASHES.get(kind))
    strip = strip.resize((width, y + step + drawing.MARGIN), Image.Resampling.BOX)
    draw = ImageDraw.Draw(strip)
    for (_, text), (x, y) in zip(entries, places, strict=True):
        draw.text((x + sample, y + 19), text, fill="white", font=font, anchor="lm")
    return strip
