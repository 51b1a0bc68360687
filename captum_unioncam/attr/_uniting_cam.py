"""What the CAMs that unite a gradient map and a region map share."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from captum.attr import LayerAttribution
from torch import Tensor
from torch.nn import Module

from captum_unioncam._captum import LayerCall, ReshapeTransform
from captum_unioncam._maps import at_least_float32
from captum_unioncam._scoring import Baselines, MaskScorer, ScoreFunc
from captum_unioncam.attr._masking_cam import Region, score_regions
from captum_unioncam.attr._weighted_cam import (
    ScoringCAM,
    check_callable,
    check_number,
    check_positive,
)
from captum_unioncam.attr.denoised_grad_cam import THETA


class Parts(NamedTuple):
    """What is united for one of the layer's tensors."""

    gradient_map: Tensor  # (N, 1, *spatial)
    region: Region
    channels: Tensor  # (N, K, *spatial)
    scorer: MaskScorer


class UnitingCAM(ScoringCAM, ABC):
    """Template of a CAM of two parts, which a user may replace by any instances.

    A subclass defines the default parts, and unites what :meth:`_parts` returns.
    """

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
    ) -> None:
        r"""
        Args:
            forward_func, layer, device_ids, reshape_transform, scoring_func: See
                :class:`ScoreCAM`.
            gradient_cam (LayerAttribution, optional): Makes the gradient map in place
                of the default: any instance that returns (N, 1, *layer_size), such as
                Captum's LayerGradCam. It is called with Captum's common arguments only
                (``theta`` and ``grad_kwargs`` are not for it), has a
                ``reshape_transform`` of its own if it needs one, and its map is
                rectified. Default: None
            region_cam (LayerAttribution, optional): Makes the region map, likewise
                (``max_channels`` is not for it). Default: None

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
        )
        _check_part("gradient_cam", gradient_cam)
        _check_part("region_cam", region_cam)
        self.gradient_cam = gradient_cam
        self.region_cam = region_cam

    @abstractmethod
    def _gradient_map(
        self, activations: Tensor, gradients: Tensor, theta: float
    ) -> Tensor:
        """Returns the default gradient map, (N, 1, *spatial)."""

    @abstractmethod
    def _region_weights(
        self, scores: Tensor, baseline_scores: Tensor, counted: Tensor
    ) -> Tensor:
        """Returns the weights of the default region map's channels, (N, K)."""

    def _parts(
        self,
        call: LayerCall,
        theta: float,
        baselines: Baselines,
        score_func: ScoreFunc | None,
        max_channels: int | None,
        perturbations_per_eval: int | None,
        show_progress: bool,
        grad_kwargs: dict[str, Any] | None,
    ) -> list[Parts]:
        """Validates the options, and makes the parts of each of the layer's tensors."""
        check_number("theta", theta, 0, 100)
        check_callable("score_func", score_func)
        check_positive("max_channels", max_channels)
        check_positive("perturbations_per_eval", perturbations_per_eval)
        if self.gradient_cam is not None:
            _refuse_options(
                "gradient_cam", theta=theta != THETA, grad_kwargs=grad_kwargs
            )
        if self.region_cam is not None:
            _refuse_options("region_cam", max_channels=max_channels)
        gradients: tuple[Tensor, ...] = ()
        if self.gradient_cam is None:
            activations, gradients = call.activations_and_gradients(grad_kwargs)
        else:
            activations = call.activations()

        # Every mistake shows here, before the first masked pass.
        scored = call.scored_by(self.scoring_func)
        scorers = [
            MaskScorer(
                scored, channels.dim(), baselines, score_func, perturbations_per_eval
            )
            for channels in activations
        ]
        if self.gradient_cam is None:
            gradient_maps = [
                self._gradient_map(*pair, theta)
                for pair in zip(activations, gradients, strict=True)
            ]
        else:
            gradient_maps = _part_maps(
                "gradient_cam", self.gradient_cam, call, activations
            )
        if self.region_cam is None:
            description = self.get_name() if show_progress else None
            regions = [
                score_regions(
                    channels, scorer, self._region_weights, max_channels, description
                )
                for channels, scorer in zip(activations, scorers, strict=True)
            ]
        else:
            regions = [
                Region(maps, maps.new_zeros(len(maps), dtype=torch.long))
                for maps in _part_maps("region_cam", self.region_cam, call, activations)
            ]
        return [
            Parts(*parts)
            for parts in zip(gradient_maps, regions, activations, scorers, strict=True)
        ]


def _check_part(name: str, part: object) -> None:
    """Refuses a part that is not an instance of a layer attribution."""
    if part is None or isinstance(part, LayerAttribution):
        return
    got = f"the {part.__name__} class" if isinstance(part, type) else repr(part)
    raise TypeError(
        f"`{name}` must be a LayerAttribution, got {got}; pass an instance, such as "
        "LayerGradCam(model, layer)."
    )


def _refuse_options(part: str, **given: object) -> None:
    """Refuses options of a default part that a user's part has replaced."""
    for name, value in given.items():
        if value:
            raise ValueError(
                f"`{name}` is an option of the default part, which `{part}` replaces; "
                "leave it out, and set up the part itself."
            )


def _part_maps(
    name: str, part: LayerAttribution, call: LayerCall, activations: tuple[Tensor, ...]
) -> list[Tensor]:
    """Returns the component maps of a user's part, one for each layer tensor."""
    shapes = [(len(a), 1, *a.shape[2:]) for a in activations]
    if call.batch_size == 0:  # Captum's methods read the first example
        maps = tuple(map(torch.zeros, shapes))
    else:
        inputs = call.cloned_inputs()
        maps = part.attribute(
            inputs if len(inputs) > 1 else inputs[0],
            target=call.target,
            additional_forward_args=call.cloned_arguments(),
            attribute_to_layer_input=call.attribute_to_layer_input,
        )
        maps = maps if isinstance(maps, tuple) else (maps,)
    got = [tuple(m.shape) if isinstance(m, Tensor) else type(m).__name__ for m in maps]
    if got != shapes:
        raise ValueError(
            f"`{name}` must return one map for each example, of the layer's size: "
            f"expected {shapes}, got {got}."
        )
    return [
        F.relu(at_least_float32(m.detach().to(a.device)))
        for m, a in zip(maps, activations, strict=True)
    ]
