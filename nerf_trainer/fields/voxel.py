"""The field of voxel grids: one grid for density, one for colour, a decoder behind each."""

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nerf_trainer.config import Factory, choice, nested, registry
from nerf_trainer.errors import ConfigError
from nerf_trainer.fields.base import FieldInputs, FieldOutputs, ImplicitFunctionBase
from nerf_trainer.fields.decoders import DecoderFunctionBase
from nerf_trainer.fields.scaffold import Scaffold
from nerf_trainer.fields.voxel_grids import VoxelGridModule
from nerf_trainer.geometry.rotation import rotate
from nerf_trainer.networks.encodings import HarmonicEmbedding
from nerf_trainer.ops.compositing import emission_absorption_weights, interval_widths
from nerf_trainer.rays.bundle import RayBundle
from nerf_trainer.schedules import Change, ParameterReplacement, Scheduled


@registry.register
class VoxelGridImplicitFunction(Scheduled, ImplicitFunctionBase):
    """Density and colour decoded from grids, and from harmonic encodings of position and view direction.

    densities = decoder_density([density grid(x), encoding(x)])
    features = decoder_color([color grid(x), encoding(x), encoding(direction)])

    Where the density grid is padded with zeros, its box holds all of the scene: samples outside are empty, and so are
    those in cells that the scaffold found empty. On a CPU they cost nothing; elsewhere they are evaluated and masked,
    so that the host need not know how many there are.
    """

    harmonic_embedder_xyz_density: HarmonicEmbedding = nested()
    """Encoding of the position for density."""
    harmonic_embedder_xyz_color: HarmonicEmbedding = nested()
    """Encoding of the position for colour."""
    harmonic_embedder_dir_color: HarmonicEmbedding = nested()
    """Encoding of the view direction for colour."""
    decoder_density: Factory[DecoderFunctionBase] = choice("MLPDecoder")
    """From the density grid's features and the encoded position to density."""
    decoder_color: Factory[DecoderFunctionBase] = choice("MLPDecoder")
    """From the colour grid's features and the encodings to colour; its last activation keeps colours in [0, 1]."""
    use_multiple_streams: bool = True
    """Evaluate density and colour side by side on a GPU."""
    xyz_ray_dir_in_camera_coords: bool = False
    """See directions in the axes of the view that looks, instead of the world's."""
    scaffold_calculating_epochs: tuple[int, ...] = ()
    """Epochs at whose start empty cells are looked for."""
    scaffold_resolution: tuple[int, int, int] = (128, 128, 128)
    """Cells of the scaffold along x, y and z."""
    scaffold_empty_space_threshold: float = 0.001
    """Density up to which a cell is empty."""
    scaffold_occupancy_chunk_size: int = -1
    """Planes of cells that are evaluated at once when looking; -1 is all."""
    scaffold_max_pool_kernel_size: int = 3
    """A cell is empty if all of its neighbourhood is: a cube of this many cells a side, odd."""
    scaffold_filter_points: bool = True
    """Take samples in empty cells for empty."""
    volume_cropping_epochs: tuple[int, ...] = ()
    """Epochs at whose start both grids are cropped to the smallest box around what is not empty."""
    color_weight_threshold: float | None = None
    """On a CPU, leave the colour of samples unevaluated whose weight in emission-absorption rendering, without density
    noise, is not above this; 0 changes no picture, null evaluates all."""
    voxel_grid_density: VoxelGridModule = nested()
    """The density's grid."""
    voxel_grid_color: VoxelGridModule = nested()
    """The colour's grid."""

    def __post_init__(self) -> None:
        self._check()
        density_dim = self.voxel_grid_density.n_features + self.harmonic_embedder_xyz_density.output_dim()
        direction_dim = self.harmonic_embedder_dir_color.output_dim()
        color_dim = self.voxel_grid_color.n_features + self.harmonic_embedder_xyz_color.output_dim() + direction_dim
        self._decoder_density = self.decoder_density(input_dim=density_dim, output_dim=1)
        self._decoder_color = self.decoder_color(input_dim=color_dim, output_dim=self.spec.color_dim)
        self._needs_directions = direction_dim > 0 or self._decoder_color.wants_directions
        self._is_bounded = self.voxel_grid_density.voxel_grid.padding == "zeros"
        self.scaffold = Scaffold(self.voxel_grid_density.corners, outside=not self._is_bounded)
        self.epochs_seen = torch.nn.Buffer(torch.tensor(-1))
        self._epochs_seen = -1
        self.register_load_state_dict_post_hook(_go_on_from_saved)

    def _check(self) -> None:
        if self.spec.pooled_dim or self.spec.global_code_dim:
            raise ConfigError(
                "implicit_function_class_type: VoxelGridImplicitFunction takes no pooled features and no global code;"
                " expected view_pooler_enabled: false and global_encoder_class_type: null"
            )
        if self.scaffold_max_pool_kernel_size < 1 or self.scaffold_max_pool_kernel_size % 2 == 0:
            raise ConfigError(
                f"scaffold_max_pool_kernel_size: {self.scaffold_max_pool_kernel_size}; expected an odd number from 1"
            )
        if len(self.scaffold_resolution) != 3 or min(self.scaffold_resolution) < 1:
            raise ConfigError(
                f"scaffold_resolution: {list(self.scaffold_resolution)}; expected three positive numbers (x, y, z)"
            )

    def forward(self, ray_bundle: RayBundle, inputs: FieldInputs) -> FieldOutputs:
        lengths = ray_bundle.lengths
        assert lengths is not None, "a field needs samples along the rays"
        directions = self._directions(ray_bundle, inputs)
        if lengths.is_cuda:
            densities, colors = self._evaluate_all(ray_bundle, directions)
        else:
            densities, colors = self._evaluate_occupied(ray_bundle, directions)
        shape = lengths.shape
        return FieldOutputs(densities=densities.reshape(*shape, 1), features=colors.reshape(*shape, -1))

    def _evaluate_occupied(
        self, ray_bundle: RayBundle, directions: Float[Tensor, "R 3"] | None
    ) -> tuple[Float[Tensor, "M 1"], Float[Tensor, "M C"]]:
        """Gather the samples that count, evaluate these, and leave zeros elsewhere."""
        assert ray_bundle.lengths is not None
        n_samples = ray_bundle.lengths.shape[-1]
        rows = self._occupied(ray_bundle).flatten().nonzero()[:, 0].int()
        rays = rows // n_samples
        points = torch.addcmul(
            ray_bundle.origins.reshape(-1, 3).index_select(0, rays),
            ray_bundle.lengths.reshape(-1, 1).index_select(0, rows),
            ray_bundle.directions.reshape(-1, 3).index_select(0, rays),
        )
        densities = self.density(points)
        placed = _place(densities, rows, ray_bundle.lengths.numel())
        if self.color_weight_threshold is not None:
            seen = _seen(placed, ray_bundle.lengths, self.color_weight_threshold).index_select(0, rows).nonzero()[:, 0]
            rows, rays, points = (t.index_select(0, seen) for t in (rows, rays, points))
        colors = self.color(points, directions, rays)
        return placed, _place(colors, rows, ray_bundle.lengths.numel())

    def _evaluate_all(
        self, ray_bundle: RayBundle, directions: Float[Tensor, "R 3"] | None
    ) -> tuple[Float[Tensor, "M 1"], Float[Tensor, "M C"]]:
        """Evaluate every sample and mask those that don't count: shapes depend on no value."""
        points = ray_bundle.points.reshape(-1, 3)
        occupied = self._mask(points, ray_bundle)
        rays = None
        if ray_bundle.lengths is not None and ray_bundle.lengths.shape[-1] > 1:
            rays = torch.arange(len(points), device=points.device) // ray_bundle.lengths.shape[-1]
        if not self.use_multiple_streams:
            return self.density(points) * occupied, self.color(points, directions, rays) * occupied
        here, beside = torch.cuda.current_stream(), torch.cuda.Stream()
        beside.wait_stream(here)
        with torch.cuda.stream(beside):
            colors = self.color(points, directions, rays) * occupied
        densities = self.density(points) * occupied
        here.wait_stream(beside)
        colors.record_stream(here)
        return densities, colors

    def densities(self, ray_bundle: RayBundle, inputs: FieldInputs) -> Float[Tensor, "*rays S 1"]:
        points = ray_bundle.points.reshape(-1, 3)
        densities = self.density(points) * self._mask(points, ray_bundle)
        return densities.reshape(*ray_bundle.ray_shape, -1, 1)

    def density(self, points: Float[Tensor, "M 3"]) -> Float[Tensor, "M 1"]:
        """Density before the raymarcher's activation at world points, whatever the scaffold says."""
        features = self.voxel_grid_density(points)
        if self.harmonic_embedder_xyz_density.output_dim():
            features = torch.cat([features, self.harmonic_embedder_xyz_density(points)], dim=-1)
        return self._decoder_density(features, None).float()

    def color(
        self, points: Float[Tensor, "M 3"], directions: Float[Tensor, "R 3"] | None, rays: Int[Tensor, "M"] | None
    ) -> Float[Tensor, "M C"]:
        """Colour at world points as seen along rays.

        `rays` says which of the R directions is whose; None: there is one for each point.
        """
        features = [self.voxel_grid_color(points)]
        if self.harmonic_embedder_xyz_color.output_dim():
            features.append(self.harmonic_embedder_xyz_color(points))
        if directions is not None and self.harmonic_embedder_dir_color.output_dim():
            features.append(_of_rays(self.harmonic_embedder_dir_color(directions), rays))
        along = None
        if directions is not None and self._decoder_color.wants_directions:
            along = _of_rays(directions, rays)
        return self._decoder_color(torch.cat(features, dim=-1) if len(features) > 1 else features[0], along).float()

    def _directions(self, ray_bundle: RayBundle, inputs: FieldInputs) -> Float[Tensor, "R 3"] | None:
        """Each ray's view direction, if anything reads it."""
        if not self._needs_directions:
            return None
        directions = ray_bundle.view_directions
        if self.xyz_ray_dir_in_camera_coords:
            if inputs.cameras is None:
                raise ValueError("xyz_ray_dir_in_camera_coords needs the batch's cameras in the field's inputs")
            directions = rotate(inputs.cameras.R[ray_bundle.camera_index], directions)
        return directions.reshape(-1, 3)

    def _mask(self, points: Float[Tensor, "M 3"], ray_bundle: RayBundle) -> Float[Tensor, "M 1"]:
        """1 for samples that count, 0 for the others; `points` are the bundle's."""
        if self.scaffold_filter_points and self.scaffold_calculating_epochs:
            return self._occupied(ray_bundle).reshape(-1, 1).float()
        if not self._is_bounded:
            return torch.ones_like(points[:, :1])
        return (self.voxel_grid_density.to_local(points).abs().amax(dim=-1, keepdim=True) <= 1.0).float()

    def _occupied(self, ray_bundle: RayBundle) -> Bool[Tensor, "*rays S"]:
        assert ray_bundle.lengths is not None
        return self.scaffold.look_up(ray_bundle.origins, ray_bundle.directions, ray_bundle.lengths)

    def regularization(self) -> Mapping[str, Callable[[], Tensor]]:
        """`density_tv`: mean squared difference of neighbouring nodes of the density grid, summed over the axes;
        `density_l1`: mean magnitude of its values, summed over its factors.
        """
        grid = self.voxel_grid_density
        return {"density_tv": grid.total_variation, "density_l1": grid.magnitude}

    def advance(self, epoch: int, step: int) -> Change:
        """What is due at the start of `epoch`: resolutions first, then cropping, then the scaffold."""
        if epoch <= self._epochs_seen:
            return Change()
        replacements: list[ParameterReplacement] = []
        changed = False
        for due in self._event_epochs():
            if self._epochs_seen < due <= epoch:
                changed = True
                for grid in (self.voxel_grid_density, self.voxel_grid_color):
                    replacements += grid.change_resolution(grid.voxel_grid.resolution_at(due))
                if due in self.volume_cropping_epochs:
                    replacements += self._crop()
                if due in self.scaffold_calculating_epochs and self.scaffold_filter_points:
                    self._look_for_empty_cells(self.scaffold)
        self._epochs_seen = epoch
        self.epochs_seen.fill_(epoch)
        return Change(replacements=tuple(replacements), recapture=changed)

    def _event_epochs(self) -> list[int]:
        """Epochs at which something may change, in order."""
        events = {*self.scaffold_calculating_epochs, *self.volume_cropping_epochs}
        for grid in (self.voxel_grid_density, self.voxel_grid_color):
            events |= set(grid.voxel_grid.resolution_changes)
        return sorted(events)

    def _look_for_empty_cells(self, scaffold: Scaffold) -> None:
        scaffold.update(
            lambda points: self.density(points)[:, 0],
            self.voxel_grid_density.corners,
            self.scaffold_resolution,
            self.scaffold_empty_space_threshold,
            self.scaffold_max_pool_kernel_size,
            self.scaffold_occupancy_chunk_size,
        )

    def _crop(self) -> list[ParameterReplacement]:
        """Crop both grids to what is not empty; a scene without anything stays as it is."""
        looked = Scaffold(self.voxel_grid_density.corners, outside=False).to(self.epochs_seen.device)
        self._look_for_empty_cells(looked)
        corners = looked.occupied_corners()
        if corners is None:
            return []
        replacements = [*self.voxel_grid_density.crop(corners), *self.voxel_grid_color.crop(corners)]
        self.scaffold.reset(self.voxel_grid_density.corners)
        return replacements


def _go_on_from_saved(field: VoxelGridImplicitFunction, _: object) -> None:
    """After loading: what was done before the checkpoint is not due again."""
    field._epochs_seen = int(field.epochs_seen.item())


def _of_rays(values: Float[Tensor, "R C"], rays: Int[Tensor, "M"] | None) -> Float[Tensor, "M C"]:
    """What rays have, for each of their samples; None: each ray has one."""
    return values if rays is None else values.index_select(0, rays)


def _place(values: Float[Tensor, "K C"], rows: Int[Tensor, "K"], n: int) -> Float[Tensor, "n C"]:
    """`values` at `rows` of n, zeros elsewhere."""
    return values.new_zeros(n, values.shape[1]).index_copy(0, rows.long(), values)


@torch.no_grad()
def _seen(densities: Float[Tensor, "M 1"], lengths: Float[Tensor, "*rays S"], threshold: float) -> Bool[Tensor, "M"]:
    """Which weights exceed the threshold; the last interval is open, so that no sample is taken for too little."""
    tau = densities.view(lengths.shape).relu() * interval_widths(lengths, last=1e10)
    weights, _ = emission_absorption_weights(tau)
    return (weights > threshold).flatten()
