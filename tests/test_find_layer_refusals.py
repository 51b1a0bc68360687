"""find_layer: models without a spatial layer before the head are refused."""

import pytest
import torch
import torch.nn.functional as F
from layer_nets import Net, conv, images, name_of, named, pooled
from torch import nn
from torchvision import models

from captum_unioncam import LayerCAM, MeanOverMask, SelectedOutput, find_layer


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


# Refusals


def test_what_is_no_module_or_has_no_spatial_input_is_refused():
    with pytest.raises(TypeError, match="`model` must be a torch.nn.Module, got <func"):
        find_layer(lambda x: x, images())
    with pytest.raises(ValueError, match="`inputs` must have a tensor .* yourself"):
        find_layer(nn.Linear(3, 2), torch.rand(2, 3))
    with pytest.raises(ValueError, match="`inputs` must have a tensor .* yourself"):
        find_layer(nn.Linear(3, 2), (torch.rand(2, 3), torch.rand(2, 1, 1, 1, 1, 1)))


def test_a_model_of_vectors_alone_is_refused():
    net = nn.Sequential(nn.Flatten(), nn.Linear(768, 4), nn.ReLU(), nn.Linear(4, 2))
    with pytest.raises(ValueError, match="`model` has no layer .* yourself"):
        find_layer(net, images())


def test_a_model_of_one_position_is_refused():
    net = named(conv=nn.Conv2d(3, 4, 16), relu=nn.ReLU(), head=pooled(nn.Linear(4, 2)))
    with pytest.raises(ValueError, match="`model` has no layer .* one position before"):
        find_layer(net, images())


def test_functions_alone_are_refused():
    net = Net(lambda net, x: x.mean((2, 3)))
    with pytest.raises(ValueError, match="`model` has no layer .* yourself"):
        find_layer(net, images())


def test_segmentation_is_refused():
    plain = nn.Sequential(conv(), nn.ReLU(), nn.Conv2d(4, 5, 1))
    aspp = models.segmentation.lraspp_mobilenet_v3_large(
        weights=None, weights_backbone=None
    )
    for net in (plain, aspp.eval(), SelectedOutput(aspp, "out").eval()):
        with pytest.raises(ValueError, match="returns a map, so that .* yourself"):
            find_layer(net, images(side=64))


def test_segmentation_under_a_mask_has_a_layer_before_its_classes():
    net = MeanOverMask(named(conv=conv(), relu=nn.ReLU(), classes=nn.Conv2d(4, 5, 1)))
    masks = torch.ones(2, 1, 16, 16)
    assert name_of(net, images(), (masks,)) == "model.relu"


def test_detection_is_refused():
    net = models.detection.fasterrcnn_mobilenet_v3_large_320_fpn(
        weights=None, weights_backbone=None, box_score_thresh=0.0
    ).eval()
    with pytest.raises(ValueError, match="`model` .* name the layer yourself"):
        find_layer(net, images(1, side=64))
    anchors = models.detection.ssdlite320_mobilenet_v3_large(
        weights=None, weights_backbone=None
    )
    with pytest.raises(ValueError, match="`model` .* name the layer yourself"):
        find_layer(anchors.eval(), images(1, side=64))


def test_a_detector_that_returns_maps_is_refused():
    def run(net, x):
        maps = net.conv(x)
        return [net.head(maps), net.head(F.max_pool2d(maps, 2))]

    net = Net(run, conv=conv(), head=nn.Conv2d(4, 6, 1))
    with pytest.raises(ValueError, match="returns a map"):
        find_layer(net, images())


class PatchTransformer(nn.Module):
    """A transformer encoder on the patches of an image or a signal."""

    def __init__(self, rank, norm_first, pool, batch_first=True):
        super().__init__()
        kind = {1: nn.Conv1d, 2: nn.Conv2d}[rank]
        self.patches = kind(3, 8, 4, 4)
        self.encoder = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(
                8, 2, 16, batch_first=batch_first, norm_first=norm_first
            ),
            2,
            enable_nested_tensor=False,
        )
        self.batch_first, self.pool, self.fc = batch_first, pool, nn.Linear(8, 2)

    def forward(self, x):
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        if not self.batch_first:
            tokens = tokens.transpose(0, 1)
        tokens = self.encoder(tokens)
        if not self.batch_first:
            tokens = tokens.transpose(0, 1)
        return self.fc(tokens.mean(1) if self.pool else tokens[:, 0])


@pytest.mark.parametrize("rank", [1, 2])
@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("pool", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
def test_transformers_on_patches_are_refused(rank, norm_first, pool, batch_first):
    net = PatchTransformer(rank, norm_first, pool, batch_first).eval()
    # As many patches as features, and one for each example, are no excuse.
    for examples, side in [(2, 16), (1, 32), (4, 16), (8, 32)]:
        inputs = torch.rand(examples, 3, *[side] * rank)
        with pytest.raises(ValueError, match="tokens.*captum_unioncam.vit_reshape"):
            find_layer(net, inputs)


def test_vision_transformers_are_refused():
    net = models.VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=3).eval()
    with pytest.raises(ValueError, match="tokens.*vit_reshape or .*swin_reshape"):
        find_layer(net, images(side=32))


def test_attention_after_convolutions_is_refused():
    def run(net, x):
        tokens = net.conv(x).flatten(2).transpose(1, 2)
        return net.fc(net.attention(tokens, tokens, tokens)[0].mean(1))

    net = Net(
        run,
        conv=nn.Conv2d(3, 8, 4, 4),
        attention=nn.MultiheadAttention(8, 2, batch_first=True),
        fc=nn.Linear(8, 2),
    ).eval()
    with pytest.raises(ValueError, match="'attention'.*before its output"):
        find_layer(net, images())


@pytest.mark.parametrize("rank", [1, 2])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_recurrence_after_convolutions_is_refused(rank, batch_first, kind):
    def run(net, x):
        steps = net.conv(x).flatten(2).transpose(1, 2)
        output, _ = net.rnn(steps if batch_first else steps.transpose(0, 1))
        return net.fc(output[:, -1] if batch_first else output[-1])

    layer = {1: nn.Conv1d, 2: nn.Conv2d}[rank](3, 8, 4, 4)
    rnn = kind(8, 8, batch_first=batch_first)
    net = Net(run, conv=layer, rnn=rnn, fc=nn.Linear(8, 2))
    with pytest.raises(ValueError, match="'rnn'.*before its output"):
        find_layer(net, torch.rand(2, 3, *[16] * rank))


def test_channels_last_of_a_block_are_refused():
    channels = 12  # 8, as many as rows and columns, could come first

    def run(net, x):
        maps = net.conv(x).permute(0, 2, 3, 1)
        return net.fc(net.block(maps).mean((1, 2)))

    net = Net(
        run,
        conv=nn.Conv2d(3, channels, 4, 4),  # 8 x 8 positions
        block=nn.Sequential(
            nn.LayerNorm(channels), nn.Linear(channels, channels), nn.GELU()
        ),
        fc=nn.Linear(channels, 2),
    )
    with pytest.raises(ValueError, match="channels in the last"):
        find_layer(net, images(side=32))


def test_a_convolution_after_tokens_is_found():
    """A hybrid: the tokens are made a map again."""

    def run(net, x):
        maps = net.conv(x)
        tokens = net.norm(maps.flatten(2).transpose(1, 2))
        maps = tokens.transpose(1, 2).reshape(maps.shape)
        return net.fc(net.last(maps).mean((2, 3)))

    net = Net(
        run,
        conv=conv(),
        norm=nn.LayerNorm(4),
        last=nn.Sequential(conv(4, 6), nn.ReLU()),
        fc=nn.Linear(6, 2),
    )
    assert name_of(net, images()) == "last"


def test_patches_as_rows_of_the_batch_are_refused():
    """Several crops of each example: the rows are not the examples."""

    def run(net, x):
        crops = torch.cat([x[..., :8, :8], x[..., 8:, 8:]])
        return net.fc(net.layer(crops).mean((2, 3))).view(2, len(x), -1).mean(0)

    net = Net(run, layer=nn.Sequential(conv(), nn.ReLU()), fc=nn.Linear(4, 2))
    with pytest.raises(ValueError, match="other rows than the inputs"):
        find_layer(net, images())


def test_bad_inputs_are_named():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.LazyLinear(2))
    with pytest.raises(TypeError, match="`inputs` must be a Tensor or a tuple .* list"):
        find_layer(net, [images(side=8)])
    with pytest.raises(ValueError, match="`inputs` must hold at least one example"):
        find_layer(net, torch.rand(0, 3, 8, 8))
    assert find_layer(net, images(side=8)) is net[0]


def test_tokens_of_a_sequence_are_refused():
    class Text(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.fc = nn.Embedding(9, 8), nn.Linear(8, 2)

        def forward(self, words):
            return self.fc(self.layer(words).mean(1))

    cam = LayerCAM(Text(), "layer")
    with pytest.raises(ValueError, match="tokens, .* of a sequence.*swin_reshape"):
        cam.attribute(torch.randint(9, (2, 5)), target=0)
