"""Class activation maps as Captum layer attributions."""

from captum_unioncam.attr._gradient_cam import GradientCAM
from captum_unioncam.attr._union_details import UnionCAMDetails
from captum_unioncam.attr.ablation_cam import AblationCAM
from captum_unioncam.attr.augmented_cam import AugmentedCAM, AugmentedGradCAM
from captum_unioncam.attr.cam import CAM
from captum_unioncam.attr.denoised_grad_cam import DenoisedGradCAM
from captum_unioncam.attr.eigen_cam import EigenCAM, EigenGradCAM
from captum_unioncam.attr.fd_cam import FDCAM
from captum_unioncam.attr.fusion_cam import FusionCAM
from captum_unioncam.attr.grad_cam import GradCAM
from captum_unioncam.attr.grad_cam_plus_plus import GradCAMPlusPlus
from captum_unioncam.attr.group_cam import GroupCAM
from captum_unioncam.attr.hi_res_cam import HiResCAM
from captum_unioncam.attr.integrated_grad_cam import IntegratedGradCAM
from captum_unioncam.attr.is_cam import ISCAM
from captum_unioncam.attr.layer_cam import LayerCAM
from captum_unioncam.attr.recipro_cam import ReciproCAM
from captum_unioncam.attr.region_cam import RegionCAM
from captum_unioncam.attr.rise import RISE
from captum_unioncam.attr.score_cam import ScoreCAM
from captum_unioncam.attr.smooth_grad_cam_plus_plus import SmoothGradCAMPlusPlus
from captum_unioncam.attr.ss_cam import SSCAM
from captum_unioncam.attr.union_cam import UnionCAM
from captum_unioncam.attr.x_grad_cam import XGradCAM

__all__ = [
    "CAM",
    "FDCAM",
    "AblationCAM",
    "AugmentedCAM",
    "AugmentedGradCAM",
    "DenoisedGradCAM",
    "EigenCAM",
    "EigenGradCAM",
    "FusionCAM",
    "GradCAM",
    "GradCAMPlusPlus",
    "GradientCAM",
    "GroupCAM",
    "HiResCAM",
    "ISCAM",
    "IntegratedGradCAM",
    "LayerCAM",
    "RISE",
    "ReciproCAM",
    "RegionCAM",
    "SSCAM",
    "ScoreCAM",
    "SmoothGradCAMPlusPlus",
    "UnionCAM",
    "UnionCAMDetails",
    "XGradCAM",
]
