r"""What a credit rule is, and the algebra that all of them share.

Notation (PROTOCOL: P is the immediate derivative, D the state Jacobian, J the influence matrix):
``da (k, G, n)`` = ∂s'/∂a, ``ds (k, k, n)`` = ∂s'/∂s, ``va (G, n)`` = ∂v/∂a and ``vs (k, n)`` = ∂v/∂s of a second stage,
``q (k, n)`` = ∂E/∂s', ``p (G, n)`` = ∂E/∂a.

A rule sees the network's past through *records*: what one bin left behind (input vector z, gate activations, states
before and after, prediction, label). Records wait in a ring until their label arrives; then the loop calls

    prepare(net, ring, slot, first, last, constants, memory, generator, work, u, e, q)   once per record, in order
    row(i, net, ring, slot, last, constants, memory, work, q, g)                         for every unit i

``prepare`` forms the readout's features u, the output error e and the state signal q; ``row`` advances the rule's
memory of unit i and writes the gradient of weight row i to g. Record number ``last`` lies at ring position ``slot``; no
record before ``first`` belongs to this stretch. At an unlabelled record e and q are zero, and the loop calls neither
function unless the rule ``advances`` its memory there.

*Own path.* In most cells a weight of unit i acts on unit i alone, so P has entries for each weight's own unit only.
With a second stage (`Cell.make_mid`) a first-stage weight reaches every unit through v. ``immediate``, ``window``,
``rtrl`` and ``uoro`` follow all of it. Rules with a trace per weight (``trace``, ``snap1``) keep a weight's effect on
its own unit – ``own`` gives ∂s'_i/∂a_i and ∂s'_i/∂s_i along every path – so there trace(0) is close to immediate and
not equal to it; ``rflo`` and ``eprop`` refuse such cells.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import numpy as np

from bci_adapt.errors import InputError
from bci_adapt.ground.catalog import pick, variants
from bci_adapt.learning.cells.base import Network

if TYPE_CHECKING:
    from bci_adapt.learning.backends.torch_credit import Credit

FEEDBACK = ("symmetric", "random")


class Net(NamedTuple):
    """The weights of one network, the matrix B that feeds errors back (C itself, or fixed random numbers in its place),
    and the block table, as kernels see them.
    """

    W: np.ndarray
    C: np.ndarray
    B: np.ndarray
    blocks: np.ndarray


class Ring(NamedTuple):
    """Records of one network, position r % length holding record r."""

    z: np.ndarray
    a: np.ndarray
    before: np.ndarray
    after: np.ndarray
    features: np.ndarray
    prediction: np.ndarray
    label: np.ndarray
    weight: np.ndarray
    arrives: np.ndarray


class Tools(NamedTuple):
    """Functions a rule may call, compiled or plain as the rule itself is going to be.

    ``forward(net, z, a, before, after)``, which is ``hear(net, z, a, i)`` – the first-stage activations of unit i – for
    every unit, then ``finish(net, z, a, before, after)``; ``partials(a, before, after, da, ds, va, vs)``;
    ``readout(net, after, z, u, y)``; ``error(prediction, label, weight, e)``; ``feed_back(net, e, q)``;
    ``recorded(net, ring, slot, u, e, q)``: error of the prediction as it was made, fed back through the readout as it
    is now; ``pull(net, q, da, va, p, r)``: p = ∂E/∂a and r (n,) = ∂E/∂v; ``back(net, p, r, q, ds, vs, earlier)``:
    earlier = Dᵀ q; ``jacobian(net, da, ds, va, vs, D)``: D (k n, k n) into the first rows of D; ``own(net, da, ds, va,
    vs, own_da, own_ds)``; ``scramble(x)``: the random uint64 after x. ``wrap`` is what compiles a part, for a rule that
    has parts of its own.
    """

    wrap: Callable
    hear: Callable
    finish: Callable
    forward: Callable
    partials: Callable
    readout: Callable
    error: Callable
    feed_back: Callable
    recorded: Callable
    pull: Callable
    back: Callable
    jacobian: Callable
    own: Callable
    scramble: Callable
    copy: Callable
    copy_states: Callable
    clear_states: Callable
    approach: Callable


def partial_shapes(network: Network) -> tuple[tuple[int, ...], ...]:
    """Shapes of da, ds, va, vs."""
    k, gates, n = len(network.cell.slots), len(network.cell.gates), network.n_hidden
    return (k, gates, n), (k, k, n), (gates, n), (k, n)


@dataclass(frozen=True)
class CreditRule(ABC):
    """Base of all credit rules; a frozen set of constants.

    Parameters
    ----------
    feedback : how the output error reaches the units: ``symmetric`` (through the readout's own weights) or ``random``
        (fixed random weights in their place, feedback alignment; Lillicrap et al. 2016).
    fresh_error : what a late label is held against. False: the prediction as it was made, and the activations and the
        state that led to it. True: the record's bin as today's weights make it, run again from its input and from the
        state before it as that was; its error and its immediate derivatives are those of today. What a rule carries
        along (a trace, J) is advanced by those derivatives and is otherwise as old as it is without. With a label at
        once, or at fixed weights, both are the same.
    """

    name: ClassVar[str]
    description: ClassVar[str]
    advances: ClassVar[bool] = False
    learns_recurrent: ClassVar[bool] = True
    # Whether a weight may act on other units than its own within a bin (cells with a second stage).
    needs_own_weights: ClassVar[bool] = False

    feedback: str = field(default="symmetric", kw_only=True)
    fresh_error: bool = field(default=False, kw_only=True)

    def __post_init__(self):
        if self.feedback not in FEEDBACK:
            raise InputError(f"{self.name}: feedback must be one of {FEEDBACK}, got {self.feedback!r}")
        if self.refreshes and self.history:
            raise InputError(
                f"{self.name}: fresh_error runs one bin again, and this rule reads {self.history} before it"
            )

    @classmethod
    def example(cls) -> CreditRule:
        """The rule as the exactness grid runs it, on networks of three or four units: constants that leave something to
        be wrong about.
        """
        return cls()

    @property
    def refreshes(self) -> bool:
        """Whether records are run again before the rule sees them (credit.fresh)."""
        return self.fresh_error

    def check(self, network: Network) -> None:
        """Raise `InputError` where the rule is not defined for this network."""
        if self.needs_own_weights and network.cell.make_mid is not None:
            raise InputError(
                f"{self.name} is not defined for {network.cell.name!r}: it needs weights that act on their own unit, "
                "and the gates before the second stage reach every unit; take immediate, snap1, window or rtrl"
            )

    def constants(self, network: Network) -> np.ndarray:
        """Constants as the kernel reads them, one flat array of float64."""
        return np.zeros(1)

    @property
    def history(self) -> int:
        """How many records before the labelled one the rule reads."""
        return 0

    def memory_shape(self, network: Network) -> tuple[int, ...]:
        """Shape of what the rule carries from record to record."""
        return (network.n_hidden, 0)

    def work_shapes(self, network: Network) -> tuple[tuple[int, ...], ...]:
        """Shapes of scratch arrays, meaningless between records."""
        return ((0,),)

    def scratch_shapes(self, network: Network) -> tuple[tuple[int, ...], ...]:
        """`work_shapes`, and what a record that is run again takes."""
        from bci_adapt.learning.credit.fresh import fresh_shapes

        return (*self.work_shapes(network), *(fresh_shapes(network) if self.refreshes else ()))

    @abstractmethod
    def make(self, tools: Tools) -> tuple[Callable, Callable]:
        """Return (prepare, row) in plain Python that also compiles."""

    def torch_counterpart(self, network: Network) -> type[Credit] | None:
        """The same rule in torch, derivatives by autograd, for `network`: what holds the kernel to its formula, and
        runs torch modules and accelerators. None where it has none: the torch backend then refuses it. Torch is
        imported inside, since a decoder that learns with kernels does without.
        """
        return None

    def influence(self, network: Network, memory: np.ndarray, last: int) -> np.ndarray:
        """The rule's estimate of J after record `last` as (n_slots, n_hidden, n_hidden, row_width): ∂s[k, j]/∂W[i, c]
        at [k, j, i, c]. Zero for a rule without memory; for inspection and tests.
        """
        k, n = len(network.cell.slots), network.n_hidden
        return np.zeros((k, n, n, network.row_width))


def rules() -> dict[str, type[CreditRule]]:
    """Every credit rule, by name."""
    return variants("bci_adapt.learning.credit", CreditRule)


def rule(name: str, **constants: float) -> CreditRule:
    """Build the rule called `name`; `InputError` when there is none."""
    return pick("bci_adapt.learning.credit", CreditRule, name, "rule")(**constants)
