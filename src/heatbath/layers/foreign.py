"""Classes of packages that may not be installed."""

from __future__ import annotations

import sys
from typing import Any


def loaded_class(path: str, name: str) -> type[Any] | None:  # Any: someone else's class
    """A class of a module that someone has imported, else None: then no object of that class can exist either."""
    found = getattr(sys.modules.get(path), name, None)
    return found if isinstance(found, type) else None
