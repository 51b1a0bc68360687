"""Models that need no wrapper but a line: similarity, regression, several labels."""

import pytest
import torch
import torch.nn.functional as F
from wrapped import EXACT, convnet, images

from captum_unioncam import UnionCAM

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("error::UserWarning"),
    pytest.mark.filterwarnings("ignore:.* constant. they have one value:UserWarning"),
]


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def test_similarity_to_an_embedding():
    net, inputs = convnet(6), images()
    with torch.no_grad():
        references = net(images())

    def similarity(x, references):
        return F.cosine_similarity(net(x), references)

    cam = UnionCAM(similarity, net.relu)
    maps, details = cam.attribute(
        inputs, additional_forward_args=(references,), return_details=True
    )
    with torch.no_grad():
        for i in range(3):
            black = net(torch.zeros_like(inputs[:1]))[0]
            expected = black @ references[i] / black.norm() / references[i].norm()
            torch.testing.assert_close(details.baseline_score[i], expected, **EXACT)
    for i in range(3):
        one = slice(i, i + 1)
        alone = cam.attribute(inputs[one], additional_forward_args=(references[one],))
        torch.testing.assert_close(maps[one], alone, **EXACT)
    # One reference for all, with a first dimension of 1.
    same = cam.attribute(inputs, additional_forward_args=(references[:1],))
    torch.testing.assert_close(same[:1], maps[:1], **EXACT)


def check_scores(details, net, inputs, score):
    """Compares the scores of the baseline and of each component with a loop's."""
    with torch.no_grad():
        black = score(net(torch.zeros_like(inputs)))
        torch.testing.assert_close(details.baseline_score, black, **EXACT)
        for maps, gains in (
            (details.denoised_map, details.denoised_gain),
            (details.region_map, details.region_gain),
        ):
            large = F.interpolate(maps, inputs.shape[2:], mode="bilinear")
            low, high = large.amin((2, 3), True), large.amax((2, 3), True)
            masks = torch.where(high > low, (large - low) / (high - low), 0)
            found = score(net(masks * inputs)) - black
            torch.testing.assert_close(gains, found, **EXACT)


@pytest.mark.parametrize("shape", ["(N, 1)", "(N,)"])
def test_regression_of_one_number(shape):
    net, inputs = convnet(1), images()
    model = net if shape == "(N, 1)" else (lambda x: net(x)[:, 0])
    target = 0 if shape == "(N, 1)" else None
    cam = UnionCAM(model, net.relu)
    _, details = cam.attribute(
        inputs, target=target, score_func=lambda output: output, return_details=True
    )
    check_scores(details, net, inputs, lambda output: output[:, 0])
    # The same by default, but a binary logit would look the same.
    with pytest.warns(UserWarning, match="single output .* has negative values"):
        _, by_default = cam.attribute(inputs, target=target, return_details=True)
    assert torch.equal(by_default.region_gain, details.region_gain)


def test_regression_of_several_numbers():
    net, inputs = convnet(4), images()
    _, details = UnionCAM(net, net.relu).attribute(
        inputs, target=2, score_func=lambda output: output, return_details=True
    )
    check_scores(details, net, inputs, lambda output: output[:, 2])


def test_several_labels():
    net, inputs = convnet(4), images()
    targets = [0, 3, 1]
    _, details = UnionCAM(net, net.relu).attribute(
        inputs, target=targets, score_func=torch.sigmoid, return_details=True
    )
    check_scores(
        details, net, inputs, lambda output: output.sigmoid()[range(3), targets]
    )


def test_several_labels_of_one_output():
    """A binary classifier of one logit has no softmax: sigmoid is its confidence."""
    net, inputs = convnet(1), images()
    _, details = UnionCAM(net, net.relu).attribute(
        inputs, target=0, score_func=torch.sigmoid, return_details=True
    )
    check_scores(details, net, inputs, lambda output: output.sigmoid()[:, 0])
