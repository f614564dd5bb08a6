"""Services: how features and the core find one another's objects without importing one another.

A service is provided under a type, mostly a Protocol, and asked for by it. The core provides
`engine.control.EngineControl`, `context.SessionContexts`, and more as it grows; a feature may provide its own under a
Protocol of `enterprise.contracts`.
"""

from __future__ import annotations

from typing import TypeVar, cast

T = TypeVar("T")


class ServiceError(LookupError):
    """A service that is missing, or provided twice."""


class Services:
    """Objects by type."""

    __slots__ = ("_by_type",)

    def __init__(self) -> None:
        self._by_type: dict[type[object], object] = {}

    def provide(self, service_type: type[T], service: T) -> None:
        """Raises ServiceError where the type is provided already: two providers are a mistake, not a choice."""
        if service_type in self._by_type:
            raise ServiceError(f"service {service_type.__name__} is provided twice")
        self._by_type[service_type] = service

    def types(self) -> frozenset[type[object]]:
        return frozenset(self._by_type)

    def withdraw(self, service_type: type[object]) -> None:
        """Take back a service whose provider does not run."""
        self._by_type.pop(service_type, None)

    def get(self, service_type: type[T]) -> T:
        """Raises ServiceError where nobody provides it: list its provider in `requires`."""
        if service_type not in self._by_type:
            raise ServiceError(f"nobody provides the service {service_type.__name__}")
        return cast(T, self._by_type[service_type])

    def find(self, service_type: type[T]) -> T | None:
        return cast("T | None", self._by_type.get(service_type))
