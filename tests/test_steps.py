"""The program that measures how few steps are enough: what it compares."""

import sys

import pytest
import steps
import torch
from torch import nn

from captum_unioncam.metrics import deletion, insertion


@pytest.mark.parametrize("metric", [insertion, deletion])
@pytest.mark.parametrize("fewer", steps.FEWER)
def test_every_so_many_points_are_the_curve_of_fewer_steps(metric, fewer):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(13 * 17, 3))
    images, maps = torch.rand(2, 1, 13, 17), torch.rand(2, 1, 5, 5)
    given = (net, images, maps, [0, 2])
    _, many = metric(*given, steps=steps.MANY, return_curve=True)
    area, few = metric(*given, steps=fewer, return_curve=True)
    torch.testing.assert_close(steps.coarser(many, fewer), few)
    torch.testing.assert_close(steps.area_under(few), area)


def test_deviations_by_hand():
    # Curves of four steps, and of two: the line has an area of 0.5 by both, and
    line, late, early = (
        [0, 0.25, 0.5, 0.75, 1],
        [0, 0, 0.25, 0.25, 1],
        [0, 1, 0.75, 1, 1],
    )
    curves = torch.tensor([[line, late], [line, early]], dtype=torch.float64)
    # late: (2 * 0.5 + 1) / 8 = 0.25, and (2 * 0.25 + 1) / 4 = 0.375;
    # early: (2 * 2.75 + 1) / 8 = 0.8125, and (2 * 0.75 + 1) / 4 = 0.625.
    assert steps.deviations(curves, 2) == pytest.approx(
        {
            "mean": (0.125 + 0.1875) / 4,
            "largest": 0.1875,
            "of a mean": 0.1875 / 2,
            "between methods": (0.125 + 0.1875) / 2,
        }
    )
    assert steps.deviations(curves[:1], 4)["between methods"] == 0


def test_the_table_has_a_row_for_each_metric_and_number():
    curves = {name: torch.rand(2, 3, 101) for name in ("insertion", "deletion")}
    header, rule, *rows = steps.table(curves).splitlines()
    assert len(rows) == 2 * len(steps.FEWER)
    assert rows[0].startswith("| insertion | 50 | 0.0")


def test_a_folder_without_images_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["steps.py", str(tmp_path)])
    with pytest.raises(SystemExit, match="2"):
        steps.main()
    assert "there is no JPEG file" in capsys.readouterr().err
