"""Models that do not return one row of class scores: wrappers, and lines of code."""

import math
from collections import OrderedDict, namedtuple
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision import models

from captum_unioncam import (
    BoxScore,
    DenoisedGradCAM,
    GradCAM,
    LayerCAM,
    MeanOverMask,
    RegionCAM,
    SelectedOutput,
    UnionCAM,
)

EXACT = {"rtol": 0, "atol": 1e-10}

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("error::UserWarning"),
    pytest.mark.filterwarnings("ignore:.* flat. they have one value:UserWarning"),
]


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def images(examples=3, side=9):
    return torch.rand(examples, 3, side, side, dtype=torch.float64)


def convnet(outputs=4, side=9):
    """A net in float64 whose layer is ``relu``."""
    positions = math.ceil(side / 2) ** 2
    return (
        nn.Sequential(
            OrderedDict(
                conv=nn.Conv2d(3, 5, 3, 2, 1),
                relu=nn.ReLU(),
                flat=nn.Flatten(),
                fc=nn.Linear(5 * positions, outputs),
            )
        )
        .double()
        .eval()
    )


class Packed(nn.Module):
    """Packs the logits of a net, with something else."""

    def __init__(self, pack):
        super().__init__()
        self.net, self.pack = convnet(), pack

    def forward(self, x, *, scale=1):
        return self.pack(scale * self.net(x))


# SelectedOutput

Named = namedtuple("Named", ["hidden", "logits"])


@dataclass
class Answer:
    hidden: torch.Tensor
    logits: torch.Tensor


@dataclass(frozen=True)
class Slotted:
    __slots__ = ("hidden", "logits")
    hidden: torch.Tensor
    logits: torch.Tensor


class ModelOutput(OrderedDict):
    """As HuggingFace's: a mapping, whose values are attributes and places too."""

    def __getattr__(self, name):
        try:
            return self[name]
        except KeyError as error:
            raise AttributeError(name) from error

    def __getitem__(self, key):
        if isinstance(key, str):
            return dict(self.items())[key]
        return self.to_tuple()[key]

    def to_tuple(self):
        return tuple(self[key] for key in self.keys())


class Property:
    def __init__(self, y):
        self._y = y

    @property
    def logits(self):
        return self._y


FORMS = {
    "dict": (lambda y: {"hidden": y[:, :1], "logits": y}, "logits"),
    "tuple": (lambda y: (y[:, :1], y), 1),
    "list": (lambda y: [y[:, :1], y], 1),
    "named by place": (lambda y: Named(y[:, :1], y), 1),
    "named by name": (lambda y: Named(y[:, :1], y), "logits"),
    "dataclass": (lambda y: Answer(y[:, :1], y), "logits"),
    "slots": (lambda y: Slotted(y[:, :1], y), "logits"),
    "model output by name": (
        lambda y: ModelOutput(hidden=y[:, :1], logits=y),
        "logits",
    ),
    "model output by place": (lambda y: ModelOutput(hidden=y[:, :1], logits=y), 1),
    "property": (Property, "logits"),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_part_of_the_output_is_the_output(form):
    pack, key = FORMS[form]
    wrapped, inputs = SelectedOutput(Packed(pack), key), images()
    net = wrapped.model.net
    assert torch.equal(wrapped(inputs), net(inputs))
    assert torch.equal(wrapped(inputs, scale=2), 2 * net(inputs))
    maps = UnionCAM(wrapped, "model.net.relu").attribute(inputs, target=[0, 3, 1])
    expected = UnionCAM(net, net.relu).attribute(inputs, target=[0, 3, 1])
    torch.testing.assert_close(maps, expected, **EXACT)


def test_the_wrapped_model_keeps_its_mode_and_parameters():
    wrapped = SelectedOutput(Packed(lambda y: (y,)), 0)
    assert len(list(wrapped.parameters())) == len(list(wrapped.model.parameters()))
    wrapped.eval()
    assert not wrapped.model.net.relu.training
    wrapped.train()
    assert wrapped.model.net.relu.training


@pytest.mark.parametrize(
    ("pack", "key", "message"),
    [
        (lambda y: {"logits": y}, "logit", "dict has no 'logit'; it has 'logits'"),
        (
            lambda y: ModelOutput(logits=y),
            "out",
            "ModelOutput has no 'out'; .*'logits'",
        ),
        (
            lambda y: Answer(y, y),
            "out",
            "Answer has no 'out'; it has 'hidden', 'logits'",
        ),
        (lambda y: Named(y, y), "out", "Named has no 'out'; it has 'hidden', 'logits'"),
        (lambda y: Slotted(y, y), "out", "Slotted has no 'out'"),
        (lambda y: (y, y), 2, "tuple has no 2; it has 0, 1"),
        (lambda y: [y], 1, "list has no 1; it has 0"),
        (lambda y: (y, y), "logits", "tuple has no 'logits'"),
        (lambda y: ModelOutput(logits=y), 1, "ModelOutput has no 1; it has 0"),
        (lambda y: (), 0, "tuple has no 0"),
        (lambda y: y, "logits", "Tensor has no 'logits'"),
        (lambda y: None, "logits", "NoneType has no 'logits'"),
    ],
)
def test_a_part_that_is_not_there_is_named_with_those_that_are(pack, key, message):
    with pytest.raises(ValueError, match=f"`key`: the model's {message}"):
        SelectedOutput(Packed(pack), key)(images())


@pytest.mark.parametrize("output", [lambda y: Answer(y, y), lambda y: None])
def test_a_place_in_what_has_no_places_is_refused(output):
    with pytest.raises(ValueError, match="`key`: .* has no 0; it has "):
        SelectedOutput(Packed(output), 0)(images())


def test_a_place_in_a_tensor_is_no_example_of_it():
    """Of a model that returns a tensor already, 0 would be the first example."""
    with pytest.raises(ValueError, match="`key`: .* Tensor has no 0; it has no parts"):
        SelectedOutput(Packed(lambda y: y), 0)(images())


def test_a_negative_place_is_refused():
    wrapped = SelectedOutput(Packed(lambda y: (y[:, :1], y)), -1)
    with pytest.raises(ValueError, match="the model's tuple has no -1; it has 0, 1"):
        wrapped(images())


def test_keys_that_are_numbers_are_keys():
    packed = Packed(lambda y: {1: y, 0: y[:, :1], 8: y[:, :2]})
    widths = [SelectedOutput(packed, key)(images()).shape[1] for key in (0, 1, 8)]
    assert widths == [1, 4, 2]


class Lazy:
    """An output with a property that raises, and one that does not."""

    def __init__(self, y):
        self._y = y

    @property
    def loss(self):
        raise NotImplementedError

    @property
    def logits(self):
        return self._y


def test_a_property_is_a_part_and_no_other_is_read():
    assert SelectedOutput(Packed(Lazy), "logits")(images()).shape == (3, 4)


def test_a_part_that_is_none_is_not_said_to_be_missing_and_there():
    """Such as the loss of a model that got no labels."""
    for pack in (
        lambda y: {"loss": None, "logits": y},
        lambda y: Answer(None, y),
        lambda y: (None, y),
    ):
        key = {dict: "loss", Answer: "hidden", tuple: 0}[type(pack(torch.zeros(1)))]
        with pytest.raises(TypeError, match="`key`: .* got a NoneType"):
            SelectedOutput(Packed(pack), key)(images())


def test_a_part_that_is_no_tensor_is_refused():
    for pack, key in [
        (lambda y: {"logits": [y]}, "logits"),
        (lambda y: ("logits", y), 0),
        (lambda y: Answer({"hidden": y}, y), "hidden"),
        (lambda y: [y.numpy(force=True)], 0),
    ]:
        with pytest.raises(TypeError, match="`key`: .* must be a Tensor, got a "):
            SelectedOutput(Packed(pack), key)(images())


@pytest.mark.filterwarnings("ignore:.*initialization:FutureWarning")
def test_a_model_of_torchvision_that_returns_a_named_tuple():
    """In train mode, googlenet returns its auxiliary outputs too."""
    net = models.googlenet(weights=None, num_classes=3).train()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d | nn.Dropout):
            module.eval()
    inputs = torch.rand(2, 3, 64, 64)
    assert type(net(inputs)).__name__ == "GoogLeNetOutputs"
    wrapped = SelectedOutput(net, "logits")
    maps = GradCAM(wrapped, "model.inception5b").attribute(inputs, target=1)
    assert maps.shape == (2, 1, 2, 2) and maps.isfinite().all()


# MeanOverMask


class Fixed(nn.Module):
    """Returns an output that is given; its layer is the input."""

    def __init__(self, output):
        super().__init__()
        self.layer, self.output = nn.Identity(), output

    def forward(self, x):
        return self.output.to(x.dtype) + 0 * self.layer(x).flatten(1).sum()


def test_the_mean_over_a_mask_by_hand():
    output = torch.tensor([[[[1.0, 2], [3, 4]], [[-1, 0], [0, 6]]]])
    net, image = MeanOverMask(Fixed(output)), torch.rand(1, 1, 2, 2)

    def mean(mask):
        return net(image, torch.tensor([[mask]])).tolist()

    assert mean([[True, False], [False, True]]) == [[2.5, 2.5]]
    assert mean([[False, True], [False, False]]) == [[2.0, 0.0]]
    assert mean([[1, 1], [1, 1]]) == [[2.5, 1.25]]
    assert mean([[0.5, 0.0], [0.0, 1.5]]) == [[pytest.approx(3.25), 4.25]]
    assert mean([[False, False], [False, False]]) == [[0, 0]]
    assert mean([[1e-3, 0.0], [0.0, 1e-3]]) == [[pytest.approx(2.5)] * 2]


def test_each_example_has_its_own_mask():
    output = torch.arange(2 * 3 * 4 * 5.0).view(2, 3, 4, 5)
    masks = torch.zeros(2, 1, 4, 5, dtype=torch.bool)
    masks[0, 0, 1, 2] = masks[1, 0, 3, 4] = True
    means = MeanOverMask(Fixed(output))(torch.rand(2, 1, 2, 2), masks)
    assert torch.equal(means, torch.stack([output[0, :, 1, 2], output[1, :, 3, 4]]))


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_masks_of_signals_and_volumes(rank):
    output = torch.rand(2, 3, *[4] * rank)
    means = MeanOverMask(Fixed(output))(
        torch.rand(2, 1, 2), torch.ones(2, 1, *[4] * rank)
    )
    torch.testing.assert_close(means, output.flatten(2).mean(2))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_large_masks_in_half_types(dtype):
    """The pixels of an image are more than the largest float16, 65504."""
    output = torch.full((1, 2, 300, 300), 2.0)
    masks = torch.ones(1, 1, 300, 300, dtype=torch.bool)
    means = MeanOverMask(Fixed(output))(torch.rand(1, 1, 2, 2, dtype=dtype), masks)
    assert means.dtype == dtype
    assert means.tolist() == [[2.0, 2.0]]


@pytest.mark.parametrize(
    "shape", [(1, 1, 2, 2), (2, 2, 2), (2, 3, 2, 2), (2, 1, 4, 4), (4,)]
)
def test_masks_of_another_size_are_refused(shape):
    net = MeanOverMask(Fixed(torch.rand(2, 3, 2, 2)))
    with pytest.raises(ValueError, match=r"`masks` .* expected \(2, 1, 2, 2\), got \("):
        net(torch.rand(2, 1, 4, 4), torch.ones(shape))


def segmenter():
    """A fully convolutional net with a layer ``relu``; the output is half as large."""
    return (
        nn.Sequential(
            OrderedDict(
                conv=nn.Conv2d(3, 5, 3, 2, 1),
                relu=nn.ReLU(),
                mixed=nn.Conv2d(5, 5, 3, 1, 1),
                tanh=nn.Tanh(),
                classes=nn.Conv2d(5, 4, 1),
            )
        )
        .double()
        .eval()
    )


def masks_of_halves():
    masks = torch.zeros(3, 1, 5, 5, dtype=torch.bool)
    masks[0, 0, :2], masks[1, 0, :, 3:], masks[2, 0, 2, 2] = True, True, True
    return masks


@pytest.mark.parametrize("cam", [UnionCAM, RegionCAM, LayerCAM])
def test_masks_follow_their_examples(cam):
    net, inputs, masks = MeanOverMask(segmenter()), images(), masks_of_halves()
    explain = cam(net, "model.relu").attribute
    targets = [0, 3, 1]
    together = explain(inputs, target=targets, additional_forward_args=(masks,))
    for i, target in enumerate(targets):
        one = slice(i, i + 1)
        alone = explain(
            inputs[one], target=target, additional_forward_args=(masks[one],)
        )
        torch.testing.assert_close(together[one], alone, **EXACT)
    assert together.flatten(1).amax(1).gt(0).all()


@pytest.mark.parametrize("chunk", [1, 2, 5])
def test_masks_follow_their_examples_in_any_chunk(chunk):
    net, inputs, masks = MeanOverMask(segmenter()), images(), masks_of_halves()
    explain = UnionCAM(net, "model.relu").attribute
    options = {"target": [0, 3, 1], "additional_forward_args": (masks,)}
    torch.testing.assert_close(
        explain(inputs, **options, perturbations_per_eval=chunk),
        explain(inputs, **options),
        **EXACT,
    )


def test_the_score_of_a_mask_is_the_softmax_of_its_means():
    net, inputs, masks = segmenter(), images(), masks_of_halves()
    targets = [0, 3, 1]
    _, details = UnionCAM(MeanOverMask(net), "model.relu").attribute(
        inputs,
        target=targets,
        additional_forward_args=(masks,),
        return_details=True,
    )
    with torch.no_grad():
        black = net(torch.zeros_like(inputs))
    for i, target in enumerate(targets):
        logits = torch.stack(
            [black[i, label][masks[i, 0]].mean() for label in range(4)]
        )
        expected = logits.softmax(0)[target]
        torch.testing.assert_close(details.baseline_score[i], expected, **EXACT)


def test_the_gradients_of_a_mask_are_those_of_its_mean():
    net, inputs, masks = segmenter(), images(), masks_of_halves()
    maps = LayerCAM(MeanOverMask(net), "model.relu").attribute(
        inputs, target=2, additional_forward_args=(masks,)
    )
    for i in range(3):
        layer = net.relu(net.conv(inputs[i : i + 1])).detach().requires_grad_()
        logits = net.classes(net.tanh(net.mixed(layer)))
        score = logits[0, 2][masks[i, 0]].mean()
        (gradients,) = torch.autograd.grad(score, layer)
        expected = (gradients.clamp(min=0) * layer).sum(1).clamp(min=0).detach()
        torch.testing.assert_close(maps[i], expected, **EXACT)


def test_a_pixel_needs_no_wrapper():
    """A target (label, row, column), and a mask of one pixel, are the same."""
    net, inputs = segmenter(), images()
    masks = torch.zeros(3, 1, 5, 5)
    masks[:, :, 2, 4] = 1
    by_mask, details = UnionCAM(MeanOverMask(net), "model.relu").attribute(
        inputs, target=3, additional_forward_args=(masks,), return_details=True
    )
    by_target, own = UnionCAM(net, "relu").attribute(
        inputs, target=(3, 2, 4), return_details=True
    )
    torch.testing.assert_close(by_target, by_mask, **EXACT)
    torch.testing.assert_close(own.baseline_score, details.baseline_score, **EXACT)


def test_an_empty_mask_has_no_evidence():
    net, inputs = MeanOverMask(segmenter()), images()
    masks = masks_of_halves()
    masks[1] = False
    maps = LayerCAM(net, "model.relu").attribute(
        inputs, target=2, additional_forward_args=(masks,)
    )
    assert (maps[1] == 0).all() and maps[0].max() > 0 and maps[2].max() > 0


def test_a_segmentation_model_of_torchvision():
    net = models.segmentation.lraspp_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=4
    )
    wrapped = MeanOverMask(SelectedOutput(net, "out")).double().eval()
    inputs = images(2, 64)
    masks = torch.zeros(2, 1, 64, 64, dtype=torch.bool)
    masks[0, :, :32], masks[1, :, 20:, 20:] = True, True
    explain = UnionCAM(wrapped, "model.model.backbone.16").attribute
    options = {"max_channels": 2}
    together = explain(
        inputs, target=[1, 2], additional_forward_args=(masks,), **options
    )
    assert together.shape == (2, 1, 4, 4) and together.isfinite().all()
    for i in range(2):
        one = slice(i, i + 1)
        alone = explain(
            inputs[one], target=i + 1, additional_forward_args=(masks[one],), **options
        )
        torch.testing.assert_close(together[one], alone, rtol=1e-6, atol=1e-8)


# BoxScore


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
    _, details = UnionCAM(net, "model.layer").attribute(
        inputs, additional_forward_args=arguments, baselines=0.25, return_details=True
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
        assert together.flatten(1).amax(1).gt(0).all()
        for i in range(2):
            one = slice(i, i + 1)
            alone = explain(
                inputs[one],
                additional_forward_args=(boxes[one], labels[one]),
                **options,
            )
            torch.testing.assert_close(together[one], alone, rtol=1e-6, atol=1e-9)


# A line each: similarity, regression, several labels


def test_similarity_to_an_embedding():
    net, inputs = convnet(6), images()
    with torch.no_grad():
        references = net(images())

    def similarity(x, references):
        return F.cosine_similarity(net(x), references)

    cam = UnionCAM(similarity, net.relu)
    maps, details = cam.attribute(
        inputs, additional_forward_args=(references,), return_details=True
    )
    with torch.no_grad():
        for i in range(3):
            black = net(torch.zeros_like(inputs[:1]))[0]
            expected = black @ references[i] / black.norm() / references[i].norm()
            torch.testing.assert_close(details.baseline_score[i], expected, **EXACT)
    for i in range(3):
        one = slice(i, i + 1)
        alone = cam.attribute(inputs[one], additional_forward_args=(references[one],))
        torch.testing.assert_close(maps[one], alone, **EXACT)
    # One reference for all, with a first dimension of 1.
    same = cam.attribute(inputs, additional_forward_args=(references[:1],))
    torch.testing.assert_close(same[:1], maps[:1], **EXACT)


def check_scores(details, net, inputs, score):
    """Compares the scores of the baseline and of each component with a loop's."""
    with torch.no_grad():
        black = score(net(torch.zeros_like(inputs)))
        torch.testing.assert_close(details.baseline_score, black, **EXACT)
        for maps, gains in (
            (details.denoised_map, details.denoised_gain),
            (details.region_map, details.region_gain),
        ):
            large = F.interpolate(maps, inputs.shape[2:], mode="bilinear")
            low, high = large.amin((2, 3), True), large.amax((2, 3), True)
            masks = torch.where(high > low, (large - low) / (high - low), 0)
            found = score(net(masks * inputs)) - black
            torch.testing.assert_close(gains, found, **EXACT)


@pytest.mark.parametrize("shape", ["(N, 1)", "(N,)"])
def test_regression_of_one_number(shape):
    net, inputs = convnet(1), images()
    model = net if shape == "(N, 1)" else (lambda x: net(x)[:, 0])
    target = 0 if shape == "(N, 1)" else None
    _, details = UnionCAM(model, net.relu).attribute(
        inputs, target=target, return_details=True
    )
    check_scores(details, net, inputs, lambda output: output[:, 0])


def test_regression_of_several_numbers():
    net, inputs = convnet(4), images()
    _, details = UnionCAM(net, net.relu).attribute(
        inputs, target=2, score_func=lambda output: output, return_details=True
    )
    check_scores(details, net, inputs, lambda output: output[:, 2])


def test_several_labels():
    net, inputs = convnet(4), images()
    targets = [0, 3, 1]
    _, details = UnionCAM(net, net.relu).attribute(
        inputs, target=targets, score_func=torch.sigmoid, return_details=True
    )
    check_scores(
        details, net, inputs, lambda output: output.sigmoid()[range(3), targets]
    )


def test_several_labels_of_one_output():
    """A binary classifier of one logit has no softmax: sigmoid is its confidence."""
    net, inputs = convnet(1), images()
    _, details = UnionCAM(net, net.relu).attribute(
        inputs, target=0, score_func=torch.sigmoid, return_details=True
    )
    check_scores(details, net, inputs, lambda output: output.sigmoid()[:, 0])


def test_a_segmentation_model_of_a_dict_names_the_wrapper():
    with pytest.raises(TypeError, match="give MeanOverMask.SelectedOutput.model, "):
        MeanOverMask(Packed(lambda y: {"out": y}))(images(), torch.ones(3, 1, 1, 1))


def test_infinite_logits_outside_of_the_mask_do_not_matter():
    logits = torch.tensor([[[[1.0, -torch.inf], [3.0, torch.nan]]]])
    masks = torch.tensor([[[[True, False], [True, False]]]])
    assert MeanOverMask(nn.Identity())(logits, masks).tolist() == [[2]]


def test_no_images_have_no_box_scores():
    score = BoxScore(lambda images: [])
    none = torch.zeros(0, 3, 8, 8), torch.zeros(0, 4), torch.zeros(0, dtype=torch.long)
    assert score(*none).shape == (0,)


def test_a_detector_of_another_form_is_refused():
    score = BoxScore(lambda images: [{"boxes": torch.zeros(0, 4)}])
    with pytest.raises(TypeError, match=r"got \['boxes'\] of a dict; wrap it"):
        score(torch.zeros(1, 3, 8, 8), torch.zeros(1, 4), torch.zeros(1).long())
