"""``captum-unioncam explain``: pictures of the maps of images, and their scores."""

import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from PIL import Image
from tqdm import tqdm

from captum_unioncam._explaining import parsed_methods
from captum_unioncam.cli.arrays import MapFile
from captum_unioncam.cli.explaining import (
    ClassExplanation,
    Setup,
    explain_classes,
    image_reports,
    picture_content,
)
from captum_unioncam.cli.files import check_files, write_file, write_picture
from captum_unioncam.cli.images import Source, find_sources
from captum_unioncam.cli.listing import listing
from captum_unioncam.cli.options import ExplainOptions
from captum_unioncam.cli.terminal import Outcome
from captum_unioncam.cli.text import outcome
from captum_unioncam.errors import DataError, UserError
from captum_unioncam.models import load_classifier, resolve_device
from captum_unioncam.visualization import map_style

Report = dict[str, Any]


class Explained(NamedTuple):
    """Images that were explained together."""

    sources: Sequence[Source]
    classes: Sequence[ClassExplanation]
    seconds: float  # for each image


def run(given: dict[str, Any], line: str) -> Outcome:
    """Explains images, writes the pictures and the numbers, and returns the result."""
    options = ExplainOptions(**given)
    if options.list_models is not None or options.list_layers:
        return listing(options)
    _check(options)
    sources, into_folder = find_sources(options)
    check_files(options, sources, into_folder)
    maps = None if options.maps is None else MapFile()
    if into_folder:
        reports = _explain_all(_load(options), sources, maps)
    else:
        reports = _explain_one(options, sources[0], maps)
    if options.maps is not None and maps is not None:
        write_file(options.maps, maps.content())
    return outcome(options, reports, into_folder)


def _check(options: ExplainOptions) -> None:
    """Refuses options that do not go together, before anything is loaded."""
    methods = () if options.methods is None else parsed_methods(options.methods)
    if options.target is not None and options.top_k > 1:
        raise UserError("`top_k` and --target exclude each other; give one of them")
    if options.overlay_only and (len(methods) > 1 or options.top_k > 1):
        raise UserError("`overlay_only` shows one map; give one method, and no --top-k")
    try:
        map_style(options.colormap, options.alpha)
    except ValueError as error:
        raise UserError(f"{error}") from error


def _load(options: ExplainOptions) -> Setup:
    """Loads the model, and finds the layer."""
    device = resolve_device(options.device)
    classifier = load_classifier(options.model, options.weights, **options.metadata)
    layer_name = options.layer or classifier.default_layer
    layer = classifier.layer(layer_name)
    reshape_transform = classifier.reshape_transform(layer_name)
    classifier.model.to(device)
    methods = None if options.methods is None else list(parsed_methods(options.methods))
    return Setup(options, classifier, layer, layer_name, reshape_transform, methods)


def _explain_one(
    options: ExplainOptions, source: Source, maps: MapFile | None
) -> list[Report]:
    """Explains an image; what goes wrong with it is an error of the command."""
    image, started = source.read(), time.perf_counter()
    setup = _load(options)
    classes = explain_classes(setup, [image], sys.stderr is not None)
    found = Explained([source], classes, time.perf_counter() - started)
    return _written(setup, found, maps)


def _explain_all(
    setup: Setup, sources: Sequence[Source], maps: MapFile | None
) -> list[Report]:
    """Explains images in batches; one that fails becomes a report of its error.

    Pictures are written as they come.
    """
    reports: dict[Source, Report] = {}
    size = setup.options.batch_size
    with tqdm(
        desc="images", total=len(sources), disable=sys.stderr is None
    ) as progress:
        for start in range(0, len(sources), size):
            batch = sources[start : start + size]
            for found in _explained(setup, batch, reports):
                done = _written(setup, found, maps)
                reports.update(zip(found.sources, done, strict=True))
            progress.update(len(batch))
    return [reports[source] for source in sources]


def _explained(
    setup: Setup, batch: Sequence[Source], failures: dict[Source, Report]
) -> Iterator[Explained]:
    """Yields images that were explained together; where they fail, each alone."""
    read: list[tuple[Source, Image.Image]] = []
    for source in batch:
        try:
            read.append((source, source.read()))
        except DataError as error:
            failures[source] = {"image": source.name, "error": f"{error}"}
    groups = [read] if read else []
    while groups:
        group = groups.pop(0)
        started = time.perf_counter()
        try:
            classes = explain_classes(setup, [image for _, image in group], False)
        except DataError as error:
            if len(group) > 1:
                groups += [[one] for one in group]
            else:
                ((source, _),) = group
                failures[source] = {"image": source.name, "error": f"{error}"}
        else:
            seconds = (time.perf_counter() - started) / len(group)
            yield Explained([source for source, _ in group], classes, seconds)


def _written(setup: Setup, found: Explained, maps: MapFile | None) -> list[Report]:
    """Writes the picture of each image, and returns the reports."""
    options, reports = setup.options, []
    if maps is not None:
        names = [source.name for source in found.sources]
        maps.add(names, [one.explanation for one in found.classes])
    described = image_reports(found.classes)
    for index, (source, what) in enumerate(zip(found.sources, described, strict=True)):
        content = picture_content(setup, found.classes, index, source.picture)
        write_picture(source.picture, content)
        reports.append(
            {
                "image": source.name,
                "model": options.model,
                "weights": options.weights,
                "layer": setup.layer_name,
                "theta": options.theta,
                "score": options.score,
                **what,
                "seconds": found.seconds,
                "picture": source.picture,
            }
        )
    return reports
