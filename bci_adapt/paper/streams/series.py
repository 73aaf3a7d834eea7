"""Real time series that come with statsmodels."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from bci_adapt.paper.streams.base import Made, Rival, Stream, running_z
from bci_adapt.paper.streams.rivals import Column, Nothing, RecursiveLeastSquares, RiverForecaster

_FORGETTING = (0.97, 0.99, 0.995, 0.998, 1.0)
_RATES = (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1)


class Series(Stream):
    """The value `delay` + 1 steps ahead of a series, as its change from the value now.

    That is when the label becomes known, so a label that comes later is a forecast farther ahead. Inputs: the value in
    standard deviations of the values so far, its last change, the change a season ago predicts, and the season's phase.
    Changes are in standard deviations of those in the earlier part.
    """

    loss: ClassVar[str] = "squared"
    n_outputs: ClassVar[int] = 1
    packages: ClassVar[tuple[str, ...]] = ("statsmodels", "river")
    period: ClassVar[int]  # steps of a season

    @abstractmethod
    def values(self) -> np.ndarray:
        """The whole series."""

    def make(self, n_bins, seed, earlier, delay):
        value, horizon = self.values(), delay + 1
        if n_bins + horizon > len(value):
            raise self.too_short(n_bins, len(value) - horizon)
        return of_series(value[: n_bins + horizon], self.period, horizon, earlier)

    def rivals(self, delay):
        def arima(rate: float) -> RiverForecaster:
            from river import linear_model, optim, preprocessing, time_series

            regressor = preprocessing.StandardScaler() | linear_model.LinearRegression(optimizer=optim.SGD(rate))
            model = time_series.SNARIMAX(p=self.period, d=1, q=0, m=self.period, sp=2, regressor=regressor)
            return RiverForecaster(model, delay + 1)

        return {
            "last value": Rival(lambda _: Nothing()),
            "seasonal last value": Rival(lambda _: Column(0), sees="lags"),
            "linear, recursive least squares": Rival(
                lambda value: RecursiveLeastSquares(self.period + 1, 1, value), _FORGETTING, sees="lags"
            ),
            "SNARIMAX": Rival(arima, _RATES, sees="value"),
        }


def of_series(value: np.ndarray, period: int, horizon: int, earlier: int) -> Made:
    """The stream of a series value (n_bins + horizon,): `Made.seen` has ``value`` and ``lags``, both in units of y."""
    n_bins = len(value) - horizon
    change = value[horizon:] - value[:n_bins]
    # The first labels of the earlier part that are known at its end.
    scale = float(change[: max(1, earlier - horizon)].std()) or 1.0
    now = value[:n_bins]
    lagged = np.column_stack([now - _before(value, n_bins, lag) for lag in range(1, period + 1)]) / scale
    seasons = -(-horizon // period)  # back to a value that is known
    season = (_before(value, n_bins, seasons * period - horizon) - now) / scale
    angle = 2 * np.pi * np.arange(n_bins) / period
    x = np.column_stack([running_z(now[:, None]), lagged[:, 0], season, np.sin(angle), np.cos(angle)])
    lags = np.column_stack([season, lagged])
    return Made(x, change[:, None] / scale, {"value": now[:, None] / scale, "lags": lags})


def _before(value: np.ndarray, n_bins: int, lag: int) -> np.ndarray:
    """The value `lag` steps before every bin; the first one before there was any."""
    return value[np.maximum(np.arange(n_bins) - lag, 0)]


def _bundled(name: str) -> Any:
    """A table (pandas) that comes with statsmodels."""
    from importlib import import_module

    return import_module(f"statsmodels.datasets.{name}").load_pandas().data


@dataclass(frozen=True)
class Sunspots(Series):
    """Yearly numbers of sunspots, 1700–2008; a cycle is about eleven years."""

    name: ClassVar[str] = "sunspots"
    description: ClassVar[str] = "yearly numbers of sunspots, 1700 to 2008"
    period: ClassVar[int] = 11

    def values(self):
        return _bundled("sunspots")["SUNACTIVITY"].to_numpy(float)


@dataclass(frozen=True)
class CarbonDioxide(Series):
    """Monthly means of carbon dioxide at Mauna Loa, 1958–2001; a month without a measurement keeps the last mean."""

    name: ClassVar[str] = "co2"
    description: ClassVar[str] = "monthly carbon dioxide at Mauna Loa, 1958 to 2001"
    period: ClassVar[int] = 12

    def values(self):
        return _bundled("co2")["co2"].resample("MS").mean().ffill().to_numpy(float)


@dataclass(frozen=True)
class ElNino(Series):
    """Monthly surface temperatures of the sea off Peru, 1950–2010."""

    name: ClassVar[str] = "el_nino"
    description: ClassVar[str] = "monthly surface temperature of the sea off Peru, 1950 to 2010"
    period: ClassVar[int] = 12

    def values(self):
        return _bundled("elnino").drop(columns="YEAR").to_numpy(float).ravel()
