"""The pictures of a report as HTML: one inlined photograph each, and an SVG overlay of it for every panel.

Samples of one kind, object and level are one path, so that a page of thousands of them stays small and quick. All text
that comes from data (ids, labels, reasons) passes through `html.escape`.
"""

import base64
import io
from html import escape

import numpy as np
from PIL import Image

from tfdet import drawing
from tfdet.inspection import look

PHOTO = 1280  # longest side in pixels of an inlined photograph
TEXTS = 8  # different texts of a group that are shown


def picture_section(number, picture) -> str:
    """One picture: its name, a button for every object, the ground truth, and the panels of the detectors."""
    things, pixels = picture["objects"], _photo(picture["pixels"])
    lost = [{int(index): reason for index, reason in panel["lost"].items()} for panel in picture["panels"]]
    buttons = [_object_button(i, thing, sum(i in reasons for reasons in lost)) for i, thing in enumerate(things)]
    panels = [_panel(number, place, picture, panel) for place, panel in enumerate(picture["panels"])]
    width, height = picture["width"], picture["height"]
    return f"""
<section class="picture" id="picture-{number}" aria-labelledby="name-{number}">
<h3 id="name-{number}">{escape(str(picture["image"]))}</h3>
<p class="muted">{width:,} × {height:,} pixels, {look.truth_counted(things)}</p>
<svg class="store" aria-hidden="true"><defs>
<image id="photo-{number}" width="{width}" height="{height}" preserveAspectRatio="none" href="{pixels}"/>
</defs></svg>
<div class="objects" role="toolbar" aria-label="Objects of {escape(str(picture["image"]))}">{"".join(buttons)}</div>
<p class="chosen-text muted" aria-live="polite"></p>
<div class="panels">{_truth(number, picture)}{"".join(panels)}</div>
</section>"""


def hex_color(rgb) -> str:
    return "#{:02x}{:02x}{:02x}".format(*rgb)


def swatch(kind) -> str:
    """A small picture of how samples of a kind look; see `look.legend_entries`."""
    color = hex_color(look.COLORLESS.get(kind, look.object_color(0)))
    shape = _stroked("M4 15L22 3M4 3L22 15" if kind == "lost" else "M4 3H22V15H4Z")
    if kind == "heatmap":
        shape = f'<rect x="3" y="3" width="20" height="12" fill="{hex_color(look.HEAT[170, :3])}"/>'
    return (
        f'<svg class="swatch layer sample {kind}" color="{color}" viewBox="0 0 26 18" aria-hidden="true">'
        f'<rect class="ground" width="26" height="18"/>{shape}</svg>'
    )


def _object_button(i, thing, lost):
    crosses = f' <span class="lost-in" title="lost in {lost} panels">✕ {lost}</span>' if lost else ""
    return (
        f'<button type="button" data-object="{i}" data-name="{i} {escape(look.name(thing))}" '
        f'aria-pressed="false" tabindex="{-1 if i else 0}">'
        f'<svg class="dot" viewBox="0 0 10 10" aria-hidden="true"><rect width="10" height="10" rx="2" '
        f'fill="{hex_color(look.object_color(i))}"/></svg>'
        f"<b>{i}</b> {escape(look.name(thing))}{crosses}</button>"
    )


def _photo(pixels):
    """A data URI; photographs larger than needed are made smaller."""
    image = Image.fromarray(pixels).convert("RGB")
    image.thumbnail((PHOTO, PHOTO), Image.Resampling.LANCZOS)
    encoded = io.BytesIO()
    image.save(encoded, "JPEG", quality=85)
    return _data_uri("jpeg", encoded)


def _data_uri(kind, encoded):
    return f"data:image/{kind};base64,{base64.b64encode(encoded.getvalue()).decode()}"


def _truth(number, picture):
    layers = [_frame(i, thing["box"]) for i, thing in enumerate(picture["objects"])] + _tags(picture)
    counts = look.truth_counted(picture["objects"])
    return _figure(f"picture-{number}-truth", "truth-panel", "ground truth", counts, "", picture, number, layers)


def _panel(number, place, picture, panel):
    """One detector's samples. Lost objects are named in the caption, too."""
    objects, lost = picture["objects"], panel["lost"]
    layers = [_heatmap(i, heatmap) for i, heatmap in enumerate(panel["heatmaps"])]
    groups = {}
    for sample in sorted(panel["samples"], key=lambda sample: look.ORDER.index(sample["kind"])):
        form = "box" if sample["shape"] == "box" else "dot" if look.is_dot(sample) else "mark"
        groups.setdefault((sample["kind"], sample["object"], sample["level"] or 0, form), []).append(sample)
    side = max(picture["width"], picture["height"])
    drawn = {key: _group(key, samples, side) for key, samples in groups.items()}
    layers += [group for key, group in drawn.items() if key[0] in look.COLORLESS]
    layers += [_frame(i, thing["box"]) for i, thing in enumerate(objects)]
    layers += [group for key, group in drawn.items() if key[0] not in look.COLORLESS]
    reach = side / (180 if len(lost) > look.MANY else 90)
    layers += [_lost(int(index), reason, objects, reach) for index, reason in lost.items()]
    counts = escape(look.counted(panel["counts"]))
    if lost:
        counts += f', <span class="lost-in">✕ {len(lost)} lost</span>'
    levels = sorted({level for _, _, level, _ in groups})
    controls = _level_boxes(levels) if len(levels) > 1 else ""
    if len(panel["heatmaps"]) > 1:
        options = "".join(f'<option value="{i}">{escape(h["title"])}</option>' for i, h in enumerate(panel["heatmaps"]))
        controls += f'<label>heatmap <select><option value="">all</option>{options}</select></label>'
    name = f"picture-{number}-panel-{place}"
    kind = "panel" + " crowded" * look.is_crowded(panel) + " many-lost" * (len(lost) > look.MANY)
    return _figure(name, kind, escape(look.title(panel)), counts, controls, picture, number, layers)


def _figure(name, kind, title, counts, controls, picture, number, layers):
    """A panel; the frames that are clicked lie on top, small ones over large ones."""
    things = sorted(enumerate(picture["objects"]), key=lambda item: -look.box_area(item[1]["box"]))
    targets = [_target(i, thing) for i, thing in things]
    return f"""
<figure class="{kind}" id="{name}">
<svg viewBox="0 0 {picture["width"]} {picture["height"]}" role="img" aria-label="{title}">
<use class="photo" href="#photo-{number}"/>{"".join(layers)}{"".join(targets)}</svg>
<figcaption><span class="title"><b>{title}</b>
<button type="button" class="enlarge" aria-pressed="false" aria-label="enlarge {title}">⤢</button></span>
<span class="counts">{counts}</span><span class="controls">{controls}</span>
<span class="of-object muted"></span></figcaption>
</figure>"""


def _level_boxes(levels):
    boxes = [f'<label><input type="checkbox" checked data-level="{level}">{level}</label>' for level in levels]
    return f'<span class="levels" role="group" aria-label="levels">levels {"".join(boxes)}</span>'


def _target(i, thing):
    x1, y1, x2, y2 = thing["box"]
    title = f"{i} {escape(look.name(thing))}"
    return (
        f'<rect class="target" data-object="{i}" x="{_number(x1)}" y="{_number(y1)}" width="{_number(x2 - x1)}" '
        f'height="{_number(y2 - y1)}"><title>{title}</title></rect>'
    )


def _frame(i, box):
    color = hex_color(look.object_color(i))
    return f'<g class="layer truth" data-object="{i}" color="{color}">{_stroked(_rectangle(box))}</g>'


def _tags(picture):
    """The numbers of the objects, the largest if there are many, where they do not lie upon each other if they can."""
    image_size, places, tags = (picture["width"], picture["height"]), [], []
    size = max(image_size) / 36
    for i in look.named(picture["objects"]):
        width, height = size * (0.5 + 0.58 * len(str(i))), size * 1.15
        x, y, *_ = drawing.free_place(picture["objects"][i]["box"], width, height, image_size, places)
        places.append((x, y, x + width, y + height))
        color = look.object_color(i)
        tags.append(
            f'<g class="layer truth" data-object="{i}"><rect x="{_number(x)}" y="{_number(y)}" '
            f'width="{_number(width)}" height="{_number(height)}" fill="{hex_color(color)}"/>'
            f'<text x="{_number(x + width / 2)}" y="{_number(y + size * 0.92)}" font-size="{_number(size)}" '
            f'fill="{hex_color(text_color(color))}">{i}</text></g>'
        )
    return tags


def text_color(color) -> tuple[int, int, int]:
    """Black or white, whichever stands out from the colour more (WCAG 2.1, relative luminance)."""
    channels = np.array(color) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return (0, 0, 0) if linear @ (0.2126, 0.7152, 0.0722) > 0.179 else look.WHITE


def _group(key, samples, side):
    """Samples of one kind, object, level and form, as one path with its dark edge."""
    kind, index, level, form = key
    if form == "box":
        path = "".join(_rectangle(sample["box"]) for sample in samples)
    else:
        path = "".join(_stroke(look.bends(sample, side / 100)) for sample in samples)
    texts = list(dict.fromkeys(sample["text"] for sample in samples if sample["text"]))[:TEXTS]
    of_object = "" if index is None else f' data-object="{index}"'
    return (
        f'<g class="layer sample {kind} {form} level-{min(level, 6)}" data-kind="{kind}" data-level="{level}" '
        f'data-count="{len(samples)}" data-texts="{escape(", ".join(texts))}"{of_object} '
        f'color="{hex_color(look.color_of(samples[0]))}">{_stroked(path)}</g>'
    )


def _lost(i, reason, objects, reach):
    path = "".join(_stroke(line) for line in look.cross(objects[i]["box"], reach))
    frame = f'<path class="frame" d="{_rectangle(objects[i]["box"])}"/>'
    return f'<g class="layer lost" data-object="{i}" data-reason="{escape(str(reason))}">{frame}{_stroked(path)}</g>'


def _heatmap(i, heatmap):
    """The map as an image of its own cells, as transparent as its values are small."""
    image = Image.fromarray(look.heat(heatmap["values"]))
    image.putpalette(look.HEAT[:, :3].tobytes())
    encoded = io.BytesIO()
    image.save(encoded, "PNG", optimize=True, transparency=look.HEAT[:, 3].tobytes())
    x1, y1, x2, y2 = heatmap["box"]
    return (
        f'<image class="layer heatmap" data-map="{i}" x="{_number(x1)}" y="{_number(y1)}" width="{_number(x2 - x1)}" '
        f'height="{_number(y2 - y1)}" preserveAspectRatio="none" href="{_data_uri("png", encoded)}"/>'
    )


def _stroked(path):
    """A path drawn twice: a wider one behind makes it seen on everything."""
    return f'<path class="edge" d="{path}"/><path class="line" d="{path}"/>'


def _rectangle(box):
    x1, y1, x2, y2 = map(_number, box)
    return f"M{x1} {y1}H{x2}V{y2}H{x1}Z"


def _stroke(points):
    return "M" + "L".join(f"{_number(x)} {_number(y)}" for x, y in points)


def _number(value):
    return f"{round(float(value), 1):g}"
