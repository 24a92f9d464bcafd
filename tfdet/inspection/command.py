"""The command `python -m tfdet inspect`."""

import json
import sys
from collections import Counter
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from tfdet.data import load_dataset
from tfdet.errors import TfdetError, require_tensorflow
from tfdet.inspection import choice, panels, pictures, priors, report, statistics

KEPT = 1000  # lost objects that are told, of all rows together
TABLES = {  # title: keys of statistics.COLUMNS
    "samples of an image, mean over one epoch of training": statistics.OF_SAMPLES,
    "positives of an object, as fed in evaluation": statistics.OF_OBJECTS,
    "objects that nobody is responsible for": statistics.OF_LOST,
}


def inspect(arguments):
    """The command; its arguments are those of `tfdet.__main__.Inspect`."""
    require_tensorflow("inspect")
    names = [name for text in arguments.detectors for name in text.split(",") if name]
    rows = choice.choices(names or list(choice.DETECTORS), arguments.set)
    dataset = load_dataset(arguments.data, arguments.split, arguments.on_error)
    for line in dataset.skipped:
        print(f"left out: {line}")
    if not len(dataset):
        raise TfdetError(f"{dataset.name}: no image of this split can be used")
    numbers = chosen_images(dataset, arguments.image)
    detectors = build(rows, dataset, arguments)
    if arguments.suggest_priors:
        if not arguments.table:
            raise TfdetError("--suggest-priors: how much they reach is counted for the table, so not with --no-table")
        detectors = with_suggestions(detectors, dataset, arguments.data)

    found = {"data": dataset.name, **tabulate(dataset, detectors if arguments.table else [])}
    output = Path(arguments.output)
    output.mkdir(parents=True, exist_ok=True)
    text = json.dumps(found, indent=1, ensure_ascii=False)
    (output / "statistics.json").write_text(text + "\n", encoding="utf-8")
    found |= {"pictures": [panels.picture(dataset, number, detectors) for number in numbers]}
    report.write(found, output)
    pictures.write(found, output)
    if arguments.table:
        console = Console(width=None if sys.stdout.isatty() else 120)
        for table in tables(found):
            console.print(table)
    for line in suggestions(found):
        print(line)
    print(f"{output}/ holds report.html, which any browser shows, its pictures, and statistics.json")


def chosen_images(dataset, names):
    """The numbers of the images that are called so; of none: the first, the middle and the last with objects.

    Raises:
        TfdetError: there is no such image.
    """
    numbers = {str(example.image_id): number for number, example in enumerate(dataset.examples)}
    if unknown := [name for name in names if name not in numbers]:
        raise TfdetError(
            f"{dataset.name}: no image {', '.join(unknown)}; there are {', '.join(list(numbers)[:5])}, ..."
        )
    if names:
        return [numbers[name] for name in dict.fromkeys(names)]
    some = [number for number, example in enumerate(dataset.examples) if len(example.boxes)]
    return sorted({some[0], some[len(some) // 2], some[-1]}) if some else []


def build(rows, dataset, arguments):
    """Pairs of a Choice and its detector. One that was not asked for, and cannot learn from this data, is left out."""
    detectors, changed = [], {row.detector for row in rows if row.changes}
    for row in rows:
        try:
            detectors.append((row, choice.build(row, arguments.data, dataset)))
        except TfdetError as error:
            if arguments.detectors or row.detector in changed:
                raise
            print(f"{row.detector} is left out: {error}")
    if not detectors:
        raise TfdetError(f"{dataset.name}: no detector can learn from it")
    return detectors


def with_suggestions(detectors, dataset, spec):
    """The same, and after each detector with priors one whose priors fit the boxes better, if there are such.

    Raises:
        TfdetError: none of them has priors, or there are no boxes.
    """
    rows = []
    for row, detector in detectors:
        rows.append((row, detector))
        if row.detector in priors.SETTINGS and not row.changes:
            setting, sizes = priors.SETTINGS[row.detector], priors.suggest(row.detector, detector, dataset)
            if sizes is not None:
                better = choice.Choice(row.detector, {setting: sizes}, f"{setting}={sizes}", suggested=True)
                rows.append((better, choice.build(better, spec, dataset)))
            else:
                print(f"{row.detector}: no other {setting} are expected to fit better")
    if not any(row.detector in priors.SETTINGS for row, _ in rows):
        raise TfdetError(f"--suggest-priors: only {', '.join(priors.SETTINGS)} have any")
    return rows


def tabulate(dataset, detectors):
    """The figures of all rows, as plain numbers and text.

    Returns:
        {"images", "objects": {size: number}, "columns": [{"key", "title", "help"}], "rows": [{"detector", "stage",
        "settings", "suggested", "figures": {key: number, text or None}, "sizes": {size: figures of its objects},
        "reasons": {why: number of lost objects}}], "lost": [{"detector", "settings", "image", "object", "box",
        "label", "reason"}], at most KEPT, "lost_total": {detector: number}, "seed"}.
    """
    rows, lost = [], []
    with Progress(transient=True) as progress:
        task = progress.add_task("counting", total=2 * len(detectors) * len(dataset))
        for row, detector in detectors:
            found = statistics.measure(detector, dataset, KEPT // len(detectors), lambda: progress.advance(task))
            for stage, tally in found.items():
                same = {"detector": row.detector, "settings": row.settings}
                more = {"sizes": tally.sizes(), "reasons": tally.reasons(), "suggested": row.suggested}
                rows.append({**same, "stage": stage, "figures": tally.figures(), **more})
                for example, number, reason in tally.lost:
                    place = {"image": example.image_id, "object": number, "box": example.boxes[number].tolist()}
                    label = dataset.class_names[example.labels[number]]
                    lost.append({**same, **place, "label": label, "reason": reason})
    columns = [dict(zip(("key", "title", "help"), column, strict=True)) for column in statistics.COLUMNS]
    totals = {row["detector"]: 0 for row in rows}
    for row in rows:
        totals[row["detector"]] += row["figures"]["lost"] if not row["settings"] else 0
    return {
        "images": len(dataset),
        "objects": statistics.objects(dataset),
        "seed": statistics.SEED,
        "columns": columns,
        "rows": rows,
        "lost": lost,
        "lost_total": totals,
    }


def tables(found):
    """What `tabulate` found as tables for the terminal."""
    titles = {column["key"]: column["title"] for column in found["columns"]}
    stages = Counter(row["detector"] for row in found["rows"] if not row["settings"])
    for title, keys in TABLES.items():
        table = Table(title=f"{found['data']}: {title}")
        table.add_column("detector", min_width=15, overflow="fold")
        for key in keys:
            table.add_column(titles[key], justify="left" if key == "why" else "right")
        for row in found["rows"]:
            name = f"  {row['settings']}" if row["settings"] else row["detector"]
            name += f": {row['stage']}" if stages[row["detector"]] > 1 else ""
            table.add_row(name, *(shown(row["figures"][key]) for key in keys))
        yield table


def shown(value):
    if value is None:
        return "-"
    if isinstance(value, str):
        return value
    for unit, size in (("M", 1e6), ("k", 1e4)):
        if value >= size:
            return f"{value / (1e3 if unit == 'k' else size):.3g}{unit}"
    return f"{value:,}" if isinstance(value, int) else f"{value:.3f}" if value < 1 else f"{value:,.1f}"


def suggestions(found):
    """The suggested settings as lines of TOML."""
    recall = {row["detector"]: row["figures"]["recall"] for row in found["rows"] if not row["settings"]}
    for row in found["rows"]:
        if row["suggested"]:
            now, then = recall[row["detector"]], row["figures"]["recall"]
            yield f"# {row['detector']}: {then:.1%} of the objects reach IoU {statistics.REACHED}, at present {now:.1%}"
            yield row["settings"].replace("=", " = ") if then > now else "# keep the present ones"
