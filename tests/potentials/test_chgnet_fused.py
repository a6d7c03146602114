import copy
import functools
import hashlib
import io

import numpy as np
import pytest
import torch
from ase.build import bulk

from otf_workflows.potentials import blobs, load_potential
from otf_workflows.potentials import chgnet_forward as net
from otf_workflows.potentials import chgnet_fused as fused
from otf_workflows.potentials.chgnet import CHGNetPotential
from otf_workflows.potentials.chgnet_graph import build_graph, join
from otf_workflows.potentials.heads import Differentiable


def rattled(atoms, *, seed):
    atoms = atoms.copy()
    atoms.rattle(0.08, seed=seed)
    return atoms


LICL = rattled(bulk("LiCl", "rocksalt", a=5.13, cubic=True), seed=1)
MGO = rattled(bulk("MgO", "rocksalt", a=4.21, cubic=True), seed=2)
NEON = rattled(bulk("Ne", a=4.4, cubic=True), seed=3)


@pytest.fixture(scope="module", params=["chgnet-0.3.0", "chgnet-0.2.0"])
def model(request):
    return load_potential(request.param).model


@pytest.fixture(scope="module")
def fitted():
    structures = [rattled(LICL, seed=k) for k in range(4)]
    labels = [p.forces_eV_A for p in load_potential("chgnet-r2scan").predict_many(structures)]
    return load_potential("chgnet-0.3.0").fit_uncertainty(structures, labels, seed=1)


def by_autograd(model, graph):
    """Return the pass that the fused one must equal, in double precision."""
    model = copy.deepcopy(model).double()
    forward = functools.partial(net.forward, model, graph)
    return Differentiable(forward, graph, device=torch.device("cpu"))


def graph_of(model, *structures):
    converter = model.graph_converter
    cutoffs = {
        "cutoff_A": converter.atom_graph_cutoff,
        "bond_cutoff_A": converter.bond_graph_cutoff,
    }
    return join([build_graph(atoms, **cutoffs) for atoms in structures])


@pytest.mark.parametrize("structures", [(LICL,), (LICL, MGO), (NEON,)], ids=["one", "two", "bonds"])
def test_energies_features_and_derivatives_are_those_of_autograd(model, structures):
    graph = graph_of(model, *structures)
    ours = fused.Forward(fused.Network(model), graph)
    exact = by_autograd(model, graph)
    for name in ("site_energies_eV", "features", "hidden"):
        expected = getattr(exact, name).detach()
        torch.testing.assert_close(getattr(ours, name).double(), expected, atol=1e-5, rtol=1e-5)
    changes = torch.randn(3, 64, generator=torch.manual_seed(1))
    torch.testing.assert_close(
        ours.slopes(changes), exact.slopes(changes.double()), atol=2e-5, rtol=1e-5
    )


def test_derivatives_together_are_those_one_by_one(model):
    changes = torch.randn(3, 64, generator=torch.manual_seed(2))
    output = fused.Forward(fused.Network(model), graph_of(model, LICL))
    together = output.slopes(changes)
    for row, change in zip(together, changes, strict=True):
        torch.testing.assert_close(row, output.slopes(change[None])[0], atol=1e-6, rtol=1e-5)


def test_the_size_of_blocks_does_not_matter(monkeypatch, model):
    graph = graph_of(model, MGO)
    network, changes = fused.Network(model), torch.ones(1, 64)
    whole = fused.Forward(network, graph)
    monkeypatch.setattr(fused, "ROWS_IN_CACHE", 62)
    cut = fused.Forward(network, graph)
    torch.testing.assert_close(cut.hidden, whole.hidden, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(cut.slopes(changes), whole.slopes(changes), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "change",
    [
        {"non_linearity": "gelu"},
        {"gMLP_norm": "batch"},
        {"bond_conv_hidden_dim": [32, 32]},
    ],
    ids=["activation", "norm", "layers"],
)
def test_other_networks_are_left_to_autograd(model, change):
    from chgnet.model import CHGNet

    assert fused.is_supported(model)
    other = CHGNet(**{**model.model_args, **change})
    assert not fused.is_supported(other)


@pytest.mark.parametrize(
    "change",
    [
        {"n_conv": 2},
        {"n_conv": 5, "atom_conv_hidden_dim": 32, "bond_conv_hidden_dim": 0},
        {"angle_fea_dim": 32, "bond_fea_dim": 48, "gMLP_norm": None, "mlp_out_bias": True},
    ],
    ids=["shallow", "deep, few hidden", "narrow, no norms"],
)
def test_sizes_other_than_those_of_shipped_models_are_handled(change):
    from chgnet.model import CHGNet

    shipped = load_potential("chgnet-0.3.0").model.model_args
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = CHGNet(**{**shipped, **change}).eval().requires_grad_(False)
    assert fused.is_supported(model)
    graph, changes = graph_of(model, LICL), torch.ones(1, 64)
    ours = fused.Forward(fused.Network(model), graph).slopes(changes)
    exact = by_autograd(model, graph).slopes(changes.double())
    torch.testing.assert_close(ours, exact, atol=2e-5, rtol=1e-5)


def test_sigma_after_forces_needs_no_second_forward_pass_and_changes_no_bit(monkeypatch, fitted):
    fresh = load_potential(fitted.name, fitted.dump())
    at_once = fresh.predict(LICL, uncertainty=True)
    forces = fitted.predict(LICL).forces_eV_A

    def refuse(*_args):
        raise AssertionError("a forward pass was made twice")

    monkeypatch.setattr(fused, "Forward", refuse)
    later = fitted.predict(LICL, uncertainty=True)
    assert (later.sigma_eV_A == at_once.sigma_eV_A).all()
    assert (later.forces_eV_A == forces).all()
    assert (at_once.forces_eV_A == forces).all()


def test_sigma_after_forces_of_several_structures_needs_no_second_forward_pass(monkeypatch, fitted):
    several = [LICL, MGO, rattled(LICL, seed=9)]
    fresh = load_potential(fitted.name, fitted.dump())
    at_once = fresh.predict_many(several, uncertainty=True)
    fitted.predict_many(several)
    real = fused.Forward
    passes = []
    monkeypatch.setattr(fused, "Forward", lambda *given: passes.append(1) or real(*given))
    later = fitted.predict_many(several, uncertainty=True)
    assert passes == []
    for one, other in zip(later, at_once, strict=True):
        assert (one.sigma_eV_A == other.sigma_eV_A).all()
    fitted.predict_many(several[::-1], uncertainty=True)
    assert passes == [1]


def test_nothing_is_reused_for_another_structure_or_other_weights(fitted):
    potential = load_potential(fitted.name, fitted.dump())
    before = potential.predict(LICL)
    moved = LICL.copy()
    moved.positions[0, 0] += 1e-9
    assert potential.predict(moved).energy_eV != before.energy_eV
    potential.predict(LICL)
    with torch.no_grad():
        potential.model.atom_conv_layers[0].twoBody_atom.mlp_core.layers[0].weight *= 1.01
    after = potential.predict(LICL)
    expected = CHGNetPotential(copy.deepcopy(potential.model), name=fitted.name).predict(LICL)
    assert after.energy_eV == expected.energy_eV != before.energy_eV


def test_a_model_from_before_directions_were_stored_uses_all_of_them(fitted):
    content = blobs.decode(fitted.dump(), family="chgnet")
    del content["spread"], content["force_share"]
    payload = io.BytesIO()
    torch.save(content, payload)
    written = payload.getvalue()
    # as such a file was written, byte by byte
    blob = b"otf-chgnet-1\n" + hashlib.sha256(written).digest() + written
    old = load_potential(fitted.name, blob)
    np.testing.assert_allclose(
        old.spread.T @ old.spread, fitted.spread.T @ fitted.spread, rtol=1e-6
    )
    # its σ stays what it was calibrated with
    sigma = old.predict(LICL, uncertainty=True).sigma_eV_A
    heads_alone = copy.copy(fitted)
    heads_alone.force_share = None
    expected = heads_alone.predict(LICL, uncertainty=True).sigma_eV_A
    np.testing.assert_allclose(expected, sigma, rtol=0.15)
