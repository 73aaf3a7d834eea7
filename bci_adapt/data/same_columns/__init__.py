"""Whether a column is the same channel in two sessions, asked of the counts alone: no labels, no names of wires.

Channels are matched by name or number; whether that is true the counts can tell. Neurons of one place on an array fire
together in a pattern that outlives drift: the correlations between channels, with what all have in common taken out.
Where columns were mixed up, or come from another array, this pattern is gone.

`fingerprint` takes from a session what is needed (some 200 kB), `agreement` compares two, `same_columns` judges a list
of sessions. Nothing is repaired. How often it is wrong is measured by ``bci-adapt bench identity`` (docs/identity.md).
"""

from __future__ import annotations

from bci_adapt.data.same_columns.agreement import FOREIGN, SAME, UNSURE, Agreement, agreement
from bci_adapt.data.same_columns.fingerprints import Fingerprint, fingerprint
from bci_adapt.data.same_columns.judging import PARTLY, ColumnsOf, SameColumns, judge, same_columns

__all__ = [
    "FOREIGN",
    "PARTLY",
    "SAME",
    "UNSURE",
    "Agreement",
    "ColumnsOf",
    "Fingerprint",
    "SameColumns",
    "agreement",
    "fingerprint",
    "judge",
    "same_columns",
]
