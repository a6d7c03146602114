"""Numbers, durations, cells and recipes in words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from otf_workflows.report.model import Material
    from otf_workflows.schemas import Calibration, ErrorStatistics, Frame

CODES = {
    "espresso": "Quantum ESPRESSO (pw.x)",
    "vasp": "VASP",
    "cp2k": "CP2K",
    "gpaw": "GPAW",
    "abinit": "ABINIT",
    "ase": "ASE calculator",
}
UNITS = {
    "eV_A3": "eV/Å³",
    "eV_A": "eV/Å",
    "per_A": "1/Å",
    "A": "Å",
    "Ry": "Ry",
    "eV": "eV",
    "K": "K",
    "GPa": "GPa",
    "fs": "fs",
    "muB": "μB",
}
"""Suffix of a name → unit; the longest suffix first."""

_SUBSCRIPTS = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")


def count(number: int, noun: str, plural: str | None = None) -> str:
    """Return '1 label', '2 labels', '12 000 steps'."""
    return f"{thousands(number)} {noun if number == 1 else plural or noun + 's'}"


def thousands(number: float) -> str:
    """Return a whole number with thin spaces between thousands."""
    return f"{number:,.0f}".replace(",", "\u202f")


def duration(seconds: float) -> str:
    """Return '42 s', '3 min 5 s', '2 h 10 min' or '3 d 4 h'."""
    total = round(seconds)
    if total < 60:
        return f"{total} s"
    units = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))
    first = next(i for i, (size, _) in enumerate(units) if total >= size)
    (large, name), (small, minor) = units[first], units[first + 1]
    whole, rest = divmod(total, large)
    return f"{whole} {name}" + (f" {rest // small} {minor}" if rest // small else "")


def percent(share: float) -> str:
    """Return a share in per cent; small ones keep a digit."""
    return f"{100 * share:.1f}\u202f%" if 0 < share < 0.0995 else f"{100 * share:.0f}\u202f%"


def interval(errors: ErrorStatistics) -> str:
    """Return '0.031 (0.026 to 0.037) eV/Å'."""
    return (
        f"{errors.force_rmse_eV_A:.3f} "
        f"({errors.force_rmse_low_eV_A:.3f} to {errors.force_rmse_high_eV_A:.3f}) eV/Å"
    )


def core_hours(hours: float) -> str:
    """Return core-hours with two digits that mean something."""
    return f"{hours:.2f}" if hours >= 0.095 or hours == 0 else f"{hours:.2g}"


def sentence(text: str) -> str:
    """Return a text with a capital in front and a full stop behind."""
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?", "`")) else ".")


def listing(items: list[str]) -> str:
    """Return 'a', 'a and b' or 'a, b and c'."""
    return " and ".join(
        part for part in (", ".join(items[:-1]), items[-1] if items else "") if part
    )


def value(name: str, content: Any) -> str:
    """Return a setting in words: its name without the unit, its content, its unit."""
    suffix = next((u for u in UNITS if name.endswith(f"_{u}")), None)
    title = name.removesuffix(f"_{suffix}").replace("_", " ")
    if isinstance(content, bool):
        return title if content else f"no {title}"
    if isinstance(content, dict):
        text = ", ".join(f"{k} {v}" for k, v in content.items())
    elif isinstance(content, list | tuple):
        text = "×".join(str(c) for c in content)
    else:
        text = f"{content:g}" if isinstance(content, float) else str(content)
    return f"{title} {text}" + (f" {UNITS[suffix]}" if suffix else "")


def theory(labels: dict[str, Any]) -> str:
    """Return a recipe in words, everything that it sets included.

    Parameters
    ----------
    labels
        The section ``labels`` of a campaign file.
    """
    code = str(labels.get("code", "unknown code"))
    hidden = {"code", "use_stress"}
    stated = {k: v for k, v in labels.items() if k not in hidden and v not in (None, {}, [], "")}
    functional = stated.pop("functional", None)
    parts = [CODES.get(code, code)] + ([str(functional)] if functional else [])
    return ", ".join(parts + [value(k, v) for k, v in stated.items()])


def material(frame: Frame) -> Material:
    """Return formula and cell of a structure in words."""
    from otf_workflows.report.model import Material

    atoms = frame.to_atoms()
    formula = atoms.get_chemical_formula(mode="metal", empirical=True).translate(_SUBSCRIPTS)
    *lengths, alpha, beta, gamma = atoms.cell.cellpar()
    size = " × ".join(f"{length:.3f}" for length in lengths) + " Å"
    right = max(abs(angle - 90.0) for angle in (alpha, beta, gamma)) < 0.05
    angles = "all angles 90°" if right else f"angles {alpha:.1f}°, {beta:.1f}°, {gamma:.1f}°"
    return Material(
        formula=formula,
        n_atoms=frame.n_atoms,
        cell=f"{size}, {angles}",
        elements=sorted(set(atoms.get_chemical_symbols())),
    )


def scale(found: Calibration) -> str:
    """Return how a raw σ is read: 'σ × 3.2', or '√((σ × 3.2)² + 0.018²) eV/Å' with a floor."""
    factor = f"σ × {found.factor:.3g}"
    return f"√(({factor})² + {found.floor_eV_A:.2g}²) eV/Å" if found.floor_eV_A else factor


def calibration(found: Calibration) -> str:
    """Return a calibration in words."""
    from otf_workflows.honesty import expected_coverage

    if found.n == 0:
        return "not calibrated"
    low, high = expected_coverage(found.n, nominal=found.nominal)
    parts = [
        scale(found),
        f"from {count(found.n, 'unseen label')}",
        f"meant to cover {percent(found.nominal)}",
        f"by the luck of so few labels {percent(low)} to {percent(high)}",
    ]
    if found.n_atoms:
        parts.append(f"for the worst of {count(found.n_atoms, 'atom')}")
    if found.measured is not None:
        parts.append(f"covered {percent(found.measured)} of the next ones")
    return ", ".join(parts)
