"""Training input of SSD300 against torch's DataLoader: time an image, from JPEG files to batches, as a ratio.

    python benchmarks/input.py --peer PYTHON --data voc:BCCD

PYTHON is the interpreter of an environment with the peers (benchmarks/requirements.txt). Both read the training split
of one data set and do SSD's whole augmentation: ours is `training_batches`, which also matches and encodes; the peer's
are the transforms of torchvision's reference script (policy "ssd") and Resize, with two workers, without matching.
"""

import csv
import itertools
import sys
import tempfile
from pathlib import Path

import turns

SIZE, BATCH, EPOCHS = 300, 16, 1


def main():
    arguments = turns.arguments(__doc__, SIDES, lambda parser: parser.add_argument("--data", required=True))
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "boxes.csv"
        write_table(arguments.data, table)
        for peer in list(SIDES)[1:]:
            ours, theirs = turns.Process(sys.executable, "tfdet"), turns.Process(arguments.peer, peer)
            print(f"{turns.HEADER}; {peer}")
            turns.compare(f"input, batch {BATCH}", ours, theirs, (str(table),), rounds=5)
            ours.end(), theirs.end()


def write_table(data, table):
    """What both sides read: path,x1,y1,x2,y2,label,split."""
    import tfdet

    with open(table, "w", newline="") as file:
        for example in tfdet.load_dataset(data, split="train", on_error="skip").examples:
            for box, label in zip(example.boxes.tolist(), example.labels, strict=True):
                csv.writer(file).writerow([Path(example.image).resolve(), *box, label, "train"])


def tfdet_side():
    import tfdet
    from tfdet.data.pipeline import training_batches

    prepared = []

    def run(table):
        if not prepared:
            data = tfdet.load_dataset(f"csv:{table}", split="train")
            detector = tfdet.ssd300(data.num_classes, "vgg_slim")  # what it is fed is the same on any backbone
            prepared.append(training_batches(data, detector, BATCH))
        return sum(len(images) for _ in range(EPOCHS) for images, _ in prepared[0])

    return run


def torch_side(backend):
    import torch
    from PIL import Image
    from torchvision import io, tv_tensors
    from torchvision.transforms import v2

    transform = v2.Compose(
        [
            v2.RandomPhotometricDistort(),
            v2.RandomZoomOut(fill=(123.0, 117.0, 104.0)),
            v2.RandomIoUCrop(),
            v2.RandomHorizontalFlip(),
            *([v2.PILToTensor()] if backend == "pil" else []),
            v2.Resize((SIZE, SIZE)),
            v2.ToDtype(torch.float32, scale=True),
            v2.SanitizeBoundingBoxes(),
            v2.ToPureTensor(),
        ]
    )

    class Images(torch.utils.data.Dataset):
        def __init__(self, table):
            with open(table, newline="") as file:
                rows = itertools.groupby(csv.reader(file), key=lambda row: row[0])
                self.images = [(path, [row[1:6] for row in members]) for path, members in rows]

        def __len__(self):
            return len(self.images)

        def __getitem__(self, i):
            path, rows = self.images[i]
            if backend == "tensor":
                image = tv_tensors.Image(io.decode_image(io.read_file(path), io.ImageReadMode.RGB))
                size = image.shape[1:]
            else:
                image = Image.open(path).convert("RGB")
                size = image.size[::-1]
            boxes = torch.tensor([[float(value) for value in row[:4]] for row in rows])
            boxes = tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=size)
            return transform(image, {"boxes": boxes, "labels": torch.tensor([int(row[4]) for row in rows])})

    def collate(examples):
        images, targets = zip(*examples, strict=True)
        return torch.stack(images), targets

    loaders = []

    def run(table):
        if not loaders:
            options = dict(shuffle=True, drop_last=True, num_workers=2, collate_fn=collate, persistent_workers=True)
            loaders.append(torch.utils.data.DataLoader(Images(table), BATCH, **options))
        return sum(len(images) for _ in range(EPOCHS) for images, _ in loaders[0])

    return run


SIDES = {
    "tfdet": tfdet_side,
    "PIL images": lambda: torch_side("pil"),
    "tensors": lambda: torch_side("tensor"),
}

if __name__ == "__main__":
    main()
