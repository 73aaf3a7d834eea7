r"""What a cell is: the cut that makes cells, credit rules and optimisers independent of one another.

At every bin a cell forms gate pre-activations that are affine in one vector,

    z_t = [v_t | x_t | 1 | h_{t-1}],      a_g = W_g z_t[block of g]      (n_hidden,) per gate g,

and then updates its state elementwise, ``s_t = f(a, s_{t-1})``, on (n_slots, n_hidden). Slot 0 is the ``h`` that the
gates read. ``v`` is there only for cells with a *second stage* (the textbook GRU, whose candidate reads r ⊙ h): first
the gates that do not read v, then ``v = ρ(a, s_{t-1})``, elementwise too, then the gates that do. The weights of unit i
are row i of one matrix ``W (n_hidden, row_width)``, its gates side by side, so that a credit rule and an optimiser can
work row by row. The readout is ``y_t = C [s_t[features] | 1 | x_t if skip]``.

A cell writes ``f`` (and ``ρ``) and their elementwise partial derivatives once, over an array namespace (``numpy`` –
then compiled – or ``torch``); the tests hold the partials to autograd of the same source.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from bci_adapt.ground.catalog import pick, variants

_CONTIGUOUS = ("x", "x1", "x1h", "1", "1h", "h", "v", "vx", "vx1")


@dataclass(frozen=True)
class Gate:
    """One affine gate.

    Parameters
    ----------
    name : name of the gate in the cell's equations.
    reads : the contiguous part of z it reads: one of ``x, x1, x1h, 1, 1h, h`` or, after the second stage,
        ``v, vx, vx1``. A gate that reads only the ``1`` is one parameter per unit.
    initial : initial value of its bias, where it reads the ``1``; with ``spread`` = (low, high) it is drawn uniformly
        between the two instead.
    scale : factor on its other initial weights.
    group : weight group of its bias, where that is not a bias but, say, a unit's own recurrent weight.
    """

    name: str
    reads: str
    initial: float = 0.0
    spread: tuple[float, float] | None = None
    scale: float = 1.0
    group: str = "bias"

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
    gates : its gates, in the order in which ``update`` sees their pre-activations; those that read v come last.
    make : ``make(xp) -> (update, partials)`` over the array namespace xp. ``update(a, s)`` takes n_gates activations
        and n_slots states – numbers of one unit where it is compiled, whole tensors in torch – and returns a tuple of
        n_slots new states; ``partials(a, s, new)`` returns ``(da, ds)`` with ``da[k][g]`` = ∂s'_k/∂a_g and
        ``ds[k][j]`` = ∂s'_k/∂s_j.
    equations : the update in one line, for ``bci-adapt list cells``.
    output_bypass : whether the input reaches the output at a fixed state: through a skip or an output gate.
    nonlinear_state : whether the state update is nonlinear in the state. The tests derive both flags from Jacobians.
    features : the slots that the readout sees.
    skip : whether the readout also sees the input directly.
    make_mid : ``make_mid(xp) -> (mid, mid_partials)`` of the second stage: ``mid(a, s)`` returns v, ``mid_partials``
        returns ``(va, vs)`` with ``va[g]`` = ∂v/∂a_g (0 for gates that read v) and ``vs[j]`` = ∂v/∂s_j.
    """

    name: str
    slots: tuple[str, ...]
    gates: tuple[Gate, ...]
    make: Callable[[Any], tuple[Callable, Callable]]
    equations: str
    output_bypass: bool
    nonlinear_state: bool
    features: tuple[int, ...] = (0,)
    skip: bool = False
    make_mid: Callable[[Any], tuple[Callable, Callable]] | None = None

    def __post_init__(self):
        after = [gate.reads.startswith("v") for gate in self.gates]
        if after != sorted(after) or any(after) != (self.make_mid is not None):
            raise ValueError(f"cell {self.name!r}: gates that read v come last, and need make_mid (and it them)")

    @property
    def description(self) -> str:
        """What ``bci-adapt list`` shows."""
        flags = {"output bypass": self.output_bypass, "linear in its state": not self.nonlinear_state}
        said = ", ".join(name for name, holds in flags.items() if holds)
        return self.equations + (f" [{said}]" if said else "")

    @property
    def n_first(self) -> int:
        """Gates of the first stage: those that do not read v."""
        return sum(not gate.reads.startswith("v") for gate in self.gates)


@dataclass(frozen=True)
class Network:
    """A cell with its sizes: shapes, block table and initial weights.

    Attributes
    ----------
    blocks : (n_gates, 5) int64: start in z, width, start in a row of W, and – where the gate reads h, or v – the offset
        of h, or v, inside its block, else −1.

    >>> from bci_adapt.learning.cells.base import cell
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
    def n_mid(self) -> int:
        """Width of v: n_hidden for cells with a second stage, else 0."""
        return self.n_hidden if self.cell.make_mid is not None else 0

    needs_torch: ClassVar[bool] = False

    @property
    def n_rows(self) -> int:
        """Rows of W: one per unit."""
        return self.n_hidden

    def memory_shape(self, rule: Any) -> tuple[int, ...]:
        """Shape of what a credit rule carries from record to record."""
        return rule.memory_shape(self)

    @property
    def z_width(self) -> int:
        return self.n_mid + self.n_inputs + 1 + self.n_hidden

    @property
    def _widths(self) -> dict[str, int]:
        return {"v": self.n_mid, "x": self.n_inputs, "1": 1, "h": self.n_hidden}

    @functools.cached_property
    def blocks(self) -> np.ndarray:
        width = self._widths
        start = {"v": 0, "x": self.n_mid, "1": self.n_mid + self.n_inputs, "h": self.n_mid + self.n_inputs + 1}
        table, row = [], 0
        for gate in self.cell.gates:
            total = sum(width[part] for part in gate.reads)
            h_offset = sum(width[part] for part in gate.reads[:-1]) if gate.reads.endswith("h") else -1
            table.append((start[gate.reads[0]], total, row, h_offset, 0 if gate.reads.startswith("v") else -1))
            row += total
        return np.array(table, dtype=np.int64)

    @property
    def row_width(self) -> int:
        return int(self.blocks[:, 1].sum())

    @property
    def readout_width(self) -> int:
        return len(self.cell.features) * self.n_hidden + 1 + (self.n_inputs if self.cell.skip else 0)

    @property
    def output_bias(self) -> int:
        """The constant's column of C."""
        return len(self.cell.features) * self.n_hidden

    @property
    def n_parameters(self) -> int:
        return self.n_hidden * self.row_width + self.n_outputs * self.readout_width

    def columns(self) -> list[tuple[Gate, str, slice]]:
        """Every part of a row of W: gate, what it reads (``v``, ``x``, ``1`` or ``h``) and its columns."""
        parts, at = [], 0
        for gate in self.cell.gates:
            for part in gate.reads:
                parts.append((gate, part, slice(at, at + self._widths[part])))
                at += self._widths[part]
        return parts

    def parts(self) -> np.ndarray:
        """First column and width (n_parts, 2) int64 of what is a matrix of its own in W: of a gate, what it reads."""
        return np.array([(where.start, where.stop - where.start) for _, _, where in self.columns()], np.int64)

    def readout_parts(self) -> np.ndarray:
        """The same of C: its features, the constant and, where it sees them, the inputs."""
        one, skipped = self.output_bias, self.readout_width - self.output_bias - 1
        parts = [(0, one), (one, 1), (one + 1, skipped)]
        return np.array(parts if skipped else parts[:2], np.int64)

    def groups(self) -> np.ndarray:
        """Group of every column of W (row_width,), as str: ``input``, ``bias`` or ``recurrent``."""
        out = np.empty(self.row_width, dtype="U9")
        for gate, part, where in self.columns():
            out[where] = {"x": "input", "1": gate.group, "h": "recurrent", "v": "recurrent"}[part]
        return out

    def initial_weights(self, seed: int | np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Return ``W (n_hidden, row_width)`` and ``C (n_outputs, readout_width)`` in float64.

        Input weights are Gaussian with variance 1/n_inputs, recurrent ones orthogonal (Saxe et al. 2014), biases as the
        gate says, the readout Gaussian with variance 1/n_hidden over its features and zero elsewhere.
        """
        rng = np.random.default_rng(seed)
        n, m = self.n_hidden, self.n_inputs
        W = np.zeros((n, self.row_width))
        for gate, part, where in self.columns():
            if part == "x":
                W[:, where] = gate.scale * rng.standard_normal((n, m)) / np.sqrt(m)
            elif part == "1":
                W[:, where] = gate.initial if gate.spread is None else rng.uniform(*gate.spread, (n, 1))
            else:
                q, r = np.linalg.qr(rng.standard_normal((n, n)))
                W[:, where] = gate.scale * q * np.sign(np.diag(r))
        C = np.zeros((self.n_outputs, self.readout_width))
        wide = len(self.cell.features) * n
        C[:, :wide] = rng.standard_normal((self.n_outputs, wide)) / np.sqrt(wide)
        return W, C


def cells() -> dict[str, Cell]:
    """Every cell, by name."""
    return variants("bci_adapt.learning.cells", Cell)


def cell(name: str) -> Cell:
    """The cell called `name`; `InputError` when there is none."""
    return pick("bci_adapt.learning.cells", Cell, name)
