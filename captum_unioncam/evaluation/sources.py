"""Data sets by name: folders, ImageNet, VOC 2007 and COCO, as lists of their images."""

import contextlib
import io
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torchvision import datasets
from torchvision.datasets.folder import IMG_EXTENSIONS, has_file_allowed_extension

from captum_unioncam.errors import DataError, one_line
from captum_unioncam.evaluation.annotations import coco_object
from captum_unioncam.evaluation.data import Entry

# Where ILSVRC's archives of boxes put them, and where folders for each class do.
ILSVRC_BOXES = "Annotations/CLS-LOC"
ILSVRC_PLACES = ("val/{stem}.xml", "val/{wnid}/{stem}.xml", "train/{wnid}/{stem}.xml")


def open_data(spec: str) -> list[Entry]:
    """Lists the images of a data set, in a fixed order.

    Args:
        spec (str): ``imagefolder:DIR``, a folder of images, or of one folder for each
            class; ``imagenet:DIR``, the validation images in torchvision's layout, with
            ILSVRC's boxes if they are in ``DIR/Annotations/CLS-LOC``; ``voc2007:DIR``,
            the test images with boxes in torchvision's layout;
            ``coco:IMAGES,ANNOTATIONS``, a folder of images and COCO's file of their
            instances, in JSON.

    Raises:
        DataError: If there is no such data set, or no image in it.
    """
    kind, _, place = spec.partition(":")
    paths = _folder_and_file(place) if kind == "coco" else [place]
    if kind not in SOURCES or not all(paths):
        known = ", ".join(f"{name}:{source.form}" for name, source in SOURCES.items())
        raise DataError(f"`data` must be one of {known}, got {spec!r}")
    folder, *files = paths
    if not Path(folder).is_dir():
        raise DataError(f"`data`: there is no folder {folder!r}")
    try:
        entries = SOURCES[kind].entries(Path(folder), *files)
    except (OSError, RuntimeError) as error:
        raise DataError(f"`data`: {spec} cannot be read ({one_line(error)})") from error
    if not entries:
        extensions = ", ".join(IMG_EXTENSIONS)
        raise DataError(f"`data`: there is no image ({extensions}) in {folder!r}")
    return entries


def _folder_and_file(place: str) -> list[str]:
    """Returns the two paths around a comma: both may have commas in their names."""
    pairs = [[place[:i], place[i + 1 :]] for i, c in enumerate(place) if c == ","]
    there = [
        pair for pair in pairs if Path(pair[0]).is_dir() and Path(pair[1]).is_file()
    ]
    return (there or pairs or [["", ""]])[-1]


def _image_folder(root: Path) -> list[Entry]:
    """Images of one folder, which have no label, or of a folder for each class.

    Hidden folders, and files that are no images by their names, are left out.
    """
    shown = [path for path in root.iterdir() if not path.name.startswith(".")]
    files = sorted(
        path
        for path in shown
        if path.is_file() and has_file_allowed_extension(path.name, IMG_EXTENSIONS)
    )
    if not any(path.is_dir() for path in shown):
        return [Entry(path.name, str(path)) for path in files]
    if files:
        raise DataError(
            f"`data`: {str(root)!r} holds images and folders; give a folder of images, "
            "or of one folder for each class (with the output elsewhere)"
        )
    folders = datasets.ImageFolder(str(root), allow_empty=True)
    return [
        Entry(Path(path).relative_to(root).as_posix(), path, folders.classes[label])
        for path, label in folders.samples
        if not folders.classes[label].startswith(".")
    ]


def _imagenet(root: Path) -> list[Entry]:
    data = datasets.ImageNet(str(root), split="val")
    # By WordNet ids: where folders are missing, the numbers are not the model's.
    return [
        Entry(
            Path(path).relative_to(root).as_posix(),
            path,
            data.wnids[label],
            _ilsvrc_annotation(root, data.wnids[label], Path(path).stem),
        )
        for path, label in data.samples
    ]


def _ilsvrc_annotation(root: Path, wnid: str, stem: str) -> str | None:
    """Returns the file of an image's boxes, if there is one."""
    for place in ILSVRC_PLACES:
        path = os.path.join(root, ILSVRC_BOXES, place.format(wnid=wnid, stem=stem))
        if os.path.exists(path):
            return path
    return None


def _voc2007(root: Path) -> list[Entry]:
    data = datasets.VOCDetection(str(root), year="2007", image_set="test")
    return [
        Entry(Path(image).name, image, annotation=annotation)
        for image, annotation in zip(data.images, data.annotations, strict=True)
    ]


def _coco(root: Path, file: str) -> list[Entry]:
    """Images of COCO by their ids, with the boxes of objects, but not of crowds."""
    coco = _read_coco(root, file)
    try:
        entries = [_coco_entry(coco, root, number) for number in sorted(coco.imgs)]
    except DataError as error:
        raise DataError(f"`data`: {file!r}: {error}") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise _no_coco(file, error) from error
    _check_names(entries)
    return entries


def _coco_entry(coco: Any, root: Path, number: Any) -> Entry:
    """Returns an image of COCO; one without objects has no boxes, but could have."""
    name = f"{coco.imgs[number]['file_name']}"
    try:
        objects = tuple(
            coco_object(record, f"{coco.cats[record['category_id']]['name']}")
            for record in coco.imgToAnns.get(number, [])
            if not record.get("iscrowd")
        )
    except DataError as error:
        raise DataError(f"{name}: {error}") from error
    return Entry(name, str(root / name), objects=objects)


def _read_coco(root: Path, file: str) -> Any:
    if not Path(file).is_file():
        raise DataError(f"`data`: there is no file of annotations {file!r}")
    try:
        import pycocotools  # noqa: F401
    except ImportError as error:
        raise DataError(
            '`data`: coco needs pycocotools; run `pip install "captum-unioncam[coco]"`'
        ) from error
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # it tells of its progress
            return datasets.CocoDetection(str(root), file).coco
    # It checks nothing, so that a wrong file may raise anything.
    except Exception as error:
        raise _no_coco(file, error) from error


def _no_coco(file: str, error: Exception) -> DataError:
    reason = f"{type(error).__name__}: {one_line(error)}"
    return DataError(
        f"`data`: {file!r} does not hold COCO's instances ({reason}); give its "
        "instances_*.json, with images, annotations and categories"
    )


def _check_names(entries: Sequence[Entry]) -> None:
    """Refuses two images of one name, which tells their rows apart."""
    names: set[str] = set()
    for entry in entries:
        if entry.name in names:
            raise DataError(f"`data`: {entry.name} is there twice; give it one id")
        names.add(entry.name)


class Source(NamedTuple):
    """A kind of data set: what follows its name, and what lists its images."""

    form: str
    entries: Callable[..., list[Entry]]


SOURCES = {
    "imagefolder": Source("DIR", _image_folder),
    "imagenet": Source("DIR", _imagenet),
    "voc2007": Source("DIR", _voc2007),
    "coco": Source("IMAGES,ANNOTATIONS", _coco),
}
