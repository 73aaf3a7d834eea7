"""Gated cells."""

from bci_adapt.cells.base import Cell, Gate


def _make_gru(xp):
    # The logistic function is written as 0.5 + 0.5 tanh(a / 2), which cannot overflow.
    def update(a, s):
        r = 0.5 + 0.5 * xp.tanh(0.5 * a[0])
        u = 0.5 + 0.5 * xp.tanh(0.5 * a[1])
        c = xp.tanh(a[2] + r * a[3])
        return (c + u * (s[0] - c),)

    def partials(a, s, new):
        r = 0.5 + 0.5 * xp.tanh(0.5 * a[0])
        u = 0.5 + 0.5 * xp.tanh(0.5 * a[1])
        c = xp.tanh(a[2] + r * a[3])
        through_c = (1.0 - u) * (1.0 - c * c)
        return ((through_c * a[3] * r * (1.0 - r), (s[0] - c) * u * (1.0 - u), through_c, through_c * r),), ((u,),)

    return update, partials


gru = Cell(
    name="gru",
    slots=("h",),
    gates=(Gate("r", "x1h"), Gate("u", "x1h"), Gate("c_in", "x1"), Gate("c_rec", "1h")),
    make=_make_gru,
    equations="r, u = σ(W [x|1|h]); c = tanh(W_in [x|1] + r ⊙ W_rec [1|h]); h' = (1−u) ⊙ c + u ⊙ h"
    "  (Cho et al. 2014, reset after the product as in cuDNN and torch.nn.GRU)",
)
