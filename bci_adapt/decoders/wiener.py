"""The Wiener filter: ridge regression on lagged rates."""

from __future__ import annotations

from typing import ClassVar

from bci_adapt.decoders.lags import LaggedDecoder, ridge


class WienerDecoder(LaggedDecoder):
    """Ridge on the last bins of normalised square-root counts (Wiener 1949; Serruya et al. 2002). It does not learn
    online: while it "adapts", only its normaliser runs.

    Parameters
    ----------
    n_lags : bins of history, the newest included.
    penalty : ridge penalty per bin (features have unit variance).
    normaliser_s : time constant of the running statistics in seconds; None keeps those of the last training session.
    bin_s : bin width in seconds.
    """

    name: ClassVar[str] = "wiener"
    description: ClassVar[str] = "ridge on lagged square-root counts"

    def __init__(
        self, n_lags: int = 10, penalty: float = 0.05, normaliser_s: float | None = 300.0, bin_s: float = 0.05
    ):
        self.n_lags = n_lags
        self.penalty = penalty
        self.normaliser_s = normaliser_s
        self.bin_s = bin_s

    def fit(self, X, y, reset=None) -> WienerDecoder:
        self.coef_, _ = ridge(*self._training_features(self.training_doors(X, y, reset)), self.penalty)
        return self

    def partial_fit(self, X, y=None, reset=None, arrives=None) -> WienerDecoder:
        features, running, past = self._features(self.door(X, y, reset), continuing=True)
        self.online_predictions_ = features @ self.coef_
        self._go_on(running, past)
        return self
