"""The source distribution and the wheel: they build, and hold what they should.

They are built in a fresh environment, which takes the network: ``.ci/run`` runs this.
"""

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("build")
pytest.importorskip("twine")

ROOT = Path(__file__).parents[1]


def files_of(*folders):
    """Returns the project's files, without what running them leaves behind."""
    paths = [path for folder in folders for path in (ROOT / folder).rglob("*")]
    return {
        path.relative_to(ROOT).as_posix(): path.read_bytes()
        for path in paths
        if path.is_file() and not {"__pycache__", ".jupyter_cache"} & set(path.parts)
    }


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Returns the source distribution and the wheel, which is built from the former."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", ROOT, "--outdir", folder]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    (source,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    return source, wheel


def test_the_wheel_holds_the_package_alone(built):
    with zipfile.ZipFile(built[1]) as wheel:
        contents = {name: wheel.read(name) for name in wheel.namelist()}
    package = files_of("captum_unioncam")
    assert {k: v for k, v in contents.items() if ".dist-info/" not in k} == package
    assert {"captum_unioncam/py.typed", "captum_unioncam/__init__.pyi"} <= set(package)


def test_the_source_holds_the_tests_and_the_documentation(built):
    with tarfile.open(built[0]) as source:
        members = [member for member in source.getmembers() if member.isfile()]
        contents = {
            member.name.partition("/")[2]: source.extractfile(member).read()
            for member in members
        }
    wanted = files_of("captum_unioncam", "tests", "tutorials")
    for name in ("README.md", "LICENSE", "CHANGELOG.md", "constraints.txt"):
        wanted[name] = (ROOT / name).read_bytes()
    assert not {name for name in wanted if contents.get(name) != wanted[name]}


def test_an_index_would_take_both(built):
    command = [sys.executable, "-m", "twine", "check", "--strict", *built]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout
