"""The Wiener filter: ridge regression on lagged rates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from bci_adapt.decoders.inputs import Bins
from bci_adapt.decoders.lags import LaggedDecoder, NormalEquations


class WienerDecoder(LaggedDecoder):
    """Ridge on the last bins of normalised square-root counts (Wiener 1949; Serruya et al. 2002). It does not learn
    online: while it "adapts", only its normaliser runs.

    Parameters
    ----------
    n_lags : bins of history, the newest included.
    penalty : ridge penalty per bin (features have unit variance).
    normaliser_s : time constant of the running statistics in seconds; None keeps those of the last training session.
    bin_s : bin width in seconds; None: that of the sessions it is fitted on, of plain arrays 0.05.
    missing : what happens to a session whose channels are not the decoder's: ``refuse``, or ``zero``, by which those it
        lacks count as silent and others are left out.
    """

    name: ClassVar[str] = "wiener"
    description: ClassVar[str] = "ridge on lagged square-root counts"
    examples: ClassVar[Mapping[str, Mapping[str, Any]]] = {"": {"n_lags": 3}}

    def __init__(
        self,
        n_lags: int = 10,
        penalty: float = 0.05,
        normaliser_s: float | None = 300.0,
        bin_s: float | None = None,
        missing: str = "refuse",
    ):
        self.n_lags = n_lags
        self.penalty = penalty
        self.normaliser_s = normaliser_s
        self.bin_s = bin_s
        self.missing = missing

    def _fit(self, sessions: Sequence[Bins]) -> None:
        equations = NormalEquations()
        for features, labels in self._blocks(sessions):
            equations.add(features, labels)
        self.coef_, _ = equations.solve(self.penalty)

    @property
    def learns_online(self) -> bool:
        return False

    def _partial_fit(self, bins: Bins, arrives: Any) -> np.ndarray:
        features, running, past = self._features(bins, continuing=True)
        self._go_on(running, past)
        return features @ self.coef_
