"""BoxScore: detectors, which return boxes."""

import math

import pytest
import torch
from torch import nn
from torchvision import models
from wrapped import EXACT, images

from captum_unioncam import BoxScore, DenoisedGradCAM, RegionCAM, UnionCAM

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("error::UserWarning"),
    pytest.mark.filterwarnings("ignore:.* constant. they have one value:UserWarning"),
]


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


class Detector(nn.Module):
    """Detections that are given, whose scores depend on the image's mean."""

    def __init__(self, *detections):
        super().__init__()
        self.layer, self.detections = nn.Identity(), detections

    def forward(self, x):
        gains = self.layer(x).flatten(1).mean(1)
        return [
            {
                "boxes": torch.tensor(boxes, dtype=x.dtype).view(-1, 4),
                "labels": torch.tensor(labels, dtype=torch.long),
                "scores": gain * torch.tensor(scores, dtype=x.dtype),
            }
            for gain, (boxes, labels, scores) in zip(gains, self.detections)
        ]


BOX = [10.0, 10, 20, 30]  # 200 pixels
HALF = [10.0, 10, 20, 20]  # of them: IoU 0.5
MOVED = [15.0, 10, 25, 30]  # 100 of 300: IoU 1/3
FAR = [50.0, 50, 60, 60]
NOTHING = ([], [], [])


def score(detections, box=BOX, label=1, **options):
    net = BoxScore(Detector(detections), **options)
    found = net(torch.ones(1, 3, 4, 4), torch.tensor([box]), torch.tensor([label]))
    assert found.shape == (1,)
    return found.item()


def test_the_score_of_a_box_by_hand():
    assert score(([BOX], [1], [0.75])) == 0.75
    assert score(([BOX, HALF, FAR], [1, 1, 1], [0.25, 0.5, 0.75])) == 0.5
    assert score(([BOX, HALF], [1, 2], [0.25, 0.5])) == 0.25
    assert score(([BOX], [2], [0.75])) == 0
    assert score(([FAR], [1], [0.75])) == 0
    assert score(NOTHING) == 0


def test_the_threshold_of_a_box_is_the_least_overlap():
    assert score(([HALF], [1], [0.75])) == 0.75  # exactly 0.5
    assert score(([HALF], [1], [0.75]), iou_threshold=0.51) == 0
    assert score(([MOVED], [1], [0.75])) == 0
    assert score(([MOVED], [1], [0.75]), iou_threshold=0.33) == 0.75
    assert score(([BOX], [1], [0.75]), iou_threshold=1) == 0.75
    assert score(([[10.0, 10, 20, 29.9]], [1], [0.75]), iou_threshold=1) == 0


def test_degenerate_boxes_overlap_with_nothing():
    point = [10.0, 10, 10, 10]
    assert score(([point], [1], [0.75])) == 0
    assert score(([point], [1], [0.75]), box=point) == 0
    assert score(([BOX, point], [1, 1], [0.5, 0.75])) == 0.5


def test_boxes_that_touch_or_enclose():
    assert score(([[20.0, 10, 30, 30]], [1], [0.75]), iou_threshold=1e-6) == 0
    assert score(([[0.0, 0, 40, 60]], [1], [0.75]), iou_threshold=200 / 2400) == 0.75
    assert score(([[0.0, 0, 40, 60]], [1], [0.75]), iou_threshold=0.09) == 0


def test_ties_and_equal_boxes():
    assert score(([BOX, BOX, BOX], [1, 1, 2], [0.5, 0.5, 0.75])) == 0.5


def test_each_image_has_its_own_box_and_class():
    detections = ([BOX, FAR], [1, 2], [0.25, 0.5])
    net = BoxScore(Detector(*[detections] * 4, NOTHING))
    found = net(
        torch.ones(5, 3, 4, 4),
        torch.tensor([BOX, FAR, FAR, BOX, BOX]),
        torch.tensor([1, 2, 1, 2, 1]),
    )
    assert found.tolist() == [0.25, 0.5, 0, 0, 0]


def test_boxes_of_another_type():
    net = BoxScore(Detector(([BOX], [1], [0.75])))
    image = torch.ones(1, 3, 4, 4)
    for dtype in (torch.int64, torch.float64, torch.float32):
        box = torch.tensor([BOX]).to(dtype)
        assert net(image, box, torch.tensor([1], dtype=torch.int32)).item() == 0.75


def test_the_score_has_gradients_even_if_there_is_no_detection():
    image = torch.ones(2, 3, 4, 4, requires_grad=True)
    net = BoxScore(Detector(([BOX, BOX], [1, 1], [0.25, 0.75]), ([FAR], [1], [0.5])))
    found = net(image, torch.tensor([BOX, BOX]), torch.tensor([1, 1]))
    (gradients,) = torch.autograd.grad(found.sum(), image)
    # Of the most confident detection alone: 0.75 of the mean of 48 values.
    torch.testing.assert_close(gradients[0], torch.full((3, 4, 4), 0.75 / 48))
    assert (gradients[1] == 0).all()


@pytest.mark.parametrize("threshold", [0, -0.5, 1.5, math.nan])
def test_thresholds_out_of_range_are_refused(threshold):
    with pytest.raises(ValueError, match=r"`iou_threshold` must be in \(0, 1\], got "):
        BoxScore(nn.Identity(), threshold)


@pytest.mark.parametrize(
    ("boxes", "labels"), [((1, 4), (2,)), ((2, 5), (2,)), ((2, 4), (1,)), ((4,), (2,))]
)
def test_one_box_and_one_label_for_each_image(boxes, labels):
    net = BoxScore(Detector(NOTHING, NOTHING))
    with pytest.raises(ValueError, match=r"`boxes` and `labels` must be \(2, 4\) and"):
        net(torch.ones(2, 3, 4, 4), torch.ones(boxes), torch.ones(labels))


def test_the_score_of_a_box_goes_through_unioncam():
    """A detector whose one detection is as confident as the image is bright."""
    detections = ([BOX], [1], [1.0])

    class Bright(Detector):
        def __init__(self, examples):
            super().__init__(*[detections] * examples)

        def forward(self, x):
            self.detections = [detections] * len(x)
            return super().forward(x)

    inputs = images(2)
    net = BoxScore(Bright(2))
    arguments = (torch.tensor([BOX, FAR]), torch.tensor([1, 1]))
    cam = UnionCAM(net, "model.layer")
    # The second image has no detection at its box, which no pixel changes.
    with pytest.warns(UserWarning, match=r"\[1\] are made without the gradient map"):
        _, details = cam.attribute(
            inputs,
            additional_forward_args=arguments,
            baselines=0.25,
            return_details=True,
        )
    expected = torch.tensor([0.25, 0.0], dtype=torch.float64)
    torch.testing.assert_close(details.baseline_score, expected, **EXACT)
    # The region map is the sum of the channels under the score of what each shows.
    total = torch.zeros(9, 9, dtype=torch.float64)
    for channel in inputs[0]:
        mask = (channel - channel.min()) / (channel.max() - channel.min())
        total += (mask * inputs[0] + (1 - mask) * 0.25).mean() * channel
    torch.testing.assert_close(details.region_map[0, 0], total, **EXACT)
    assert (details.region_map[1] == 0).all()


def test_a_detector_of_torchvision():
    net = models.detection.fasterrcnn_mobilenet_v3_large_320_fpn(
        weights=None,
        weights_backbone=None,
        num_classes=3,
        box_score_thresh=0.0,
        min_size=64,
        max_size=64,
        box_detections_per_img=20,
    )
    wrapped = BoxScore(net.double().eval())
    inputs = images(2, 64)
    with torch.no_grad():
        detections = wrapped.model(inputs)
    boxes = torch.stack([found["boxes"][0] for found in detections])
    labels = torch.stack([found["labels"][0] for found in detections])
    with torch.no_grad():
        scores = wrapped(inputs, boxes, labels)
    for found, own in zip(detections, scores, strict=True):
        assert own == found["scores"][0] > 0
    layer = "model.backbone.body.16"
    for cam, options in ((DenoisedGradCAM, {}), (RegionCAM, {"max_channels": 2})):
        explain = cam(wrapped, layer).attribute
        together = explain(inputs, additional_forward_args=(boxes, labels), **options)
        assert together.shape == (2, 1, 2, 2) and together.isfinite().all()
        # All channels of this layer sum to less than 0.
        assert cam is RegionCAM or together.flatten(1).amax(1).gt(0).all()
        for i in range(2):
            one = slice(i, i + 1)
            alone = explain(
                inputs[one],
                additional_forward_args=(boxes[one], labels[one]),
                **options,
            )
            torch.testing.assert_close(together[one], alone, rtol=1e-6, atol=1e-9)


def test_no_images_have_no_box_scores():
    score = BoxScore(lambda images: [])
    none = torch.zeros(0, 3, 8, 8), torch.zeros(0, 4), torch.zeros(0, dtype=torch.long)
    assert score(*none).shape == (0,)


def test_a_detector_of_another_form_is_refused():
    score = BoxScore(lambda images: [{"boxes": torch.zeros(0, 4)}])
    with pytest.raises(TypeError, match=r"got \['boxes'\] of a dict; wrap it"):
        score(torch.zeros(1, 3, 8, 8), torch.zeros(1, 4), torch.zeros(1).long())


class Found:
    """The detections of an image, as an object."""

    def __init__(self, boxes, labels, scores):
        self.boxes, self.labels, self.scores = boxes, labels, scores


def test_a_detector_of_objects_is_one_of_dicts():
    detector = Detector(([BOX, HALF], [1, 1], [0.5, 0.9]), ([FAR], [1], [0.7]))
    inputs = torch.rand(2, 3, 4, 4, dtype=torch.float64)
    boxes, labels = torch.tensor([BOX, FAR]), torch.tensor([1, 1])
    expected = BoxScore(detector)(inputs, boxes, labels)

    class OfObjects(nn.Module):
        def forward(self, x):
            return [Found(**found) for found in detector(x)]

    assert torch.equal(BoxScore(OfObjects())(inputs, boxes, labels), expected)
