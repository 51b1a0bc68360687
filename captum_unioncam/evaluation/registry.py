"""The one list of methods: the command, the tests and the README's table read it."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from captum.attr import LayerAttribution, LayerGradCam
from torch import Tensor
from torch.nn import Module

from captum_unioncam import attr


@dataclass(frozen=True)
class Method:
    """A way to make a map for each example of a batch.

    Attributes:
        title (str): Name for tables and pictures.
        attribution (type[LayerAttribution]): The class.
        paper (str): Authors and year.
        link (str): Where to read the paper.
        needs_gradients (bool): Whether the model must be differentiable.
        forwards (str): Forward passes for each example of a batch of several, in
            numbers, ``live`` channels (not flat), ``used`` channels (not all zero) and
            ``positions`` of the layer.
        departures (str): How the map departs from the paper's, in short.
        options (Mapping[str, Any]): Keywords of every call of ``attribute``.
        ignores (frozenset[str]): Options of the same name as other methods' that mean
            something else here.
    """

    title: str
    attribution: type[LayerAttribution]
    paper: str
    link: str
    needs_gradients: bool
    forwards: str
    departures: str
    options: Mapping[str, Any] = field(default_factory=dict)
    ignores: frozenset[str] = frozenset()

    def attribute(
        self,
        forward_func: Callable[..., Any],
        layer: Module,
        inputs: Tensor | tuple[Tensor, ...],
        target: Any,
        **options: Any,
    ) -> Tensor | tuple[Tensor, ...]:
        """Makes the maps, with those of the options that the method has."""
        known = inspect.signature(self.attribution.attribute).parameters
        taken = {
            name: value
            for name, value in options.items()
            if name in known and name not in self.ignores
        }
        cam = self.attribution(forward_func, layer)
        maps: Tensor | tuple[Tensor, ...] = cam.attribute(
            inputs, target, **self.options, **taken
        )
        return maps


METHODS: Mapping[str, Method] = {
    "unioncam": Method(
        "UnionCAM",
        attr.UnionCAM,
        "Hu et al. 2024",
        "https://doi.org/10.3389/fnbot.2024.1490198",
        needs_gradients=True,
        forwards="live + 5",
        departures="ReLU on both component maps",
    ),
    "denoisedgradcam": Method(
        "DenoisedGradCAM",
        attr.DenoisedGradCAM,
        "Hu et al. 2024 (AMD)",
        "https://doi.org/10.3389/fnbot.2024.1490198",
        needs_gradients=True,
        forwards="1",
        departures="ReLU on the map",
    ),
    "regioncam": Method(
        "RegionCAM",
        attr.RegionCAM,
        "Hu et al. 2024 (region map)",
        "https://doi.org/10.3389/fnbot.2024.1490198",
        needs_gradients=False,
        forwards="live + 2",
        departures="ReLU on the map",
    ),
    "fusioncam": Method(
        "FusionCAM",
        attr.FusionCAM,
        "Dekdegue et al. 2026",
        "https://arxiv.org/abs/2603.05386",
        needs_gradients=True,
        forwards="live + 5",
        departures="negative contributions count as 0; fused at the layer's size",
    ),
    "gradcam": Method(
        "LayerGradCam",
        LayerGradCam,
        "Selvaraju et al. 2017 (Captum's own)",
        "https://arxiv.org/abs/1610.02391",
        needs_gradients=True,
        forwards="1",
        departures="none, with relu_attributions=True",
        options={"relu_attributions": True},
    ),
    "gradcamplusplus": Method(
        "GradCAMPlusPlus",
        attr.GradCAMPlusPlus,
        "Chattopadhay et al. 2018",
        "https://arxiv.org/abs/1710.11063",
        needs_gradients=True,
        forwards="1",
        departures="without the factor exp(score)",
    ),
    "xgradcam": Method(
        "XGradCAM",
        attr.XGradCAM,
        "Fu et al. 2020",
        "https://arxiv.org/abs/2008.02312",
        needs_gradients=True,
        forwards="1",
        departures="none",
    ),
    "hirescam": Method(
        "HiResCAM",
        attr.HiResCAM,
        "Draelos and Carin 2020",
        "https://arxiv.org/abs/2011.08891",
        needs_gradients=True,
        forwards="1",
        departures="ReLU on the map",
    ),
    "layercam": Method(
        "LayerCAM",
        attr.LayerCAM,
        "Jiang et al. 2021",
        "https://doi.org/10.1109/TIP.2021.3089943",
        needs_gradients=True,
        forwards="1",
        departures="one layer, without the tanh for fusing several",
    ),
    "scorecam": Method(
        "ScoreCAM",
        attr.ScoreCAM,
        "Wang et al. 2020",
        "https://arxiv.org/abs/1910.01279",
        needs_gradients=False,
        forwards="live + 2",
        departures="none",
    ),
    "sscam": Method(
        "SSCAM",
        attr.SSCAM,
        "Wang et al. 2020 (smoothed)",
        "https://arxiv.org/abs/2006.14255",
        needs_gradients=False,
        forwards="35 * live + 2",
        departures="all channels share the noise",
    ),
    "iscam": Method(
        "ISCAM",
        attr.ISCAM,
        "Naidu et al. 2020",
        "https://arxiv.org/abs/2010.03023",
        needs_gradients=False,
        forwards="10 * live + 2",
        departures="the steps are not added up",
    ),
    "groupcam": Method(
        "GroupCAM",
        attr.GroupCAM,
        "Zhang et al. 2021",
        "https://arxiv.org/abs/2103.13859",
        needs_gradients=True,
        forwards="32 + 2",
        departures="groups of nearly equal size",
        ignores=frozenset({"baselines"}),  # its own are blurred inputs
    ),
    "ablationcam": Method(
        "AblationCAM",
        attr.AblationCAM,
        "Desai and Ramaswamy 2020",
        "https://doi.org/10.1109/WACV45572.2020.9093360",
        needs_gradients=False,
        forwards="used + 2",
        departures="confidence in place of the raw output",
    ),
    "reciprocam": Method(
        "ReciproCAM",
        attr.ReciproCAM,
        "Byun and Lee 2022",
        "https://arxiv.org/abs/2209.14074",
        needs_gradients=False,
        forwards="positions + 2",
        departures="none",
    ),
}


def methods_table() -> str:
    """Returns all methods as a table in Markdown, the README's."""
    rows = [
        ("name", "class", "paper", "gradients", "forward passes", "departs from it by"),
        ("---",) * 6,
    ]
    for name, method in METHODS.items():
        rows.append(
            (
                f"`{name}`",
                f"`{method.title}`",
                f"[{method.paper}]({method.link})",
                "yes" if method.needs_gradients else "no",
                method.forwards.replace("*", "x"),
                method.departures,
            )
        )
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
