"""find_layer leaves the model and its inputs as they were, whatever happens."""

import copy

import pytest
import torch
from layer_nets import Net, conv, hooks, images, name_of, named, pooled
from torch import nn

from captum_unioncam import find_layer


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def test_modes_and_buffers_of_a_model_in_train_mode_stay():
    net = named(
        conv=conv(),
        norm=nn.BatchNorm2d(4),
        relu=nn.ReLU(),
        head=pooled(nn.Linear(4, 2)),
    )
    net.train()
    net.norm.eval()
    net.relu.eval()
    before = [module.training for module in net.modules()]
    assert name_of(net, images()) == "relu"
    assert [module.training for module in net.modules()] == before

    net.train()
    state = copy.deepcopy(net.state_dict())
    assert name_of(net, images()) == "relu"
    assert all(module.training for module in net.modules())
    for name, value in net.state_dict().items():
        assert torch.equal(value, state[name]), name


def test_the_inputs_stay_where_the_model_changes_them_in_place():
    net = named(relu=nn.ReLU(inplace=True), conv=conv(), head=pooled(nn.Linear(4, 2)))
    inputs = images() - 0.5
    before = inputs.clone()
    assert name_of(net, inputs) == "conv"
    assert torch.equal(inputs, before)


def test_gradients_and_parameters_stay():
    net = named(conv=conv(), relu=nn.ReLU(), head=pooled(nn.Linear(4, 2)))
    inputs = images().requires_grad_()
    with torch.enable_grad():
        find_layer(net, inputs)
        assert torch.is_grad_enabled()
    assert inputs.grad is None
    assert all(parameter.grad is None for parameter in net.parameters())
    assert all(parameter.requires_grad for parameter in net.parameters())


def test_no_hooks_stay_behind():
    net = named(conv=conv(), relu=nn.ReLU(), head=pooled(nn.Linear(4, 2)))
    own = net.conv.register_forward_hook(lambda *call: None)
    find_layer(net, images())
    assert hooks(net) == 1
    with pytest.raises(RuntimeError, match="shape|size|channels"):
        find_layer(net, images(channels=5))
    assert hooks(net) == 1
    own.remove()

    def explode(net, x):
        net.layer(x)
        raise KeyError("lost")

    net = Net(explode, layer=conv())
    with pytest.raises(KeyError, match="lost"):
        find_layer(net, images())
    assert hooks(net) == 0


def test_additional_arguments_stay():
    class Adds(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

        def forward(self, x, bias):
            return self.fc(self.conv(x).mean((2, 3))) + bias.add_(1)

    bias, net = torch.zeros(2), Adds()
    assert find_layer(net, images(side=8), bias) is net.conv
    assert not bias.any()


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning")
def test_a_scripted_submodule_leaves_no_hooks_behind():
    scripted = torch.jit.script(nn.ReLU())
    net = named(conv=conv(), relu=scripted, head=pooled(nn.Linear(4, 2)))
    assert name_of(net, images()) == "conv"
    assert hooks(named(conv=net.conv, head=net.head)) == 0


class Odd(nn.Module):
    """A buffer that cannot be compared, beside a layer and a head."""

    def __init__(self, buffer, fails=False):
        super().__init__()
        self.layer, self.head = conv(), pooled(nn.Linear(4, 2))
        self.register_buffer("odd", buffer)
        self.fails = fails

    def forward(self, x):
        if self.fails:
            raise KeyError("the model's own")
        return self.head(self.layer(x))


ODD_BUFFERS = {
    "sparse": lambda: torch.eye(3).to_sparse(),
    "meta": lambda: torch.empty(3, device="meta"),
    "none": lambda: None,
    "nan": lambda: torch.full((3,), torch.nan),
}


@pytest.mark.parametrize("kind", ODD_BUFFERS)
def test_buffers_of_any_kind_are_no_obstacle(kind):
    net = Odd(ODD_BUFFERS[kind]())
    before = net.odd
    assert find_layer(net, images()) is net.layer
    assert net.odd is before and hooks(net) == 0


@pytest.mark.parametrize("kind", ODD_BUFFERS)
def test_the_models_own_error_is_not_masked(kind):
    net = Odd(ODD_BUFFERS[kind](), fails=True)
    with pytest.raises(KeyError, match="the model's own") as raised:
        find_layer(net, images())
    assert raised.value.__context__ is None and hooks(net) == 0


@pytest.mark.parametrize("fails", [False, True])
def test_buffers_that_forward_assigns_are_restored(fails):
    def run(net, x):
        net.count = net.count + 1  # another tensor
        net.seen += 1
        if fails:
            raise KeyError("lost")
        return net.head(net.layer(x))

    net = Net(run, layer=conv(), head=pooled(nn.Linear(4, 2)))
    net.register_buffer("count", torch.zeros(()))
    net.register_buffer("seen", torch.zeros(()))
    count, seen = net.count, net.seen
    if fails:
        with pytest.raises(KeyError, match="lost"):
            find_layer(net, images())
    else:
        find_layer(net, images())
    assert net.count is count and count == 0
    assert net.seen is seen and seen == 0


def test_the_random_generator_stays():
    net = named(conv=conv(), drop=nn.Dropout(), head=pooled(nn.Linear(4, 2))).eval()
    inputs = torch.rand(1, 3, 16, 16)
    before = torch.get_rng_state()
    find_layer(net, inputs)
    assert torch.equal(torch.get_rng_state(), before)
