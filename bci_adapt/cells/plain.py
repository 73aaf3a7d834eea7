"""Cells without gates."""

from bci_adapt.cells.base import Cell, Gate


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
)
