"""Numbers and recipes in words."""

import pytest

from otf_workflows.report import words
from otf_workflows.schemas import Calibration, Frame


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (59.4, "59 s"), (59.6, "1 min"), (185, "3 min 5 s"), (7800, "2 h 10 min"),
     (273_600, "3 d 4 h")],
)  # fmt: skip
def test_durations(seconds, text):
    assert words.duration(seconds) == text


@pytest.mark.parametrize(
    ("share", "text"), [(0, "0 %"), (0.02, "2.0 %"), (0.0996, "10 %"), (0.5, "50 %"), (1, "100 %")]
)
def test_percent(share, text):
    assert words.percent(share).replace("\u202f", " ") == text


def test_listing():
    assert words.listing([]) == ""
    assert words.listing(["300"]) == "300"
    assert words.listing(["300", "600", "900"]) == "300, 600 and 900"


def test_a_recipe_reads_with_its_units_and_without_what_is_not_set():
    recipe = {
        "code": "espresso",
        "use_stress": True,
        "functional": "PBE",
        "cutoff_Ry": 50.0,
        "kpoints": [2, 2, 2],
        "kspacing_per_A": None,
        "starting_magnetization": {},
        "scf_threshold_Ry": 1e-8,
    }
    assert words.theory(recipe) == (
        "Quantum ESPRESSO (pw.x), PBE, cutoff 50 Ry, kpoints 2×2×2, scf threshold 1e-08 Ry"
    )


def test_an_unknown_code_is_named_as_it_is():
    assert words.theory({"code": "teacher", "width_eV": 0.1}) == "teacher, width 0.1 eV"


def test_material_in_words():
    frame = Frame(
        numbers=[3, 3, 8],
        cell_A=[[3.0, 0, 0], [0, 3.0, 0], [0, 0, 4.0]],
        positions_A=[[0, 0, 0], [1, 1, 1], [2, 2, 2]],
    )
    material = words.material(frame)
    assert material.formula == "Li₂O"
    assert material.cell == "3.000 × 3.000 × 4.000 Å, all angles 90°"
    assert material.elements == ["Li", "O"]


def test_a_skewed_cell_shows_its_angles():
    frame = Frame(
        numbers=[14], cell_A=[[0, 2.7, 2.7], [2.7, 0, 2.7], [2.7, 2.7, 0]], positions_A=[[0, 0, 0]]
    )
    assert words.material(frame).cell.endswith("angles 60.0°, 60.0°, 60.0°")


@pytest.mark.parametrize(
    ("text", "said"),
    [("cycle 0 opened", "Cycle 0 opened."), ("Done.", "Done."), ("run `otf up`", "Run `otf up`")],
)
def test_sentences(text, said):
    assert words.sentence(text) == said


@pytest.mark.parametrize(("hours", "text"), [(0.0, "0.00"), (0.0042, "0.0042"), (12.345, "12.35")])
def test_small_core_hours_are_not_rounded_to_nothing(hours, text):
    assert words.core_hours(hours) == text


def test_a_calibration_says_its_floor_and_for_which_cell():
    assert words.calibration(Calibration()) == "not calibrated"
    plain = words.calibration(Calibration(factor=3.2, n=12))
    assert plain == (
        "σ × 3.2, from 12 unseen labels, meant to cover 90\u202f%, "
        "by the luck of so few labels 74\u202f% to 99\u202f%"
    )
    full = words.calibration(
        Calibration(factor=3.2, floor_eV_A=0.0182, n=1, n_atoms=8, measured=0.75)
    )
    assert full.startswith("√((σ × 3.2)² + 0.018²) eV/Å, from 1 unseen label,")
    assert "worst of 8 atoms" in full
    assert full.endswith("covered 75\u202f% of the next ones")
