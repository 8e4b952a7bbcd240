"""Machine specifications as TOML files: one flat table, SI units, the names of `MachineSpec`.

name = "my-machine"
tau = 1e-6            # s
matrix_bits = 8
"""

from __future__ import annotations

import difflib
import json
import tomllib
from dataclasses import fields
from pathlib import Path

from heatbath.machines.spec.machine_spec import MachineSpec, spec_from
from heatbath.machines.spec.presets import presets

LARGEST = 2**14  # bytes; tomllib takes minutes for dotted keys of very many levels


def load_machine(which: str | Path) -> MachineSpec:
    """A preset by name, or a specification from a `.toml` file.

    Args:
        which: name of a preset, or path of a file.

    Raises:
        ValueError: no such preset, a file that is not TOML, or a specification that is not valid.
        TypeError: a field of the wrong type.
        FileNotFoundError: no such file.

    >>> round(load_machine("tngd-2024").time_constant, 12)
    1e-06
    """
    name = str(which)
    known = presets()
    if name in known:
        return known[name]
    if not name.endswith(".toml"):
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"no machine is called {name!r}; {hint}presets: {', '.join(known)}; or give the path of a .toml file")
    path = Path(which)
    if not path.is_file():
        raise FileNotFoundError(f"machine file {name!r} does not exist")
    if path.stat().st_size > LARGEST:
        raise ValueError(f"{name} has {path.stat().st_size} bytes; a machine is one flat table of at most {LARGEST}")
    try:
        return spec_from(tomllib.loads(path.read_text(encoding="utf-8")))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{name} is not valid TOML in UTF-8: {error}") from error
    except RecursionError as error:
        raise ValueError(f"{name} is nested too deeply: a machine is one flat table") from error
    except (TypeError, ValueError) as error:
        raise type(error)(f"{name}: {error}") from error


def machine_toml(spec: MachineSpec) -> str:
    """The text of a `.toml` file from which `load_machine` reads the same specification."""
    lines = []
    for f in fields(spec):
        value = getattr(spec, f.name)
        if value is None:
            continue
        text = json.dumps(value, ensure_ascii=False)
        unit = f.metadata.get("unit", "")
        lines.append(f"{f.name} = {text}" + (f"  # {unit}" if unit else ""))
    return "\n".join(lines) + "\n"
