"""Maps of small nets trained on data whose answer is known. Not a test itself.

    python tests/synthetic.py

Everything in an example is drawn without its class, but for one pattern at a random
place: what tells the classes apart can be nowhere else. The share of a map's energy on
that pattern (the energy pointing game) says whether a method finds the evidence; a map
that is the same everywhere has the share of the pattern in the example.

- rank 1: an electrocardiogram, in which one beat is deformed. The class is the kind of
  deformation: a wide beat without its P wave, a raised ST segment, an inverted T wave.
  An artefact of noise and a beat that is taller than the others tell nothing.
- rank 2 and 3: a picture or a volume of rough noise, in which one block is textured.
  The class is the texture: stripes along one of the axes, or a picture's checkerboard.
  Blocks of one colour and blocks of random cells, of the same size and contrast, tell
  nothing.

Values are about 0, which is thus what a mask of 0 should show. All tables take less
than two minutes on one core.
"""

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from nets import CONVOLUTIONS
from torch import Tensor, nn

from captum_unioncam._maps import upsample
from layer_methods import LAYER_METHODS as METHODS
from captum_unioncam.metrics import energy_pointing_game, pointing_game

SIZES = {1: (256,), 2: (48, 48), 3: (20, 20, 20)}
CHANNELS = {1: 1, 2: 3, 3: 1}
CLASSES = 3
BLOCK = {2: 12, 3: 8}  # the side of the textured block
SPAN = (-12, 20)  # a beat, in samples from its R wave
# Center, width and height of the waves of a beat.
WAVES = {
    "P": (-8.0, 2.0, 0.15),
    "Q": (-2.0, 0.8, -0.1),
    "R": (0.0, 1.0, 1.0),
    "S": (2.0, 1.0, -0.25),
    "T": (10.0, 3.0, 0.3),
}
DEFORMED: tuple[dict[str, tuple[float, float, float]], ...] = (
    {"P": (-8.0, 2.0, 0.0), "R": (0.0, 3.0, 1.0)},
    {"ST": (5.0, 2.5, 0.3)},
    {"T": (10.0, 3.0, -0.3)},
)
# The layers of the nets that are explained.
LAYERS = {"layer": "last activation", "earlier": "activation before it"}
# Methods for a short table.
SHORT = ("unioncam", "denoisedgradcam", "regioncam", "gradcam", "layercam", "scorecam")
# What the methods are compared with.
PATTERN = "the pattern itself, at the layer's size"
UNTRAINED = "`unioncam` of the net before training"
ANOTHER = "`unioncam` of another example"
CONSTANT = "the same everywhere"
REFERENCES = (PATTERN, UNTRAINED, ANOTHER, CONSTANT)


@dataclass(frozen=True)
class Examples:
    """Inputs, (N, C, *size), their classes, (N,), and patterns, (N, 1, *size)."""

    inputs: Tensor
    targets: Tensor
    masks: Tensor

    def __getitem__(self, index: object) -> "Examples":
        return Examples(self.inputs[index], self.targets[index], self.masks[index])


def make(rank: int, count: int, seed: int) -> Examples:
    """Returns examples of all classes in equal numbers, or nearly."""
    draw = torch.Generator().manual_seed(seed)
    targets = torch.arange(count) % CLASSES
    one = _cardiogram if rank == 1 else _scene
    inputs, masks = zip(*(one(rank, int(kind), draw) for kind in targets), strict=True)
    return Examples(torch.stack(inputs), targets, torch.stack(masks))


def _between(low: float, high: float, draw: torch.Generator) -> float:
    return low + (high - low) * float(torch.rand((), generator=draw))


def _cardiogram(rank: int, kind: int, draw: torch.Generator) -> tuple[Tensor, Tensor]:
    """Returns one lead of beats, (1, L), and the place of the deformed one."""
    (length,) = SIZES[rank]
    time = torch.arange(length)
    beats = [_between(-20, 16, draw)]
    while beats[-1] < length:
        beats.append(beats[-1] + _between(34, 40, draw))
    whole = [i for i, r in enumerate(beats) if -SPAN[0] <= r <= length - SPAN[1]]
    deformed, tall = torch.randperm(len(whole), generator=draw)[:2].tolist()
    wander = _between(0, 6.3, draw)
    lead = 0.1 * torch.sin(time / 40 + wander)
    for i, beat in enumerate(beats):
        height = _between(0.9, 1.1, draw) * (1.5 if i == whole[tall] else 1)
        waves = WAVES | (DEFORMED[kind] if i == whole[deformed] else {})
        for center, width, peak in waves.values():
            offset = time - beat - center
            lead = lead + height * peak * torch.exp(-0.5 * (offset / width) ** 2)
    noise = torch.full((length,), 0.05)
    artefact = int(_between(0, length - 20, draw))
    noise[artefact : artefact + 20] = 0.2
    lead = lead + noise * torch.randn(length, generator=draw)
    offset = time - beats[whole[deformed]]
    return lead[None], ((offset >= SPAN[0]) & (offset < SPAN[1]))[None]


def _scene(rank: int, kind: int, draw: torch.Generator) -> tuple[Tensor, Tensor]:
    """Returns a picture or volume, (C, *size), and the place of the textured block."""
    size, side = SIZES[rank], BLOCK[rank]
    coarse = [length // 4 for length in size]
    rough = torch.randn(1, CHANNELS[rank], *coarse, generator=draw)
    scene = 0.5 * upsample(rough, size)[0]
    scene = scene + 0.3 * torch.randn(scene.shape, generator=draw)
    plain = torch.ones([side] * rank)
    # Cells of two pixels, as the stripes.
    cells = torch.randint(2, [side // 2] * rank, generator=draw).float()
    cells = F.interpolate(2 * cells[None, None] - 1, scale_factor=2)[0, 0]
    # The last block hides those under it.
    for block in (plain, cells, plain, cells, _texture(rank, kind)):
        corner = [int(_between(0, length - side + 1, draw)) for length in size]
        place = (..., *(slice(start, start + side) for start in corner))
        tint = F.normalize(torch.randn(CHANNELS[rank], generator=draw), dim=0)
        tint = tint.view(-1, *[1] * rank) * CHANNELS[rank] ** 0.5
        noise = 0.3 * torch.randn(scene[place].shape, generator=draw)
        scene[place] = tint * block + noise
    mask = torch.zeros(1, *size, dtype=torch.bool)
    mask[place] = True
    return scene, mask


def _texture(rank: int, kind: int) -> Tensor:
    """Returns stripes along one axis, or their product, in -1 and 1."""
    side = BLOCK[rank]
    stripes = 1.0 - 2 * (torch.arange(side) // 2 % 2)
    axes = range(rank) if kind == rank else [kind]
    block = torch.ones([side] * rank)
    for axis in axes:
        block = block * stripes.view([-1 if i == axis else 1 for i in range(rank)])
    return block


class Net(nn.Module):
    """Three normalised convolutions, two of them pooled, and a pooled linear head.

    Such a head cannot know the place, so that what the net learns at one place holds at
    all of them. ``layer`` is the last activation, of a quarter of the input's size, and
    ``earlier`` the one before, of half of it, whose gradients differ from place to
    place. Without the normalisation some seeds do not learn.
    """

    def __init__(self, rank: int) -> None:
        super().__init__()
        conv, kernel = CONVOLUTIONS[rank], 5 if rank == 1 else 3
        norm = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[rank - 1]
        pool = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)[rank - 1]
        self.earlier, self.layer = nn.ReLU(), nn.ReLU()
        blocks: list[nn.Module] = []
        widths = (CHANNELS[rank], 8, 16, 16)
        for i, activation in enumerate((nn.ReLU(), self.earlier, self.layer)):
            convolution = conv(widths[i], widths[i + 1], kernel, padding="same")
            blocks += [convolution, norm(widths[i + 1]), activation, pool(2)]
        self.features = nn.Sequential(*blocks[:-1])
        self.head = nn.Linear(widths[-1], CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.features(inputs).flatten(2).mean(2))


def build(rank: int, seed: int) -> Net:
    """Returns a net before training."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Net(rank).eval()


def train(rank: int, seed: int, count: int = 600, epochs: int = 8) -> Net:
    """Returns a net trained on examples of the seed."""
    data, net = make(rank, count, 2 * seed), build(rank, seed).train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        optimizer = torch.optim.Adam(net.parameters())
        steps = epochs * -(-count // 16)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, steps)
        for _ in range(epochs):
            for batch in torch.randperm(count).split(16):
                loss = F.cross_entropy(net(data.inputs[batch]), data.targets[batch])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
    return net.eval()


@torch.no_grad()
def is_correct(net: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """Returns whether each example gets its class, (N,)."""
    return net(inputs).argmax(1) == targets


@dataclass(frozen=True)
class Trial:
    """A net, one with its first weights, and examples that it was not trained on."""

    net: Net
    untrained: Net
    data: Examples

    def correct(self, count: int) -> Examples:
        """Returns the first examples that get their class."""
        right = is_correct(self.net, self.data.inputs, self.data.targets)
        return self.data[right.nonzero()[:count, 0]]


def try_out(rank: int, seed: int) -> Trial:
    """Trains a net, and draws 300 other examples."""
    return Trial(train(rank, seed), build(rank, seed), make(rank, 300, 2 * seed + 1))


def explain(net: Net, where: str, data: Examples, name: str) -> Tensor:
    """Returns a method's maps for the classes of the examples, (N, 1, *layer_size)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # SS-CAM draws noise
        attribute = METHODS[name].explain(net, getattr(net, where))
        return attribute(data.inputs, data.targets)


def maps_of_all(
    trial: Trial, where: str, data: Examples, names: Iterable[str]
) -> dict[str, Tensor]:
    """Returns the maps of methods, and what to compare them with."""
    maps = {f"`{name}`": explain(trial.net, where, data, name) for name in names}
    union = explain(trial.net, where, data, "unioncam")
    pattern = F.interpolate(data.masks.float(), union.shape[2:], mode="area")
    return maps | {
        PATTERN: pattern,
        UNTRAINED: explain(trial.untrained, where, data, "unioncam"),
        ANOTHER: union.roll(1, 0),
        CONSTANT: torch.ones_like(union),
    }


def compare(rank: int, names: Sequence[str], seeds: Sequence[int], count: int) -> str:
    """Returns the energy on the pattern, and how often the peak hits it, in Markdown.

    The methods come best first by the last activation. A column has the mean of all
    examples of all nets with its standard error.
    """
    runs: dict[str, dict[str, list[tuple[Tensor, Tensor]]]] = {}
    accuracies = []
    for seed in seeds:
        trial = try_out(rank, seed)
        right = is_correct(trial.net, trial.data.inputs, trial.data.targets)
        accuracies.append(f"{right.float().mean():.1%}")
        data = trial.correct(count)
        for where in LAYERS:
            for label, maps in maps_of_all(trial, where, data, names).items():
                found = runs.setdefault(label, {where: [] for where in LAYERS})
                energy = energy_pointing_game(maps, data.masks)
                found[where].append((energy, pointing_game(maps, data.masks)))

    def rank_of(label: str) -> float:
        return -float(torch.cat([energy for energy, _ in runs[label]["layer"]]).mean())

    methods = sorted((label for label in runs if label not in REFERENCES), key=rank_of)
    lines = [
        f"Rank {rank}, {len(seeds)} nets (seeds {', '.join(map(str, seeds))}), of a "
        f"held-out accuracy of {', '.join(accuracies)}; {count} examples each.",
        "",
        "| map | " + " | ".join(f"{LAYERS[where]} | hits" for where in LAYERS) + " |",
        "| --- |" + " ---: | ---: |" * len(LAYERS),
    ]
    for label in (*methods, *REFERENCES):
        cells = [cell for where in LAYERS for cell in _cells(runs[label][where])]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cells(found: Sequence[tuple[Tensor, Tensor]]) -> tuple[str, str]:
    """Returns the energies and the hits of some nets as cells of a table."""
    energies, hits = (torch.cat(values) for values in zip(*found, strict=True))
    error = energies.std() / len(energies) ** 0.5
    # A map that is the same everywhere has no peak.
    share = "" if hits.isnan().all() else f"{hits.mean():.0%}"
    return f"{energies.mean():.3f} ± {error:.3f}", share


def main() -> None:
    """Prints the tables: all methods on pictures, some on the other ranks."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--ranks", type=int, nargs="+", choices=SIZES, default=[2, 1, 3]
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--count", type=int, default=50, help="examples of each net")
    options = parser.parse_args()
    torch.set_num_threads(1)  # the same sums, whatever the number of cores
    for rank in options.ranks:
        names = list(METHODS) if rank == 2 else SHORT
        print(compare(rank, names, options.seeds, options.count), end="\n\n")


if __name__ == "__main__":
    main()
