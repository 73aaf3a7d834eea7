"""From a decoder, its file, or a checkpoint to a live decoder."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bci_adapt.decoders.base import Decoder
from bci_adapt.errors import InputError
from bci_adapt.ground.text import clean
from bci_adapt.live import standing
from bci_adapt.live.decoder import LiveDecoder
from bci_adapt.live.guards import Guards
from bci_adapt.live.log import Log, first_entry


def live(
    decoder: Decoder | str | Path,
    wait_s: float | None = None,
    guards: Guards | Mapping[str, Any] | bool | None = True,
    canary: bool = False,
    log: str | Path | None = None,
) -> LiveDecoder:
    """A decoder that is fed bin by bin: at the start of a session, or where a checkpoint of one was written.

    Parameters
    ----------
    decoder : a fitted decoder, which stays as it is, the file of one, or a file that `LiveDecoder.checkpoint` wrote. A
        checkpoint has its own `wait_s`, `guards` and `canary`. To begin a new session with it: ``live(load(file))``.
    wait_s : how long after its bin a label is waited for (s), at least the decoder's label delay, which is taken when
        None. Labels are learned from in the order of their bins; longer, a label may come later, but one that never
        comes holds up those behind it for as long.
    guards : limits beyond which it stops learning and goes back to its last good weights (`Guards`, or some of its
        parameters by name); True for the usual ones, None for none. A decoder that does not know the scale of its
        labels (linear ones) is guarded by its updates alone.
    canary : lead a second decoder along, whose channels are in another random order in every bin, and stop learning
        where it explains half as much: labels then reach predictions otherwise than through neurons. It costs as much
        again.
    log : a new file, to which every decision is written as a line of JSON; `bci_adapt.live.log.replay` comes to the
        same weights from it.

    Raises
    ------
    InputError
        for a file that is no decoder, a decoder that cannot be taught label by label, a wait that is too short, guards
        that are none, settings that are not the checkpoint's, and a log that is there already.
    """
    if isinstance(decoder, str | Path):
        led, place, arrays = standing.read(Path(decoder))
    else:
        led, place, arrays = copy.deepcopy(decoder), None, {}
    if place is None:
        led.begin()
        made = LiveDecoder(led, wait_s, _guards(guards), copy.deepcopy(led) if canary else None)
    else:
        made = _going_on(Path(str(decoder)), led, place, arrays)
        asked = {"wait_s": wait_s, "guards": None if guards in (True, None) else guards, "canary": canary or None}
        for name, value in asked.items():
            if value is not None and value != made.settings[name]:
                raise InputError(
                    f"{decoder}: {name}: this session was begun with {made.settings[name]}, got {value}: leave it "
                    "out, or begin a new one with its decoder, ba.live(ba.load(…))"
                )
    if log is not None:
        made._log = Log(log)
        made._note("started", **first_entry(made))
    return made


def _guards(given: Any) -> Guards | None:
    if given is True:
        return Guards()
    if given is None or given is False:
        return None
    if isinstance(given, Mapping):
        try:
            return Guards(**given)
        except TypeError as error:
            raise InputError(f"guards: {clean(error)}; known: {', '.join(Guards.__dataclass_fields__)}") from error
    if not isinstance(given, Guards):
        raise InputError(f"guards: expected limits by name, True or None, got {type(given).__name__}")
    return given


def _going_on(path: Path, decoder: Decoder, place: Mapping[str, Any], arrays: Mapping[str, Any]) -> LiveDecoder:
    """The live decoder of a checkpoint, where it stood."""
    try:
        settings, canary = place["settings"], None
        if settings["canary"]:
            canary = copy.deepcopy(decoder)
            own = {name.removeprefix("canary/"): each for name, each in arrays.items() if name.startswith("canary/")}
            canary._restore(own)
        made = LiveDecoder(decoder, settings["wait_s"], _guards(settings["guards"]), canary)
        made._go_on(place, arrays)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        if isinstance(error, InputError):
            raise
        mend = "begin anew with its decoder, ba.live(ba.load(…))"
        raise InputError(f"{path}: where it stands cannot be read ({clean(repr(error), 200)}): {mend}") from error
    return made
