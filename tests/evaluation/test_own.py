"""Models and data sets of one's own: the same rows, folder, resume and report."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from classifiers import tiny_classifier
from PIL import Image
from runs import METHODS, QUICK, results
from torch import nn
from torchvision import tv_tensors

from captum_unioncam import GradCAM, SelectedOutput, metrics
from captum_unioncam.errors import ConfigError, DataError, ModelError
from captum_unioncam.evaluation import (
    METRICS,
    EvaluationConfig,
    appendix,
    evaluate,
    labels,
    measuring,
    runner,
    task,
)
from captum_unioncam.evaluation.own import OwnImages, own_parts
from captum_unioncam.models import Classifier

pytestmark = pytest.mark.usefixtures("one_thread", "no_pictures")

SIDE = 16


def network(channels=1, classes=3):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(channels, 4, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(4 * (SIDE // 2) ** 2, classes),
        )
    with torch.no_grad():
        net[-1].weight.mul_(20)
    return net.eval()


def scans(count=3, channels=1, label=1):
    """Images in [0, 1] with a bright square, its class, and where it is."""
    generator = torch.Generator().manual_seed(0)
    items = []
    for i in range(count):
        image = torch.rand(channels, SIDE, SIDE, generator=generator) / 2
        mask = torch.zeros(SIDE, SIDE, dtype=torch.bool)
        mask[4 : 10 + i, 2:9] = True
        items.append((image + mask / 2, label, mask))
    return items


def config(output, **options):
    return EvaluationConfig("scans", str(output), **{**QUICK, **options})


def run(output, model, dataset, options=None, **given):
    settings = {"methods": METHODS, "metrics": ("drop", "energy"), **(options or {})}
    return evaluate(config(output, **settings), model=model, dataset=dataset, **given)


def values(rows):
    return [row["metrics"] for row in rows]


# What it says


def test_lesions_in_one_channel_have_every_metric(tmp_path):
    options = {"methods": ("gradcam",), "metrics": tuple(METRICS), "batch_size": 2}
    rows = run(tmp_path, network(), scans(), options, categories=["a", "b", "c"])
    assert [row["id"] for row in rows] == ["0", "1", "2"]
    assert all(list(row["metrics"]) == list(METRICS) for row in rows)
    for row, (image, _, mask) in zip(rows, scans(), strict=True):
        model, inputs = network(), image[None]
        target = int(model(inputs).argmax())
        maps = GradCAM(model, "1").attribute(inputs, target)
        scores = metrics.masked_confidences(model, inputs, maps, target, 0)
        assert (row["target"], row["target_name"]) == (target, "abc"[target])
        assert row["metrics"]["drop"] == pytest.approx(
            100 * metrics.confidence_drop(*scores).item(), rel=1e-4, abs=1e-4
        )
        assert row["metrics"]["energy"] == pytest.approx(
            metrics.energy_pointing_game(maps, mask[None, None]).item(), rel=1e-4
        )
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["config"]["model"] == "Sequential"
    assert (report["config"]["data"], report["config"]["weights"]) == (
        "scans",
        "its own",
    )
    assert report["layer"] == {"name": "1", "size": [4, 8, 8]}
    assert (tmp_path / "report.html").exists()


class Unscaled(nn.Module):
    """A model that takes normalised images."""

    def __init__(self, model, mean, std):
        super().__init__()
        self.model, self.mean, self.std = model, mean, std

    def forward(self, inputs):
        return self.model(inputs * self.std + self.mean)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_mean_and_std_say_what_is_black(channels, tmp_path):
    model, items = network(channels), scans(2, channels)
    mean, std = torch.linspace(0.3, 0.6, channels), torch.linspace(0.1, 0.4, channels)
    normal = [((x - mean[:, None, None]) / std[:, None, None], *r) for x, *r in items]
    unscaled = Unscaled(model, mean.view(1, -1, 1, 1), std.view(1, -1, 1, 1)).eval()
    options = {"metrics": ("drop", "insertion", "deletion")}
    plain = run(tmp_path / "plain", model, items, options)
    given = {"mean": mean.tolist(), "std": std}
    found = run(tmp_path / "normal", unscaled, normal, options, **given)
    for one, other in zip(values(plain), values(found), strict=True):
        # Rounding may change the order of pixels of nearly one value.
        assert one == pytest.approx(other, rel=2e-2, abs=1e-3)
    otherwise = run(tmp_path / "other", unscaled, normal, options)
    assert values(otherwise)[0] != pytest.approx(values(found)[0], rel=5e-2)
    known = json.loads((tmp_path / "normal" / "config.json").read_text())
    assert known["mean"] == pytest.approx(mean.tolist())


class Dict(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = network()

    def forward(self, inputs):
        return {"logits": self.net(inputs)}


def test_a_dict_of_outputs_takes_the_wrapper(tmp_path):
    plain = run(tmp_path / "plain", network(), scans())
    wrapped = SelectedOutput(Dict().eval(), "logits")
    assert wrapped.training, "only its model is in eval mode"
    found = run(tmp_path / "dict", wrapped, scans())
    assert values(found) == values(plain)
    with pytest.raises(ModelError, match="got a dict; give evaluate SelectedOutput"):
        run(tmp_path / "bare", Dict().eval(), scans())


def test_labels_are_explained_by_index_or_name(tmp_path):
    image, _, mask = scans(1)[0]
    labels = (2, torch.tensor(0), np.int64(1), "b", None, "cat")
    items = [(image, label, mask) for label in labels]
    options = {"methods": ("gradcam",), "target": "label"}
    rows = run(tmp_path, network(), items, options, categories=["a", "b", "c"])
    assert [row.get("target") for row in rows] == [2, 0, 1, 1, None, None]
    assert "the image has no label" in rows[4]["error"]
    assert "its label is no class of the model ('cat')" in rows[5]["error"]


def test_boxes_of_the_target_count_where_the_label_is_explained(tmp_path):
    model, (item,) = network(), scans(1)
    predicted = int(model(item[0][None]).argmax())
    items = [(item[0], (predicted + i) % 3, item[2]) for i in range(2)]
    found = values(run(tmp_path / "any", model, items))
    assert found[0]["energy"] == found[2]["energy"]
    found = values(run(tmp_path / "target", model, items, {"boxes": "target"}))
    undefined = [v["energy"] is None for v in found]
    assert undefined == [False, False, True, True]


def test_boxes_and_masks_and_none_say_where_objects_are(tmp_path):
    image, mask = scans(1)[0][0], scans(1)[0][2]  # rows 4..9, columns 2..8
    forms = [
        mask,
        mask[None],
        mask.to(torch.uint8) * 255,
        mask.float(),
        mask.numpy(),
        torch.tensor([[2.0, 4.0, 9.0, 10.0]]),
        [[2, 4, 9, 10]],
    ]
    items = OwnImages([(image, 1, form) for form in forms])
    for i in range(len(forms)):
        assert torch.equal(items[i].masks, mask[None])
        assert items[i].objects == ("1",)
    corners = tv_tensors.BoundingBoxes(
        forms[-1], format="XYXY", canvas_size=(SIDE, SIDE)
    )
    sizes = tv_tensors.BoundingBoxes(
        [[2, 4, 7, 6]], format="XYWH", canvas_size=(SIDE, SIDE)
    )
    items = OwnImages([(image, 1, corners), (image, 1, sizes)])
    assert torch.equal(items[0].masks, mask[None])
    assert "boxes (objects, 4) of x0, y0, x1, y1, got (1, 4) (XYWH)" in items[1].error
    several = torch.stack([mask, ~mask])
    items = OwnImages([(image, 1, several), (image, 1, None), (image, 1)])
    assert torch.equal(items[0].masks, several)
    assert items[1].masks.shape == (0, SIDE, SIDE)
    assert items[2].masks is None
    rows = run(tmp_path, network(), items.dataset)
    undefined = [v["energy"] is None for v in values(rows)]
    assert undefined == [False, False, True, True, True, True]


def test_double_precision_stays(tmp_path):
    items = [(x.double(), *rest) for x, *rest in scans(1)]
    row, _ = run(tmp_path, network().double(), items)
    assert "error" not in row


def test_a_classifier_of_ones_own_reads_files(images, tmp_path):
    classifier = tiny_classifier("mine")
    settings = EvaluationConfig(
        f"imagefolder:{images}", str(tmp_path), methods=("gradcam",), **QUICK
    )
    rows = evaluate(settings, model=classifier)
    assert len(rows) == 5 and not any("error" in row for row in rows)
    assert rows[0]["target_name"] in classifier.categories
    assert json.loads((tmp_path / "config.json").read_text())["model"] == "mine"


@pytest.mark.usefixtures("tiny_model")
@pytest.mark.parametrize("model", [None, tiny_classifier()], ids=["name", "own"])
def test_a_classifier_takes_items_of_any_size(tmp_path, model):
    classifier = tiny_classifier()
    images = OwnImages([(torch.rand(3, 32, 32), 1)])
    part = own_parts(model, images.dataset, None, None, None)
    black = part.shown(part.classifier or classifier).preprocess
    shown = black(Image.new("RGB", (9, 9)))
    assert shown.shape == (3, 32, 32) and (shown == -2).all()  # (0 - 0.5) / 0.25
    rows = run(tmp_path, model, images.dataset, {"metrics": ("drop",)})
    assert not any("error" in row for row in rows)
    with pytest.raises(ConfigError, match="inputs have 1 channels, .* takes 3"):
        run(tmp_path / "grey", model, scans(), {"metrics": ("drop",)})


# Failures of items


class Faulty(torch.utils.data.Dataset):
    """Items of which the second and those after it are no items."""

    wrong = [
        lambda image: (image[:, :8], 1),
        lambda image: (image.mul(255).byte(), 1),
        lambda image: (image.numpy(), 1),
        lambda image: {"image": image},
        lambda image: (image,),
        lambda image: (image, 0.5),
        lambda image: (image, 1, torch.zeros(5, 5)),
        lambda image: (image, 1, torch.full((SIDE, SIDE), 0.3)),
        lambda image: (image, 1, torch.tensor([[9, 2, 3, 4]])),
        lambda image: (image, 1, "mask"),
        lambda image: 1 / 0,
    ]

    def __len__(self):
        return 1 + len(self.wrong)

    def __getitem__(self, index):
        image = scans(1)[0][0]
        return self.wrong[index - 1](image) if index else (image, 1)


def test_items_that_are_none_are_rows_with_their_reasons(tmp_path):
    options = {"methods": ("gradcam",), "metrics": ("drop",)}
    first, *others = run(tmp_path, network(), Faulty(), options)
    assert "error" not in first
    reasons = [
        "its input is (1, 8, 16), and the first item's (1, 16, 16); bring all to one",
        "its input must be a Tensor of floats, (C, H, W), got torch.uint8",
        "its input must be a Tensor of floats, (C, H, W), got a ndarray; give the data",
        "an item must be (input, label) or (input, label, mask or boxes), got a dict",
        "got a tuple of 1",
        "its label must be a class index, a name or None, got 0.5",
        "its third part must be a mask (16, 16), masks (objects, 16, 16), or boxes",
        "its mask must be bool, integers, or 0 and 1, got other numbers; give a comp",
        "its boxes are wrong: `boxes` must be x0, y0, x1, y1",
        "its mask or boxes must be a Tensor, got a str",
        "ZeroDivisionError: division by zero",
    ]
    for row, reason in zip(others, reasons, strict=True):
        assert reason in row["error"]


def test_the_first_item_must_be_one(tmp_path):
    with pytest.raises(DataError, match="`dataset`: item 0: its input must be .C, H,"):
        run(tmp_path, network(), [(torch.rand(5), 1)])
    with pytest.raises(DataError, match="item 0: ZeroDivisionError: division"):
        run(tmp_path, network(), torch.utils.data.Subset(Faulty(), [11]))
    with pytest.raises(DataError, match="must hold at least one item, got none"):
        run(tmp_path, network(), [])
    assert not list(tmp_path.iterdir())


# Resuming


def resumed(output, *arguments, **given):
    options = {"resume": True, **given.pop("options", {})}
    return run(output, *arguments, options, **given)


def test_a_run_of_ones_own_is_continued(tmp_path, monkeypatch):
    whole = run(tmp_path / "whole", network(), scans())
    measured, calls = measuring._measured, []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return measured(*arguments)

    monkeypatch.setattr(measuring, "_measured", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", network(), scans())
    calls.clear()
    rows = resumed(tmp_path / "killed", network(), scans())
    assert len(calls) == 3, "three rows were there"
    assert values(rows) == values(whole)
    assert results(tmp_path / "killed") == results(tmp_path / "whole")


def test_what_has_changed_is_not_continued(tmp_path):
    run(tmp_path, network(), scans())
    changed = scans()
    changed[1] = (changed[1][0], 2, changed[1][2])
    with pytest.raises(DataError, match="`data`: 1 has changed since its rows were"):
        resumed(tmp_path, network(), changed)
    moved = scans()
    moved[2] = (*moved[2][:2], moved[2][2].roll(1, 0))
    with pytest.raises(DataError, match="`data`: 2 has changed since its rows were"):
        resumed(tmp_path, network(), moved)
    other = network()
    other[0].bias.data[0] += 1
    with pytest.raises(ConfigError, match="the values of the weights have changed"):
        resumed(tmp_path, other, scans())
    other = network()
    other[0].padding, other[0].dilation = (2, 2), (2, 2)
    with pytest.raises(ConfigError, match="the model's modules, or their source, have"):
        resumed(tmp_path, other, scans())
    with pytest.raises(ConfigError, match="mean was .0.0., is .0.5."):
        resumed(tmp_path, network(), scans(), mean=0.5)
    assert len(resumed(tmp_path, network(), scans())) == 6


# Wrong arguments


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"model": "resnet18"},
            "`model` must be a .*Module or a Classifier, got 'resn",
        ),
        ({"model": nn.ReLU}, "got the ReLU class; a name goes into EvaluationConfig"),
        ({"model": network().train()}, "in eval mode, and its Conv2d is in training"),
        ({"dataset": None}, "not known how to show an image file to a Sequential"),
        ({"dataset": iter(scans())}, "must have a length and its items by index"),
        ({"mean": [0.1, 0.2]}, "`mean` must be one number, or one for each of 1 ch"),
        ({"mean": "grey"}, "`mean` must be one number, .* got 'grey'"),
        ({"std": 0}, "`std` must be one number, .*finite and above 0, got .0.0."),
        ({"mean": math.nan}, "`mean` must be one number, .*finite, got .nan."),
        ({"model": tiny_classifier(), "mean": 0}, "`mean` goes with a `model` that is"),
        ({"model": None, "categories": ["a"]}, "`categories` goes with a `model`"),
    ],
    ids=lambda part: part[:20] if isinstance(part, str) else ", ".join(part),
)
def test_wrong_arguments_are_refused_in_plain_words(tmp_path, given, message):
    arguments = {"model": network(), "dataset": scans(), **given}
    with pytest.raises(ConfigError, match=message):
        run(tmp_path / "out", arguments.pop("model"), **arguments)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": "none"}, "`weights` are of a model with a name, got 'none'"),
        ({"mean": (0.5,)}, r"`mean` of a configuration .* got \(0.5,\) beside a model"),
        ({"categories": "a.txt"}, "`categories` of a configuration is of a model with"),
        ({"preprocessing": "unit"}, "`preprocessing` is of image files, got 'unit'"),
        ({"layer": "none"}, "has no layer 'none'"),
    ],
    ids=str,
)
def test_options_of_names_are_refused_beside_ones_own(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        run(tmp_path / "out", network(), scans(), options)
    assert not list(tmp_path.glob("out/*.json*"))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        (
            "model",
            network(),
            "must be text, got a Sequential; a network of your own is",
        ),
        ("data", scans(), "must be text, got a list; a data set of your own is given"),
        ("layer", nn.ReLU(), "must be text, got a ReLU; give its dotted name"),
    ],
    ids=["model", "data", "layer"],
)
def test_what_is_no_name_in_a_configuration_is_refused(field, value, message):
    with pytest.raises(ConfigError, match=f"`{field}` {message}"):
        dataclasses.replace(config("out"), **{field: value})


class Pixels(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 1)

    def forward(self, inputs):
        return self.conv(inputs)


def test_a_model_that_is_no_classifier_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"\(1, classes\) for one, got \(1, 2, 16, 16"):
        run(tmp_path, Pixels().eval(), scans())
    with pytest.raises(
        ModelError, match="does not run on images of shape .1, 1, 16, 1"
    ):
        run(tmp_path, network(3), scans())


# Pictures


@pytest.mark.parametrize(("channels", "shown"), [(1, 1), (3, 3), (4, 1)])
def test_pictures_of_any_scale_and_number_of_channels(channels, shown, tmp_path):
    items = [(x * 6 - 3, *rest) for x, *rest in scans(2, channels)]
    own = own_parts(network(channels), items, None, None, None)
    methods = labels.parse_methods(["gradcam"])
    settings = config(tmp_path, metrics=("drop",))
    loaded = task.load_task(settings, methods, torch.device("cpu"), own)
    inputs = torch.stack([items[0][0], scans(1, channels)[0][0]])
    picture = loaded.picture(inputs)
    assert picture.shape == (2, shown, SIDE, SIDE)
    assert (picture[0].min(), picture[0].max()) == (0, 1)
    if channels in (1, 3):  # in [0, 1] already
        assert torch.allclose(picture[1], inputs[1])
        image = scans(1, channels)[0][0]
        scaled = (image - image.min()) / (image.max() - image.min())
        assert torch.allclose(picture[0], scaled, atol=1e-5)
    assert isinstance(loaded.classifier, Classifier)


def test_the_gallery_shows_them(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "make_gallery", appendix.make_gallery)
    options = {"methods": ("gradcam",), "metrics": ("drop",), "sanity": 1}
    run(tmp_path, network(4), scans(2, 4), options)
    assert list(tmp_path.glob("gallery-*.jpg"))
    assert "Randomisation of the model" in (tmp_path / "report.md").read_text()
