"""The configuration system: grammar, building, pruning, error lines, direct construction."""

import copy
import enum
import pickle
from dataclasses import field
from typing import Any, Literal

import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nerf_trainer.config import (
    Configurable,
    Factory,
    Registry,
    ReplaceableBase,
    build,
    choice,
    defaults,
    nested,
    prune,
    registry,
    runtime,
    schema,
)
from nerf_trainer.errors import MAX_LINE, ConfigError


class Mode(enum.Enum):
    SHARP = "sharp-mode"
    SOFT = "soft-mode"


class Sampler(ReplaceableBase):
    """A namespace."""


@registry.register
class GridSampler(Sampler):
    n_points: int = 8
    center: tuple[float, float, float] = (0.0, 0.0, 0.0)
    mode: Mode = Mode.SHARP
    schedule: dict[int, tuple[int, int, int]] = field(default_factory=lambda: {0: (8, 8, 8)})
    weights: dict[str, float] = field(default_factory=lambda: {"rgb": 1.0})
    extra: dict[str, Any] = field(default_factory=dict)
    limit: float | None = None
    policy: Literal["keep", "drop"] = "keep"


@registry.register
class NoisySampler(Sampler):
    sigma: float
    inner_scale: float = 1.0


class Field(ReplaceableBase, torch.nn.Module):
    """A namespace of modules that their parent sizes."""

    n_out: int = runtime()


@registry.register
class LinearField(Field):
    width: int = 4
    sampler: Sampler = choice("GridSampler")

    def __post_init__(self) -> None:
        self.layer = torch.nn.Linear(self.width, self.n_out)


class Decoder(ReplaceableBase):
    """A namespace that is no module itself."""


@registry.register
class ModuleDecoder(Decoder, torch.nn.Module):
    width: int = 3

    def __post_init__(self) -> None:
        self.weight = torch.nn.Parameter(torch.zeros(self.width))


class Pooler(Configurable):
    size: int = 2
    path: str = "???"


class Limits(Configurable):
    low: int = 0


class Scene(Configurable, torch.nn.Module):
    """One of every kind of field."""

    root: str
    seed: int = 42
    sampler: Sampler = choice("GridSampler")
    fallback: Sampler | None = choice(None)
    decoder: Decoder = choice("ModuleDecoder")
    field: Factory[Field] = choice("LinearField")
    coarse: Factory[Field] | None = choice(None)
    pooler: Pooler | None = nested(enabled=False)
    limits: Limits = nested()
    bounds: Factory[Limits] = nested()


def test_grammar_of_the_schema() -> None:
    cfg = OmegaConf.structured(schema(Scene))
    assert list(cfg) == [
        "root",
        "seed",
        *("sampler_class_type", "fallback_class_type", "decoder_class_type", "field_class_type", "coarse_class_type"),
        "pooler_enabled",
        *("sampler_GridSampler_args", "sampler_NoisySampler_args"),
        *("fallback_GridSampler_args", "fallback_NoisySampler_args"),
        *("decoder_ModuleDecoder_args", "field_LinearField_args", "coarse_LinearField_args"),
        *("pooler_args", "limits_args", "bounds_args"),
    ]
    assert OmegaConf.is_missing(cfg, "root")
    assert cfg.seed == 42
    assert cfg.sampler_class_type == "GridSampler"
    assert cfg.fallback_class_type is None
    assert cfg.pooler_enabled is False
    assert OmegaConf.is_missing(cfg.sampler_NoisySampler_args, "sigma")
    assert "n_out" not in cfg.field_LinearField_args
    grid = cfg.sampler_GridSampler_args
    assert grid.center == [0.0, 0.0, 0.0]
    assert grid.schedule == {0: [8, 8, 8]}
    assert "mode: SHARP" in OmegaConf.to_yaml(grid)


def test_defaults_are_those_of_the_schema_and_a_copy_each_time() -> None:
    first, second = defaults(Scene), defaults(Scene)
    assert first == OmegaConf.structured(schema(Scene))
    first.sampler_GridSampler_args.schedule[3] = [1, 2, 3]
    first.seed = 7
    assert second == defaults(Scene) == OmegaConf.structured(schema(Scene))
    with pytest.raises(OmegaConfBaseException):
        second.seed = "many"


def test_build_converts_values_to_the_annotated_types() -> None:
    scene = build(
        Scene,
        {
            "root": "here",
            "sampler_GridSampler_args": {
                "n_points": "12",
                "center": [1, 2, 3],
                "mode": "SOFT",
                "schedule": {5: [1, 2, 3]},
                "weights": {"mask": 2},
                "extra": {"a": [1, {"b": None}]},
                "limit": 3,
            },
        },
    )
    sampler = scene.sampler
    assert isinstance(sampler, GridSampler)
    assert sampler.n_points == 12
    assert sampler.center == (1.0, 2.0, 3.0)
    assert all(isinstance(value, float) for value in sampler.center)
    assert sampler.mode is Mode.SOFT
    assert sampler.schedule == {0: (8, 8, 8), 5: (1, 2, 3)}
    assert sampler.weights == {"rgb": 1.0, "mask": 2.0}
    assert sampler.extra == {"a": [1, {"b": None}]}
    assert type(sampler.extra) is dict
    assert type(sampler.extra["a"]) is list
    assert sampler.limit == 3.0


def test_optional_and_enabled_children() -> None:
    off = build(Scene, {"root": "r"})
    assert off.fallback is None
    assert off.coarse is None
    assert off.pooler is None
    assert off.limits.low == 0
    on = build(
        Scene,
        {
            "root": "r",
            "fallback_class_type": "NoisySampler",
            "fallback_NoisySampler_args": {"sigma": 0.5},
            "coarse_class_type": "LinearField",
            "pooler_enabled": True,
            "pooler_args": {"path": "p"},
        },
    )
    assert isinstance(on.fallback, NoisySampler)
    assert on.fallback.sigma == 0.5
    assert on.coarse is not None
    assert on.coarse.cls is LinearField
    assert on.pooler is not None
    assert on.pooler.path == "p"


def test_enabled_by_default_can_be_switched_off() -> None:
    class Holder(Configurable):
        limits: Limits | None = nested(enabled=True)

    assert build(Holder, {}).limits is not None
    assert build(Holder, {"limits_enabled": False}).limits is None
    assert Holder().limits is not None


def test_factory_builds_fresh_objects_with_fresh_children() -> None:
    scene = build(Scene, {"root": "r", "field_LinearField_args": {"width": 7}})
    one, two = scene.field(n_out=2), scene.field(n_out=3)
    assert isinstance(one, LinearField)
    assert isinstance(two, LinearField)
    assert one.layer.weight.shape == (2, 7)
    assert two.layer.weight.shape == (3, 7)
    assert isinstance(one.sampler, GridSampler)
    assert isinstance(two.sampler, GridSampler)
    assert one.sampler is not two.sampler
    one.sampler.weights["rgb"] = 9.0
    assert isinstance(again := scene.field(n_out=2).get_submodule(""), LinearField)
    assert isinstance(again.sampler, GridSampler)
    assert again.sampler.weights == {"rgb": 1.0}
    assert scene.bounds().low == 0


def test_factory_names_wrong_and_missing_runtime_fields() -> None:
    factory = Factory.of(LinearField, width=5)
    assert factory(n_out=2).layer.weight.shape == (2, 5)
    with pytest.raises(TypeError, match="LinearField needs n_out"):
        factory()
    with pytest.raises(TypeError, match="does not take depth"):
        factory(n_out=2, depth=1)
    with pytest.raises(TypeError, match=r"'widht' is not a configurable field of LinearField.*did you mean 'width'"):
        Factory.of(LinearField, widht=5)
    with pytest.raises(TypeError, match="'n_out' is not a configurable field"):
        Factory.of(LinearField, n_out=5)


def test_modules_are_initialised_before_fields_are_set_in_any_order_of_bases() -> None:
    scene = build(Scene, {"root": "r"})
    assert set(dict(scene.named_parameters())) == {"decoder.weight"}
    assert isinstance(scene, torch.nn.Module)

    class Left(torch.nn.Module, Sampler):
        part: Decoder = choice("ModuleDecoder")

    class Right(Sampler, torch.nn.Module):
        part: Decoder = choice("ModuleDecoder")

    for cls in (Left, Right):
        assert list(cls().state_dict()) == ["part.weight"]
        assert "ModuleDecoder()" in repr(cls())


def test_an_optional_module_can_be_set_later() -> None:
    class Late(Configurable, torch.nn.Module):
        decoder: Decoder | None = choice(None)

    late = Late()
    late.decoder = ModuleDecoder()
    assert late.decoder is not None
    assert list(late.state_dict()) == ["decoder.weight"]


def test_direct_construction_needs_no_configuration() -> None:
    sampler = NoisySampler(sigma=2.0)
    scene = Scene(root="r", sampler=sampler)
    assert scene.sampler is sampler
    assert isinstance(scene.decoder, ModuleDecoder)
    assert scene.field(n_out=2).get_submodule("layer") is not None
    assert scene.fallback is None
    assert scene.pooler is None
    assert scene.limits.low == 0
    assert repr(GridSampler(n_points=3)).startswith("GridSampler(n_points=3, center=(0.0, 0.0, 0.0)")
    with pytest.raises(TypeError):
        GridSampler(3)  # pyright: ignore[reportCallIssue]
    with pytest.raises(TypeError, match="sigma"):
        NoisySampler()  # pyright: ignore[reportCallIssue]


def test_objects_are_compared_by_identity_and_hashable() -> None:
    assert GridSampler() != GridSampler()
    assert len({GridSampler(), GridSampler()}) == 2


def test_pickle_and_deepcopy_of_built_objects() -> None:
    scene = build(Scene, {"root": "r", "sampler_GridSampler_args": {"mode": "SOFT"}, "seed": 3})
    for twin in (pickle.loads(pickle.dumps(scene)), copy.deepcopy(scene)):
        assert twin.seed == 3
        assert twin.sampler.mode is Mode.SOFT
        assert twin.sampler is not scene.sampler
        assert twin.field.cls is LinearField
        assert twin.field(n_out=5).layer.out_features == 5
        assert set(dict(twin.named_parameters())) == {"decoder.weight"}


def test_missing_values_are_errors_only_where_chosen() -> None:
    with pytest.raises(ConfigError, match=r"^root: \?\?\? \(missing\): this value must be given"):
        build(Scene, {})
    with pytest.raises(ConfigError, match=r"^fallback_NoisySampler_args\.sigma: \?\?\?"):
        build(Scene, {"root": "r", "fallback_class_type": "NoisySampler"})
    with pytest.raises(ConfigError, match=r"^pooler_args\.path: \?\?\?"):
        build(Scene, {"root": "r", "pooler_enabled": True})
    with pytest.raises(ConfigError, match=r"^sampler_GridSampler_args\.center\[1\]: \?\?\?"):
        build(Scene, {"root": "r", "sampler_GridSampler_args": {"center": [1, "???", 3]}})


def test_a_choice_that_the_user_must_make() -> None:
    class Open(Configurable):
        sampler: Sampler = choice("???")

    assert OmegaConf.is_missing(OmegaConf.structured(schema(Open)), "sampler_class_type")
    with pytest.raises(
        ConfigError, match=r"^sampler_class_type: \?\?\? \(missing\): .* one of GridSampler, NoisySampler$"
    ):
        build(Open, {})
    with pytest.raises(TypeError, match="sampler"):
        Open()


def test_interpolations_resolve_in_build_and_stay_text_in_prune(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCENE_ROOT", "/secret")
    cfg = OmegaConf.create({"root": "${oc.env:SCENE_ROOT}", "seed": 5, "limits_args": {"low": "${seed}"}})
    scene = build(Scene, cfg)
    assert scene.root == "/secret"
    assert scene.limits.low == 5
    assert OmegaConf.to_container(cfg, resolve=False) == {
        "root": "${oc.env:SCENE_ROOT}",
        "seed": 5,
        "limits_args": {"low": "${seed}"},
    }
    saved = OmegaConf.to_yaml(prune(OmegaConf.merge(OmegaConf.structured(schema(Scene)), cfg)))
    assert "/secret" not in saved
    assert "root: ${oc.env:SCENE_ROOT}" in saved
    assert "low: ${seed}" in saved


def test_a_part_of_a_configuration_still_sees_the_whole() -> None:
    whole = OmegaConf.create({"n": 3, "part": {"low": "${n}"}, "wrong": {"low": "${nothing}"}})
    assert build(Limits, whole.part).low == 3
    with pytest.raises(ConfigError, match=r"^wrong\.low: '\$\{nothing\}' does not resolve"):
        build(Limits, whole.wrong)


def test_an_unset_environment_variable_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SCENE_ROOT", raising=False)
    with pytest.raises(
        ConfigError,
        match=r"^root: '\$\{oc.env:SCENE_ROOT\}' does not resolve: Environment variable 'SCENE_ROOT' not found"
        r"; set it first: export SCENE_ROOT=\.\.\.$",
    ):
        build(Scene, {"root": "${oc.env:SCENE_ROOT}"})


def test_prune_drops_what_is_not_chosen() -> None:
    cfg = OmegaConf.merge(OmegaConf.structured(schema(Scene)), {"coarse_class_type": "LinearField"})
    pruned = prune(cfg)
    assert isinstance(pruned, DictConfig)
    assert [key for key in pruned if str(key).endswith("_args")] == [
        "sampler_GridSampler_args",
        "decoder_ModuleDecoder_args",
        "field_LinearField_args",
        "coarse_LinearField_args",
        "limits_args",
        "bounds_args",
    ]
    assert [key for key in pruned.coarse_LinearField_args if str(key).endswith("_args")] == ["sampler_GridSampler_args"]
    assert "pooler_args" in cfg
    again = build(Scene, OmegaConf.merge(pruned, {"root": "r"}))
    assert isinstance(again.sampler, GridSampler)
    assert prune(pruned) == pruned


@pytest.mark.parametrize(
    ("wrong", "line"),
    [
        ({"sede": 1}, r"^sede: 'sede' is not a key of Scene; expected one of root, seed.*did you mean 'seed'\?$"),
        (
            {"sampler_class_type": "GridSamplr"},
            r"^sampler_class_type: 'GridSamplr' is not a known Sampler; expected one of GridSampler, NoisySampler; "
            r"did you mean 'GridSampler'\?$",
        ),
        ({"sampler_GridSampler_args": {"n_points": "many"}}, r"_args\.n_points: 'many' does not fit, expected int$"),
        (
            {"sampler_GridSampler_args": {"mode": "SOFTER"}},
            r"\.mode: 'SOFTER' is no Mode; expected one of SHARP, SOFT; did you mean 'SOFT'\?$",
        ),
        (
            {"sampler_GridSampler_args": {"policy": "kepe"}},
            r"\.policy: 'kepe' is not allowed; expected one of keep, drop; did you mean 'keep'\?$",
        ),
        ({"sampler_GridSampler_args": {"center": [1, 2]}}, r"\.center: \[1\.0, 2\.0\] has 2 entries, expected 3$"),
        ({"sampler_GridSampler_args": {"center": [1, "x", 2]}}, r"\.center\[1\]: 'x' does not fit, expected float$"),
        (
            {"sampler_GridSampler_args": {"schedule": {"a": [1, 1, 1]}}},
            r"\.schedule\.a: 'a' does not fit as a key, expected int$",
        ),
        (
            {"sampler_GridSampler_args": {"weights": {"rgb": [1]}}},
            r"\.weights\.rgb: \[1\] does not fit, expected float$",
        ),
        ({"sampler_GridSampler_args": 3}, r"GridSampler.* is given as int, expected keys and values$"),
        ({"seed": None}, r"^seed: None does not fit, expected int$"),
        ({"seed": "${root}"}, r"^seed: '\$\{root\}' does not resolve"),
        ({"seed": [1]}, r"^seed: \[1\] does not fit, expected int$"),
        ({"fallback_class_type": "LinearField"}, r"^fallback_class_type: 'LinearField' is not a known Sampler"),
    ],
)
def test_error_lines(wrong: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError, match=line) as caught:
        build(Scene, {"root": "r", **wrong})
    assert "\n" not in str(caught.value)
    assert len(f"error: {caught.value}") < MAX_LINE


def test_long_lists_of_options_are_cut() -> None:
    class Base(ReplaceableBase):
        pass

    for i in range(60):
        registry.register(type(f"AnImplementationWithALongName{i}", (Base,), {"__module__": __name__}))

    class Holder(Configurable):
        one: Base = choice(None)

    with pytest.raises(TypeError, match=r"Holder\.one can be None: annotate it with '\| None'"):
        schema(Holder)
    with pytest.raises(
        ConfigError, match=r"\.\.\. \(60 in all\); did you mean 'AnImplementationWithALongName59'"
    ) as caught:
        registry.get(Base, "AnImplementationWithALongNam59")
    assert len(str(caught.value)) < MAX_LINE


def test_an_object_that_refuses_its_values_is_named_by_its_key() -> None:
    class Picky(ReplaceableBase):
        n: int = 1

        def __post_init__(self) -> None:
            if self.n < 0:
                raise ConfigError(f"n is {self.n}, expected at least 0")

    registry.register(Picky)

    class Inner(Configurable):
        picky: Factory[Picky] = choice("Picky")

    class Outer(Configurable):
        inner: Inner = nested()

        def __post_init__(self) -> None:
            self.inner.picky()

    with pytest.raises(ConfigError, match=r"^inner_args\.picky_Picky_args: n is -1, expected at least 0$"):
        build(Outer, {"inner_args": {"picky_Picky_args": {"n": -1}}})
    with pytest.raises(ConfigError, match=r"^n is -2"):
        Picky(n=-2)


def test_a_refused_value_that_follows_another_key_is_named_by_that_key() -> None:
    """What the user typed is the other key."""

    class Schedule(Configurable):
        n_steps: int = 1

        def __post_init__(self) -> None:
            if self.n_steps < 1:
                raise ConfigError(f"n_steps: {self.n_steps}; expected at least 1")

    class Optimizer(Configurable):
        schedule: Schedule = nested()

    class Run(Configurable):
        n_epochs: int = 1
        optimizer: Optimizer = nested()

    within = "optimizer_args.schedule_args"
    for written, line in (
        ("${n_epochs}", rf"^n_epochs: 0; expected at least 1 \({within}.n_steps is the same\)$"),
        (0, rf"^{within}.n_steps: 0; expected at least 1$"),
    ):
        values = {"n_epochs": 0, "optimizer_args": {"schedule_args": {"n_steps": written}}}
        with pytest.raises(ConfigError, match=line):
            build(Run, values)


def test_classes_registered_later_appear_in_the_next_schema() -> None:
    class Base(ReplaceableBase):
        pass

    class Holder(Configurable):
        one: Base | None = choice(None)

    assert list(OmegaConf.structured(schema(Holder))) == ["one_class_type"]
    assert schema(Holder) is schema(Holder)

    @registry.register
    class Newcomer(Base):
        x: int = 3

    assert isinstance(build(Holder, {"one_class_type": "Newcomer"}).one, Newcomer)


def test_a_child_with_runtime_fields_must_be_a_factory() -> None:
    class Wrong(Configurable):
        field: Field = choice("LinearField")

    with pytest.raises(TypeError, match=r"Wrong\.field must be a Factory\[Field\]: Field has runtime fields \(n_out\)"):
        schema(Wrong)

    class Base(ReplaceableBase):
        pass

    class Holder(Configurable):
        one: Base | None = choice(None)

    schema(Holder)

    @registry.register
    class NeedsMore(Base):
        more: int = runtime()

    with pytest.raises(
        TypeError, match=r"Holder\.one must be a Factory\[Base\]: NeedsMore has runtime fields \(more\)"
    ):
        schema(Holder)


def test_runtime_fields_of_the_root_are_given_to_build() -> None:
    made = build(LinearField, {"width": 6}, n_out=2)
    assert made.layer.weight.shape == (2, 6)
    with pytest.raises(TypeError, match="LinearField needs n_out"):
        build(LinearField, {})


class Node(ReplaceableBase):
    """A namespace whose implementations may hold others."""


@registry.register
class Leaf(Node):
    x: int = 1


@registry.register
class Wrapper(Node):
    inner: Node = choice("Leaf")


def test_an_implementation_is_no_choice_inside_itself() -> None:
    assert list(OmegaConf.structured(schema(Wrapper))) == ["inner_class_type", "inner_Leaf_args"]
    with pytest.raises(ConfigError, match="inner_class_type: 'Wrapper' is not a known Node; expected one of Leaf"):
        build(Wrapper, {"inner_class_type": "Wrapper"})


def test_recursion_is_refused() -> None:
    class Base(ReplaceableBase):
        pass

    class Middle(Configurable):
        one: Base | None = choice(None)

    @registry.register
    class Through(Base):
        middle: Middle = nested()

    with pytest.raises(TypeError, match="contains itself: Through > Middle > Through"):
        schema(Through)


def test_declarations_that_are_wrong() -> None:
    class NotReplaceable(Configurable):
        limits: Limits = choice("Limits")

    with pytest.raises(TypeError, match=r"NotReplaceable\.limits: choice\(\) needs a ReplaceableBase"):
        schema(NotReplaceable)

    class NoSwitch(Configurable):
        limits: Limits | None = nested()

    with pytest.raises(TypeError, match=r"NoSwitch\.limits is optional: say nested\(enabled=True\)"):
        schema(NoSwitch)

    class NotPlain(Configurable):
        weights: torch.Tensor

    with pytest.raises(TypeError, match=r"NotPlain\.weights: .*Tensor.* can't stand in a configuration"):
        schema(NotPlain)

    class Clash(Configurable):
        limits_args: int = 3
        limits: Limits = nested()

    with pytest.raises(TypeError, match="Clash: two of its fields make the configuration key limits_args"):
        schema(Clash)

    class Alike(Configurable):
        sampler: Sampler = choice("GridSampler")
        sampler_limits: Limits = nested()

    with pytest.raises(TypeError, match="the key sampler_limits_args looks like an implementation of sampler"):
        schema(Alike)

    class Unknown(Configurable):
        child: "NoSuchName" = nested()  # pyright: ignore[reportUndefinedVariable]

    with pytest.raises(TypeError, match=r"Unknown\.child: name 'NoSuchName' is not defined in module"):
        schema(Unknown)

    with pytest.raises(TypeError, match="defines __init__"):
        type("Own", (Configurable,), {"__init__": lambda self: None})
    with pytest.raises(ValueError, match="default_factory"):

        class Mutable(Configurable):
            values: list[int] = []


def test_registering() -> None:
    own = Registry()

    class Base(ReplaceableBase):
        pass

    class Deeper(Base):
        pass

    def make(qualname: str, base: type, name: str) -> type:
        return type(name, (base,), {"__module__": __name__, "__qualname__": qualname})

    first = own.register(make("first", Base, "Thing"))
    reloaded = own.register(make("first", Base, "Thing"))
    assert own.get(Base, "Thing") is reloaded is not first
    with pytest.raises(ValueError, match=r"second has the name of .*first"):
        own.register(make("second", Base, "Thing"))
    other = own.register(make("other", Deeper, "Another"))
    assert own.get_all(Base) == [other, reloaded]
    assert own.get_all(Deeper) == [other]
    with pytest.raises(TypeError, match="none of its bases is a ReplaceableBase"):
        own.register(Limits)


def test_a_class_may_be_its_own_namespace() -> None:
    @registry.register
    class Dataset(ReplaceableBase):
        limit: int = 0

    class Provider(Configurable):
        dataset: Dataset = choice("Dataset")

    assert list(OmegaConf.structured(schema(Provider))) == ["dataset_class_type", "dataset_Dataset_args"]
    assert build(Provider, {"dataset_Dataset_args": {"limit": 4}}).dataset.limit == 4


def test_the_configuration_that_was_given_is_not_changed() -> None:
    cfg = {"root": "r", "sampler_GridSampler_args": {"center": [1, 2, 3]}}
    before = copy.deepcopy(cfg)
    build(Scene, cfg)
    assert cfg == before
