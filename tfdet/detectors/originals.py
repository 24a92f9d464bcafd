"""Detectors with the weights of checkpoints that their authors released, whose outputs they then give.

Files are read without unpickling arbitrary code.
"""

from tfdet import backbones, skeleton
from tfdet.backbones import keypoints
from tfdet.detectors.centernet import CenterNet, head_settings
from tfdet.detectors.centernet_pose import CenterNetPose
from tfdet.detectors.cornernet import CornerNet
from tfdet.detectors.extremenet import ExtremeNet
from tfdet.errors import WeightsError
from tfdet.weights import load_torch, read_state_dict

BOXES = {"heatmap": "hm", "size": "wh", "offset": "reg"}  # what we call a map: what they do
POSES = BOXES | {"joints": "hps", "joint_heatmap": "hm_hp", "joint_offset": "hp_offset"}


def centernet_original(path, class_names=None, side=512, keep_size=True):
    """CenterNet with the weights of a released checkpoint of xingyizhou/CenterNet, ctdet_*.pth.

    Which network it is, the names of its tensors tell. Its published figures are of images of their own size, but for
    the checkpoints of VOC.

    Args:
        path: the checkpoint.
        class_names: of its classes, in its order (COCO's is that of the category ids); None numbers them.
        side, keep_size: see CenterNet.
    Raises:
        WeightsError: the file cannot be read or does not fit.
    """

    def build(backbone, names, channels, multiple):
        return CenterNet(backbone, names, side, keep_size, channels, multiple, name="centernet")

    return _read(path, build, BOXES, class_names)


def centernet_pose_original(path, class_names=("person",), side=512, keep_size=True):
    """CenterNetPose with the weights of a released checkpoint, multi_pose_*.pth. As `centernet_original`."""

    def build(backbone, names, channels, multiple):
        others = (side, keep_size, channels, multiple)
        return CenterNetPose(backbone, names, skeleton.PERSON, *others, name="centernet_pose")

    return _read(path, build, POSES, class_names)


def _read(path, build, maps, class_names):
    """The model that build(backbone, class names, channels of the heads, multiple) makes, with a file's weights."""
    state = keypoints.to_rgb(read_state_dict(path))
    stacks = sum(key.startswith("hm.") and key.endswith(".0.conv.weight") for key in state)  # of an hourglass
    first, last = ("hm.0.0.conv", "hm.0.1") if stacks else ("hm.0", "hm.2")
    bias, kernel = state.get(f"{last}.bias"), state.get(f"{first}.weight")
    if bias is None or kernel is None:
        raise WeightsError(f"{path}: not a checkpoint of CenterNet's detectors: it has no {first} and {last}")
    names = _names(path, class_names, bias)
    backbone = _network(state)
    model = build(backbones.build(backbone), names, len(kernel), head_settings(backbone)[1])
    pairs = keypoints.torch_names(model.backbone)
    for stack, head in enumerate(model.heads):
        for name, module in maps.items():
            first, last = (
                (f"{module}.{stack}.0.conv", f"{module}.{stack}.1") if stacks else (f"{module}.0", f"{module}.2")
            )
            pairs += [(head.convs[name], first), (head.lasts[name], last)]
    load_torch(pairs, state, path, ignore=keypoints.UNUSED)
    return model


def cornernet_original(path, class_names=None, side=511, keep_size=True):
    """CornerNet with the weights of a released checkpoint of princeton-vl/CornerNet, CornerNet_500000.pkl.

    Its published figures are of images of their own size, and with their mirror images (tfdet.with_flip_and_scales).

    Args:
        path, class_names: as those of `centernet_original`.
        side, keep_size: see CornerNet.
    Raises:
        WeightsError: the file cannot be read or does not fit.
    """
    return _read_hourglass(path, CornerNet, "tl_heats.0", class_names, side, keep_size)


def extremenet_original(path, class_names=None, side=511, keep_size=True):
    """ExtremeNet with the weights of a released checkpoint of xingyizhou/ExtremeNet, ExtremeNet_250000.pkl.

    As `cornernet_original`.
    """
    return _read_hourglass(path, ExtremeNet, "t_heats.0", class_names, side, keep_size)


def _read_hourglass(path, detector, heatmap, class_names, side, keep_size):
    """That detector (its class) on Hourglass-104; its checkpoints have a heatmap of that name."""
    state = keypoints.to_rgb(read_state_dict(path))
    bias, kernel = state.get(f"{heatmap}.1.bias"), state.get(f"{heatmap}.0.conv.weight")
    if bias is None or kernel is None:
        missing = f"{heatmap}.0.conv and {heatmap}.1"
        raise WeightsError(f"{path}: not a checkpoint of {detector.__name__}: it has no {missing}")
    names, backbone = _names(path, class_names, bias), backbones.build("hourglass104")
    model = detector(backbone, names, side, keep_size, len(kernel), 128, name=detector.__name__.lower())
    load_torch([pair for part in (model.backbone, *model.heads) for pair in keypoints.torch_names(part)], state, path)
    return model


def _names(path, class_names, bias):
    """The names of the classes, or the number of those that the heatmap's bias is for."""
    if class_names is not None and len(class_names) != len(bias):
        raise WeightsError(f"{path}: it knows {len(bias)} classes, but there are {len(class_names)} names")
    return len(bias) if class_names is None else class_names


def _network(state):
    """The name of the backbone that has such tensors."""
    if "kps.0.up1.0.conv1.weight" in state:
        return "hourglass104"
    if "base.base_layer.0.weight" in state:
        return "dla34"
    depth = 101 if "layer3.22.conv1.weight" in state else 18
    return f"resnet{depth}_dcn" if any("conv_offset_mask" in key for key in state) else f"resnet{depth}_up"
