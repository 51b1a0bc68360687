from . import (
    attr as attr,
    augmentations as augmentations,
    captum_metrics as captum_metrics,
    evaluation as evaluation,
    explanation as explanation,
    fusion as fusion,
    layers as layers,
    metrics as metrics,
    models as models,
    visualization as visualization,
    wrappers as wrappers,
)
from .attr import (
    CAM as CAM,
    FDCAM as FDCAM,
    AblationCAM as AblationCAM,
    AugmentedCAM as AugmentedCAM,
    AugmentedGradCAM as AugmentedGradCAM,
    DenoisedGradCAM as DenoisedGradCAM,
    EigenCAM as EigenCAM,
    EigenGradCAM as EigenGradCAM,
    FusionCAM as FusionCAM,
    GradCAM as GradCAM,
    GradCAMPlusPlus as GradCAMPlusPlus,
    GradientCAM as GradientCAM,
    GroupCAM as GroupCAM,
    HiResCAM as HiResCAM,
    IntegratedGradCAM as IntegratedGradCAM,
    ISCAM as ISCAM,
    LayerCAM as LayerCAM,
    ReciproCAM as ReciproCAM,
    RegionCAM as RegionCAM,
    RISE as RISE,
    ScoreCAM as ScoreCAM,
    SmoothGradCAMPlusPlus as SmoothGradCAMPlusPlus,
    SSCAM as SSCAM,
    UnionCAM as UnionCAM,
    UnionCAMDetails as UnionCAMDetails,
    XGradCAM as XGradCAM,
)
from .augmentations import (
    Augmentation as Augmentation,
    flip_and_gain_augmentations as flip_and_gain_augmentations,
    random_augmentations as random_augmentations,
)
from .captum_metrics import (
    as_explanation_func as as_explanation_func,
    to_input as to_input,
)
from .explanation import (
    Explanation as Explanation,
    explain as explain,
)
from .fusion import fuse as fuse
from .layers import (
    find_layer as find_layer,
    find_layers as find_layers,
    swin_reshape as swin_reshape,
    vit_reshape as vit_reshape,
)
from .wrappers import (
    BoxScore as BoxScore,
    Contrast as Contrast,
    MeanOverMask as MeanOverMask,
    SelectedOutput as SelectedOutput,
)

__version__: str
