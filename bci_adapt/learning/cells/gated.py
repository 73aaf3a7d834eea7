"""Gated cells.

The logistic function is written as 0.5 + 0.5 tanh(a / 2), which cannot overflow.
"""

from bci_adapt.learning.cells.base import Cell, Gate


def _make_gru(xp):
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
    output_bypass=False,
    nonlinear_state=True,
)


def _make_gru_gate(xp):
    def update(a, s):
        r = 0.5 + 0.5 * xp.tanh(0.5 * a[0])
        u = 0.5 + 0.5 * xp.tanh(0.5 * a[1])
        c = xp.tanh(a[2] + r * a[3])
        h = c + u * (s[0] - c)
        return h, (0.5 + 0.5 * xp.tanh(0.5 * a[4])) * h

    def partials(a, s, new):
        r = 0.5 + 0.5 * xp.tanh(0.5 * a[0])
        u = 0.5 + 0.5 * xp.tanh(0.5 * a[1])
        c = xp.tanh(a[2] + r * a[3])
        o = 0.5 + 0.5 * xp.tanh(0.5 * a[4])
        through_c = (1.0 - u) * (1.0 - c * c)
        by_r, by_u, none = through_c * a[3] * r * (1.0 - r), (s[0] - c) * u * (1.0 - u), 0.0 * u
        by_h = by_r, by_u, through_c, through_c * r, none
        by_y = o * by_r, o * by_u, o * through_c, o * through_c * r, new[0] * o * (1.0 - o)
        return (by_h, by_y), ((u, none), (o * u, none))

    return update, partials


gru_gate = Cell(
    name="gru_gate",
    slots=("h", "y"),
    gates=(Gate("r", "x1h"), Gate("u", "x1h"), Gate("c_in", "x1"), Gate("c_rec", "1h"), Gate("o", "x1h")),
    make=_make_gru_gate,
    equations="the gru's h', and y' = σ(W_o [x|1|h]) ⊙ h'  (Cho et al. 2014, with an LSTM's output gate)",
    output_bypass=True,
    nonlinear_state=True,
    features=(1,),
)


def _make_gru_textbook(xp):
    def update(a, s):
        u, c = 0.5 + 0.5 * xp.tanh(0.5 * a[1]), xp.tanh(a[2])
        return (c + u * (s[0] - c),)

    def partials(a, s, new):
        u, c = 0.5 + 0.5 * xp.tanh(0.5 * a[1]), xp.tanh(a[2])
        return ((0.0 * u, (s[0] - c) * u * (1.0 - u), (1.0 - u) * (1.0 - c * c)),), ((u,),)

    return update, partials


def _make_reset(xp):
    """v = σ(a_0) ⊙ h: what the first gate lets the candidate see."""

    def mid(a, s):
        return (0.5 + 0.5 * xp.tanh(0.5 * a[0])) * s[0]

    def mid_partials(a, s):
        r = 0.5 + 0.5 * xp.tanh(0.5 * a[0])
        none = 0.0 * r
        return (s[0] * r * (1.0 - r), none, none), (r,)

    return mid, mid_partials


gru_textbook = Cell(
    name="gru_textbook",
    slots=("h",),
    gates=(Gate("r", "x1h"), Gate("u", "x1h"), Gate("c", "vx1")),
    make=_make_gru_textbook,
    make_mid=_make_reset,
    equations="r, u = σ(W [x|1|h]); c = tanh(W_c [r ⊙ h | x | 1]); h' = (1−u) ⊙ c + u ⊙ h"
    "  (Cho et al. 2014, reset before the product: the reset gate of a unit reaches every unit)",
    output_bypass=False,
    nonlinear_state=True,
)


def _make_mgu(xp):
    def update(a, s):
        f, c = 0.5 + 0.5 * xp.tanh(0.5 * a[0]), xp.tanh(a[1])
        return (s[0] + f * (c - s[0]),)

    def partials(a, s, new):
        f, c = 0.5 + 0.5 * xp.tanh(0.5 * a[0]), xp.tanh(a[1])
        return (((c - s[0]) * f * (1.0 - f), f * (1.0 - c * c)),), ((1.0 - f,),)

    return update, partials


def _make_forget(xp):
    def mid(a, s):
        return (0.5 + 0.5 * xp.tanh(0.5 * a[0])) * s[0]

    def mid_partials(a, s):
        f = 0.5 + 0.5 * xp.tanh(0.5 * a[0])
        return (s[0] * f * (1.0 - f), 0.0 * f), (f,)

    return mid, mid_partials


mgu = Cell(
    name="mgu",
    slots=("h",),
    gates=(Gate("f", "x1h"), Gate("c", "vx1")),
    make=_make_mgu,
    make_mid=_make_forget,
    equations="f = σ(W [x|1|h]); c = tanh(W_c [f ⊙ h | x | 1]); h' = (1−f) ⊙ h + f ⊙ c  (MGU, Zhou et al. 2016)",
    output_bypass=False,
    nonlinear_state=True,
)


def _make_lstm(xp):
    def update(a, s):
        i, f = 0.5 + 0.5 * xp.tanh(0.5 * a[0]), 0.5 + 0.5 * xp.tanh(0.5 * a[1])
        c = f * s[1] + i * xp.tanh(a[2])
        return (0.5 + 0.5 * xp.tanh(0.5 * a[3])) * xp.tanh(c), c

    def partials(a, s, new):
        i, f = 0.5 + 0.5 * xp.tanh(0.5 * a[0]), 0.5 + 0.5 * xp.tanh(0.5 * a[1])
        g, o, seen = xp.tanh(a[2]), 0.5 + 0.5 * xp.tanh(0.5 * a[3]), xp.tanh(new[1])
        slope, none = o * (1.0 - seen * seen), 0.0 * i
        by_i, by_f, by_g = g * i * (1.0 - i), s[1] * f * (1.0 - f), i * (1.0 - g * g)
        by_h = slope * by_i, slope * by_f, slope * by_g, seen * o * (1.0 - o)
        return (by_h, (by_i, by_f, by_g, none)), ((none, slope * f), (none, f))

    return update, partials


lstm = Cell(
    name="lstm",
    slots=("h", "c"),
    gates=(Gate("i", "x1h"), Gate("f", "x1h", initial=1.0), Gate("g", "x1h"), Gate("o", "x1h")),
    make=_make_lstm,
    equations="i, f, o = σ(W [x|1|h]); g = tanh(W_g [x|1|h]); c' = f ⊙ c + i ⊙ g; h' = o ⊙ tanh(c')"
    "  (Hochreiter & Schmidhuber 1997, Gers et al. 2000)",
    output_bypass=True,
    nonlinear_state=True,
)


def _make_lstm_ungated(xp):
    def update(a, s):
        i, f = 0.5 + 0.5 * xp.tanh(0.5 * a[0]), 0.5 + 0.5 * xp.tanh(0.5 * a[1])
        c = f * s[1] + i * xp.tanh(a[2])
        return xp.tanh(c), c

    def partials(a, s, new):
        i, f = 0.5 + 0.5 * xp.tanh(0.5 * a[0]), 0.5 + 0.5 * xp.tanh(0.5 * a[1])
        g = xp.tanh(a[2])
        slope, none = 1.0 - new[0] * new[0], 0.0 * i
        by_i, by_f, by_g = g * i * (1.0 - i), s[1] * f * (1.0 - f), i * (1.0 - g * g)
        return ((slope * by_i, slope * by_f, slope * by_g), (by_i, by_f, by_g)), ((none, slope * f), (none, f))

    return update, partials


lstm_ungated = Cell(
    name="lstm_ungated",
    slots=("h", "c"),
    gates=(Gate("i", "x1h"), Gate("f", "x1h", initial=1.0), Gate("g", "x1h")),
    make=_make_lstm_ungated,
    equations="the lstm without its output gate: h' = tanh(c')  (Greff et al. 2017, NOG)",
    output_bypass=False,
    nonlinear_state=True,
)


def _make_mingru(xp):
    def update(a, s):
        u = 0.5 + 0.5 * xp.tanh(0.5 * a[0])
        return (s[0] + u * (a[1] - s[0]),)

    def partials(a, s, new):
        u = 0.5 + 0.5 * xp.tanh(0.5 * a[0])
        return (((a[1] - s[0]) * u * (1.0 - u), u),), ((1.0 - u,),)

    return update, partials


mingru = Cell(
    name="mingru",
    slots=("h",),
    gates=(Gate("u", "x1"), Gate("c", "x1")),
    make=_make_mingru,
    equations="u = σ(W [x|1]); h' = (1−u) ⊙ h + u ⊙ W_c [x|1]  (minGRU, Feng et al. 2024)",
    output_bypass=False,
    nonlinear_state=False,
)


def _make_minlstm(xp):
    # F = f/(f+i) = σ(log f − log i), which cannot be 0/0; −log σ(a) = max(−a, 0) + log(1 + exp(−|a|))
    def update(a, s):
        less_f = 0.5 * (abs(a[0]) - a[0]) + xp.log1p(xp.exp(-abs(a[0])))
        less_i = 0.5 * (abs(a[1]) - a[1]) + xp.log1p(xp.exp(-abs(a[1])))
        return (a[2] + (0.5 + 0.5 * xp.tanh(0.5 * (less_i - less_f))) * (s[0] - a[2]),)

    def partials(a, s, new):
        less_f = 0.5 * (abs(a[0]) - a[0]) + xp.log1p(xp.exp(-abs(a[0])))
        less_i = 0.5 * (abs(a[1]) - a[1]) + xp.log1p(xp.exp(-abs(a[1])))
        keep = 0.5 + 0.5 * xp.tanh(0.5 * (less_i - less_f))
        slope = (s[0] - a[2]) * keep * (1.0 - keep)
        by_f, by_i = slope * (0.5 - 0.5 * xp.tanh(0.5 * a[0])), -slope * (0.5 - 0.5 * xp.tanh(0.5 * a[1]))
        return ((by_f, by_i, 1.0 - keep),), ((keep,),)

    return update, partials


minlstm = Cell(
    name="minlstm",
    slots=("h",),
    gates=(Gate("f", "x1"), Gate("i", "x1"), Gate("c", "x1")),
    make=_make_minlstm,
    equations="f, i = σ(W [x|1]); h' = f/(f+i) ⊙ h + i/(f+i) ⊙ W_c [x|1]  (minLSTM, Feng et al. 2024)",
    output_bypass=False,
    nonlinear_state=False,
)
