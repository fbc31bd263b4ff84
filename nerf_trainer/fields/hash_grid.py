"""The field of Instant-NGP: a hash encoding of the position, and two small networks."""

from dataclasses import field
from enum import Enum

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from nerf_trainer.config import registry
from nerf_trainer.errors import ConfigError
from nerf_trainer.fields.base import FieldInputs, FieldOutputs, ImplicitFunctionBase
from nerf_trainer.geometry.contraction import CONTRACTED_RADIUS, Norm
from nerf_trainer.networks.hash_encoding import HashEncoding
from nerf_trainer.networks.small_mlp import SmallMLP
from nerf_trainer.ops.cube_places import cube_places
from nerf_trainer.ops.hash_levels import HashLevels
from nerf_trainer.ops.log_density import log_density
from nerf_trainer.ops.spherical_harmonics import MOST_DEGREES, spherical_harmonics
from nerf_trainer.rays.bundle import RayBundle


class Contraction(Enum):
    """What lies outside the box."""

    NONE = "NONE"
    """Nothing: density is 0 there."""
    SPHERE = "SPHERE"
    """All of space, contracted: what is beyond the ellipsoid in the box lies in a shell around it, twice as wide."""
    BOX = "BOX"
    """All of space, contracted into a box twice as wide; the box itself stays as it is."""

    @property
    def norm(self) -> Norm | None:
        """The norm of the contraction, if there is one."""
        return {Contraction.NONE: None, Contraction.SPHERE: Norm.L2, Contraction.BOX: Norm.LINF}[self]


@registry.register
class HashGridImplicitFunction(ImplicitFunctionBase):
    """Density and view-dependent colour from a multiresolution hash encoding (Müller et al. 2022, Instant-NGP).

    h = density_network(encoding(x)); density = exp(h[0] + density_bias), where the box is, or everywhere in contracted
    space; features = sigmoid(color_network([spherical harmonics of the direction, h])).
    On a CPU samples outside the box cost nothing; elsewhere they are evaluated and masked, so that the host need not
    know how many there are; what packed samples have of padding costs next to nothing there, and has any values.
    """

    n_levels: int = 8
    """Levels of the encoding. 8 of 4 features and 16 of 2 are equally wide; 8 of 4 need half the accesses to memory."""
    n_features_per_level: int = 4
    """Features of a node: 1, 2, 4 or 8."""
    log2_hashmap_size: int = 19
    """Binary logarithm of the most nodes a level has to itself; nodes of a finer level share places."""
    base_resolution: int = 16
    """Cells across the box, along each axis, at the coarsest level; contracted space has twice as many."""
    finest_resolution: int = 2048
    """Cells across the box at the finest level; contracted space has twice as many."""
    extents: tuple[float, float, float] = (2.0, 2.0, 2.0)
    """Lengths of the box along x, y and z, world units."""
    translation: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Centre of the box, world units."""
    contraction: Contraction = Contraction.NONE
    """What lies outside the box: NONE, or all of space as SPHERE or BOX contract it."""
    n_layers_density: int = 1
    """Hidden layers of the density network."""
    n_hidden_neurons_density: int = 64
    """Their width."""
    geometry_dim: int = 16
    """Width of what the density network says: the logarithm of the density first; the colour network sees all."""
    density_bias: float = 0.0
    """Added to the logarithm of the density: density starts at exp(density_bias), per world unit."""
    n_layers_color: int = 2
    """Hidden layers of the colour network."""
    n_hidden_neurons_color: int = 64
    """Their width."""
    n_harmonic_degrees: int = MOST_DEGREES
    """Degrees of the direction's spherical harmonics: 1 (no view dependence) to 4 (16 functions)."""
    param_groups: dict[str, str] = field(default_factory=dict)
    """Optimizer groups by what they hold: self (everything here), encoding, density_network or color_network."""

    def __post_init__(self) -> None:
        self._check()
        widened = 1 if self.contraction is Contraction.NONE else int(CONTRACTED_RADIUS)
        self.encoding = HashEncoding(self._levels(widened))
        self.density_network = SmallMLP(
            self.encoding.output_dim, self.geometry_dim, self.n_hidden_neurons_density, self.n_layers_density
        )
        self.color_network = SmallMLP(
            self.n_harmonic_degrees**2 + self.geometry_dim,
            self.spec.color_dim,
            self.n_hidden_neurons_color,
            self.n_layers_color,
        )
        self.box_center = torch.nn.Buffer(torch.tensor(self.translation, dtype=torch.float32))
        self.box_extents = torch.nn.Buffer(torch.tensor(self.extents, dtype=torch.float32))

    def _check(self) -> None:
        if self.spec.pooled_dim or self.spec.global_code_dim:
            raise ConfigError(
                "implicit_function_class_type: HashGridImplicitFunction takes no pooled features and no global code;"
                " expected view_pooler_enabled: false and global_encoder_class_type: null"
            )
        if len(self.extents) != 3 or len(self.translation) != 3 or min(self.extents) <= 0:
            raise ConfigError(
                f"extents, translation: {list(self.extents)}, {list(self.translation)}; expected three positive lengths"
                " and three coordinates"
            )
        counts = {
            "n_layers_density": self.n_layers_density,
            "n_hidden_neurons_density": self.n_hidden_neurons_density,
            "n_layers_color": self.n_layers_color,
            "n_hidden_neurons_color": self.n_hidden_neurons_color,
            "geometry_dim": self.geometry_dim,
        }
        for name, value in counts.items():
            if value < 1:
                raise ConfigError(f"{name}: {value}; expected at least 1")
        if not 1 <= self.n_harmonic_degrees <= MOST_DEGREES:
            raise ConfigError(f"n_harmonic_degrees: {self.n_harmonic_degrees}; expected 1 to {MOST_DEGREES}")
        places = ("self", "encoding", "density_network", "color_network")
        unknown = next((key for key in self.param_groups if key not in places), None)
        if unknown is not None:
            raise ConfigError(f"param_groups: '{unknown}'; expected {', '.join(places)}")

    def _levels(self, widened: int) -> HashLevels:
        try:
            return HashLevels(
                n_levels=self.n_levels,
                n_features=self.n_features_per_level,
                log2_table_size=self.log2_hashmap_size,
                base_resolution=widened * self.base_resolution,
                finest_resolution=widened * self.finest_resolution,
            )
        except ValueError as error:
            raise ConfigError(f"{type(self).__name__}: {error}") from None

    def forward(self, ray_bundle: RayBundle, inputs: FieldInputs) -> FieldOutputs:
        assert ray_bundle.lengths is not None, "a field needs samples along the rays"
        shape = ray_bundle.lengths.shape
        densities, colors = self._evaluate(ray_bundle, with_color=True)
        return FieldOutputs(densities=densities.view(*shape, 1), features=colors.view(*shape, self.spec.color_dim))

    def densities(self, ray_bundle: RayBundle, inputs: FieldInputs) -> Float[Tensor, "*rays S 1"]:
        assert ray_bundle.lengths is not None, "a field needs samples along the rays"
        return self._evaluate(ray_bundle, with_color=False)[0].view(*ray_bundle.lengths.shape, 1)

    def _evaluate(self, ray_bundle: RayBundle, with_color: bool) -> tuple[Float[Tensor, "M 1"], Float[Tensor, "M C"]]:
        """Densities and colours at the samples; colours have no channels where they are not wanted."""
        places, inside = self.encoded_places(ray_bundle)
        directions = self._directions(ray_bundle) if with_color else None
        if inside is None or places.is_cuda:
            return self._evaluate_all(places, directions, inside, ray_bundle.n_used)
        rows = inside.nonzero()[:, 0]
        along = None if directions is None else directions.index_select(0, rows)
        densities, colors = self._evaluate_all(places.index_select(0, rows), along, None, None)
        n = len(places)
        return (
            densities.new_zeros(n, 1).index_copy(0, rows, densities),
            colors.new_zeros(n, colors.shape[1]).index_copy(0, rows, colors),
        )

    def _directions(self, ray_bundle: RayBundle) -> Shaped[Tensor, "M K"]:
        """The encoded view direction of each sample; encoded once a ray."""
        assert ray_bundle.lengths is not None, "a field needs samples along the rays"
        n_samples = ray_bundle.lengths.shape[-1]
        basis = spherical_harmonics(ray_bundle.view_directions.reshape(-1, 3), self.n_harmonic_degrees)
        return basis[:, None].expand(-1, n_samples, -1).reshape(-1, basis.shape[-1])

    def _evaluate_all(
        self,
        places: Float[Tensor, "M 3"],
        directions: Shaped[Tensor, "M K"] | None,
        inside: Bool[Tensor, "M"] | None,
        n_used: Int[Tensor, ""] | None,
    ) -> tuple[Float[Tensor, "M 1"], Float[Tensor, "M C"]]:
        """Densities and colours at places in the encoding's cube; no colours where there are no directions."""
        outputs = self.density_network(self.encoding(places, n_used), n_used)
        density, geometry = log_density(outputs, self.density_bias, inside)
        if directions is None:
            return density, density[:, :0]
        return density, torch.sigmoid(self.color_network(directions, n_used, geometry))

    def encoded_places(self, ray_bundle: RayBundle) -> tuple[Float[Tensor, "M 3"], Bool[Tensor, "M"] | None]:
        """Where samples lie in the encoding's cube [0, 1]^3, and which of them the field fills; None: all."""
        assert ray_bundle.lengths is not None, "a field needs samples along the rays"
        return cube_places(
            ray_bundle.origins.reshape(-1, 3),
            ray_bundle.directions.reshape(-1, 3),
            ray_bundle.lengths.reshape(-1, ray_bundle.lengths.shape[-1]),
            self.box_center,
            self.box_extents,
            self.contraction.norm,
        )
