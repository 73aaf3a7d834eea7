"""How much arithmetic learning takes: multiplications, with divisions and square roots counted as one each.

Only what grows with the number of weights is counted: additions come with the multiplications, and a cell's own
functions are O(n). Nothing here says how fast it is done: batches use a processor better than single bins.
"""

from __future__ import annotations

from bci_adapt.errors import InputError
from bci_adapt.learning.cells.base import Network
from bci_adapt.learning.credit.base import CreditRule

_RMSPROP, _ADAM, _AVERAGE = 6, 10, 1  # per weight and update, as `bci_adapt.learning.optimizers` writes them down


def prediction(network: Network) -> int:
    """Of one bin: every weight once."""
    return network.n_parameters


def _propagation(network: Network) -> tuple[int, int]:
    """Of an error through one bin: to the state before it, and inside it (to v, for cells with a second stage)."""
    reads = [part for _, part, _ in network.columns()]
    return (reads.count("h") * network.n_hidden**2, reads.count("v") * network.n_hidden**2)


def lesson(network: Network, rule: CreditRule) -> int:
    """Of one label, learned by RMSprop.

    Raises
    ------
    InputError
        for a rule other than ``immediate`` and ``window``.
    """
    if rule.name not in ("immediate", "window"):
        raise InputError(f"arithmetic: counted for the rules immediate and window, got {rule.name!r}")
    steps, recurrent = rule.history + 1, network.n_hidden * network.row_width
    again = steps * recurrent + network.n_outputs * network.readout_width if rule.name == "window" else 0
    earlier, within = _propagation(network)
    feedback = network.n_outputs * (network.readout_width + len(network.cell.features) * network.n_hidden)
    back = (steps - 1) * earlier + steps * (within + recurrent) + feedback
    return again + back + _RMSPROP * network.n_parameters


def online(
    network: Network,
    rule: CreditRule,
    *,
    n_members: int = 1,
    averages: bool = False,
    take_turns: bool = False,
    learn_every: int = 1,
) -> float:
    """Of a bin with its label, on average: predicted by every member – by the averaged weights and by those that learn,
    where an average is kept – and learned by one or all of them. The arguments are those of `OnlineDecoder`.
    """
    learned = lesson(network, rule) + (_AVERAGE * network.n_parameters if averages else 0)
    taught = (1 if take_turns else n_members) / learn_every
    return n_members * (2 if averages else 1) * prediction(network) + taught * learned


def fine_tuning(network: Network, *, n_members: int = 1, batch: int = 16, window_bins: int = 80) -> int:
    """Of one gradient step of BPTT over a batch of windows by Adam, for every member."""
    earlier, within = _propagation(network)
    feedback = network.n_outputs * (network.readout_width + len(network.cell.features) * network.n_hidden)
    per_bin = prediction(network) + earlier + within + network.n_hidden * network.row_width + feedback
    return n_members * (batch * window_bins * per_bin + _ADAM * network.n_parameters)
