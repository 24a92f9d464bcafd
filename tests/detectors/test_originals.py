"""Checkpoints whose names and shapes are those of the released ones; their numbers are made up."""

import keras
import numpy as np
import pytest
from safetensors.numpy import save_file

from tfdet import backbones
from tfdet.backbones import keypoints
from tfdet.backbones.hourglass import hourglass
from tfdet.detectors.cornernet import CornerNet
from tfdet.detectors.extremenet import ExtremeNet
from tfdet.detectors.originals import (
    centernet_original,
    centernet_pose_original,
    cornernet_original,
    extremenet_original,
)
from tfdet.errors import WeightsError
from tfdet.skeleton import PERSON

# network -> where its heads have the 3x3 and the 1x1 convolution of each stack, and the channels between them
HEADS = {
    "resnet18_dcn": ([("{}.0", "{}.2")], 64),
    "resnet18_up": ([("{}.0", "{}.2")], 64),
    "dla34": ([("{}.0", "{}.2")], 256),
    "hourglass104": ([("{}.0.0.conv", "{}.0.1"), ("{}.1.0.conv", "{}.1.1")], 256),
}
MAPS = {"hm": 3, "wh": 2, "reg": 2}
POSE_MAPS = {"hm": 1, "wh": 2, "reg": 2, "hps": 34, "hm_hp": 17, "hp_offset": 2}


def checkpoint(network, backbone, maps=MAPS):
    """A state dict of three classes, or of people's joints; 0.05 noise."""
    random = np.random.default_rng(0)
    state = {}

    def add(name, *shape):
        state[name] = random.normal(scale=0.05, size=shape).astype(np.float32)

    for layer, name in keypoints.torch_names(backbone):
        if isinstance(layer, keras.layers.BatchNormalization):
            for part in ("weight", "bias", "running_mean", "running_var"):
                state[f"{name}.{part}"] = random.uniform(0.5, 1, layer.gamma.shape).astype(np.float32)
            continue
        height, width, *channels = layer.kernel.shape
        depthwise = channels[-1] == 1
        add(f"{name}.weight", *(channels if depthwise else reversed(channels)), height, width)
        if layer.use_bias:
            add(f"{name}.bias", *layer.bias.shape)
    convolutions, width = HEADS[network]
    features = backbone.output["stack1"].shape[-1]
    for map_name, count in maps.items():
        for first, last in convolutions:
            add(f"{first.format(map_name)}.weight", width, features, 3, 3)
            add(f"{first.format(map_name)}.bias", width)
            add(f"{last.format(map_name)}.weight", count, width, 1, 1)
            add(f"{last.format(map_name)}.bias", count)
    return state


@pytest.fixture(scope="module")
def small_networks():
    """Hourglass-104 with few channels and blocks, or it would take a gigabyte; the others as they are."""
    with pytest.MonkeyPatch.context() as patch:
        slim = backbones.hourglass.hourglass
        patch.setattr(backbones, "hourglass104", lambda weights: slim((8,) * 6, (1,) * 6))
        yield


@pytest.mark.parametrize("network", HEADS)
def test_every_tensor_finds_its_layer(network, small_networks, tmp_path):
    convolutions, _ = HEADS[network]
    state = checkpoint(network, backbones.build(network))
    save_file(state, tmp_path / "released.safetensors")
    model = centernet_original(tmp_path / "released.safetensors", ("a", "b", "c"), side=128)
    assert model.class_names == ("a", "b", "c")
    assert len(model.heads) == len(convolutions)
    for head, (first, last) in zip(model.heads, convolutions, strict=True):
        for name, theirs in (("heatmap", "hm"), ("size", "wh"), ("offset", "reg")):
            for layer, module in ((head.convs[name], first), (head.lasts[name], last)):
                weight, bias = (state[f"{module.format(theirs)}.{part}"] for part in ("weight", "bias"))
                np.testing.assert_array_equal(layer.kernel, weight.transpose(2, 3, 1, 0))
                np.testing.assert_array_equal(layer.bias, bias)
    # Every tensor was used, or it had been refused; the first convolution is turned from BGR to RGB.
    layer, module = keypoints.torch_names(model.backbone)[0]
    np.testing.assert_array_equal(layer.kernel, state[f"{module}.weight"][:, ::-1].transpose(2, 3, 1, 0))


@pytest.mark.parametrize("network", ["dla34", "hourglass104"])
def test_every_tensor_of_a_pose_checkpoint_finds_its_layer(network, small_networks, tmp_path):
    state = checkpoint(network, backbones.build(network), POSE_MAPS)
    save_file(state, tmp_path / "released.safetensors")
    model = centernet_pose_original(tmp_path / "released.safetensors", side=128)
    assert (model.class_names, model.keypoint_names) == (("person",), PERSON)
    names = {"heatmap": "hm", "size": "wh", "offset": "reg"}
    names |= {"joints": "hps", "joint_heatmap": "hm_hp", "joint_offset": "hp_offset"}
    for head, (first, last) in zip(model.heads, HEADS[network][0], strict=True):
        for name, theirs in names.items():
            for layer, module in ((head.convs[name], first), (head.lasts[name], last)):
                weight = state[f"{module.format(theirs)}.weight"]
                np.testing.assert_array_equal(layer.kernel, weight.transpose(2, 3, 1, 0))
    with pytest.raises(WeightsError, match=r"(hps|hm_hp|hp_offset)\S* is not used"):
        centernet_original(tmp_path / "released.safetensors", side=128)


def test_classes_are_numbered_where_no_names_are_given(tmp_path):
    save_file(checkpoint("resnet18_up", backbones.build("resnet18_up")), tmp_path / "released.safetensors")
    model = centernet_original(tmp_path / "released.safetensors")
    assert model.class_names == ("0", "1", "2")
    assert model.settings["keep_size"] is True
    with pytest.raises(WeightsError, match="it knows 3 classes, but there are 2 names"):
        centernet_original(tmp_path / "released.safetensors", ("a", "b"))


def test_what_is_no_checkpoint_of_it_is_refused(tmp_path):
    save_file({"fc.weight": np.zeros((3, 2), np.float32)}, tmp_path / "other.safetensors")
    with pytest.raises(WeightsError, match="not a checkpoint of CenterNet's detectors"):
        centernet_original(tmp_path / "other.safetensors")


# Of princeton-vl/CornerNet's `kp` with two levels, dims 8, 12, 16, modules 2, 1, 2 and pools of 4 channels instead of
# 128, its tensors made by `seeded`: the mean of each map, and what it says in the first and in the last cell.
CORNERNET = {
    "top_left_heatmap": [
        (-8.304805, [1.73551, -4.88391, 1.148849], [0.38805, -0.51598, -1.22986]),
        (4.462835, [-57.06712, -68.572923, 136.113464], [49.320301, 48.02016, 173.689499]),
    ],
    "bottom_right_heatmap": [
        (36.948444, [29.0375, -6.58693, 34.45185], [28.96965, 0.28429, 45.54866]),
        (48.034428, [-18.936001, 21.54785, 24.48201], [-6.12758, -324.056274, 246.372955]),
    ],
    "top_left_tag": [(-2.80959, [5.86261], [-1.47754]), (29.033211, [23.196140], [-3.40666])],
    "bottom_right_tag": [(-3.681657, [6.18109], [-1.78495]), (92.613960, [67.36248], [104.71981])],
    "top_left_offset": [
        (-13.082296, [-1.21375, -11.0277], [1.56792, -2.15712]),
        (-33.80006, [123.753128, -68.448639], [197.267275, -33.177662]),
    ],
    "bottom_right_offset": [
        (21.482735, [12.77299, 2.93122], [1.0212, 9.32572]),
        (-67.446579, [-8.60271, -8.42996], [-178.6996, -361.708374]),
    ],
}


# Of xingyizhou/ExtremeNet's `exkp`, likewise.
EXTREMENET = {
    "top_heatmap": [
        (-0.072259, [8.35129, -0.07008, -8.78457], [3.00253, -0.0294, -1.88156]),
        (-50.68736, [2.9288, -49.57098, 35.87345], [92.6396, -279.9077, 142.4191]),
    ],
    "top_offset": [
        (-0.528333, [5.18197, -7.64325], [-0.26461, -7.81763]),
        (-33.2306, [-33.78826, -2.70199], [-39.18854, -6.48029]),
    ],
    "left_heatmap": [
        (-0.146008, [1.26089, -1.61353, 4.27389], [-0.2826, -0.36315, 0.38892]),
        (-55.78768, [6.22186, -2.27598, -61.3994], [1.30252, -184.9888, 65.2074]),
    ],
    "left_offset": [
        (6.536221, [0.81914, 2.64963], [-4.84505, 3.3643]),
        (93.94504, [40.03932, 44.25602], [-42.13817, 158.9842]),
    ],
    "bottom_heatmap": [
        (-0.544198, [1.46227, -1.13878, 0.16409], [0.3273, 0.89467, -1.96208]),
        (57.4184, [74.07196, -1.83857, -40.07606], [118.6676, 203.4693, -210.9494]),
    ],
    "bottom_offset": [
        (-0.174998, [1.52271, 5.00563], [1.10131, -4.13099]),
        (10.74804, [4.04939, -5.74405], [38.5196, -157.6688]),
    ],
    "right_heatmap": [
        (-0.204833, [0.49417, 1.6451, -7.36008], [0.0178, 1.2532, -6.47558]),
        (122.2053, [-0.30691, 35.11143, 64.04315], [18.32188, 305.3251, 131.2527]),
    ],
    "right_offset": [
        (12.70303, [-7.10379, -2.17106], [4.22055, 5.83959]),
        (-50.20641, [41.15202, -80.1678], [-11.73237, 62.5112]),
    ],
    "centre_heatmap": [
        (-11.65316, [0.85325, -2.49754, -1.62415], [3.86936, -0.92915, -4.15837]),
        (-59.84562, [20.04681, -48.18682, -15.80816], [-239.3659, 94.03848, -40.5008]),
    ],
}


@pytest.mark.parametrize(
    ("detector", "read", "expected"),
    [(CornerNet, cornernet_original, CORNERNET), (ExtremeNet, extremenet_original, EXTREMENET)],
    ids=["CornerNet", "ExtremeNet"],
)
def test_hourglass_detectors_equal_the_released_code(seeded, monkeypatch, tmp_path, detector, read, expected):
    monkeypatch.setattr(backbones, "hourglass104", lambda weights: hourglass((8, 12, 16), (2, 1, 2)))
    model, state = detector(backbones.build("hourglass104"), 3, 127, True, 8, 128), {}
    for layer, name in (pair for part in (model.backbone, *model.heads) for pair in keypoints.torch_names(part)):
        if isinstance(layer, keras.layers.BatchNormalization):
            shapes = dict.fromkeys(("weight", "bias", "running_mean", "running_var"), layer.gamma.shape)
        else:
            shapes = {"weight": [layer.kernel.shape[axis] for axis in (3, 2, 0, 1)]}
            shapes |= {"bias": layer.bias.shape} if layer.use_bias else {}
        state |= {f"{name}.{part}": seeded(f"{name}.{part}", tuple(shape)) for part, shape in shapes.items()}
    save_file(state, tmp_path / "released.safetensors")

    model = read(tmp_path / "released.safetensors", ("a", "b", "c"), side=127)
    assert (model.class_names, model.settings["keep_size"]) == (("a", "b", "c"), True)
    image = np.random.RandomState(0).uniform(0, 255, (1, 63, 63, 3)).astype(np.float32)
    outputs = model(image)
    for name, stacks in expected.items():
        for values, (mean, first, last) in zip(outputs[name], stacks, strict=True):
            assert values.shape == (1, 16, 16, len(first))
            np.testing.assert_allclose(np.mean(values), mean, rtol=1e-4)
            np.testing.assert_allclose(values[0, 0, 0], first, rtol=1e-4, atol=1e-3)
            np.testing.assert_allclose(values[0, -1, -1], last, rtol=1e-4, atol=1e-3)

    with pytest.raises(WeightsError, match="it knows 3 classes, but there are 2 names"):
        read(tmp_path / "released.safetensors", ("a", "b"))
    save_file({"hm.0.weight": np.zeros((3, 2), np.float32)}, tmp_path / "other.safetensors")
    with pytest.raises(WeightsError, match=f"not a checkpoint of {detector.__name__}"):
        read(tmp_path / "other.safetensors")
