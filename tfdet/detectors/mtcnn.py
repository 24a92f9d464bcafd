"""MTCNN (Zhang et al. 2016, Joint Face Detection and Alignment using Multi-task Cascaded Convolutional Networks).

Three small networks (see `mtcnn_networks`), of which each looks only at what the one before it took for a face.

Where do they look? P-Net at every second square of 12 x 12 pixels in a pyramid of the image, whose first level makes
the smallest face to be found 12 pixels large, and in which each next level is 0.709 times as large. R-Net and O-Net at
the squares around the boxes that are left, cut from the image itself and brought to 24 x 24 and 48 x 48 pixels; what
lies beside the image is black.

What is left of them? Squares whose probability of a face reaches a threshold. Of several that overlap the best stays:
NMS 0.5 inside each level of the pyramid, 0.7 across them and behind R-Net; behind O-Net it compares the overlap with
the smaller of the two boxes, so that no face is found inside of another. Each network then moves the box to where it
saw the face, and O-Net says where eyes, nose and the corners of the mouth are.

An image goes its way through all three by itself: so it may have any size, and what is found in it does not depend on
the others of its batch. All is one graph, the same for every size.

Rounding is that of facenet-pytorch 2.6.0, whose boxes and scores it gives: boxes count pixels from 1, are rounded only
to cut them out, and their sizes have a pixel added where R-Net and O-Net move them. Differences:

    - As in the released Matlab code what lies beside the image is black; facenet-pytorch cuts the square off there.
    - Landmarks are where O-Net saw them, in the square as it was cut out. facenet-pytorch puts them into the one before
      rounding, 0.5 pixels further to the right and down on the average. (The Matlab code rounds boxes for good.)
    - Boxes are cut off at the image's border.

Detections have these boxes as they are. With the released weights, on photographs and their mirror images, their left
edges were right to 0.1 pixels on the average, the right ones 0.9 pixels too far to the left.
"""

import math

import keras
import tensorflow as tf

from tfdet import boxes as box_ops
from tfdet import nms
from tfdet.area import AreaTable
from tfdet.detectors.base import Detector, unscaled
from tfdet.detectors.mtcnn_networks import onet, pnet, rnet
from tfdet.errors import TfdetError
from tfdet.resizers import KeepSize, size_without_padding
from tfdet.rois import image_by_image
from tfdet.skeleton import FACE

STRIDE, WINDOW = 2, 12  # pixels between two squares of P-Net, and their side
OF_A_LEVEL = 10_000  # squares that P-Net proposes at most: a network that knows nothing yet takes all of them for faces
AT_ONCE = 128  # squares that R-Net and O-Net look at together: what comes of them should fit into a processor's cache


@keras.saving.register_keras_serializable("tfdet")
class MTCNN(Detector):
    """The detector: see `mtcnn`.

    Its networks `pnet`, `rnet` and `onet` are trained one by one, on crops; `fit` of the whole does not exist.

    Args:
        thresholds: probabilities of a face that P-Net, R-Net and O-Net must give.
        factor: from one level of the pyramid to the next.
        keep: K, the most faces found in an image.
        landmarks: whether P-Net and R-Net say where landmarks are, too, as in the paper.
    """

    keypoint_names = FACE
    detection_loss = decoder = None

    def __init__(
        self,
        class_names=("face",),
        min_face=20,
        thresholds=(0.6, 0.7, 0.7),
        factor=0.709,
        keep=200,
        landmarks=False,
        **kwargs,
    ):
        super().__init__(class_names, **kwargs)
        if self.num_classes != 1:
            raise TfdetError(f"MTCNN finds faces, one class, not {self.num_classes}")
        self.settings = {"min_face": min_face, "thresholds": tuple(thresholds), "factor": factor, "keep": keep}
        self.settings |= {"landmarks": landmarks}
        self.first_scale, self.factor, self.thresholds, self.keep = WINDOW / min_face, factor, thresholds, keep
        self.pnet, self.rnet, self.onet = pnet(landmarks), rnet(landmarks), onet()
        self.built = True
        self.resizer = KeepSize(multiple=1)
        images = tf.TensorSpec([None, None, None, 3], tf.float32)
        self._found = tf.function(self._found, input_signature=[images], autograph=False)

    def call(self, images, training=None):
        """Images as fed, float32 [B, H, W, 3] -> detections in their pixels. There are no raw outputs to decode."""
        return self._found(tf.cast(images, tf.float32))

    def make_predict_function(self, force=False):
        """That of Detector, without a graph of its own: Keras would make another one for a second size of images."""
        run_eagerly, self.run_eagerly = self.run_eagerly, True
        super().make_predict_function(force)
        self.run_eagerly = run_eagerly
        return self.predict_function

    def detect(self, images, scale):
        """As that of Detector; the keypoints are called "landmarks" as well."""
        found = unscaled(self(images, training=False), scale)
        return {**found, "landmarks": found["keypoints"]}

    def compute_loss(self, *args, **kwargs):
        raise TfdetError("MTCNN's networks are trained one by one: model.pnet, model.rnet, model.onet")

    def squares(self, image, network):
        """What R-Net (network "rnet") or O-Net ("onet") looks at in an image [H, W, 3] -> [N, 4], counting from 1."""
        table = AreaTable(image)
        squares = self._propose(table)
        return squares if network == "rnet" else self._refine(table, squares)

    def _found(self, images):
        found = image_by_image(self._find, (images,), {"found": [self.keep, 15]})["found"]
        boxes, scores, landmarks = tf.split(found, [4, 1, 10], axis=-1)
        scores, landmarks = scores[..., 0], tf.reshape(landmarks, [-1, self.keep, 5, 2])
        heights, widths = (tf.cast(size, tf.float32)[:, None] for size in size_without_padding(images))
        boxes, valid = box_ops.clip(boxes, heights, widths), scores > 0
        others = {"keypoints": landmarks, "keypoint_scores": tf.repeat(scores[..., None], 5, axis=-1)}
        return nms.padded(boxes, scores, tf.zeros_like(scores, tf.int32), valid, **others)

    def _find(self, image):
        """One image [1, H, W, 3] -> {"found" [1, K, 15]}: box, score and landmarks (x, y, x, y, ...) of each face."""
        height, width = size_without_padding(image[0])
        table = AreaTable(image[0, :height, :width])
        boxes = self._refine(table, self._propose(table))
        squares, scores, outputs = self._look(self.onet, 48, table, boxes, self.thresholds[2])
        corners, sizes = tf.split(outputs["crop"][:, None], 2, axis=-1)
        landmarks = corners + sizes * tf.stack(tf.split(outputs["landmarks"], 2, axis=1), axis=-1)
        boxes = _moved(squares, outputs["box"])
        found = tf.concat([boxes, scores[:, None], tf.reshape(landmarks, [-1, 10])], axis=1)
        kept = tf.image.non_max_suppression_overlaps(_overlaps(boxes), scores, self.keep, 0.7)
        found = tf.gather(found, kept)
        return {"found": tf.pad(found, [[0, self.keep - tf.shape(found)[0]], [0, 0]])[None]}

    def _propose(self, table):
        """P-Net on all levels of the pyramid -> squares [N, 4]."""
        shorter = tf.cast(tf.minimum(table.height, table.width), tf.float64) * self.first_scale
        # The last level has a shorter side of 12 pixels or more.
        levels = tf.math.floor(tf.math.log(WINDOW / shorter) / math.log(self.factor) + 1e-9) + 1

        def of_level(level):
            scale = self.first_scale * self.factor ** tf.cast(level, tf.float64)
            sides = [tf.cast(tf.cast(side, tf.float64) * scale + 1, tf.int32) for side in (table.height, table.width)]
            outputs = self.pnet(table.resized(*sides)[None], training=False)
            probability = _probability(outputs["face"][0])
            cells = tf.where(probability >= self.thresholds[0])
            scores = tf.gather_nd(probability, cells)
            scores, best = tf.math.top_k(scores, tf.minimum(tf.size(scores), OF_A_LEVEL))
            cells = tf.gather(cells, best)
            moves = tf.gather_nd(outputs["box"][0], cells)
            places = tf.cast(STRIDE * cells[:, ::-1], tf.float32)
            boxes = tf.floor(tf.concat([places + 1, places + WINDOW], axis=1) / tf.cast(scale, tf.float32))
            kept = nms.nms(boxes, scores, 0.5)
            return tf.gather(tf.concat([boxes, moves, scores[:, None]], axis=1), kept)

        found = _joined(tf.maximum(tf.cast(levels, tf.int32), 0), of_level, 9)
        boxes, moves, scores = tf.split(found, [4, 4, 1], axis=1)
        kept = nms.nms(boxes, scores[:, 0], 0.7)
        boxes, moves = tf.gather(boxes, kept), tf.gather(moves, kept)
        return _square(_moved(boxes, moves, added=0))

    def _refine(self, table, squares):
        """R-Net -> better squares, fewer of them: [N, 4] -> [n, 4]."""
        squares, scores, outputs = self._look(self.rnet, 24, table, squares, self.thresholds[1])
        kept = nms.nms(squares, scores, 0.7)
        return _square(_moved(tf.gather(squares, kept), tf.gather(outputs["box"], kept)))

    def _look(self, network, side, table, squares, threshold):
        """-> those of the squares that the network takes for faces, their scores, and its outputs for them; among these
        "crop", x, y, width and height of what was cut out, in pixels from the image's corner."""
        crops = whole_pixels(squares)
        names = sorted(network.output)
        sizes = [network.output[name].shape[-1] for name in names]

        def some(part):
            some = crops[part * AT_ONCE : (part + 1) * AT_ONCE]
            outputs = network(table.crops(some[:, :2], some[:, 2:], side), training=False)
            return tf.concat([outputs[name] for name in names], axis=1)

        parts = -(-tf.shape(squares)[0] // AT_ONCE)
        outputs = dict(zip(names, tf.split(_joined(parts, some, sum(sizes)), sizes, axis=1), strict=True))
        scores, outputs["crop"] = _probability(outputs["face"]), tf.cast(crops, tf.float32)
        kept = tf.where(scores > threshold)[:, 0]
        return tf.nest.map_structure(lambda values: tf.gather(values, kept), (squares, scores, outputs))


def whole_pixels(squares):
    """What is cut out for squares [N, 4]: int32 [N, 4], x and y from the image's corner, width and height."""
    first, last = tf.split(tf.cast(squares, tf.int32), 2, axis=1)
    return tf.concat([first - 1, tf.maximum(last - first + 1, 1)], axis=1)


def _probability(logits):
    """Logits [..., 2]: no face, face -> [...]."""
    return tf.nn.softmax(logits)[..., 1]


def _moved(boxes, moves, added=1):
    """Boxes [N, 4] where a network saw the faces in them; added: pixels, to the sizes by which it measured."""
    return boxes + tf.tile(boxes[:, 2:] - boxes[:, :2] + added, [1, 2]) * moves


def moves_to(faces, boxes, added=1):
    """What a network has to say of boxes [N, 4] with these faces [N, 4]: the inverse of `_moved`."""
    return (faces - boxes) / tf.tile(boxes[:, 2:] - boxes[:, :2] + added, [1, 2])


def _square(boxes):
    """Boxes [N, 4] -> the squares [N, 4] with their longer sides around their middles."""
    sizes = boxes[:, 2:] - boxes[:, :2]
    side = tf.reduce_max(sizes, axis=1, keepdims=True)
    corners = boxes[:, :2] + sizes / 2 - side / 2
    return tf.concat([corners, corners + side], axis=1)


def _overlaps(boxes):
    """Boxes [N, 4], whose last pixels belong to them -> [N, N], the part of the smaller of two that is in the other."""
    boxes = tf.concat([boxes[:, :2] - 1, boxes[:, 2:]], axis=1)
    intersection, _ = box_ops.intersection_and_union(boxes, boxes)
    area = box_ops.area(boxes)
    return tf.math.divide_no_nan(intersection, tf.minimum(area[:, None], area))


def _joined(count, function, width):
    """function(0), ... function(count - 1), each of them float32 [any number, width], one behind the other."""
    array = tf.TensorArray(tf.float32, count, infer_shape=False, element_shape=[None, width])
    _, array = tf.while_loop(
        lambda i, _: i < count, lambda i, array: (i + 1, array.write(i, function(i))), (tf.constant(0), array)
    )
    return array.concat()


def mtcnn(min_face=20, thresholds=(0.6, 0.7, 0.7), factor=0.709, keep=200, landmarks=False):
    """MTCNN with the settings of the released code; see `mtcnn_original.mtcnn_original` for its weights.

    Args:
        min_face: side of the smallest face that is found, in pixels; half of it takes four times as long.
        others: as those of MTCNN.
    """
    return MTCNN(("face",), min_face, thresholds, factor, keep, landmarks, name="mtcnn")
