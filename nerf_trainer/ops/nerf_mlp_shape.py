"""What the network of a radiance field is made of, for all implementations of `ops.nerf_mlp`.

N: samples; R: rays, of N / R samples each; E: width of the encoded position and what conditions it; W: width of the
hidden layers; C: width of the colour layers; K: colour channels.
"""

from dataclasses import dataclass

from torch import Tensor

Linear = tuple[Tensor, Tensor]
"""Weight (out, in) and bias (out) of a layer."""


@dataclass(frozen=True)
class NerfMLPShape:
    """Widths and connections; hashable, so that what depends on them alone is made once."""

    input_dim: int
    """E."""
    width: int
    """W."""
    n_hidden: int
    """Hidden layers, each with a ReLU."""
    skips: tuple[int, ...]
    """Hidden layers, from 1, that see the input behind the previous layer's output."""
    density_layer: int
    """The hidden layer that density is read off; colour is read off the last."""
    color_dim: int
    """K; 0 where density alone is asked for."""
    color_width: int
    """C; 0 where colour is one layer on the last hidden layer."""
    n_color_layers: int
    """Colour layers with a ReLU each; the first adds what the ray's direction says. 0 without."""

    @property
    def by_direction(self) -> bool:
        """Whether there are colour layers, which see the direction."""
        return self.n_color_layers > 0


@dataclass(frozen=True)
class NerfMLPWeights:
    """The layers' weights and biases, float32."""

    hidden: tuple[Linear, ...]
    """The first is (W, E), those of `skips` (W, W + E), others (W, W)."""
    skips: tuple[int, ...]
    density_layer: int
    density: Linear
    """(1, W)."""
    color_input: Tensor | None = None
    """(C, W); its bias is part of `per_ray`."""
    color_layers: tuple[Linear, ...] = ()
    """The colour layers after the first, (C, C)."""
    color: Linear | None = None
    """(K, C), or (K, W) without colour layers; None leaves colour out."""

    @property
    def shape(self) -> NerfMLPShape:
        return NerfMLPShape(
            input_dim=self.hidden[0][0].shape[1],
            width=self.hidden[0][0].shape[0],
            n_hidden=len(self.hidden),
            skips=self.skips,
            density_layer=self.density_layer,
            color_dim=0 if self.color is None else self.color[0].shape[0],
            color_width=0 if self.color_input is None else self.color_input.shape[0],
            n_color_layers=0 if self.color_input is None else 1 + len(self.color_layers),
        )

    def tensors(self) -> list[Tensor]:
        """All of them in a row, as `from_tensors` takes them apart."""
        found = [t for layer in (*self.hidden, self.density) for t in layer]
        found += [] if self.color_input is None else [self.color_input]
        found += [t for layer in self.color_layers for t in layer]
        return found + ([] if self.color is None else list(self.color))

    @classmethod
    def from_tensors(cls, tensors: list[Tensor], shape: NerfMLPShape) -> "NerfMLPWeights":
        """The inverse of `tensors`; also takes apart their gradients."""
        rest = iter(tensors)

        def layers(n: int) -> tuple[Linear, ...]:
            return tuple((next(rest), next(rest)) for _ in range(n))

        return cls(
            hidden=layers(shape.n_hidden),
            skips=shape.skips,
            density_layer=shape.density_layer,
            density=(next(rest), next(rest)),
            color_input=next(rest) if shape.by_direction else None,
            color_layers=layers(max(shape.n_color_layers - 1, 0)),
            color=(next(rest), next(rest)) if shape.color_dim else None,
        )
