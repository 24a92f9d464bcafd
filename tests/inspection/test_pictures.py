"""Sheets of panels are looked at by people; here the pixels that can be foretold are checked."""

import numpy as np
import pytest
from PIL import Image

from tfdet.inspection import look, pictures

BLACK = Image.new("RGB", (160, 120))


def drawn(picture, panel, **changes):
    """The panel on black at the size of the original image."""
    boxes = [thing["box"] for thing in picture["objects"]]
    return np.asarray(pictures.draw_panel(BLACK, boxes, {**panel, **changes}, 1)).astype(int)


def near(pixel, color):
    return np.abs(np.asarray(pixel) - color).max() < 40


def test_frames_have_the_colour_of_what_they_serve(report):
    picture = report["pictures"][0]
    panel = drawn(picture, picture["panels"][0])
    assert near(panel[30, 5], look.object_color(0))
    assert near(panel[60, 60], look.object_color(1))
    assert panel[30, 9:11].min() > 120  # ground truth, a thin white line
    assert panel[15, 119:121].min() > 70  # negative, a thin grey one
    assert panel[70:110, 60].max() > 200 and not panel[70:78, 34:54].any()


def test_ignored_are_dashed(report):
    picture = report["pictures"][0]
    ignored = [sample for sample in picture["panels"][0]["samples"] if sample["kind"] == "ignored"]
    row = drawn(picture, picture["panels"][0], samples=ignored, lost={})[119 - 1, 62:138].min(axis=-1) > 60
    assert 0.3 < row.mean() < 0.8


def test_lost_objects_are_red(report):
    picture = report["pictures"][0]
    panel = picture["panels"][0]
    middle = (slice(50, 62), slice(100, 112))
    with_cross, without = drawn(picture, panel, samples=[])[middle], drawn(picture, panel, samples=[], lost={})[middle]
    reds = (with_cross[..., 0] > 200) & (with_cross[..., 1] < 110)
    assert reds.mean() > 0.15 and not ((without[..., 0] > 200) & (without[..., 1] < 110)).any()


def test_heatmaps_glow_where_they_are_high(report):
    picture = report["pictures"][0]
    panel = drawn(picture, picture["panels"][3], samples=[])
    assert panel[16, 18].min() > 150 and not panel[90, 20].any()


def test_a_crop_of_a_map_beyond_the_image_is_cut_off(report):
    picture = report["pictures"][0]
    heatmap = {"title": "", "values": np.ones((4, 4)), "box": [-80, -60, 80, 60]}
    panel = drawn(picture, picture["panels"][3], samples=[], heatmaps=[heatmap])
    assert panel[5, 60].min() > 150 and not panel[70, 20].any() and not panel[5, 90].any()


def test_dots_grow_with_the_level(report):
    picture = report["pictures"][0]
    point = picture["panels"][2]["samples"][2]
    areas = []
    for level in range(4):
        panel = drawn(picture, picture["panels"][2], samples=[{**point, "level": level}])
        areas.append((np.abs(panel - look.object_color(2)).max(axis=-1) < 30).sum())
    assert 0 < areas[0] < areas[1] < areas[2] < areas[3]


@pytest.mark.parametrize(("name", "corner"), [("top_left", (0, 0)), ("bottom_right", (1, 1))])
def test_corners_point_inwards(report, name, corner):
    """The strokes of a corner lie at the side where the object is."""
    picture = report["pictures"][0]
    box = [78, 58, 82, 62]
    mark = {"kind": "positive", "shape": "point", "box": box, "object": 0, "level": 0, "text": name}
    panel = np.asarray(pictures.draw_panel(BLACK, [], {**picture["panels"][3], "samples": [mark], "heatmaps": []}, 1))
    ys, xs = np.nonzero(panel.max(axis=-1) > 128)
    assert len(xs) and np.sign(xs.mean() - 79.5) == np.sign(ys.mean() - 59.5) == 1 - 2 * corner[0]


def test_all_colours_stand_out_from_a_dark_photograph():
    colors = np.array([look.object_color(i) for i in range(200)])
    assert (colors @ (0.299, 0.587, 0.114)).min() > 105
    assert len(np.unique(colors, axis=0)) == len(look.LIGHT) >= 30


def test_sheet_holds_every_panel_and_the_legend(report):
    picture = report["pictures"][0]
    sheet = pictures.sheet(picture)
    assert sheet.width == 3 * (640 + 8) + 8  # the truth and five panels
    assert sheet.height > 2 * (480 + 2 * 26)
    assert pictures.sheet(report["pictures"][1]).width == 2 * (640 + 8) + 8
    kinds = [kind for kind, _ in look.legend_entries(picture["panels"])]
    assert kinds == ["truth", "positive", "part", "landmark", "ignored", "negative", "heatmap", "lost"]
    assert [kind for kind, _ in look.legend_entries(report["pictures"][1]["panels"])] == ["truth", "lost"]


@pytest.mark.parametrize("shape", [(2000, 100), (100, 2000), (8, 8)])
def test_images_of_any_shape(report, shape):
    pixels = np.zeros((*shape, 3), np.uint8)
    picture = {**report["pictures"][0], "width": shape[1], "height": shape[0], "pixels": pixels}
    assert pictures.sheet(picture).height > 0


def test_captions_count():
    things = [{"crowd": False}] * 3
    assert look.truth_counted(things) == "3 objects"
    assert look.truth_counted([{"crowd": False}, {"crowd": True}]) == "1 object, 1 crowd region"
    assert look.counted({"positive": 3, "negative": 8729}) == "3 positive, 8,729 negative"
    counts = {"positive": 3, "negative": 8729, "positives drawn": 3, "negatives drawn": 9, "negatives near a point": 5}
    assert look.counted(counts) == "3 positive, 8,729 negative (9 drawn), 5 negatives near a point"
    assert look.title({"detector": "ssd300", "stage": "priors", "settings": "iou=0.4"}) == "ssd300 · priors · iou=0.4"


def test_of_many_objects_only_the_largest_are_named(report):
    things = [{"box": [2 * i, 0, 3 * i + 2, 20], "label": "face", "crowd": False} for i in range(45)]
    assert look.named(things) == list(range(5, 45)) and look.named(things[:3]) == [0, 1, 2]
    boxes = [np.array(thing["box"], float) for thing in things]
    few = [np.asarray(pictures._draw_truth(BLACK, boxes[:count], things[:count])) for count in (40, 45)]
    assert few[0].any() and few[1][10, 2].any()  # the second one's frame, without a name


def test_files_stay_in_the_folder(report, tmp_path):
    names = ["a/b", "../../a", "A_B", 7, "a b", "", "x" * 300]
    found = pictures.file_names(names)
    assert found == ["a_b.png", ".._.._a.png", "A_B-2.png", "7.png", "a_b-3.png", ".png", "x" * 100 + ".png"]
    paths = pictures.write(report, tmp_path / "new")
    assert [path.parent for path in paths] == [tmp_path / "new"] * 2 and all(path.exists() for path in paths)
    assert paths[0].name == "one.png"
