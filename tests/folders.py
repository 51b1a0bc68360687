"""Small data sets on disk: messy folders, VOC, ImageNet and COCO."""

import json

import numpy as np
import torch
from PIL import Image
from skimage.data import chelsea


def picture(mode="RGB", size=(90, 60)):
    return Image.fromarray(chelsea()).resize(size).convert(mode)


def crop(left):
    """Returns a part of the photograph."""
    return Image.fromarray(chelsea()).crop((left, 0, 300 + left, 300))


def crops_folder(folder):
    """Five images that a model tells apart."""
    for i in range(5):
        crop(20 * i).save(folder / f"{i}.png")


def messy_folder(folder):
    """Every kind of file that a folder of images may hold."""
    folder.mkdir(exist_ok=True)
    picture("CMYK").save(folder / "cmyk.jpg")
    picture("L").save(folder / "grey.png")
    picture("RGBA").save(folder / "rgba.png")
    grey = np.asarray(picture("L")).astype(np.uint16) * 256
    Image.fromarray(grey).save(folder / "sixteen.png")
    picture(size=(400, 300)).save(folder / "whole.jpg")
    content = (folder / "whole.jpg").read_bytes()
    (folder / "truncated.jpg").write_bytes(content[: len(content) // 2])
    (folder / "text.jpg").write_text("I am not an image")
    (folder / "empty.png").write_bytes(b"")
    (folder / "notes.txt").write_text("ignored")
    return ["empty.png", "text.jpg", "truncated.jpg"]


def voc_objects(boxes, names=()):
    """An annotation in Pascal VOC's format; objects are cats where no name is given."""
    names = [*names, *["cat"] * (len(boxes) - len(names))]
    objects = "".join(
        f"<object><name>{name}</name><bndbox><xmin>{x0}</xmin><ymin>{y0}</ymin>"
        f"<xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox></object>"
        for name, (x0, y0, x1, y1) in zip(names, boxes, strict=True)
    )
    return f"<annotation><folder>VOC2007</folder>{objects}</annotation>"


def voc_folder(root, boxes, names=(), size=(96, 64)):
    """A VOC 2007 test set of one image."""
    base = root / "VOCdevkit" / "VOC2007"
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (base / name).mkdir(parents=True)
    (base / "ImageSets/Main/test.txt").write_text("000001\n")
    picture(size=size).save(base / "JPEGImages/000001.jpg")
    (base / "Annotations/000001.xml").write_text(voc_objects(boxes, names))


def imagenet_folder(root, wnids, images, size=(96, 64)):
    """ILSVRC's validation images in torchvision's layout: so many of each class."""
    root.mkdir(exist_ok=True)
    torch.save(({wnid: (wnid,) for wnid in wnids}, []), root / "meta.bin")
    for number, wnid in enumerate(wnids):
        folder = root / "val" / wnid
        folder.mkdir(parents=True)
        for i in range(number * images, (number + 1) * images):
            picture(size=size).save(folder / f"ILSVRC2012_val_{i + 1:08}.JPEG")


def coco_folder(root, boxes, size=(96, 64)):
    """Two images of COCO, of which the first has boxes: x, y, width, height by name."""
    (root / "images").mkdir(parents=True)
    names = list(dict.fromkeys(name for name, _ in boxes))
    for number in (7, 12):
        picture(size=size).save(root / "images" / f"{number:012}.jpg")
    instances = {
        "images": [{"id": n, "file_name": f"{n:012}.jpg"} for n in (12, 7)],
        "categories": [{"id": 90 - i, "name": name} for i, name in enumerate(names)],
        "annotations": [
            {
                "id": i,
                "image_id": 7,
                "category_id": 90 - names.index(name),
                "bbox": box,
                "iscrowd": 0,
            }
            for i, (name, box) in enumerate(boxes)
        ],
    }
    (root / "instances.json").write_text(json.dumps(instances))
    return instances
