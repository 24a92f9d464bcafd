"""Faster R-CNN, RetinaNet and FCOS on ResNet-50 and FPN against torchvision's, KerasHub's and KerasCV's, as ratios.

    python benchmarks/detectors.py --peer PYTHON [--keras-peer PYTHON] [--only WORD ...]

PYTHON are interpreters of environments with the peers: PyTorch's, and keras-hub and keras-cv. Images of 512 x 512,
float32; times are those of an image, memory is the peak of the process. Inference includes post-processing, and a
training step what is expected of every anchor: torchvision and KerasHub match boxes and anchors in the step, ours does
it in `tf.data`, one image after the other, and waits for it here. It is a step of fine-tuning on all sides: batch
normalisation, the stem and the first stage stand still; 8 boxes an image.

Weights are random, those of torchvision and ours the same. Class scores are as of a trained network: of all pairs of
anchor and class 100 an image are above the threshold of 0.05 (FCOS: 0.2), and after NMS some dozens. Keras' peers look
at each anchor's best class only, and look for ever more boxes until they have 100.
"""

import functools
import math
import os
import sys
import tempfile

import turns

SIZE, CLASSES, BOXES, THRESHOLD, CANDIDATES = 512, 91, 8, 0.05, 100
TASKS = {  # name: (what, batch size, rounds)
    "inference, batch 1": ("infer", 1, 9),
    "inference, batch 8": ("infer", 8, 5),
    "training step, batch 4": ("train", 4, 5),
}
PAIRS = [  # (detector, peer, names of the tasks)
    ("faster_rcnn", "torchvision", list(TASKS)),
    ("faster_rcnn", "torchvision channels_last", list(TASKS)),
    ("retinanet", "torchvision", list(TASKS)),
    ("retinanet", "torchvision channels_last", list(TASKS)),
    ("retinanet", "KerasHub", list(TASKS)),
    ("retinanet", "KerasCV", list(TASKS)[:2]),
    ("fcos", "torchvision", list(TASKS)),
    ("fcos", "torchvision channels_last", list(TASKS)),
]


def main():
    arguments = turns.arguments(__doc__, SIDES, add_more)
    pythons = {name: arguments.peer if "torchvision" in name else arguments.keras_peer for name in SIDES}
    print(turns.HEADER)
    with tempfile.TemporaryDirectory() as folder:
        weights = {detector: os.path.join(folder, f"{detector}.pth") for detector, _, _ in PAIRS}
        for detector, path in weights.items():
            maker = turns.Process(arguments.peer, "torchvision")
            maker.time("save", detector, path)
            maker.end()
        for detector, peer, tasks in PAIRS:
            for task in tasks:
                name = f"{detector}, {task}, {peer}"
                if not pythons[peer] or not all(word in name for word in arguments.only):
                    continue
                what, batch, rounds = TASKS[task]
                # New processes for each task, so that the peak of memory is its own.
                ours, theirs = turns.Process(sys.executable, "tfdet"), turns.Process(pythons[peer], peer)
                print(name)
                turns.compare("  an image", ours, theirs, (what, detector, weights[detector], batch), rounds)
                print(f"{'  peak memory':40} {ours.end():8.2f} GB {theirs.end():8.2f} GB", flush=True)


def add_more(parser):
    parser.add_argument("--keras-peer", help="python of an environment with keras-hub and keras-cv; none: without them")
    parser.add_argument("--only", nargs="*", default=[], help="what a row's name must have: retinanet 'batch 8'")


def pictures(batch):
    """uint8 [B, 512, 512, 3]: patches of several sizes, so that neighbouring cells see something alike."""
    import numpy as np

    rng = np.random.default_rng(0)
    layers = [
        rng.uniform(0, 255 / 3, (batch, n, n, 3)).repeat(SIZE // n, axis=1).repeat(SIZE // n, axis=2)
        for n in (8, 32, 128)
    ]
    return sum(layers).astype("uint8")


def objects(batch):
    """Boxes float32 [B, 8, 4] and labels int64 [B, 8], 1 to 89, which every side has."""
    import numpy as np

    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 300, (batch, BOXES, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(20, 200, (batch, BOXES, 2))], axis=-1)
    return boxes.astype("float32"), rng.integers(1, CLASSES - 1, (batch, BOXES))


def once_prepared(prepare):
    """A side that is asked for one thing only, again and again: prepare(what, detector, weights, batch) -> its work."""

    prepared = functools.cache(prepare)

    def run(*question):
        prepared(*question)()
        return question[-1] if question[0] != "save" else 1

    return run


def tfdet_side():
    import keras
    import tensorflow as tf

    from tfdet.detectors import torchvision

    builders = {
        "faster_rcnn": torchvision.faster_rcnn_torchvision,
        "retinanet": torchvision.retinanet_torchvision,
        "fcos": torchvision.fcos_torchvision,
    }

    def prepare(what, detector, weights, batch):
        model = builders[detector](weights, short_sides=(SIZE,), long_side=SIZE)
        images = pictures(batch)
        if what == "infer":
            return lambda: model.predict_on_batch(images)

        for layer in model.backbone.layers:
            layer.trainable = not layer.name.startswith(("conv1", "layer1"))
        model.compile(keras.optimizers.SGD(1e-6, momentum=0.9))
        examples = tf.data.Dataset.from_tensor_slices((images.astype("float32"), *objects(batch), tf.range(batch)))

        @tf.autograph.experimental.do_not_convert
        def encoded(image, boxes, labels, seed):
            return image, model.encode(image, boxes, labels, seed)

        batches = iter(examples.repeat().map(encoded).batch(batch))
        return lambda: model.train_on_batch(*next(batches))

    return once_prepared(prepare)


def torchvision_side(channels_last=False):
    import torch
    from torchvision import ops
    from torchvision.models import detection

    def build(detector):
        """What the builders fasterrcnn_resnet50_fpn and so on make when they are given weights."""
        resnet_fpn, sizes = detection.backbone_utils.resnet_fpn_backbone, {"min_size": SIZE, "max_size": SIZE}
        resnet = {"backbone_name": "resnet50", "weights": None, "trainable_layers": 3}
        if detector == "faster_rcnn":
            # As many proposals as ours looks at in training; torchvision's default is twice that.
            return detection.FasterRCNN(resnet_fpn(**resnet), CLASSES, **sizes, rpn_post_nms_top_n_train=1000)
        more = ops.feature_pyramid_network.LastLevelP6P7(256, 256)
        backbone = resnet_fpn(**resnet, returned_layers=[2, 3, 4], extra_blocks=more)
        if detector == "fcos":
            return detection.FCOS(backbone, CLASSES, **sizes)
        return detection.RetinaNet(backbone, CLASSES, **sizes, detections_per_img=100)

    def tensors(batch):
        return list(torch.from_numpy(pictures(batch)).permute(0, 3, 1, 2).contiguous() / 255)

    @torch.no_grad()
    def normalise(model, deviations):
        """Scales layers so that each channel of what they give has mean 0, and all have the deviation; gives it all."""
        outputs, answers = {layer: [] for layer in deviations}, []
        handles = [
            layer.register_forward_hook(lambda layer, _, output: outputs[layer].append(output.transpose(0, 1)))
            for layer in deviations
        ]
        model(tensors(1))
        for handle, (layer, deviation) in zip(handles, deviations.items(), strict=True):
            handle.remove()
            values = torch.cat([output.flatten(1) for output in outputs[layer]], dim=1)  # [channels, places]
            centre = values.mean(1)
            scale = deviation / (values - centre[:, None]).std()
            layer.weight *= scale
            layer.bias.copy_((layer.bias - centre) * scale)
            answers.append((values - centre[:, None]) * scale)
        return answers

    @torch.no_grad()
    def save(detector, path):
        torch.manual_seed(0)
        model = build(detector).eval()
        for name, values in model.named_buffers():
            if name.endswith("bn3.weight"):
                values.fill_(0.2)  # or activations grow with every block
        if detector == "retinanet":
            classes, boxes = model.head.classification_head.cls_logits, model.head.regression_head.bbox_reg
            logits, _ = normalise(model, {classes: 1.0, boxes: 0.2})
            classes.bias += math.log(THRESHOLD / (1 - THRESHOLD)) - logits.flatten().topk(CANDIDATES).values[-1]
        elif detector == "fcos":
            classes, boxes = model.head.classification_head.cls_logits, model.head.regression_head
            deviations = {classes: 1.0, boxes.bbox_reg: 1.0, boxes.bbox_ctrness: 1.0}
            logits, _, centerness = normalise(model, deviations)
            boxes.bbox_reg.bias += 4  # strides to each side
            # A class is above the threshold if its probability times that of centerness is above the square.
            missing = (model.score_thresh**2 / centerness.sigmoid()).logit() - logits
            classes.bias += missing.nan_to_num(math.inf).flatten().kthvalue(CANDIDATES).values
        else:
            normalise(model, {model.rpn.head.cls_logits: 1.0, model.rpn.head.bbox_pred: 0.2})
            predictor = model.roi_heads.box_predictor
            logits, _ = normalise(model, {predictor.cls_score: 2.0, predictor.bbox_pred: 1.0})
            # A class is above the threshold as long as exp(background) is below this.
            room = logits[1:].exp() / THRESHOLD - logits[1:].exp().sum(0)
            predictor.cls_score.weight[0] = 0
            predictor.cls_score.bias[0] = room.flatten().topk(CANDIDATES).values[-1].log()
        torch.save(model.state_dict(), path)

    def prepare(what, detector, weights, batch=1):
        if what == "save":
            return lambda: save(detector, weights)
        model = build(detector)
        model.load_state_dict(torch.load(weights))
        if channels_last:
            model = model.to(memory_format=torch.channels_last)
        images = tensors(batch)
        if what == "infer":
            return torch.no_grad()(functools.partial(model.eval(), images))

        model.train()
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 1e-6, momentum=0.9)
        boxes, labels = map(torch.from_numpy, objects(batch))
        targets = [{"boxes": b, "labels": n} for b, n in zip(boxes, labels, strict=True)]

        def step():
            loss = sum(model(images, targets).values())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return loss.item()

        return step

    return once_prepared(prepare)


def keras_side(build):
    """A Keras RetinaNet that `build` gives: (model, name of its class logits, name of its box deltas)."""
    import keras
    import numpy as np
    import tensorflow as tf

    def prepare(what, detector, weights, batch):
        keras.utils.set_random_seed(0)
        model, logits, deltas = build()
        images = pictures(batch).astype("float32")
        for layer in _leaves(model):
            if layer.name.endswith("3_bn"):
                layer.gamma.assign(layer.gamma * 0.2)  # or activations grow with every block
        for head, name, deviation in (
            (model.classification_head, logits, 1.0),
            (model.box_head, deltas, 0.2),
        ):
            kernel, bias = head.prediction_layer.get_weights()
            values = np.asarray(model(images[:1])[name]).reshape(-1, len(bias))  # [places, channels]
            centre = values.mean(0)
            scale = deviation / (values - centre).std()
            shift = 0.0
            if name == logits:
                best = np.partition((values - centre).ravel() * scale, -CANDIDATES)[-CANDIDATES]
                shift = math.log(THRESHOLD / (1 - THRESHOLD)) - best
            head.prediction_layer.set_weights([kernel * scale, (bias - centre) * scale + shift])
        if what == "infer":
            # What predict() calls for each batch of a dataset; predict_on_batch() fails in both.
            model.make_predict_function()
            batches = [tf.constant(images)]
            return lambda: keras.tree.map_structure(np.asarray, model.predict_function(batches))

        for layer in _leaves(model):
            if layer.name.endswith("_bn") or layer.name.startswith(("conv1", "stack0")):
                layer.trainable = False
        model.compile(keras.optimizers.SGD(1e-6, momentum=0.9))
        boxes, labels = objects(batch)
        targets = {"boxes": boxes, "labels": labels.astype("float32")}
        batches = iter(tf.data.Dataset.from_tensors((images, targets)).repeat())
        model.make_train_function()  # as above
        return lambda: float(model.train_function(batches)["loss"])

    return once_prepared(prepare)


def _leaves(model):
    return [layer for layer in model._flatten_layers() if not layer._layers]


def keras_hub_side():
    import keras_hub

    def build():
        models = keras_hub.models
        resnet = models.ResNetBackbone(
            input_conv_filters=[64],
            input_conv_kernel_sizes=[7],
            stackwise_num_filters=[64, 128, 256, 512],
            stackwise_num_blocks=[3, 4, 6, 3],
            stackwise_num_strides=[1, 2, 2, 2],
            block_type="bottleneck_block",
            image_shape=(None, None, 3),
        )
        backbone = models.RetinaNetBackbone(resnet, min_level=3, max_level=7, use_p5=True)
        best = keras_hub.layers.NonMaxSuppression("xyxy", from_logits=True, confidence_threshold=THRESHOLD)
        model = models.RetinaNetObjectDetector(backbone, CLASSES, bounding_box_format="xyxy", prediction_decoder=best)
        return model, "cls_logits", "bbox_regression"

    return keras_side(build)


def keras_cv_side():
    import keras_cv

    def build():
        backbone = keras_cv.models.ResNetBackbone(
            stackwise_filters=[64, 128, 256, 512],
            stackwise_blocks=[3, 4, 6, 3],
            stackwise_strides=[1, 2, 2, 2],
            include_rescaling=True,
        )
        best = keras_cv.layers.NonMaxSuppression("xyxy", from_logits=True, confidence_threshold=THRESHOLD)
        model = keras_cv.models.RetinaNet(backbone, CLASSES, "xyxy", prediction_decoder=best)
        return model, "classification", "box"

    return keras_side(build)


SIDES = {
    "tfdet": tfdet_side,
    "torchvision": torchvision_side,
    "torchvision channels_last": lambda: torchvision_side(channels_last=True),
    "KerasHub": keras_hub_side,
    "KerasCV": keras_cv_side,
}

if __name__ == "__main__":
    main()
