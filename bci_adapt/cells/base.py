r"""What a cell is: the cut that makes cells, credit rules and optimisers independent of one another.

At every bin a cell forms gate pre-activations that are affine in one vector,

    z_t = [x_t | 1 | h_{t-1}],      a_g = W_g z_t[block of g]      (n_hidden,) per gate g,

and then updates its state elementwise, ``s_t = f(a, s_{t-1})``, on (n_slots, n_hidden). Slot 0 is the ``h`` that the
gates read. The weights of unit i are row i of one matrix ``W (n_hidden, row_width)``, its gates side by side, so that
a credit rule and an optimiser can work row by row. The readout is ``y_t = C [s_t[feature] | 1 | x_t if skip]``.

A cell writes ``f`` and its elementwise partial derivatives once, over an array namespace (``numpy`` – then compiled –
or ``torch``); the tests hold the partials to autograd of the same source.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from bci_adapt.catalog import pick, variants

_CONTIGUOUS = ("x", "x1", "x1h", "1", "1h", "h")


@dataclass(frozen=True)
class Gate:
    """One affine gate.

    Parameters
    ----------
    name : name of the gate in the cell's equations.
    reads : the contiguous part of z it reads: one of ``x, x1, x1h, 1, 1h, h``.
    bias : initial value of its bias, where it reads the ``1``.
    """

    name: str
    reads: str
    bias: float = 0.0

    def __post_init__(self):
        if self.reads not in _CONTIGUOUS:
            raise ValueError(f"gate {self.name!r} must read one of {_CONTIGUOUS}, not {self.reads!r}")


@dataclass(frozen=True)
class Cell:
    """A recurrent cell.

    Parameters
    ----------
    name : its name in configs and on the command line.
    slots : names of the state slots; slot 0 is the h that the gates read.
    gates : its gates, in the order in which ``update`` sees their pre-activations.
    make : ``make(xp) -> (update, partials)`` over the array namespace xp. ``update(a, s)`` takes n_gates activations
        and n_slots states – numbers of one unit where it is compiled, whole tensors in torch – and returns a tuple of
        n_slots new states; ``partials(a, s, new)`` returns ``(da, ds)`` with ``da[k][g]`` = ∂s'_k/∂a_g and
        ``ds[k][j]`` = ∂s'_k/∂s_j.
    equations : the update in one line, for ``bci-adapt list cells``.
    feature : the slot that the readout sees.
    skip : whether the readout also sees the input directly.
    """

    name: str
    slots: tuple[str, ...]
    gates: tuple[Gate, ...]
    make: Callable[[Any], tuple[Callable, Callable]]
    equations: str
    feature: int = 0
    skip: bool = False

    @property
    def description(self) -> str:
        return self.equations


@dataclass(frozen=True)
class Network:
    """A cell with its sizes: shapes, block table and initial weights.

    Attributes
    ----------
    blocks : (n_gates, 4) int64: start in z, width, start in a row of W, and – where the gate reads h – the offset of h
        inside its block, else −1.

    >>> from bci_adapt.cells.base import cell
    >>> network = Network(cell("gru"), n_inputs=96, n_hidden=64, n_outputs=2)
    >>> network.row_width, network.n_parameters
    (484, 31106)
    """

    cell: Cell
    n_inputs: int
    n_hidden: int
    n_outputs: int

    def __post_init__(self):
        for name in ("n_inputs", "n_hidden", "n_outputs"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    @property
    def z_width(self) -> int:
        return self.n_inputs + 1 + self.n_hidden

    @property
    def blocks(self) -> np.ndarray:
        width = {"x": self.n_inputs, "1": 1, "h": self.n_hidden}
        start = {"x": 0, "1": self.n_inputs, "h": self.n_inputs + 1}
        table, row = [], 0
        for gate in self.cell.gates:
            total = sum(width[part] for part in gate.reads)
            h_offset = sum(width[part] for part in gate.reads[:-1]) if gate.reads.endswith("h") else -1
            table.append((start[gate.reads[0]], total, row, h_offset))
            row += total
        return np.array(table, dtype=np.int64)

    @property
    def row_width(self) -> int:
        return int(self.blocks[:, 1].sum())

    @property
    def readout_width(self) -> int:
        return self.n_hidden + 1 + (self.n_inputs if self.cell.skip else 0)

    @property
    def n_parameters(self) -> int:
        return self.n_hidden * self.row_width + self.n_outputs * self.readout_width

    def groups(self) -> np.ndarray:
        """Group of every column of W (row_width,), as str: ``input``, ``bias`` or ``recurrent``."""
        names = {"x": ("input", self.n_inputs), "1": ("bias", 1), "h": ("recurrent", self.n_hidden)}
        columns = [name for gate in self.cell.gates for name, count in map(names.get, gate.reads) for _ in range(count)]  # type: ignore[misc]
        return np.array(columns)

    def initial_weights(self, seed: int | np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Return ``W (n_hidden, row_width)`` and ``C (n_outputs, readout_width)`` in float64.

        Input weights are Gaussian with variance 1/n_inputs, recurrent ones orthogonal (Saxe et al. 2014), biases the
        gate's constant, the readout Gaussian with variance 1/n_hidden.
        """
        rng = np.random.default_rng(seed)
        W = np.zeros((self.n_hidden, self.row_width))
        for gate, (_, _, row, h_offset) in zip(self.cell.gates, self.blocks, strict=True):
            if "x" in gate.reads:
                W[:, row : row + self.n_inputs] = rng.standard_normal((self.n_hidden, self.n_inputs)) / np.sqrt(
                    self.n_inputs
                )
            if "1" in gate.reads:
                W[:, row + (self.n_inputs if "x" in gate.reads else 0)] = gate.bias
            if h_offset >= 0:
                q, r = np.linalg.qr(rng.standard_normal((self.n_hidden, self.n_hidden)))
                W[:, row + h_offset : row + h_offset + self.n_hidden] = q * np.sign(np.diag(r))
        C = np.zeros((self.n_outputs, self.readout_width))
        C[:, : self.n_hidden] = rng.standard_normal((self.n_outputs, self.n_hidden)) / np.sqrt(self.n_hidden)
        return W, C


def cells() -> dict[str, Cell]:
    """Every cell, by name."""
    return variants("bci_adapt.cells", Cell)


def cell(name: str) -> Cell:
    """The cell called `name`; `InputError` when there is none."""
    return pick("bci_adapt.cells", Cell, name)
