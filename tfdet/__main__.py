"""The command line: python -m tfdet check-data | inspect | predict | evaluate | export | client | convert | ..."""

import dataclasses
import glob
import json
import zipfile
from pathlib import Path
from typing import Annotated, Literal

import keras
import numpy as np
import tyro
from rich.console import Console
from rich.progress import Progress, track
from rich.table import Table

from tfdet import alignment, checking, client, commandline, drawing, evaluation, inference, serving, skeleton
from tfdet.data import load_dataset, manifest, service, split_names
from tfdet.data.convert import write_shards
from tfdet.data.images import load_image
from tfdet.detectors.base import Detector
from tfdet.errors import TfdetError
from tfdet.extreme_points import octagons
from tfdet.inspection.command import inspect

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".gif"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trained:
    """Which model, and how it looks at images."""

    model: str
    """Trained model, a .keras file."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """bfloat16: VGG16 in half the time on processors that compute in it, slower on others."""
    flip: bool = False
    """CenterNet and CornerNet: look at the mirror image, too."""
    scales: tuple[float, ...] = (1.0,)
    """CenterNet and CornerNet: look at each image at these sizes, relative to the one it is fed."""


@dataclasses.dataclass(frozen=True)
class CheckData:
    """Look at a data set before training on it: counts, every defect, and a sheet of examples drawn with their boxes.

    Decodes every image. Ends with status 0 if there is no defect, 1 if there are any, 2 if it cannot be read at all.
    """

    data: str
    """The data: coco:DIR, coco_keypoints:DIR, coco_masks:DIR, voc:DIR, csv:FILE, wider_face:DIR, landmarks:FILE,
    dlib:DIR, tfrecord:DIR or shapes."""
    split: tuple[str, ...] = ()
    """Splits to check; by default all that there are."""
    output: Annotated[str, tyro.conf.arg(aliases=["-o"])] = "data-check"
    """Folder for check.json and contact_sheet.png."""


@dataclasses.dataclass(frozen=True)
class Inspect:
    """See which samples each algorithm calls positive, negative or ignored on a data set, and which objects nobody is
    responsible for: a table, statistics.json, and a report with pictures.

    Each detector is what its recipe would train on this data; of Faster R-CNN the first stage is shown. Nothing is
    trained, and no weights are needed.
    """

    data: str
    """The data: coco:DIR, coco_keypoints:DIR, coco_masks:DIR, voc:DIR, csv:FILE, wider_face:DIR, landmarks:FILE,
    dlib:DIR, tfrecord:DIR or shapes."""
    split: str = "train"
    """Split of the data."""
    image: tuple[str, ...] = ()
    """Ids of the images in the report; else three of those with objects."""
    detectors: tuple[str, ...] = ()
    """Their names, with commas or spaces between them; else all that can learn from the data."""
    set: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """What if: DETECTOR.SETTING=VALUE, such as ssd300.iou=0.4, adds a row; may be given several times."""
    table: bool = True
    """Count the samples of the whole split; --no-table: only draw the images."""
    suggest_priors: bool = False
    """Also add rows with priors and anchors that fit the boxes, and print them for a recipe's settings file."""
    on_error: Literal["raise", "skip"] = "raise"
    """What to do with a broken image or box: stop, or leave it out and say so."""
    output: Annotated[str, tyro.conf.arg(aliases=["-o"])] = "report"
    """Folder for the report."""


@dataclasses.dataclass(frozen=True)
class Predict(Trained):
    """Find objects in photographs: draws them and writes them as COCO-format JSON."""

    images: tyro.conf.Positional[tuple[str, ...]]
    """Image files, folders of images, or globs."""
    output: Annotated[str, tyro.conf.arg(aliases=["-o"])] = "predictions"
    """Folder for the drawn pictures and detections.json."""
    min_score: float = 0.3
    """Draw and write only detections with at least this score."""
    peaks: bool = False
    """Detectors of heatmaps: draw, as NAME_peaks.jpg, also the points that the boxes were made of."""
    align: bool = False
    """MTCNN: also write each face upright, in one size, with its landmarks in one place, into the folder aligned."""
    batch_size: int = 8
    """Images at a time."""


@dataclasses.dataclass(frozen=True)
class Evaluate(Trained):
    """Measure a model on a split of a data set: COCO's figures and VOC AP, of all and of every class."""

    data: str
    """The data: coco:DIR, coco_keypoints:DIR, coco_masks:DIR, voc:DIR, csv:FILE, wider_face:DIR, landmarks:FILE,
    dlib:DIR, tfrecord:DIR or shapes."""
    split: str = "val"
    """Split of the data."""
    on_error: Literal["raise", "skip"] = "raise"
    """What to do with a broken image or box: stop, or leave it out and say so."""
    batch_size: int = 8
    """Images at a time."""
    output: Annotated[str | None, tyro.conf.arg(aliases=["-o"])] = None
    """JSON file for the figures."""


@dataclasses.dataclass(frozen=True)
class Export(Trained):
    """Write a SavedModel for TensorFlow Serving."""

    output: Annotated[str, tyro.conf.arg(aliases=["-o"])] = "export"
    """Folder of the model; the export goes into a folder in it that is named by the version."""
    version: int = 1
    """Version number."""
    raw: bool = False
    """Only the network, from resized images to its raw outputs, for runtimes that have no NMS, such as OpenVINO."""


@dataclasses.dataclass(frozen=True)
class Client:
    """Have a model that TensorFlow Serving serves find objects in photographs; writes what `predict` writes."""

    images: tyro.conf.Positional[tuple[str, ...]]
    """Image files, folders of images, or globs."""
    url: str | None = None
    """REST: address of the model, such as http://localhost:8501/v1/models/tfdet."""
    grpc: str | None = None
    """gRPC, instead of REST: address of the server, such as localhost:8500. Needs the extra `serving`."""
    model_name: str = "tfdet"
    """gRPC: name of the model."""
    class_names: str | None = None
    """File with the names of the classes, the export's assets.extra/class_names.txt; else labels are numbers."""
    keypoint_names: str | None = None
    """File with the names of the keypoints, if it finds any, keypoint_names.txt beside it; else no limb is drawn."""
    output: Annotated[str, tyro.conf.arg(aliases=["-o"])] = "predictions"
    """Folder for the drawn pictures and detections.json."""
    min_score: float = 0.3
    """Draw and write only detections with at least this score."""
    timeout: float = 60.0
    """Seconds to wait for an answer."""


@dataclasses.dataclass(frozen=True)
class Convert:
    """Write a data set as TFRecord shards, of the form that the TensorFlow Object Detection API reads and writes.

    A run that was cut off, by whatever, goes on where it stopped when it is started again. Beside the shards lie
    SPLIT.manifest.json, which lists them with their checksums and names all that was left out, and SPLIT.index.npz, by
    which --data tfrecord:DIR knows in seconds what is in them; `check-data` compares the checksums.
    """

    data: str
    """The data: coco:DIR, coco_keypoints:DIR, coco_masks:DIR, voc:DIR, csv:FILE, wider_face:DIR, landmarks:FILE,
    dlib:DIR, tfrecord:DIR or shapes."""
    output: Annotated[str, tyro.conf.arg(aliases=["-o"])]
    """Folder for the shards and label_map.pbtxt; --data tfrecord:FOLDER then reads it."""
    split: tuple[str, ...] = ()
    """Splits to write; by default all that there are."""
    shards: int | None = None
    """Files for each split; by default one for every 1000 images."""
    workers: int | None = None
    """Processes that write them; by default one a core, but not more than one for every 10,000 images. However many,
    the files are the same."""
    on_error: Literal["raise", "skip"] = "raise"
    """What to do with a broken image or box: stop, or leave it out and say so."""


@dataclasses.dataclass(frozen=True)
class Dispatcher:
    """Deals out images to workers."""

    port: int
    """Port to listen at."""
    work_dir: str | None = None
    """Folder to keep its state in: a dispatcher started with it again goes on where the one before was cut off."""


@dataclasses.dataclass(frozen=True)
class Worker:
    """Decodes and augments images for the runs that ask for it."""

    dispatcher: str
    """The dispatcher: grpc://HOST:PORT."""
    port: int = 0
    """Port to listen at; 0 takes any."""
    address: str | None = None
    """Name or number of this machine as training reaches it; by default the one that it has towards the dispatcher."""


@dataclasses.dataclass(frozen=True)
class DataService:
    """Decode and augment in other processes, on this machine or others, for recipes that are given
    --data-service grpc://HOST:PORT: one dispatcher and any number of workers, which run until they are interrupted.

    Workers have to see the image files under the same names, and to run the same TensorFlow. Whoever reaches their
    ports can have them read files: keep them in a network that you trust.
    """

    role: tyro.conf.OmitSubcommandPrefixes[
        Annotated[Dispatcher, tyro.conf.subcommand("dispatcher")] | Annotated[Worker, tyro.conf.subcommand("worker")]
    ]


def main(args=None):
    commands = {
        "check-data": CheckData,
        "inspect": Inspect,
        "predict": Predict,
        "evaluate": Evaluate,
        "export": Export,
        "client": Client,
        "convert": Convert,
        "data-service": DataService,
    }
    arguments = commandline.parse(commands, args, prog="tfdet")
    match arguments:
        case CheckData():
            raise SystemExit(commandline.run(lambda: check_data(arguments)))
        case Inspect():
            commandline.run(lambda: inspect(arguments))
        case Predict():
            commandline.run(lambda: predict(arguments))
        case Evaluate():
            commandline.run(lambda: evaluate(arguments))
        case Export():
            commandline.run(lambda: export(arguments))
        case Client():
            commandline.run(lambda: ask_server(arguments))
        case Convert():
            commandline.run(lambda: convert(arguments))
        case DataService(role=Dispatcher(port, work_dir)):
            commandline.run(lambda: service.run_dispatcher(port, work_dir))
        case DataService(role=Worker(dispatcher, port, address)):
            commandline.run(lambda: service.run_worker(dispatcher, port, address))


def check_data(arguments):
    found = checking.check(arguments.data, arguments.split)
    counts = checking.summary(found)
    output = Path(arguments.output)
    output.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"data": arguments.data, **counts}, indent=2)
    (output / "check.json").write_text(text + "\n", encoding="utf-8")
    sheet = checking.contact_sheet(found.datasets)
    if sheet is not None:
        sheet.save(output / "contact_sheet.png")
    for table in checking.tables(counts):
        Console().print(table)
    for line in found.defects:
        print(line)
    made = "check.json" if sheet is None else "check.json and contact_sheet.png"
    defects = "1 defect" if len(found.defects) == 1 else f"{len(found.defects) or 'no'} defects"
    print(f"{arguments.data}: {defects}; {output}/ holds {made}")
    return 1 if found.defects else 0


def predict(arguments):
    files = find_images(arguments.images)
    model = load_model(arguments)
    if arguments.peaks and not hasattr(model, "peaks"):
        raise TfdetError(f"--peaks: {model.name} has none to show: its boxes are not made of peaks of heatmaps")
    if arguments.align and model.keypoint_names != skeleton.FACE:
        raise TfdetError(f"{arguments.model}: --align needs a detector of faces with landmarks")
    output = Path(arguments.output)
    output.mkdir(parents=True, exist_ok=True)
    detections = inference.detect_files(model, files, arguments.batch_size, verbose=1)
    write_predictions(output, files, detections, model.class_names, arguments.min_score, model.keypoint_names)
    if arguments.peaks:
        names = drawn_names([*files, *(file.with_stem(f"{file.stem}_peaks") for file in files)])[len(files) :]
        peaks = inference.peaks_in_files(model, files, arguments.batch_size)
        for name, file, found, own in zip(names, files, detections, peaks, strict=True):
            found = found.where(found.scores >= arguments.min_score)
            picture = drawing.draw_peaks(load_image(str(file)), own, found, arguments.min_score)
            picture.save(output / name, quality=95)
    if arguments.align:
        write_aligned(output / "aligned", files, detections, arguments.min_score)


def ask_server(arguments):
    if (arguments.url is None) == (arguments.grpc is None):
        raise TfdetError("client: give the server's address, either --url or --grpc")
    files = find_images(arguments.images)
    names, keypoint_names = (
        read_names(file) if file else [] for file in (arguments.class_names, arguments.keypoint_names)
    )
    if arguments.url:
        ask = client.over_rest(arguments.url, arguments.timeout)
    else:
        ask = client.over_grpc(arguments.grpc, arguments.model_name, arguments.timeout)
    with Progress(transient=True) as progress:  # unlike track() alone it ends when an image fails
        detections = [client.detect(ask, file) for file in progress.track(files, description="asking")]
    highest = max((int(label) for found in detections for label in found.labels), default=-1)
    if names and highest >= len(names):
        raise TfdetError(f"{arguments.class_names}: {len(names)} names, but the server found label {highest}")
    found = max((one.keypoints.shape[1] for one in detections if one.keypoints is not None), default=0)
    if keypoint_names and found != len(keypoint_names):
        given = f"{arguments.keypoint_names}: {len(keypoint_names)} names"
        raise TfdetError(f"{given}, but the server found {found} keypoints")
    output = Path(arguments.output)
    output.mkdir(parents=True, exist_ok=True)
    keypoint_names = keypoint_names or list(map(str, range(found)))
    write_predictions(output, files, detections, names or range(highest + 1), arguments.min_score, keypoint_names)


def read_names(path):
    """A file with a name in each line -> the names."""
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise TfdetError(f"{path}: cannot be read: {error}") from error


def write_predictions(output, files, detections, class_names, min_score, keypoint_names=()):
    """A drawn picture for each of the image files and one detections.json (COCO), in the folder `output`.

    A keypoint has the visibility 2 if a peak of its heatmap says where it is, else 1. Extreme points make a mask, too:
    the polygon of their octagon.
    """
    images, annotations = [], []
    names = drawn_names(files)
    class_names = [str(name) for name in class_names]
    for i, (file, found) in enumerate(track(list(zip(files, detections, strict=True)), "drawing", transient=True)):
        found = found.where(found.scores >= min_score)
        image = load_image(str(file))
        picture = drawing.draw_boxes(image, found.boxes, found.labels, class_names, found.scores)
        if keypoint_names:
            picture = drawing.draw_keypoints(picture, found.keypoints, found.keypoint_scores > 0, keypoint_names)
            visibility = 1 + (found.keypoint_scores > 0)[..., None]
            keypoints = np.concatenate([found.keypoints, visibility], axis=-1)
            keypoints = keypoints.reshape(-1, 3 * len(keypoint_names)).tolist()
            parts = [{"keypoints": row, "num_keypoints": len(keypoint_names)} for row in keypoints]
        if tuple(keypoint_names) == skeleton.EXTREME_POINTS:
            polygons = octagons(found.keypoints).reshape(-1, 1, 16).tolist()
            parts = [{**part, "segmentation": own} for part, own in zip(parts, polygons, strict=True)]
        picture.save(output / names[i], quality=95)
        images.append({"id": i + 1, "file_name": str(file), "height": image.shape[0], "width": image.shape[1]})
        columns = (found.boxes.tolist(), found.labels.tolist(), found.scores.tolist())
        for row, ((x1, y1, x2, y2), label, score) in enumerate(zip(*columns, strict=True)):
            annotation = {"id": len(annotations) + 1, "image_id": i + 1, "category_id": label + 1, "iscrowd": 0}
            box = {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1), "score": score}
            annotations.append({**annotation, **box, **(parts[row] if keypoint_names else {})})
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(class_names)]
    if keypoint_names:
        limbs = [[a + 1, b + 1] for a, b in skeleton.limbs(keypoint_names)]
        categories = [{**one, "keypoints": list(keypoint_names), "skeleton": limbs} for one in categories]
    found = {"images": images, "categories": categories, "annotations": annotations}
    (output / "detections.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(f"{len(annotations)} objects in {len(files)} images: {output}/ holds the pictures and detections.json")


def write_aligned(folder, files, detections, min_score):
    """Each face that scores at least `min_score` as a picture of its own, photo-1.png for the best of photo.jpg."""
    folder.mkdir(exist_ok=True)
    for name, file, found in zip(drawn_names(files), files, detections, strict=True):
        image, found = load_image(str(file)), found.where(found.scores >= min_score)
        for number, landmarks in enumerate(found.keypoints, 1):
            alignment.aligned(image, landmarks).save(folder / f"{Path(name).stem}-{number}.png")


def evaluate(arguments):
    model = load_model(arguments)
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
    model = load_model(arguments)
    try:
        if arguments.raw:
            folder = serving.export_raw(model, arguments.output, arguments.version)
            print(f"{folder}: SavedModel of the network alone, from resized images to raw outputs")
        else:
            folder = serving.export(model, arguments.output, arguments.version)
            print(f"{folder}: SavedModel with the signatures serving_default (image_bytes) and images")
    except FileExistsError as error:
        raise TfdetError(str(error)) from error


def convert(arguments):
    for name in ("shards", "workers"):
        if getattr(arguments, name) is not None and getattr(arguments, name) < 1:
            raise TfdetError(f"convert: --{name} {getattr(arguments, name)}: at least one")
    for split in arguments.split or split_names(arguments.data):
        dataset = load_dataset(arguments.data, split, arguments.on_error)
        for line in dataset.skipped:
            print(f"left out: {line}")
        if dataset.keypoint_names:
            masks = " and masks" if any(example.masks is not None for example in dataset.examples) else ""
            print(f"{dataset.name}: keypoints{masks} are not written, only boxes")
        with Progress(transient=True) as progress:
            task = progress.add_task(f"writing {split}", total=len(dataset))
            write_shards(
                dataset,
                arguments.output,
                split,
                arguments.shards,
                arguments.workers,
                arguments.on_error,
                advance=lambda images, task=task: progress.advance(task, images),
                tell=lambda line, split=split: print(f"{split}: {line}"),
            )
        written = manifest.read(manifest.paths(arguments.output, split)[0])
        for line in written.skipped[len(dataset.skipped) :]:
            print(f"left out: {line}")
        size = sum(shard.bytes for shard in written.shards)
        counts = f"{written.images} images, {written.boxes} boxes, {len(written.shards)} shards"
        print(f"{split}: {counts}, {size / 1e6:.1f} MB")
    print(f"{arguments.output}/ holds them and label_map.pbtxt; read it with --data tfrecord:{arguments.output}")


def find_images(arguments):
    """Files, folders and globs -> image files, sorted within each argument."""
    files = []
    if not arguments:
        raise TfdetError("no images given")
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


def load_model(arguments):
    """The detector that the arguments (`Trained`) name, which looks at images as they say."""
    model, scales = read_model(arguments.model), arguments.scales
    if not scales or not all(0 < scale < float("inf") for scale in scales):
        raise TfdetError(f"--scales must be above 0: {' '.join(map(str, scales))}")
    if arguments.flip or scales != (1.0,):
        model = inference.with_flip_and_scales(model, arguments.flip, scales)
    return inference.in_bfloat16(model) if arguments.precision == "bfloat16" else model


def read_model(path):
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
    every = evaluation.COCO_FIGURES + evaluation.KEYPOINT_FIGURES + evaluation.MASK_FIGURES
    rest = [name for name in every if name in figures and name not in names]
    table.caption = "  ".join(f"{name} {'-' if figures[name] is None else f'{figures[name]:.3f}'}" for name in rest)
    return table


if __name__ == "__main__":
    main()
