"""Data sets: what is listed, read, and recorded as unreadable."""

import os

import numpy as np
import pytest
import torch
from folders import messy_folder, picture, voc_folder
from PIL import Image, UnidentifiedImageError
from skimage.data import chelsea
from torchvision import transforms

from captum_unioncam.errors import DataError
from captum_unioncam.evaluation import data
from captum_unioncam.evaluation.data import (
    Images,
    file_digest,
    plain_preprocessing,
    read_image,
    unit_range,
)
from captum_unioncam.evaluation.sources import open_data

PREPROCESS = transforms.Compose(
    [
        transforms.Resize(64),
        transforms.CenterCrop(64),
        transforms.ToTensor(),
        transforms.Normalize([0.5] * 3, [0.25] * 3),
    ]
)


def test_every_file_of_a_messy_folder_is_an_image_or_a_reason(tmp_path):
    broken = messy_folder(tmp_path)
    images = Images(open_data(f"imagefolder:{tmp_path}"), PREPROCESS)
    items = [images[i] for i in range(len(images))]
    assert [item.index for item in items] == list(range(8))
    assert sorted(item.name for item in items if item.error) == broken
    for item in items:
        if item.error:
            assert item.inputs is None and "cannot be read as an image" in item.error
            assert item.error.startswith("the file cannot be read as an image (")
            assert str(tmp_path) not in item.error
        else:
            assert item.inputs.shape == (3, 64, 64) and item.label is None


def test_folders_are_classes(tmp_path):
    for name in ("tabby", "tiger cat"):
        (tmp_path / name).mkdir()
        picture().save(tmp_path / name / "one.png")
    entries = open_data(f"imagefolder:{tmp_path}")
    assert [(e.name, e.label) for e in entries] == [
        ("tabby/one.png", "tabby"),
        ("tiger cat/one.png", "tiger cat"),
    ]


def test_hidden_folders_do_not_count(tmp_path):
    (tmp_path / ".cache").mkdir()
    picture().save(tmp_path / "one.png")
    assert [e.name for e in open_data(f"imagefolder:{tmp_path}")] == ["one.png"]
    for name in ("tabby", "tabby/deep"):
        (tmp_path / name).mkdir()
    (tmp_path / "one.png").rename(tmp_path / "tabby/deep/one.png")
    picture().save(tmp_path / ".cache" / "two.png")
    (entry,) = open_data(f"imagefolder:{tmp_path}")
    assert (entry.name, entry.label) == ("tabby/deep/one.png", "tabby")


def test_images_beside_folders_are_not_dropped_in_silence(tmp_path):
    (tmp_path / "results").mkdir()
    picture().save(tmp_path / "one.png")
    with pytest.raises(DataError, match="holds images and folders; give a folder of"):
        open_data(f"imagefolder:{tmp_path}")


def test_imagenet_is_in_torchvisions_layout(tmp_path):
    wnids = {"n01": ("tench", "Tinca tinca"), "n02": ("goldfish",)}
    torch.save((wnids, []), tmp_path / "meta.bin")
    for wnid in wnids:
        (tmp_path / "val" / wnid).mkdir(parents=True)
        picture().save(tmp_path / "val" / wnid / "image.JPEG")
    entries = open_data(f"imagenet:{tmp_path}")
    assert [(e.name, e.label) for e in entries] == [
        ("val/n01/image.JPEG", "n01"),
        ("val/n02/image.JPEG", "n02"),
    ]


def test_boxes_of_voc_go_through_the_models_transforms(tmp_path):
    # 96 x 64 is cropped by 16 on the left and on the right. VOC counts from 1 and
    # includes both ends: the first box is x 20..39, y 10..29; the second is cut off.
    voc_folder(tmp_path, [(21, 11, 40, 30), (1, 1, 20, 64)])
    (entry,) = entries = open_data(f"voc2007:{tmp_path}")
    assert entry.name == "000001.jpg" and entry.label is None
    item = Images(entries, PREPROCESS)[0]
    assert item.error is None and item.masks.shape == (2, 64, 64)
    expected = torch.zeros(2, 64, 64, dtype=torch.bool)
    expected[0, 10:30, 4:24] = True
    expected[1, :, :4] = True
    assert torch.equal(item.masks, expected)


def test_an_image_without_boxes_has_none(tmp_path):
    voc_folder(tmp_path, [])
    item = Images(open_data(f"voc2007:{tmp_path}"), PREPROCESS)[0]
    assert item.error is None and item.masks.shape == (0, 64, 64)


# The reasons of failures


def deep(folder):
    """Returns a folder whose path is longer than any reason."""
    for _ in range(3):
        folder /= "d" * 100
    folder.mkdir(parents=True)
    return folder


def reasons_of(folder, preprocess=PREPROCESS):
    images = Images(open_data(f"imagefolder:{folder}"), preprocess)
    return {images[i].name: images[i].error for i in range(len(images))}


def test_reasons_are_whole_though_the_path_is_long(tmp_path):
    folder = deep(tmp_path)
    messy_folder(folder)
    Image.new("1", (20000, 1)).save(folder / "long.png")
    (folder / "gone.png").symlink_to(folder / "nowhere.png")
    whole = (folder / "whole.jpg").read_bytes()
    reasons = {k: v for k, v in reasons_of(folder).items() if v is not None}
    assert (folder / "whole.jpg").read_bytes() == whole
    unknown = (
        "the file cannot be read as an image (in no format that Pillow knows); give a "
        "whole JPEG or PNG file"
    )
    truncated = reasons.pop("truncated.jpg")
    assert truncated.startswith("the file cannot be read as an image (image file is tr")
    assert truncated.endswith("give a whole JPEG or PNG file")
    assert reasons == {
        "empty.png": unknown,
        "text.jpg": unknown,
        "long.png": "the file is 20000 x 1 pixels; crop it to an aspect ratio of at "
        "most 50",
    }


def test_an_image_that_is_gone_or_no_file_is_a_reason(tmp_path):
    folder = deep(tmp_path)
    for name in ("gone.png", "pipe.png"):
        picture().save(folder / name)
    images = Images(open_data(f"imagefolder:{folder}"), PREPROCESS)
    (folder / "gone.png").unlink()
    (folder / "pipe.png").unlink()
    os.mkfifo(folder / "pipe.png")  # which would be waited for
    assert images[0].error == (
        "the file cannot be read as an image (No such file or directory)"
    )
    assert images[1].error == (
        "the file cannot be read as an image (it is no file, but a device or a folder)"
    )


def test_a_giant_file_is_not_read(tmp_path):
    with (tmp_path / "giant.png").open("wb") as file:
        file.truncate(data.LARGEST_FILE + 1)  # which takes no space
    (reason,) = reasons_of(tmp_path).values()
    assert reason == (
        "the file cannot be read as an image (it has 2,147,483,649 bytes)"
    )


def test_an_error_of_the_transforms_is_a_reason(tmp_path):
    picture().save(tmp_path / "one.png")

    def broken(image):
        raise KeyError("mean")

    assert reasons_of(tmp_path, broken) == {"one.png": "KeyError: 'mean'"}


def test_the_cause_of_a_broken_image_is_kept(tmp_path):
    (tmp_path / "text.jpg").write_text("I am not an image")
    for path, kind in [("text.jpg", UnidentifiedImageError), ("gone", OSError)]:
        with pytest.raises(DataError, match=f"{path} cannot be read as an") as raised:
            read_image(str(tmp_path / path))
        causes = [raised.value.__cause__]
        while causes[-1].__cause__ is not None:
            causes.append(causes[-1].__cause__)
        assert isinstance(causes[-1], kind)


def test_the_digest_of_a_file_is_of_its_size_and_content():
    digests = [
        file_digest(b"image"),
        file_digest(b"imagf"),
        file_digest(b"imag"),
        file_digest(b"image", b"boxes"),
        file_digest(b"image", b"other"),
        file_digest(b"imag", b"eboxes"),
    ]
    assert len(set(digests)) == len(digests)
    assert file_digest(b"image", b"") == file_digest(b"image")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("coco:{}", "must be one of .* coco:IMAGES,ANNOTATIONS, got 'coco:"),
        ("coco:{},", "must be one of"),
        ("coco:,{}", "must be one of"),
        ("coco:{}/none,x.json", "there is no folder"),
        ("coco:{},x.json", "there is no file of annotations 'x.json'"),
        ("imagefolder", "must be one of imagefolder:DIR, imagenet:DIR, voc2007:DIR"),
        ("folder:.", "must be one of .* got 'folder:.'"),
        ("imagefolder:", "must be one of"),
        ("imagefolder:{}/none", "there is no folder"),
        ("imagefolder:{}", "there is no image .*.jpg"),
        ("imagenet:{}", "cannot be read"),
        ("voc2007:{}", "cannot be read"),
    ],
)
def test_refuses_what_is_no_data_set(tmp_path, spec, message):
    with pytest.raises(DataError, match=message):
        open_data(spec.format(tmp_path))


@pytest.mark.parametrize("keep", [0, 20, 3000])
@pytest.mark.parametrize("format", ["png", "jpeg"])
def test_a_broken_image_is_refused(tmp_path, format, keep):
    path = tmp_path / f"broken.{format}"
    Image.fromarray(chelsea()).save(path, format=format)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match="cannot be read as an image"):
        read_image(str(path))


def test_a_very_long_image_is_refused(tmp_path):
    Image.new("1", (20000, 1)).save(tmp_path / "long.png")
    with pytest.raises(DataError, match="is 20000 x 1 pixels; crop it to an aspect"):
        read_image(str(tmp_path / "long.png"))


@pytest.mark.parametrize("mode", ["F", "I"])
def test_an_image_of_no_known_range_is_refused(tmp_path, mode):
    Image.new(mode, (9, 9)).save(tmp_path / "image.tif")
    with pytest.raises(DataError, match="it has 32 bits a pixel"):
        read_image(str(tmp_path / "image.tif"))


def test_transparency_shows_black(tmp_path):
    Image.new("RGBA", (9, 9), (200, 100, 50, 51)).save(tmp_path / "glass.png")
    image = read_image(str(tmp_path / "glass.png"))
    assert image.getpixel((4, 4)) == (40, 20, 10)


@pytest.mark.parametrize("mode", ["L", "RGBA", "CMYK", "P", "1", "I;16", "I;16B"])
def test_every_kind_of_image_is_read_as_rgb(tmp_path, mode):
    original = Image.fromarray(chelsea())
    if mode.startswith("I;16"):
        grey = np.asarray(original.convert("L")).astype(np.uint16) * 256
        if mode == "I;16B":
            grey = grey.astype(">u2")
        stored = Image.frombytes(mode, original.size, grey.tobytes())
    else:
        stored = original.convert(mode)
    path = tmp_path / ("image.tif" if mode in ("CMYK", "I;16B") else "image.png")
    stored.save(path)
    image = read_image(str(path))
    assert (image.mode, image.size) == ("RGB", (451, 300))
    # A grey copy keeps the brightness; only the two-valued one is far from it.
    error = np.abs(
        np.asarray(image.convert("L"), float) - np.asarray(original.convert("L"), float)
    ).mean()
    assert error < (128 if mode == "1" else 12)


def test_an_image_is_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned by 90 degrees
    Image.new("RGB", (40, 20)).save(tmp_path / "turned.jpg", exif=exif)
    assert read_image(str(tmp_path / "turned.jpg")).size == (20, 40)


def test_the_papers_preprocessing_has_no_mean_and_std():
    white = unit_range(224)(Image.new("RGB", (50, 90), "white"))
    assert white.shape == (3, 224, 224) and (white == 1).all()


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_plain_images_are_between_black_and_white_in_any_number_of_channels(channels):
    black, white = torch.full((channels,), -2.0), torch.arange(float(channels))
    preprocess = plain_preprocessing((channels, 5, 7), black, white, torch.float64)
    for colour, expected in (("black", black), ("white", white)):
        shown = preprocess(Image.new("RGB", (30, 30), colour))
        assert shown.shape == (channels, 5, 7) and shown.dtype == torch.float64
        assert torch.equal(shown, expected.double().view(-1, 1, 1).expand(shown.shape))
    if channels == 3:  # colours stay
        red = preprocess(Image.new("RGB", (30, 30), (255, 0, 0)))[:, 0, 0]
        assert red.tolist() == [0, -2, -2]
