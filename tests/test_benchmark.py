"""The benchmark program: the parts that need neither the peers nor a clock."""

import json
import subprocess
import sys
from pathlib import Path

import at_scale
import benchmark
import pytest
import torch
from robustness import METHODS, SITUATIONS, outcome

PROGRAM = Path(benchmark.__file__)


def peak(channels):
    command = [sys.executable, str(PROGRAM), "peak", "--channels", str(channels)]
    return float(subprocess.run(command, capture_output=True, check=True).stdout)


def test_peak_memory_does_not_grow_with_the_channels():
    assert peak(2048) == pytest.approx(peak(64), rel=0.1)


@pytest.mark.parametrize("name", ["efficientnet_lite0", "resnet18", "vgg11"])
def test_a_tapped_model_computes_what_the_model_computes(name):
    from captum_unioncam.models import load_classifier

    tapped = benchmark.build(name, 4, "none")
    torch.manual_seed(0)
    model = load_classifier(name, "none").model
    images = torch.rand(1, 3, 224, 224)
    with torch.no_grad():
        assert torch.allclose(tapped(images), model(images), atol=1e-5)


@pytest.mark.parametrize("what", ["scoring-functions"])
def test_a_missing_folder_of_images_is_refused(what, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmark.py", what, "--images", "no/such"])
    with pytest.raises(SystemExit, match="2"):
        benchmark.main()
    assert f"{what} needs --images, a folder of JPEG" in capsys.readouterr().err


def test_what_to_measure_is_a_model_a_batch_and_a_number_of_channels():
    assert benchmark.parse("resnet18") == ("resnet18", 1, None)
    assert benchmark.parse("resnet18:8") == ("resnet18", 8, None)
    assert benchmark.parse("resnet18:8:16") == ("resnet18", 8, 16)


def test_the_speed_table_takes_ratios_within_a_round():
    def row(what, seconds, bound, peak=None):
        place = {"model": "net", "batch": 1, "active": 3, "total": 4}
        best = {"chunk": 8, "layout": "channels_last"}
        bounds = {"bound_active": bound, "bound_all": bound * 4 / 3}
        run = {"what": what, "seconds": seconds, "precision": "tf32", "peak_gib": peak}
        few = 0.98765 if what == "few" else None
        return {**place, **best, **bounds, **run, "correlation": few}

    rows = [row("UnionCAM", s, s / 1.1) for s in (1.0, 2.0, 5.0)]
    rows += [row("few", s / 2, s / 1.1) for s in (1.0, 2.0, 5.0)]
    rows += [row("peer", 3 * s, s / 1.1, s / 4) for s in (1.0, 2.0, 5.0)]
    lines = benchmark.speed_table(rows).splitlines()
    head = "| net, tf32 | 1 | 3 / 4 |"
    assert lines[2:7] == [
        f"{head} lower bound, active channels (8 x channels_last) | 1.82 | 1.00 "
        "| | | |",
        f"{head} lower bound, all channels | 2.42 | 1.33 | | | |",
        f"{head} UnionCAM | 2.00 | 1.10 | 1.00 |  |  |",
        f"{head} few | 1.00 | 0.55 | 0.50 | 0.9877 |  |",
        f"{head} peer | 6.00 | 3.30 | 3.00 |  | 1.25 |",
    ]
    assert lines[-1] == benchmark.PAPER


@pytest.mark.parametrize("name", ["float32", "tf32", "bfloat16"])
def test_precision_is_restored(name):
    device = torch.device("cpu")
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    with benchmark.precision(name, device):
        product = torch.ones(2, 2) @ torch.ones(2, 2)
        assert torch.backends.cudnn.allow_tf32 == (name == "tf32")
    assert product.dtype == (torch.bfloat16 if name == "bfloat16" else torch.float32)
    after = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    assert after == before


@pytest.mark.parametrize("title", [title for title in METHODS if " " not in title])
@pytest.mark.parametrize("name", SITUATIONS)
def test_our_methods_cope_with_odd_models_as_the_documentation_says(title, name):
    assert outcome(METHODS[title], SITUATIONS[name]) == "right"


def test_the_documentation_has_a_row_for_each_odd_model():
    page = (PROGRAM.parents[1] / "tutorials" / "robustness.md").read_text()
    header = f"| the model, or the call | {' | '.join(METHODS)} |"
    table = page.partition(header)[2].partition("\n\n")[0].splitlines()[2:]
    cells = [row.strip("| ").split(" | ") for row in table]
    assert [row[0] for row in cells] == list(SITUATIONS)
    assert all(row[1:5] == ["right"] * 4 for row in cells)


def test_rows_that_are_made_up_are_reported(tmp_path):
    table = at_scale.storage(tmp_path, 20, 2, 3)
    lines = table.splitlines()
    assert lines[0].startswith("20 images x 2 methods, 3 steps, ")
    assert len(lines) == 2 + 2 + 1 + 4 + 1
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    for name in at_scale.METRICS:
        assert report["results"]["method1"][name]["n"] == 20
