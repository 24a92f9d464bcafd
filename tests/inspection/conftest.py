"""A report, made by hand, as `tfdet inspect` makes it, with an id and labels by a stranger; and small data sets."""

import dataclasses

import numpy as np
import pytest

HOSTILE = "\"><script>document.title = 'taken'</script><img src=http://example.com/x onerror=alert(1)>"


def sample(kind, box, index=None, level=0, text="", shape="box"):
    return {"kind": kind, "shape": shape, "box": box, "object": index, "level": level, "text": text}


def panel(detector, stage, samples, counts, settings="", heatmaps=(), lost=None):
    return {
        "detector": detector,
        "stage": stage,
        "settings": settings,
        "counts": counts,
        "samples": samples,
        "heatmaps": list(heatmaps),
        "lost": lost or {},
    }


@pytest.fixture(scope="session")
def report():
    boxes = [[10, 10, 50, 60], [70, 20, 150, 100], [100, 50, 112, 62]]  # the last lies inside the second
    labels = ("cat", "dog & <b>bone</b>", "bird")
    objects = [{"box": box, "label": label, "crowd": False} for box, label in zip(boxes, labels, strict=True)]
    anchors = [
        sample("positive", [12, 8, 52, 58], 0, 0, "IoU 0.81"),
        sample("positive", [5, 15, 45, 65], 0, 0, "IoU 0.63"),
        sample("positive", [60, 10, 150, 110], 1, 2, "IoU 0.71"),
        sample("ignored", [60, 40, 140, 119], None, 1, "IoU 0.45"),
        sample("negative", [120, 5, 158, 30]),
        sample("negative", [2, 80, 30, 110]),
    ]
    more = [*anchors, sample("positive", [95, 45, 120, 70], 2, 0, "IoU 0.42")]
    points = [sample("positive", [x, 28, x + 8, 36], 0, 0, "centre-ness 0.50", "point") for x in (20, 28)]
    points += [
        sample("positive", [104, 54, 112, 62], 2, 0, "", "point"),
        sample("negative", [0, 0, 8, 8], shape="point"),
    ]
    corners = [
        sample("positive", [x, y, x + 4, y + 4], i, 0, name, "point")
        for i, box in enumerate(boxes)
        for name, x, y in (("top_left", *box[:2]), ("bottom_right", *box[2:]))
    ]
    values = np.zeros((30, 40), np.float32)
    values[3:5, 3:5] = 1
    heatmaps = [{"title": title, "values": values, "box": [0, 0, 160, 120]} for title in (HOSTILE, "bottom_right")]
    crops = [sample(kind, [8, 8, 58, 58], 0) for kind in ("positive", "part", "landmark")]
    counts = {"positive": 3, "ignored": 1, "negative": 8729, "positives drawn": 3, "negatives drawn": 9}
    lost = {"2": "too small for every anchor"}
    panels = [
        panel("ssd300", "priors", anchors, counts, lost=lost),
        panel("ssd300", "priors", more, {**counts, "positive": 4}, "iou=0.4"),
        panel("fcos", "points", points, {"positive": 3, "negative": 1234}),
        panel("cornernet", "corners", corners, {"positive": 6, "negative": 2394}, heatmaps=heatmaps),
        panel("mtcnn", "crops", crops, {"positive": 1, "part": 1, "landmark": 1, "negative": 0}),
    ]
    pixels = np.random.default_rng(0).integers(0, 255, (120, 160, 3)).astype(np.uint8)
    first = {"image": "one", "width": 160, "height": 120, "pixels": pixels, "objects": objects, "panels": panels}
    crowd = [{"box": [1, 2, 30, 40], "label": HOSTILE, "crowd": True}]
    second = {
        **first,
        "image": HOSTILE,
        "objects": crowd,
        "panels": [panel("ssd300", "priors", [], {"positive": 0}, lost={"0": HOSTILE})],
    }
    columns = [
        {"key": "positives", "title": "positives per image", "help": "How many serve an object."},
        {"key": "best", "title": "best IoU", "help": "Of anchors."},
        {"key": "lost", "title": "lost objects", "help": "Those that nobody is responsible for."},
        {"key": "why", "title": "mostly lost", "help": HOSTILE},
    ]
    rows = [
        ("ssd300", "priors", "", 1234.5, 0.625, 1017, "too small"),
        ("ssd300", "priors", "iou=0.4", 1300.25, 0.625, 0, None),
        ("fcos", "locations", "", 20, None, 2, HOSTILE),
        ("retinanet", "anchors", "", 300.0, 0.75, 30, "crowded out"),
    ]
    return {
        "data": "csv:<boxes>.csv",
        "images": 2,
        "objects": {"all": 1003, "small": 1001, "medium": 2, "large": 0},
        "columns": columns,
        "rows": [
            {"detector": d, "stage": s, "settings": x, "figures": {"positives": p, "best": b, "lost": lost, "why": w}}
            for d, s, x, p, b, lost, w in rows
        ],
        "lost": [
            {
                "detector": "ssd300",
                "settings": "",
                "image": image,
                "object": 2,
                "box": boxes[2],
                "label": label,
                "reason": reason,
            }
            for image, label, reason in (
                ("elsewhere", HOSTILE, HOSTILE),
                ("one", "bird", "too small for every anchor"),
            )
        ],
        "pictures": [first, second],
    }


TALL = (150, 90, [(10, 20, 60, 70), (12, 22, 58, 72), (3, 100, 9, 130)], [0, 0, 1])
WIDE = (60, 160, [(80, 10, 120, 50), (5, 5, 30, 50)], [1, 0])
SQUARE = (128, 128, [(4, 4, 100, 120), (30, 30, 36, 36), (60, 20, 120, 90)], [1, 1, 0])
EMPTY = (100, 120, [], [])


@pytest.fixture(scope="session")
def drawn(make_dataset):
    """Four images that differ in size, one of them without objects; the last object of the first is a crowd."""
    dataset = make_dataset(TALL, WIDE, SQUARE, EMPTY)
    crowd = np.array([False, False, True])
    return dataclasses.replace(
        dataset, examples=(dataclasses.replace(dataset.examples[0], crowd=crowd), *dataset.examples[1:])
    )


@pytest.fixture(scope="session")
def table(draw_image, tmp_path_factory):
    """A CSV file of these, without the crowd, and in the split "none" of an image without objects alone."""
    folder = tmp_path_factory.mktemp("photographs")
    lines = ["path,x1,y1,x2,y2,label,split"]
    for name, split, image in (
        ("tall", "train", TALL),
        ("wide", "train", WIDE),
        ("empty", "train", EMPTY),
        ("square", "val", SQUARE),
        ("nothing", "none", EMPTY),
    ):
        (folder / f"{name}.png").write_bytes(draw_image(*image))
        _, _, boxes, labels = image
        lines += [
            ",".join([f"{name}.png", *map(str, box), ("red", "blue")[label], split])
            for box, label in zip(boxes, labels, strict=True)
        ] or [f"{name}.png,,,,,,{split}"]
    (folder / "boxes.csv").write_text("\n".join(lines))
    return folder / "boxes.csv"
