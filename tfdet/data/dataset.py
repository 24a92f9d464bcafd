"""The one example format that every reader makes and every pipeline, evaluation and picture uses."""

import dataclasses

import numpy as np

from tfdet.data.records import Record


@dataclasses.dataclass(frozen=True, eq=False)
class Example:
    """One annotated image. Boxes are xyxy float32 in pixels of the image as it is shown: upright, by its EXIF.

    Attributes:
        image_id: the data set's own name of the image: COCO's id, the file stem in VOC, the path as written in CSV,
            image/source_id in TFRecords.
        image: path of the image file, or the encoded image itself as bytes, or where it lies in a TFRecord shard.
        height, width: size of the image in pixels.
        boxes: float32 [M, 4]. Every box is finite and has a positive area inside the image.
        labels: int32 [M], 0 .. C-1.
        crowd: bool [M]. A crowd region is never a training target, and no detection inside it counts as wrong.
        difficult: bool [M]. A difficult object (VOC) is a training target but is not counted in evaluation.
        areas: float32 [M], the area by which COCO evaluation sorts objects into sizes: that of the segment if the
            data set gives it, else that of the box.
        keypoints: float32 [M, J, 3], or None where the data set has none: x and y in pixels, and, as in COCO, 0 where
            the keypoint is not labelled (x and y then mean nothing), 1 where it is but hidden, 2 where it is visible.
        masks: of M objects the mask as COCO's compressed RLE {"size": [height, width], "counts": bytes}, for
            pycocotools, or None for one whose mask could not be read; None where the data set has none.
    """

    image_id: int | str
    image: str | bytes | Record
    height: int
    width: int
    boxes: np.ndarray
    labels: np.ndarray
    crowd: np.ndarray
    difficult: np.ndarray
    areas: np.ndarray
    keypoints: np.ndarray | None = None
    masks: tuple[dict | None, ...] | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """A split of a data set, held as annotations; images are read when they are needed.

    Attributes:
        name: what it is called in messages, for example "voc:BCCD train".
        class_names: class c is called class_names[c].
        category_ids: class c has this id in the data set's own files (COCO's are not contiguous); 1 .. C elsewhere.
        examples: the images.
        skipped: one line for everything that was left out (`on_error="skip"`), naming file and box.
        keypoint_names: keypoint j of an object is called keypoint_names[j]; a mirror exchanges "left" and "right" in
            them (see tfdet.skeleton).
    """

    name: str
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    examples: tuple[Example, ...]
    skipped: tuple[str, ...] = ()
    keypoint_names: tuple[str, ...] = ()

    def __len__(self):
        return len(self.examples)

    @property
    def num_classes(self):
        return len(self.class_names)
