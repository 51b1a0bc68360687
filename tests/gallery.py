"""The gallery of the documentation: every method on four photographs. Not a test.

``python tests/gallery.py`` writes ``tutorials/gallery_*.jpg``; some ten minutes on two
cores, most of it SS-CAM and RISE. The photographs come with scikit-image.
"""

import argparse
from pathlib import Path

from PIL import Image
from skimage import data

from captum_unioncam import explain
from captum_unioncam.models import load_classifier

FOLDER = Path(__file__).parents[1] / "tutorials"
PHOTOGRAPHS = ("coffee", "chelsea", "camera", "rocket")

# A figure each. What looks at no model is left out.
GROUPS = {
    "unions": ("unioncam", "denoisedgradcam", "regioncam", "fusioncam"),
    "gradients": ("gradcam", "gradcamplusplus", "xgradcam", "hirescam"),
    "positions": (
        *("layercam", "smoothgradcamplusplus"),
        *("integratedgradcam", "augmentedgradcam"),
    ),
    "masks": ("scorecam", "sscam", "iscam", "groupcam"),
    "changes": ("ablationcam", "fdcam", "reciprocam", "rise"),
    "components": ("cam", "eigencam", "eigengradcam"),
    "captum": ("occlusion", "integratedgradients", "guidedgradcam"),
}
DPI, QUALITY = 56, 88


def photographs() -> list[Image.Image]:
    """Returns the photographs in colour; the camera's is grey."""
    return [
        Image.fromarray(getattr(data, name)()).convert("RGB") for name in PHOTOGRAPHS
    ]


def save_group(name: str, methods: tuple[str, ...], folder: Path) -> Path:
    """Explains the predicted class of each photograph, and writes the figure."""
    classifier = load_classifier()
    explanation = explain(
        classifier.model,
        photographs(),
        methods=methods,
        layer=classifier.default_layer,
        preprocess=classifier.preprocess,
        categories=classifier.categories,
        show_progress=True,
    )
    path = folder / f"gallery_{name}.jpg"
    explanation.figure().savefig(path, dpi=DPI, pil_kwargs={"quality": QUALITY})
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("groups", nargs="*", metavar="group", help=", ".join(GROUPS))
    parser.add_argument("--folder", type=Path, default=FOLDER)
    options = parser.parse_args()
    unknown = set(options.groups) - set(GROUPS)
    if unknown:
        parser.error(f"groups must be of {', '.join(GROUPS)}, got {sorted(unknown)}")
    for name in options.groups or GROUPS:
        print(save_group(name, GROUPS[name], options.folder))


if __name__ == "__main__":
    main()
