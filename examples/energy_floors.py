"""How many bits may an analog solve have before even physics would let a digital one be cheaper?

    python examples/energy_floors.py

One symmetric system M x = b is solved by Cholesky, counted in words of 32 bits, and on an emulated machine of 4 to 16 bits. The
counted work of each has floors: kT ln 2 for every bit that is erased, in ordinary and in reversible logic, and 12 kT 4ᵇ for
every cell whose signal must stand above thermal noise by b bits. No built hardware is near any of them; they bound better ones.
"""

import argparse

import torch
from rich.console import Console
from rich.table import Table

import heatbath as hb
from heatbath.costs import floors, h100, price, with_unit
from heatbath.work import Work, cholesky, triangular_solve

BITS = (4, 6, 8, 10, 12, 14, 16)


def system(n: int, condition: float) -> tuple[hb.Dense, torch.Tensor]:
    """A matrix of known condition number, and a right-hand side."""
    noise = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(n, n, generator=noise, dtype=torch.float64)).Q
    matrix = (basis * torch.logspace(0, -torch.tensor(condition).log10().item(), n, dtype=torch.float64)) @ basis.mT
    return hb.Dense(0.5 * (matrix + matrix.mT)), torch.randn(n, generator=noise, dtype=torch.float64)


def solve(solver: hb.ThermodynamicSolve, matrix: hb.Dense, rhs: torch.Tensor) -> tuple[Work, float]:
    """All work of one solve on a machine, and its relative error."""
    state, prepared = solver.prepare(matrix, generator=torch.Generator().manual_seed(1))
    solution = solver.solve(state, rhs, generator=torch.Generator().manual_seed(2))
    exact = torch.linalg.solve(matrix.matrix, rhs)
    return prepared + solution.work, float((solution.value - exact).norm() / exact.norm())


def main() -> None:
    """Solve, price, compare with the floors."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--condition", type=float, default=10.0)
    options = parser.parse_args()
    matrix, rhs = system(options.size, options.condition)
    table = Table("solver", "relative error", "predicted bill", "irreversible", "reversible", "analog cells")
    table.title = f"one system of {options.size} unknowns, condition {options.condition:g}: energy, and its floors at 300 K"
    digital = Work.of(cholesky(options.size)) + Work.of(triangular_solve(options.size, 1), 2)
    least = floors(digital)
    rows: list[tuple[str, float | None, Work]] = [("Cholesky, 32 bits", None, digital)]
    for bits in BITS:
        machine = hb.Machine(hb.with_bits(hb.load_machine("tngd-2024"), matrix=bits, drive=bits, read=bits))
        work, error = solve(hb.ThermodynamicSolve(machine), matrix, rhs)
        rows.append((f"machine, {bits} bits", error, work))
    crossing = None
    for name, error, work in rows:
        bill, floor = price(work, digital=h100()), floors(work)
        stated = "≥ " if bill.unstated_joules else ""
        cells = [with_unit(v, "J") if v else "–" for v in (floor.irreversible, floor.reversible, floor.analog)]
        table.add_row(name, "rounding" if error is None else f"{error:.1e}", stated + with_unit(bill.joules, "J"), *cells)
        if crossing is None and floor.analog > least.irreversible:
            crossing = name
    Console(width=120).print(table)
    print(
        f"the analog floor passes Landauer's floor of all of Cholesky's operations ({least.irreversible:.2e} J) at: "
        f"{crossing or 'more bits than these'}"
    )


if __name__ == "__main__":
    main()
