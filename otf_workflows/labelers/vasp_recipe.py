"""The level of theory of VASP, taken from atomate2's own input sets, and what may change under it.

Three recipes. ``mptrj`` is what CHGNet was trained on (Deng et al., 2023,
10.1038/s42256-023-00716-3): PBE, PBE+U in oxides and fluorides of eight transition metals, by the
static set of the Materials Project. ``matpes-pbe`` and ``matpes-r2scan`` are the sets of MatPES
(Kaplan et al., 2025, arXiv:2503.04070), made for potentials.

**Energies.** A label holds VASP's energy extrapolated to zero smearing, E0, without corrections;
MPtrj and MatPES hold the same. CHGNet was trained on MPtrj energies *after* the MP2020 corrections
(Wang et al., 2021, 10.1038/s41598-021-94550-5). They are constants per atom of an element, so the
shift per element that every fine-tuning fits absorbs them, and applying them to labels would change
nothing but the shifts. See ``docs/explanation/level_of_theory.md`` for where that ends.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, field_validator

from otf_workflows.errors import InputError
from otf_workflows.labelers import espresso_recipe
from otf_workflows.labelers.base import Recipe
from otf_workflows.labelers.vasp_level import (
    hubbard_of,
    known_titels,
    kpoint_rule,
    level,
    quiet,
    symbols_of,
    tidy,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from atomate2.vasp.jobs.base import BaseVaspMaker
    from pymatgen.core import Structure

    from otf_workflows.schemas import Frame

RecipeName = Literal["mptrj", "matpes-pbe", "matpes-r2scan"]
PotcarFamily = Literal["PBE", "PBE_52", "PBE_54", "PBE_64"]

OWN_POTCARS: dict[str, PotcarFamily] = {
    "mptrj": "PBE",
    "matpes-pbe": "PBE_64",
    "matpes-r2scan": "PBE_64",
}
"""Family of potentials that each recipe's authors used."""

CHANGES: dict[str, dict[str, Any]] = {
    "mptrj": {"ISMEAR": 0, "ISYM": 0, "LWAVE": False, "LCHARG": False},
    "matpes-pbe": {"ISYM": 0, "LWAVE": False, "LCHARG": False, "LAECHG": False},
    "matpes-r2scan": {"ISYM": 0, "LWAVE": False, "LCHARG": False, "LAECHG": False},
}
"""All that we change in atomate2's sets. Frames of MD have no symmetry, and big files are not
needed. The tetrahedron method (ISMEAR -5) of the Materials Project gives wrong forces in metals,
cannot be used below four k-points, and would change to Gaussian smearing when a cell grows: a
campaign would hold two levels of theory. Gaussian smearing of the same 0.05 eV is used instead."""

IN_WORDS: dict[str, str] = {
    "mptrj": "VASP PBE, with U on Co, Cr, Fe, Mn, Mo, Ni, V and W in oxides and fluorides, 520 eV",
    "matpes-pbe": "VASP PBE without U, 680 eV, newer potentials",
    "matpes-r2scan": "VASP r2SCAN without U, 680 eV, newer potentials",
}
"""Each recipe in one line, for pages and messages."""

TRAINED_ON: dict[str, tuple[str, ...]] = {
    "mptrj": ("chgnet-0.3.0", "chgnet-0.2.0", "sevennet-0", "sevennet-l3i5"),
    "matpes-pbe": (),
    "matpes-r2scan": ("chgnet-r2scan",),
}
"""Registered potentials that were trained on labels like those of a recipe. The r2SCAN labels of
CHGNet are the Materials Project's own; MatPES differs from them in k-points and smearing."""


class VaspNumerics(BaseModel):
    """All INCAR settings that a retry or a person may change without touching the physics."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    ALGO: Literal["Normal", "VeryFast", "Fast", "Conjugate", "All", "Damped"] | None = None
    IALGO: Literal[38, 48, 53, 58] | None = None
    NELM: int | None = Field(None, ge=1, le=2000)
    NELMIN: int | None = Field(None, ge=1, le=50)
    NELMDL: int | None = Field(None, ge=-50, le=50)
    TIME: float | None = Field(None, gt=0, le=2)
    ISEARCH: Literal[0, 1] | None = None
    AMIX: float | None = Field(None, gt=0, le=2)
    BMIX: float | None = Field(None, gt=0, le=20)
    AMIX_MAG: float | None = Field(None, gt=0, le=4)
    BMIX_MAG: float | None = Field(None, gt=0, le=20)
    AMIN: float | None = Field(None, gt=0, le=1)
    IMIX: Literal[0, 1, 2, 4] | None = None
    MAXMIX: int | None = Field(None, ge=-200, le=200)
    LMAXMIX: Literal[2, 4, 6] | None = None
    LMIXTAU: bool | None = None
    NBANDS: int | None = Field(None, ge=1)
    ISTART: Literal[0, 1, 2] | None = None
    # 10 and above would keep the density fixed: no longer self-consistent.
    ICHARG: Literal[0, 1, 2] | None = None
    ISYM: Literal[-1, 0, 1, 2, 3] | None = None
    SYMPREC: float | None = Field(None, gt=0, le=1e-2)
    LSCALAPACK: bool | None = None
    LSCAAWARE: bool | None = None
    LPLANE: bool | None = None
    NCORE: int | None = Field(None, ge=1)
    NPAR: int | None = Field(None, ge=1)
    KPAR: int | None = Field(None, ge=1)
    NSIM: int | None = Field(None, ge=1)
    LWAVE: bool | None = None
    LCHARG: bool | None = None


class VaspRecipe(Recipe):
    """Level of theory of VASP, by the name of a published recipe."""

    code: Literal["vasp"] = Field("vasp", description="VASP, through atomate2's input sets.")
    recipe: RecipeName = Field("mptrj", description="Published set of all settings.")
    potcar: PotcarFamily | None = Field(
        None, description="Family of PAW potentials; that of the recipe's authors if not given."
    )
    incar: dict[str, Any] = Field(
        default_factory=dict,
        description="Numerical INCAR settings (NCORE, KPAR, NELM, …); physics is refused.",
    )

    @field_validator("incar")
    @classmethod
    def _numerics_only(cls, value: dict[str, Any]) -> dict[str, Any]:
        try:
            return check_numerics(value)
        except InputError as error:
            raise ValueError(
                f"{error.what} ({error.hint})" if error.hint else error.what
            ) from error

    @property
    def family(self) -> PotcarFamily:
        """Family of PAW potentials."""
        return self.potcar or OWN_POTCARS[self.recipe]

    def maker(self, numerics: dict[str, Any] | None = None) -> BaseVaspMaker:
        """Return atomate2's maker of this recipe, with our changes in its input set.

        Parameters
        ----------
        numerics
            INCAR settings of one try, checked; they go over those of the recipe.
        """
        from atomate2.vasp.jobs.matpes import MatPesGGAStaticMaker, MatPesMetaGGAStaticMaker
        from atomate2.vasp.jobs.mp import MPGGAStaticMaker

        makers: dict[str, type[BaseVaspMaker]] = {
            "mptrj": MPGGAStaticMaker,
            "matpes-pbe": MatPesGGAStaticMaker,
            "matpes-r2scan": MatPesMetaGGAStaticMaker,
        }
        with quiet():
            maker = makers[self.recipe]()
        generator = maker.input_set_generator
        generator.user_incar_settings = {
            **generator.user_incar_settings,
            **CHANGES[self.recipe],
            **self.incar,
            **(numerics or {}),
        }
        # Given in any case: pymatgen would else let a user's own configuration decide.
        generator.user_potcar_functional = self.family
        if self.family != "PBE" and self.recipe == "mptrj":
            # Newer families have no W_pv.
            generator._config_dict["POTCAR"]["W"] = "W_sv"  # noqa: SLF001 - no public setter
        return maker

    def level_of_theory(self, numbers: list[int]) -> dict[str, Any]:
        """Return what defines the results for these elements, as an output also tells it.

        It depends on the elements only, not on how many atoms or on the machine: the k-points are
        given as the rule that makes the mesh.
        """
        return {**_level(self.recipe, self.family, tuple(symbols_of(numbers)))}

    def potcar_symbols(self, numbers: Sequence[int]) -> dict[str, str]:
        """Return element → name of its potential, e.g. ``{"Fe": "Fe_pv"}``.

        Raises
        ------
        InputError
            If the recipe has no potential for an element.
        """
        table = self.maker().input_set_generator._config_dict["POTCAR"]  # noqa: SLF001
        chosen = {}
        for symbol in symbols_of(numbers):
            found = table.get(symbol)
            name = found["symbol"] if isinstance(found, dict) else found
            if name is None or name not in known_titels(self.family):
                raise InputError(
                    f"the recipe {self.recipe} has no potential of {symbol} in {self.family}",
                    where="labels.potcar",
                )
            chosen[symbol] = name
        return chosen

    def density_functional(self) -> str:
        """Return the functional of the recipe; U goes with it as published."""
        return "r2SCAN" if self.recipe == "matpes-r2scan" else "PBE"

    def mismatch(self, potential: str) -> str | None:
        """Return how labels differ from what a registered potential was trained on, or None.

        Parameters
        ----------
        potential
            Name in :data:`otf_workflows.potentials.POTENTIALS`.

        Raises
        ------
        InputError
            If there is no such potential.
        """
        from otf_workflows.potentials import potential_entry

        trained = potential_entry(potential).level_of_theory
        if potential in TRAINED_ON[self.recipe]:
            return None
        suited = [name for name, known in TRAINED_ON.items() if potential in known]
        advice = f"; the recipe {suited[0]} fits it" if suited else ""
        return (
            f"{potential} was trained on {trained}, the labels are {IN_WORDS[self.recipe]}: "
            f"fine-tuning has to bridge the difference, and needs more labels for it{advice}"
        )

    def mixing(self, compositions: Iterable[Sequence[int]]) -> str | None:
        """Return which elements have U in some of these compositions only, or None.

        Raw energies with and without U cannot be compared: an element shifts by a constant in the
        one and not in the other, and no single shift per element makes them one zero.

        Parameters
        ----------
        compositions
            Atomic numbers of every structure.
        """
        with_u: set[str] = set()
        without: set[str] = set()
        for elements in {tuple(symbols_of(numbers)) for numbers in compositions}:
            found = set(_level(self.recipe, self.family, elements)["hubbard_l_U_J"])
            with_u |= found
            without |= set(elements) - found
        mixed = sorted(with_u & without)
        if not mixed:
            return None
        return (
            f"{', '.join(mixed)} has U in some of these compositions and none in others: their "
            "energies have no common zero (forces and stress are not concerned); use matpes-pbe or "
            "matpes-r2scan for all"
        )

    def problems(self, frame: Frame) -> list[str]:
        """Return what makes this recipe impossible for a frame, in sentences."""
        try:
            self.potcar_symbols(frame.numbers)
        except InputError as error:
            return [error.what]
        return []

    def n_electrons(self, numbers: Sequence[int]) -> float:
        """Return the number of valence electrons of these atoms, for the cost model."""
        from ase.data import chemical_symbols

        valence = {
            symbol: known_titels(self.family)[name][1]
            for symbol, name in self.potcar_symbols(numbers).items()
        }
        return sum(valence[chemical_symbols[number]] for number in numbers)

    def n_kpoints(self, frame: Frame) -> int:
        """Return the number of k-points computed: time reversal is used, symmetry is not."""
        grid = kpoint_rule(self.recipe, frame.cell_A)[1]
        own_partners = int(np.prod([1 if n % 2 else 2 for n in grid]))
        return (int(np.prod(grid)) + own_partners) // 2


def check_numerics(changes: dict[str, Any]) -> dict[str, Any]:
    """Return INCAR settings with names in capitals, checked against the permitted ones.

    Raises
    ------
    InputError
        If a setting is not on the list (physics, above all) or its value is impossible.
    """
    named = {name.upper(): value for name, value in changes.items()}
    return espresso_recipe.check_numerics(named, model=VaspNumerics)


@lru_cache(maxsize=64)
def _level(recipe: RecipeName, family: PotcarFamily, elements: tuple[str, ...]) -> dict[str, Any]:
    """Return the level of theory, read from atomate2's input set for one atom of each element."""
    chosen = VaspRecipe(recipe=recipe, potcar=family)
    from ase.data import atomic_numbers

    names = chosen.potcar_symbols([atomic_numbers[symbol] for symbol in elements])
    maker = chosen.maker()
    with quiet():
        inputs = maker.input_set_generator.get_input_set(_one_of_each(elements), potcar_spec=True)
    incar = dict(inputs.incar)
    order = [site.specie.symbol for site in inputs.poscar.structure]
    rule, mesh = kpoint_rule(recipe, inputs.poscar.structure.lattice.matrix)
    written = inputs.kpoints
    asked = incar.get("KSPACING") if written is None else [int(n) for n in written.kpts[0]]
    if asked != (rule["kspacing_per_A"] if written is None else mesh):
        # Our rule reads the k-points of outputs; it must be the one of the installed set.
        raise InputError(
            f"the installed atomate2 and pymatgen make other k-points ({asked}) than the recipe "
            f"{recipe} knows",
            where="labels.recipe",
        )
    return level(
        recipe,
        incar,
        elements=elements,
        n_atoms=len(order),
        kpoints=rule,
        hubbard=hubbard_of(incar, order),
        magmoms=dict(zip(order, map(tidy, incar["MAGMOM"]), strict=True)),
        potentials={s: known_titels(family)[names[s]][0] for s in elements},
        others={},
    )


def _one_of_each(elements: Sequence[str]) -> Structure:
    from pymatgen.core import Lattice, Structure

    n = len(elements)
    places = [[(i + 0.5) / n, 0.5, 0.5] for i in range(n)]
    return Structure(Lattice.orthorhombic(3.0 * n, 3.0, 3.0), list(elements), places)
