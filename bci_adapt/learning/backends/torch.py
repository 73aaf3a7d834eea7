"""The loop in torch: a second implementation of every rule, any torch module as a cell, and accelerators.

Nothing is shared with the kernels but the layout of the arrays, so that a state can move between backends. Four rooms:
this loop, networks and their derivatives (`torch_network`), what credit rules share (`torch_credit`) and how gradients
move weights (`torch_optimizers`). The formula of a rule or an optimiser lies beside its kernel.

Everything is float64. Tensors have the replica axis S first: replicas are independent, so one pass back gives the
gradient of each. Time is a Python loop.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from bci_adapt.errors import InputError
from bci_adapt.learning.backends.loop import BIN, DROPPED, FIRST, PROCESSED, RECORDS, UPDATES, Stream
from bci_adapt.learning.backends.torch_credit import Net
from bci_adapt.learning.backends.torch_network import Gated, ModuleNetwork, Opaque
from bci_adapt.learning.backends.torch_optimizers import Descent
from bci_adapt.learning.learner import Learner


def run_loop(learner: Learner, arrays: dict[str, np.ndarray], stream: Stream, predictions: np.ndarray) -> None:
    """Run over every bin of `stream`, changing `arrays` (S, …) in place; predictions (S, T, M) are written.

    Where anything is raised, the arrays are as they were.

    Raises
    ------
    InputError
        for a device that is not there or has no float64.
    """
    timeline = arrays["counters"][:, [BIN, RECORDS, PROCESSED, FIRST]], arrays["ring_arrives"]
    if all((part == part[:1]).all() for part in timeline):
        loop = _Loop(learner, arrays)
        predictions[:] = loop.run(stream).cpu().numpy()
        loop.write(arrays)
        return
    # Replicas that were put together from runs of different length are run one after another.
    for s in range(len(predictions)):
        own = {name: array[s : s + 1] for name, array in arrays.items()}
        X, Y, weight = (array[min(s, len(array) - 1)][None] for array in stream[:3])
        run_loop(learner, own, stream._replace(X=X, Y=Y, weight=weight), predictions[s : s + 1])


def _device(name: str) -> torch.device:
    """The device called `name`; `InputError` where it is not there or cannot hold float64."""
    try:
        device = torch.device(name)
        torch.zeros(1, dtype=torch.float64, device=device)
    except (RuntimeError, TypeError, AssertionError) as error:
        raise InputError(f"device: cannot compute in float64 on {name!r}: {error}") from error
    return device


class _Loop:
    """The learner's arrays as tensors on its device, and one run over a stream."""

    def __init__(self, learner: Learner, arrays: Mapping[str, np.ndarray]):
        rule, network = learner.rule, learner.network
        self.learner, self.device = learner, _device(learner.device)
        kept = ("W", "C", "B", "opt_W", "opt_C", "opt_groups", "state", "output")
        kept += ("mean_W", "mean_C", "mean_state", "mean_output")
        self.now = {name: self._tensor(arrays[name]) for name in kept}
        ring = {name.removeprefix("ring_"): array for name, array in arrays.items() if name.startswith("ring_")}
        # When labels arrive and whether there are any steers the loop, and so stays where Python runs.
        self.arrives = ring.pop("arrives")[0].copy()
        self.labelled = np.asarray((ring["weight"] > 0.0).any(-1))
        self.ring = {name: self._tensor(array) for name, array in ring.items()}
        self.counters = arrays["counters"].copy()
        self.dynamics = Opaque(network) if isinstance(network, ModuleNetwork) else Gated(network)
        credit = rule.torch_counterpart(network)
        assert credit is not None  # `Learner` refuses a rule without one
        self.credit = credit(rule, network, learner.loss, self.dynamics, arrays, self.device)
        self.descent = Descent(learner, self.device)

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.tensor(array, dtype=torch.float64, device=self.device)

    def write(self, arrays: dict[str, np.ndarray]) -> None:
        """Write what has changed back into `arrays`."""
        changed = self.now | {f"ring_{name}": tensor for name, tensor in self.ring.items()}
        changed["memory"] = self.credit.packed(self.processed)
        for name, tensor in changed.items():
            arrays[name][...] = tensor.cpu().numpy()
        arrays["ring_arrives"][...] = self.arrives
        arrays["generator"][:, 0] = np.array(self.credit.generator, np.uint64)
        arrays["counters"][...] = self.counters

    @property
    def processed(self) -> int:
        return int(self.counters[0, PROCESSED])

    @property
    def records(self) -> int:
        return int(self.counters[0, RECORDS])

    def run(self, stream: Stream) -> Tensor:
        """Predictions (S, T, M)."""
        S, T = len(self.now["W"]), len(stream.observed)
        X, Y, weight = (self._tensor(array).expand(S, -1, -1) for array in stream[:3])
        labelled = np.asarray((stream.weight > 0.0).any(-1))
        arrives = stream.arrives + self.counters[0, BIN]
        predictions = X.new_empty(S, T, self.learner.network.n_outputs)
        shown = "output" if self.learner.average is None else "mean_output"
        for t in range(T):
            if stream.reset[t]:
                self._reset()
            if stream.observed[t]:
                slot = self.records % len(self.arrives)
                self._predict(slot, X[:, t])
                self.ring["label"][:, slot], self.ring["weight"][:, slot] = Y[:, t], weight[:, t]
                self.labelled[:, slot], self.arrives[slot] = labelled[:, t], arrives[t]
                self.counters[:, RECORDS] += 1
            predictions[:, t] = self.now[shown]
            for _ in range(self.learner.max_updates_per_bin):
                slot = self.processed % len(self.arrives)
                if self.processed == self.records or self.arrives[slot] > self.counters[0, BIN]:
                    break
                self._learn(self.processed, slot)
                self.counters[:, PROCESSED] += 1
            self.counters[:, BIN] += 1
        return predictions

    def _reset(self) -> None:
        """Begin a stretch: nothing that was felt, predicted or is waiting crosses into it."""
        for name in ("state", "mean_state", "output", "mean_output"):
            self.now[name] = torch.zeros_like(self.now[name])
        self.credit.clear()
        for record in range(self.processed, self.records):
            self.counters[:, DROPPED] += self.labelled[:, record % len(self.arrives)]
        self.counters[:, PROCESSED] = self.counters[:, FIRST] = self.records

    def _predict(self, slot: int, x: Tensor) -> None:
        """One bin of the network, recorded at `slot` of the ring, and of the averaged one."""
        now, ring = self.now, self.ring
        before = now["state"]
        now["state"], a, v = self.dynamics.step(now["W"], x, before[:, 0], before)
        u, now["output"] = self.credit.readout(now["C"], now["state"], x)
        z = torch.cat([v, x, torch.ones_like(x[:, :1]), before[:, 0]], -1)
        made = {"z": z, "a": a, "before": before, "after": now["state"], "features": u, "prediction": now["output"]}
        for name, value in made.items():
            ring[name][:, slot] = value
        if self.learner.average is not None:
            mean = now["mean_state"]
            now["mean_state"] = self.dynamics.step(now["mean_W"], x, mean[:, 0], mean)[0]
            now["mean_output"] = self.credit.readout(now["mean_C"], now["mean_state"], x)[1]

    def _learn(self, record: int, slot: int) -> None:
        """Work off one record; only replicas with a label of it, and readout rows with one, move."""
        labelled = self.labelled[:, slot]
        if not (labelled.any() or self.learner.rule.advances):
            return
        W, C, B = (self.now[name] for name in "WCB")
        net = Net(W, C, B if B.numel() else C)
        u, e, g = self.credit.learn(net, self.ring, int(self.counters[0, FIRST]), record, self.learner.learns_W)
        if not labelled.any():
            return
        self.counters[:, UPDATES] += labelled
        gradients = {"C": e[..., None] * u[:, None]}
        rows = {"C": self.ring["weight"][:, slot] > 0.0}
        here = torch.tensor(labelled, device=self.device)
        if g is not None:
            gradients["W"], rows["W"] = g, here[:, None].expand(-1, W.shape[1])
        self.descent.move(self.now, gradients, rows, self.counters[:, UPDATES].astype(float))
        if self.learner.average is not None:
            for name in gradients:
                mean = self.now[f"mean_{name}"]
                moved = mean + (1.0 - self.learner.average) * (self.now[name] - mean)
                self.now[f"mean_{name}"] = torch.where(here[:, None, None], moved, mean)
