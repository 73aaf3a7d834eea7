"""The decoder to use where there is no reason for another."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bci_adapt.decoders.online_rnn import OnlineDecoder


def recommended(
    *,
    cell: str = "gru",
    n_hidden: int = 128,
    n_members: int = 3,
    take_turns: bool = True,
    learn_every: int = 1,
    rule: str = "window",
    optimizer: str = "rmsprop",
    learning_rate: float = 3e-4,
    rule_constants: dict | None = None,
    optimizer_constants: dict | None = None,
    learns: tuple[str, ...] | None = None,
    group_rates: dict[str, float] | None = None,
    average: float | None = 0.997,
    normaliser_s: float | None = 300.0,
    label_delay_s: float = 0.5,
    bin_s: float | None = None,
    warm_up_s: float = 60.0,
    pretrained: bool = True,
    n_updates: int = 800,
    added_updates: int = 300,
    pretrain_rate: float = 3e-3,
    added_rate: float = 3e-3,
    input_dropout: float = 0.3,
    gain_jitter: float = 0.1,
    offset_jitter: float = 0.1,
    batch: int = 16,
    window_bins: int = 80,
    recency: float = 1.0,
    seed: int = 0,
    missing: str = "refuse",
) -> OnlineDecoder:
    """The recommended decoder, not yet fitted: three GRUs that take turns at learning, by four steps of history.

    Parameters are those of `OnlineDecoder`, whose docstring says what they are, with other defaults: `n_hidden`,
    `n_members`, `take_turns`, `rule`, `rule_constants` (``{"steps": 4}`` of ``window`` when None) and `average`.
    """
    constants = dict(locals())  # exactly the parameters, as long as this is the first line
    from bci_adapt.decoders.online_rnn import OnlineDecoder

    if rule == "window" and rule_constants is None:
        constants["rule_constants"] = {"steps": 4}
    return OnlineDecoder(**constants)
