"""The template of the CAMs that unite the maps of several attributions, their parts."""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from captum.attr import GradientAttribution, LayerAttribution, PerturbationAttribution
from torch import Tensor

from captum_unioncam._checks import check_instance
from captum_unioncam._layer_call import LayerCall, LayerTensor
from captum_unioncam._maps import at_least_float32
from captum_unioncam._reshape import ReshapeTransform
from captum_unioncam._scoring import MaskScorer, ScoringOptions
from captum_unioncam.attr._base import CAMAttribution, Layers, ScoringCAM
from captum_unioncam.attr._masking_cam import MaskingCAM, ScoredMap, scored_map
from captum_unioncam.attr.denoised_grad_cam import THETA


class UnitingCAM(ScoringCAM):
    """Template of a CAM that unites maps, of the paper's two parts or of any others.

    A subclass unites the maps, and names the functions of the paper's parts.
    """

    # From activations, gradients and theta to the gradient map, (N, 1, *spatial).
    _gradient_map: Callable[[Tensor, Tensor, float], Tensor]
    # From scores to the weights of the channels, (N, K) each.
    _region_weights: Callable[[Tensor], Tensor]
    _most_parts: float = math.inf

    def __init__(
        self,
        forward_func: Callable[..., Any],
        layer: Layers,
        device_ids: list[int] | None = None,
        *,
        reshape_transform: ReshapeTransform | None = None,
        parts: Sequence[LayerAttribution] | None = None,
        scoring_func: Callable[..., Any] | None = None,
        memory_format: torch.memory_format | None = None,
    ) -> None:
        r"""
        Args:
            forward_func, layer, device_ids, reshape_transform, scoring_func,
                memory_format: As for :class:`UnionCAM`.
            parts (list[LayerAttribution], optional): What makes the maps to unite, in
                place of the paper's two: instances that return (N, 1, *layer_size),
                such as Captum's LayerGradCam. The last one makes the region map. Each
                part gets Captum's common arguments, and those of ``baselines``,
                ``score_func``, ``theta``, ``grad_kwargs``, ``max_channels`` and
                ``fidelity`` that it takes and that are not the default. It uses its own
                ``reshape_transform``, and its map is rectified. Parts of this package
                on the same model and layer share one forward and one backward pass.
                Default: None, which is the paper's two

        Raises:
            TypeError: If ``parts`` is not a list, a part is not an instance, or as for
                :class:`UnionCAM`.
            ValueError: If there are fewer than two parts, more than the method unites,
                or as for :class:`UnionCAM`.
        """
        super().__init__(
            forward_func,
            layer,
            device_ids,
            reshape_transform=reshape_transform,
            scoring_func=scoring_func,
            memory_format=memory_format,
        )
        if parts is not None:
            if not isinstance(parts, Sequence):
                raise TypeError(
                    f"`parts` must be a list of attributions or None, got {parts!r}."
                )
            for part in parts:
                check_instance("parts", part, LayerAttribution)
            if not 2 <= len(parts) <= self._most_parts:
                only = "only two" if self._most_parts == 2 else "at least two"
                raise ValueError(
                    f"`parts` must hold {only} attributions to unite, got {len(parts)}"
                    "; call a single one itself, and unite more by UnionCAM."
                )
        self.parts = None if parts is None else list(parts)

    def _options_of_call(
        self, show_progress: bool, theta: float, grad_kwargs: object, **options: Any
    ) -> tuple[ScoringOptions, dict[str, Any]]:
        """Bundles and checks the options, and returns those that the parts are given.

        Raises:
            ValueError: If an option is for a part, and no part takes it.
        """
        scoring = self._options(show_progress, **options)
        defaults = {"theta": THETA, "fidelity": 1.0}
        offered = {
            "theta": theta,
            "grad_kwargs": grad_kwargs,
            "max_channels": scoring.max_channels,
            "fidelity": scoring.fidelity,
        }
        given = {
            name: value
            for name, value in offered.items()
            if value is not defaults.get(name) and value != defaults.get(name)
        }
        for name in given:
            if self.parts is not None and not any(
                name in inspect.signature(part.attribute).parameters
                for part in self.parts
            ):
                raise ValueError(
                    f"`{name}` is an option that none of the `parts` takes; leave it "
                    "out."
                )
        return scoring, given

    def _scored_layers(
        self,
        call: LayerCall,
        options: ScoringOptions,
        grad_kwargs: dict[str, Any] | None,
    ) -> list[tuple[LayerTensor, MaskScorer]]:
        """Returns the layers' tensors, and what scores masks of the rank of each.

        Mistakes show here, before the first masked pass.
        """
        if self.parts is None or any(
            isinstance(part, GradientAttribution) and _is_ours(part)
            for part in self.parts
        ):
            layers = call.differentiated_tensors(grad_kwargs)
        else:
            layers = call.tensors()
        return [(layer, self._scorer(layer, options)) for layer in layers]

    def _part_maps(
        self,
        layer: LayerTensor,
        scorer: MaskScorer,
        theta: float,
        given: Mapping[str, Any],
    ) -> list[ScoredMap]:
        """Returns the map of each part, (N, 1, *spatial), and how it was scored."""
        if self.parts is not None:
            maps = []
            for part in self.parts:
                maps.append(self._map_of(part, layer, scorer, given))
            return maps
        activations, gradients = layer.activations, layer.gradients
        without = ~gradients.flatten(1).ne(0).any(1)  # (N,)
        self._warn(
            without,
            "made without the gradient map: all gradients are zero, as after a "
            ".detach() or .round(), in a reentrant checkpoint, or at a layer that the "
            "target does not depend on",
        )
        gradient_map = _unscored(
            type(self)._gradient_map(activations, gradients, theta)
        )
        region = scored_map(type(self)._region_weights, scorer, activations)
        self._warn_of_fidelity(region.fidelity, scorer.options)
        return [gradient_map, region]

    def _map_of(
        self,
        part: LayerAttribution,
        layer: LayerTensor,
        scorer: MaskScorer,
        given: Mapping[str, Any],
    ) -> ScoredMap:
        """Returns the rectified map that a user's part makes, (N, 1, *spatial)."""
        call, activations = layer.call, layer.activations
        shape = (len(activations), 1, *activations.shape[2:])
        if call.batch_size == 0:  # Captum's methods read the first example
            return _unscored(activations.new_zeros(shape))
        if self._shares_scores(part):
            scored = scored_map(part.weights, scorer, activations)
            self._warn_of_fidelity(scored.fidelity, scorer.options)
            return scored
        inputs = call.cloned_inputs()
        maps = part.attribute(
            call if _is_ours(part) else inputs if len(inputs) > 1 else inputs[0],
            target=call.target,
            additional_forward_args=call.cloned_arguments(),
            attribute_to_layer_input=call.attribute_to_layer_input,
            **_options_of(part, scorer.options, given),
        )
        found = _of_layer(maps, layer)
        if not isinstance(found, Tensor) or found.shape != shape:
            got = tuple(found.shape) if isinstance(found, Tensor) else type(found)
            raise ValueError(
                f"`parts`: {type(part).__name__} must return one map for each example, "
                f"of the layer's size: expected {shape} for each of the layer's "
                f"tensors, got {got}."
            )
        # Without negative evidence, as the paper's parts.
        part_map = found.detach().to(activations.device)
        return _unscored(F.relu(at_least_float32(part_map)))

    def _shares_scores(self, part: LayerAttribution) -> bool:
        """Returns whether a part scores channels as masks as the union scores maps."""
        return (
            isinstance(part, MaskingCAM)
            and type(part).attribute is MaskingCAM.attribute
            and all(
                getattr(part, name) == getattr(self, name)
                for name in (
                    "forward_func",
                    "layer",
                    "device_ids",
                    "reshape_transform",
                    "scoring_func",
                    "memory_format",
                )
            )
        )


def _is_ours(part: LayerAttribution) -> bool:
    """Returns whether a part runs the package's own ``attribute``."""
    owner = next(kind for kind in type(part).__mro__ if "attribute" in vars(kind))
    package = __name__.partition(".")[0]
    return owner.__module__.partition(".")[0] == package


def _of_layer(maps: Any, layer: LayerTensor) -> Any:
    """Returns what an attribution has for one of its layers' tensors, else ``maps``."""
    places = [layer.index] if isinstance(maps, tuple) else []
    if isinstance(layer.call.layer, list):
        places = [layer.place, layer.index]
    for place in places:
        if isinstance(maps, tuple | list) and place < len(maps):
            maps = maps[place]
    return maps


def _unscored(maps: Tensor) -> ScoredMap:
    """Returns a map that no scores of channels made."""
    none = maps.new_zeros(len(maps), dtype=torch.long)
    return ScoredMap(maps, none, torch.ones_like(none).double())


def _options_of(
    part: LayerAttribution, options: ScoringOptions, given: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns what a user's part must share with the union, and its own options.

    Raises:
        ValueError: If the part perturbs inputs, and does not take what it must share.
    """
    shared = {"baselines": options.baselines, "score_func": options.score_func}
    shared = {key: value for key, value in shared.items() if value is not None}
    known = inspect.signature(part.attribute).parameters
    for key in shared:
        ours = isinstance(part, CAMAttribution)  # takes every option that it needs
        if key not in known and isinstance(part, PerturbationAttribution) and not ours:
            raise ValueError(
                f"`{key}` is not an option of {type(part).__name__}, one of the "
                "`parts`, which would perturb and score in another way; leave it out, "
                "or wrap the part in a class that takes it."
            )
    offered = {**shared, **given}
    return {key: value for key, value in offered.items() if key in known}
