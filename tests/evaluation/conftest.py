import json

import numpy as np
import pytest
from hand_made import example

from tfdet.data.dataset import Dataset


@pytest.fixture
def tiny_coco_file(shared_data):
    return shared_data / "tiny_coco" / "annotations" / "instances_val2017.json"


@pytest.fixture
def tiny_coco(tiny_coco_file):
    """The raw JSON as a Dataset, by the few lines that these tests need, so that no reader is trusted."""
    raw = json.loads(tiny_coco_file.read_text())
    ids = tuple(sorted(category["id"] for category in raw["categories"]))
    names = {category["id"]: category["name"] for category in raw["categories"]}
    examples = []
    for image in raw["images"]:
        rows = [a for a in raw["annotations"] if a["image_id"] == image["id"]]
        boxes = np.array([a["bbox"] for a in rows], np.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        labels, areas = [ids.index(a["category_id"]) for a in rows], [a["area"] for a in rows]
        crowd = [i for i, a in enumerate(rows) if a["iscrowd"]]
        size = (image["height"], image["width"])
        examples.append(example(image["id"], boxes, labels, crowd=crowd, areas=areas, size=size))
    return Dataset("tiny_coco val", tuple(names[i] for i in ids), ids, tuple(examples))
