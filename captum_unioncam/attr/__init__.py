"""Class activation maps as Captum layer attributions."""

from captum_unioncam.attr.denoised_grad_cam import DenoisedGradCAM
from captum_unioncam.attr.region_cam import RegionCAM
from captum_unioncam.attr.union_cam import UnionCAM, UnionCAMDetails

__all__ = ["DenoisedGradCAM", "RegionCAM", "UnionCAM", "UnionCAMDetails"]
