"""Maps that look at no model: what any method has to be better than.

They stand in every table of an evaluation. A metric on which one of them is as good as
the methods does not tell what the model looks at.
"""

import hashlib
import torch
from captum.attr import Attribution
from torch import Tensor

from captum_unioncam._captum import TargetType
from captum_unioncam._checks import check_integer, check_number
from captum_unioncam._maps import as_floats

# Cells along each side of the random map: about the layer that is usually explained.
GRID = 7
# The width of the Gaussian, as a share of each side.
SIGMA = 0.25


class Random(Attribution):
    r"""A map of random values, without looking at the model.

    Each cell of a coarse grid is drawn uniformly from [0, 1). The seed is made of
    ``seed`` and of the image's own values: an image has the same map in any batch and
    in any process, and two images have different ones.

    Reference: Samek et al., IEEE TNNLS 2017, arXiv:1509.06321, a random order.

    Cost: no forward pass.
    """

    def attribute(
        self,
        inputs: Tensor,
        target: TargetType = None,
        additional_forward_args: object = None,
        *,
        seed: int = 0,
        grid: int = GRID,
    ) -> Tensor:
        r"""
        Args:
            inputs (Tensor): The images, (N, C, *spatial).
            target, additional_forward_args (optional): Not used. Default: None
            seed (int, optional): Another one gives other maps. Default: 0
            grid (int, optional): Cells along each side. Default: 7

        Returns:
            *Tensor* of **attributions**, (N, 1, grid, ...), in [0, 1).

        Raises:
            TypeError: If ``seed`` or ``grid`` is not an integer.
            ValueError: If ``seed`` is negative, or ``grid`` is not positive.

        Examples::

            >>> import torch
            >>> from captum_unioncam.evaluation.baselines import Random
            >>> images = torch.rand(2, 3, 32, 32)
            >>> maps = Random(len).attribute(images)
            >>> maps.shape, torch.equal(maps[1:], Random(len).attribute(images[1:]))
            (torch.Size([2, 1, 7, 7]), True)
        """
        check_integer("seed", seed, low=0)
        check_integer("grid", grid)
        size = [1, 1, *[grid] * (inputs.dim() - 2)]
        maps = [
            torch.rand(size, generator=_generator(image, seed), device="cpu")
            for image in inputs
        ]
        return torch.cat(maps).to(as_floats(inputs))


def _generator(image: Tensor, seed: int) -> torch.Generator:
    """Returns a generator that is seeded by a seed and the values of an image."""
    values = image.detach().cpu().contiguous().flatten().view(torch.uint8)
    digest = hashlib.sha256(f"{seed}:".encode() + values.numpy().tobytes()).digest()
    return torch.Generator("cpu").manual_seed(int.from_bytes(digest[:7], "big"))


class Gaussian(Attribution):
    r"""A Gaussian at the centre of the image, without looking at the model.

    It tells what a metric owes to photographers, who put their subject there.

    Reference: Choe et al., CVPR 2020, arXiv:2001.07437, the centre baseline.

    Cost: no forward pass.
    """

    def attribute(
        self,
        inputs: Tensor,
        target: TargetType = None,
        additional_forward_args: object = None,
        *,
        sigma: float = SIGMA,
    ) -> Tensor:
        r"""
        Args:
            inputs (Tensor): The images, (N, C, *spatial).
            target, additional_forward_args (optional): Not used. Default: None
            sigma (float, optional): The standard deviation, as a share of each side of
                the image. Default: 0.25

        Returns:
            *Tensor* of **attributions**, (N, 1, *spatial), in (0, 1].

        Raises:
            TypeError: If ``sigma`` is not a number.
            ValueError: If ``sigma`` is not from 0.1 to 10.

        Examples::

            >>> import torch
            >>> from captum_unioncam.evaluation.baselines import Gaussian
            >>> map = Gaussian(len).attribute(torch.rand(1, 3, 5, 5))[0, 0]
            >>> divmod(map.argmax().item(), 5)
            (2, 2)
        """
        check_number("sigma", sigma, 0.1, 10)
        values = as_floats(inputs)
        exponent = values.new_zeros(inputs.shape[2:])
        for dim, side in enumerate(inputs.shape[2:]):
            # From -0.5 to 0.5 across the image, at the centres of its pixels.
            places = (torch.arange(side, device=inputs.device) + 0.5) / side - 0.5
            shape = [1] * exponent.dim()
            shape[dim] = side
            exponent = exponent + (places.view(shape).to(values) / sigma) ** 2
        # Not even the corners are 0: all pixels have their order.
        return (-0.5 * exponent).exp().expand(len(inputs), 1, *inputs.shape[2:]).clone()


class Edges(Attribution):
    r"""The edges of the image itself, without looking at the model.

    The length of the gradient of the values in space, summed over the channels. Maps
    may look convincing, because they show what a person sees in the image too.

    Reference: Adebayo et al., NeurIPS 2018, arXiv:1810.03292, the edge detector.

    Cost: no forward pass.
    """

    def attribute(
        self,
        inputs: Tensor,
        target: TargetType = None,
        additional_forward_args: object = None,
    ) -> Tensor:
        r"""
        Args:
            inputs (Tensor): The images, (N, C, *spatial).
            target, additional_forward_args (optional): Not used. Default: None

        Returns:
            *Tensor* of **attributions**, (N, 1, *spatial), >= 0.

        Examples::

            >>> import torch
            >>> from captum_unioncam.evaluation.baselines import Edges
            >>> image = torch.tensor([[[[0.0, 0, 8, 8]] * 2]])
            >>> Edges(len).attribute(image)[0, 0, 0]
            tensor([0., 4., 4., 0.])
        """
        values = as_floats(inputs.detach())
        dims = [dim for dim in range(2, values.dim()) if values.shape[dim] > 1]
        if not dims:
            return torch.zeros_like(values[:, :1])
        slopes = torch.stack(
            list(torch.gradient(values, dim=dims))
        )  # (dims, N, C, ...)
        return (slopes**2).sum(0).sqrt().sum(1, keepdim=True)
