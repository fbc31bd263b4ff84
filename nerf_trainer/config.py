"""Configuration: a schema made from classes, and objects built from a configuration.

Classes say what they need as annotated fields and know nothing of configurations::

    class Conductor(ReplaceableBase):
        spec: Spec = runtime()                             # given by the parent, not in the configuration

    @registry.register
    class Strict(Conductor):
        tempo: float = 120.0

    class Concert(Configurable):
        conductor: Factory[Conductor] = choice("Strict")   # conductor_class_type, conductor_Strict_args
        encore: Encore | None = nested(enabled=False)      # encore_enabled, encore_args
        seats: int = 42

``schema(Concert)`` is the structured configuration, ``build(Concert, cfg)`` the object, ``prune(cfg)`` the
configuration without what was not chosen. Nothing is rewritten after a class statement, so classes that are
registered later appear in the next schema. Objects can be made without any configuration: ``Concert(seats=3)``.
"""

import copy
import dataclasses
import enum
import functools
import inspect
import re
import sys
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from omegaconf import MISSING, DictConfig, ListConfig, Node, OmegaConf
from omegaconf.errors import (
    ConfigKeyError,
    InterpolationResolutionError,
    KeyValidationError,
    MissingMandatoryValue,
    OmegaConfBaseException,
    ValidationError,
)

from nerf_trainer.errors import ConfigError, keyed_line, options_text, shown, unknown_name
from nerf_trainer.interpolations import limit_interpolations

T = TypeVar("T")
C = TypeVar("C", bound="Configurable")

_CHILD = "nerf_trainer.child"
_RUNTIME = "nerf_trainer.runtime"
_SCALARS = (str, int, float, bool, bytes, Path)


# --- declaring ---------------------------------------------------------------------------------------------------


@dataclasses.dataclass(eq=False)
class _Child:
    """What `choice` or `nested` said about a field; called, it makes the field's value when none is given."""

    kind: Literal["choice", "nested"]
    default: str | None = None
    enabled: bool | None = None
    owner: Any = None
    name: str = ""

    def __call__(self) -> Any:
        held = _held(self)
        if self.enabled is False or (self.kind == "choice" and self.default is None):
            return None
        cls = held.base if self.default is None else registry.get(held.base, self.default)
        return Factory.of(cls) if held.as_factory else cls()


def choice(default: str | None) -> Any:
    """A field filled by one of a base's registered implementations, chosen by name.

    Args:
        default: the implementation's name; None for no object (the annotation says ``| None``);
            ``"???"`` when the user must choose.
    """
    return _child_field(_Child("choice", default=default), required=default == MISSING)


def nested(enabled: bool | None = None) -> Any:
    """A field that holds another `Configurable`.

    Args:
        enabled: None for a child that is always there; True or False for an optional one
            (the annotation says ``| None``) that is switched by ``<field>_enabled``.
    """
    return _child_field(_Child("nested", enabled=enabled), required=False)


def runtime() -> Any:
    """A field that the parent gives when it makes the object; it is not in the configuration."""
    return dataclasses.field(metadata={_RUNTIME: True})


def _child_field(child: _Child, required: bool) -> Any:
    if required:
        return dataclasses.field(metadata={_CHILD: child})
    return dataclasses.field(default_factory=child, metadata={_CHILD: child})


def _initialise_plain_base_first(cls: type) -> None:
    """Wrap the generated ``__init__`` so that the first base that is not Configurable is initialised before it."""
    ignored = (object, Generic, typing.Protocol)
    bases = (base for base in cls.__mro__ if base not in ignored and not issubclass(base, Configurable))
    plain = next((base for base in bases if "__init__" in vars(base)), None)
    if plain is None:
        return
    initialise, set_fields = plain.__init__, cls.__init__

    @functools.wraps(set_fields)
    def construct(self: Any, **values: Any) -> None:
        initialise(self)
        set_fields(self, **values)

    type.__setattr__(cls, "__init__", construct)


@typing.dataclass_transform(kw_only_default=True, eq_default=False, field_specifiers=(runtime, dataclasses.field))
class Configurable:
    """Makes each subclass a keyword-only dataclass, compared by identity, at its class statement.

    The ``__init__`` of a base that is not Configurable (``torch.nn.Module``) runs first, then the fields are set,
    then ``__post_init__`` runs. The order of the bases does not matter.
    """

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "__init__" in vars(cls):
            raise TypeError(f"{_where(cls)} defines __init__; declare fields and put the work in __post_init__")
        for name, value in vars(cls).items():
            if isinstance(value, dataclasses.Field) and _CHILD in value.metadata:
                child = value.metadata[_CHILD]
                child.owner, child.name = cls, name
        plain = (base for base in cls.__mro__[1:-1] if not dataclasses.is_dataclass(base))
        plain_repr = next((vars(base)["__repr__"] for base in plain if "__repr__" in vars(base)), None)
        dataclasses.dataclass(cls, kw_only=True, eq=False, repr=plain_repr is None)
        if plain_repr is not None and "__repr__" not in vars(cls):
            cls.__repr__ = plain_repr
        _initialise_plain_base_first(cls)


class ReplaceableBase(Configurable):
    """Its direct subclasses are namespaces of the registry; theirs are implementations, chosen by name."""


# --- the registry ------------------------------------------------------------------------------------------------


class Registry:
    """The implementations that a configuration can choose from, by namespace and class name."""

    def __init__(self) -> None:
        self._implementations: dict[type, dict[str, type]] = {}
        self.version = 0
        """Grows with each registration; what was derived from an older version is stale."""

    def register(self, cls: type[T]) -> type[T]:
        """Class decorator: make `cls` selectable wherever its namespace is asked for.

        Raises:
            TypeError: no base of `cls` is a direct subclass of ReplaceableBase.
            ValueError: another class of that name is there already.
        """
        known = self._implementations.setdefault(self._namespace(cls), {})
        other = known.get(cls.__name__)
        if other is not None and _where(other) != _where(cls):
            raise ValueError(f"{_where(cls)} has the name of {_where(other)}, which is registered; rename one")
        known[cls.__name__] = cls
        self.version += 1
        return cls

    def get(self, base: type[T], name: str) -> type[T]:
        """The implementation of `base` called `name`; ConfigError with the nearest match when there is none."""
        found = {cls.__name__: cls for cls in self.get_all(base)}
        if name not in found:
            raise ConfigError(unknown_name(name, f"is not a known {base.__name__}", found))
        return found[name]

    def get_all(self, base: type[T]) -> list[type[T]]:
        """All registered implementations of `base`, sorted by name."""
        known = self._implementations.get(self._namespace(base), {})
        return [known[name] for name in sorted(known) if issubclass(known[name], base)]

    @staticmethod
    def _namespace(of: type) -> type:
        namespaces = [base for base in of.__mro__[1:] if ReplaceableBase in base.__bases__]
        if namespaces:
            return namespaces[0]
        if ReplaceableBase in of.__bases__:
            return of
        raise TypeError(f"{_where(of)} is no implementation of anything: none of its bases is a ReplaceableBase")


registry = Registry()


# --- recipes and factories ---------------------------------------------------------------------------------------


class _FollowingError(ConfigError):
    """A value is wrong that follows another key; the message begins with that key, whole."""


@dataclasses.dataclass(frozen=True, eq=False)
class _Recipe:
    """A class and the values it is made with; a value that is a recipe is made first, afresh each time."""

    cls: type
    values: dict[str, Any]
    key: str = ""
    followed: dict[str, str] = dataclasses.field(default_factory=dict)
    """Full keys by the names of those values that follow them, as `${key}`."""

    def make(self, given: Mapping[str, Any]) -> Any:
        values = {name: _fresh(value) for name, value in self.values.items()}
        try:
            return self.cls(**values, **given)
        except _FollowingError:
            raise
        except ConfigError as error:
            if not self.key or str(error).startswith(self.key):
                raise
            field, found, message = str(error).partition(": ")
            if found and field in self.followed:
                problem = f"{message} ({self.key}.{field} is the same)"
                raise _FollowingError(keyed_line(self.followed[field], problem)) from error
            if found and field.split(".")[0] in self.values:
                raise ConfigError(keyed_line(f"{self.key}.{field}", message)) from error
            raise ConfigError(keyed_line(self.key, str(error))) from error


def _fresh(value: Any) -> Any:
    if isinstance(value, _Recipe):
        return value.make({})
    return copy.deepcopy(value) if isinstance(value, list | dict) else value


class Factory(Generic[T]):
    """Makes objects of one class whose configuration is settled, once the runtime fields are known."""

    def __init__(self, recipe: _Recipe) -> None:
        self._recipe = recipe

    @classmethod
    def of(cls, made: type[T], **overrides: Any) -> "Factory[T]":
        """A factory without a configuration: `made` with its defaults, except for `overrides`."""
        allowed = [f.name for f in _fields(made) if not _is_runtime(f)]
        for name in overrides:
            if name not in allowed:
                raise TypeError(unknown_name(name, f"is not a configurable field of {made.__name__}", allowed))
        return cls(_Recipe(made, overrides))

    @property
    def cls(self) -> type[T]:
        """The class of what is made."""
        return self._recipe.cls

    def __call__(self, **given: Any) -> T:
        """A new object, its children new too. `given` names exactly the runtime fields, or TypeError."""
        names = {f.name for f in _fields(self.cls) if _is_runtime(f)}
        for problem, wrong in (("needs", names - set(given)), ("does not take", set(given) - names)):
            if wrong:
                raise TypeError(f"a factory of {self.cls.__name__} {problem} {', '.join(sorted(wrong))} when called")
        return self._recipe.make(given)

    def __repr__(self) -> str:
        return f"Factory({self.cls.__name__}, {self._recipe.values})"


# --- reading the declarations ------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Held:
    """What the annotation of a child says: ``Base``, ``Factory[Base]``, and either of them ``| None``."""

    base: Any
    as_factory: bool
    optional: bool


def _fields(cls: Any) -> tuple[dataclasses.Field[Any], ...]:
    return dataclasses.fields(cls)


def _is_runtime(field: dataclasses.Field[Any]) -> bool:
    return _RUNTIME in field.metadata


def _configured(cls: type) -> Iterator[dataclasses.Field[Any]]:
    """The fields of `cls` that its configuration shows."""
    return (field for field in _fields(cls) if not _is_runtime(field))


def _hint(owner: type, name: str) -> Any:
    """The annotation of a field, names in it looked up in the module that declares it."""
    declaring = next(cls for cls in owner.__mro__ if name in inspect.get_annotations(cls))
    holder = types.SimpleNamespace(__annotations__={name: inspect.get_annotations(declaring)[name]})
    scope = {**vars(sys.modules[declaring.__module__]), declaring.__name__: declaring}
    try:
        return typing.get_type_hints(holder, globalns=scope)[name]
    except NameError as error:
        raise TypeError(
            f"{_where(declaring)}.{name}: {error} in module {declaring.__module__}; "
            "import it there at run time (not under TYPE_CHECKING)"
        ) from error


def _without_none(hint: Any) -> tuple[Any, bool]:
    if typing.get_origin(hint) in (typing.Union, types.UnionType) and type(None) in typing.get_args(hint):
        rest = tuple(arg for arg in typing.get_args(hint) if arg is not type(None))
        return typing.Union[rest], True  # noqa: UP007 (built from a tuple)
    return hint, False


def _held(child: _Child) -> _Held:
    inner, optional = _without_none(_hint(child.owner, child.name))
    as_factory = typing.get_origin(inner) is Factory
    base = typing.get_args(inner)[0] if as_factory else inner
    wanted = ReplaceableBase if child.kind == "choice" else Configurable
    where = f"{_where(child.owner)}.{child.name}"
    if not isinstance(base, type) or not issubclass(base, wanted):
        raise TypeError(f"{where}: {child.kind}() needs a {wanted.__name__}, or a Factory of one, not {inner}")
    may_be_none = child.default is None if child.kind == "choice" else child.enabled is not None
    if may_be_none and not optional:
        raise TypeError(f"{where} can be None: annotate it with '| None'")
    if child.kind == "nested" and optional and not may_be_none:
        raise TypeError(f"{where} is optional: say nested(enabled=True) or nested(enabled=False)")
    return _Held(base, as_factory, optional)


# --- the schema --------------------------------------------------------------------------------------------------

_schemas: dict[type, tuple[int, type]] = {}


def schema(cls: type[Configurable]) -> type:
    """A structured-config dataclass (OmegaConf's) for `cls` and all that it can be built from.

    Plain fields keep their type and default. A `choice` named x becomes ``x_class_type`` and one ``x_<Name>_args``
    for each registered implementation, a `nested` x becomes ``x_args``, and ``x_enabled`` when it is optional.
    Fields without a default are ``???``.

    Raises:
        TypeError: a declaration is wrong; the message names the class and the field.
    """
    return _schema(cls, ())


def defaults(cls: type[Configurable]) -> DictConfig:
    """A configuration of `cls` in which nothing is said yet: a copy of one that is kept, for OmegaConf takes ten times
    as long to make it of the schema's classes.

    Raises:
        TypeError: as `schema` does.
    """
    return copy.deepcopy(_kept_defaults(schema(cls)))


@functools.cache
def _kept_defaults(schema_class: type) -> DictConfig:
    return OmegaConf.structured(schema_class)


def _schema(cls: type, path: tuple[type, ...]) -> type:
    if cls in path:
        cycle = " > ".join(c.__name__ for c in (*path[path.index(cls) :], cls))
        raise TypeError(f"{_where(cls)} contains itself: {cycle}")
    version, made = _schemas.get(cls, (-1, cls))
    if version == registry.version:
        return made
    plain: list[tuple[str, Any, Any]] = []
    selectors: list[tuple[str, Any, Any]] = []
    args: list[tuple[str, Any, Any]] = []
    expected: dict[str, dict[str, type]] = {}
    for field in _configured(cls):
        child = field.metadata.get(_CHILD)
        if child is None:
            plain.append((field.name, _config_type(_hint(cls, field.name), cls, field.name), _config_default(field)))
            continue
        selector, children = _describe_child(child, cls)
        selectors += selector
        expected[field.name] = children
        for key, child_cls in children.items():
            child_schema = _schema(child_cls, (*path, cls))
            # The default is the class itself: OmegaConf expands it as it would an instance.
            args.append((key, child_schema, dataclasses.field(default_factory=lambda made=child_schema: made)))
    entries = [*plain, *selectors, *args]
    _check_keys(cls, [name for name, *_ in entries], expected)
    made = dataclasses.make_dataclass(cls.__name__, entries, init=False, repr=False, eq=False)
    made.__module__ = __name__
    _schemas[cls] = (registry.version, made)
    return made


def _check_keys(cls: type, names: list[str], children: dict[str, dict[str, type]]) -> None:
    """Refuse fields whose keys can't be told apart, by people or by `prune`."""
    choices = [name for name in children if f"{name}_class_type" in names]
    for key in names:
        owner = max((c for c in choices if key.startswith(f"{c}_") and key.endswith("_args")), key=len, default=None)
        if names.count(key) > 1:
            raise TypeError(f"{_where(cls)}: two of its fields make the configuration key {key}")
        if owner is not None and key not in children[owner]:
            raise TypeError(f"{_where(cls)}: the key {key} looks like an implementation of {owner}; rename the field")


def _describe_child(child: _Child, cls: type) -> tuple[list[tuple[str, Any, Any]], dict[str, type]]:
    """The keys that select a child and, by key, the classes whose schemas its arguments have."""
    held, name = _held(child), child.name
    if child.kind == "choice":
        chosen = str | None if held.optional else str
        selector = [(f"{name}_class_type", chosen, dataclasses.field(default=child.default))]
        found = [c for c in registry.get_all(held.base) if not issubclass(c, cls)]
        children = {f"{name}_{c.__name__}_args": c for c in found}
    else:
        optional = child.enabled is not None
        selector = [(f"{name}_enabled", bool, dataclasses.field(default=child.enabled))] if optional else []
        children = {f"{name}_args": held.base}
    for made in () if held.as_factory else (held.base, *children.values()):
        given = [f.name for f in _fields(made) if _is_runtime(f)]
        if given:
            raise TypeError(
                f"{_where(child.owner)}.{name} must be a Factory[{held.base.__name__}]: "
                f"{made.__name__} has runtime fields ({', '.join(given)})"
            )
    return selector, children


def _config_default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return dataclasses.field(default_factory=field.default_factory)
    value = MISSING if field.default is dataclasses.MISSING else field.default
    if isinstance(value, tuple):
        return dataclasses.field(default_factory=lambda: list(value))
    return dataclasses.field(default=value)


def _config_type(hint: Any, cls: type, name: str) -> Any:
    """The annotation that OmegaConf checks for a field annotated with `hint`."""
    recurse = functools.partial(_config_type, cls=cls, name=name)
    inner, optional = _without_none(hint)
    origin, args = typing.get_origin(inner), typing.get_args(inner)
    if inner is Any:
        return Any
    if optional:
        kind = recurse(inner)
        return Any if kind is Any else typing.Optional[kind]  # noqa: UP045 (OmegaConf's own form)
    if isinstance(inner, type) and (inner in _SCALARS or issubclass(inner, enum.Enum)):
        return inner
    if origin is Literal:
        return _common([type(value) for value in args])
    if origin in (typing.Union, types.UnionType):
        return inner if all(arg in _SCALARS for arg in args) else Any
    if (origin or inner) in (tuple, list):
        return typing.List[_common([recurse(arg) for arg in args if arg is not ...])]  # noqa: UP006
    if (origin or inner) is dict:
        key, value = args or (str, Any)
        return typing.Dict[key, recurse(value)]  # noqa: UP006
    raise TypeError(
        f"{_where(cls)}.{name}: {inner} can't stand in a configuration; a child takes choice() or nested(), "
        "what the parent gives takes runtime()"
    )


def _common(kinds: list[Any]) -> Any:
    return kinds[0] if kinds and all(kind == kinds[0] for kind in kinds) else Any


# --- building ----------------------------------------------------------------------------------------------------


def build(cls: type[C], cfg: DictConfig | Mapping[str, Any], **given: Any) -> C:
    """The object that `cfg` describes: all values settled and checked first, then children made, then itself.

    Args:
        cls: a Configurable.
        cfg: configuration in the grammar of ``schema(cls)``; what it leaves out has its default. Not changed.
        given: the runtime fields of `cls`, if it has any.

    Raises:
        ConfigError: a wrong key, value or class name, or a value missing in what was chosen.
    """
    limit_interpolations()
    typed = defaults(cls)
    try:
        typed.merge_with(cfg)
    except OmegaConfBaseException as error:
        raise explain(cls, error) from error
    if isinstance(cfg, DictConfig):
        typed._set_parent(cfg._get_parent())
        typed._set_key(cfg._key())
    return Factory(_recipe(cls, typed))(**given)


def _recipe(cls: type, node: DictConfig) -> _Recipe:
    values: dict[str, Any] = {}
    followed: dict[str, str] = {}
    for field in _configured(cls):
        child = field.metadata.get(_CHILD)
        if child is None:
            written = node._get_node(field.name)
            if isinstance(written, Node) and (other := re.fullmatch(r"\$\{(\w[\w.]*)\}", str(written._value()))):
                followed[field.name] = other[1]
            value = _read(node, field.name)
            values[field.name] = _native(_hint(cls, field.name), value, _full_key(node, field.name))
            continue
        chosen, key = _selected(child, node)
        if chosen is None:
            values[field.name] = None
        else:
            recipe = _recipe(chosen, _read(node, key))
            values[field.name] = Factory(recipe) if _held(child).as_factory else recipe
    return _Recipe(cls, values, str(node._get_full_key("")), followed)


def _selected(child: _Child, node: DictConfig) -> tuple[Any, str]:
    """The class that `node` selects for a child, or None, and the key of its arguments."""
    base, name = _held(child).base, child.name
    if child.kind == "nested":
        on = child.enabled is None or _read(node, f"{name}_enabled")
        return base if on else None, f"{name}_args"
    selector = f"{name}_class_type"
    found = [c.__name__ for c in registry.get_all(base) if f"{name}_{c.__name__}_args" in node]
    chosen = _read(node, selector, found)
    if chosen is None:
        return None, ""
    key = f"{name}_{chosen}_args"
    if chosen not in found:
        raise ConfigError(
            keyed_line(_full_key(node, selector), unknown_name(chosen, f"is not a known {base.__name__}", found))
        )
    return registry.get(base, chosen), key


def _read(node: DictConfig, key: str, options: Sequence[str] = ()) -> Any:
    full_key = _full_key(node, key)
    try:
        value = node[key]
        if isinstance(value, ListConfig) or (isinstance(value, DictConfig) and OmegaConf.get_type(value) is dict):
            return OmegaConf.to_container(value, resolve=True, throw_on_missing=True)
        return value
    except MissingMandatoryValue as error:
        where = error.full_key or full_key
        how = f", one of {options_text(options)}" if options else f"; on the command line: {where}=..."
        raise ConfigError(keyed_line(where, f"??? (missing): this value must be given{how}")) from error
    except (InterpolationResolutionError, ValidationError) as error:
        written = OmegaConf.to_container(node, resolve=False)
        value = written.get(key) if isinstance(written, dict) else None
        problem = f"{shown(value, 120)} does not resolve: {_first_line(error)}"
        raise ConfigError(keyed_line(full_key, problem)) from error


def _native(hint: Any, value: Any, key: str) -> Any:
    """`value` as the annotation has it: tuples as tuples, of their length; literals among those allowed."""
    inner, _ = _without_none(hint)
    origin, args = typing.get_origin(inner), typing.get_args(inner)
    if origin in (typing.Union, types.UnionType):
        kinds = {list: (tuple, list), dict: (dict,)}.get(type(value), ())
        inner = next((arg for arg in args if (typing.get_origin(arg) or arg) in kinds), inner)
        origin, args = typing.get_origin(inner), typing.get_args(inner)
    if origin is Literal and value is not None and value not in args:
        raise ConfigError(keyed_line(key, unknown_name(value, "is not allowed", [str(arg) for arg in args])))
    if isinstance(value, list) and (origin or inner) in (tuple, list):
        is_tuple = (origin or inner) is tuple
        fixed = is_tuple and bool(args) and args[-1] is not ...
        if fixed and len(value) != len(args):
            raise ConfigError(keyed_line(key, f"{value} has {len(value)} entries, expected {len(args)}"))
        kinds = args if fixed else (args[0] if args else Any,) * len(value)
        items = [_native(kind, item, f"{key}[{i}]") for i, (kind, item) in enumerate(zip(kinds, value, strict=True))]
        return tuple(items) if is_tuple else items
    if isinstance(value, dict) and origin is dict:
        return {name: _native(args[1], item, f"{key}.{name}") for name, item in value.items()}
    if isinstance(value, list | dict) and inner in _SCALARS:  # OmegaConf lets these into a typed dict
        raise ConfigError(keyed_line(key, f"{shown(value)} does not fit, expected {_type_name(inner)}"))
    return value


def prune(cfg: DictConfig | Mapping[str, Any]) -> DictConfig:
    """A copy of `cfg` without the arguments of what is not chosen or not enabled; interpolations stay as written."""
    node = cfg if isinstance(cfg, DictConfig) else DictConfig(dict(cfg))
    return DictConfig(_pruned(OmegaConf.to_container(node, resolve=False), node))


def _pruned(value: Any, node: Any) -> Any:
    if not isinstance(value, dict):
        return value
    keys = [key for key in value if isinstance(key, str)]
    chosen = {key.removesuffix("_class_type"): key for key in keys if key.endswith("_class_type")}
    dropped = {f"{key.removesuffix('_enabled')}_args" for key in keys if key.endswith("_enabled") and not node[key]}
    for key in keys:
        names = [name for name in chosen if key.startswith(f"{name}_") and key.endswith("_args")]
        if names:
            name = max(names, key=len)
            missing = OmegaConf.is_missing(node, chosen[name])
            if missing or key != f"{name}_{node[chosen[name]]}_args":
                dropped.add(key)
    return {key: _pruned(item, node._get_node(key)) for key, item in value.items() if key not in dropped}


# --- messages ----------------------------------------------------------------------------------------------------


def explain(cls: type[Configurable], error: OmegaConfBaseException, key: str | None = None) -> ConfigError:
    """The ConfigError that tells a user what OmegaConf found wrong in a configuration of `cls`.

    Args:
        cls: the root class; the error's key starts there.
        error: what OmegaConf raised.
        key: the full key, where the caller knows it.
    """
    full_key = key or error.full_key or str(error.key or "")
    if isinstance(error, InterpolationResolutionError):
        return ConfigError(keyed_line(full_key or "configuration", f"does not resolve: {_first_line(error)}"))
    section = re.search(r"Merge error: (\w+) is not a subclass of (\w+)", str(error))
    if section and not full_key:
        named = f"a section {section[2]} (one of the keys ..._{section[2]}_args)"
        return ConfigError(f"{named} is given as {section[1]}, expected keys and values")
    segments = re.findall(r"[^.\[\]]+", full_key)
    parent: Any = schema(cls)
    hint: Any = parent
    for segment in segments:
        if not dataclasses.is_dataclass(hint):
            if isinstance(error, KeyValidationError):
                break
            hint = _without_none((typing.get_args(hint) or (Any,))[-1])[0]
            continue
        parent = hint
        fields = {field.name: field.type for field in dataclasses.fields(parent)}
        if segment not in fields:
            return ConfigError(
                keyed_line(full_key, unknown_name(segment, f"is not a key of {parent.__name__}", fields))
            )
        hint = _without_none(fields[segment])[0]
    if isinstance(error, KeyValidationError):
        wanted = next(map(_type_name, typing.get_args(hint)), "another kind of key")
        return ConfigError(keyed_line(full_key, f"{shown(segments[-1])} does not fit as a key, expected {wanted}"))
    if "is not in struct" in str(error):  # a dictionary, which Hydra closes on the command line
        if typing.get_origin(hint) is dict:
            full_key, segments = f"{full_key}.{error.key}", [str(error.key)]
        problem = "is not there yet (to add it, put a + before the key)"
        known = list(error.parent_node) if isinstance(error.parent_node, DictConfig) else []
        return ConfigError(keyed_line(full_key, unknown_name(segments[-1], problem, known)))
    if isinstance(error, ConfigKeyError):
        return ConfigError(keyed_line(full_key, _first_line(error)))
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return ConfigError(keyed_line(full_key, unknown_name(error.value, f"is no {hint.__name__}", hint.__members__)))
    what = "keys and values" if dataclasses.is_dataclass(hint) else _type_name(hint)
    return ConfigError(keyed_line(full_key, f"{shown(error.value)} does not fit, expected {what}"))


def _first_line(error: Exception) -> str:
    line = str(error).splitlines()[0].removeprefix("KeyError raised while resolving interpolation: ").strip('"')
    unset = re.match(r"Environment variable '([^']+)' not found", line)
    return f"{line}; set it first: export {unset[1]}=..." if unset else line


def _full_key(node: DictConfig, key: str) -> str:
    return str(node._get_full_key(key))


def _type_name(hint: Any) -> str:
    return (
        hint.__name__
        if isinstance(hint, type)
        else str(hint).replace("typing.", "").replace("List[", "list[").replace("Dict[", "dict[")
    )


def _where(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
