"""Whether maps depend on what the model learned: the cascading randomization test.

A method whose maps stay similar while the model's parameters are replaced by random
ones shows the input, for instance its edges, and not what the model makes of it.
"""

import copy
import itertools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import Module

from captum_unioncam._maps import at_least_float32
from captum_unioncam.layers import named_layer

# The paper shows 17 blocks of Inception v3; fewer stages cost less.
STAGES = 8

# The modules' own seeds are drawn below this bound.
SEEDS = 2**63 - 1


def spearman(first: Tensor, second: Tensor) -> Tensor:
    r"""Returns the rank correlation of two maps of each example.

    From -1 to 1: 1 for maps that order their positions equally, about 0 for unrelated
    ones. Equal values share the average of their ranks. Signs count: no absolute value
    is taken of the maps.

    Args:
        first (Tensor): A map for each example, (N, 1, *spatial), of any scale.
        second (Tensor): Maps of the same shape, on the same device.

    Returns:
        *Tensor*, (N,), NaN where either map is constant or not finite.

    Raises:
        ValueError: If the maps are not (N, 1, *spatial), or their shapes differ.

    Examples::

        >>> import torch
        >>> from captum_unioncam.evaluation.sanity import spearman
        >>> maps = torch.tensor([[[0.0, 1, 2, 7]], [[3, 3, 3, 3]]])
        >>> spearman(maps, -maps)
        tensor([-1., nan])
    """
    for name, maps in (("first", first), ("second", second)):
        if maps.dim() < 3 or maps.shape[1] != 1:
            raise ValueError(
                f"`{name}` must have one map for each example, (N, 1, *spatial), got "
                f"{tuple(maps.shape)}."
            )
    if first.shape != second.shape:
        raise ValueError(
            "`second` must have the shape of `first`, expected "
            f"{tuple(first.shape)}, got {tuple(second.shape)}; resize one of them."
        )
    first, second = at_least_float32(first.detach()), at_least_float32(second.detach())
    one, other = _centred_ranks(first), _centred_ranks(second)
    squares = (one * one).sum(1) * (other * other).sum(1)
    # A constant map has centred ranks of 0, and 0 / 0 is NaN.
    correlation = ((one * other).sum(1) / squares.sqrt()).clamp(-1, 1)
    finite = (first.isfinite() & second.isfinite()).flatten(1).all(1)
    return torch.where(finite, correlation, torch.nan)


def _centred_ranks(maps: Tensor) -> Tensor:
    """Returns the ranks in [-1, 1] around their mean, ties averaged, (N, positions)."""
    values = maps.flatten(1).contiguous()  # (N, positions)
    ordered = values.sort(dim=1).values
    below = torch.searchsorted(ordered, values)
    not_above = torch.searchsorted(ordered, values, right=True)
    # Equal values hold the ranks below + 1, ..., not_above. Twice their average, less
    # positions + 1, which is twice the mean of all ranks, is a whole number: exact.
    positions = values.shape[1]
    return (below + not_above - positions).to(values.dtype) / positions


def cascade(
    model: Module, stages: int = STAGES, seed: int = 0
) -> Iterator[tuple[str, Module]]:
    r"""Yields copies of a model with more and more of its modules randomized.

    The modules that own parameters are taken from the head, the last one registered,
    down to the first, in ``stages`` groups of nearly equal size. A module draws its
    parameters anew with its ``reset_parameters``, which also resets the running
    statistics of a batch norm. Where it has none, each parameter is drawn from the
    normal distribution with that parameter's mean and standard deviation.

    The caller owns each copy, which is on the model's devices, in its mode (training or
    eval), with its ``requires_grad``. The model and the global random state stay as
    they are. A module draws the same values on every device and for every number of
    stages.

    Reference: Adebayo et al., Sanity checks for saliency maps, NeurIPS 2018,
    arXiv:1810.03292, the cascading randomization of model parameters.

    Note: Parameters that are shared by modules, such as tied weights, change with the
    highest of them. A parameter whose entries are all equal is not changed by drawing,
    as its standard deviation is 0. A norm without parameters keeps its statistics.

    Args:
        model (Module): The trained model.
        stages (int, optional): Number of copies; a model with fewer modules that own
            parameters gives as many as these. Default: 8
        seed (int, optional): Seed of the random parameters. Default: 0

    Yields:
        *tuple[str, Module]*: The dotted name of the lowest module randomized so far,
        empty for the model itself, and the copy.

    Raises:
        ValueError: If ``stages`` is not positive, or the model has no parameters.

    Examples::

        >>> import torch
        >>> from captum_unioncam.evaluation.sanity import cascade
        >>> net = torch.nn.Sequential(
        ...     torch.nn.Conv2d(1, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(),
        ...     torch.nn.Linear(16, 2),
        ... )
        >>> [name for name, copy in cascade(net, stages=8, seed=0)]
        ['3', '0']
    """
    if isinstance(stages, bool) or not isinstance(stages, int) or stages < 1:
        raise ValueError(f"`stages` must be a positive int, got {stages!r}.")
    # On the CPU, whose random numbers do not depend on the accelerator, and whose
    # generator is then the only one to fork.
    random = copy.deepcopy(model).cpu()
    owners = [
        (name, module)
        for name, module in random.named_modules()
        if next(module.parameters(recurse=False), None) is not None
    ][::-1]
    if not owners:
        raise ValueError("`model` must have parameters to randomize, got none.")
    stages = min(stages, len(owners))
    generator = torch.Generator("cpu").manual_seed(seed)
    done = 0
    for stage in range(1, stages + 1):
        group = owners[done : len(owners) * stage // stages]
        # Nothing is forked or seeded while the caller runs.
        for _, module in group:
            draw = torch.randint(SEEDS, (), generator=generator, device="cpu")
            _randomize(module, int(draw))
        done += len(group)
        yield group[-1][0], _with_values(model, random)


def _randomize(module: Module, seed: int) -> None:
    """Replaces the module's own parameters, on the CPU, by random ones."""
    reset = getattr(module, "reset_parameters", None)
    with torch.random.fork_rng(devices=()), torch.no_grad():
        # torch.manual_seed would seed the accelerators too.
        torch.default_generator.manual_seed(seed)
        if callable(reset):
            reset()
            return
        for parameter in module.parameters(recurse=False):
            mean, deviation = parameter.mean(), parameter.std(correction=0)
            parameter.copy_(mean + deviation * torch.randn_like(parameter))


def _with_values(model: Module, source: Module) -> Module:
    """Returns a copy of the model with the parameters and buffers of another one."""
    copied = copy.deepcopy(model)
    tensors, values = (
        itertools.chain(module.parameters(), module.buffers())
        for module in (copied, source)
    )
    with torch.no_grad():
        for tensor, value in zip(tensors, values, strict=True):
            tensor.copy_(value)
    return copied


def randomization_curves(
    model: Module,
    layer: str,
    explain: Callable[[Module, Module], Tensor],
    stages: int = STAGES,
    seed: int = 0,
) -> list[tuple[str, Tensor]]:
    r"""Returns how similar maps stay as the model is randomized from the head down.

    The rank correlation of the trained model's maps with those of each copy that
    :func:`cascade` yields. Lower is better: a method that explains the model loses its
    map with the model's parameters, and one that stays near 1 fails the test.

    Reference: Adebayo et al., Sanity checks for saliency maps, NeurIPS 2018,
    arXiv:1810.03292, the cascading randomization of model parameters.

    Cost: the maps of the batch, ``stages`` + 1 times, and three models in memory.

    Args:
        model (Module): The trained model, in eval mode.
        layer (str): Dotted name of the layer to explain, the same in each copy.
        explain (Callable): From a model and its layer to maps, (N, 1, *spatial). It
            explains the same inputs and targets at each call: pick the targets
            beforehand, since a randomized model predicts other classes.
        stages (int, optional): As in :func:`cascade`. Default: 8
        seed (int, optional): As in :func:`cascade`. Default: 0

    Returns:
        *list[tuple[str, Tensor]]*: "trained" and ones, then the name and the
        correlations, (N,), of each stage; NaN where the map of the trained model or of
        the copy is constant or not finite.

    Raises:
        ValueError: If the model has no such layer, or as in :func:`cascade` and
            :func:`spearman`.

    Examples::

        >>> import torch
        >>> from captum.attr import LayerGradCam
        >>> from captum_unioncam.evaluation.sanity import randomization_curves
        >>> net = torch.nn.Sequential(
        ...     torch.nn.Conv2d(1, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(),
        ...     torch.nn.Linear(16, 2),
        ... ).eval()
        >>> inputs = torch.rand(3, 1, 4, 4)
        >>> def explain(model, layer):
        ...     return LayerGradCam(model, layer).attribute(inputs, target=1)
        >>> curves = randomization_curves(net, "1", explain)
        >>> [(name, tuple(values.shape)) for name, values in curves]
        [('trained', (3,)), ('3', (3,)), ('0', (3,))]
    """
    trained = explain(model, named_layer(model, layer))
    ones = at_least_float32(trained.new_ones(len(trained)))
    curves = [("trained", ones)]
    for name, randomized in cascade(model, stages, seed):
        maps = explain(randomized, named_layer(randomized, layer))
        curves.append((name, spearman(trained, maps)))
    return curves
