"""How UnionCAM came to its maps."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class UnionCAMDetails:
    """How UnionCAM came to its maps: the parts, their scores, and the choice.

    Maps are (N, M, *layer_size) for M parts, in float32 or float64, not scaled: min-max
    scaling the kept ones gives the attributions. Everything else has the shape (N,)
    but the gains of the parts. A gain is a score gain f_c(map as a mask) -
    f_c(baseline), the paper's beta.

    Attributes:
        part_maps (Tensor): The map of each part, (N, M, *layer_size), the region map
            last: L_denoising and L_region, or those of ``parts``.
        part_gains (Tensor): Their gains, (N, M): beta_denoising (Eq. 4) and beta_region
            (Eq. 5).
        fused_map (Tensor): L_de_region (Eq. 6), (N, 1, *layer_size), negative where
            gains are.
        fused_gain (Tensor): beta_de_region (Eq. 7).
        kept (Tensor): Which map was kept (Eq. 8), int: the number of the part, from 0,
            or M for the fused map.
        baseline_score (Tensor): f_c(Ib), the score of the baseline.
        total_channels (Tensor): Channels of the layer, int.
        active_channels (Tensor): Channels that are not constant, int.
        scored_channels (Tensor): Channels that were scored, over all parts that score
            by the union's own passes, int.
        fidelity (Tensor): Estimated correlation of the region map with the exact one; 1
            where no score was predicted, NaN where the map is.
    """

    part_maps: Tensor
    part_gains: Tensor
    fused_map: Tensor
    fused_gain: Tensor
    kept: Tensor
    baseline_score: Tensor
    total_channels: Tensor
    active_channels: Tensor
    scored_channels: Tensor
    fidelity: Tensor

    @property
    def denoised_map(self) -> Tensor:
        """L_denoising, the map of the first part, (N, 1, *layer_size)."""
        return self.part_maps[:, :1]

    @property
    def region_map(self) -> Tensor:
        """L_region, the map of the last part, (N, 1, *layer_size)."""
        return self.part_maps[:, -1:]

    @property
    def denoised_gain(self) -> Tensor:
        """beta_denoising, the gain of the first part (Eq. 4), (N,)."""
        return self.part_gains[:, 0]

    @property
    def region_gain(self) -> Tensor:
        """beta_region, the gain of the last part (Eq. 5), (N,)."""
        return self.part_gains[:, -1]

    @property
    def fused_selected(self) -> Tensor:
        """Whether the fused map was kept, bool, (N,)."""
        return self.kept == self.part_maps.shape[1]
