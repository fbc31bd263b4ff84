"""Column orders of encodings, layers made one, and counts in files."""

import pytest
import torch
from omegaconf import OmegaConf

from nerf_trainer.errors import ConfigError
from nerf_trainer.imports.nerf_networks import Encoding, Linear, count, model_arguments, require_model, whole_number
from nerf_trainer.networks.encodings import HarmonicEmbedding
from tests.imports.published import encoded, recipe


@pytest.mark.parametrize(("n", "has_input"), [(4, True), (3, False), (0, True)])
def test_reordered_columns_see_our_encoding_as_the_published_ones_see_theirs(n: int, has_input: bool) -> None:
    x, weight = torch.randn(7, 3), torch.randn(5, 6 * n + 3 * has_input)
    published = encoded(x, n, has_input) @ weight.T
    encoding = Encoding.of_width(weight.shape[1])
    assert encoding == Encoding(n, has_input)
    for with_input in (has_input, True):
        ours = HarmonicEmbedding(n_harmonic_functions=n, append_input=with_input)(x)
        torch.testing.assert_close(ours @ encoding.reordered(weight, with_input).T, published)


def test_other_widths_are_no_encodings() -> None:
    assert [Encoding.of_width(width) for width in (-1, 1, 5, 64)] == [None] * 4


def test_two_linear_layers_are_one() -> None:
    first, second = (Linear(torch.randn(4, n), torch.randn(4)) for n in (3, 4))
    x = torch.randn(6, 3)
    both = second.after(first)
    expected = (x @ first.weight.T + first.bias) @ second.weight.T + second.bias
    torch.testing.assert_close(x @ both.weight.T + both.bias, expected)
    assert both.weight.dtype == torch.float32


def test_layers_are_counted_while_their_numbers_follow_one_another() -> None:
    names = ["a.0.weight", "a.1.weight", "a.3.weight", "ab1.0.weight", "ab2.0.weight"]
    tensors = {name: torch.zeros(1, 1) for name in names}
    assert count(tensors, "a.{}.weight") == 2
    assert count(tensors, "ab{}.0.weight") == 2
    assert count(tensors, "b.{}.weight") == 0


def test_counts_are_whole_numbers_or_nothing() -> None:
    assert [whole_number(value) for value in (7, torch.tensor(8), True, -1, 2.5, "9", None, 10**15)] == [
        *(7, 8, 0, 0, 0, 0, 0, 0)
    ]


def test_another_model_of_the_recipe_is_refused() -> None:
    model, key = model_arguments(recipe())
    assert (model, key) == ("OverfitModel", "model_factory_ImplicitronModelFactory_args.model_OverfitModel_args")
    config = recipe()
    config.model_factory_ImplicitronModelFactory_args.model_class_type = "GenericModel"
    with pytest.raises(ConfigError, match="model_class_type: found GenericModel, expected OverfitModel"):
        require_model(config, "OverfitModel")
    with pytest.raises(ConfigError, match="expected the name of a model"):
        model_arguments(OmegaConf.create({"model_factory_class_type": "Mine"}))
