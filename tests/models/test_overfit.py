"""The fields of OverfitModel."""

import pytest

from nerf_trainer.config import Factory
from nerf_trainer.errors import ConfigError
from nerf_trainer.fields.nerf import NeuralRadianceFieldImplicitFunction
from nerf_trainer.models.overfit import OverfitModel

NERF = Factory.of(NeuralRadianceFieldImplicitFunction)


def test_two_passes_have_the_published_number_of_parameters() -> None:
    module = OverfitModel(coarse_implicit_function=NERF)
    assert sum(p.numel() for p in module.parameters()) == 1_191_688
    coarse, fine = module.passes()
    assert coarse is not fine


def test_a_shared_field_serves_both_passes() -> None:
    module = OverfitModel(share_implicit_function_across_passes=True)
    assert sum(p.numel() for p in module.parameters()) == 1_191_688 // 2
    assert len(module.passes()) == 2 and len(set(module.passes())) == 1


def test_one_pass_is_the_default() -> None:
    assert len(OverfitModel().passes()) == 1


def test_sharing_and_a_coarse_field_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match="expected one or the other"):
        OverfitModel(coarse_implicit_function=NERF, share_implicit_function_across_passes=True)
