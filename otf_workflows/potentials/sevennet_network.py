"""SevenNet's network: its shipped weights, and a forward pass that leaves forces to us.

The modules are sevenn's own, called in its order. Its last step, which differentiates the energy,
is left out: one derivative by the bond vectors gives forces, stress and uncertainty heads alike.

Architecture: Park et al., J. Chem. Theory Comput. 20, 4857 (2024); several levels of theory in one
network: Kim et al., J. Am. Chem. Soc. 147, 1042 (2025).
"""

from __future__ import annotations

import copy
import importlib
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from otf_workflows.errors import InputError
from otf_workflows.potentials.chgnet_graph import build_graph as build_bonds
from otf_workflows.potentials.heads import Output

if TYPE_CHECKING:
    from ase import Atoms
    from sevenn.nn.sequential import AtomGraphSequential
    from torch import Tensor

    from otf_workflows.potentials.chgnet_graph import Graph

CHECKPOINTS: dict[str, tuple[str, str | None]] = {
    "sevennet-0": ("SevenNet_0__11Jul2024/checkpoint_sevennet_0.pth", None),
    "sevennet-0-may2024": ("SevenNet_0__22May2024/checkpoint_sevennet_0.pth", None),
    "sevennet-l3i5": ("SevenNet_l3i5/checkpoint_l3i5.pth", None),
    "sevennet-mf-pbe": ("SevenNet_MF_0/checkpoint_sevennet_mf_0.pth", "PBE"),
    "sevennet-mf-r2scan": ("SevenNet_MF_0/checkpoint_sevennet_mf_0.pth", "R2SCAN"),
}
"""File in the sevenn package, and the level of theory to ask the network for."""

READOUT, LAST, RESCALE = (
    "reduce_input_to_hidden",
    "reduce_hidden_to_energy",
    "rescale_atomic_energy",
)

MOST_LAYERS = 20
"""No SevenNet has more convolutions."""


@dataclass(frozen=True)
class Network:
    """A SevenNet network with what is needed to build it again.

    Attributes
    ----------
    module
        sevenn's module.
    config
        Plain values that define its architecture.
    modality
        Level of theory of a network that knows several, as it is called there.
    """

    module: AtomGraphSequential
    config: dict[str, Any]
    modality: str | None

    @property
    def cutoff_A(self) -> float:
        """Longest bond (Å)."""
        return float(self.config["cutoff"])

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.module.parameters()).device

    @property
    def n_features(self) -> int:
        """Number of latent features of an atom."""
        return self._layer(READOUT)._irreps_in_wo_modal.dim  # noqa: SLF001 - no public name

    def copy(self) -> Network:
        """Return the same weights in a module of their own, gradients off."""
        return build(self.config, self.module.state_dict(), self.modality).to(self.device)

    def to(self, device: torch.device | str) -> Network:
        """Move the weights and return this network."""
        self.module.to(device)
        return self

    def types(self, graph: Graph) -> Tensor:
        """Return the row of each atom's element in tables of the network."""
        return self.module.z_to_onehot_tensor[torch.as_tensor(graph.numbers)].to(self.device)

    def last_weights(self) -> Tensor:
        """Return what maps hidden features to energy, e3nn's normalisation included, (d,)."""
        layer = self._layer(LAST).linear
        unit = torch.eye(layer.irreps_in.dim, device=self.device, dtype=layer.weight.dtype)
        return layer(unit)[:, 0].detach()

    def scales(self, graph: Graph) -> Tensor:
        """Return the factor on the energy of each atom, shape (n,)."""
        return _per_atom(self._layer(RESCALE).scale, self.types(graph))

    def reference_energies_eV(self, graph: Graph) -> Tensor:
        """Return the sum of elemental reference energies of each structure (eV, float64)."""
        rows = self.shift_rows()[self.types(graph)].double().cpu()
        owners = torch.as_tensor(graph.owners)
        return torch.zeros(graph.n_structures, dtype=torch.float64).index_add(0, owners, rows)

    def shift_rows(self) -> Tensor:
        """Return the reference energies of all elements; a view that can be written to."""
        shift = self._layer(RESCALE).shift.detach()
        if shift.dim() == 1:
            return shift
        return shift[self.module.modal_map[self.modality]]

    def _layer(self, name: str) -> Any:
        return self.module._modules[name]  # noqa: SLF001 - its __getattr__ does not know them


def forward(network: Network, graph: Graph, vectors_A: Tensor) -> Output:
    """Return site energies and the features behind them.

    Differentiable by ``vectors_A`` and by the weights, twice.

    Parameters
    ----------
    network
        What to evaluate.
    graph
        One structure or several, without angles.
    vectors_A
        ``graph.vectors_A`` as a tensor on the device of the network.
    """
    module, device = network.module, network.device

    def index(array: np.ndarray) -> Tensor:
        return torch.as_tensor(array, device=device)

    vectors = vectors_A.to(next(module.parameters()).dtype)
    first, second = index(graph.first), index(graph.second)
    data: dict[str, Any] = {
        "edge_vec": torch.cat([vectors, -vectors]),
        # the centre of an edge, then its neighbour
        "edge_index": torch.stack([torch.cat([first, second]), torch.cat([second, first])]),
        "x": network.types(graph),
        "batch": index(graph.owners),
    }
    if network.modality is not None:
        level = module.modal_map[network.modality]
        data["modal_type"] = torch.full((graph.n_structures,), level, device=device)
    kept = {}
    for name, layer in module._modules.items():  # noqa: SLF001 - named_children would copy
        if name == RESCALE:
            break
        if name in {READOUT, LAST}:
            kept[name] = data["x"]
        data = layer(data)
    scales = network.scales(graph)
    return Output(
        site_energies_eV=data["scaled_atomic_energy"][:, 0] * scales,
        features=kept[READOUT],
        hidden=kept[LAST] * scales[:, None],
    )


def build_graph(network: Network, atoms: Atoms) -> Graph:
    """Return the bonds of one structure; there are no angles.

    Raises
    ------
    InputError
        If there is no cell.
    PotentialError
        If positions are not finite, or an atom has no neighbour.
    """
    return build_bonds(atoms, cutoff_A=network.cutoff_A, bond_cutoff_A=0.0)


def shipped(name: str) -> Network:
    """Return a network with weights of the sevenn package.

    The files are pickles that hold arrays beside tensors. They are read with exactly the classes
    that arrays need, and nothing else in them can run.
    """
    from sevenn._const import model_defaults
    from sevenn.scripts.backward_compatibility import patch_old_config, patch_state_dict_if_old

    file, modality = CHECKPOINTS[name]
    multiarray: Any = importlib.import_module("numpy._core.multiarray")
    arrays: list[Any] = [
        (multiarray._reconstruct, "numpy.core.multiarray._reconstruct"),  # noqa: SLF001
        np.ndarray,
        np.dtype,
        type(np.dtype(np.float32)),
        type(np.dtype(np.float64)),
    ]
    with torch.serialization.safe_globals(arrays):
        saved = torch.load(folder() / file, map_location="cpu", weights_only=True)
    old = saved["config"]
    known = dict(model_defaults(copy.deepcopy(old)))
    config = {**known, **patch_old_config(copy.deepcopy(old))}
    config = {key: _plain(config[key]) for key in [*known, *_EXTRA_KEYS] if key in config}
    module = _module(config)
    weights = patch_state_dict_if_old(saved["model_state_dict"], old, module)
    module.load_state_dict(weights)
    return Network(module.eval().requires_grad_(False), config, modality)


def folder() -> Path:
    """Return the folder of the weights that the sevenn package ships."""
    import sevenn

    return Path(str(sevenn.__file__)).parent / "pretrained_potentials"


def build(config: dict[str, Any], weights: dict[str, Tensor], modality: str | None) -> Network:
    """Return a frozen network with these weights."""
    module = _module(config)
    module.load_state_dict(weights)
    return Network(module.eval().requires_grad_(False), config, modality)


def random(network: Network, *, seed: int) -> Network:
    """Return a network of the same architecture with random weights; reference energies are 0."""
    module = _module(network.config, seed=seed)
    for name, value in network.module.state_dict().items():
        if name.endswith(".denominator") or name == f"{RESCALE}.scale":
            module.state_dict()[name].copy_(value)  # numbers of neighbours and the unit of energy
    module.state_dict()[f"{RESCALE}.shift"].zero_()
    return Network(module.eval(), network.config, network.modality).to(network.device)


_EXTRA_KEYS = (
    "_number_of_species",
    "_type_map",
    "_number_of_modalities",
    "_modal_map",
    "use_modality",
    "use_modal_wise_shift",
    "use_modal_wise_scale",
    "shift",
    "scale",
)
"""Values of an architecture that sevenn has no defaults for."""


def _module(config: dict[str, Any], *, seed: int = 0) -> AtomGraphSequential:
    from sevenn.model_build import build_E3_equivariant_model

    if config["readout_as_fcn"]:
        raise InputError("This SevenNet has a readout that is not linear, which is not supported.")
    # the constructor warns of torch's own future, and draws from the random stream of the caller
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        return build_E3_equivariant_model(copy.deepcopy(config))


def _plain(value: Any) -> Any:
    """Return a value without arrays, which a blob may not hold."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic | torch.Tensor):
        return value.tolist()
    return value


def _per_atom(table: Tensor, types: Tensor) -> Tensor:
    table = table.detach()
    return table.expand(len(types)) if table.numel() == 1 else table[types]
