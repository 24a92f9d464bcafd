import json
from types import SimpleNamespace

import pytest

import tfdet
from tfdet.__main__ import main
from tfdet.inspection import command, statistics


@pytest.fixture
def reports(monkeypatch):
    """What the report was made of."""
    made = []
    monkeypatch.setattr(command, "report", SimpleNamespace(write=lambda *given: made.append(given)))
    return made


def run(table, output, *flags):
    main(["inspect", "--data", f"csv:{table}", "-o", str(output), *flags])


def test_table_statistics_and_report(table, tmp_path, capsys, reports):
    flags = ["--set", "ssd300.iou=0.4", "--set", "fcos.radius=0,ranges=[16,32,64,128]"]
    run(table, tmp_path / "new" / "report", "--detectors", "fcos,ssd300", *flags)
    printed = capsys.readouterr().out
    ((found, folder),) = reports
    assert folder == tmp_path / "new" / "report"
    saved = json.loads((folder / "statistics.json").read_text())
    pictures = found.pop("pictures")
    assert saved == found
    assert (saved["data"], saved["images"]) == ("csv:boxes train", 3)
    assert saved["objects"] == {"all": 5, "small": 1, "medium": 4, "large": 0}
    names = [(row["detector"], row["stage"], row["settings"]) for row in saved["rows"]]
    assert names == [
        ("fcos", "locations", ""),
        ("fcos", "locations", "radius=0,ranges=[16,32,64,128]"),
        ("ssd300", "priors", ""),
        ("ssd300", "priors", "iou=0.4"),
    ]
    keys = [column["key"] for column in saved["columns"]]
    assert all(set(row["figures"]) == set(keys) for row in saved["rows"])
    assert all(column["title"] and column["help"] for column in saved["columns"])
    positives = {row["settings"]: row["figures"]["positives"] for row in saved["rows"] if row["detector"] == "ssd300"}
    assert positives["iou=0.4"] > positives[""]
    for text in ("samples of an image", "positives of an object", "nobody is responsible", "iou=0.4", "fcos"):
        assert text in printed
    assert [picture["image"] for picture in pictures] == ["tall.png", "wide.png"]  # of three, one without objects
    assert [panel["detector"] for panel in pictures[0]["panels"]] == ["fcos", "fcos", "ssd300", "ssd300"]
    lost = [one for one in saved["lost"] if not one["settings"]]
    assert saved["lost_total"] == {name: sum(one["detector"] == name for one in lost) for name in ("fcos", "ssd300")}


def test_lost_objects_are_named(table, tmp_path, capsys, reports):
    """By the RPN of small inputs: the blue one of 6 x 30 pixels."""
    flags = ["--set", "faster_rcnn_fpn.min_pos_iou=0.6,short_sides=[90],long_side=150", "--image", "tall.png"]
    run(table, tmp_path, "--detectors", "faster_rcnn_fpn", *flags)
    ((found, _),) = reports
    lost = [one for one in found["lost"] if one["image"] == "tall.png" and one["settings"] and one["object"] == 2]
    assert lost == [
        {
            "detector": "faster_rcnn_fpn",
            "settings": flags[1].partition(".")[2],
            "image": "tall.png",
            "object": 2,
            "box": [3, 100, 9, 130],
            "label": "blue",
            "reason": "too small for every anchor",
        }
    ]
    row = found["rows"][1]
    assert sum(row["reasons"].values()) == row["figures"]["lost"] == row["sizes"]["all"]["lost"] >= 1
    (picture,) = found["pictures"]
    assert picture["panels"][1]["lost"]["2"] == "too small for every anchor"


def test_all_detectors_that_can_learn_from_the_data(table, tmp_path, capsys, reports):
    run(table, tmp_path, "--no-table")
    ((found, _),) = reports
    printed = capsys.readouterr().out
    assert "extremenet is left out: csv:boxes train has no extreme points" in printed
    names = ["ssd300", "faster_rcnn_fpn", "retinanet", "fcos", "centernet", "cornernet"]
    assert [panel["detector"] for panel in found["pictures"][0]["panels"]] == names
    assert found["rows"] == found["lost"] == [] and found["images"] == 3
    assert "samples of an image" not in printed


def test_suggested_priors_are_settings_of_the_recipe(table, tmp_path, capsys, reports):
    """Told with the recall that they and the present ones have, and what is told can be trained with."""
    run(table, tmp_path, "--detectors", "ssd300,fcos", "--split", "val", "--suggest-priors")
    ((found, _),) = reports
    base, better, _ = found["rows"]
    assert (base["suggested"], better["suggested"]) == (False, True)
    lines = capsys.readouterr().out.splitlines()
    comment = next(line for line in lines if line.startswith("# ssd300: "))
    now, then = base["figures"]["recall"], better["figures"]["recall"]
    assert comment == f"# ssd300: {then:.1%} of the objects reach IoU 0.5, at present {now:.1%}"
    assert then > now
    setting = lines[lines.index(comment) + 1]
    assert setting == better["settings"].replace("=", " = ")
    file = tmp_path / "suggested.toml"
    file.write_text(setting)
    settings = tfdet.commandline.parse(tfdet.recipes.ssd300.Settings, ["--config", str(file)])
    detector = tfdet.recipes.ssd300.build(
        tfdet.recipes.ssd300.resolve(settings), tfdet.load_dataset(f"csv:{table}", "val")
    )
    assert detector.priors[0, 2] - detector.priors[0, 0] == pytest.approx(settings.prior_sizes[0])


def test_an_image_without_boxes(table, tmp_path, capsys, reports):
    run(table, tmp_path, "--detectors", "ssd300", "--split", "none")
    ((found, _),) = reports
    assert found["pictures"] == [] and found["objects"]["all"] == found["rows"][0]["figures"]["lost"] == 0
    run(table, tmp_path, "--detectors", "ssd300", "--split", "none", "--image", "nothing.png")
    assert reports[1][0]["pictures"][0]["objects"] == []


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--image", "tall.png", "short.png"], "csv:boxes train: no image short.png; there are tall.png, "),
        (["--detectors", "ssd300,yolo"], "no detector yolo to inspect; there are ssd300, "),
        (["--detectors", "extremenet"], "csv:boxes train has no extreme points: --data coco_masks:DIR"),
        (["--set", "extremenet.side=255"], "csv:boxes train has no extreme points: --data coco_masks:DIR"),
        (["--set", "ssd300.stride=4"], "--set ssd300.stride=4: ssd300 has no setting stride; there are "),
        (["--split", "nowhere"], ""),
        (["--suggest-priors", "--detectors", "fcos"], "--suggest-priors: only ssd300, faster_rcnn_fpn, retinanet"),
        (["--suggest-priors", "--detectors", "ssd300", "--split", "none"], "csv:boxes none: no boxes, so there are no"),
        (["--suggest-priors", "--no-table"], "--suggest-priors: how much they reach is counted for the table"),
    ],
)
def test_bad_input_is_one_line(table, tmp_path, capsys, reports, flags, said):
    with pytest.raises(SystemExit) as stop:
        run(table, tmp_path / "report", *flags)
    assert stop.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith(f"tfdet: error: {said}") and err.count("\n") == 1
    assert not (tmp_path / "report").exists() and not reports


def test_a_split_of_which_nothing_can_be_used(tmp_path, draw_image, capsys, reports):
    (tmp_path / "a.png").write_bytes(draw_image(40, 40, [(0, 0, 9, 9)], [0])[:200])
    (tmp_path / "boxes.csv").write_text("path,x1,y1,x2,y2,label,split\na.png,0,0,9,9,red,train\n")
    with pytest.raises(SystemExit) as stop:
        run(tmp_path / "boxes.csv", tmp_path / "report", "--on-error", "skip")
    assert stop.value.code == 2
    assert capsys.readouterr().err == "tfdet: error: csv:boxes train: no image of this split can be used\n"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (0, "0"),
        (7, "7"),
        (1234, "1,234"),
        (0.25, "0.250"),
        (12.34, "12.3"),
        (171560.6, "172k"),
        (2.62e6, "2.62M"),
    ],
)
def test_numbers_are_short(value, text):
    assert command.shown(value) == text


def test_every_column_is_in_a_table():
    shown = [key for keys in command.TABLES.values() for key in keys]
    assert sorted(shown) == sorted(key for key, *_ in statistics.COLUMNS)
