"""Cells without gates, and with an input skip or an output gate put on the simplest of them."""

from dataclasses import replace

from bci_adapt.learning.cells.base import Cell, Gate


def _make_tanh(xp):
    def update(a, s):
        return (xp.tanh(a[0]),)

    def partials(a, s, new):
        h = new[0]
        return ((1.0 - h * h,),), ((0.0 * h,),)

    return update, partials


tanh = Cell(
    name="tanh",
    slots=("h",),
    gates=(Gate("a", "x1h"),),
    make=_make_tanh,
    equations="h' = tanh(W [x | 1 | h])  (Elman 1990)",
    output_bypass=False,
    nonlinear_state=True,
)

tanh_skip = replace(
    tanh,
    name="tanh_skip",
    equations="h' = tanh(W [x | 1 | h]); y = C [h' | 1 | x]  (Elman 1990, with an input skip)",
    output_bypass=True,
    skip=True,
)


def _make_tanh_gate(xp):
    def update(a, s):
        h = xp.tanh(a[0])
        return h, (0.5 + 0.5 * xp.tanh(0.5 * a[1])) * h

    def partials(a, s, new):
        h = new[0]
        o = 0.5 + 0.5 * xp.tanh(0.5 * a[1])
        slope, none = 1.0 - h * h, 0.0 * h
        return ((slope, none), (o * slope, h * o * (1.0 - o))), ((none, none), (none, none))

    return update, partials


tanh_gate = Cell(
    name="tanh_gate",
    slots=("h", "y"),
    gates=(Gate("a", "x1h"), Gate("o", "x1h")),
    make=_make_tanh_gate,
    equations="h' = tanh(W [x | 1 | h]); y' = σ(W_o [x | 1 | h]) ⊙ h'  (Elman 1990, with an output gate)",
    output_bypass=True,
    nonlinear_state=True,
    features=(1,),
)


def _make_relu(xp):
    # max(a, 0) and its step, written so that numbers and tensors keep their type.
    def update(a, s):
        return (0.5 * (a[0] + abs(a[0])),)

    def partials(a, s, new):
        return ((0.5 + 0.5 * xp.sign(a[0]),),), ((0.0 * a[0],),)

    return update, partials


relu = Cell(
    name="relu",
    slots=("h",),
    gates=(Gate("a", "x1h", scale=0.9),),
    make=_make_relu,
    equations="h' = max(W [x | 1 | h], 0)  (Le et al. 2015)",
    output_bypass=False,
    nonlinear_state=True,
)


def _make_linear(xp):
    def update(a, s):
        return (1.0 * a[0],)

    def partials(a, s, new):
        return ((1.0 + 0.0 * a[0],),), ((0.0 * a[0],),)

    return update, partials


linear = Cell(
    name="linear",
    slots=("h",),
    gates=(Gate("a", "x1h", scale=0.9),),
    make=_make_linear,
    equations="h' = W [x | 1 | h]  (a linear dynamical system with dense recurrence)",
    output_bypass=False,
    nonlinear_state=False,
)


def _make_leaky(xp):
    def update(a, s):
        share = 0.5 + 0.5 * xp.tanh(0.5 * a[1])
        return (s[0] + share * (xp.tanh(a[0]) - s[0]),)

    def partials(a, s, new):
        share, r = 0.5 + 0.5 * xp.tanh(0.5 * a[1]), xp.tanh(a[0])
        return ((share * (1.0 - r * r), (r - s[0]) * share * (1.0 - share)),), ((1.0 - share,),)

    return update, partials


leaky = Cell(
    name="leaky",
    slots=("h",),
    gates=(Gate("a", "x1h"), Gate("leak", "1", spread=(-2.0, 1.0), group="recurrent")),
    make=_make_leaky,
    equations="h' = (1−α) h + α tanh(W [x | 1 | h]), α = σ(b) per unit"
    "  (continuous-time RNN, Euler step α = Δt/τ; Beer 1995)",
    output_bypass=False,
    nonlinear_state=True,
)


def _make_indrnn(xp):
    def update(a, s):
        total = a[0] + a[1] * s[0]
        return (0.5 * (total + abs(total)),)

    def partials(a, s, new):
        slope = 0.5 + 0.5 * xp.sign(a[0] + a[1] * s[0])
        return ((slope, slope * s[0]),), ((slope * a[1],),)

    return update, partials


indrnn = Cell(
    name="indrnn",
    slots=("h",),
    gates=(Gate("a", "x1"), Gate("w", "1", spread=(0.0, 0.95), group="recurrent")),
    make=_make_indrnn,
    equations="h' = max(W [x | 1] + w ⊙ h, 0)  (IndRNN, Li et al. 2018)",
    output_bypass=False,
    nonlinear_state=True,
)
