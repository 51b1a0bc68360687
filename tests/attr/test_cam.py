"""CAM: the weights of a head that is found by running the model, or given."""

import copy

import pytest
import torch
import torch.nn.functional as F
from nets import Counted
from torch import nn
from torch.nn.utils import parametrizations

from captum_unioncam import CAM, GradCAM, SelectedOutput, swin_reshape
from captum_unioncam.attr._activation_cam import ActivationCAM

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
CHANNELS, CLASSES = 5, 4
TARGETS = [3, 0, 2]
POSITIONS = 36

pytestmark = pytest.mark.filterwarnings("ignore:.* are constant")


class Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class Net(nn.Module):
    """A layer, what lies between, a head, and what comes after it."""

    def __init__(self, between=None, head=None, after=None, rank=2):
        super().__init__()
        self.conv = CONVOLUTIONS[rank](3, CHANNELS, 3)
        self.layer = nn.ReLU()
        self.between = Function(between or mean)
        self.head = nn.Linear(CHANNELS, CLASSES) if head is None else head
        self.after = Function(after or (lambda x: x))

    def forward(self, x):
        return self.after(self.head(self.between(self.layer(self.conv(x)))))


def mean(maps):
    return maps.flatten(2).mean(2)


def build(*args, rank=2, **options):
    torch.manual_seed(0)
    net = Net(*args, rank=rank, **options).double().eval()
    return net, torch.rand(3, 3, *[8] * rank, dtype=torch.float64)


def by_hand(net, inputs, weights=None):
    """The sum of the channels under the rows of the head, (N, 1, *size)."""
    maps = net.layer(net.conv(inputs)).detach()
    rows = (net.head.weight if weights is None else weights).detach().flatten(1)
    total = torch.einsum("nk,nkp->np", rows[TARGETS], maps.flatten(2))
    return total.relu().view(len(inputs), 1, *maps.shape[2:])


def same(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


def test_hand_worked_example():
    # W = (1/2, -1): [[-7/2, 1], [3/2, 0]], of which the ReLU leaves the positive.
    net = nn.Sequential(
        nn.Identity(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 1)
    ).double()
    net[3].weight.data = torch.tensor([[0.5, -1]], dtype=torch.float64)
    inputs = torch.tensor([[[[1, 2], [3, 4]], [[4, 0], [0, 2]]]], dtype=torch.float64)
    assert CAM(net, net[0]).attribute(inputs).tolist() == [[[[0, 1], [1.5, 0]]]]


# Models whose head is found


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_it_is_gradcam_times_the_positions(rank):
    net, inputs = build(rank=rank)
    maps = CAM(net, net.layer).attribute(inputs, target=TARGETS)
    assert maps.any()
    same(maps, by_hand(net, inputs))
    expected = GradCAM(net, net.layer).attribute(inputs, target=TARGETS)
    same(maps, 6**rank * expected)


def convolution(**options):
    return nn.Conv2d(CHANNELS, CLASSES, 1, **options)


FOUND = {
    "pooled as a map": (lambda maps: maps.mean((2, 3), keepdim=True), convolution()),
    "channels": (lambda maps: maps * 1, convolution()),
    "1 x 1 module": (nn.AdaptiveAvgPool2d(1), convolution(bias=False)),
    "dropout": (lambda maps: F.dropout(mean(maps), 0.5, training=False), None),
    "pooled twice": (lambda maps: F.avg_pool2d(F.avg_pool2d(maps, 2), 3)[..., 0, 0], 0),
}


@pytest.mark.parametrize("kind", FOUND)
def test_heads_of_every_kind_are_found(kind):
    between, head = FOUND[kind]
    after = mean if isinstance(head, nn.Conv2d) else None
    net, inputs = build(between, head or None, after)
    same(CAM(net, net.layer).attribute(inputs, TARGETS), by_hand(net, inputs))


@pytest.mark.parametrize("after", [torch.softmax, lambda x, dim: x.sigmoid() * 3])
def test_what_follows_the_head_does_not_matter(after):
    net, inputs = build(after=lambda x: after(x, dim=1))
    same(CAM(net, net.layer).attribute(inputs, TARGETS), by_hand(net, inputs))


def test_a_head_called_with_keywords_is_found():
    class Keyword(nn.Linear):
        def __call__(self, x):
            return super().__call__(input=x)

    net, inputs = build(head=Keyword(CHANNELS, CLASSES))
    same(CAM(net, net.layer).attribute(inputs, TARGETS), by_hand(net, inputs))
    with pytest.raises(ValueError, match="no tensor, or is given by a keyword"):
        CAM(Counted(net), net.layer).attribute(inputs, TARGETS)  # no hook shows it


def test_a_parametrized_head_is_found():
    head = parametrizations.weight_norm(nn.Linear(CHANNELS, CLASSES))
    net, inputs = build(head=head)
    head.parametrizations.weight.original0.data *= 3
    same(CAM(net, net.layer).attribute(inputs, TARGETS), by_hand(net, inputs))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_heads_are_found_in_any_type(dtype):
    net, inputs = build()
    expected = CAM(net, net.layer).attribute(inputs, TARGETS)
    maps = CAM(net.to(dtype), net.layer).attribute(inputs.to(dtype), TARGETS)
    assert maps.dtype == dtype
    torch.testing.assert_close(maps.double(), expected, rtol=0.05, atol=0.02)


def test_heads_are_found_under_autocast():
    net, inputs = build()
    net, inputs = net.float(), inputs.float()
    expected = CAM(net, net.layer).attribute(inputs, TARGETS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        maps = CAM(net, net.layer).attribute(inputs, TARGETS)
    torch.testing.assert_close(maps.float(), expected, rtol=0.05, atol=0.02)


def test_the_input_of_the_layer_is_explained_where_the_head_reads_it():
    net, inputs = build()
    expected = CAM(net, net.layer).attribute(inputs, TARGETS)
    maps = CAM(net, net.between).attribute(
        inputs, TARGETS, attribute_to_layer_input=True
    )
    same(maps, expected)
    with pytest.raises(ValueError, match="the mean after a ReLU"):
        CAM(net, net.layer).attribute(inputs, TARGETS, attribute_to_layer_input=True)


def test_a_head_may_be_the_layer_whose_input_is_explained():
    net, inputs = build(lambda maps: maps * 1, convolution(), mean)
    maps = CAM(net, net.head).attribute(inputs, TARGETS, attribute_to_layer_input=True)
    same(maps, by_hand(net, inputs))


def test_channels_that_come_last_are_reshaped():
    net, inputs = build()
    expected = CAM(net, net.layer).attribute(inputs, TARGETS)
    net.layer = Function(lambda maps: maps.relu().permute(0, 2, 3, 1))
    net.between = Function(lambda maps: maps.mean((1, 2)))
    cam = CAM(net, net.layer, reshape_transform=swin_reshape)
    same(cam.attribute(inputs, TARGETS), expected)


@pytest.mark.parametrize("form", ["function", "parallel", "selected", "compiled"])
def test_wrapped_models_have_their_head(form):
    net, inputs = build()
    expected = CAM(net, net.layer).attribute(inputs, TARGETS)

    class Tuple(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, x):
            return net(x), x

    wrapped = {
        "function": lambda: Counted(net),
        "parallel": lambda: nn.DataParallel(net, device_ids=[]),
        "selected": lambda: SelectedOutput(Tuple(), 0),
        "compiled": lambda: torch.compile(net, backend="eager"),
    }[form]()
    for head in (None, net.head):
        maps = CAM(wrapped, net.layer, head=head).attribute(inputs, TARGETS)
        assert torch.equal(maps, expected)


def global_hooks():
    hooks = vars(nn.modules.module)
    return {name: dict(hooks[name]) for name in hooks if name.startswith("_global_f")}


def test_a_head_is_found_for_each_batch_and_leaves_no_hook():
    net, inputs = build()
    before = global_hooks()
    cam = CAM(net, net.layer)
    singles = [cam.attribute(x[None], t) for x, t in zip(inputs, TARGETS)]
    same(cam.attribute(inputs, TARGETS), torch.cat(singles))
    assert cam.attribute(inputs[:0], target=1).shape == (0, 1, 6, 6)
    assert cam.head is None
    net.head = nn.Sequential(nn.Linear(CHANNELS, 6), nn.Linear(6, CLASSES)).double()
    with pytest.raises(ValueError, match="`head` is not given"):
        cam.attribute(inputs, TARGETS)
    with pytest.raises(RuntimeError):
        cam.attribute(inputs[:, :2], TARGETS)
    with pytest.raises(RuntimeError):
        CAM(Counted(net), net.layer).attribute(inputs[:, :2], TARGETS)
    assert global_hooks() == before
    assert not any(module._forward_hooks for module in net.modules())
    assert not any(module._forward_pre_hooks for module in net.modules())


def test_an_example_that_is_not_finite_does_not_hide_the_head():
    net, inputs = build()
    expected = CAM(net, net.layer).attribute(inputs, TARGETS)
    inputs[1, 0, 3, 3] = torch.nan
    with pytest.warns(UserWarning, match=r"examples \[1\] are NaN"):
        maps = CAM(net, net.layer).attribute(inputs, TARGETS)
    assert maps[1].isnan().all()
    assert torch.equal(maps[[0, 2]], expected[[0, 2]])


# Models whose head is refused


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(CHANNELS, CHANNELS)

    def forward(self, x):
        return self.fc(self.fc(x))


class Bilinear(nn.Module):
    """A head of its own kind."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(CLASSES, CHANNELS))

    def forward(self, x):
        return x @ self.weight.T


class Kernel(nn.Conv2d):
    def __init__(self):
        super().__init__(CHANNELS, CLASSES, 6)

    def forward(self, x):
        return super().forward(x).flatten(1)


def hidden(*others):
    return nn.Sequential(*others, nn.Linear(CHANNELS, CLASSES))


REFUSED = {
    "hidden layers": (
        (mean, hidden(nn.Linear(CHANNELS, CHANNELS), nn.ReLU())),
        r"2 modules with weights run after .*: head.0 \(Linear\), head.2 \(Linear\)\.",
    ),
    "many": (
        (mean, hidden(*[nn.Linear(CHANNELS, CHANNELS)] * 4)),
        r"5 modules .*: (head.0 \(Linear\), ){3}\.\.\.",
    ),
    "a norm": (
        (mean, hidden(nn.LayerNorm(CHANNELS))),
        r"2 modules with .*: head.0 \(LayerNorm\), head.1 \(Linear\)",
    ),
    "one layer twice": (
        (mean, Twice()),
        r"2 modules with weights .*head.fc \(Linear\)",
    ),
    "no weights": (
        (mean, nn.Identity()),
        "no module with weights runs after `layer`",
    ),
    "another kind": (
        (mean, Bilinear()),
        r"head \(Bilinear\), the only module .* is neither a linear layer nor a 1 x 1",
    ),
    "a large kernel": ((lambda m: m * 1, Kernel()), r"head \(Kernel\), .* is neither"),
    "groups": (
        (lambda m: m * 1, nn.Conv2d(CHANNELS, CHANNELS, 1, groups=CHANNELS), mean),
        r"head \(Conv2d\), .* is neither",
    ),
    "max pooling": ((lambda m: m.amax((2, 3)), None), "the largest value of each"),
    "no pooling": (
        (lambda m: m.flatten(1), nn.Linear(CHANNELS * POSITIONS, CLASSES)),
        r"all of its \(6, 6\) positions, without a pooling",
    ),
    "a norm without weights": (
        (lambda m: F.normalize(mean(m), dim=1), None),
        "but something else, such as after an activation, a norm, a scaling",
    ),
    "scaled": ((lambda m: 2 * mean(m), None), "but something else, .* a scaling"),
    "dropout in train mode": (
        (lambda m: F.dropout(mean(m), 0.5, training=True), None),
        "but something else, .* or a dropout in train mode",
    ),
    "fewer": (
        (lambda m: mean(m)[:, :3], nn.Linear(3, CLASSES)),
        r"a tensor of shape \(3, 3\)",
    ),
    "more rows": (
        (lambda m: mean(m).repeat(2, 1), None, lambda x: x[:3]),
        r"a tensor of shape \(6, 5\)",
    ),
    "channels after an activation": (
        (torch.tanh, convolution(), mean),
        "something else of its size, such as after an activation",
    ),
    "a column": (
        (mean, None, lambda x: x[:, :2]),
        "the one that was found has 4 rows for the 2 columns of the output",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_other_heads_are_refused_by_what_they_are(kind):
    arguments, found = REFUSED[kind]
    net, inputs = build(*arguments)
    with pytest.raises(ValueError, match=f"`head` is not given, and .*{found}") as seen:
        CAM(net, net.layer).attribute(inputs, target=[1, 0, 1])
    assert "Give `head`" in str(seen.value)


def test_a_functional_relu_is_named():
    net, inputs = build()
    with pytest.raises(ValueError, match=r"head \(Linear\) .* the mean after a ReLU"):
        CAM(net, net.conv).attribute(inputs, TARGETS)
    with pytest.raises(ValueError, match=r": a Linear does not read the mean of `lay"):
        CAM(lambda x: net(x), net.conv).attribute(inputs, TARGETS)


def test_of_several_tensors_each_must_be_read():
    class Both(nn.Module):
        def forward(self, maps):
            return maps.relu(), maps.tanh()

    net, inputs = build(lambda both: mean(both[0]))
    net.layer = Both()
    with pytest.raises(ValueError, match="does not read the mean"):
        CAM(net, net.layer).attribute(inputs, TARGETS)
    first, second = CAM(net, net.layer, head="head").attribute(inputs, TARGETS)
    assert first.shape == second.shape and not torch.equal(first, second)


# Heads that are given


def test_a_given_head_is_taken_as_it_is():
    net, inputs = build(lambda m: F.normalize(mean(m), dim=1))
    expected = by_hand(net, inputs)
    for head in ("head", net.head):
        maps = CAM(net, "layer", head=head).attribute(inputs, TARGETS)
        same(maps, expected)
    other = nn.Conv2d(CHANNELS, CLASSES, 1).double()
    maps = CAM(net, "layer", head=other).attribute(inputs, TARGETS)
    same(maps, by_hand(net, inputs, other.weight))


def test_a_given_head_is_read_at_the_call():
    net, inputs = build()
    cam = CAM(net, net.layer, head="head")
    copied = copy.deepcopy(cam)
    assert copied.head is copied.forward_func.head is not net.head
    cam.head = other = nn.Linear(CHANNELS, CLASSES).double()
    same(cam.attribute(inputs, TARGETS), by_hand(net, inputs, other.weight))
    with torch.no_grad():
        other.weight.zero_()
    assert not cam.attribute(inputs, TARGETS).any()


@pytest.mark.parametrize(
    "head, error, text",
    [
        (nn.Linear(7, 4), ValueError, r"`head` must read the 5 channels .* \(4, 7\)"),
        (
            nn.Linear(5, 2),
            ValueError,
            "`target` must select a row of `head`, .* 2, got",
        ),
        (nn.BatchNorm1d(5), TypeError, "`head` must be a linear layer or a 1 x 1"),
        (nn.Conv2d(5, 4, 3), TypeError, "`head` must be a linear layer or a 1 x 1"),
        (nn.ReLU(), TypeError, r"`head` must be a linear .*, got ReLU\(\)"),
        ("hed", ValueError, "`head`: Net has no layer 'hed'; did you mean 'head'"),
        (3, TypeError, "`head` must be a torch.nn.Module or its dotted name, got 3"),
    ],
    ids=str,
)
def test_wrong_heads_are_refused(head, error, text):
    net, inputs = build()
    with pytest.raises(error, match=text):
        CAM(net, net.layer, head=head).attribute(inputs, TARGETS)


def test_a_name_takes_a_module_to_look_it_up_in():
    net, _ = build()
    with pytest.raises(TypeError, match="`head` may be a name, 'head', only if `forw"):
        CAM(lambda x: net(x), net.layer, head="head")


@pytest.mark.parametrize("squeeze", [False, True])
def test_one_output_needs_no_target(squeeze):
    after = (lambda x: x[:, 0]) if squeeze else None
    net, inputs = build(head=nn.Linear(CHANNELS, 1), after=after)
    expected = CAM(net, net.layer, head=net.head).attribute(inputs)
    same(CAM(net, net.layer).attribute(inputs), expected)
    same(expected, POSITIONS * GradCAM(net, net.layer).attribute(inputs))


def test_a_dense_output_is_refused():
    net, inputs = build(lambda m: m * 1, convolution())
    message = r"`target` must select a class of an output \(N, classes\), got \(1, 2, 3"
    with pytest.raises(ValueError, match=message):
        CAM(net, net.layer).attribute(inputs, target=(1, 2, 3))


def test_it_takes_one_pass_and_no_graph():
    net, inputs = build()
    counted = Counted(net)
    CAM(counted, net.layer).attribute(inputs, TARGETS)
    assert counted.sizes == [3]
    assert issubclass(CAM, ActivationCAM)
