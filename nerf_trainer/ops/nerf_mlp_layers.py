"""The network of a radiance field layer by layer in torch's own products, its backward written out by hand.

Against autograd over modules it spares the passes over memory that are no products: nothing is concatenated before a
skip, biases and ReLUs ride on the products where the library can, gradients go through ReLUs in place, and the encoding
gets no gradient unless it asks for one. Symbols are those of `ops.nerf_mlp_shape`.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from nerf_trainer.ops.nerf_mlp_shape import Linear, NerfMLPShape, NerfMLPWeights


def nerf_mlp(
    embedded: Float[Tensor, "N E"],
    per_ray: Float[Tensor, "R C"] | None,
    weights: NerfMLPWeights,
    dtype: torch.dtype,
) -> tuple[Float[Tensor, "N 1"], Float[Tensor, "N K"] | None]:
    """Density and colour before their activations, float32; products are of `dtype`. Differentiable once."""
    tensors = weights.tensors()
    outputs = _LayeredMLP.apply(embedded, per_ray, weights.shape, dtype, *tensors)
    return outputs if weights.color is not None else (outputs, None)


class _LayeredMLP(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, embedded: Tensor, per_ray: Tensor | None, shape: NerfMLPShape, dtype: torch.dtype, *tensors: Tensor
    ) -> Any:
        with torch.autocast(embedded.device.type, enabled=False):
            cast = [t.detach().to(dtype) for t in tensors]
            x = embedded.detach().to(dtype)
            hidden, colors, outputs = _forward(x, per_ray, NerfMLPWeights.from_tensors(cast, shape))
        ctx.shape, ctx.n_hidden, ctx.n_rays = shape, len(hidden), 0 if per_ray is None else per_ray.shape[0]
        ctx.save_for_backward(x, *hidden, *colors, *cast)
        return tuple(outputs) if len(outputs) > 1 else outputs[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        shape: NerfMLPShape = ctx.shape
        x, *saved = ctx.saved_tensors
        hidden, colors = saved[: shape.n_hidden], saved[shape.n_hidden : shape.n_hidden + shape.n_color_layers]
        weights = NerfMLPWeights.from_tensors(saved[shape.n_hidden + shape.n_color_layers :], shape)
        with torch.autocast(x.device.type, enabled=False):
            backward = _Backward(x, hidden, colors, weights, wants_input=ctx.needs_input_grad[0])
            per_ray = backward.run([g.to(x.dtype) for g in grad_outputs], ctx.n_rays)
        grads = [None if g is None else g.float() for g in backward.grads.tensors()]
        grad_input = None if backward.grad_input is None else backward.grad_input.float()
        return grad_input, per_ray, None, None, *grads


def _forward(
    x: Tensor, per_ray: Tensor | None, weights: NerfMLPWeights
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """The outputs of hidden layers, of colour layers, and of the heads in float32."""
    hidden: list[Tensor] = []
    for layer, (weight, bias) in enumerate(weights.hidden):
        if layer in weights.skips:
            width = weight.shape[0]
            h = torch.addmm(bias, hidden[-1], weight[:, :width].T).addmm_(x, weight[:, width:].T).relu_()
        else:
            h = _linear_relu(hidden[-1] if hidden else x, weight, bias)
        hidden.append(h)
    outputs = [_linear(hidden[weights.density_layer], weights.density).float()]
    if weights.color is None:
        return hidden, [], outputs
    colors: list[Tensor] = []
    if weights.color_input is not None and per_ray is not None:
        c = hidden[-1] @ weights.color_input.T
        _by_ray(c, per_ray.shape[0]).add_(per_ray.detach()[:, None]).relu_()
        colors.append(c)
        for weight, bias in weights.color_layers:
            colors.append(_linear_relu(colors[-1], weight, bias))
    outputs.append(_linear(colors[-1] if colors else hidden[-1], weights.color).float())
    return hidden, colors, outputs


class _Backward:
    """Gradients of one backward pass; `g` is always the gradient before a layer's ReLU."""

    def __init__(
        self, x: Tensor, hidden: list[Tensor], colors: list[Tensor], weights: NerfMLPWeights, wants_input: bool
    ) -> None:
        self._x, self._hidden, self._colors, self._weights = x, hidden, colors, weights
        self.grad_input = torch.zeros_like(x) if wants_input else None
        self.grads = NerfMLPWeights.from_tensors([torch.empty_like(t) for t in weights.tensors()], weights.shape)

    def run(self, grad_outputs: list[Tensor], n_rays: int) -> Tensor | None:
        """Fill in all gradients; returns that of `per_ray`."""
        weights, per_ray = self._weights, None
        grad_density, g = grad_outputs[0], None
        if weights.color is not None and self.grads.color is not None:
            inputs = self._colors[-1] if self._colors else self._hidden[-1]
            g = self._through(grad_outputs[1], inputs, weights.color, self.grads.color)
        if weights.color_input is not None and self.grads.color_input is not None and g is not None:
            for i in range(len(weights.color_layers) - 1, -1, -1):
                _relu_backward_(g, self._colors[i + 1])
                g = self._through(g, self._colors[i], weights.color_layers[i], self.grads.color_layers[i])
            _relu_backward_(g, self._colors[0])
            per_ray = _by_ray(g, n_rays).sum(dim=1, dtype=torch.float32)
            torch.mm(g.T, self._hidden[-1], out=self.grads.color_input)
            g = g @ weights.color_input
        self._hidden_layers(g, grad_density)
        return per_ray

    def _hidden_layers(self, g: Tensor | None, grad_density: Tensor) -> None:
        """From the gradient of the last hidden layer's output down, with the density's where it comes in."""
        weights, grads = self._weights, self.grads
        for layer in range(len(self._hidden) - 1, -1, -1):
            if layer == weights.density_layer:
                at_density = self._through(grad_density, self._hidden[layer], weights.density, grads.density)
                g = at_density if g is None else g.add_(at_density)
            if g is None:
                raise ValueError(f"density is read off hidden layer {weights.density_layer}, which is not the last")
            _relu_backward_(g, self._hidden[layer])
            weight, grad = weights.hidden[layer][0], grads.hidden[layer][0]
            torch.sum(g, dim=0, out=grads.hidden[layer][1])
            width = weight.shape[0] if layer else 0
            if layer == 0 or layer in weights.skips:
                grad[:, width:].copy_(g.T @ self._x)
                if self.grad_input is not None:
                    self.grad_input.addmm_(g, weight[:, width:])
            if layer > 0:
                grad[:, :width].copy_(g.T @ self._hidden[layer - 1])
                g = g @ weight[:, :width]

    @staticmethod
    def _through(g: Tensor, inputs: Tensor, weights: Linear, grads: Linear) -> Tensor:
        """The gradient of a layer's inputs; those of its weights and bias are written."""
        torch.mm(g.T, inputs, out=grads[0])
        torch.sum(g, dim=0, out=grads[1])
        return g @ weights[0]


def _linear(x: Tensor, weights: Linear) -> Tensor:
    return torch.addmm(weights[1], x, weights[0].T)


def _linear_relu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """relu(x weight^T + bias): one kernel where the library has it so."""
    return torch._addmm_activation(bias, x, weight.T)


def _by_ray(t: Float[Tensor, "N C"], n_rays: int) -> Float[Tensor, "R S C"]:
    return t.view(n_rays, t.shape[0] // max(n_rays, 1), t.shape[1])


def _relu_backward_(g: Tensor, output: Tensor) -> None:
    """Zero `g` where the ReLU's output is."""
    torch.ops.aten.threshold_backward.grad_input(g, output, 0, grad_input=g)
