"""How methods cope with odd models and situations, beside the peers. Not a test.

``python tests/benchmark.py robustness`` prints the documentation's table. A cell says
what became of the map of a plain model: ``right``, it is the same but for rounding;
``wrong``, it is another one, without a word; ``warns``, another one with a warning;
``error``, there is none;
``crash``, the process ended.
"""

import contextlib
import subprocess
import sys
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from captum.attr import LayerGradCam
from torch import Tensor, nn

from captum_unioncam import AblationCAM, GradCAM, ScoreCAM, UnionCAM

IMAGES, CLASS = 2, 1
THREADS, CALLS = 8, 120


class Net(nn.Module):
    """Two convolutions and a flattening head, behind what the images go through."""

    def __init__(self, entry: Callable[[Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.entry = entry
        self.first = nn.Conv2d(3, 6, 3, padding=1)
        self.second = nn.Conv2d(6, 8, 3, stride=2, padding=1)
        self.layer = nn.ReLU()
        self.head = nn.Linear(8 * 8 * 8, 4)

    def forward(self, images: Tensor) -> Tensor:
        if self.entry is not None:
            images = self.entry(images)
        maps = self.layer(self.second(torch.tanh(self.first(images))))
        return self.head(maps.flatten(1))


@dataclass
class Situation:
    """A model, its layer and inputs, and what a method runs in."""

    entry: Callable[[Tensor], Tensor] | None = None
    plain_entry: Callable[[Tensor], Tensor] | None = None  # what it computes
    change: Callable[[Net], nn.Module] = lambda net: net
    context: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext
    dtype: torch.dtype = torch.float32
    threads: int = 1
    tolerance: float = 1e-3  # as a share of the map's largest value

    def build(self) -> tuple[nn.Module, nn.Module, Tensor]:
        """Returns the model, its layer, and images."""
        torch.manual_seed(2)
        net = Net(self.entry)
        with torch.no_grad():
            net.second.weight *= 4
            net.head.weight *= 4
        images = torch.rand(IMAGES, 3, 16, 16)
        return self.change(net.to(self.dtype).eval()), net.layer, images.to(self.dtype)


def contiguous_only(images: Tensor) -> Tensor:
    if not images.is_contiguous():
        raise ValueError("contiguous images, please")
    return images


def strided(images: Tensor) -> Tensor:
    _, channels, height, width = images.shape
    return images.as_strided(
        images.shape, (channels * height * width, height * width, width, 1)
    )


def of_numpy(images: Tensor) -> Tensor:
    return torch.from_numpy(images.numpy().copy())


def compiled(net: Net) -> nn.Module:
    torch._dynamo.reset()
    model = torch.compile(net, backend="eager", dynamic=True)
    images = torch.rand(3, 3, 16, 16)
    for layout in (torch.contiguous_format, torch.channels_last):
        batch = images.contiguous(memory_format=layout)
        model(batch)  # as a model that has been in use
        with torch.no_grad():
            model(batch)
    return model


SITUATIONS = {
    "frozen parameters": Situation(change=lambda net: net.requires_grad_(False)),
    "`torch.no_grad()`": Situation(context=torch.no_grad),
    "`torch.inference_mode()`": Situation(context=torch.inference_mode),
    "bfloat16": Situation(dtype=torch.bfloat16, tolerance=0.1),
    "first operation in place": Situation(
        entry=lambda images: images.mul_(0.5), plain_entry=lambda images: images * 0.5
    ),
    "checks `is_contiguous()`": Situation(entry=contiguous_only),
    "reads `as_strided`": Situation(entry=strided),
    "preprocesses in numpy": Situation(entry=of_numpy),
    "`torch.compile`d, in use": Situation(change=compiled),
    "eight threads": Situation(threads=THREADS),
}


def of_ours(method: type) -> Callable[..., Tensor]:
    def run(model: nn.Module, layer: nn.Module, images: Tensor) -> Tensor:
        return method(model, layer).attribute(images, target=CLASS)

    return run


def of_captum(model: nn.Module, layer: nn.Module, images: Tensor) -> Tensor:
    return LayerGradCam(model, layer).attribute(
        images, target=CLASS, relu_attributions=True
    )


def of_torchcam(name: str) -> Callable[..., Tensor]:
    def run(model: nn.Module, layer: nn.Module, images: Tensor) -> Tensor:
        import torchcam.methods

        with getattr(torchcam.methods, name)(model, layer) as extractor:
            output = model(images)
            return extractor([CLASS] * IMAGES, output, normalized=False)[0]

    return run


def of_grad_cam(name: str) -> Callable[..., Tensor]:
    def run(model: nn.Module, layer: nn.Module, images: Tensor) -> Tensor:
        import pytorch_grad_cam
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

        method = getattr(pytorch_grad_cam, name)
        targets = [ClassifierOutputTarget(CLASS)] * IMAGES
        with method(model=model, target_layers=[layer]) as extractor:
            return torch.as_tensor(extractor(input_tensor=images, targets=targets))

    return run


METHODS = {
    "UnionCAM": of_ours(UnionCAM),
    "ScoreCAM": of_ours(ScoreCAM),
    "GradCAM": of_ours(GradCAM),
    "AblationCAM": of_ours(AblationCAM),
    "Captum LayerGradCam": of_captum,
    "torchcam GradCAM": of_torchcam("GradCAM"),
    "torchcam ScoreCAM": of_torchcam("ScoreCAM"),
    "grad-cam GradCAM": of_grad_cam("GradCAM"),
    "grad-cam ScoreCAM": of_grad_cam("ScoreCAM"),
}


def values(run: Callable[[], Tensor]) -> Tensor:
    return run().detach().float().clone()


def outcome(method: Callable[..., Tensor], situation: Situation) -> str:
    """Returns what became of the plain model's map."""
    model, layer, images = Situation(situation.plain_entry).build()
    expected = values(lambda: method(model, layer, images.clone()))
    model, layer, images = situation.build()

    def run(_: int = 0) -> Tensor:
        with situation.context():
            return values(lambda: method(model, layer, images.clone()))

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", UserWarning)
        try:
            if situation.threads == 1:
                found = [run()]
            else:
                with ThreadPoolExecutor(situation.threads) as pool:
                    found = list(pool.map(run, range(CALLS)))
        except Exception:
            return "error"
    bound = situation.tolerance * float(expected.abs().max())
    right = all(
        maps.shape == expected.shape and float((maps - expected).abs().max()) <= bound
        for maps in found
    )
    return "right" if right else "warns" if told else "wrong"


def outcome_apart(title: str, name: str) -> str:
    """Returns the outcome from a process of its own, which threads may crash."""
    command = [sys.executable, __file__, title, name]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stdout.split()[-1] if done.returncode == 0 else "crash"


def robustness(options: object = None) -> list[dict[str, object]]:
    """Returns the outcome of each method in each situation."""
    return [
        {
            "situation": name,
            **{
                title: (
                    outcome(METHODS[title], situation)
                    if situation.threads == 1
                    else outcome_apart(title, name)
                )
                for title in METHODS
            },
        }
        for name, situation in SITUATIONS.items()
    ]


def robustness_table(rows: list[dict[str, object]]) -> str:
    """Returns the outcomes as a Markdown table."""
    lines = [f"| the model, or the call | {' | '.join(METHODS)} |"]
    lines.append("|" + " --- |" * (len(METHODS) + 1))
    for row in rows:
        cells = " | ".join(str(row[title]) for title in METHODS)
        lines.append(f"| {row['situation']} | {cells} |")
    return "\n".join(lines)


if __name__ == "__main__":
    _, method, place = sys.argv
    print(outcome(METHODS[method], SITUATIONS[place]))
