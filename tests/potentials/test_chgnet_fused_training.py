import copy
import gc
import weakref

import pytest
import torch
from ase.build import bulk

from otf_workflows.potentials import chgnet_forward as net
from otf_workflows.potentials import chgnet_fused_training as fused_training
from otf_workflows.potentials import load_potential
from otf_workflows.potentials.chgnet_graph import join
from otf_workflows.potentials.chgnet_training import TrainableCHGNet


def rattled(atoms, *, seed):
    atoms = atoms.copy()
    atoms.rattle(0.08, seed=seed)
    return atoms


def alloy():
    atoms = bulk("Cu", a=3.75, cubic=True) * (2, 2, 1)
    atoms.numbers[::2] = 79
    return rattled(atoms, seed=4)


STRUCTURES = {
    "silicon": [rattled(bulk("Si", a=5.43, cubic=True) * 2, seed=1)],
    "salt": [rattled(bulk("LiCl", "rocksalt", a=5.13, cubic=True), seed=2)],
    "alloy": [alloy()],
    "straight angles": [bulk("LiCl", "rocksalt", a=5.13, cubic=True)],
    "no angles": [rattled(bulk("Ne", a=4.4, cubic=True), seed=3)],
}
STRUCTURES["batch"] = [
    atoms for name in ("salt", "alloy", "no angles") for atoms in STRUCTURES[name]
]


@pytest.fixture(scope="module", params=["chgnet-0.3.0", "chgnet-0.2.0"])
def trainable(request):
    return load_potential(request.param).trainable()


def graph_of(trainable, name):
    return join([trainable.build_graph(atoms) for atoms in STRUCTURES[name]])


def by_autograd(model, graph):
    vectors = torch.as_tensor(graph.vectors_A).requires_grad_()
    sites = net.forward(model, graph, vectors).site_energies_eV
    return sites, *torch.autograd.grad(sites.sum(), vectors, create_graph=True)


def gradients(model, graph, sites, slopes, *, seed=0):
    """Return derivatives of a random function of sites and slopes by each weight."""
    generator = torch.Generator().manual_seed(seed)
    by_sites = torch.randn(len(graph.numbers), generator=generator)
    by_slopes = torch.randn(len(graph.first), 3, generator=generator, dtype=torch.float64)
    model.zero_grad(set_to_none=True)
    ((by_sites * sites).sum() + (by_slopes * slopes).sum()).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def flat(found):
    return torch.cat([value.double().flatten() for value in found.values()])


@pytest.mark.parametrize("name", STRUCTURES)
def test_the_gradient_by_all_weights_is_that_of_double_backward(trainable, name):
    graph, model = graph_of(trainable, name), trainable.network
    double = copy.deepcopy(model).double()
    expected = gradients(double, graph, *by_autograd(double, graph))
    found = gradients(model, graph, *trainable.evaluate(graph, differentiable=True))
    assert set(found) == set(expected)
    for weight, value in found.items():
        error = (value - expected[weight]).norm()
        # a derivative of nearly nothing may be all rounding, beside the others it is no error
        assert error <= 5e-4 * expected[weight].norm() + 1e-6 * flat(expected).norm(), weight
    one, other = flat(found), flat(expected)
    assert (one - other).norm() <= 5e-5 * other.norm()
    assert torch.dot(one, other) / (one.norm() * other.norm()) >= 1 - 1e-8


@pytest.mark.parametrize("kind", [0, 1], ids=["energies", "slopes"])
def test_either_alone_has_gradients(trainable, kind):
    graph, model = graph_of(trainable, "salt"), trainable.network
    found = []
    for way in (trainable.evaluate(graph, differentiable=True), by_autograd(model, graph)):
        model.zero_grad(set_to_none=True)
        (way[kind] ** 2).sum().backward()
        found.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    ours, expected = found
    # a shift of all energies has no slope: zero here, left out by autograd
    ours = {name: value for name, value in ours.items() if name in expected or value.any()}
    torch.testing.assert_close(flat(ours), flat(expected), rtol=1e-3, atol=1e-3)


def test_what_is_told_is_the_same_with_and_without_gradients(trainable):
    graph = graph_of(trainable, "batch")
    told = trainable.evaluate(graph, differentiable=False)
    for plain, trained in zip(told, trainable.evaluate(graph, differentiable=True), strict=True):
        assert trained.requires_grad
        assert not plain.requires_grad
        assert torch.equal(plain, trained)


def test_the_same_gradient_twice_is_the_same_bits(trainable):
    graph, model = graph_of(trainable, "batch"), trainable.network
    one, other = (
        gradients(model, graph, *trainable.evaluate(graph, differentiable=True)) for _ in range(2)
    )
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_a_step_leaves_nothing_to_the_garbage_collector(trainable, monkeypatch):
    made = []

    class Watched(fused_training._Passes):
        def __init__(self, *args):
            super().__init__(*args)
            made.append(weakref.ref(self))

    monkeypatch.setattr(fused_training, "_Passes", Watched)
    graph, model = graph_of(trainable, "salt"), trainable.network
    gc.disable()
    try:
        gradients(model, graph, *trainable.evaluate(graph, differentiable=True))
        (passes,) = made
        assert passes() is None
    finally:
        gc.enable()


def test_a_weight_that_is_not_trained_gets_no_gradient(trainable):
    graph = graph_of(trainable, "salt")
    frozen = TrainableCHGNet(trainable.network, name=trainable.name)
    still = [name for name, _ in frozen.network.named_parameters() if "bond" in name]
    for name in still:
        frozen.network.get_parameter(name).requires_grad_(False)
    found = gradients(frozen.network, graph, *frozen.evaluate(graph, differentiable=True))
    every = gradients(trainable.network, graph, *trainable.evaluate(graph, differentiable=True))
    assert set(found) == {name for name in every if name not in still}
    assert all(torch.equal(value, every[name]) for name, value in found.items())


def test_double_precision_is_left_to_autograd(trainable, monkeypatch):
    double = TrainableCHGNet(copy.deepcopy(trainable.network).double(), name=trainable.name)
    monkeypatch.setattr(fused_training, "evaluate", None)
    graph = graph_of(double, "salt")
    found = gradients(double.network, graph, *double.evaluate(graph, differentiable=True))
    expected = gradients(double.network, graph, *by_autograd(double.network, graph))
    torch.testing.assert_close(flat(found), flat(expected), rtol=1e-10, atol=1e-10)
