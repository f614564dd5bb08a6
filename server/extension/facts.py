"""`fact`: a dataclass that the type checker holds frozen and the interpreter makes quickly.

A frozen slotted dataclass of 14 fields takes 1.5 microseconds to make, because every field goes through
`object.__setattr__`; the same class unfrozen takes 0.2. Facts made once per statement are therefore frozen for mypy
only. Facts made rarely use `dataclass(frozen=True, slots=True)`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar, dataclass_transform

T = TypeVar("T")


@dataclass_transform(frozen_default=True, kw_only_default=False)
def fact(cls: type[T]) -> type[T]:
    """Make `cls` a slotted dataclass. Assigning to a field is a type error, and is not caught at run time."""
    return dataclass(slots=True, eq=False)(cls)
