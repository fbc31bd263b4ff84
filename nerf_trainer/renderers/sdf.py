"""The renderer of IDR: the colour of the point where a ray first meets a surface (Yariv et al. 2020)."""

from collections.abc import Sequence
from dataclasses import replace
from enum import Enum
from itertools import pairwise

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.nn.utils import parametrizations, parametrize

from nerf_trainer.config import Configurable, Factory, nested, registry, runtime
from nerf_trainer.errors import ConfigError
from nerf_trainer.fields.base import BoundField, FieldOutputs, ImplicitFunctionBase
from nerf_trainer.fields.sdf import SDF, SignedDistanceField
from nerf_trainer.networks.encodings import HarmonicEmbedding
from nerf_trainer.ops.precision import full_float32
from nerf_trainer.ops.sphere_tracing import surface_lengths
from nerf_trainer.randomness import RandomStream
from nerf_trainer.rays.bundle import RayBundle
from nerf_trainer.renderers.base import SDF_GRADIENTS, BaseRenderer, EvaluationMode, RendererOutput
from nerf_trainer.renderers.sphere_tracing import RayTracing, SurfaceHits

OBJECT_THRESHOLD = 0.5
"""Foreground probability above which a pixel shows the object."""


class ColoringMode(Enum):
    """What of a surface point's geometry its colour depends on, besides the point and its feature vector."""

    idr = "idr"
    """Its normal and the view direction."""
    no_view_dir = "no_view_dir"
    """Its normal."""
    no_normal = "no_normal"
    """The view direction."""


class RayNormalColoringNetwork(Configurable, nn.Module):
    """The colour of surface points: an MLP with ReLUs on the point, the view direction, the normal and the field's
    feature vector (Yariv et al. 2020, section 3.2).

    Its last activation is (1 + tanh) / 2, in [0, 1] as images are: the paper's tanh is for images scaled to [-1, 1].
    Networks that were trained elsewhere may have learned with the tanh itself, and with the gradients of the signed
    distance in the place of normals; `signed_colors` and `unit_normals` let them be used as they are.
    """

    color_dim: int = runtime()
    """Width of the colours and of the field's feature vector."""
    feature_vector_size: int = 3
    """Read for the sake of old configurations; a field's feature vector is as wide as the rendered features."""
    mode: ColoringMode = ColoringMode.idr
    """What colours depend on."""
    d_in: int = 9
    """Read for the sake of old configurations; what the point, normal and direction have follows from `mode`."""
    d_out: int = 3
    """Width of the colours, which is that of the rendered features."""
    dims: tuple[int, ...] = (512, 512, 512, 512)
    """Widths of the hidden layers."""
    weight_norm: bool = True
    """Learn each neuron's weights as a direction and a length (Salimans and Kingma 2016)."""
    n_harmonic_functions_dir: int = 0
    """Frequencies of the view direction's encoding, which the direction itself is part of."""
    pooled_feature_dim: int = 0
    """Read for the sake of old configurations; pooled features reach colours by way of the field's feature vector."""
    unit_normals: bool = True
    """See normals of unit length; false takes the gradient of the signed distance as long as it is."""
    signed_colors: bool = False
    """End with a tanh, whose colours are in [-1, 1]; images in [0, 1] are then learned by its upper half."""

    def __post_init__(self) -> None:
        if self.d_out != self.color_dim:
            raise ConfigError(f"d_out: {self.d_out}; expected {self.color_dim}, the model's render_features_dimensions")
        if self.n_harmonic_functions_dir < 0 or any(width < 1 for width in self.dims):
            raise ConfigError(
                f"n_harmonic_functions_dir, dims: {self.n_harmonic_functions_dir}, {list(self.dims)}; expected 0 or"
                " more frequencies and widths of at least 1"
            )
        self.encode_direction = HarmonicEmbedding(n_harmonic_functions=self.n_harmonic_functions_dir)
        direction_dim = 0 if self.mode is ColoringMode.no_view_dir else self.encode_direction.output_dim(3)
        normal_dim = 0 if self.mode is ColoringMode.no_normal else 3
        widths = [3 + direction_dim + normal_dim + self.color_dim, *self.dims, self.color_dim]
        layers = [nn.Linear(n, m) for n, m in pairwise(widths)]
        self.layers = nn.ModuleList([parametrizations.weight_norm(x) for x in layers] if self.weight_norm else layers)

    def forward(
        self,
        points: Float[Tensor, "*n 3"],
        normals: Float[Tensor, "*n 3"],
        directions: Float[Tensor, "*n 3"],
        features: Float[Tensor, "*n C"],
    ) -> Float[Tensor, "*n C"]:
        """Colours in [0, 1], or [-1, 1] if they are signed.

        Args:
            points: on the surface, world units.
            normals: gradients of the signed distance, outwards, of any length.
            directions: of unit length, from the camera to the point.
            features: the field's feature vector at the points.
        """
        parts = [points]
        if self.mode is not ColoringMode.no_view_dir:
            parts.append(self.encode_direction(directions))
        if self.mode is not ColoringMode.no_normal:
            parts.append(normalize(normals, dim=-1) if self.unit_normals else normals)
        x = torch.cat([*parts, features], dim=-1)
        for i, layer in enumerate(self.layers):
            x = layer(x)
            if i < len(self.layers) - 1:
                x = x.relu()
        return x.tanh() if self.signed_colors else 0.5 * (1.0 + x.tanh())


@registry.register
class SignedDistanceFunctionRenderer(BaseRenderer):
    """Renders the surface of one signed distance field, one point a ray (IDR; Yariv et al. 2020).

    While training, a ray that meets the surface where its photograph shows the object has a colour, with the gradient
    of equation 3, so that colours move the surface, and the mask 1, a constant. Any other ray misses, or should: it
    shows the background, has depth 0, a zero normal, and its origin as point, and moves the surface by its mask alone,
    the differentiable sigmoid(-alpha min f) of equation 7 with the least signed distance f of the ray (of the way
    behind the surface, where it meets one). So colours are learned within silhouettes only (equation 5). Without masks
    every ray counts as one of the object.

    In evaluation, which knows no masks, every ray that meets the surface has a colour and the mask 1.

    All is computed in float32, under autocast and with TF32 too.
    """

    ray_normal_coloring_network: Factory[RayNormalColoringNetwork] = nested()
    """Gives surface points their colours."""
    ray_tracer: RayTracing = nested()
    """Finds surface points."""
    bg_color: tuple[float, ...] = (0.0,)
    """Background where the ray bundle brings none: one value, or one for each feature channel."""
    soft_mask_alpha: float = 50.0
    """How sharply the mask falls off with the distance by which a ray misses the surface, per world unit."""

    def __post_init__(self) -> None:
        if len(self.bg_color) not in (1, self.spec.color_dim):
            raise ConfigError(
                f"bg_color of the renderer: {list(self.bg_color)}, expected 1 or {self.spec.color_dim} values"
            )
        if self.soft_mask_alpha <= 0.0:
            raise ConfigError(f"soft_mask_alpha: {self.soft_mask_alpha}, expected a value above 0, as 50")
        self._coloring = self.ray_normal_coloring_network(color_dim=self.spec.color_dim)
        self._eikonal_points = RandomStream("eikonal")
        self._background = nn.Buffer(torch.tensor(self.bg_color), persistent=False)
        self._center = nn.Buffer(torch.tensor(self.spec.scene_center), persistent=False)

    def forward(
        self,
        ray_bundle: RayBundle,
        implicit_functions: Sequence[BoundField] = (),
        evaluation_mode: EvaluationMode = EvaluationMode.EVALUATION,
        **kwargs: object,
    ) -> RendererOutput:
        """Training renders have the gradients of the signed distance in their extras (see `SDF_GRADIENTS`)."""
        if len(implicit_functions) != 1 or self.spec.scene_radius is None:
            raise ValueError(
                f"the renderer needs one field and the scene's radius, found {len(implicit_functions)} fields and"
                f" {self.spec.scene_radius}"
            )
        rays, field = ray_bundle.flatten(), implicit_functions[0]
        training = evaluation_mode is EvaluationMode.TRAINING
        objects = _objects(rays) if training else None
        rays = replace(rays, lengths=None, bins=None, radii=None, fg_probability=None)
        with full_float32(rays.near.device.type):
            hits = self._trace(rays, field, objects)
            output = (
                self._evaluated(rays, field, hits) if objects is None else self._trained(rays, field, hits, objects)
            )
        return _shaped(output, ray_bundle.ray_shape)

    def _trace(self, rays: RayBundle, field: BoundField, objects: Bool[Tensor, "n"] | None) -> SurfaceHits:
        """Where rays meet the surface and, while training, the least signed distance of those without a colour."""
        bare = replace(rays, background=None)

        def distance(rows: Int[Tensor, "M"], t: Float[Tensor, "M S"]) -> Float[Tensor, "M S"]:
            return field(bare[rows].with_lengths(t[None])).extras[SDF][0, ..., 0]

        assert self.spec.scene_radius is not None
        radius, origins, directions = self.spec.scene_radius, rays.origins[0], rays.directions[0]
        # The weights stay as they are while rays are traced: those of normalised layers are computed once.
        with torch.no_grad(), parametrize.cached():
            return self.ray_tracer(
                distance, origins, directions, self._center, radius, search_lowest=objects is not None, stops=objects
            )

    def _evaluated(self, rays: RayBundle, field: BoundField, hits: SurfaceHits) -> RendererOutput:
        lowest = rays.origins + hits.lowest[None, :, None] * rays.directions
        masks = self._soft_masks(field(rays.at(lowest)).extras[SDF][..., 0])
        masks = torch.where(hits.hit[None, :, None], 1.0, masks)
        rows = hits.hit.nonzero()[:, 0]
        return self._shaded(rays, field, rows, hits.lengths[None, rows], masks, training=False)

    def _trained(
        self, rays: RayBundle, field: BoundField, hits: SurfaceHits, objects: Bool[Tensor, "n"]
    ) -> RendererOutput:
        """What losses see; one evaluation of the field serves masks, moving points and the eikonal loss."""
        shown = hits.hit & objects
        rows = shown.nonzero()[:, 0]
        along = torch.where(shown, hits.lengths, hits.lowest)
        with parametrize.cached():
            distance, gradients = self._probed(rays, field, along)
            of_rays = gradients[0, gradients.shape[1] - rays.n_rays :]
            slope = (of_rays.detach() * rays.directions[0]).sum(dim=-1)
            lengths = surface_lengths(along[rows], distance[rows], slope[rows])[None]
            masks = torch.where(shown, 1.0, self._soft_masks(distance))[None, :, None]
            output = self._shaded(rays, field, rows, lengths, masks, training=True)
        return replace(output, extras={SDF_GRADIENTS: gradients})

    def _soft_masks(self, distance: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
        return torch.sigmoid(-self.soft_mask_alpha * distance)

    def _shaded(
        self,
        rays: RayBundle,
        field: BoundField,
        rows: Int[Tensor, "M"],
        lengths: Float[Tensor, "1 M"],
        masks: Float[Tensor, "1 n 1"],
        training: bool,
    ) -> RendererOutput:
        """Shade the rays `rows` at `lengths` and scatter them among the others; all (1, n, ...)."""
        met = rays[rows]
        points = met.origins + lengths[..., None] * met.directions
        outputs, gradients = _with_gradients(field, met, points, training)
        normals = normalize(gradients, dim=-1)
        colors = self._coloring(points, gradients, met.view_directions, outputs.features[..., 0, :])
        shape = (1, rays.n_rays, self.spec.color_dim)
        behind = (self._background if rays.background is None else rays.background).expand(shape)
        depths = rays.near.new_zeros(1, rays.n_rays).index_copy(1, rows, lengths)[..., None]
        return RendererOutput(
            features=behind.to(colors.dtype).index_copy(1, rows, colors),
            depths=depths,
            masks=masks,
            normals=torch.zeros_like(rays.origins).index_copy(1, rows, normals),
            points=rays.origins + depths * rays.directions,
        )

    def _probed(
        self, rays: RayBundle, field: BoundField, along: Float[Tensor, "n"]
    ) -> tuple[Float[Tensor, "n"], Float[Tensor, "1 K 3"]]:
        """The signed distance at one place along each ray, and its gradients for the eikonal loss: half as many as rays
        at uniform points of the cube around the bounding sphere, then those at the places along the rays.

        The uniform points are seen with the conditioning of every second ray. Both can be differentiated by the field's
        parameters; the places are constants.
        """
        assert self.spec.scene_radius is not None
        n, device = rays.n_rays, rays.near.device
        every_second = torch.arange(0, n - n % 2, 2, device=device)
        uniform = torch.rand(every_second.shape[0], 3, generator=self._eikonal_points.on(device), device=device)
        uniform = self._center + self.spec.scene_radius * (2.0 * uniform - 1.0)
        at_rays = rays.origins[0] + along[:, None] * rays.directions[0]
        rows = torch.cat([every_second, torch.arange(n, device=device)])
        points = torch.cat([uniform, at_rays])[None].detach()
        outputs, gradients = _with_gradients(field, rays[rows], points, training=True)
        return outputs.extras[SDF][0, every_second.shape[0] :, 0, 0], gradients

    def check_fields(self, fields: Sequence[ImplicitFunctionBase]) -> None:
        if len(fields) != 1:
            raise ConfigError(
                f"renderer_class_type: {type(self).__name__} renders one pass, found {len(fields)}; set num_passes: 1,"
                " or no coarse field and don't share the one"
            )
        if not isinstance(fields[0], SignedDistanceField):
            raise ConfigError(
                f"implicit_function_class_type: {type(fields[0]).__name__} gives no signed distance, which"
                f" {type(self).__name__} renders; expected one that does, such as IdrFeatureField"
            )
        if self.spec.scene_radius is None:
            raise ConfigError(
                f"raysampler_class_type: {type(self).__name__} traces rays within a sphere, which this ray sampler"
                " doesn't know; expected AdaptiveRaySampler with the scene's radius as its scene_extent"
            )

    @property
    def gives_gradients(self) -> bool:
        return True

    @property
    def needs_lengths(self) -> bool:
        return False

    @property
    def background(self) -> tuple[float, ...] | None:
        return self.bg_color


def _objects(rays: RayBundle) -> Bool[Tensor, "n"]:
    """Which of the rays of one group count as rays of the object; all of them where there are no masks."""
    if rays.fg_probability is None:
        return torch.ones_like(rays.near[0], dtype=torch.bool)
    return rays.fg_probability[0, :, 0] > OBJECT_THRESHOLD


def _with_gradients(
    field: BoundField, rays: RayBundle, points: Float[Tensor, "*rays 3"], training: bool
) -> tuple[FieldOutputs, Float[Tensor, "*rays 3"]]:
    """The field at one point of each ray, and the gradient of its signed distance there.

    Both can be differentiated while training; in evaluation they have no graph. Works within `torch.no_grad()`.
    """
    with torch.enable_grad():
        points = points.requires_grad_() if training else points.detach().requires_grad_()
        outputs = field(rays.at(points))
        (gradients,) = torch.autograd.grad(outputs.extras[SDF].sum(), points, create_graph=training)
    return (outputs if training else replace(outputs, features=outputs.features.detach())), gradients


def _shaped(output: RendererOutput, ray_shape: torch.Size) -> RendererOutput:
    """The output of rays in one group in the shape that they came in; extras stay as they are."""
    assert output.normals is not None and output.points is not None
    return replace(
        output,
        features=output.features.reshape(*ray_shape, -1),
        depths=output.depths.reshape(*ray_shape, 1),
        masks=output.masks.reshape(*ray_shape, 1),
        normals=output.normals.reshape(*ray_shape, 3),
        points=output.points.reshape(*ray_shape, 3),
    )
