"""The report of `python -m tfdet inspect` as one HTML page that needs nothing but itself."""

import base64
import hashlib
from collections import Counter
from html import escape
from pathlib import Path
from string import Template

from tfdet.inspection import look, overlays

LOST_HEAD = """<thead><tr><th scope="col">image</th><th scope="col" class="number">object</th><th scope="col">label</th>
<th scope="col" class="number">w × h</th><th scope="col">reason</th></tr></thead>"""


def write(report, folder) -> Path:
    """Write `report.html` into the folder, which is made if need be -> its path.

    Args:
        report: a dict of plain values but for the images, which are arrays:
            "data": what was inspected. "images": how many. "objects": {"all", "small", "medium", "large"}: how many.
            "columns": [{"key", "title", "help"}], those of the table.
            "rows": [{"detector", "stage", "settings", "figures": {key: number, text or None}}]. Rows with "settings"
                are what would be if these were changed; the row of the same detector and stage without is what is.
            "lost": [{"detector", "settings", "image", "object", "box", "label", "reason"}], maybe the first ones only;
                the figure "lost" of a row says how many there are.
            "pictures": [{"image", "width", "height", "pixels": uint8 [H, W, 3],
                "objects": [{"box", "label", "crowd"}],
                "panels": [{"detector", "stage", "settings", "counts": {name: number}, "lost": {object: reason},
                    "samples": [{"kind": one of look.KINDS, "shape": "box" or "point", "box", "object": index or
                        None, "level", "text"}],
                    "heatmaps": [{"title", "values": float [h, w] in 0 .. 1, "box": where they lie}]}]}]
            All boxes are xyxy in pixels of the original image; an object is named by its index in its image.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "report.html"
    path.write_text(page(report), encoding="utf-8")
    return path


def page(report) -> str:
    """The report as HTML. Nothing in it is fetched from anywhere, and only its own script is allowed to run."""
    style, script = _part("report.css"), _part("report.js")
    objects = report["objects"]
    sizes = ", ".join(f"{objects[size]:,} {size}" for size in ("small", "medium", "large"))
    sections = [overlays.picture_section(number, picture) for number, picture in enumerate(report["pictures"])]
    return Template(_part("report.html")).substitute(
        data=escape(str(report["data"])),
        summary=f"{report['images']:,} images with {objects['all']:,} objects ({sizes})",
        style=style,
        style_hash=_hash(style),
        script=script,
        script_hash=_hash(script),
        table=_table(report["columns"], report["rows"]),
        meanings="".join(f"<dt>{escape(c['title'])}</dt><dd>{escape(c['help'])}</dd>" for c in report["columns"]),
        lost=_lost(report),
        legend=_legend(report["pictures"]),
        pictures="".join(sections) or "<p>No image was chosen.</p>",
    )


def _part(name):
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def _hash(text):
    """As a Content-Security-Policy names a script or a style sheet."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _table(columns, rows):
    """Rows of one detector and stage are a <tbody>: they are sorted by the first of them and stay together."""
    groups = {}
    for row in rows:
        groups.setdefault((row["detector"], row["stage"]), []).append(row)
    decimals = {column["key"]: _decimals([row["figures"].get(column["key"]) for row in rows]) for column in columns}
    headings = [_heading("detector", "")] + [_heading(column["title"], column["help"]) for column in columns]
    bodies = []
    for (detector, stage), members in groups.items():
        base = next((row for row in members if not row["settings"]), None)
        lines = []
        for row in members:
            name = f"{escape(detector)} <small>{escape(stage)}</small>"
            if row["settings"]:
                setting = f'<span class="setting">{escape(row["settings"])}</span>'
                name = setting if base else f"{name} {setting}"
            changed = base["figures"] if base and row is not base else None
            cells = [_cell(row["figures"], column["key"], decimals[column["key"]], changed) for column in columns]
            kind = ' class="changed-row"' if changed is not None else ""
            value = escape(look.title(row))
            lines.append(f'<tr{kind}><th scope="row" data-value="{value}">{name}</th>{"".join(cells)}</tr>')
        bodies.append(f"<tbody>{''.join(lines)}</tbody>")
    return f'<table class="figures"><thead><tr>{"".join(headings)}</tr></thead>{"".join(bodies)}</table>'


def _heading(title, meaning):
    return (
        f'<th scope="col" aria-sort="none"><button type="button" title="{escape(meaning)}">{escape(title)}'
        f'<span class="arrow" aria-hidden="true"></span></button></th>'
    )


def _cell(figures, key, decimals, base):
    """A figure; bold if it differs from that of the row it varies."""
    value = figures.get(key)
    if value is None:
        return '<td class="none">–</td>'
    differs = base is not None and base.get(key) != value
    shown = f"{value:,.{decimals}f}" if _is_number(value) else escape(str(value))
    long = f' class="long" title="{shown}"' if len(shown) > 24 else ""
    shown = f"<b>{shown}</b>" if differs else shown
    return f'<td{long} data-value="{escape(str(value))}">{shown}</td>'


def _is_number(value):
    return isinstance(value, int | float)


def _decimals(values):
    """How many a column needs: none for whole numbers, else as many as tell numbers of this size apart."""
    numbers = [abs(value) for value in values if _is_number(value)]
    if all(number == int(number) for number in numbers):
        return 0
    return 1 if max(numbers) >= 100 else 2 if max(numbers) >= 2 else 3


def _lost(report):
    """For each detector a list of its lost objects; those that have a picture come first and lead to it."""
    if not report["lost"]:
        return "<p>None: some sample serves every object in every detector.</p>"
    places = {picture["image"]: number for number, picture in enumerate(report["pictures"])}
    groups = {}
    for thing in report["lost"]:
        groups.setdefault((thing["detector"], thing["settings"]), []).append(thing)
    parts = []
    for (detector, settings), things in groups.items():
        name = escape(f"{detector} {settings}".strip())
        total = sum(
            row["figures"].get("lost") or 0
            for row in report["rows"]
            if (row["detector"], row["settings"]) == (detector, settings)
        )
        cut = f", the first {len(things):,} are listed" if len(things) < total else ""
        reasons = Counter(thing["reason"] for thing in things).most_common()
        reasons = "; ".join(f"{number:,} × {escape(str(reason))}" for reason, number in reasons)
        things = sorted(things, key=lambda thing: thing["image"] not in places)
        rows = "".join(_lost_row(thing, places, report["pictures"]) for thing in things)
        parts.append(
            f"<details><summary><b>{name}</b> {total:,} lost{cut} <span class='muted'>{reasons}</span></summary>"
            f'<div class="scroll lost-list" tabindex="0" role="region" aria-label="lost by {name}">'
            f"<table>{LOST_HEAD}<tbody>{rows}</tbody></table></div></details>"
        )
    return "".join(parts)


def _lost_row(thing, places, all_pictures):
    image, index = escape(str(thing["image"])), thing["object"]
    number = places.get(thing["image"])
    if number is not None:
        of_panels = [
            f"-panel-{place}"
            for place, panel in enumerate(all_pictures[number]["panels"])
            if (panel["detector"], panel["settings"]) == (thing["detector"], thing["settings"])
            and str(index) in map(str, panel["lost"])
        ]
        place = next(iter(of_panels), "")
        image = f'<a href="#picture-{number}{place}" data-object="{index}">{image}</a>'
    x1, y1, x2, y2 = thing["box"]
    return (
        f'<tr><td>{image}</td><td class="number">{index}</td><td>{escape(str(thing["label"]))}</td>'
        f'<td class="number">{x2 - x1:,.0f} × {y2 - y1:,.0f}</td><td>{escape(str(thing["reason"]))}</td></tr>'
    )


def _legend(all_pictures):
    """What is drawn, each with a box that shows or hides it."""
    entries = look.legend_entries([panel for picture in all_pictures for panel in picture["panels"]])
    labels = [
        f'<label><input type="checkbox" checked data-kind="{kind}">{overlays.swatch(kind)} {escape(meaning)}</label>'
        for kind, meaning in entries
    ]
    return f'<div class="legend" role="group" aria-label="Shown">{"".join(labels)}</div>' if all_pictures else ""
