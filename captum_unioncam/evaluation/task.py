"""What every image of an evaluation goes through: a model, a layer, and methods."""

import dataclasses
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import Module

from captum_unioncam._layer_call import LayerCall
from captum_unioncam._maps import checked_maps
from captum_unioncam.errors import ConfigError, ModelError, one_line
from captum_unioncam.evaluation.config import EvaluationConfig
from captum_unioncam.evaluation.data import unit_range
from captum_unioncam.evaluation.identity import weights_digest
from captum_unioncam.evaluation.methods import Method
from captum_unioncam.evaluation.metrics import METRICS, Batch, Measurement
from captum_unioncam.evaluation.objects import ClassObjects, read_object_names
from captum_unioncam.evaluation.own import Own
from captum_unioncam.models import Classifier, load_classifier

SIDE = 224  # of the paper's images

# How far the values of an image may leave [0, 1] by rounding.
RANGE_TOLERANCE = 1e-2

Methods = dict[str, tuple[Method, dict[str, Any]]]


class CountedCalls(Module):
    """A function of inputs, and how many examples went through it.

    It is a module, because some of Captum's attributions take no function.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function
        self.examples = 0

    def forward(self, *args: Any) -> Any:
        self.examples += len(args[0])
        return self.function(*args)


@dataclass(frozen=True)
class Task:
    """A loaded model, and the methods to explain it by.

    Attributes:
        config (EvaluationConfig): What to evaluate.
        classifier (Classifier): The model, and how it is shown an image.
        model (Module): The model, on its device.
        layer (Module): The layer to explain.
        layer_name (str): Its dotted name.
        layer_size (tuple[int, ...]): Its channels and its size, (K, h, w).
        weights_digest (str): A digest of the model's parameters and buffers.
        forward_func (CountedCalls): Runs the model.
        scoring_func (CountedCalls): Runs it for masked passes, maybe faster.
        black (Tensor): A black image as the model sees it, (1, C, H, W).
        classes (int): Number of the model's classes.
        objects (ClassObjects): The objects that each class stands for.
        device (torch.device): Where the model is.
        methods (dict): The methods and their options, by label.
    """

    config: EvaluationConfig
    classifier: Classifier
    model: Module
    layer: Module
    layer_name: str
    layer_size: tuple[int, ...]
    weights_digest: str
    forward_func: CountedCalls
    scoring_func: CountedCalls
    black: Tensor
    classes: int
    objects: ClassObjects
    device: torch.device
    methods: Methods

    @property
    def forwards(self) -> int:
        """Examples that went through the model so far."""
        return sum(calls.examples for calls in {self.forward_func, self.scoring_func})

    def explain(self, label: str, **options: Any) -> Callable[..., Any]:
        """Returns the ``attribute`` of a method, with its options."""
        method, chosen = self.methods[label]
        offered = {
            "theta": self.config.theta,
            "fidelity": self.config.fidelity,
            "max_channels": self.config.max_channels,
            "baselines": self.black,
            "scoring_func": self.scoring_func,
            "reshape_transform": self.classifier.reshape_transform(self.layer_name),
            **options,
        }
        return method.explain(self.forward_func, self.layer, chosen, **offered)

    def of_another(self, model: Module, layer: Module) -> "Task":
        """Returns this task for another model of the same kind."""
        forward_func = CountedCalls(model)
        return dataclasses.replace(
            self,
            model=model,
            layer=layer,
            forward_func=forward_func,
            scoring_func=forward_func,
        )

    def picture(self, inputs: Tensor) -> Tensor:
        """Returns images, (N, C, H, W) as the model sees them, for people.

        They are in [0, 1]: of an image that is not between black and white, its least
        and its largest value are. Of other than 1 or 3 channels, the mean is shown.
        """
        white = self.classifier.preprocess(_plain("white")).to(inputs)
        black = self.black.to(inputs)
        shown = (inputs - black) / (white - black)
        if shown.shape[1] not in (1, 3):
            shown = shown.mean(1, keepdim=True)
        low, high = shown.amin((1, 2, 3), True), shown.amax((1, 2, 3), True)
        inside = (low >= -RANGE_TOLERANCE) & (high <= 1 + RANGE_TOLERANCE)
        scaled = (shown - low) / (high - low).clamp_min(RANGE_TOLERANCE)
        return torch.where(inside, shown, scaled).clamp(0, 1)


def load_task(
    config: EvaluationConfig, methods: Methods, device: torch.device, own: Own
) -> Task:
    """Loads the model, and tries every method and metric on a black image.

    Raises:
        ConfigError: If a method or a metric cannot run.
        ModelError: If the model, its weights or its layer cannot be loaded.
    """
    classifier = own.classifier
    if classifier is None:
        with _seeded(config.seed):
            classifier = load_classifier(
                config.model, config.weights, **config.metadata
            )
    classifier = own.shown(classifier)
    digest = weights_digest(classifier.model)  # on the CPU, before it moves
    if config.preprocessing == "unit":
        classifier = dataclasses.replace(classifier, preprocess=unit_range(SIDE))
    model = classifier.model.to(device)

    def counted(function: Callable[..., Any]) -> CountedCalls:
        return CountedCalls(_autocast(function, device) if config.amp else function)

    forward_func = counted(model)
    compiled = counted(torch.compile(model, dynamic=True)) if config.compile else None
    black = classifier.preprocess(_plain("black")).unsqueeze(0).to(device)
    classes = _classes(classifier.name, forward_func, black)
    file = config.object_names
    names = None if file is None else read_object_names(file)
    objects = ClassObjects(classifier.categories, classes, names)
    layer_name = config.layer or classifier.default_layer
    task = Task(
        config,
        classifier,
        model,
        classifier.layer(layer_name),
        layer_name,
        (),
        digest,
        forward_func,
        compiled or forward_func,
        black,
        classes,
        objects,
        device,
        methods,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a black image has constant maps
        _try(task)
        return dataclasses.replace(task, layer_size=_layer_size(task))


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Draws random weights from a seed; torch's generator stays as it is."""
    with torch.random.fork_rng(devices=()):
        # torch.manual_seed would seed the accelerators too.
        torch.default_generator.manual_seed(seed)
        yield


@torch.no_grad()
def _classes(name: str, forward_func: Callable[..., Any], black: Tensor) -> int:
    """Returns the number of classes of a model. Cost: 1 forward pass.

    Raises:
        ModelError: If the model does not return one row of scores for each image.
    """
    try:
        output = forward_func(black)
    except Exception as error:  # a model may raise anything
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise ModelError(
            f"{name} does not run on images of shape {tuple(black.shape)} ({reason})"
        ) from error
    if not isinstance(output, Tensor):
        raise ModelError(
            f"{name} must return a Tensor of class scores, got a "
            f"{type(output).__name__}; give evaluate SelectedOutput(model, key), or a "
            "module whose forward returns the scores"
        )
    if output.dim() != 2 or len(output) != 1:
        raise ModelError(
            f"{name} must return one row of class scores for each image, (1, classes) "
            f"for one, got {tuple(output.shape)}"
        )
    return output.shape[1]


def _layer_size(task: Task) -> tuple[int, ...]:
    """Returns the channels and the size of the layer. Cost: 1 forward pass."""
    call = LayerCall.prepare(
        task.forward_func,
        task.black,
        0,
        None,
        layer=task.layer,
        device_ids=None,
        attribute_to_layer_input=False,
        reshape_transform=task.classifier.reshape_transform(task.layer_name),
    )
    (tensor,) = call.tensors()
    return tuple(tensor.activations.shape[1:])


def _plain(colour: str) -> Image.Image:
    return Image.new("RGB", (2 * SIDE, 2 * SIDE), colour)


def _autocast(function: Callable[..., Any], device: torch.device) -> Callable[..., Any]:
    """Returns a model in bfloat16 where that is safe, with float32 outputs."""

    def forward_func(*args: Any) -> Tensor:
        with torch.autocast(device.type, dtype=torch.bfloat16):
            output: Tensor = function(*args)
        return output.float()

    return forward_func


def _try(task: Task) -> None:
    """Refuses what would fail for every image."""
    trial = "the methods"
    try:
        for trial in task.methods:
            explain = task.explain(trial, max_channels=1, num_masks=1)
            maps = explain(task.black, target=0)
            if isinstance(maps, tuple):
                raise ConfigError("`layer` has several tensors; choose another")
        batch = Batch(
            task.scoring_func,
            task.black,
            target=[0],
            baselines=task.black,
            masks=[
                task.black.new_ones(1, *task.black.shape[2:], dtype=torch.bool).cpu()
            ],
            steps=1,
            seeds=[0],
        )
        explain = task.explain(next(iter(task.methods)), max_channels=1)
        measurement = Measurement(batch, checked_maps(maps, 1), explain)
        for trial in task.config.metrics:
            METRICS[trial].measure(measurement)
    except ConfigError:
        raise
    # Captum asserts that the layer runs, a metric may lack its package, and an option
    # of a method may be anything.
    except Exception as error:
        raise ConfigError(f"{trial} cannot run: {one_line(error)}") from error
