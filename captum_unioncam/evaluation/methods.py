"""The methods by name: the command, the tests and the documentation read this list."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from captum.attr import Attribution, GuidedGradCam, IntegratedGradients
from torch import Tensor
from torch.nn import Module

from captum_unioncam import attr
from captum_unioncam.evaluation.baselines import Edges, Gaussian, Random
from captum_unioncam.evaluation.occlusion import Occlusion


@dataclass(frozen=True)
class Method:
    """A way to make a map for each example of a batch.

    Attributes:
        attribution (type[captum.attr.Attribution]): The class; its name is the title,
            and in lower case the name. Where its constructor takes no layer, it
            explains the input.
        paper (str): Authors and year.
        link (str): Where to read the paper.
        needs_gradients (bool): Whether the model must be differentiable.
        forwards (str): Forward passes for each example of a batch of several, in
            numbers, ``active`` channels (not constant), ``used`` channels (not all
            zero), different ``groups`` of channels, ``positions`` of the layer, and
            ``windows`` of the input.
        deviations (str): How the map deviates from the paper's, in short.
        ignores (frozenset[str]): Options of the same name as other methods' that mean
            something else here.
        options (Mapping[str, Any]): Options of ``attribute`` that differ from its
            defaults.
        any_model (bool): Whether it explains models of any head. ``all`` stands for the
            methods that do, but for the baselines.
        baseline (bool): Whether it looks at no model. The evaluation adds such methods
            to every table.
    """

    attribution: type[Attribution]
    paper: str
    link: str
    needs_gradients: bool
    forwards: str
    deviations: str
    ignores: frozenset[str] = frozenset()
    options: Mapping[str, Any] = field(default_factory=dict)
    any_model: bool = True
    baseline: bool = False

    @property
    def takes_layer(self) -> bool:
        """Whether the maps are of a layer; else they are of the input's size."""
        return "layer" in inspect.signature(self.attribution).parameters

    @property
    def title(self) -> str:
        """Name for tables and pictures."""
        return self.attribution.__name__

    @property
    def name(self) -> str:
        """Name for the command and the evaluation."""
        return self.title.lower()

    def explain(
        self,
        forward_func: Callable[..., Any],
        layer: Module | str,
        options: Mapping[str, Any] | None = None,
        **offered: Any,
    ) -> Callable[..., Any]:
        """Returns ``attribute`` of an instance, with those options that the class has.

        Attributions of several channels, such as Captum's of an image's pixels, become
        one map: their sum over the channels, without negative evidence.

        Args:
            forward_func (Callable or torch.nn.Module): The model.
            layer (torch.nn.Module or str): The layer, or its dotted name; unused where
                the class takes none.
            options (Mapping[str, Any], optional): Options of the constructor and of
                ``attribute`` for this method. Default: None
            offered (Any): Options of the constructor and of ``attribute`` for several
                methods. Those that the class does not have, or gives another meaning,
                are left out.

        Raises:
            TypeError: If a ``reshape_transform`` would be left out.
        """
        options = options or {}
        given = {"layer": layer, **offered}
        given = {k: v for k, v in given.items() if k not in self.ignores}
        built = _known(self.attribution, {**given, **options})
        transform = given.get("reshape_transform")
        if transform and self.takes_layer and "reshape_transform" not in built:
            raise TypeError(
                f"`reshape_transform`: {self.title} does not take one, and would read "
                "the layer without it; leave this method out, or add the option."
            )
        if isinstance(built.get("parts"), tuple | list):
            parts = built["parts"]
            built["parts"] = [_instance(part, forward_func, given) for part in parts]
        cam = self.attribution(forward_func, **built)
        known = {**self.options, **given, **options}
        known = _known(self.attribution.attribute, known)
        return partial(_one_channel, cam.attribute, **known)


def _instance(part: Any, forward_func: Any, given: dict[str, Any]) -> Any:
    """Returns a part of a union, which a label names by its method."""
    if not isinstance(part, Method):
        return part
    return part.attribution(forward_func, **_known(part.attribution, given))


def _one_channel(attribute: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Returns what ``attribute`` returns, with several channels summed to one map."""
    result = attribute(*args, **kwargs)
    if not isinstance(result, Tensor) or result.dim() < 3 or result.shape[1] == 1:
        return result
    return result.detach().sum(1, keepdim=True).relu()


def _known(function: Callable[..., Any], options: dict[str, Any]) -> dict[str, Any]:
    """Returns the options that a function has as keywords."""
    names = inspect.signature(function).parameters
    return {name: value for name, value in options.items() if name in names}


_ENTRIES = (
    Method(
        attr.UnionCAM,
        paper="Hu et al. 2024",
        link="https://doi.org/10.3389/fnbot.2024.1490198",
        needs_gradients=True,
        forwards="active + 6",
        deviations="ReLU on both component maps",
    ),
    Method(
        attr.DenoisedGradCAM,
        paper="Hu et al. 2024 (AMD)",
        link="https://doi.org/10.3389/fnbot.2024.1490198",
        needs_gradients=True,
        forwards="1",
        deviations="ReLU on the map",
    ),
    Method(
        attr.RegionCAM,
        paper="Hu et al. 2024 (region map)",
        link="https://doi.org/10.3389/fnbot.2024.1490198",
        needs_gradients=False,
        forwards="active + 3",
        deviations="ReLU on the map",
    ),
    Method(
        attr.FusionCAM,
        paper="Dekdegue et al. 2026",
        link="https://arxiv.org/abs/2603.05386",
        needs_gradients=True,
        forwards="active + 6",
        deviations="negative contributions count as 0; fused at the layer's size",
    ),
    Method(
        attr.CAM,
        paper="Zhou et al. 2016",
        link="https://arxiv.org/abs/1512.04150",
        needs_gradients=False,
        forwards="1",
        deviations="ReLU on the map",
        any_model=False,  # of a pooled linear head alone
    ),
    Method(
        attr.GradCAM,
        paper="Selvaraju et al. 2017",
        link="https://arxiv.org/abs/1610.02391",
        needs_gradients=True,
        forwards="1",
        deviations="none; Captum's LayerGradCam with relu_attributions=True",
    ),
    Method(
        attr.GradCAMPlusPlus,
        paper="Chattopadhay et al. 2018",
        link="https://arxiv.org/abs/1710.11063",
        needs_gradients=True,
        forwards="1",
        deviations="without the factor exp(score)",
    ),
    Method(
        attr.XGradCAM,
        paper="Fu et al. 2020",
        link="https://arxiv.org/abs/2008.02312",
        needs_gradients=True,
        forwards="1",
        deviations="none",
    ),
    Method(
        attr.HiResCAM,
        paper="Draelos and Carin 2020",
        link="https://arxiv.org/abs/2011.08891",
        needs_gradients=True,
        forwards="1",
        deviations="ReLU on the map",
    ),
    Method(
        attr.LayerCAM,
        paper="Jiang et al. 2021",
        link="https://doi.org/10.1109/TIP.2021.3089943",
        needs_gradients=True,
        forwards="1",
        deviations="one layer, without the tanh for fusing several",
    ),
    Method(
        attr.SmoothGradCAMPlusPlus,
        paper="Omeiza et al. 2019",
        link="https://arxiv.org/abs/1908.01224",
        needs_gradients=True,
        forwards="25 + 1",
        deviations="second derivatives in the numerator, as in Grad-CAM++",
    ),
    Method(
        attr.IntegratedGradCAM,
        paper="Sattarzadeh et al. 2021",
        link="https://arxiv.org/abs/2102.07805",
        needs_gradients=True,
        forwards="50",
        deviations="the authors' code by default; the paper's form by `relative`",
    ),
    Method(
        attr.EigenCAM,
        paper="Muhammad and Yeasin 2020",
        link="https://arxiv.org/abs/2008.00299",
        needs_gradients=False,
        forwards="1",
        deviations="ReLU on the map, whose largest entry is positive",
    ),
    Method(
        attr.EigenGradCAM,
        paper="grad-cam 2021",
        link="https://github.com/jacobgil/pytorch-grad-cam",
        needs_gradients=True,
        forwards="1",
        deviations="not centred; the largest entry is positive",
    ),
    Method(
        attr.ScoreCAM,
        paper="Wang et al. 2020",
        link="https://arxiv.org/abs/1910.01279",
        needs_gradients=False,
        forwards="active + 3",
        deviations="none",
    ),
    Method(
        attr.SSCAM,
        paper="Wang et al. 2020 (smoothed)",
        link="https://arxiv.org/abs/2006.14255",
        needs_gradients=False,
        forwards="35 * active + 3",
        deviations="all channels share the noise",
    ),
    Method(
        attr.ISCAM,
        paper="Naidu et al. 2020",
        link="https://arxiv.org/abs/2010.03023",
        needs_gradients=False,
        forwards="10 * active + 3",
        deviations="steps i/n of the mask, not their sum",
    ),
    Method(
        attr.GroupCAM,
        paper="Zhang et al. 2021",
        link="https://arxiv.org/abs/2103.13859",
        needs_gradients=True,
        forwards="32 + 3",
        deviations="groups of nearly equal size",
        ignores=frozenset({"baselines"}),  # its default is the blurred input
    ),
    Method(
        attr.AblationCAM,
        paper="Desai and Ramaswamy 2020",
        link="https://doi.org/10.1109/WACV45572.2020.9093360",
        needs_gradients=False,
        forwards="used + 2",
        deviations="confidence for the raw output, divided by its size",
    ),
    Method(
        attr.FDCAM,
        paper="Li et al. 2022",
        link="https://arxiv.org/abs/2206.08792",
        needs_gradients=True,
        forwards="2 * groups + 2",
        deviations="confidence for the raw output",
        ignores=frozenset({"percentile"}),  # of cosines, not of maps
    ),
    Method(
        attr.ReciproCAM,
        paper="Byun and Lee 2022",
        link="https://arxiv.org/abs/2209.14074",
        needs_gradients=False,
        forwards="positions + 2",
        deviations="none",
    ),
    Method(
        attr.AugmentedGradCAM,
        paper="Morbidelli et al. 2020",
        link="https://github.com/diegocarrera89/AugmentedGradCAM",
        needs_gradients=True,
        forwards="100",
        deviations="the mean leaves out copies that do not show a pixel",
    ),
    Method(
        attr.RISE,
        paper="Petsiuk et al. 2018",
        link="https://arxiv.org/abs/1806.07421",
        needs_gradients=False,
        forwards="4000 + 3",
        deviations="all examples share the masks; of the input, without a layer",
    ),
    Method(
        Occlusion,
        paper="Zeiler and Fergus 2014",
        link="https://arxiv.org/abs/1311.2901",
        needs_gradients=False,
        forwards="windows + 1",
        deviations="Captum's, summed over the channels, positive part",
    ),
    Method(
        IntegratedGradients,
        paper="Sundararajan et al. 2017",
        link="https://arxiv.org/abs/1703.01365",
        needs_gradients=True,
        forwards="50",
        deviations="Captum's, summed over the channels, positive part",
        options={"internal_batch_size": 16},  # 50 copies of a batch are many
    ),
    Method(
        GuidedGradCam,
        paper="Selvaraju et al. 2017 (guided)",
        link="https://arxiv.org/abs/1610.02391",
        needs_gradients=True,
        forwards="2",
        deviations="Captum's, summed over the channels, positive part",
    ),
    Method(
        Random,
        paper="Samek et al. 2017 (baseline)",
        link="https://arxiv.org/abs/1509.06321",
        needs_gradients=False,
        forwards="0",
        deviations="random values on a grid of 7 a side",
        baseline=True,
    ),
    Method(
        Gaussian,
        paper="Choe et al. 2020 (baseline)",
        link="https://arxiv.org/abs/2001.07437",
        needs_gradients=False,
        forwards="0",
        deviations="its width is a quarter of the image's",
        baseline=True,
    ),
    Method(
        Edges,
        paper="Adebayo et al. 2018 (baseline)",
        link="https://arxiv.org/abs/1810.03292",
        needs_gradients=False,
        forwards="0",
        deviations="the length of the gradient in space, of all channels",
        baseline=True,
    ),
)

METHODS: dict[str, Method] = {entry.name: entry for entry in _ENTRIES}
