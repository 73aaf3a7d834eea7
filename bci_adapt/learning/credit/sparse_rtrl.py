"""RTRL along a few paths per unit."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from bci_adapt.errors import InputError
from bci_adapt.learning.credit.rtrl import RTRL


@dataclass(frozen=True)
class SparseRTRL(RTRL):
    """J ← (M ⊙ D) J + P: influence reaches a unit through itself and k − 1 other units, drawn at random (arXiv
    2603.15195: 4 of 64 paths).

    Which ones is drawn from the replica's generator: one draw for all slots and the whole run, resets included. k = n
    is RTRL; k = 1 is SnAp-1, but where a second stage lets a weight reach other units within the bin: those effects are
    kept here. O(k · n · parameters) per record in place of RTRL's n² · parameters, and RTRL's memory: after a few
    records a weight has an effect on nearly every unit. To save memory too, J itself is masked, as SnAp-n does (Menick
    et al. 2021).

    Parameters
    ----------
    paths : k, units through which influence reaches each unit, itself included; all where there are no more.
    """

    name: ClassVar[str] = "sparse_rtrl"
    description: ClassVar[str] = "J ← (M ⊙ D) J + P, M random: k of n paths into each unit (arXiv 2603.15195)"
    paths: int = 4

    def __post_init__(self):
        super().__post_init__()
        if self.paths < 1:
            raise InputError(f"sparse_rtrl: paths must be at least 1 (a unit's own), got {self.paths}")

    @classmethod
    def example(cls):
        return cls(2)

    def constants(self, network):
        return np.array([float(self.paths)])

    def work_shapes(self, network):
        n = network.n_hidden
        return (*super().work_shapes(network)[:-1], (n, len(network.cell.slots) * min(self.paths, n)))

    def make_select(self, tools):
        scramble = tools.scramble

        def select(D, sources, n, constants, generator):
            x, slots = generator[0], D.shape[1] // n
            for i in range(n):
                # Selection sampling (Knuth, algorithm S): a unit is followed with probability wanted / left.
                wanted, left, found = constants[0] - 1.0, n - 1.0, 0
                for unit in range(n):
                    followed = unit == i
                    if unit != i:
                        x = scramble(x)
                        followed = left * np.float64(x >> np.uint64(11)) < wanted * 2.0**53
                        left -= 1.0
                        wanted -= 1.0 if followed else 0.0
                    for slot in range(slots):
                        if followed:
                            sources[i, found] = slot * n + unit
                            found += 1
                        else:
                            for k in range(slots):
                                D[k * n + i, slot * n + unit] = 0.0

        return select

    def make_product(self):
        def product(D, sources, old, panel):
            states, n = D.shape[1], sources.shape[0]
            for row in range(states + 1):
                target = panel[row]
                for j in range(target.shape[0]):
                    target[j] = 0.0
                # The last row, qᵀD, has entries everywhere.
                for p in range(sources.shape[1] if row < states else states):
                    column = int(sources[row % n, p]) if row < states else p
                    factor = D[row, column]
                    if factor != 0.0:
                        source = old[column]
                        for j in range(target.shape[0]):
                            target[j] += factor * source[j]

        return product

    def torch_counterpart(self, network):
        import torch

        from bci_adapt.learning.backends.torch_credit import scrambled

        class Paths(super().torch_counterpart(network)):
            """M ⊙ D in place of D."""

            def unpack(self, memory, processed):
                super().unpack(memory, processed)
                self.kept = self._kept()

            def _kept(self):
                """M (S, k n, k n): the unit itself and others by selection sampling."""
                kept = torch.zeros(len(self.generator), self.n, self.n, dtype=torch.float64)
                for s, x in enumerate(self.generator):
                    for unit in range(self.n):
                        wanted = self.rule.paths - 1
                        for left, other in enumerate((j for j in range(self.n) if j != unit), start=1):
                            x = scrambled(x)
                            if (self.n - left) * (x >> 11) < wanted << 53:
                                kept[s, unit, other] = 1.0
                                wanted -= 1
                        kept[s, unit, unit] = 1.0
                return kept.repeat(1, self.k, self.k).to(self.device)

            def carried(self, A):
                return (A * self.kept) @ self.memory

        return Paths
