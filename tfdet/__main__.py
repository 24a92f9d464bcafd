"""The command line: python -m tfdet predict | evaluate | export."""

import dataclasses
import glob
import json
import zipfile
from pathlib import Path
from typing import Annotated, Literal

import keras
import tyro
from rich.console import Console
from rich.progress import track
from rich.table import Table

from tfdet import commandline, drawing, evaluation, inference, serving
from tfdet.data import load_dataset
from tfdet.data.pipeline import load_image
from tfdet.detectors.base import Detector
from tfdet.errors import TfdetError

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".gif"}


@dataclasses.dataclass(frozen=True)
class Predict:
    """Find objects in photographs: draws them and writes them as COCO-format JSON."""

    images: tyro.conf.Positional[tuple[str, ...]]
    """Image files, folders of images, or globs."""
    model: str
    """Trained model, a .keras file."""
    output: Annotated[str, tyro.conf.arg(aliases=["-o"])] = "predictions"
    """Folder for the drawn pictures and detections.json."""
    min_score: float = 0.3
    """Draw and write only detections with at least this score."""
    batch_size: int = 8
    """Images at a time."""


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Measure a model on a split of a data set: COCO's twelve figures, VOC AP, and both for every class."""

    model: str
    """Trained model, a .keras file."""
    data: str
    """The data: coco:DIR, voc:DIR, csv:FILE or shapes."""
    split: str = "val"
    """Split of the data."""
    on_error: Literal["raise", "skip"] = "raise"
    """What to do with a broken image or box: stop, or leave it out and say so."""
    batch_size: int = 8
    """Images at a time."""
    output: Annotated[str | None, tyro.conf.arg(aliases=["-o"])] = None
    """JSON file for the figures."""


@dataclasses.dataclass(frozen=True)
class Export:
    """Write a SavedModel for TensorFlow Serving."""

    model: str
    """Trained model, a .keras file."""
    output: Annotated[str, tyro.conf.arg(aliases=["-o"])] = "export"
    """Folder of the model; the export goes into a folder in it that is named by the version."""
    version: int = 1
    """Version number."""


def main(args=None):
    commands = {"predict": Predict, "evaluate": Evaluate, "export": Export}
    arguments = commandline.parse(commands, args, prog="tfdet")
    match arguments:
        case Predict():
            commandline.run(lambda: predict(arguments))
        case Evaluate():
            commandline.run(lambda: evaluate(arguments))
        case Export():
            commandline.run(lambda: export(arguments))


def predict(arguments):
    files = find_images(arguments.images)
    model = load_model(arguments.model)
    output = Path(arguments.output)
    output.mkdir(parents=True, exist_ok=True)
    detections = inference.detect_files(model, files, arguments.batch_size, verbose=1)

    images, annotations = [], []
    names = drawn_names(files)
    for i, (file, found) in enumerate(track(list(zip(files, detections, strict=True)), "drawing", transient=True)):
        kept = found.scores >= arguments.min_score
        boxes, labels, scores = found.boxes[kept], found.labels[kept], found.scores[kept]
        image = load_image(str(file))
        drawing.draw_boxes(image, boxes, labels, model.class_names, scores).save(output / names[i], quality=95)
        images.append({"id": i + 1, "file_name": str(file), "height": image.shape[0], "width": image.shape[1]})
        for (x1, y1, x2, y2), label, score in zip(boxes.tolist(), labels.tolist(), scores.tolist(), strict=True):
            annotation = {"id": len(annotations) + 1, "image_id": i + 1, "category_id": label + 1, "iscrowd": 0}
            box = {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1), "score": score}
            annotations.append({**annotation, **box})
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(model.class_names)]
    found = {"images": images, "categories": categories, "annotations": annotations}
    (output / "detections.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(f"{len(annotations)} objects in {len(files)} images: {output}/ holds the pictures and detections.json")


def evaluate(arguments):
    model = load_model(arguments.model)
    dataset = load_dataset(arguments.data, arguments.split, arguments.on_error)
    for line in dataset.skipped:
        print(f"left out: {line}")
    if unknown := sorted(set(dataset.class_names) - set(model.class_names)):
        raise TfdetError(f"{arguments.model}: does not know these classes of {dataset.name}: {', '.join(unknown)}")
    figures = evaluation.evaluate(model, dataset, arguments.batch_size, verbose=1)
    if arguments.output:
        Path(arguments.output).parent.mkdir(parents=True, exist_ok=True)
        Path(arguments.output).write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    console = Console()
    console.print(tables(figures, dataset.name))


def export(arguments):
    model = load_model(arguments.model)
    try:
        folder = serving.export(model, arguments.output, arguments.version)
    except FileExistsError as error:
        raise TfdetError(str(error)) from error
    print(f"{folder}: SavedModel with the signatures serving_default (image_bytes) and images")


def find_images(arguments):
    """Files, folders and globs -> image files, sorted within each argument."""
    files = []
    if not arguments:
        raise TfdetError("predict: no images given")
    for argument in arguments:
        path = Path(argument)
        if path.is_dir():
            found = sorted(file for file in path.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)
        elif path.exists():
            found = [path]
        else:
            found = [Path(name) for name in sorted(glob.glob(argument, recursive=True))]
        if not found:
            raise TfdetError(f"{argument}: {'a folder without images' if path.is_dir() else 'no such file'}")
        files += found
    return files


def drawn_names(files):
    """A file name for each drawn picture; files of one name from several folders get a number."""
    names, taken = [], set()
    for file in files:
        name, number = f"{file.stem}.jpg", 2
        while name in taken:
            name, number = f"{file.stem}-{number}.jpg", number + 1
        taken.add(name)
        names.append(name)
    return names


def load_model(path):
    """A detector from a .keras file."""
    if not Path(path).exists():
        raise TfdetError(f"{path}: no such file")
    if not zipfile.is_zipfile(path):
        raise TfdetError(f"{path}: {'a folder' if Path(path).is_dir() else 'a file'}, but not a .keras model")
    try:
        model = keras.models.load_model(path, compile=False)
    except (ValueError, OSError, TypeError, KeyError, zipfile.BadZipFile) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise TfdetError(f"{path}: not a model that tfdet can load: {reason}") from error
    if not isinstance(model, Detector):
        raise TfdetError(f"{path}: a Keras model, but not a detector of tfdet")
    return model


def tables(figures, title):
    """The figures of `evaluation.evaluate` as a table for the terminal."""
    table = Table(title=f"{title}: {figures['images']} images")
    names = ("AP", "AP50", "VOC_AP_11point", "VOC_AP_area")
    for column in ("class", "objects", "AP", "AP50", "VOC 11-point", "VOC area"):
        table.add_column(column, justify="left" if column == "class" else "right")

    def shown(row):
        return ["-" if row[name] is None else f"{row[name]:.3f}" for name in names]

    for name, row in figures["per_class"].items():
        table.add_row(name, str(row["objects"]), *shown(row))
    table.add_section()
    table.add_row("all", str(sum(row["objects"] for row in figures["per_class"].values())), *shown(figures))
    rest = [name for name in evaluation.COCO_FIGURES if name not in names]
    table.caption = "  ".join(f"{name} {'-' if figures[name] is None else f'{figures[name]:.3f}'}" for name in rest)
    return table


if __name__ == "__main__":
    main()
