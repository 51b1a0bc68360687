"""AugmentedCAM: one map of the maps of rotated, shifted or flipped copies."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from captum.attr import Attribution
from torch import Tensor
from torch.nn import Module

from captum_unioncam._captum import TargetType, attribution_method, progress_bar
from captum_unioncam._checks import check_choice
from captum_unioncam._forward import ModelCall
from captum_unioncam._maps import at_least_float32, upsample
from captum_unioncam._reshape import ReshapeTransform
from captum_unioncam.attr._base import MapAttribution, nan_unless_finite
from captum_unioncam.attr._super_resolution import super_resolved
from captum_unioncam.attr.grad_cam import GradCAM
from captum_unioncam.augmentations import (
    Augmentation,
    augmented,
    random_augmentations,
    restored,
)


class AugmentedCAM(MapAttribution):
    r"""Explains many copies of an image by any attribution, and unites their maps.

    Each copy is rotated, shifted, flipped or brightened; its map is resized to the
    image and turned back. With ``combine="mean"`` a pixel of the result is the mean
    over the copies that show it, with "max" their maximum. With "super_resolution" it
    is the fine map h of the image's size that explains the copies' coarse maps:

    .. math::
        \min_h \sum_{l=1}^{L} \|D T_l h - g_l\|^2 + 0.002 L \sum (|\partial_x h| +
        |\partial_y h|) + 0.0001 L \sum h^2

    where :math:`T_l` makes the l-th copy, :math:`D` resizes to the layer, and
    :math:`g_l` is the copy's map divided by its maximum. Adam takes 200 steps of rate
    0.001 from h = 0, so that values stay below 0.2: the map has no scale of its own.

    Reference: Morbidelli et al., Augmented Grad-CAM: heat-maps super resolution
    through augmentation, ICASSP 2020, and the authors' code,
    github.com/diegocarrera89/AugmentedGradCAM.

    Note: Deviates from the authors' code in that the mean and the maximum leave out
    copies that do not show a pixel, in place of a 0 for them. A pixel that no copy
    shows is 0.

    Note: What enters the frame of a copy is 0, as in the authors' code: of normalised
    images that is the mean colour. Negative values of the copies' maps, and of h, count
    as 0.

    Note: With :func:`.flip_and_gain_augmentations` it is pytorch-grad-cam's
    ``aug_smooth``, but for the scale of the maps, which that package sets to [0, 1] for
    each copy. Here a copy counts as much as its map is large, as in the paper's mean.

    Note: Copies are explained for the same ``target``. What is in
    ``additional_forward_args`` is passed unchanged: masks of pixels or boxes do not
    follow the image.

    Cost: that of the attribution for each copy, 100 by default: for Grad-CAM 100
    forward and backward passes of the batch. Memory does not grow with the copies, but
    for "super_resolution", which keeps all their maps, (N, L, h, w), and is best for
    maps of a layer's size; its steps do not run the model.
    """

    def __init__(
        self,
        base: Attribution,
        transforms: Sequence[Augmentation] | None = None,
        combine: str = "mean",
    ) -> None:
        r"""
        Args:
            base (Attribution): Explains each copy: any instance that returns one map
                for each image, (N, 1, h, w), such as :class:`GradCAM` or Captum's
                LayerGradCam.
            transforms (Sequence[Augmentation], optional): The copies. Default: None,
                which is :func:`.random_augmentations`, the 100 of the paper
            combine (str, optional): "mean", "max" or "super_resolution". Default:
                "mean"

        Raises:
            TypeError: If ``base`` is no instance of an attribution, or ``transforms``
                has anything but augmentations.
            ValueError: If ``transforms`` is empty, or ``combine`` another string.
        """
        if not isinstance(base, Attribution):
            raise TypeError(
                f"`base` must be an instance of an Attribution, got {base!r}."
            )
        transforms = random_augmentations() if transforms is None else tuple(transforms)
        if not transforms:
            raise ValueError("`transforms` must have one augmentation at least, got 0.")
        for transform in transforms:
            if not isinstance(transform, Augmentation):
                raise TypeError(
                    f"`transforms` must be of Augmentation, got {transform!r}."
                )
        check_choice("combine", combine, COMBINATIONS)
        Attribution.__init__(self, base.forward_func)
        self.base, self.transforms, self.combine = base, transforms, combine

    @property
    def multiplies_by_inputs(self) -> bool:
        """Is that of ``base``, False for a class activation map."""
        return bool(getattr(self.base, "multiplies_by_inputs", False))

    @attribution_method
    def attribute(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        target: TargetType = None,
        additional_forward_args: object = None,
        *,
        show_progress: bool = False,
        **kwargs: Any,
    ) -> Tensor:
        r"""
        Args:
            inputs (Tensor or tuple[Tensor, ...]): Model inputs, batch first. Images,
                (N, C, H, W), are augmented; the others of a tuple are not.
            target (int, tuple, Tensor or list, optional): Output index to explain, one
                for all examples or one for each, in the forms of
                :meth:`captum.attr.LayerGradCam.attribute`. Default: None, for models
                that return one value for each example; it never means the predicted
                class
            additional_forward_args (Any, optional): Further arguments of the model,
                after the inputs; several as a tuple. A list is one argument. Default:
                None
            show_progress (bool, optional): Show a progress bar of the copies. Default:
                False
            kwargs (Any): Further options of ``base.attribute``.

        Returns:
            *Tensor* of **attributions**, (N, 1, H, W), the size of the first image, >=
            0, not scaled, detached, of the type of the base's maps. An example whose
            map is not finite for some copy is all NaN; such examples, and constant
            maps, give a warning that names them.

        Raises:
            ValueError: If no input is an image, or the base returns other than one map
                for each example.

        Examples::

            >>> import torch
            >>> from captum_unioncam import AugmentedCAM, GradCAM, random_augmentations
            >>> conv = torch.nn.Conv2d(3, 4, 3)
            >>> head = torch.nn.LazyLinear(2)
            >>> net = torch.nn.Sequential(conv, torch.nn.Flatten(), head)
            >>> cam = AugmentedCAM(GradCAM(net, conv), random_augmentations(5))
            >>> cam.attribute(torch.rand(2, 3, 8, 8), target=1).shape
            torch.Size([2, 1, 8, 8])
        """
        call = ModelCall.prepare(
            self.base.forward_func, inputs, target, additional_forward_args
        )
        image = _first_image(call)
        size = tuple(image.shape[2:])
        if call.batch_size == 0:  # Captum's methods read the first example
            return at_least_float32(image.new_zeros(0, 1, *size))
        combination = COMBINATIONS[self.combine](size)
        name = self.get_name() if show_progress else None
        with progress_bar(name, len(self.transforms)) as bar:
            for augmentation in self.transforms:
                maps = self._maps_of_copy(call, augmentation, kwargs)
                positive = nan_unless_finite(F.relu(at_least_float32(maps)))
                combination.add(positive, augmentation)
                bar.update(1)
        return self._result(nan_unless_finite(combination.result()), maps.dtype)

    def _maps_of_copy(
        self, call: ModelCall, augmentation: Augmentation, options: dict[str, Any]
    ) -> Tensor:
        """Returns the base's maps of a copy of each image, (N, 1, h, w)."""
        copies = tuple(
            augmented(inp, augmentation) if inp.dim() == 4 else inp
            for inp in call.cloned_inputs()
        )
        maps = self.base.attribute(
            copies if len(copies) > 1 else copies[0],
            target=call.target,
            additional_forward_args=call.cloned_arguments(),
            **options,
        )
        if not isinstance(maps, Tensor):
            raise ValueError(
                "`base` must return one map for each example, (N, 1, h, w), got a "
                f"{type(maps).__name__}; give it a layer of one tensor, and leave out "
                "`return_details`."
            )
        if maps.dim() != 4 or maps.shape[:2] != (call.batch_size, 1):
            raise ValueError(
                "`base` must return one map for each example: expected "
                f"({call.batch_size}, 1, h, w), got {tuple(maps.shape)}."
            )
        return maps


class AugmentedGradCAM(AugmentedCAM):
    """Shows where a layer supports the target, finer, from a hundred altered copies.

    It is :class:`AugmentedCAM` of :class:`GradCAM`, as in the paper.

    Cost: 100 forward and 100 backward passes of the batch.
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        layer: Module | str,
        device_ids: list[int] | None = None,
        *,
        reshape_transform: ReshapeTransform | None = None,
        combine: str = "mean",
    ) -> None:
        r"""
        Args:
            forward_func, layer, device_ids, reshape_transform: See
                :class:`GradientCAM`; one layer.
            combine (str, optional): See :class:`AugmentedCAM`. Default: "mean"

        Raises:
            TypeError, ValueError: As :class:`GradientCAM` and :class:`AugmentedCAM`.
        """
        base = GradCAM(
            forward_func, layer, device_ids, reshape_transform=reshape_transform
        )
        super().__init__(base, combine=combine)


def _first_image(call: ModelCall) -> Tensor:
    """Returns the first input that is a batch of images, (N, C, H, W)."""
    for inp in call.inputs:
        if inp.dim() == 4 and not inp.is_complex():
            return inp
    raise ValueError(
        "`inputs` must have images, (N, C, H, W), which can be rotated and shifted; "
        f"got the shapes {[tuple(inp.shape) for inp in call.inputs]}."
    )


class _Combination(Protocol):
    """What becomes of the maps of the copies, which come one by one."""

    def add(self, maps: Tensor, augmentation: Augmentation) -> None:
        """Adds the maps of a copy, (N, 1, h, w), >= 0."""

    def result(self) -> Tensor:
        """Returns the united maps, (N, 1, H, W)."""


class _Mean:
    """The mean over the copies that show a pixel; 0 where none does."""

    def __init__(self, size: tuple[int, ...]) -> None:
        self._size = size
        # The sum of the maps, (N, 1, H, W), and the copies of each pixel, (H, W).
        self._totals: tuple[Tensor, Tensor] | None = None

    def add(self, maps: Tensor, augmentation: Augmentation) -> None:
        values, shown = restored(upsample(maps, self._size), augmentation)
        total, copies = torch.where(shown, values, 0), shown.to(values.dtype)
        if self._totals is not None:
            total, copies = total + self._totals[0], copies + self._totals[1]
        self._totals = total, copies

    def result(self) -> Tensor:
        assert self._totals is not None, "no copy was added"
        total, copies = self._totals
        return total / copies.clamp_min(1)


class _Maximum:
    """The maximum over the copies that show a pixel; 0 where none does."""

    def __init__(self, size: tuple[int, ...]) -> None:
        self._size = size
        self._largest: Tensor | None = None  # (N, 1, H, W)

    def add(self, maps: Tensor, augmentation: Augmentation) -> None:
        values, shown = restored(upsample(maps, self._size), augmentation)
        values = torch.where(shown, values, 0)
        before = self._largest
        self._largest = values if before is None else torch.maximum(before, values)

    def result(self) -> Tensor:
        assert self._largest is not None, "no copy was added"
        return self._largest


class _SuperResolution:
    """The fine map that explains the coarse maps of the copies."""

    def __init__(self, size: tuple[int, ...]) -> None:
        self._size = size
        self._observed: list[Tensor] = []  # (N, 1, h, w) each
        self._augmentations: list[Augmentation] = []

    def add(self, maps: Tensor, augmentation: Augmentation) -> None:
        largest = maps.amax((2, 3), keepdim=True)
        # A map of zeros stays one.
        self._observed.append(maps / torch.where(largest == 0, 1, largest))
        self._augmentations.append(augmentation)

    def result(self) -> Tensor:
        observed = torch.cat(self._observed, 1)  # (N, L, h, w)
        return F.relu(super_resolved(observed, self._augmentations, self._size))


COMBINATIONS: dict[str, Callable[[tuple[int, ...]], _Combination]] = {
    "mean": _Mean,
    "max": _Maximum,
    "super_resolution": _SuperResolution,
}
