"""Fixtures of evaluations: images, and what makes a run fast."""

import pytest
from classifiers import tiny_classifier
from folders import crops_folder
from reports import PNG

from captum_unioncam.evaluation import runner, sections, task


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    """A folder of five crops of the photograph."""
    folder = tmp_path_factory.mktemp("images")
    crops_folder(folder)
    return folder


@pytest.fixture(scope="module")
def tiny_model():
    """A tiny classifier in place of any model that an evaluation names."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(task, "load_classifier", tiny_classifier)
        yield


@pytest.fixture(scope="module")
def no_pictures():
    """Leaves the pictures out, which take longer than a tiny model's images."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "make_gallery", lambda *_: [])
        for name in ("bars_figure", "curves_figure"):
            patch.setattr(sections, name, lambda *_: None)
        patch.setattr(sections, "png_of", lambda _: PNG)
        yield
