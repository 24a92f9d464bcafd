"""Object detectors in TensorFlow and Keras 3: the public names, nothing else."""

import os

# Before TensorFlow is imported: its notices would bury the one line that a person needs. Errors still show.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from tfdet import (
    anchors,
    assigners,
    backbones,
    boxes,
    coders,
    drawing,
    heatmaps,
    losses,
    necks,
    nms,
    rois,
    samplers,
    skeleton,
)
from tfdet.data import load_dataset
from tfdet.data.pipeline import training_batches, validation_batches
from tfdet.detectors.centernet import CenterNet, centernet
from tfdet.detectors.centernet_pose import CenterNetPose, centernet_pose
from tfdet.detectors.cornernet import CornerNet, cornernet
from tfdet.detectors.extremenet import ExtremeNet, extremenet
from tfdet.detectors.faster_rcnn import FasterRCNN, faster_rcnn_fpn, faster_rcnn_vgg16
from tfdet.detectors.fcos import FCOS, fcos
from tfdet.detectors.mtcnn import MTCNN, mtcnn
from tfdet.detectors.mtcnn_original import mtcnn_original
from tfdet.detectors.retinanet import RetinaNet, retinanet
from tfdet.detectors.ssd import SSD, ssd300, ssd512
from tfdet.distribution import strategy_scope
from tfdet.errors import TfdetError
from tfdet.evaluation import Evaluation, evaluate
from tfdet.inference import Detections, detect, detect_files, in_bfloat16, with_flip_and_scales
from tfdet.serving import export

__all__ = [
    "FCOS",
    "MTCNN",
    "SSD",
    "CenterNet",
    "CenterNetPose",
    "CornerNet",
    "Detections",
    "Evaluation",
    "ExtremeNet",
    "FasterRCNN",
    "RetinaNet",
    "TfdetError",
    "anchors",
    "assigners",
    "backbones",
    "boxes",
    "centernet",
    "centernet_pose",
    "coders",
    "cornernet",
    "detect",
    "detect_files",
    "drawing",
    "evaluate",
    "export",
    "extremenet",
    "faster_rcnn_fpn",
    "faster_rcnn_vgg16",
    "fcos",
    "heatmaps",
    "in_bfloat16",
    "load_dataset",
    "losses",
    "mtcnn",
    "mtcnn_original",
    "necks",
    "nms",
    "retinanet",
    "rois",
    "samplers",
    "skeleton",
    "ssd300",
    "ssd512",
    "strategy_scope",
    "training_batches",
    "validation_batches",
    "with_flip_and_scales",
]
