"""The error of a late label as today's weights make it (`CreditRule.fresh_error`)."""

from __future__ import annotations

from collections.abc import Callable

from bci_adapt.learning.cells.base import Network
from bci_adapt.learning.credit.base import Ring, Tools


def fresh_shapes(network: Network) -> tuple[tuple[int, ...], ...]:
    """Shapes of what is recomputed of a record – z, a, after, features, prediction – as a ring of one."""
    k, gates, n = len(network.cell.slots), len(network.cell.gates), network.n_hidden
    return (1, network.z_width), (1, gates, n), (1, k, n), (1, network.readout_width), (1, network.n_outputs)


def freshened(tools: Tools, prepare: Callable, row: Callable) -> tuple[Callable, Callable]:
    """The two functions of a rule, handed each record as today's weights make it in place of what the bin left behind.

    The record's bin is run again with the W and C of the moment, from its input and from the state before it as that
    was, into the last five arrays of `work` (`fresh_shapes`). The ring itself stays as it is.
    """
    forward, readout, copy = tools.forward, tools.readout, tools.copy
    given_prepare, given_row = tools.wrap(prepare), tools.wrap(row)

    def fresh_record(ring, slot, work):
        # A slice of one record of what is not recomputed; nobody asks when the label arrived.
        here = slice(slot, slot + 1)
        z, a, after, features, prediction = work[-5], work[-4], work[-3], work[-2], work[-1]
        return Ring(
            z, a, ring.before[here], after, features, prediction, ring.label[here], ring.weight[here], ring.arrives
        )

    fresh = tools.wrap(fresh_record)

    def prepare_fresh(net, ring, slot, first, last, constants, memory, generator, work, u, e, q):
        z, after = work[-5][0], work[-3][0]
        copy(z, ring.z[slot])
        forward(net, z, work[-4][0], ring.before[slot], after)
        readout(net, after, z, work[-2][0], work[-1][0])
        given_prepare(net, fresh(ring, slot, work), 0, first, last, constants, memory, generator, work, u, e, q)

    def row_fresh(i, net, ring, slot, last, constants, memory, work, q, g):
        given_row(i, net, fresh(ring, slot, work), 0, last, constants, memory, work, q, g)

    return prepare_fresh, row_fresh
