"""The page as text: it needs nothing but itself, and nothing that a stranger wrote becomes a part of it."""

import configparser
import re
from fnmatch import fnmatch
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from tfdet.inspection import look, overlays
from tfdet.inspection import report as html_report


class Page(HTMLParser):
    """All elements with their attributes, and the text of the cells of each row of each table."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.rows, self.cell = [], [], None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self.cell = True

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self.cell = None

    def handle_data(self, data):
        if self.cell:
            self.rows[-1][-1] += data

    def all(self, tag, **attributes):
        return [own for name, own in self.elements if name == tag and attributes.items() <= own.items()]


@pytest.fixture(scope="module")
def page(report):
    return Page(html_report.page(report))


def test_it_is_written_as_one_file(report, tmp_path):
    path = html_report.write(report, tmp_path / "new" / "folder")
    assert [path] == list((tmp_path / "new" / "folder").iterdir())
    assert path.name == "report.html" and path.read_text("utf-8") == html_report.page(report)


def test_nothing_is_fetched(report, page):
    """Every address in the page is a part of it; the style sheet and the script name none."""
    addresses = [(tag, own[name]) for tag, own in page.elements for name in ("src", "href") if name in own]
    assert len(addresses) > 10
    for tag, address in addresses:
        assert address.startswith({"a": "#", "use": "#"}.get(tag, "data:image/")), (tag, address[:80])
    assert not page.all("link") and not page.all("iframe") and not page.all("object")
    folder = Path(html_report.__file__).parent
    for name in ("report.css", "report.js", "report.html"):
        assert not re.search(r"https?:|//\w|url\(|@import|fetch\(|import\(", (folder / name).read_text("utf-8")), name


def test_each_photograph_is_inlined_once(report, page):
    jpegs = [own["href"] for own in page.all("image") if own["href"].startswith("data:image/jpeg")]
    assert len(jpegs) == len(report["pictures"])
    uses = [own["href"] for own in page.all("use")]
    assert uses.count("#photo-0") == 1 + len(report["pictures"][0]["panels"])
    assert uses.count("#photo-1") == 1 + len(report["pictures"][1]["panels"])


def test_text_of_strangers_stays_text(report, page):
    hostile = report["pictures"][1]["image"]
    assert len(page.all("script")) == 1 and len(page.all("style")) == 1
    assert not page.all("img") and not page.all("b", **{"class": "bone"})
    assert not [name for _, own in page.elements for name in own if name.startswith("on") or name == "style"]
    assert page.all("button", **{"data-name": f"0 {hostile} (crowd)"})
    assert page.all("button", **{"data-name": "1 dog & <b>bone</b>"})
    assert [row[-1] for row in page.rows if row[0] == "fcos locations"] == [hostile]
    assert "csv:<boxes>.csv" not in html_report.page(report)


def test_every_row_and_figure_is_in_the_table(page):
    assert page.rows[:5] == [
        ["detector", "positives per image", "best IoU", "lost objects", "mostly lost"],
        ["ssd300 priors", "1,234.5", "0.625", "1,017", "too small"],
        ["iou=0.4", "1,300.2", "0.625", "0", "–"],
        page.rows[3],  # by a stranger
        ["retinanet anchors", "300.0", "0.750", "30", "crowded out"],
    ]
    assert page.rows[3][:4] == ["fcos locations", "20.0", "–", "2"]
    assert len(page.all("tbody")) == 3 + 1  # what-if rows share that of the row they vary; one of lost objects
    exact = [own["data-value"] for own in page.all("td") if "data-value" in own]
    assert exact[:4] == ["1234.5", "0.625", "1017", "too small"]


def test_a_row_without_one_it_varies_stands_alone(report):
    rows = [row for row in report["rows"] if row["settings"]]
    page = Page(html_report.page({**report, "rows": rows}))
    assert page.rows[1][:2] == ["ssd300 priors iou=0.4", "1,300.2"]


@pytest.mark.parametrize(
    ("values", "decimals"),
    [
        ([], 0),
        ([None, "text"], 0),
        ([1, 2.0, 30000], 0),
        ([0.25, 1], 3),
        ([0.25, 2.5], 2),
        ([0.25, None, 250.5], 1),
        ([True], 0),
    ],
)
def test_a_column_has_one_number_of_decimals(values, decimals):
    assert html_report._decimals(values) == decimals


def test_lost_objects_lead_to_their_pictures(page):
    hostile = page.rows[3][-1]
    assert page.rows[-2:] == [
        ["one", "2", "bird", "12 × 12", "too small for every anchor"],
        ["elsewhere", "2", hostile, "12 × 12", hostile],
    ]
    links = [own for own in page.all("a") if "data-object" in own]
    assert links == [{"href": "#picture-0-panel-0", "data-object": "2"}]
    ids = {own["id"] for _, own in page.elements if "id" in own}
    assert "picture-0-panel-0" in ids and {"table", "lost", "pictures"} <= ids


def test_the_link_leads_to_the_stage_that_loses_the_object(report):
    first = report["pictures"][0]
    stages = [{**first["panels"][0], "stage": "proposals", "lost": {}}, first["panels"][0]]
    page = Page(html_report.page({**report, "pictures": [{**first, "panels": stages}]}))
    assert page.all("a", **{"data-object": "2"})[0]["href"] == "#picture-0-panel-1"


def test_lost_objects_are_counted(report):
    text = html_report.page(report)
    assert "1,017 lost, the first 2 are listed" in text and "1 × too small for every anchor" in text
    assert "None: some sample serves every object" in html_report.page({**report, "lost": []})


def test_captions_count(report):
    text = html_report.page(report)
    assert '3 positive, 1 ignored, 8,729 negative (9 drawn), <span class="lost-in">✕ 1 lost</span>' in text
    assert "2 images with 1,003 objects (1,001 small, 2 medium, 0 large)" in text


def test_samples_are_grouped_by_kind_object_and_level(report, page):
    groups = [own for own in page.all("g") if "data-kind" in own]
    for panel in report["pictures"][0]["panels"]:
        for sample in panel["samples"]:
            index = None if sample["object"] is None else str(sample["object"])
            key = (sample["kind"], index, str(sample["level"]))
            assert any((own["data-kind"], own.get("data-object"), own["data-level"]) == key for own in groups)
    total = sum(len(panel["samples"]) for picture in report["pictures"] for panel in picture["panels"])
    assert sum(int(own["data-count"]) for own in groups) == total
    both = page.all("g", **{"data-kind": "positive", "data-object": "0", "data-texts": "IoU 0.81, IoU 0.63"})
    assert len(both) == 2 and both[0]["color"] == overlays.hex_color(look.object_color(0))
    paths = [own["d"] for own in page.all("path")]
    assert "M12 8H52V58H12ZM5 15H45V65H5Z" in paths  # boxes
    assert "M24 32L24 32M32 32L32 32" in paths  # dots, drawn by round caps


def test_pages_without_pictures_or_objects(report):
    assert "No image was chosen" in html_report.page({**report, "pictures": [], "lost": []})
    empty = {**report["pictures"][0], "objects": [], "panels": []}
    assert "0 objects" in html_report.page({**report, "pictures": [empty], "lost": []})


def test_large_photographs_are_made_smaller(report):
    noise = np.random.default_rng(0).integers(0, 255, (1500, 2560, 3)).astype(np.uint8)
    large = {**report["pictures"][0], "width": 2560, "height": 1500, "pixels": noise}
    assert len(html_report.page({**report, "pictures": [large]})) < 2_000_000


def test_numbers_can_be_read_on_every_colour():
    def luminance(color):
        channels = np.array(color) / 255
        return np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4) @ (
            0.2126,
            0.7152,
            0.0722,
        )

    for i in range(84):
        color = look.object_color(i)
        light, dark = sorted((luminance(color), luminance(overlays.text_color(color))), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5


def test_wheels_contain_the_parts_of_the_page():
    root = Path(__file__).parents[2]
    settings = configparser.ConfigParser()
    settings.read(root / "setup.cfg")
    patterns = settings["options.package_data"]["tfdet.inspection"].replace(",", " ").split()
    parts = [path.name for path in (root / "tfdet" / "inspection").iterdir() if path.suffix in (".html", ".css", ".js")]
    assert len(parts) == 3 and all(any(fnmatch(part, pattern) for pattern in patterns) for part in parts)
