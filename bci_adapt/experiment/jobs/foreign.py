"""Job: a decoder class of the user's own file, trained on source sessions and run through a target."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from pathlib import Path
from typing import Any

import numpy as np

from bci_adapt.data.labelled import job_arrays, permuted_in_time
from bci_adapt.decoders.base import delay_bins
from bci_adapt.errors import InputError
from bci_adapt.ground.storage import atomic_path


def load_class(path: Path, name: str) -> type:
    """The class `name` of the Python file `path`, which is executed: only ever asked for on the command line.

    Raises
    ------
    InputError
        when the file cannot be read or run, has no such class, or the class lacks fit, predict or adapt.
    """
    spec = importlib.util.spec_from_file_location(f"_own_{path.stem}", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise InputError(f"{path}: expected a Python file with a decoder class")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # a dataclass looks its own module up
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise InputError(f"{path}: cannot be imported: {type(error).__name__}: {error}") from error
    found = getattr(module, name, None)
    lacking = [method for method in ("fit", "predict", "adapt") if not callable(getattr(found, method, None))]
    if not isinstance(found, type) or lacking:
        what = f"class {name} lacks {', '.join(lacking)}" if isinstance(found, type) else f"there is no class {name}"
        raise InputError(f"{path}: {what}; a decoder has fit(X, y), predict(X) and adapt(X, y)")
    return found


def run(parameters: dict[str, Any], inputs: dict[str, Path], out: Path) -> None:
    """Fit `decoder` of the file `code` on ``source0``, ``source1`` …, adapt it to the stream of ``target``, predict.

    X is counts (n_bins, n_channels) with NaN where not observed, y kinematics with NaN where there is no label. A
    method that takes `reset` gets it, a constructor that takes bin_s, label_delay_s or seed gets those, and a predict
    that takes `continuing` goes on from the stream. ``adapt`` must return a prediction of each bin made before its
    label, and is given labels as though there was no delay unless it takes ``label_delay_s`` or ``arrives``: it is the
    decoder's to wait. Writes what jobs/adapt.py writes.
    """
    kind = load_class(inputs["code"], parameters["decoder"])
    given = {name: parameters[name] for name in ("bin_s", "label_delay_s", "seed")}
    decoder = kind(**{name: value for name, value in given.items() if takes(kind, name)})
    sources = sorted((name for name in inputs if name.startswith("source")), key=lambda name: int(name[6:]))
    sessions = [job_arrays(parameters, inputs[name]) for name in sources]
    target = job_arrays(parameters, inputs["target"])
    n_stream = target.n_stream(parameters["stream_s"])
    X = target.X if parameters["permutation"] is None else permuted_in_time(target.X, parameters["permutation"])
    lists = [[a.X.copy() for a in sessions], [a.y.copy() for a in sessions], [a.reset.copy() for a in sessions]]
    single = len(sessions) == 1
    _call(decoder.fit, *(parts[0] if single else parts for parts in lists))
    stream = X[:n_stream].copy(), target.y[:n_stream].copy(), target.reset[:n_stream].copy()
    known = np.arange(n_stream) + delay_bins(parameters["label_delay_s"], target.bin_s)
    online = _call(decoder.adapt, *stream, label_delay_s=parameters["label_delay_s"], arrives=known)
    held_out = _call(decoder.predict, X[n_stream:].copy(), None, target.reset[n_stream:].copy(), continuing=True)
    shape = target.y.shape[1]
    for phase, prediction, n_bins in (("adapt", online, n_stream), ("predict", held_out, len(X) - n_stream)):
        if np.shape(prediction) != (n_bins, shape):
            raise InputError(
                f"{parameters['decoder']}.{phase}: expected predictions ({n_bins}, {shape}), got {np.shape(prediction)}"
            )
    nothing = np.zeros((0, shape))
    with atomic_path(out) as temporary, open(temporary, "wb") as handle:
        np.savez(
            handle,
            online=np.asarray(online, float),
            held_out=np.asarray(held_out, float),
            continuing=nothing,
            back=nothing,
            weight_change=np.array(np.nan),
            diverged=np.array(False),
            n_labels=np.array(int(np.isfinite(stream[1]).all(axis=1).sum())),
        )


def takes(call: Any, name: str) -> bool:
    """Whether a method or constructor has a parameter `name`."""
    return name in inspect.signature(call).parameters


def _call(method: Any, X: Any, y: Any, reset: Any, **more: Any) -> Any:
    optional = {"reset": reset, **more}
    keywords = {name: value for name, value in optional.items() if takes(method, name)}
    return method(X, **keywords) if y is None else method(X, y, **keywords)
