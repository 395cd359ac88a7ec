"""Names in recipes -> configuration classes and implementations, imported on demand.

A component's Config (light, no torch) is registered in its room's `config.py`, together with the "module:Class" that
implements it; that module is imported only when the component is built. A plugin registers in the same way.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, SerializeAsAny, ValidationError

from medfm.errors import ConfigError


class Config(BaseModel):
    """Base of every configuration: unknown keys are errors, values cannot be changed after validation."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        validate_default=True,
        coerce_numbers_to_str=True,
        allow_inf_nan=False,
        protected_namespaces=(),
    )


class MustExist:
    """Marks a path that is read: the resolver reports it where it does not exist.

    Args:
        reference: it may name an image as a manifest does: `folder#series=1f0c3a9b7d21`, `T1.nii.gz|FLAIR.nii.gz`.
    """

    def __init__(self, reference: bool = False) -> None:
        self.reference = reference


InputPath = Annotated[Path, MustExist()]
ImagePath = Annotated[Path, MustExist(reference=True)]


class ComponentConfig(Config):
    """A Config chosen by `name` in a recipe: `objective: contrastive` or `objective: {name: contrastive, ...}`."""

    registered_name: ClassVar[str] = ""
    name: str = ""


C = TypeVar("C", bound=type[ComponentConfig])


def suggest(word: str, known: Iterable[str]) -> str:
    """' did you mean 'x'?' for the nearest known word, or ''. Used for every look-up by name."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean '{near[0]}'?" if near else ""


class Registry:
    """Components of one kind, for example all objectives."""

    def __init__(self, kind: str, *configs: str) -> None:
        """`configs` are the modules whose import registers medfm's own components."""
        self.kind = kind
        self._configs = configs
        self._entries: dict[str, tuple[type[ComponentConfig], str]] = {}

    @property
    def a_kind(self) -> str:
        return f"{'an' if self.kind[0] in 'aeio' else 'a'} {self.kind}"

    def register(self, name: str, target: str) -> Callable[[C], C]:
        """Class decorator: the decorated Config is built by `target`, a "module:Class" called as `Class(config, **parts)`."""

        def add(config: C) -> C:
            known = self._entries.get(name)
            if known is not None and known[0] is not config:
                raise ConfigError(f"the {self.kind} '{name}' is registered twice: {known[1]} and {target}")
            config.registered_name = name
            self._entries[name] = (config, target)
            return config

        return add

    def names(self) -> list[str]:
        for module in self._configs:
            import_module(module)
        return sorted(self._entries)

    def config_class(self, name: str) -> type[ComponentConfig]:
        """Raises ConfigError with the nearest name where `name` is unknown."""
        known = self.names()
        if name not in self._entries:
            hint = suggest(name, known) or f"; known: {', '.join(known)}"
            raise ConfigError(f"unknown {self.kind} '{name}'{hint}")
        return self._entries[name][0]

    def build(self, config: ComponentConfig, **parts: Any) -> Any:
        """The component that `config` describes."""
        self.config_class(config.name)
        module, _, attribute = self._entries[config.name][1].partition(":")
        return getattr(import_module(module), attribute)(config, **parts)

    def parse(self, value: Any) -> Any:
        """A Config from a name, a mapping with `name`, or a Config. For use in pydantic fields."""
        if isinstance(value, str):
            value = {"name": value}
        if not isinstance(value, dict):
            return value
        try:
            return self.config_class(str(value.get("name", ""))).model_validate(value)
        except ConfigError as error:
            raise ValueError(str(error)) from None
        except ValidationError as error:
            # A pydantic validator may not raise a ValidationError of another model with its paths kept.
            detail = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
            raise ValueError(f"{self.kind} '{value.get('name')}': {detail}") from None


class ComponentField:
    """Marks a pydantic field as a component, so that the resolver can report its problems under their own path."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry


def component(registry: Registry) -> Any:
    """Annotated type for a field that holds a component of `registry`."""
    return Annotated[SerializeAsAny[ComponentConfig], BeforeValidator(registry.parse), ComponentField(registry)]


def optional_component(registry: Registry) -> Any:
    """As `component`, for a field that may hold none: its default is None."""
    return Annotated[SerializeAsAny[ComponentConfig] | None, BeforeValidator(registry.parse), ComponentField(registry)]


ENCODERS = Registry("encoder", "medfm.encoders.config")
TEXT_ENCODERS = Registry("text encoder", "medfm.encoders.config")
TOKENIZERS = Registry("tokenizer", "medfm.text.config")
OBJECTIVES = Registry("objective", "medfm.objectives.config", "medfm.objectives.ssl_config")
TERMS = Registry("alignment term", "medfm.objectives.align.config")
LAUNCHERS = Registry("launcher", "medfm.training.config")
