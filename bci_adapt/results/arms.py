"""What a run's table of arms says: words, order and style of each, and the arms of its kind that it is judged by.

Readers of results know arms by roles and relations; the names stand in the table alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from typing import NamedTuple

from bci_adapt.results.table import CONTROL_PREFIXES, CONTROL_WORDS, Frame, bare_arm, control_of

Key = tuple[str, str]  # an arm's name and cell


class Kind(NamedTuple):
    """Decoders of one architecture: what it is called, and its arms by name – frozen, adapted without labels, retrained
    on the target's stream, on earlier days and the stream, and the adaptive one that others are set beside. Empty where
    there is none.
    """

    kind: str
    frozen: str
    unlabelled: str
    ceiling: str
    joint_ceiling: str
    reference: str


class Arms:
    """The arms of a run, looked up by name; one that the table does not have goes by its name, after the others."""

    def __init__(self, table: Frame) -> None:
        self.table = table.sort_values("order", kind="stable").reset_index(drop=True)

    @cached_property
    def _rows(self) -> dict[str, dict]:
        """The first row of each name, in order."""
        return {str(row["arm"]): row for row in reversed(self.table.to_dict("records"))}

    @cached_property
    def _kinds(self) -> dict[Key, Kind]:
        columns = list(Kind._fields)
        lines = self.table[["arm", "cell", *columns]].itertuples(index=False, name=None)
        return {(arm, cell): Kind(*rest) for arm, cell, *rest in lines}

    def label(self, arm: str) -> str:
        """Words for an arm's name."""
        name, control = bare_arm(arm), control_of(arm)
        words = self._rows[name]["words"] if name in self._rows else name
        return f"{words}, {CONTROL_WORDS[control]}" if control else words

    def place(self, arm: str) -> tuple[int, int, str]:
        """Sorting key: arms in their order, those that are not known by name, controls last."""
        name = bare_arm(arm)
        order = int(self._rows[name]["order"]) if name in self._rows else 10**6
        return list(CONTROL_PREFIXES).index(control_of(arm)), order, name

    def style(self, arm: str) -> tuple[str, str]:
        """Colour and marker."""
        row = self._rows.get(bare_arm(arm))
        return (row["colour"], row["marker"]) if row else ("#5b6673", ".")

    def drawn(self, arms: Iterable[str]) -> list[str]:
        """Those of `arms` that figures of few arms show, in order."""
        real = {arm for arm in arms if not control_of(arm)}
        return sorted((arm for arm in real if arm not in self._rows or self._rows[arm]["drawn"]), key=self.place)

    def with_role(self, *roles: str) -> list[str]:
        """The arms that have one of `roles`, in order."""
        return [name for name in self.ordered if self._rows[name]["role"] in roles]

    def _flagged(self, column: str) -> list[str]:
        return [name for name in self.ordered if self._rows[name][column]]

    @cached_property
    def ordered(self) -> list[str]:
        """The names, in order."""
        return sorted(self._rows, key=self.place)

    @cached_property
    def retrained(self) -> list[str]:
        """Arms trained on the whole stream."""
        return self._flagged("retrained")

    @cached_property
    def variations(self) -> list[str]:
        """Arms that vary another one."""
        return self._flagged("variation")

    @cached_property
    def in_excerpt(self) -> list[str]:
        """Arms whose decoded series are shown."""
        return self._flagged("in_excerpt")

    @cached_property
    def controls(self) -> list[str]:
        """Arms that read labels and no neuron."""
        return self.with_role("control")

    @cached_property
    def taught(self) -> set[str]:
        """Arms that learn from labels in one way or another."""
        return {name for name in self._rows if self._rows[name]["supervision"] != "none"}

    def role(self, arm: str) -> str:
        """The role of an arm; a standing one where the table does not have it."""
        return self._rows[arm]["role"] if arm in self._rows else "standing"

    def kind(self, arm: str, cell: str) -> Kind:
        """The arms that an arm is judged by; those of its cell where the table does not have it."""
        return self._kinds.get((arm, cell)) or self.of_cell(cell)

    def of_cell(self, cell: str) -> Kind:
        """The arms that most decoders of a cell are judged by: those of its first kind that is retrained jointly."""
        found = (kind for (_, its), kind in self._kinds.items() if its == cell and kind.joint_ceiling)
        return next(found, Kind(f"{cell} network" if cell else "linear decoder", "", "", "", "", ""))

    def is_frozen(self, arm: str, cell: str) -> bool:
        """Whether an arm is the frozen one of its kind."""
        return arm == self.kind(arm, cell).frozen
