"""The whole of ILSVRC in little: 1,000 folders, its devkit, and two processes."""

import json
import os
import subprocess
import sys
import tarfile

import numpy as np
import pytest
from classifiers import SMALL
from folders import voc_objects
from PIL import Image
from torchvision.datasets import imagenet

from captum_unioncam.models import wordnet_ids

DEVKIT = "ILSVRC2012_devkit_t12"
IMAGES = 24
FIELDS = [
    *(("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("gloss", "O")),
    *(("num_children", "O"), ("children", "O")),
]


def ids_in_the_devkit():
    """Returns ILSVRC's number of each class, which is not the order of its folders."""
    order = np.random.default_rng(0).permutation(1000)
    return {wnid: int(order[i]) + 1 for i, wnid in enumerate(wordnet_ids())}


def write_devkit(root, numbers):
    """Writes ILSVRC's development kit: its classes, and the classes of the images."""
    scipy_io = pytest.importorskip("scipy.io")
    folder = root / DEVKIT / "data"
    folder.mkdir(parents=True)
    synsets = np.zeros(1001, FIELDS)
    for place, (wnid, number) in enumerate(sorted(numbers.items(), key=lambda x: x[1])):
        synsets[place] = (number, wnid, f"word of {wnid}, other word", "", 0, [])
    synsets[1000] = (
        1001,
        "n00001740",
        "entity",
        "",
        2,
        [1, 2],
    )  # no class: it has some
    scipy_io.savemat(folder / "meta.mat", {"synsets": synsets})
    truth = "".join(f"{numbers[wnid]}\n" for wnid in wordnet_ids())
    (folder / "ILSVRC2012_validation_ground_truth.txt").write_text(truth)
    with tarfile.open(root / f"{DEVKIT}.tar.gz", "w:gz") as archive:
        archive.add(root / DEVKIT, DEVKIT)


def write_images(root):
    """Writes one image of each class, with a box of its object on the left."""
    boxes = root / "Annotations" / "CLS-LOC" / "val"
    boxes.mkdir(parents=True)
    noise = np.random.default_rng(0)
    for number, wnid in enumerate(wordnet_ids(), 1):
        folder, name = root / "val" / wnid, f"ILSVRC2012_val_{number:08}"
        folder.mkdir(parents=True)
        values = noise.integers(0, 256, (16, 16, 3), np.uint8)
        Image.fromarray(values).save(folder / f"{name}.JPEG")
        (boxes / f"{name}.xml").write_text(voc_objects([(1, 1, 8, 16)], [wnid]))


def test_two_processes_evaluate_a_tree_of_1000_classes(tmp_path, monkeypatch):
    root, output = tmp_path / "imagenet", tmp_path / "out"
    write_devkit(root, ids_in_the_devkit())
    write_images(root)
    # The real archive's digest is known to torchvision, which makes meta.bin of it.
    archives = {**imagenet.ARCHIVE_META, "devkit": (f"{DEVKIT}.tar.gz", None)}
    monkeypatch.setattr(imagenet, "ARCHIVE_META", archives)
    imagenet.parse_devkit_archive(str(root))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node=2", "-m", "captum_unioncam", "evaluate"]
    command += ["--data", f"imagenet:{root}", "--output", str(output)]
    command += ["--model", SMALL, "--weights", "none", "--methods", "gradcam"]
    command += ["--metrics", "drop,energy", "--target", "label", "--boxes", "target"]
    process = subprocess.run(
        [*command, "--num-images", str(IMAGES), "--batch-size", "4"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    report = json.loads((output / "report.json").read_text())
    assert json.loads((output / "config.json").read_text())["files"] == 1000
    for name in ("drop", "energy"):  # random weights make some constant maps
        found = report["results"]["gradcam"][name]
        assert found["n"] + found["nan"] == IMAGES and found["n"] > IMAGES / 2
    files = list(output.glob("rows-*.jsonl"))
    lines = [line for file in files for line in file.read_text().splitlines()]
    rows = [row for row in map(json.loads, lines) if row["method"] == "gradcam"]
    assert len(files) == 2 and len(rows) == IMAGES
    for row in rows:  # the class is the folder's, whatever number the devkit gives it
        assert row["id"].split("/")[1] == wordnet_ids()[row["target"]]
        assert row["metrics"]["energy"] is None or 0 <= row["metrics"]["energy"] <= 1
