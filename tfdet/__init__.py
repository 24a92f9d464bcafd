"""Object detectors in TensorFlow and Keras 3: the public names, nothing else."""

import os

# Before TensorFlow is imported: its notices would bury the one line that a person needs. Errors still show.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from tfdet import anchors, assigners, backbones, boxes, coders, drawing, losses, nms, samplers
from tfdet.data import load_dataset
from tfdet.data.pipeline import training_batches, validation_batches
from tfdet.detectors.ssd import SSD, ssd300, ssd512
from tfdet.distribution import strategy_scope
from tfdet.errors import TfdetError
from tfdet.evaluation import Evaluation, evaluate
from tfdet.inference import Detections, detect, detect_files
from tfdet.serving import export

__all__ = [
    "SSD",
    "Detections",
    "Evaluation",
    "TfdetError",
    "anchors",
    "assigners",
    "backbones",
    "boxes",
    "coders",
    "detect",
    "detect_files",
    "drawing",
    "evaluate",
    "export",
    "load_dataset",
    "losses",
    "nms",
    "samplers",
    "ssd300",
    "ssd512",
    "strategy_scope",
    "training_batches",
    "validation_batches",
]
