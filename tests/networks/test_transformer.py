"""The transformer over views and samples, against torch's own attention in float64."""

import pytest
import torch
from torch import Tensor, nn

from nerf_trainer.networks import transformer
from nerf_trainer.networks.transformer import (
    LARGEST_BATCH,
    N_HEADS,
    SHORT,
    AttentionLayer,
    TransformerWithInputSkips,
    attention,
    layer_widths,
)


def network(**options) -> TransformerWithInputSkips:
    torch.manual_seed(0)
    sizes = {"input_dim": 11, "output_dim": 7, "hidden_dim": 16, "n_layers": 2, "input_skips": (1,)}
    return TransformerWithInputSkips(**(sizes | {"dim_down_factor": 2.0} | options))


def plain_layer(layer: AttentionLayer, x: Tensor) -> Tensor:
    """The layer on the tokens (N, L, D), with torch's attention instead of ours."""
    dim = x.shape[-1]
    theirs = nn.MultiheadAttention(dim, N_HEADS, batch_first=True, dtype=x.dtype)
    theirs.load_state_dict(
        {
            "in_proj_weight": layer.queries_keys_values.weight,
            "in_proj_bias": layer.queries_keys_values.bias,
            "out_proj.weight": layer.attended.weight,
            "out_proj.bias": layer.attended.bias,
        }
    )
    x = layer.norm_attention(x + theirs(x, x, x)[0])
    hidden = torch.relu(layer.feedforward[0](x))
    y = layer.feedforward[2](hidden)
    return layer.norm_feedforward(x[..., : y.shape[-1]] + y)


def plain(module: TransformerWithInputSkips, x: Tensor) -> Tensor:
    """The network on one ray's tokens (S, V, D): sample by sample, then view by view."""
    y = module.first(x)
    for i, (pool, ray) in enumerate(zip(module.pool_layers, module.ray_layers, strict=True)):
        if str(i) in module.skips:
            y = y + module.skips[str(i)](x)
        y = torch.cat([plain_layer(pool, y[s][None]) for s in range(y.shape[0])])
        y = torch.stack([plain_layer(ray, y[:, v][None])[0] for v in range(y.shape[1])], dim=1)
    rows = []
    for sample in y:
        shares = sample[:, 0].exp() / sample[:, 0].exp().sum()
        rows.append(sum(share * token for share, token in zip(shares, sample, strict=True)))
    return module.last(torch.stack(rows))


@pytest.mark.parametrize("n_samples", [5, SHORT + 8], ids=["short", "long"])
def test_equals_the_plain_network_in_float64(n_samples: int) -> None:
    module = network().double()
    x = torch.randn(2, n_samples, 3, 11, dtype=torch.float64)
    expected = torch.stack([plain(module, ray) for ray in x])
    torch.testing.assert_close(module(x), expected)
    torch.testing.assert_close(module.float()(x.float()).double(), expected, atol=1e-5, rtol=1e-4)


def test_number_of_parameters_by_hand() -> None:
    """The default field's: 80 wide, narrowed to 40 and 20, on an input of 195 channels."""

    def layer(d: int, e: int) -> int:
        attention = 3 * d * d + 3 * d + d * d + d
        return attention + 2 * d + (d * 80 + 80) + (80 * e + e) + 2 * e

    expected = (195 * 80 + 80) + (195 * 40 + 40) + (20 * 80 + 80)
    expected += layer(80, 40) + layer(40, 40) + layer(40, 20) + layer(20, 20)
    module = TransformerWithInputSkips(195, 80, 80, 2, (1,), 2.0)
    assert sum(p.numel() for p in module.parameters()) == expected


def test_widths_narrow_by_the_factor() -> None:
    assert layer_widths(80, 2, 2.0) == [80, 40, 20]
    assert layer_widths(64, 3, 1.0) == [64, 64, 64, 64]


def test_the_order_of_views_does_not_matter() -> None:
    module, x = network(), torch.randn(4, 6, 5, 11)
    torch.testing.assert_close(module(x[..., torch.tensor([3, 0, 4, 1, 2]), :]), module(x), atol=1e-5, rtol=0.0)


def test_samples_of_a_ray_see_each_other_and_rays_do_not() -> None:
    module, x = network(), torch.randn(2, 6, 3, 11)
    changed = x.clone()
    changed[0, 2] += 1.0
    moved = (module(changed) - module(x)).abs().amax(dim=-1)
    assert (moved[0] > 1e-4).all() and (moved[1] == 0.0).all()


def test_an_input_skip_brings_the_input_back() -> None:
    """With the first layer blind, the input is seen through the skip alone."""
    seen = network()
    nn.init.zeros_(seen.first.weight)
    x = torch.randn(1, 4, 3, 11)
    assert (seen(x) - seen(x + 1.0)).abs().max() > 1e-3
    blind = network(input_skips=())
    nn.init.zeros_(blind.first.weight)
    assert torch.equal(blind(x), blind(x + 1.0))


def test_one_view_and_one_sample_are_enough() -> None:
    module = network()
    x = torch.randn(3, 4, 1, 11)
    # the same view twice is as good as once
    torch.testing.assert_close(module(x.expand(3, 4, 2, 11)), module(x), atol=1e-5, rtol=0.0)
    assert module(x[:, :1]).shape == (3, 1, 7)


@pytest.mark.parametrize("rays", [(1, 3), (2, 3), (2, 3, 2)])
def test_any_shape_of_rays(rays: tuple[int, ...]) -> None:
    module, x = network(), torch.randn(*rays, 4, 2, 11)
    flat = module(x.reshape(1, -1, 4, 2, 11))
    torch.testing.assert_close(module(x), flat.reshape(*rays, 4, 7), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("scale", [1.0, 1e4])
@pytest.mark.parametrize("n_samples", [4, SHORT + 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_finite_with_finite_gradients(dtype: torch.dtype, n_samples: int, scale: float) -> None:
    module = network()
    x = (scale * torch.randn(2, n_samples, 3, 11)).requires_grad_()
    with torch.autocast("cpu", dtype=dtype, enabled=dtype is torch.bfloat16):
        y = module(x)
    y.float().square().sum().backward()
    assert y.isfinite().all() and x.grad is not None and x.grad.isfinite().all()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


def test_many_sets_are_attended_to_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    queries, keys, values = torch.randn(3, 7, N_HEADS, SHORT + 1, 5)
    whole = attention(queries, keys, values)
    monkeypatch.setattr(transformer, "LARGEST_BATCH", 3)
    torch.testing.assert_close(attention(queries, keys, values), whole)


@pytest.mark.gpu
@pytest.mark.parametrize("length", [4, SHORT + 1])
def test_more_sets_than_a_kernel_takes(length: int) -> None:
    """More than 65,535, forward and backward, and the last as right as the first."""
    shape = (2 * LARGEST_BATCH + 7, N_HEADS, length, 5)
    queries, keys, values = (torch.randn(shape, device="cuda", dtype=torch.bfloat16) for _ in range(3))
    queries.requires_grad_()
    attended = attention(queries, keys, values)
    attended.float().sum().backward()
    assert queries.grad is not None and queries.grad.isfinite().all()
    for part in (slice(0, 3), slice(-3, None)):
        q, k, v = (t[part].double().cpu() for t in (queries.detach(), keys, values))
        expected = torch.softmax(q @ k.mT / 5**0.5, dim=-1) @ v
        torch.testing.assert_close(attended[part].detach().double().cpu(), expected, atol=0.03, rtol=0.03)


@pytest.mark.parametrize("skips", [(0,), (2,), (-1,)])
def test_impossible_skips_are_refused(skips: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="skips go from 1"):
        network(input_skips=skips)


@pytest.mark.parametrize("options", [{"hidden_dim": 18}, {"dim_down_factor": 0.5}, {"dim_down_factor": 32.0}])
def test_widths_that_heads_or_residuals_cannot_have_are_refused(options: dict) -> None:
    with pytest.raises(ValueError, match="multiple of 4"):
        network(**options)
