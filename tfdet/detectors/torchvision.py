"""Detectors with the weights of torchvision's, whose outputs they then give.

Files are state dicts, .pth or .safetensors, read without unpickling arbitrary code. The published COCO weights have a
logit for each of COCO's category ids up to 90, some of which name nothing; a class without a name is "unused 12".
"""

from tfdet import backbones
from tfdet.anchors import AnchorGenerator
from tfdet.backbones.resnet import torch_names
from tfdet.detectors.faster_rcnn import FasterRCNN
from tfdet.detectors.fcos import FCOS
from tfdet.detectors.retinanet import RetinaNet
from tfdet.errors import WeightsError
from tfdet.weights import load_torch, read_state_dict

RATIOS = (0.5, 1.0, 2.0)


def faster_rcnn_torchvision(path, class_names=None, short_sides=(800,), long_side=1333, epsilon=1e-5):
    """Faster R-CNN with the weights of torchvision's `fasterrcnn_resnet50_fpn`.

    Args:
        path: its state dict.
        class_names: {logit: name}, the background being logit 0.
        short_sides, long_side: torchvision's min_size and max_size. Training draws one of the short sides for each
            image, prediction takes the last.
        epsilon: of batch normalisation; torchvision sets it to 0 for the published COCO weights of this
            and of RetinaNet.
    Raises:
        WeightsError: the file cannot be read or does not fit.
    """
    state = read_state_dict(path)
    bias = _last_bias(state, "roi_heads.box_predictor.cls_score.bias", path, "fasterrcnn_resnet50_fpn")
    anchors = [AnchorGenerator((8 * 2**k,), RATIOS, 2**k, rounded=True) for k in range(2, 7)]
    model = FasterRCNN(
        backbones.resnet50(norm="frozen"),
        _names(class_names, range(1, len(bias))),
        anchors,
        short_sides,
        long_side,
        fitted=True,
        name="faster_rcnn_fpn",
    )
    head, predictor = "roi_heads.box_head.", "roi_heads.box_predictor."
    # PyTorch flattens a region channel by channel, TensorFlow pixel by pixel; and background has no box here.
    fc6 = state.get(f"{head}fc6.weight")
    if fc6 is not None and fc6.ndim == 2 and fc6.shape[1] % 49 == 0:  # any other is refused below
        state[f"{head}fc6.weight"] = fc6.reshape(len(fc6), -1, 7, 7).transpose(0, 2, 3, 1).reshape(fc6.shape)
    for key in (f"{predictor}bbox_pred.weight", f"{predictor}bbox_pred.bias"):
        if key in state:
            state[key] = state[key][4:]
    conv = "rpn.head.conv" if "rpn.head.conv.weight" in state else "rpn.head.conv.0.0"
    pairs = [
        (model.rpn.conv, conv),
        (model.rpn.logit_conv, "rpn.head.cls_logits"),
        (model.rpn.delta_conv, "rpn.head.bbox_pred"),
        (model.box_head.fc6, f"{head}fc6"),
        (model.box_head.fc7, f"{head}fc7"),
        (model.box_head.classes, f"{predictor}cls_score"),
        (model.box_head.deltas, f"{predictor}bbox_pred"),
    ]
    return _load(model, pairs, state, path, epsilon)


def retinanet_torchvision(path, class_names=None, short_sides=(800,), long_side=1333, epsilon=1e-5):
    """RetinaNet with the weights of torchvision's `retinanet_resnet50_fpn`; arguments as `faster_rcnn_torchvision`.

    There is no background: logit 0 is a class like the others (in the published weights one that names nothing). Of an
    image 100 detections are kept; torchvision keeps 300.
    """
    state = read_state_dict(path)
    bias = _last_bias(state, "head.classification_head.cls_logits.bias", path, "retinanet_resnet50_fpn")
    sizes = [[int(size * 2 ** (octave / 3)) for octave in range(3)] for size in (32, 64, 128, 256, 512)]
    anchors = [AnchorGenerator(size, RATIOS, 2**k, rounded=True) for k, size in enumerate(sizes, 3)]
    model = RetinaNet(
        backbones.resnet50(norm="frozen"),
        _names(class_names, range(len(bias) // anchors[0].num_anchors)),
        anchors,
        short_sides,
        long_side,
        p6_from="P5",
        fitted=True,
        name="retinanet",
    )
    pairs = []
    for kind, tower, last, name in (
        ("classification_head", model.head.class_tower, model.head.class_conv, "cls_logits"),
        ("regression_head", model.head.box_tower, model.head.box_conv, "bbox_reg"),
    ):
        old = f"head.{kind}.conv.6.weight" in state  # convolutions and activations were counted alike
        names = [f"head.{kind}.conv.{2 * i}" if old else f"head.{kind}.conv.{i}.0" for i in range(4)]
        pairs += [*zip(tower, names, strict=True), (last, f"head.{kind}.{name}")]
    return _load(model, pairs, state, path, epsilon)


def fcos_torchvision(path, class_names=None, short_sides=(800,), long_side=1333, epsilon=1e-5):
    """FCOS with the weights of torchvision's `fcos_resnet50_fpn`; arguments as `faster_rcnn_torchvision`.

    It is the improved FCOS without a scale for each level. Locations lie in the corners of their cells, and detections
    need a score of 0.2. There is no background: logit 0 is a class like the others (in the published weights one that
    names nothing). The epsilon of its published weights is 1e-5.
    """
    state = read_state_dict(path)
    bias = _last_bias(state, "head.classification_head.cls_logits.bias", path, "fcos_resnet50_fpn")
    model = FCOS(
        backbones.resnet50(norm="frozen"),
        _names(class_names, range(len(bias))),
        short_sides,
        long_side,
        improved=True,
        offset=0.0,
        fitted=True,
        thresholds=(0.0, 0.2),
        name="fcos",
    )
    head, (classes, boxes) = model.head, ("head.classification_head.", "head.regression_head.")
    pairs = [
        (head.class_conv, f"{classes}cls_logits"),
        (head.box_conv, f"{boxes}bbox_reg"),
        (head.centerness_conv, f"{boxes}bbox_ctrness"),
    ]
    for tower, kind in ((head.class_tower, classes), (head.box_tower, boxes)):
        pairs += [(layer, f"{kind}conv.{i}") for i, layer in enumerate(tower) if layer.weights]
    return _load(model, pairs, state, path, epsilon)


def _last_bias(state, key, path, name):
    if key not in state:
        raise WeightsError(f"{path}: not a state dict of torchvision's {name}: it has no {key}")
    return state[key]


def _names(class_names, logits):
    return [(class_names or {}).get(logit, f"unused {logit}") for logit in logits]


def _load(model, pairs, state, path, epsilon):
    pairs += torch_names(model.backbone, "backbone.body.")
    pairs += model.neck.torch_names(state, "backbone.fpn.")
    for layer, module in pairs:
        if f"{module}.running_var" in state:
            # Our epsilon is added to the variance later.
            state[f"{module}.running_var"] = state[f"{module}.running_var"] + epsilon - layer.epsilon
    load_torch(pairs, state, path)
    return model
