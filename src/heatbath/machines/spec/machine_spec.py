"""What a machine is: its cells, its clock, its noise, its converters, its defects, its appetite.

A specification is data, in SI units. `None` always means *ideal, or not stated*, and never 0: a field that is set to zero
where zero cannot be is refused. Whoever needs a figure that is not stated (a price, say) must say so and not invent one.
The noise of the machine, 1/β, is the variance of the voltage of a cell with conductance 1 over the square of the full-scale
voltage: (kT/C + noise_volts_rms²) / full_scale_volts².
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields, replace
from typing import Any

NAME_LENGTH = 100
BOLTZMANN = 1.380649e-23  # joules per kelvin, exact (SI 2019)


def _text(help: str, default: str | None = None) -> Any:  # Any: a dataclass field
    return field(default=default, metadata={"help": help, "kind": str})


def _number(help: str, unit: str, low: float = 0.0, high: float = math.inf, *, closed: bool = False) -> Any:  # Any: a field
    return field(default=None, metadata={"help": help, "unit": unit, "kind": float, "low": low, "high": high, "closed": closed})


def _count(help: str, low: int, high: int) -> Any:  # Any: a dataclass field
    return field(default=None, metadata={"help": help, "unit": "", "kind": int, "low": low, "high": high, "closed": True})


SETTLE_TAUS = 50.0  # time constants to converge where none are stated: `MachineSpec.default_settle_seconds`


@dataclass(frozen=True)
class MachineSpec:
    """A thermodynamic computer, described. See the `help` of each field; `describe()` lists them.

    Raises:
        TypeError: a field of the wrong type, such as a time written as a string.
        ValueError: a value outside its range, or fields that contradict one another.
    """

    name: str
    source: str | None = _text("where the figures were published")
    notes: str | None = _text("what a reader should know")
    cells: int | None = _count("cells of one machine; None: as many as a matrix needs", 1, 10**9)
    tau: float | None = _number("time constant of a cell of conductance 1; None: resistance times capacitance", "s")
    resistance: float | None = _number("resistance of a full-scale entry", "ohm")
    capacitance: float | None = _number("capacitance of a cell", "F")
    inductance: float | None = _number("inductance of a cell, which makes it ring; None: overdamped", "H")
    coupling: str | None = _text(
        "'capacitive': the matrix is held in capacitances, only the covariance is its inverse; None: resistive"
    )
    settle_taus: float | None = _number("stated time to converge, in units of tau", "tau", 0.0, 1e30)
    amplifier_gain: float | None = _number("open-loop gain of the amplifiers of a closed loop; None: infinite", "")
    full_scale_volts: float | None = _number("voltage that stands for 1; None: 1 V", "V")
    rail_volts: float | None = _number("voltage at which a cell saturates; None: never", "V")
    temperature: float | None = _number("temperature of the thermal noise kT/C; None: no thermal noise", "K")
    noise_volts_rms: float | None = _number("added noise source: rms voltage of a cell of conductance 1", "V")
    read_noise_volts_rms: float | None = _number("noise of one read beside quantization, referred to the cell", "V")
    matrix_bits: int | None = _count("bits of a matrix entry, sign included", 2, 32)
    drive_bits: int | None = _count("bits of the digital-to-analog converter of the drive", 2, 32)
    read_bits: int | None = _count("bits of the analog-to-digital converter", 2, 32)
    stochastic_rounding: bool | None = field(
        default=None, metadata={"help": "true: matrix entries are rounded at random, without bias", "unit": "", "kind": bool}
    )
    matrix_percentile: float | None = _number(
        "percentile of the entries' magnitudes that is full scale, the rest clips; None: the largest", "%", 50, 100, closed=True
    )
    read_gain_max: float | None = _number(
        "largest gain before the read converter; None: any power of two", "", 1, 2**40, closed=True
    )
    gain_mismatch: float | None = _number("relative rms error of each matrix entry, a property of the machine", "", high=0.5)
    offset_mismatch: float | None = _number(
        "rms offset of each cell's drive over full scale, a property of the machine", "", high=0.5
    )
    capacitance_mismatch: float | None = _number(
        "relative rms error of each capacitance, a property of the machine", "", high=0.3
    )
    noise_mismatch: float | None = _number(
        "relative rms error of the rms of each cell's noise, a property of the machine", "", high=0.5
    )
    write_noise: float | None = _number("rms error of each entry over full scale, fresh at each programming", "", high=0.5)
    drift_exponent: float | None = _number("conductances fall as (1 + t/1 s)^-exponent after programming", "", high=1)
    drift_spread: float | None = _number("relative rms difference of the drift exponent between entries", "", high=1)
    hold_seconds: float | None = _number("time from programming to use, over which conductances drift; None: no time", "s")
    stuck_entries: float | None = _number("fraction of matrix entries stuck at 0, a property of the machine", "", high=1)
    dead_cells: float | None = _number("fraction of cells that stay at 0 V, a property of the machine", "", high=1)
    stuck_cells: float | None = _number("fraction of cells that stay at full scale, a property of the machine", "", high=1)
    dead_converters: float | None = _number("fraction of read converters that return 0, a property of the machine", "", high=1)
    bandwidth: float | None = _number("rate of transfer between digital side and machine", "bit/s")
    sample_rate: float | None = _number("conversions a second of one converter", "Hz")
    cell_power: float | None = _number("power of one cell while it runs", "W")
    drive_conversion_energy: float | None = _number("energy of one digital-to-analog conversion", "J")
    read_conversion_energy: float | None = _number("energy of one analog-to-digital conversion", "J")
    transfer_energy: float | None = _number("energy to move one bit between digital side and machine", "J")
    cell_area: float | None = _number("area of one cell", "m2")

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise TypeError(f"a machine needs a name, got {self.name!r}")
        if not self.name.isprintable() or len(self.name) > NAME_LENGTH or re.search(r"[/\\:\[\]]", self.name):
            raise ValueError(
                f"the name of a machine is one line of at most {NAME_LENGTH} printable characters without / \\ : [ ], "
                f"because files and tables bear it, got {repr(self.name)[:120]}"
            )
        for f in fields(self):
            value = getattr(self, f.name)
            if f.name != "name" and value is not None:
                object.__setattr__(self, f.name, _checked(f, value))
        for complaint in _contradictions(self):  # the first one is raised
            raise ValueError(f"machine {self.name!r}: {complaint}")

    @property
    def time_constant(self) -> float:
        """τ, the time constant of a cell of conductance 1, in seconds."""
        if self.tau is not None:
            return self.tau
        assert self.resistance is not None
        assert self.capacitance is not None
        return self.resistance * self.capacitance

    @property
    def default_settle_seconds(self) -> float:
        """Seconds to converge, as stated; else 50 τ, "about 50 τ" of Donatella et al. 2024 (arXiv 2405.13817)."""
        return (self.settle_taus or SETTLE_TAUS) * self.time_constant

    @property
    def volts(self) -> float:
        """The voltage that stands for 1."""
        return 1.0 if self.full_scale_volts is None else self.full_scale_volts

    @property
    def rail(self) -> float | None:
        """The voltage of the rails over full scale."""
        return None if self.rail_volts is None else self.rail_volts / self.volts

    @property
    def noise(self) -> float:
        """1/β: variance of a cell of conductance 1 over full scale squared; 0 if the machine has no noise."""
        thermal = 0.0
        if self.temperature is not None and self.capacitance is not None:
            thermal = BOLTZMANN * self.temperature / self.capacitance
        return thermal / self.volts / self.volts + ((self.noise_volts_rms or 0.0) / self.volts) ** 2

    @property
    def inertia(self) -> float | None:
        """μ = L/(R²C), inductive over resistive time; None for overdamped cells."""
        if self.inductance is None:
            return None
        assert self.resistance is not None
        assert self.capacitance is not None
        return self.inductance / (self.resistance**2 * self.capacitance)

    @property
    def read_noise(self) -> float:
        """Variance of one read beside quantization, over full scale squared."""
        return ((self.read_noise_volts_rms or 0.0) / self.volts) ** 2


def _unrepresentable(spec: MachineSpec) -> Iterator[str]:
    """Derived figures that overflow, or that underflow to 0 although what makes them is stated."""
    thermal = spec.temperature is not None and spec.capacitance is not None
    derived = (
        (True, "time_constant", "tau, or resistance and capacitance"),
        (True, "default_settle_seconds", "settle_taus and the time constant"),
        (spec.rail_volts is not None, "rail", "rail_volts and full_scale_volts"),
        (
            thermal or spec.noise_volts_rms is not None,
            "noise",
            "temperature, capacitance, noise_volts_rms and full_scale_volts",
        ),
        (spec.read_noise_volts_rms is not None, "read_noise", "read_noise_volts_rms and full_scale_volts"),
        (spec.inductance is not None and spec.capacitance is not None and spec.resistance is not None, "inertia", "L/(R²C)"),
    )
    for stated, name, made_of in derived:
        try:
            representable = not stated or 0 < getattr(spec, name) < math.inf
        except (OverflowError, ZeroDivisionError):
            representable = False
        if not representable:
            yield f"{name}, which follows from {made_of}, is too large or too small for a float64; check their units"


def _contradictions(spec: MachineSpec) -> Iterator[str]:
    """What cannot be true at once."""
    parts = spec.resistance is not None and spec.capacitance is not None
    if spec.tau is None and not parts:
        yield "tau is missing; give tau in seconds, or resistance (ohm) and capacitance (F)"
        return
    yield from _unrepresentable(spec)
    if spec.tau is not None and spec.resistance is not None and spec.capacitance is not None:
        product = spec.resistance * spec.capacitance
        if not math.isclose(product, spec.tau, rel_tol=0.01):
            yield f"tau = {spec.tau:g} s contradicts resistance × capacitance = {product:g} s; leave one out"
    if spec.temperature is not None and spec.capacitance is None:
        yield f"thermal noise at temperature = {spec.temperature:g} K needs the capacitance (F); give it or leave both out"
    if spec.rail_volts is not None and spec.rail_volts < spec.volts:
        yield f"rail_volts = {spec.rail_volts:g} V is below the full scale of {spec.volts:g} V; allowed: full scale and above"
    if spec.inductance is not None and not parts:
        yield f"inductance = {spec.inductance:g} H needs resistance (ohm) and capacitance (F)"
    if spec.coupling not in (None, "capacitive"):
        yield f"coupling = {spec.coupling!r} is not known; allowed: 'capacitive', or leave it out for resistive coupling"
    for name in ("noise_mismatch", "capacitance_mismatch"):
        if getattr(spec, name) is not None and spec.coupling is not None:
            yield f"{name} is not emulated with capacitive coupling; leave one out"
    if spec.inductance is not None and spec.noise_mismatch is not None:
        yield "inductance together with noise_mismatch is not emulated; leave one out"
    if spec.drift_exponent is None:
        yield from (f"{name} needs a drift_exponent" for name in ("drift_spread", "hold_seconds") if getattr(spec, name))


def _shown(value: float) -> str:
    """A number for a message; Python refuses to print whole numbers of thousands of digits."""
    return repr(value) if isinstance(value, float) or abs(value) < 10**30 else "a whole number of more than 30 digits"


def _checked(f: Field[Any], value: Any) -> Any:  # Any: values from a file
    kind, unit = f.metadata["kind"], f.metadata.get("unit", "")
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            value = float(value)
        except OverflowError:
            raise ValueError(
                f"{f.name} is a whole number of more than 308 digits, too large for a float64; check its unit"
            ) from None
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        wanted = {str: "a text", bool: "true or false", int: "a whole number", float: "a number"}[kind]
        of = f" in {unit}" if unit else ""
        raise TypeError(f"{f.name} must be {wanted}{of}, got {repr(value)[:120]}; leave it out if it is ideal or not stated")
    if kind is str and not all(character.isprintable() or character in "\n\t" for character in value):
        raise ValueError(f"{f.name} must be printable text without control characters, got {repr(value)[:120]}")
    if kind in (int, float):
        low, high, closed = f.metadata["low"], f.metadata["high"], f.metadata["closed"]
        inside = low <= value <= high if closed else low < value < high
        if not inside:
            left, right = ("[", "]") if closed else ("(", ")")
            of = f" {unit}" if unit else ""
            raise ValueError(
                f"{f.name} = {_shown(value)} is out of range; allowed: {left}{low:g}, {high:g}{right}{of}; "
                "leave it out if it is ideal or not stated"
            )
    return value


def spec_from(values: Mapping[str, Any]) -> MachineSpec:  # Any: values from a file
    """A specification from named values.

    Raises:
        ValueError: an unknown name (near misses are suggested), a missing name, or a value out of range.
        TypeError: a value of the wrong type.
    """
    known = {f.name: f for f in fields(MachineSpec)}
    for name in values:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=2, cutoff=0.5)
            hint = f"; did you mean {' or '.join(near)}?" if near else f"; known: {', '.join(known)}"
            raise ValueError(f"unknown field {repr(name)[:60]} = {repr(values[name])[:60]} in a machine specification{hint}")
    for name, f in known.items():
        if f.default is MISSING and name not in values:
            raise ValueError(f"a machine specification needs {name!r}; got {', '.join(values) or 'nothing'}")
    return MachineSpec(**values)


def with_bits(
    spec: MachineSpec, *, matrix: int | None = None, drive: int | None = None, read: int | None = None
) -> MachineSpec:
    """The same machine with other converters; what is None stays as it is.

    >>> from heatbath.machines import load_machine
    >>> with_bits(load_machine("tngd-2024"), matrix=8, drive=8, read=8).matrix_bits
    8
    """
    return replace(
        spec,
        matrix_bits=spec.matrix_bits if matrix is None else matrix,
        drive_bits=spec.drive_bits if drive is None else drive,
        read_bits=spec.read_bits if read is None else read,
    )


def describe() -> list[tuple[str, str, str]]:
    """Every field: name, unit, meaning; for documentation and `heatbath machine check`."""
    return [(f.name, f.metadata.get("unit", ""), f.metadata.get("help", "name of the machine")) for f in fields(MachineSpec)]
