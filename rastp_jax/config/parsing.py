"""From ConfigDicts, JSON and command lines to checked settings, and back. Former names are translated on the way."""

import ast
import contextlib
import dataclasses
import json
import math
import reprlib
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import ml_collections

from rastp_jax.config.fields import (
  May,
  Section,
  WithMethods,
  check_value,
  facts_of,
  settings_of,
  unknown,
)
from rastp_jax.config.settings import Config
from rastp_jax.errors import InputError

# What settings used to be called -> what they are called now; several where a setting went to several methods.
FORMER_SECTIONS = {"pruning": "reduction"}
FORMER_NAMES: Mapping[str, tuple[str, ...]] = {
  "reduction.criterion": ("reduction.method",),
  "data.core": ("data.k_core",),
  "data.buckets": ("data.num_buckets",),
  "data.bucket_items": ("data.bucket_lengths",),
  "semantic_ids.width": ("semantic_ids.codebook_size",),
  "semantic_ids.behaviour": ("semantic_ids.collaborative_weight",),
  "semantic_ids.behaviour_dims": ("semantic_ids.collaborative_dims",),
  "semantic_ids.normalize_residuals": (
    "semantic_ids.residual_kmeans.normalize_residuals",
    "semantic_ids.residual_vq.normalize_residuals",
  ),
  "semantic_ids.train_steps": ("semantic_ids.residual_vq.train_steps", "semantic_ids.rqvae.train_steps"),
  "semantic_ids.train_batch": ("semantic_ids.residual_vq.train_batch", "semantic_ids.rqvae.train_batch"),
  "semantic_ids.rqvae_hidden": ("semantic_ids.rqvae.hidden",),
  "semantic_ids.rqvae_latent": ("semantic_ids.rqvae.latent",),
  "semantic_ids.rqvae_learning_rate": ("semantic_ids.rqvae.learning_rate",),
  "semantic_ids.rqvae_commitment": ("semantic_ids.rqvae.commitment",),
  "train.accumulate": ("train.grad_accumulation_steps",),
  "eval.ks": ("eval.top_k",),
}


def current_names(name: str) -> tuple[str, ...]:
  """What a dotted setting is called today; itself unless it was renamed."""
  section, dot, rest = name.partition(".")
  name = FORMER_SECTIONS.get(section, section) + dot + rest
  return FORMER_NAMES.get(name, (name,))


@dataclasses.dataclass(frozen=True)
class Setting:
  """One setting of the whole program, as `all_settings` lists it."""

  name: str
  kind: Any
  default: Any
  facts: Any


def all_settings() -> dict[str, Setting]:
  """Every setting by its dotted name, the options of all methods included."""
  found = {}
  for section in dataclasses.fields(Config):
    for prefix, kind in _parts(section.name, section.type).items():
      for field in settings_of(kind):
        name = f"{prefix}.{field.name}"
        found[name] = Setting(name, field.type, field.default, facts_of(field))
  return found


def differing_settings(may: May) -> frozenset[str]:
  """The names of the settings that may differ there."""
  return frozenset(name for name, setting in all_settings().items() if may in setting.facts.may)


def overridable() -> str:
  """What decoding may change about a trained model, for people: sections where all their own settings may differ."""
  allowed = differing_settings(May.DECODE)
  sections: dict[str, list[str]] = {}
  for name in all_settings():
    sections.setdefault(name.partition(".")[0], []).append(name)
  listed = []
  for section, names in sections.items():
    bound = [name for name in names if name not in allowed]
    if all(name.count(".") > 1 for name in bound):  # options of single methods at most
      listed.append(f"{section} (but not {', '.join(bound)})" if bound else section)
    else:
      listed += [name for name in names if name in allowed]
  return ", ".join(listed)


def describe_settings() -> str:
  """All settings with default and meaning, a line each, for --help."""
  lines = []
  for section in dataclasses.fields(Config):
    for prefix, kind in _parts(section.name, section.type).items():
      lines.append(f"\n{prefix}: {(kind.__doc__ or '').splitlines()[0]}")
      for field in settings_of(kind):
        facts = facts_of(field)
        known = f" [{', '.join(facts.choices)}]" if facts.choices else ""
        lines.append(f"  --config.{prefix}.{field.name}={_shown(field.default)}: {facts.help}{known}")
  return "\n".join(lines)


def from_dict(values: Mapping[str, Any]) -> Config:
  """Turns a ConfigDict (or a plain nested dict) into a checked `Config`.

  Raises:
    InputError: a field is unknown, has the wrong type, or its value makes no sense; the sentence names the field.
  """
  values = _plain(values)
  if not isinstance(values, dict):
    raise InputError(f"{reprlib.repr(values)} does not hold settings: expected sections with names and values.")
  values = _with_current_names(values)
  sections: dict[str, Any] = {field.name: field.type for field in dataclasses.fields(Config)}
  built = {}
  for name, section in values.items():
    if name not in sections:
      raise InputError(unknown(name, list(sections)))
    built[name] = _section(sections[name], name, section)
  config = Config(**built)
  for name in sections:
    getattr(config, name).check(config)
  return config


def to_dict(config: Config) -> dict[str, dict[str, Any]]:
  """All settings as nested dicts, the options of every method under the method's name."""
  values = {}
  for field in dataclasses.fields(Config):
    section = getattr(config, field.name)
    values[field.name] = {one.name: getattr(section, one.name) for one in settings_of(type(section))}
    if isinstance(section, WithMethods):
      for name, kind in section.METHODS.options().items():
        values[field.name][name] = dataclasses.asdict(section.of(kind))
  return values


def to_json(config: Config) -> str:
  return json.dumps(to_dict(config), indent=2, sort_keys=True)


def flat(config: Config) -> dict[str, Any]:
  """Every setting's value by its dotted name, like "train.seed" or "semantic_ids.rqvae.latent"."""
  return flatten(to_dict(config))


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
  """Nested dicts as one, under dotted names."""
  found = {}
  for name, value in values.items():
    found |= flatten(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
  return found


def default_config_dict() -> ml_collections.ConfigDict:
  """All settings at their defaults, as the ConfigDict that `configs/*.py` edit."""
  return to_config_dict(Config())


def to_config_dict(config: Config) -> ml_collections.ConfigDict:
  """All settings as a ConfigDict that takes no other names; former names of settings are understood."""
  return _Editable("", to_dict(config))


def with_values(config: Config, assignments: Iterable[tuple[str, Any]]) -> Config:
  """The config with settings replaced, by their dotted names, and checked."""
  values = to_dict(config)
  for name, value in assignments:
    for current in current_names(name):
      *path, field = current.split(".")
      place = values
      for part in path:
        place = place.setdefault(part, {})
        if not isinstance(place, dict):
          raise InputError(unknown(current, list(all_settings())))
      place[field] = value
  return from_dict(values)


def read_assignment(text: str, flag: str, example: str) -> tuple[str, Any]:
  """Reads NAME=VALUE, the value a Python literal or a bare word.

  Raises:
    InputError: there is no "="; the sentence names the flag and shows the example.
  """
  name, equals, value = text.partition("=")
  if not equals or not name:
    raise InputError(f"{flag}={text!r} cannot be read: expected NAME=VALUE, like {example}.")
  with contextlib.suppress(ValueError, SyntaxError):  # a bare word is a string
    value = ast.literal_eval(value)
  return name, value


def translate_arguments(arguments: Sequence[str], tell: Callable[[str], None]) -> list[str]:
  """Command-line arguments with former names of settings replaced; tells about each.

  Raises:
    InputError: a --config.… name is not a setting.
  """
  translated: list[str] = []
  known = None
  for place, argument in enumerate(arguments):
    if argument == "--":
      return [*translated, *arguments[place:]]
    flag, equals, value = argument.partition("=")
    dashes = "--" if flag.startswith("--") else "-"
    name, bracket, index = flag.removeprefix(dashes).partition("[")
    negated = "no" if name.startswith("noconfig.") else ""
    name = name.removeprefix(negated)
    if not flag.startswith("-") or not name.startswith("config."):
      translated.append(argument)
      continue
    if known is None:
      known = all_settings()
    name = name.removeprefix("config.")
    current = current_names(name)
    if current != (name,):
      tell(f"note: config.{name} is now called {' and '.join(f'config.{one}' for one in current)}.")
    for one in current:
      if one not in known:
        raise InputError(unknown(one, list(known)))
      translated.append(f"{dashes}{negated}config.{one}{bracket}{index}{equals}{value}")
  return translated


class _Editable(ml_collections.ConfigDict):
  """A ConfigDict in which settings may also be read and set under their former names."""

  def __init__(self, prefix: str = "", values: Mapping[str, Any] | None = None, **kwargs: Any):
    object.__setattr__(self, "_prefix", prefix)
    super().__init__(**kwargs)
    for name, value in (values or {}).items():
      inner = _Editable(f"{prefix}{name}.", value) if isinstance(value, Mapping) else value
      ml_collections.ConfigDict.__setitem__(self, name, inner)
    if values is not None:
      self.lock()

  def __setitem__(self, key: str, value: Any) -> None:
    for place, name in self._places(key):
      ml_collections.ConfigDict.__setitem__(place, name, value)

  def __getitem__(self, key: str) -> Any:
    place, name = self._places(key)[0]
    return ml_collections.ConfigDict.__getitem__(place, name)

  def _places(self, key: str) -> list[tuple["_Editable", str]]:
    """The dicts and names in them that a name stands for."""
    prefix = self._prefix
    places = []
    for current in current_names(f"{prefix}{key}"):
      if not current.startswith(prefix):  # cannot be: renamed settings stay in their section
        return [(self, key)]
      *path, name = current.removeprefix(prefix).split(".")
      place: Any = self
      for part in path:
        place = ml_collections.ConfigDict.__getitem__(place, part)
      places.append((place, name))
    return places


def _parts(name: str, section: Any) -> dict[str, type]:
  """A section and its methods' options, by dotted prefix."""
  parts = {name: section}
  if issubclass(section, WithMethods):
    parts |= {f"{name}.{method}": kind for method, kind in section.METHODS.options().items()}
  return parts


def _plain(values: Any) -> Any:
  """Nested mappings as dicts."""
  if isinstance(values, ml_collections.ConfigDict):
    values = values.to_dict()
  return {name: _plain(value) for name, value in values.items()} if isinstance(values, Mapping) else values


def _with_current_names(values: Mapping[str, Any]) -> dict[str, Any]:
  """Nested dicts under today's names; a value under today's name wins over one under a former name."""
  result: dict[str, Any] = {}
  renamed: list[tuple[str, Any]] = []
  for section, inner in values.items():
    if not isinstance(inner, Mapping):
      raise _no_section(section, inner)
    name = FORMER_SECTIONS.get(section, section)
    place = result.setdefault(name, {})
    for field, value in inner.items():
      if current_names(f"{name}.{field}") == (f"{name}.{field}",):
        both = isinstance(value, Mapping) and isinstance(place.get(field), Mapping)
        place[field] = {**place[field], **value} if both else value
      else:
        renamed.append((f"{name}.{field}", value))
  for former, value in renamed:
    for current in current_names(former):
      *path, field = current.split(".")
      place = result
      for part in path:
        place = place.setdefault(part, {})
        if not isinstance(place, dict):
          raise _no_section(current.rpartition(".")[0], place)
      place.setdefault(field, value)
  return result


def _section(kind: type[Section], name: str, values: Mapping[str, Any]) -> Any:
  options = kind.METHODS.options() if issubclass(kind, WithMethods) else {}
  own = {key: value for key, value in values.items() if key not in options}
  built = _built(kind, name, own)
  if not issubclass(kind, WithMethods):
    return built
  given = [_built(options[key], f"{name}.{key}", values[key]) for key in options if key in values]
  # Defaults are left out, so that configs are equal where their settings are.
  return dataclasses.replace(built, options=tuple(one for one in given if one != type(one)()))


def _no_section(name: str, value: Any) -> InputError:
  return InputError(f"config.{name}={reprlib.repr(value)} is not a section of settings: expected names with values.")


def _built(kind: Any, name: str, values: Any) -> Any:
  if not isinstance(values, Mapping):
    raise _no_section(name, values)
  fields = {field.name: field for field in settings_of(kind)}
  typed = {}
  for key, value in values.items():
    if key not in fields:
      raise InputError(unknown(f"{name}.{key}", [f"{name}.{known}" for known in fields]))
    typed[key] = _cast(value, fields[key].type, f"{name}.{key}")
    check_value(typed[key], facts_of(fields[key]), f"{name}.{key}")
  return kind(**typed)


def _cast(value: Any, kind: Any, field: str) -> Any:
  if typing.get_origin(kind) is tuple:
    element = typing.get_args(kind)[0]
    values = value if isinstance(value, (tuple, list)) else (value,)
    return tuple(_cast(one, element, field) for one in values)
  if isinstance(kind, types.UnionType):
    return None if value is None else _cast(value, typing.get_args(kind)[0], field)
  if isinstance(value, int) and abs(value) >= 2**63:
    raise InputError(f"config.{field} has {value.bit_length()} bits: expected a number of at most 63.")
  if isinstance(value, float) and not math.isfinite(value):
    raise InputError(f"config.{field}={value} is not a finite number: give one.")
  if isinstance(value, str) and "\0" in value:
    raise InputError(f"config.{field}={value!r} holds a NUL character: leave it out.")
  if kind is float and isinstance(value, int) and not isinstance(value, bool):
    return float(value)
  if kind is int and isinstance(value, float) and value == int(value):
    return int(value)
  if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
    raise InputError(f"config.{field}={value!r} is of type {type(value).__name__}: expected {kind.__name__}.")
  return value


def _shown(value: Any) -> str:
  return repr(round(value, 4)) if isinstance(value, float) else f"{value!r}" if value != "" else "''"
