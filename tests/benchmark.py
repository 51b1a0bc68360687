"""Speed and memory of the scoring engine, beside the peers. Not a test.

    pip install -c constraints.txt -e ".[demo,bench]"
    python tests/benchmark.py speed --json speed.json
    python tests/benchmark.py speed --device cuda --json speed.json
    python tests/benchmark.py memory
    python tests/benchmark.py scoring-functions --images FOLDER --count 10
    python tests/benchmark.py robustness
    python tests/benchmark.py storage

``speed`` compares, in one process and in turn, round by round:

- the lower bound: the model's own forward pass, at the batch size and memory format at
  which it is fastest here, times the active channels (and times all of them);
- UnionCAM, RegionCAM and ScoreCAM of this package, exact and with predicted scores,
  whose maps ``tests/fidelity.py`` compares with the exact ones;
- Score-CAM of torchcam and of grad-cam, which score every channel as RegionCAM does.

Ratios are taken within a round, because a machine's speed drifts between rounds;
medians over rounds are shown. ``memory`` shows the peak memory against the number of
channels. ``scoring-functions`` wants a folder of images whose names begin with their
class index: it shows what accelerated models buy as ``scoring_func`` (bfloat16
autocast, folded batch normalisation, and torch.compile), each with all channels and
with predicted scores, against the correlation with the exact map. ``robustness`` runs
odd models, and compares their maps with those of a plain one. ``storage`` reads and
reports the rows of an evaluation of 50,000 images by 15 methods, which are made up. On
Linux, set
MALLOC_MMAP_THRESHOLD_=4294967296 and MALLOC_TRIM_THRESHOLD_=8589934592 for all of it:
glibc otherwise takes the memory of each pass anew.
"""

import argparse
import contextlib
import json
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from at_scale import storage
from PIL import Image
from robustness import robustness, robustness_table
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse

from captum_unioncam import RegionCAM, ScoreCAM, UnionCAM
from captum_unioncam.evaluation import EvaluationConfig
from captum_unioncam.models import Classifier, load_classifier

CHUNKS = {"cpu": (2, 4, 6, 8, 16, 32), "cuda": (16, 32, 64, 128, 256, 512)}
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
# What runs by default: models that fit a laptop's patience, and the paper's on a GPU.
MODELS = {
    "cpu": [
        "efficientnet_lite0:1",
        "efficientnet_lite0:8:128",
        "resnet18:1",
        "resnet18:8:128",
        "vgg16:1:32",
        "vgg16:8:8",
    ],
    "cuda": ["vgg16:1", "vgg16:8", "resnet50:1", "resnet50:8"],
}
PRECISIONS = {"cpu": ["float32"], "cuda": ["float32", "tf32", "bfloat16"]}
PAPER = "The paper's UnionCAM: 1.16 s and 2.22 GB an image (VGG16, RTX A6000)."
AT_SCALE = (50_000, 15)  # images and methods of the rows that are made up
SAMPLE = 32  # images in one measurement of the lower bound, at least
# How many channels the scoring functions are compared with.
WAYS: dict[str, dict] = {
    "all": {},
    "64": {"max_channels": 64},
    "fidelity 0.99": {"fidelity": 0.99},
    "16": {"max_channels": 16},
}
# How a plot shows them, and the least loss that it shows.
MARKERS = dict(zip(WAYS, "os^D", strict=True))
LEAST = 1e-5


class Tapped(nn.Module):
    """A classifier in three parts, whose layer is the first ``count`` channels.

    The peers' hooks need a layer that runs once, and a short form for slow models needs
    a layer of few channels in the whole network: the tap sees some of the features, and
    all of them go on to the head.
    """

    def __init__(self, features: nn.Module, head: nn.Module, count: int | None) -> None:
        super().__init__()
        self.features, self.head, self.count = features, head, count
        self.tap = nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        maps = self.features(images)
        count = self.count or maps.shape[1]
        tapped = self.tap(maps[:, :count])
        return self.head(torch.cat([tapped, maps[:, count:]], 1))


class EfficientNetFeatures(nn.Module):
    """The features of efficientnet_lite0, as a module."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model.extract_features(images)


def build(name: str, count: int | None, weights: str) -> Tapped:
    """Returns a model by name, its layer being the first ``count`` channels."""
    torch.manual_seed(0)
    model = load_classifier(name, weights).model
    if name == "efficientnet_lite0":
        features: nn.Module = EfficientNetFeatures(model)
        head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), model._fc)
    elif name.startswith("vgg"):
        features = model.features
        head = nn.Sequential(model.avgpool, nn.Flatten(), model.classifier)
    else:  # ResNet
        parts = list(model.children())
        features = nn.Sequential(*parts[:-2])
        head = nn.Sequential(parts[-2], nn.Flatten(), parts[-1])
    return Tapped(features, head, count).eval()


def photographs(batch: int) -> Tensor:
    """Returns scikit-image's photographs, as efficientnet_lite0 sees them."""
    from skimage import data

    preprocess = load_classifier().preprocess
    sources = [data.chelsea(), data.coffee(), data.astronaut()]
    images = [
        preprocess(Image.fromarray(sources[i % 3]).rotate(15 * (i // 3)))
        for i in range(batch)
    ]
    return torch.stack(images)


def timed(run: Callable[[], object], device: torch.device) -> float:
    """Returns the seconds of one run, with the device's work done."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


@torch.no_grad()
def forward_seconds(model: nn.Module, inputs: Tensor, chunk: int, layout: str) -> float:
    """Returns the seconds for each image of raw forward passes."""
    images = inputs[:1].repeat(chunk, 1, 1, 1).contiguous(memory_format=FORMATS[layout])
    passes = -(-SAMPLE // chunk)

    def run() -> None:
        for _ in range(passes):
            model(images)

    return timed(run, inputs.device) / (passes * chunk)


def fastest(model: nn.Module, inputs: Tensor) -> tuple[int, str]:
    """Returns the chunk size and memory format of the fastest forward passes."""
    times: dict[tuple[int, str], list[float]] = {}
    for _ in range(2):
        for chunk in CHUNKS[inputs.device.type]:
            for layout in FORMATS:
                seconds = forward_seconds(model, inputs, chunk, layout)
                times.setdefault((chunk, layout), []).append(seconds)
    return min(times, key=lambda place: statistics.median(times[place]))


def contenders(model: Tapped, inputs: Tensor, target: int) -> dict[str, Callable]:
    """Returns what is compared with the lower bound, as functions without arguments."""
    from pytorch_grad_cam import ScoreCAM as GradCamScoreCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
    from torchcam.methods import ScoreCAM as TorchcamScoreCAM

    union, region = UnionCAM(model, model.tap), RegionCAM(model, model.tap)
    score = ScoreCAM(model, model.tap)

    def torchcam() -> None:
        with TorchcamScoreCAM(model, model.tap) as cam, torch.no_grad():
            cam([target] * len(inputs), model(inputs))

    def grad_cam() -> None:
        targets = [ClassifierOutputTarget(target)] * len(inputs)
        with GradCamScoreCAM(model=model, target_layers=[model.tap]) as cam:
            cam(input_tensor=inputs, targets=targets)

    return {
        "UnionCAM": lambda: union.attribute(inputs, target),
        "UnionCAM, fidelity 0.99": lambda: union.attribute(
            inputs, target, fidelity=0.99
        ),
        "RegionCAM": lambda: region.attribute(inputs, target),
        "RegionCAM, fidelity 0.99": lambda: region.attribute(
            inputs, target, fidelity=0.99
        ),
        "RegionCAM, 16 channels": lambda: region.attribute(
            inputs, target, max_channels=16
        ),
        "ScoreCAM": lambda: score.attribute(inputs, target),
        "ScoreCAM, 16 channels": lambda: score.attribute(
            inputs, target, max_channels=16
        ),
        "torchcam ScoreCAM": torchcam,
        "grad-cam ScoreCAM": grad_cam,
    }


def keeping(kept: dict[str, Any], label: str, run: Callable) -> Callable:
    """Returns a run whose result is kept by its label."""

    def keep() -> None:
        kept[label] = run()

    return keep


def correlation_with_exact(label: str, maps: dict[str, Any]) -> float | None:
    """Returns the correlation of maps of few passes with those of all, else None."""
    method, _, few = label.partition(", ")
    if not few:
        return None
    pair = torch.stack([maps[label].flatten(), maps[method].flatten()])
    return float(torch.corrcoef(pair)[0, 1])


def parse(spec: str) -> tuple[str, int, int | None]:
    """Returns model, batch and channels of MODEL[:BATCH[:CHANNELS]]; None is all."""
    name, *numbers = spec.split(":")
    batch, count = [*map(int, numbers), *[1, None][len(numbers) :]]
    return name, batch, count


@contextlib.contextmanager
def precision(name: str, device: torch.device) -> Iterator[None]:
    """Runs everything inside in float32, in TF32, or under bfloat16 autocast."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if name == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = name == "tf32"
    try:
        with torch.autocast(device.type, torch.bfloat16, enabled=name == "bfloat16"):
            yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def speed(options: argparse.Namespace) -> list[dict[str, object]]:
    """Measures every contender against the lower bound, in every precision."""
    device = torch.device(options.device)
    rows = []
    for name in options.precisions or PRECISIONS[device.type]:
        with precision(name, device):
            rows += [{**row, "precision": name} for row in race(options, device)]
    return rows


def race(options: argparse.Namespace, device: torch.device) -> list[dict[str, object]]:
    """Measures seconds for each image of the lower bound and of the contenders."""
    rows = []
    for spec in options.models or MODELS[device.type]:
        name, batch, count = parse(spec)
        weights = "default" if name == "efficientnet_lite0" else "none"
        model = build(name, count, weights).to(device)
        inputs = photographs(batch).to(device)
        with torch.no_grad():
            target = int(model(inputs[:1]).argmax())
        _, details = UnionCAM(model, model.tap).attribute(
            inputs, target, max_channels=1, return_details=True
        )
        active = details.active_channels.double().mean().item()
        total = int(details.total_channels[0])
        chunk, layout = fastest(model, inputs)
        runs = contenders(model, inputs, target)
        maps: dict[str, Any] = {}
        for _ in range(options.rounds):
            before = forward_seconds(model, inputs, chunk, layout)
            for label, run in runs.items():
                if device.type == "cuda":
                    torch.cuda.reset_peak_memory_stats()
                seconds = timed(keeping(maps, label, run), device) / len(inputs)
                peak_gib = None
                if device.type == "cuda":
                    peak_gib = torch.cuda.max_memory_allocated() / 2**30 / len(inputs)
                after = forward_seconds(model, inputs, chunk, layout)
                image = (before + after) / 2  # the machine's speed around this run
                rows.append(
                    {
                        "model": name,
                        "batch": len(inputs),
                        "total": total,
                        "active": active,
                        "chunk": chunk,
                        "layout": layout,
                        "what": label,
                        "seconds": seconds,
                        "correlation": correlation_with_exact(label, maps),
                        "peak_gib": peak_gib,
                        "bound_active": image * active,
                        "bound_all": image * total,
                    }
                )
                before = after
                print(".", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return rows


def speed_table(rows: list[dict[str, object]]) -> str:
    """Returns medians over rounds as a Markdown table."""
    lines = [
        "| model, precision | batch | active / all channels | what | s / image | "
        "x lower bound | x UnionCAM | correlation | peak, GiB / image |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    groups: dict[tuple, dict[str, list[dict]]] = {}
    for row in rows:
        model = f"{row['model']}, {row['precision']}"
        place = (model, row["batch"], row["active"], row["total"])
        groups.setdefault(place, {}).setdefault(row["what"], []).append(row)
    for (name, batch, active, total), runs in groups.items():
        ours = runs["UnionCAM"]
        bound = statistics.median(row["bound_active"] for row in ours)
        head = f"| {name} | {batch} | {active:.0f} / {total} |"
        layout = f"{ours[0]['chunk']} x {ours[0]['layout']}"
        lines.append(
            f"{head} lower bound, active channels ({layout}) | {bound:.2f} | 1.00 "
            "| | | |"
        )
        everything = statistics.median(row["bound_all"] for row in ours)
        ratio = everything / bound
        lines.append(
            f"{head} lower bound, all channels | {everything:.2f} | {ratio:.2f} "
            "| | | |"
        )
        for what, measured in runs.items():
            seconds = statistics.median(row["seconds"] for row in measured)
            bounds = [row["seconds"] / row["bound_active"] for row in measured]
            union = [
                row["seconds"] / mine["seconds"]
                for row, mine in zip(measured, ours, strict=True)
            ]
            exact = measured[0]["correlation"]
            lines.append(
                f"{head} {what} | {seconds:.2f} | {statistics.median(bounds):.2f} | "
                f"{statistics.median(union):.2f} | {exact and f'{exact:.4f}' or ''} | "
                f"{memory_column(measured)} |"
            )
    if any(row["peak_gib"] for row in rows):
        lines += ["", PAPER]
    return "\n".join(lines)


def memory_column(measured: list[dict]) -> str:
    """Returns the largest peak of some runs, where it was measured."""
    peaks = [row["peak_gib"] for row in measured if row["peak_gib"] is not None]
    return f"{max(peaks):.2f}" if peaks else ""


class Wide(nn.Module):
    """A small net with a layer of many channels, each of them active."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 7, stride=8)
        self.layer = nn.Conv2d(8, channels, 3, stride=4)
        self.head = nn.Linear(channels, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.layer(self.stem(images)).mean((2, 3)))


def memory(options: argparse.Namespace) -> list[dict[str, object]]:
    """Measures the peak memory of one image against the channels, a process each."""
    rows = []
    for channels in (64, 128, 256, 512, 1024, 2048):
        command = [sys.executable, __file__, "peak", "--device", options.device]
        result = subprocess.run(
            [*command, "--channels", str(channels)], capture_output=True, check=True
        )
        rows.append({"channels": channels, "peak_mib": float(result.stdout)})
    return rows


def peak(options: argparse.Namespace) -> None:
    """Prints the peak memory, in MiB, of RegionCAM on a small net."""
    device = torch.device(options.device)
    torch.manual_seed(0)
    net = Wide(options.channels).to(device)
    cam = RegionCAM(net, net.layer)
    cam.attribute(torch.rand(1, 3, 224, 224, device=device), 0)
    if device.type == "cuda":
        print(torch.cuda.max_memory_allocated() / 2**20)
    else:
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10)


def image_paths(options: argparse.Namespace) -> list[Path]:
    """Returns ``count`` images of the folder, evenly spread."""
    paths = sorted(Path(options.images).glob("*.jpg"))
    return paths[:: max(1, len(paths) // options.count)][: options.count]


def shown(
    classifier: Classifier, path: Path, device: torch.device
) -> tuple[Tensor, Tensor, int]:
    """Returns an image and a black one as the model sees them, and its class."""
    image = Image.open(path).convert("RGB")
    black = Image.new("RGB", image.size)
    inputs = torch.stack([classifier.preprocess(view) for view in (image, black)])
    inputs = inputs.to(device)
    return inputs[:1], inputs[1:], int(path.name.partition("_")[0])


def scoring_functions(model: nn.Module, device: torch.device) -> dict[str, Callable]:
    """Returns functions that compute what a model computes, perhaps faster."""

    def autocast(images: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16):
            return model(images)

    return {
        "the model": model,
        "bfloat16 autocast": autocast,
        "folded batch normalisation": fuse(model),
        "torch.compile": torch.compile(model, dynamic=True),
    }


def compare_scoring_functions(options: argparse.Namespace) -> list[dict[str, object]]:
    """Measures UnionCAM by each scoring function, with all channels and with few."""
    device = torch.device(options.device)
    rows = []
    for name, weights in (("efficientnet_lite0", "default"), ("resnet18", "none")):
        classifier = load_classifier(name, weights)
        model, layer = classifier.model.to(device), classifier.layer()
        cams = {
            what: UnionCAM(model, layer, scoring_func=function)
            for what, function in scoring_functions(model, device).items()
        }
        for number, path in enumerate(image_paths(options)):
            inputs, black, target = shown(classifier, path, device)
            for what, cam in cams.items():
                for way, few in WAYS.items():
                    started = time.perf_counter()
                    maps, details = cam.attribute(
                        inputs, target, baselines=black, return_details=True, **few
                    )
                    seconds = time.perf_counter() - started
                    if (what, way) == ("the model", "all"):
                        exact, choice, exact_seconds = maps, details, seconds
                    both = torch.stack([maps.flatten(), exact.flatten()])
                    rows.append(
                        {
                            "model": name,
                            "what": what,
                            "way": way,
                            "first": number == 0,
                            "scored": details.scored_channels.item(),
                            "seconds": seconds,
                            "speedup": exact_seconds / seconds,
                            "correlation": float(torch.corrcoef(both)[0, 1]),
                            "same": torch.equal(
                                details.fused_selected, choice.fused_selected
                            ),
                        }
                    )
            print(".", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return rows


def scoring_functions_points(rows: list[dict]) -> list[dict]:
    """Returns means over images, and the median speed-up after the first image."""
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        groups.setdefault((row["model"], row["what"], row["way"]), []).append(row)
    points = []
    for (model, what, way), group in groups.items():
        correlations = [row["correlation"] for row in group]
        points.append(
            {
                "model": model,
                "what": what,
                "way": way,
                "scored": statistics.mean(row["scored"] for row in group),
                "first": group[0]["seconds"],
                "speedup": statistics.median(
                    row["speedup"] for row in group if not row["first"]
                ),
                "correlation": statistics.mean(correlations),
                "worst": min(correlations),
                "same": statistics.mean(row["same"] for row in group),
            }
        )
    for point in points:
        point["pareto"] = not any(
            other["model"] == point["model"]
            and other["speedup"] > point["speedup"]
            and other["correlation"] > point["correlation"]
            for other in points
        )
    return points


def scoring_functions_table(rows: list[dict]) -> str:
    """Returns the points as a Markdown table; in bold what nothing beats in both."""
    lines = [
        "| model | scoring_func | channels | first image, s | speed-up after it | "
        "correlation with the exact map | worst | same selection |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for point in scoring_functions_points(rows):
        mark = "**" if point["pareto"] else ""
        lines.append(
            f"| {point['model']} | {mark}{point['what']}{mark} | {point['way']}: "
            f"{point['scored']:.0f} | {point['first']:.1f} | {point['speedup']:.1f} | "
            f"{point['correlation']:.4f} | {point['worst']:.4f} | {point['same']:.0%} |"
        )
    return "\n".join(lines)


def plot_scoring_functions(rows: list[dict], path: str) -> None:
    """Draws the speed-up of each point against what its map loses."""
    from matplotlib.figure import Figure

    points = scoring_functions_points(rows)
    models = list(dict.fromkeys(point["model"] for point in points))
    figure = Figure(figsize=(5.5 * len(models), 4), layout="constrained")
    for axes, model in zip(figure.subplots(1, len(models)), models, strict=True):
        for number, what in enumerate(dict.fromkeys(p["what"] for p in points)):
            ours = [p for p in points if (p["model"], p["what"]) == (model, what)]
            places = [(p["speedup"], max(1 - p["correlation"], LEAST)) for p in ours]
            axes.plot(*zip(*places, strict=True), color=f"C{number}", label=what)
            for point, place in zip(ours, places, strict=True):
                axes.plot(*place, MARKERS[point["way"]], color=f"C{number}")
        for way, marker in MARKERS.items():
            axes.plot([], marker, color="grey", label=f"channels: {way}")
        axes.set(xscale="log", yscale="log", title=model, xlabel="times as fast")
        axes.set_ylabel("1 - correlation with the exact map")
        axes.legend(fontsize=8)
    figure.savefig(path, dpi=100)


def memory_table(rows: list[dict[str, object]]) -> str:
    """Returns the peaks as a Markdown table."""
    heads = " | ".join(str(row["channels"]) for row in rows)
    peaks = " | ".join(f"{row['peak_mib']:.0f}" for row in rows)
    lines = [f"| channels | {heads} |", "|---" * (len(rows) + 1) + "|"]
    return "\n".join([*lines, f"| peak, MiB | {peaks} |"])


def main() -> None:
    """Runs one of the measurements, prints its table, and writes its JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "what",
        choices=(
            *("speed", "memory", "scoring-functions", "robustness", "storage"),
            "peak",
        ),
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--plot", metavar="PNG", help="of scoring-functions")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--models",
        nargs="+",
        metavar="MODEL[:BATCH[:CHANNELS]]",
        help="the layer is the first CHANNELS of the features, for everyone",
    )
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS["cuda"])
    parser.add_argument("--images", metavar="FOLDER")
    parser.add_argument("--count", type=int, default=100, help="images of the folder")
    parser.add_argument("--channels", type=int, default=64, help="of peak")
    options = parser.parse_args()
    if options.what == "scoring-functions":
        if options.images is None or not Path(options.images).is_dir():
            parser.error(f"{options.what} needs --images, a folder of JPEG images")
    if options.what == "peak":
        peak(options)
        return
    if options.what == "storage":
        with tempfile.TemporaryDirectory() as folder:
            print(storage(Path(folder), *AT_SCALE, EvaluationConfig.steps))
        return
    measure, table = {
        "speed": (speed, speed_table),
        "memory": (memory, memory_table),
        "scoring-functions": (compare_scoring_functions, scoring_functions_table),
        "robustness": (robustness, robustness_table),
    }[options.what]
    rows = measure(options)
    print(table(rows))
    if options.plot and options.what == "scoring-functions":
        plot_scoring_functions(rows, options.plot)
    if options.json:
        device = options.device
        if device.startswith("cuda"):
            device = torch.cuda.get_device_name()
        report = {
            "what": options.what,
            "device": device,
            "machine": platform.machine(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "rows": rows,
        }
        Path(options.json).write_text(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
