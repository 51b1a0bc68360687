"""Small data sets on disk: messy folders, and VOC."""

import numpy as np
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


def voc_folder(root, boxes, size=(96, 64)):
    """A VOC 2007 test set of one image."""
    base = root / "VOCdevkit" / "VOC2007"
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (base / name).mkdir(parents=True)
    (base / "ImageSets/Main/test.txt").write_text("000001\n")
    picture(size=size).save(base / "JPEGImages/000001.jpg")
    objects = "".join(
        f"<object><name>cat</name><bndbox><xmin>{x0}</xmin><ymin>{y0}</ymin>"
        f"<xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox></object>"
        for x0, y0, x1, y1 in boxes
    )
    content = f"<annotation><folder>VOC2007</folder>{objects}</annotation>"
    (base / "Annotations/000001.xml").write_text(content)
