"""IntegratedGradCAM: its sums by hand, its path, and Grad-CAM where they agree."""

import pytest
import torch
from captum.attr import IntegratedGradients
from nets import Case, Counted, ThreeInputs, Weighed, earlier, example
from torch import nn

from captum_unioncam import GradCAM, IntegratedGradCAM

METHODS = (
    "riemann_left",
    "riemann_right",
    "riemann_middle",
    "riemann_trapezoid",
    "gausslegendre",
)


class Squares(nn.Module):
    """The sum of the squared means of the channels, under signs; it is its layer."""

    def __init__(self, *signs):
        super().__init__()
        self.layer, self.signs = nn.Identity(), torch.tensor(signs).double()
        self.seen = []

    def forward(self, image):
        self.seen.append(image.detach().clone())
        means = self.layer(image.double()).flatten(2).mean(2)  # (N, K)
        return (self.signs * means.square()).sum(1)[:, None]


def explain(net, inputs, **options):
    """The map of the only example, as a list."""
    maps = IntegratedGradCAM(net, net.layer).attribute(inputs, **options)
    return maps[0, 0].flatten().tolist()


# The weights at a * A are 2 * 2.5 a / 4 = 1.25 a, and -2 * 1.5 a / 4 = -.75 a: the map
# is a^2 ReLU(1.25 A_1 - .75 A_2) = a^2 [0 2.5; 3.75 3.5].
@pytest.mark.parametrize(
    "method, steps, squares",
    [
        ("riemann_left", 4, (0 + 1 / 16 + 4 / 16 + 9 / 16) / 4),
        ("riemann_right", 4, (1 / 16 + 4 / 16 + 9 / 16 + 1) / 4),
        ("riemann_middle", 4, (1 + 9 + 25 + 49) / 64 / 4),
        ("riemann_trapezoid", 5, (0 / 2 + 1 / 16 + 4 / 16 + 9 / 16 + 1 / 2) / 5),
        ("gausslegendre", 2, 1 / 3),  # which is exact for squares
    ],
)
@pytest.mark.parametrize("relative", [False, True])  # at the baseline A is 0
def test_hand_worked_example(method, steps, squares, relative):
    inputs = example([[1, 2], [3, 4]], [[4, 0], [0, 2]])
    options = {"n_steps": steps, "method": method, "relative": relative}
    actual = explain(Squares(1, -1), inputs, **options)
    expected = [0, 2.5 * squares, 3.75 * squares, 3.5 * squares]
    assert actual == pytest.approx(expected, abs=1e-12)
    if method == "riemann_left":
        assert actual == pytest.approx([0, 0.546875, 0.8203125, 0.765625])


def test_the_authors_rectify_each_step_and_the_paper_the_sum_of_what_changed():
    # From -1 to [3 -1] in four steps, x = [-1 + 4a, -1] with the mean -1 + 2a, which is
    # the weight: -1/2, 0, 1/2 and 1. Authors: ReLU of -1/2 [0 -1], 0, 1/2 [2 -1] and [3
    # -1], [0 .5] + [1 0] + [3 0] = [4 .5]. Paper: [4a, 0] is what changed, and -1/2 [1
    # 0] + 1/2 [3 0] + [4 0] = [5 0].
    options = {"baselines": -1, "n_steps": 4, "method": "riemann_right"}
    inputs = example([3, -1])
    assert explain(Squares(1), inputs, **options) == [4 / 4, 0.5 / 4]
    assert explain(Squares(1), inputs, **options, relative=True) == [5 / 4, 0]


def test_the_paper_shows_no_negative_sum():
    # As above with the weights -1, -1/2, 0 and 1/2: (-1/2 * 1 + 1/2 * 3) / 4 = 1/4. Of
    # the other sign nothing is left.
    options = {"baselines": -1, "n_steps": 4, "relative": True}
    assert explain(Squares(1), example([3, -1]), **options) == [1 / 4, 0]
    with pytest.warns(UserWarning, match=r"examples \[0\] are constant"):
        assert explain(Squares(-1), example([3, -1]), **options) == [0, 0]


class NoBias(nn.Module):
    """A net without biases: its activations grow with the input, and no gradient."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, bias=False)
        self.layer = nn.ReLU()
        self.second = nn.Conv2d(4, 5, 3, bias=False)
        self.head = nn.Linear(5 * 9, 3, bias=False)

    def forward(self, image):
        maps = self.second(self.layer(self.first(image))).relu()
        return self.head(maps.flatten(1))


@pytest.mark.parametrize("relative", [False, True])
def test_without_biases_it_is_grad_cam_times_the_mean_of_the_points(relative):
    # The points of the left rule are 0, .02, ..., .98, whose mean is .49.
    torch.manual_seed(0)
    net, inputs = NoBias().double(), torch.rand(3, 2, 7, 7).double()
    expected = GradCAM(net, net.layer).attribute(inputs, target=[2, 0, 1])
    cam = IntegratedGradCAM(net, net.layer)
    actual = cam.attribute(inputs, target=[2, 0, 1], relative=relative)
    assert expected.flatten(1).any(1).all()
    torch.testing.assert_close(actual, 0.49 * expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize("relative", [False, True])
def test_one_step_more_than_another_changes_the_map(relative):
    net, inputs = earlier(Case(), 0)
    cam = IntegratedGradCAM(net, net.layer)
    options = {"target": 1, "relative": relative}
    maps = [cam.attribute(inputs, n_steps=n, **options) for n in (4, 5, 400)]
    assert not torch.allclose(maps[0], maps[1], rtol=1e-3)
    exact = cam.attribute(inputs, n_steps=20, method="gausslegendre", **options)
    assert (maps[2] - exact).norm() < 0.05 * exact.norm()
    assert (maps[2] - exact).norm() < 0.1 * (maps[0] - exact).norm()


def test_the_readings_differ():
    net, inputs = earlier(Case(), 0)
    cam = IntegratedGradCAM(net, net.layer)
    maps = [cam.attribute(inputs, 1, relative=relative) for relative in (False, True)]
    assert all(one.any() for one in maps) and not torch.allclose(*maps, rtol=0.1)


# The path


@pytest.mark.parametrize("method", METHODS)
def test_the_points_are_those_of_integrated_gradients(method):
    net, inputs = Squares(1, -1), example([1, 3, 2], [2, 5, -1])
    baselines = 0.5 * inputs.flip(2)
    options = {"n_steps": 5, "method": method, "baselines": baselines}
    IntegratedGradCAM(net, net.layer).attribute(inputs, **options)
    ours = torch.cat(net.seen)
    net.seen.clear()
    IntegratedGradients(net).attribute(inputs, **options)
    # In float32, and with a row for each point.
    torch.testing.assert_close(ours, torch.cat(net.seen), rtol=0, atol=1e-6)
    assert ours.shape == (5, 2, 3)


def test_a_path_that_goes_nowhere_is_grad_cam():
    net, inputs = earlier(Case(), 0)
    cam = IntegratedGradCAM(net, net.layer)
    expected = GradCAM(net, net.layer).attribute(inputs, target=1)
    actual = cam.attribute(inputs, target=1, n_steps=7, baselines=inputs)
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-12)
    with pytest.warns(UserWarning, match=r"examples \[0, 1, 2\] are constant"):
        maps = cam.attribute(inputs, 1, n_steps=7, baselines=inputs, relative=True)
    assert not maps.any()


@pytest.mark.parametrize("relative", [False, True])
def test_baselines_take_captums_forms(relative):
    net, inputs = earlier(Case(), 0)
    cam = IntegratedGradCAM(net, net.layer)
    options = {"target": 1, "n_steps": 4, "relative": relative}
    zero = cam.attribute(inputs, **options)
    assert torch.equal(cam.attribute(inputs, **options, baselines=0), zero)
    expected = cam.attribute(inputs, **options, baselines=0.5)
    for baselines in (
        (0.5,),
        torch.full((1, 2, 1, 1), 0.5),
        torch.full((3, 2, 7, 7), 0.5).double(),
    ):
        assert torch.equal(
            cam.attribute(inputs, **options, baselines=baselines), expected
        )
    assert not torch.allclose(expected, zero, rtol=1e-3)
    # A row for each example.
    rows = torch.tensor([0, 0.5, 0]).view(3, 1, 1, 1).expand(3, 2, 7, 7)
    maps = cam.attribute(inputs, **options, baselines=rows, perturbations_per_eval=3)
    mixed = torch.stack([zero[0], expected[1], zero[2]])
    torch.testing.assert_close(maps, mixed, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "baselines, error, message",
    [
        ((0, 0), ValueError, "one entry for each input: expected 1, got 2"),
        (torch.zeros(1, 3, 1, 1), ValueError, "must have the rank of their input"),
        ("black", TypeError, "must be a Tensor, a number, or a tuple"),
    ],
)
def test_refuses_baselines_that_do_not_fit(baselines, error, message):
    net, inputs = earlier(Case(), 0)
    counted = Counted(net)
    with pytest.raises(error, match=f"`baselines` {message}|{message}"):
        IntegratedGradCAM(counted, net.layer).attribute(
            inputs, target=0, baselines=baselines
        )
    assert not counted.sizes


@pytest.mark.parametrize("method", ["riemann", "left", None, 3])
def test_refuses_a_method_that_there_is_not(method):
    net, inputs = earlier(Case(), 0)
    counted = Counted(net)
    message = f"`method` must be one of {', '.join(METHODS)}, got {method!r}"
    with pytest.raises(ValueError, match=message):
        IntegratedGradCAM(counted, net.layer).attribute(inputs, target=0, method=method)
    assert not counted.sizes


def test_every_floating_input_has_a_path():
    torch.manual_seed(0)
    net, seen = ThreeInputs().double(), []
    inputs = tuple(
        torch.rand(2, *size).double() for size in [(2, 9, 8), (1, 5, 6), (4,)]
    )

    def forward_func(*tensors):
        seen.append([tensor.clone() for tensor in tensors])
        return net(*tensors)

    cam = IntegratedGradCAM(forward_func, net.layer)
    cam.attribute(inputs, target=1, n_steps=4, baselines=(0, 1, -1))
    for step, tensors in zip((0, 0.25, 0.5, 0.75), seen, strict=True):
        for tensor, inp, start in zip(tensors, inputs, (0, 1, -1), strict=True):
            torch.testing.assert_close(tensor, start + step * (inp - start))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_integer_images_go_in_rounded_steps_and_tokens_and_booleans_stay(dtype):
    net, seen = Squares(1), []
    image = torch.tensor([[[0, 100, 255]]], dtype=dtype)
    tokens, flags = torch.tensor([[7, 8]]), torch.ones(1, 1, 3, dtype=torch.bool)

    def forward_func(*tensors):
        seen.append(tensors)
        return net(tensors[0])

    IntegratedGradCAM(forward_func, net.layer).attribute(
        (image, tokens, flags),
        n_steps=4,
        method="riemann_trapezoid",
        baselines=(9, 5, 0),
    )
    # Of 9 + (100 - 9) * 2/3 = 69.7 the nearest is 70.
    rows = ([9, 9, 9], [6, 39, 91], [3, 70, 173], [0, 100, 255])
    steps = [[[row]] for row in rows]
    assert [tensors[0].tolist() for tensors in seen] == steps
    assert all(tensors[0].dtype == dtype for tensors in seen)
    for _, same_tokens, same_flags in seen:
        assert torch.equal(same_tokens, tokens) and torch.equal(same_flags, flags)


@pytest.mark.parametrize("relative", [False, True])
def test_a_step_that_is_not_finite_makes_the_map_nan(relative):
    # 1 / (x - 1) has no value at the baseline of the first example.
    class Pole(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Identity()

        def forward(self, image):
            return self.layer(1 / (image - 1)).flatten(1).sum(1)[:, None]

    net = Pole()
    inputs = torch.cat([example([1, 4, 3]), example([2, 3, 5])])
    baselines = torch.cat([example([1, 3, 3]), example([3, 3, 3])])
    with pytest.warns(UserWarning, match=r"examples \[0\] are NaN"):
        maps = IntegratedGradCAM(net, net.layer).attribute(
            inputs, n_steps=4, baselines=baselines, relative=relative
        )
    assert maps[0].isnan().all() and maps[1].isfinite().all()


def test_the_maps_of_half_types_are_summed_in_float32():
    # The gradients are 1, and every step adds 1/300 of the input: in half precision
    # the sum would be off by more than its last bit.
    net = Weighed([[1, 1]]).half()
    inputs = example([1500, 501]).half()
    options = {"n_steps": 300, "baselines": inputs}
    maps = IntegratedGradCAM(net, net.layer).attribute(inputs, **options)
    assert maps.dtype == torch.float16 and maps.tolist() == [[[1500, 501]]]
