import pytest

from tfdet.data.shapes import CLASS_NAMES, draw_example


@pytest.fixture(scope="session")
def table(tmp_path_factory):
    """A CSV file of 4 + 2 generated photographs, which differ in size."""
    folder = tmp_path_factory.mktemp("photographs")
    lines = ["path,x1,y1,x2,y2,label,split"]
    for i in range(6):
        example = draw_example("train", i)
        (folder / f"{i}.jpg").write_bytes(example.image)
        split = "train" if i < 4 else "val"
        for box, label in zip(example.boxes, example.labels, strict=True):
            lines.append(",".join([f"{i}.jpg", *map(str, box), CLASS_NAMES[label], split]))
        if len(example.boxes) == 0:
            lines.append(f"{i}.jpg,,,,,,{split}")
    (folder / "boxes.csv").write_text("\n".join(lines))
    return folder / "boxes.csv"
