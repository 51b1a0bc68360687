"""The template of the CAMs that unite a gradient map and a region map."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from captum.attr import LayerAttribution, PerturbationAttribution
from torch import Tensor
from torch.nn import Module

from captum_unioncam._checks import check_instance
from captum_unioncam._layer_call import LayerCall, LayerTensor
from captum_unioncam._maps import at_least_float32
from captum_unioncam._reshape import ReshapeTransform
from captum_unioncam._scoring import MaskScorer, ScoringOptions
from captum_unioncam.attr._base import CAMAttribution, ScoringCAM
from captum_unioncam.attr._masking_cam import ScoredMap, scored_map


class TwoPartCAM(ScoringCAM):
    """Template of a CAM of two parts, which a user may replace by any instances.

    A subclass unites the two maps, and names the functions of the default parts.
    """

    # From activations, gradients and theta to the gradient map, (N, 1, *spatial).
    _default_gradient_map: Callable[[Tensor, Tensor, float], Tensor]
    # From scores to the weights of the channels, (N, K) each.
    _default_region_weights: Callable[[Tensor], Tensor]

    def __init__(
        self,
        forward_func: Callable[..., Any],
        layer: Module | str,
        device_ids: list[int] | None = None,
        *,
        reshape_transform: ReshapeTransform | None = None,
        gradient_cam: LayerAttribution | None = None,
        region_cam: LayerAttribution | None = None,
        scoring_func: Callable[..., Any] | None = None,
        memory_format: torch.memory_format | None = None,
    ) -> None:
        r"""
        Args:
            forward_func, layer, device_ids, reshape_transform, scoring_func,
                memory_format: See :class:`ScoreCAM`.
            gradient_cam (LayerAttribution, optional): Makes the gradient map in place
                of the default: any instance that returns (N, 1, *layer_size), such as
                Captum's LayerGradCam. It gets Captum's common arguments, and
                ``baselines`` and ``score_func`` if it takes them (``theta`` and
                ``grad_kwargs`` are not for it); it has its own ``reshape_transform`` if
                it needs one, and its map is rectified. Default: None
            region_cam (LayerAttribution, optional): Makes the region map, likewise
                (``max_channels`` and ``fidelity`` are not for it). Default: None

        Raises:
            TypeError: If a part is not an instance, or as :class:`ScoreCAM`.
            ValueError: As :class:`ScoreCAM`.
        """
        super().__init__(
            forward_func,
            layer,
            device_ids,
            reshape_transform=reshape_transform,
            scoring_func=scoring_func,
            memory_format=memory_format,
        )
        check_instance("gradient_cam", gradient_cam, LayerAttribution)
        check_instance("region_cam", region_cam, LayerAttribution)
        self.gradient_cam = gradient_cam
        self.region_cam = region_cam

    def _scored_layers(
        self,
        call: LayerCall,
        options: ScoringOptions,
        grad_kwargs: dict[str, Any] | None,
    ) -> list[tuple[LayerTensor, MaskScorer]]:
        """Returns each of the layer's tensors, and what scores masks of its rank.

        Mistakes show here, before the first masked pass.
        """
        if self.gradient_cam is None:
            layers = call.differentiated_tensors(grad_kwargs)
        else:
            layers = call.tensors()
        return [(layer, self._scorer(layer, options)) for layer in layers]

    def _gradient_map(
        self, layer: LayerTensor, scorer: MaskScorer, theta: float
    ) -> Tensor:
        """Returns the gradient map, (N, 1, *spatial)."""
        if self.gradient_cam is not None:
            return self._map_of_part("gradient_cam", layer, scorer)
        without = ~layer.gradients.flatten(1).ne(0).any(1)  # (N,)
        self._warn(
            without,
            "made without the gradient map: all gradients are zero, as after a "
            ".detach() or .round(), in a reentrant checkpoint, or at a layer that the "
            "target does not depend on",
        )
        return self._default_gradient_map(layer.activations, layer.gradients, theta)

    def _region_map(self, layer: LayerTensor, scorer: MaskScorer) -> ScoredMap:
        """Returns the region map, (N, 1, *spatial), and how it was scored."""
        if self.region_cam is not None:
            maps = self._map_of_part("region_cam", layer, scorer)
            none = maps.new_zeros(len(maps), dtype=torch.long)
            return ScoredMap(maps, none, torch.ones_like(none).double())
        scored = scored_map(self._default_region_weights, scorer, layer.activations)
        self._warn_of_fidelity(scored.fidelity, scorer.options)
        return scored

    def _check_options_of_parts(
        self, changed_theta: bool, grad_kwargs: object, options: ScoringOptions
    ) -> None:
        """Refuses options of a default part that a user's part has replaced."""
        few, fidelity = options.max_channels, options.fidelity
        for part, given_options in (
            ("gradient_cam", {"theta": changed_theta, "grad_kwargs": grad_kwargs}),
            ("region_cam", {"max_channels": few, "fidelity": fidelity != 1}),
        ):
            for name, given in given_options.items():
                if given and getattr(self, part) is not None:
                    raise ValueError(
                        f"`{name}` is an option of the default part, which `{part}` "
                        "replaces; leave it out, and set up the part itself."
                    )

    def _map_of_part(self, name: str, layer: LayerTensor, scorer: MaskScorer) -> Tensor:
        """Returns the rectified map that a user's part makes, (N, 1, *spatial)."""
        part: LayerAttribution = getattr(self, name)
        call, activations = layer.call, layer.activations
        shape = (len(activations), 1, *activations.shape[2:])
        if call.batch_size == 0:  # Captum's methods read the first example
            return activations.new_zeros(shape)
        inputs = call.cloned_inputs()
        maps = part.attribute(
            inputs if len(inputs) > 1 else inputs[0],
            target=call.target,
            additional_forward_args=call.cloned_arguments(),
            attribute_to_layer_input=call.attribute_to_layer_input,
            **_options_of_part(name, part, scorer.options),
        )
        maps = maps if isinstance(maps, tuple) else (maps,)
        got = [
            tuple(m.shape) if isinstance(m, Tensor) else type(m).__name__ for m in maps
        ]
        if layer.index >= len(maps) or got[layer.index] != shape:
            raise ValueError(
                f"`{name}` must return one map for each example, of the layer's size: "
                f"expected {shape} for each of the layer's tensors, got {got}."
            )
        # (N, 1, *spatial), without negative evidence, as the default parts.
        part_map = maps[layer.index].detach().to(activations.device)
        return F.relu(at_least_float32(part_map))


def _options_of_part(
    name: str, part: LayerAttribution, options: ScoringOptions
) -> dict[str, Any]:
    """Returns what a user's part must share with the union: baselines and scores.

    Raises:
        ValueError: If the part perturbs inputs, and does not take an option.
    """
    shared = {"baselines": options.baselines, "score_func": options.score_func}
    given = {key: value for key, value in shared.items() if value is not None}
    known = inspect.signature(part.attribute).parameters
    for key in given:
        ours = isinstance(part, CAMAttribution)  # takes every option that it needs
        if key not in known and isinstance(part, PerturbationAttribution) and not ours:
            raise ValueError(
                f"`{key}` is not an option of the `{name}`, {type(part).__name__}, "
                "which would perturb and score in another way; leave it out, or wrap "
                "the part in a class that takes it."
            )
    return {key: value for key, value in given.items() if key in known}
