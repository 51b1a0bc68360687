"""The facts about Captum's private names that the package relies on.

A Captum that changes one of them fails here first, and captum_unioncam/_captum.py is
the one place to repair.
"""

import ast
import inspect
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from captum._utils.common import (
    _expand_target,
    _extract_device,
    _format_additional_forward_args,
    _format_tensor_into_tuples,
    _select_targets,
)
from captum._utils.gradient import (
    _forward_layer_eval,
    compute_layer_gradients_and_eval,
)
from captum._utils.progress import NullProgress, progress
from captum._utils.typing import TargetType
from captum.attr._utils.approximation_methods import (
    SUPPORTED_METHODS,
    approximation_parameters,
)
from captum.log import log_usage
from torch import nn

import captum_unioncam._captum

CHECKED_HERE = {
    "NullProgress": NullProgress,
    "SUPPORTED_METHODS": SUPPORTED_METHODS,
    "TargetType": TargetType,
    "_expand_target": _expand_target,
    "_extract_device": _extract_device,
    "_format_additional_forward_args": _format_additional_forward_args,
    "_format_tensor_into_tuples": _format_tensor_into_tuples,
    "_forward_layer_eval": _forward_layer_eval,
    "_select_targets": _select_targets,
    "approximation_parameters": approximation_parameters,
    "compute_layer_gradients_and_eval": compute_layer_gradients_and_eval,
    "log_usage": log_usage,
    "progress": progress,
}


class Net(nn.Module):
    """A layer, then an operation that may be in place, then a sum for each class."""

    def __init__(self, after=F.relu):
        super().__init__()
        self.layer = nn.Conv1d(1, 2, 1, bias=False).double()
        self.unused = nn.Tanh()
        self.after = after
        with torch.no_grad():
            self.layer.weight.copy_(torch.tensor([[[1.0]], [[-1.0]]]))

    def forward(self, x, gain=None):
        self.unused(x)
        x = self.after(self.layer(x))
        x = torch.stack([x[:, 0].sum(1), 2 * x[:, 1].sum(1)], 1)
        return x if gain is None else x * gain


@pytest.fixture
def net():
    return Net()


@pytest.fixture
def x():
    return torch.tensor([[[1.0, -2.0, 3.0]], [[-4.0, 5.0, 6.0]]], dtype=torch.float64)


def activation(x):
    return torch.cat([x, -x], 1)


def hook_count(net):
    return sum(
        len(module._forward_hooks) + len(module._forward_pre_hooks)
        for module in net.modules()
    )


def test_every_private_name_of_the_package_is_checked_here():
    tree = ast.parse(Path(captum_unioncam._captum.__file__).read_text())
    imported = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        and node.module.startswith(("captum._", "captum.attr._", "captum.log"))
        for alias in node.names
    }
    assert imported == set(CHECKED_HERE)
    for name, value in CHECKED_HERE.items():
        assert getattr(captum_unioncam._captum, name) is value


@pytest.mark.parametrize(
    "function, positional, keywords",
    [
        (_format_tensor_into_tuples, 1, ()),
        (_format_additional_forward_args, 1, ()),
        (_select_targets, 2, ()),
        (_expand_target, 2, ()),
        (_extract_device, 3, ()),
        (approximation_parameters, 1, ()),
        (_forward_layer_eval, 4, ("device_ids", "attribute_to_layer_input")),
        (
            compute_layer_gradients_and_eval,
            5,
            ("device_ids", "attribute_to_layer_input", "grad_kwargs"),
        ),
        (progress, 0, ("desc", "total")),
        (NullProgress, 0, ()),
        (log_usage, 0, ("part_of_slo",)),
    ],
)
def test_helpers_take_what_the_package_passes(function, positional, keywords):
    arguments = [None] * positional
    inspect.signature(function).bind(*arguments, **dict.fromkeys(keywords))


def test_positional_arguments_of_the_layer_helpers_are_in_this_order():
    names = list(inspect.signature(_forward_layer_eval).parameters)
    assert names[:4] == ["forward_fn", "inputs", "layer", "additional_forward_args"]
    names = list(inspect.signature(compute_layer_gradients_and_eval).parameters)
    assert names[:5] == [
        "forward_fn",
        "layer",
        "inputs",
        "target_ind",
        "additional_forward_args",
    ]


# Formats


def test_inputs_become_a_tuple_and_lists_are_refused(x):
    assert _format_tensor_into_tuples(x)[0] is x
    assert _format_tensor_into_tuples((x, x)) == (x, x)
    for wrong in ([x], x.numpy()):
        with pytest.raises(AssertionError, match="`inputs` must be a torch.Tensor"):
            _format_tensor_into_tuples(wrong)


def test_additional_arguments_become_a_tuple_and_lists_are_opaque(x):
    assert _format_additional_forward_args(None) is None
    assert _format_additional_forward_args(x)[0] is x
    assert _format_additional_forward_args((x, None, 2)) == (x, None, 2)
    assert _format_additional_forward_args([1, 2]) == ([1, 2],)


def test_several_layers_are_a_list_of_tuples(net, x):
    layers = [net.unused, net.layer]
    found = _forward_layer_eval(net, x, layers)
    gradients, evals = compute_layer_gradients_and_eval(
        net, layers, x, 0, grad_kwargs={"materialize_grads": True}
    )
    for tensors in (found, gradients, evals):
        assert isinstance(tensors, list) and len(tensors) == 2
        assert all(isinstance(one, tuple) and len(one) == 1 for one in tensors)
    for place, layer in enumerate(layers):
        assert torch.equal(found[place][0], _forward_layer_eval(net, x, layer)[0])
        assert torch.equal(evals[place][0], found[place][0])
    assert not gradients[0][0].any() and gradients[1][0].any()


# Targets


@pytest.mark.parametrize(
    "target, columns",
    [
        (1, [1, 1, 1]),
        (-1, [1, 1, 1]),
        ((1,), [1, 1, 1]),
        (torch.tensor(1), [1, 1, 1]),
        (torch.tensor([[1]]), [1, 1, 1]),
        ([0, 1, 0], [0, 1, 0]),
        ([(0,), (1,), (0,)], [0, 1, 0]),
        (torch.tensor([0, 1, 0]), [0, 1, 0]),
    ],
    ids=repr,
)
def test_targets_select_one_value_for_each_example(target, columns):
    output = torch.arange(6.0).view(3, 2)
    assert torch.equal(_select_targets(output, target), output[range(3), columns])


def test_no_target_selects_everything_and_tuples_index_further_dimensions():
    output = torch.arange(12.0).view(3, 2, 2)
    assert _select_targets(output, None) is output
    assert torch.equal(_select_targets(output, (1, 0)), output[:, 1, 0])
    assert torch.equal(_select_targets(output, 1), output[:, 1])
    pairs = [(0, 1), (1, 1), (1, 0)]
    expected = torch.stack([output[0, 0, 1], output[1, 1, 1], output[2, 1, 0]])
    assert torch.equal(_select_targets(output, pairs), expected)


@pytest.mark.parametrize(
    "target, error, text",
    [
        ([1], AssertionError, "Target list length does not match output"),
        ([], AssertionError, "Target list length does not match output"),
        (torch.tensor([0, 1]), AssertionError, "Tensor target dimension"),
        (torch.tensor([[0], [1], [0]]), AssertionError, "Tensor target dimension"),
        (torch.tensor(1.0), AssertionError, "Tensor target dimension"),
        ((9999,) * 20, AssertionError, "Cannot choose target column"),
        ([[0], [1], [0]], AssertionError, "Target element type"),
        ("1", AssertionError, "Target type"),
        (2, IndexError, "out of bounds"),
        ([0, 1, 2], RuntimeError, "out of bounds"),
        (torch.tensor([0.0, 1.0, 0.0]), RuntimeError, "gather"),
    ],
    ids=repr,
)
def test_wrong_targets_raise(target, error, text):
    with pytest.raises(error, match=text):
        _select_targets(torch.arange(6.0).view(3, 2), target)


def test_only_targets_of_each_example_expand_and_in_whole_batches():
    assert _expand_target([0, 1], 2) == [0, 1, 0, 1]
    assert _expand_target([(0,), (1,)], 2) == [(0,), (1,), (0,), (1,)]
    assert _expand_target([4], 3) == [4, 4, 4]
    expanded = _expand_target(torch.tensor([0, 1]), 2)
    assert expanded.tolist() == [0, 1, 0, 1]
    for target in (None, 1, (1, 0), torch.tensor(1), torch.tensor([1])):
        assert _expand_target(target, 3) is target


# Forward passes


@pytest.mark.parametrize("after", [F.relu, F.relu_, torch.Tensor.zero_])
def test_layer_eval_is_a_tuple_of_clones_without_gradients(after, x):
    net, seen = Net(after), []
    net.layer.register_forward_hook(lambda *args: seen.append(args[2]))
    with torch.no_grad():
        evals = _forward_layer_eval(net, (x,), net.layer, None, device_ids=None)
    assert type(evals) is tuple
    assert torch.equal(evals[0], activation(x))
    assert not evals[0].requires_grad
    assert evals[0].data_ptr() != seen[0].data_ptr()
    assert hook_count(net) == 1


def test_layer_eval_takes_the_layers_input(net, x):
    (evals,) = _forward_layer_eval(
        net, (x,), net.layer, None, attribute_to_layer_input=True
    )
    assert torch.equal(evals, x)
    assert evals.data_ptr() != x.data_ptr()


@pytest.mark.parametrize("container", [tuple, list])
def test_layer_eval_of_several_tensors_is_a_tuple(net, x, container):
    class Pair(nn.Module):
        def forward(self, x):
            return container((x, 2 * x))

    pair = Pair()
    evals = _forward_layer_eval(lambda x: net(pair(x)[0]), (x,), pair, None)
    assert type(evals) is tuple
    assert torch.equal(evals[0], x)
    assert torch.equal(evals[1], 2 * x)


def test_layer_eval_keeps_the_last_call(net, x):
    (evals,) = _forward_layer_eval(lambda x: net(x) + net(2 * x), (x,), net.layer, None)
    assert torch.equal(evals, activation(2 * x))


def layer_eval(net, x, layer):
    return _forward_layer_eval(net, (x,), layer, None)


def layer_gradients(net, x, layer):
    return compute_layer_gradients_and_eval(net, layer, (x,), 0, None)


@pytest.mark.parametrize("helper", [layer_eval, layer_gradients])
def test_layers_that_do_not_run_raise(helper, net, x):
    with pytest.raises(AssertionError, match="Forward hook did not obtain any outputs"):
        helper(net, x, nn.Identity())


@pytest.mark.parametrize("helper", [layer_eval, layer_gradients])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_hooks_are_removed_after_an_error(helper, x, error):
    def fail(x):
        raise error("stop")

    net = Net(after=fail)
    with pytest.raises(error, match="stop"):
        helper(net, x, net.layer)
    assert hook_count(net) == 0


# Gradients


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad])
@pytest.mark.parametrize("after", [F.relu, F.relu_])
def test_gradients_and_evals_are_tuples_in_any_grad_mode(mode, after, x):
    net = Net(after)
    with mode():
        gradients, evals = compute_layer_gradients_and_eval(
            net, net.layer, (x,), [0, 1], None
        )
        assert torch.is_grad_enabled() is (mode is torch.enable_grad)
    assert type(gradients) is type(evals) is tuple
    assert torch.equal(evals[0], activation(x))
    # Of each example's own output: x where positive for class 0, else 2 where -x is.
    expected = torch.zeros(2, 2, 3, dtype=torch.float64)
    expected[0, 0] = torch.tensor([1, 0, 1])
    expected[1, 1] = torch.tensor([2, 0, 0])
    assert torch.equal(gradients[0], expected)
    assert not gradients[0].requires_grad
    assert evals[0].requires_grad  # so the package detaches them
    assert hook_count(net) == 0


def test_gradients_leave_parameters_and_their_gradients_alone(net, x):
    net.layer.weight.grad = torch.full_like(net.layer.weight, 7)
    compute_layer_gradients_and_eval(net, net.layer, (x,), 0, None)
    assert torch.equal(net.layer.weight.grad, torch.full_like(net.layer.weight, 7))
    assert net.layer.weight.requires_grad


def test_gradients_work_on_frozen_models(net, x):
    expected = compute_layer_gradients_and_eval(net, net.layer, (x,), 0, None)
    net.requires_grad_(False)
    frozen = compute_layer_gradients_and_eval(net, net.layer, (x,), 0, None)
    assert torch.equal(frozen[0][0], expected[0][0])
    assert not net.layer.weight.requires_grad


def test_gradients_are_zero_for_unused_layers_only_if_materialized(net, x):
    with pytest.raises(RuntimeError, match="appears to not have been used"):
        compute_layer_gradients_and_eval(net, net.unused, (x,), 0, None)
    x = x.clone().requires_grad_().clone()  # no leaf, as the package passes it
    (gradient,), (evals,) = compute_layer_gradients_and_eval(
        net, net.unused, (x,), 0, None, grad_kwargs={"materialize_grads": True}
    )
    assert torch.equal(gradient, torch.zeros_like(x))
    assert torch.equal(evals, x.tanh())


def test_gradients_of_a_frozen_model_and_an_unused_layer_need_inputs_with_grad(net, x):
    net.requires_grad_(False)
    unused = nn.Identity()
    options = {"grad_kwargs": {"materialize_grads": True}}

    def model(x):
        unused(x.detach())
        return net(x)

    with pytest.raises(RuntimeError, match="does not require grad"):
        compute_layer_gradients_and_eval(model, unused, (x,), 0, None, **options)
    x = x.clone().requires_grad_().clone()
    (gradient,), _ = compute_layer_gradients_and_eval(
        model, unused, (x,), 0, None, **options
    )
    assert not gradient.any()


def test_gradients_demand_one_value_for_each_example(net, x):
    with pytest.raises(AssertionError, match="Target not provided when necessary"):
        compute_layer_gradients_and_eval(net, net.layer, (x,), None, None)


def test_the_device_of_a_run_is_its_inputs_or_its_outputs(net, x):
    device = torch.device("meta")
    elsewhere = torch.empty(1, device=device)
    assert _extract_device(net, (elsewhere,), (x,)) == device
    assert _extract_device(net, (), elsewhere) == device
    assert _extract_device(net, (x,), None) == x.device


# Logging and progress


def test_log_usage_wraps_and_changes_nothing():
    def method(value):
        """Doubles."""
        return 2 * value

    wrapped = log_usage(part_of_slo=True)(method)
    assert wrapped.__wrapped__ is method
    assert (wrapped.__name__, wrapped.__doc__) == ("method", "Doubles.")
    assert wrapped(3) == 6
    with pytest.raises(TypeError, match="missing 1 required"):
        wrapped()


def test_progress_is_a_context_manager_on_stderr(capsys):
    with progress(desc="A task", total=2) as bar:
        bar.update(1)
        bar.update(1)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "A task: 100%" in shown.err
    assert "2/2" in shown.err


def test_null_progress_is_a_silent_context_manager(capsys):
    with NullProgress() as bar:
        bar.update(1)
    assert capsys.readouterr() == ("", "")
    with pytest.raises(KeyError, match="passes"):
        with NullProgress():
            raise KeyError("passes")


# Rules of integration


def points_of(method, steps):
    """Returns Captum's points in [0, 1], and their step sizes."""
    step_sizes, alphas = approximation_parameters(method)
    return alphas(steps), step_sizes(steps)


@pytest.mark.parametrize(
    "method, points, sizes",
    [
        ("riemann_left", [0, 1 / 3, 2 / 3], [1 / 3] * 3),
        ("riemann_right", [1 / 3, 2 / 3, 1], [1 / 3] * 3),
        ("riemann_middle", [1 / 6, 1 / 2, 5 / 6], [1 / 3] * 3),
        ("riemann_trapezoid", [0, 1 / 2, 1], [1 / 6, 1 / 3, 1 / 6]),
        ("gausslegendre", [0.5 - 0.15**0.5, 0.5, 0.5 + 0.15**0.5], [5 / 18, 8 / 18]),
    ],
)
def test_rules_of_integration_have_these_points_and_step_sizes(method, points, sizes):
    assert method in SUPPORTED_METHODS and len(SUPPORTED_METHODS) == 5
    actual, actual_sizes = points_of(method, 3)
    assert actual == pytest.approx(points, abs=1e-6)
    assert actual_sizes[: len(sizes)] == pytest.approx(sizes)
    # Captum's are rounded to the default type; ours are not.
    ours = captum_unioncam._captum.integration_steps(method, 3)
    assert [point for point, _ in ours] == pytest.approx(points, rel=1e-15)
    assert [size for _, size in ours] == actual_sizes


@pytest.mark.parametrize("method", SUPPORTED_METHODS)
@pytest.mark.parametrize("steps", [2, 7, 50, 999])
def test_steps_depend_on_no_default(method, steps):
    expected = captum_unioncam._captum.integration_steps(method, steps)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            assert captum_unioncam._captum.integration_steps(method, steps) == expected
        points, _ = points_of(method, steps)
    finally:
        torch.set_default_dtype(before)
    assert [point for point, _ in expected] == pytest.approx(points, rel=1e-15)


def test_an_unknown_rule_and_a_single_step_are_refused():
    with pytest.raises(ValueError, match="Invalid integral approximation method"):
        approximation_parameters("riemann")
    for method in SUPPORTED_METHODS[:4]:
        with pytest.raises(AssertionError, match="larger than one"):
            points_of(method, 1)
