"""Figures fit into a strict, recolourable page."""

import re
from xml.etree import ElementTree as ET

import numpy as np
import pytest

from otf_workflows.report.figures import (
    MAX_LINE_POINTS,
    force_parity,
    sigma_limits,
    walker_uncertainty,
)
from otf_workflows.report.model import ParityTable
from otf_workflows.report.svg import INK
from otf_workflows.schemas import WalkerSegment
from otf_workflows.types import StopReason


def parity(n_frames: int) -> str:
    rng = np.random.default_rng(0)
    forces = rng.normal(size=(n_frames, 8, 3)).tolist()
    table = ParityTable(
        model_id="m",
        keys=["k"] * n_frames,
        forces_dft_eV_A=forces,
        forces_predicted_eV_A=forces,
        energies_dft_eV_atom=[0.0] * n_frames,
        energies_predicted_eV_atom=[0.0] * n_frames,
    )
    return force_parity(table, None, title="A < B & C", final=True, limit_eV_A=4.0)


def test_a_figure_is_xml_without_styles_and_with_ids_of_its_own():
    svg = parity(3)
    root = ET.fromstring(svg)  # noqa: S314  # our own
    assert root.tag == "svg"
    assert {"viewBox", "role", "aria-label"} <= set(root.attrib)
    assert "style" not in {k for e in root.iter() for k in e.attrib}
    assert not [e for e in root.iter() if e.tag in {"style", "metadata"}]
    ids = [e.attrib["id"] for e in root.iter() if "id" in e.attrib]
    assert all(identity.startswith("parity-after-") for identity in ids)
    used = re.findall(r'(?:href="#|url\(#)([^")]+)', svg)
    assert set(used) <= set(ids)


def test_text_stays_text_and_takes_the_colour_of_the_page():
    svg = parity(3)
    assert "DFT force component (eV/Å)" in svg
    assert 'fill="currentColor"' in svg
    assert INK not in svg


def test_many_points_become_pixels_and_stay_small():
    few, many = parity(3), parity(2000)
    assert "<image" not in few
    assert "data:image/png;base64" in many
    assert len(many) < 300_000


def test_the_same_data_give_the_same_figure():
    assert parity(3) == parity(3)


def test_long_walkers_are_thinned_but_keep_their_peak():
    sigmas = [0.05] * 1000
    sigmas[777] = 3.0
    segment = WalkerSegment(
        walker=0, temperature_K=300, model_id="m", first_step=0, n_steps=1000, n_steps_run=1000,
        n_checked=1000, n_above=1, stop_reason=StopReason.COMPLETED, steps=list(range(1000)),
        sigmas_eV_A=sigmas, seconds=1.0,
    )  # fmt: skip
    from otf_workflows.report.figures import _thin

    x, y = _thin(np.array(segment.steps), np.array(sigmas))
    assert len(x) <= MAX_LINE_POINTS
    assert y.max() == 3.0
    assert x[np.argmax(y)] == 777
    assert walker_uncertainty(
        [segment], cycle=0, tolerance_eV_A=0.1, timestep_fs=2.0, limits_eV_A=(0.01, 4.0)
    )


def test_a_perfect_crystal_at_the_start_does_not_stretch_the_axis():
    segment = WalkerSegment(
        walker=0, temperature_K=300, model_id="m", first_step=0, n_steps=10, n_steps_run=10,
        n_checked=2, n_above=1, stop_reason=StopReason.COMPLETED, steps=[0, 10],
        sigmas_eV_A=[1e-7, 0.4], seconds=1.0,
    )  # fmt: skip
    low, high = sigma_limits([segment], 0.1)
    assert low == pytest.approx(0.01)
    assert high == pytest.approx(0.5)


def test_without_data_there_is_no_figure():
    assert force_parity(None, None, title="", final=True, limit_eV_A=1.0) is None
    assert (
        walker_uncertainty([], cycle=0, tolerance_eV_A=0.1, timestep_fs=1.0, limits_eV_A=(1, 2))
        is None
    )
