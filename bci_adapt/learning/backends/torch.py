"""The loop in torch: a second implementation of every rule, any torch module as a cell, and accelerators.

Nothing is shared with the kernels but the layout of the arrays, so that a state can move between backends. Of a shipped
cell only the update (and ``v = ρ(a, s)``) is used: derivatives come from autograd, of

    s' = f(θ, h, s)      at the input of one record, with h = s[0] given apart,

so that what a unit remembers by itself (∂f/∂s) can be told from what it hears through weights (∂f/∂h). A rule with a
memory is ``E ← A E + ∂f/∂θ`` and its gradient ``qᵀ E``: A = λ (trace), ∂f/∂s (eprop, rflo), all of ds'/ds (snap1, rtrl)
or some of its entries (sparse_rtrl). Of a shipped cell trace, snap1, eprop and rflo keep the entries of each weight's
own unit (credit.base, *Own path*).

Everything is float64. Tensors have the replica axis S first: replicas are independent, so one pass back gives the
gradient of each. Time is a Python loop.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp, vjp, vmap

from bci_adapt.errors import InputError
from bci_adapt.learning.backends.loop import BIN, DROPPED, FIRST, PROCESSED, RECORDS, UPDATES, Stream
from bci_adapt.learning.cells.base import Cell, Network
from bci_adapt.learning.optimizers import GROUPS, Schedule

if TYPE_CHECKING:
    from bci_adapt.learning.online import Learner

Step = Callable[[Tensor, Tensor, Tensor], Tensor]


def run_loop(learner: Learner, arrays: dict[str, np.ndarray], stream: Stream, predictions: np.ndarray) -> None:
    """Run over every bin of `stream`, changing `arrays` (S, …) in place; predictions (S, T, M) are written.

    Where anything is raised, the arrays are as they were.

    Raises
    ------
    InputError
        for a rule or an optimiser that this backend does not know, or a device that is not there or has no float64.
    """
    timeline = arrays["counters"][:, [BIN, RECORDS, PROCESSED, FIRST]], arrays["ring_arrives"]
    if all((part == part[:1]).all() for part in timeline):
        loop = _Loop(learner, arrays)
        predictions[:] = loop.run(stream).cpu().numpy()
        loop.write(arrays)
        return
    # Replicas that were put together from runs of different length are run one after another.
    for s in range(len(predictions)):
        own = {name: array[s : s + 1] for name, array in arrays.items()}
        X, Y, weight = (array[min(s, len(array) - 1)][None] for array in stream[:3])
        run_loop(learner, own, stream._replace(X=X, Y=Y, weight=weight), predictions[s : s + 1])


# Networks


def _refuse_kernels(xp: Any) -> Any:
    raise InputError('a torch module has no kernels: it runs with backend="torch" only')


class ModuleNetwork(Network):
    """Any torch module as a cell: every rule and optimiser works on it without further code.

    ``module.forward(x, h, s)`` gets the input x (n_inputs,), the state s (n_slots, n_hidden) and h = s[0] (n_hidden,)
    apart from it, and returns the new state (n_slots, n_hidden). It should take what units hear of one another from h,
    and what a unit remembers by itself from s: eprop and rflo follow s alone; no other rule can tell them apart. It
    must be a function of its arguments: no dropout, no state of its own.

    All of the module's parameters that require a gradient learn, as one row θ (1, row_width) in the module's order; the
    others, and buffers, stay as they are. Rules follow every path of a weight, whatever unit it reaches: trace, eprop
    and rflo are not masked, snap1 keeps the entries of J for units on which a weight acts within a bin, which is where
    ∂s'/∂θ is not structurally zero (Menick et al. 2021). Derivatives are taken at the recorded state with the weights
    of the bin at which the label is there. Replicas run together where torch.func.vmap can, else one by one.

    Parameters
    ----------
    module : it is copied, in float64 and evaluation mode; the one given is left alone.
    slots : names of the state's slots.
    features : the slots that the readout sees.
    skip : whether the readout sees the input as well.
    groups : weight group (``input``, ``bias`` or ``recurrent``) of parameters, by name; where none is named, parameters
        with one axis are ``bias``, others ``recurrent``.
    name : what the cell is called; the module's class when None.

    Raises
    ------
    InputError
        where the module cannot be used, naming it and saying why.

    >>> class Elman(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.drive, self.recur = nn.Linear(2, 3), nn.Linear(3, 3, bias=False)
    ...     def forward(self, x, h, s):
    ...         return torch.tanh(self.drive(x) + self.recur(h))[None]
    >>> ModuleNetwork(Elman(), 2, 3, 1, groups={"drive.weight": "input"}).row_width
    18
    """

    needs_torch: ClassVar[bool] = True

    def __init__(
        self,
        module: nn.Module,
        n_inputs: int,
        n_hidden: int,
        n_outputs: int,
        slots: Sequence[str] = ("h",),
        features: Sequence[int] = (0,),
        skip: bool = False,
        groups: Mapping[str, str] | None = None,
        name: str | None = None,
    ):
        if not isinstance(module, nn.Module):
            raise InputError(f"module: expected a torch.nn.Module, got {type(module).__name__}")
        name = name or type(module).__name__
        if not slots or not features or not all(0 <= slot < len(slots) for slot in features):
            raise InputError(f"module {name!r}: features must number some of its slots {tuple(slots)}, got {features}")
        cell = Cell(
            name=name,
            slots=tuple(slots),
            gates=(),
            make=_refuse_kernels,
            equations=f"s' = {type(module).__name__}(x, h, s)  (a torch module)",
            output_bypass=skip,
            nonlinear_state=True,
            features=tuple(features),
            skip=skip,
        )
        super().__init__(cell, n_inputs, n_hidden, n_outputs)
        if any(value.is_complex() for value in module.state_dict().values()):
            raise InputError(f"module {name!r}: expected real parameters and buffers, got complex ones")
        self.module = copy.deepcopy(module).to("cpu", torch.float64).eval()
        learned = {key: value for key, value in self.module.named_parameters() if value.requires_grad}
        if not learned:
            raise InputError(f"module {name!r}: expected parameters that require a gradient, got none")
        self.shapes = {key: tuple(value.shape) for key, value in learned.items()}
        self.parameter_groups = {key: "bias" if len(shape) == 1 else "recurrent" for key, shape in self.shapes.items()}
        for key, group in (groups or {}).items():
            if key not in self.shapes:
                raise InputError(f"module {name!r}: groups names {key!r}, not one of its {', '.join(self.shapes)}")
            if group not in GROUPS[:3]:
                raise InputError(f"module {name!r}: {key!r} must be in one of {', '.join(GROUPS[:3])}, got {group!r}")
            self.parameter_groups[key] = group
        self._try()

    # Two modules of one class and size are still two networks.
    def __eq__(self, other: object) -> bool:
        return self is other

    __hash__ = object.__hash__

    @property
    def n_rows(self) -> int:
        return 1

    @property
    def row_width(self) -> int:
        return sum(self._sizes)

    @property
    def n_parameters(self) -> int:
        return self.row_width + self.n_outputs * self.readout_width

    @property
    def _sizes(self) -> list[int]:
        return [int(np.prod(shape)) for shape in self.shapes.values()]

    def groups(self) -> np.ndarray:
        """Group of every number in θ (row_width,), as str."""
        return np.repeat(list(self.parameter_groups.values()), self._sizes)

    def parts(self) -> np.ndarray:
        """Where each parameter lies in θ: first column and width (n_parameters, 2)."""
        return np.column_stack([np.cumsum([0, *self._sizes[:-1]]), self._sizes])

    def memory_shape(self, rule: Any) -> tuple[int, ...]:
        """(n_slots · n_hidden, row_width) for traces and rtrl; s̃, then θ̃, for uoro; else nothing."""
        states = len(self.cell.slots) * self.n_hidden
        if not rule.advances:
            return (0,)
        return (states + self.row_width,) if rule.name == "uoro" else (states, self.row_width)

    def initial_weights(self, seed: int | np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """The module's own parameters θ (1, row_width), and C (n_outputs, readout_width) as every network has it:
        Gaussian with variance 1/n_hidden over its features, zero elsewhere.
        """
        rng, wide = np.random.default_rng(seed), len(self.cell.features) * self.n_hidden
        C = np.zeros((self.n_outputs, self.readout_width))
        C[:, :wide] = rng.standard_normal((self.n_outputs, wide)) / np.sqrt(wide)
        return self.parameters()[None].numpy(), C

    def parameters(self) -> Tensor:
        """θ as the module came (row_width,)."""
        return torch.cat([self.module.get_parameter(key).detach().reshape(-1) for key in self.shapes])

    def evolve(self, theta: Tensor, x: Tensor, h: Tensor, s: Tensor) -> Tensor:
        """One bin with the parameters theta (row_width,): the new state (n_slots, n_hidden)."""
        parts = theta.split(self._sizes)
        values = {key: part.view(shape) for (key, shape), part in zip(self.shapes.items(), parts, strict=True)}
        state = self.module.state_dict(keep_vars=True).items()
        fixed = {key: value.detach().to(theta.device) for key, value in state if key not in values}
        return functional_call(self.module, fixed | values, (x, h, s))

    def _try(self) -> None:
        """Raise `InputError` where the module does not do what `evolve` needs."""
        what = f"module {self.cell.name!r}"
        shape = (len(self.cell.slots), self.n_hidden)
        theta, x, s = (values[0] for values in self._probes(1))
        try:
            new, again = (self.evolve(theta, x, s[0], s) for _ in range(2))
        except Exception as error:
            raise InputError(
                f"{what}: forward(x ({self.n_inputs},), h ({self.n_hidden},), s {shape}) raised "
                f"{type(error).__name__}: {error}"
            ) from error
        if not isinstance(new, Tensor) or new.shape != shape or new.dtype != torch.float64:
            got = f"{new.dtype} {tuple(new.shape)}" if isinstance(new, Tensor) else type(new).__name__
            raise InputError(f"{what}: expected forward to return a new state, float64 {shape}, got {got}")
        if not torch.isfinite(new).all():
            raise InputError(f"{what}: expected a finite new state, got {new.tolist()}")
        if not torch.equal(new, again):
            raise InputError(f"{what}: expected the same state from the same arguments, got two (dropout? noise?)")

    def _probes(self, count: int, spread: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
        """θ (count, row_width) spread around the module's own, random x (count, n_inputs) and s (count, k, n)."""
        rng, theta = torch.Generator().manual_seed(0), self.parameters()
        sizes = theta.shape, (self.n_inputs,), (len(self.cell.slots), self.n_hidden)
        noise, x, s = (torch.randn(count, *size, generator=rng, dtype=torch.float64) for size in sizes)
        return theta + spread * noise, x, s

    @cached_property
    def batches(self) -> bool:
        """Whether vmap can run it: it has no rule for some of torch's own cells, and none for a Python ``if``."""
        theta, x, s = self._probes(2)
        try:
            vmap(self.evolve)(theta, x, s[:, 0], s)
        except (RuntimeError, ValueError):
            return False
        return True

    @cached_property
    def pattern(self) -> Tensor:
        """Whether a parameter acts on a unit – some slot of it – within a bin, (n_slots · n_hidden, row_width) bool:
        where ∂s'/∂θ is not structurally zero. Found by probing it at random states and parameters, so that a unit at
        rest or a weight of zero hides nothing.
        """
        k, n = len(self.cell.slots), self.n_hidden
        theta, x, s = self._probes(8, spread=0.5)
        f = _Opaque(self).at(theta[:, None], _Record(x, x[:, :0], s[:, :0], s))
        by_weights, _, _ = _derivatives(f, theta[:, None], s, _every_state(k, n, theta.device))
        return (by_weights != 0.0).view(k, n, len(theta), -1).any(2).any(0).repeat(k, 1)


def module_of(cell: Cell, network: Network, W: np.ndarray | None = None) -> nn.Module:
    """A shipped cell as a module for `ModuleNetwork`, with the sizes of `network`.

    Its parameters are one matrix (n_hidden, width) per gate: the columns of W (n_hidden, row_width), which is what they
    start from; `network`'s initial weights of seed 0 when None.
    """
    sized = replace(network, cell=cell)
    W = sized.initial_weights(0)[0] if W is None else W
    return _GatedModule(_Gated(sized), np.split(W, sized.blocks[1:, 2], axis=1))


# One bin, and its derivatives


class _Record(NamedTuple):
    """What one bin left behind: x (S, m), v (S, n_mid), gate activations a (S, G, n), the state before it (S, k, n)."""

    x: Tensor
    v: Tensor
    a: Tensor
    before: Tensor


class _Gated:
    """A shipped cell: affine gates, then its elementwise update. Tensors (…, as the cell has them)."""

    own = True

    def __init__(self, network: Network):
        cell = network.cell
        self.reads = [gate.reads for gate in cell.gates]
        self.widths = network.blocks[:, 1].tolist()
        self.update = cell.make(torch)[0]
        self.mid = cell.make_mid(torch)[0] if cell.make_mid is not None else None

    def step(self, W: Tensor, x: Tensor, h: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The new state (…, k, n), and the gate activations (…, G, n) and v (…, n_mid) that led to it."""
        return self._evolve(W, _heard(x, h), s)

    def at(self, W: Tensor, record: _Record, own: bool = False) -> Step:
        """f(θ, h, s) at one record: derivatives are taken at the activations as they were, with the weights as they are
        now. With `own` only a unit's own h and v are live, what it hears of others is constant.
        """
        then = _heard(record.x, record.before[..., 0, :]) | {"v": record.v}
        now = [_affine(weights, reads, then, {}) for reads, weights in self._gates(W)]
        offset = record.a - torch.stack(now, -2)
        fixed = then if own else {}
        return lambda W, h, s: self._evolve(W, _heard(record.x, h), s, offset, fixed)[0]

    def _gates(self, W: Tensor) -> list[tuple[str, Tensor]]:
        """Per gate, what it reads and its weights (…, n, width)."""
        return list(zip(self.reads, W.split(self.widths, -1), strict=True))

    def _evolve(
        self,
        W: Tensor,
        heard: dict[str, Tensor],
        s: Tensor,
        offset: Tensor | None = None,
        fixed: Mapping[str, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        states, a = s.unbind(-2), []
        for gate, (reads, weights) in enumerate(self._gates(W)):
            if self.mid is not None and reads.startswith("v") and "v" not in heard:
                heard["v"] = self.mid(a, states)
            total = _affine(weights, reads, heard, fixed or {})
            a.append(total if offset is None else total + offset[..., gate, :])
        v = heard.get("v", s[..., 0, :0])
        return torch.stack(self.update(a, states), -2), torch.stack(a, -2), v


def _heard(x: Tensor, h: Tensor) -> dict[str, Tensor]:
    """What gates of the first stage read (…, width), by its name in `Gate.reads`."""
    return {"x": x, "1": torch.ones_like(x[..., :1]), "h": h}


def _affine(weights: Tensor, reads: str, heard: Mapping[str, Tensor], fixed: Mapping[str, Tensor]) -> Tensor:
    """Activations (…, n) of a gate. Of parts that are `fixed` each unit hears those values, and live only its own."""
    parts = [fixed.get(part, heard[part]) for part in reads]
    total = (weights @ torch.cat(parts, -1)[..., None])[..., 0]
    if not fixed:
        return total
    n = weights.shape[-2]
    # In a gate's row v comes first and h last.
    for part, own in (("v", weights[..., :n]), ("h", weights[..., -n:])):
        if part in reads:
            total = total + own.diagonal(dim1=-2, dim2=-1) * (heard[part] - fixed[part])
    return total


class _GatedModule(nn.Module):
    """A shipped cell with one parameter per gate."""

    def __init__(self, gated: _Gated, weights: list[np.ndarray]):
        super().__init__()
        self.gated = gated
        self.weights = nn.ParameterList(torch.tensor(part) for part in weights)

    def forward(self, x: Tensor, h: Tensor, s: Tensor) -> Tensor:
        return self.gated.step(torch.cat(list(self.weights), -1), x, h, s)[0]


class _Opaque:
    """A module of the user's: its step, batched over replicas."""

    own = False

    def __init__(self, network: ModuleNetwork):
        self.network = network

    def step(self, W: Tensor, x: Tensor, h: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The new state (S, k, n), no gate activations, no v."""
        each = W[:, 0], x, h, s
        if len(W) > 1 and self.network.batches:
            new = vmap(self.network.evolve)(*each)
        else:
            new = torch.stack([self.network.evolve(*one) for one in zip(*each, strict=True)])
        return new, s[:, :0], s[:, 0, :0]

    def at(self, W: Tensor, record: _Record, own: bool = False) -> Step:
        """f(θ, h, s) at the input of one record."""
        return lambda W, h, s: self.step(W, record.x, h, s)[0]


def _backward(f: Callable[..., Tensor], *at: Tensor) -> Any:
    """f there, and the function that pulls a signal back to each argument (torch.func.vjp without auxiliary output)."""
    return vjp(f, *at)


def _derivatives(f: Step, W: Tensor, s: Tensor, signals: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Signals (B, k, n) pulled back through f at state s (S, k, n): to θ (B, S, R, w), h (B, S, n), s (B, S, k, n)."""
    _, pull = _backward(f, W, s[:, 0], s)
    return vmap(pull)(signals[:, None].expand(-1, len(s), -1, -1))


def _every_state(k: int, n: int, device: torch.device) -> Tensor:
    """One signal per component of the state (k n, k, n)."""
    return torch.eye(k * n, dtype=torch.float64, device=device).view(k * n, k, n)


# Credit


class _Net(NamedTuple):
    """Weights W (S, R, w) and C (S, M, readout_width), and B (S, M, features · n), which feeds errors back."""

    W: Tensor
    C: Tensor
    B: Tensor


class _Credit:
    """One rule on one network: from a labelled record the readout's features u (S, readout_width), the error e (S, M)
    and the gradient g (S, R, w). This base gives no recurrent credit (`readout`).
    """

    def __init__(self, learner: Learner, dynamics: _Gated | _Opaque, arrays: Mapping[str, np.ndarray], device: Any):
        self.rule: Any = learner.rule
        self.network, self.dynamics, self.loss = learner.network, dynamics, learner.loss
        self.k, self.n, self.device = len(self.network.cell.slots), self.network.n_hidden, device
        self.generator = [int(value) for value in arrays["generator"][:, 0]]
        self.unpack(torch.tensor(arrays["memory"], device=device), int(arrays["counters"][0, PROCESSED]))

    def unpack(self, memory: Tensor, processed: int) -> None:
        """Take the memory (S, …) as the kernels pack it after `processed` records."""
        self.memory = memory

    def packed(self, processed: int) -> Tensor:
        """The memory as the kernels pack it."""
        return self.memory

    def clear(self) -> None:
        self.memory = torch.zeros_like(self.memory)

    def error(self, prediction: Tensor, label: Tensor, weight: Tensor) -> Tensor:
        """∂E/∂ŷ of 1/2 Σ w (ŷ − y)², or of −Σ w y log softmax(ŷ) with Σ y = 1; zero where there is no label."""
        guess = torch.softmax(prediction, -1) if self.loss == "cross_entropy" else prediction
        return torch.where(weight > 0.0, weight * (guess - label), 0.0)

    def readout(self, C: Tensor, state: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """The readout's features u and its output."""
        one = torch.ones_like(x[:, :1])
        cell = self.network.cell
        u = torch.cat([*(state[:, slot] for slot in cell.features), one, *([x] if cell.skip else [])], -1)
        return u, (C @ u[..., None])[..., 0]

    def feed_back(self, B: Tensor, e: Tensor) -> Tensor:
        """q (S, k, n): errors on the features' slots."""
        n, q = self.n, e.new_zeros(len(e), self.k, self.n)
        for position, slot in enumerate(self.network.cell.features):
            q[:, slot] += (e[:, None] @ B[:, :, position * n : (position + 1) * n])[:, 0]
        return q

    def record(self, ring: Mapping[str, Tensor], slot: int) -> _Record:
        z, first = ring["z"][:, slot], self.network.n_mid
        x = z[:, first : first + self.network.n_inputs]
        return _Record(x, z[:, :first], ring["a"][:, slot], ring["before"][:, slot])

    def learn(
        self, net: _Net, ring: Mapping[str, Tensor], first: int, last: int, learns: bool
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """u, e and – where the recurrent weights learn – g of record `last`; none before `first` is of its stretch."""
        slot = last % ring["z"].shape[1]
        e = self.error(*(ring[name][:, slot] for name in ("prediction", "label", "weight")))
        g = self.gradient(net.W, self.record(ring, slot), self.feed_back(net.B, e)) if learns else None
        return ring["features"][:, slot], e, g

    def gradient(self, W: Tensor, record: _Record, q: Tensor) -> Tensor:
        """Advance the memory by one record; the gradient for q = ∂E/∂s' (S, k, n)."""
        return torch.zeros_like(W)


class _Immediate(_Credit):
    """qᵀ ∂f/∂θ, the state before held constant."""

    def gradient(self, W, record, q):
        f, s = self.dynamics.at(W, record), record.before
        _, pull = _backward(lambda W: f(W, s[:, 0], s), W)
        return pull(q)[0]


class _Window(_Credit):
    """The last K bins recomputed from the state before them, and the error carried back through them."""

    def learn(self, net, ring, first, last, learns):
        length = ring["z"].shape[1]
        records = range(max(first, last - self.rule.steps + 1), last + 1)
        inputs = [self.record(ring, record % length).x for record in records]
        before = ring["before"][:, records[0] % length]

        def unrolled(W: Tensor) -> Tensor:
            state = before
            for x in inputs:
                state = self.dynamics.step(W, x, state[:, 0], state)[0]
            return state

        state, pull = _backward(unrolled, net.W)
        u, prediction = self.readout(net.C, state, inputs[-1])
        slot = last % length
        e = self.error(prediction, ring["label"][:, slot], ring["weight"][:, slot])
        return u, e, pull(self.feed_back(net.B, e))[0] if learns else None


class _Traces(_Credit):
    """E ← A E + ∂f/∂θ over all states and weights at once, E (S, k n, R w), and the gradient qᵀ E."""

    def unpack(self, memory, processed):
        k, n = self.k, self.n
        self.decay, self.mask = None, None
        if self.rule.name == "trace":
            decay = np.broadcast_to(self.rule.decay, (self.network.n_rows, self.network.row_width))
            self.decay = torch.tensor(decay, dtype=torch.float64, device=self.device).reshape(-1)
        self.paths = self._paths() if self.rule.name == "sparse_rtrl" else None
        if self.rule.name == "snap1" and isinstance(self.network, ModuleNetwork):
            self.mask = self.network.pattern.to(self.device)
        if self.dynamics.own:
            panels = memory[:, self._places(processed), : k * n]
            memory = panels.transpose(1, 2).reshape(len(memory), k * n, -1)
        self.memory = memory

    def _paths(self) -> Tensor:
        """Entries of ds'/ds that sparse RTRL keeps (S, k n, k n): the unit itself and others by selection sampling."""
        kept = torch.zeros(len(self.generator), self.n, self.n, dtype=torch.float64)
        for s, x in enumerate(self.generator):
            for unit in range(self.n):
                wanted = self.rule.paths - 1
                for left, other in enumerate((j for j in range(self.n) if j != unit), start=1):
                    x = _scrambled(x)
                    if (self.n - left) * (x >> 11) < wanted << 53:
                        kept[s, unit, other] = 1.0
                        wanted -= 1
                kept[s, unit, unit] = 1.0
        return kept.repeat(1, self.k, self.k).to(self.device)

    def _places(self, processed: int) -> list[int]:
        """Where RTRL's kernel keeps the panel (k n + 1, w) of each unit's weights."""
        return [(unit - processed) % (self.n + 1) for unit in range(self.n)]

    def packed(self, processed):
        if not self.dynamics.own:
            return self.memory
        # The last row of a panel and the one panel more are scratch.
        states, S = self.k * self.n, len(self.memory)
        panels = self.memory.view(S, states, self.n, -1).transpose(1, 2)
        memory = self.memory.new_zeros(S, self.n + 1, states + 1, panels.shape[-1])
        memory[:, self._places(processed), :states] = panels
        return memory

    def gradient(self, W, record, q):
        k, n, S = self.k, self.n, len(W)
        P, by_h, A = _derivatives(self.dynamics.at(W, record), W, record.before, _every_state(k, n, self.device))
        if self.rule.name in ("snap1", "rtrl", "sparse_rtrl"):
            A = _with_heard(A, by_h)
        A, P = A.transpose(0, 1).reshape(S, k * n, k * n), P.transpose(0, 1).reshape(S, k * n, -1)
        A = A if self.paths is None else A * self.paths
        return self._advance(A, P, q.reshape(S, -1)).reshape(W.shape)

    def _advance(self, A: Tensor, P: Tensor, q: Tensor) -> Tensor:
        """Move E (…, states, weights) one record on; returns qᵀ E (…, 1, weights)."""
        moved = P + (A @ self.memory if self.decay is None else self.decay * self.memory)
        self.memory = moved if self.mask is None else moved * self.mask
        return q[..., None, :] @ self.memory


class _OwnTraces(_Traces):
    """The same for a shipped cell, of each weight's own unit only, E (S, n, k, w)."""

    def unpack(self, memory, processed):
        self.decay, self.mask, self.memory = None, None, memory
        if self.rule.name == "trace":
            decay = np.broadcast_to(self.rule.decay, memory[0, :, 0].shape)
            self.decay = torch.tensor(decay, dtype=torch.float64, device=self.device)[:, None]

    def packed(self, processed):
        return self.memory

    def gradient(self, W, record, q):
        k, n, before = self.k, self.n, record.before
        # Where a unit hears only itself, one signal to all units gives the derivatives of each.
        signals = torch.eye(k, dtype=torch.float64, device=self.device)[..., None].expand(k, k, n)
        P, by_h, A = _derivatives(self.dynamics.at(W, record, own=True), W, before, signals)
        if self.rule.name == "snap1":
            A = _with_heard(A, by_h)
            if record.v.shape[1]:  # a state comes back to its unit through the v of others
                f = self.dynamics.at(W, record)
                _, by_h, D = _derivatives(f, W, before, _every_state(k, n, self.device))
                A = _with_heard(D, by_h).unflatten(0, (k, n)).diagonal(dim1=1, dim2=4)
        return self._advance(A.permute(1, 3, 0, 2), P.permute(1, 2, 0, 3), q.transpose(1, 2)).reshape(W.shape)


def _with_heard(by_s: Tensor, by_h: Tensor) -> Tensor:
    """ds'/ds (B, S, k, n) from what it is at fixed h and from ∂s'/∂h (B, S, n): h is slot 0."""
    return torch.cat([by_s[:, :, :1] + by_h[:, :, None], by_s[:, :, 1:]], 2)


def _scrambled(x: int) -> int:
    """One step of xorshift64 (Marsaglia 2003)."""
    x ^= (x << 13) & 0xFFFF_FFFF_FFFF_FFFF
    x ^= x >> 7
    return x ^ (x << 17) & 0xFFFF_FFFF_FFFF_FFFF


class _UORO(_Credit):
    """J ≈ s̃ ⊗ θ̃ with random signs."""

    def unpack(self, memory, processed):
        S, k, n = len(memory), self.k, self.n
        if self.dynamics.own:
            self.states, self.weights = memory[:, :, :k].transpose(1, 2), memory[:, :, k:]
        else:
            self.states, self.weights = memory[:, : k * n].view(S, k, n), memory[:, None, k * n :]

    def packed(self, processed):
        if self.dynamics.own:
            return torch.cat([self.states.transpose(1, 2), self.weights], -1)
        return torch.cat([self.states.flatten(1), self.weights[:, 0]], -1)

    def clear(self):
        self.states, self.weights = torch.zeros_like(self.states), torch.zeros_like(self.weights)

    def _signs(self) -> Tensor:
        """ν = ±1 (S, k, n), by each replica's own generator."""
        signs = np.empty((len(self.generator), self.k * self.n))
        for s, x in enumerate(self.generator):
            for j in range(signs.shape[1]):
                x = _scrambled(x)
                signs[s, j] = 1.0 if x >> 63 else -1.0
            self.generator[s] = x
        return torch.tensor(signs.reshape(-1, self.k, self.n), device=self.device)

    def gradient(self, W, record, q):
        f, before = self.dynamics.at(W, record), record.before
        moved: Tensor = jvp(lambda s: f(W, s[:, 0], s), (before,), (self.states,))[1]
        _, pull = _backward(lambda W: f(W, before[:, 0], before), W)
        signs = self._signs()
        (seen,) = pull(signs)
        keep = _balance(_norm(self.weights), _norm(moved))
        new = _balance(_norm(seen), _norm(signs))
        self.states = keep * moved + new * signs
        self.weights = self.weights / keep + seen / new
        return (q * self.states).sum((1, 2), keepdim=True) * self.weights


def _norm(values: Tensor) -> Tensor:
    """Frobenius norm of each replica (S, 1, 1)."""
    return values.square().sum((1, 2), keepdim=True).sqrt()


def _balance(weights: Tensor, states: Tensor) -> Tensor:
    """√(‖weights‖ / ‖states‖), or 1 where one of them vanishes."""
    usable = (weights > 0.0) & (states > 0.0)
    return torch.where(usable, weights / torch.where(usable, states, 1.0), 1.0).sqrt()


_CREDIT: dict[str, type[_Credit]] = {
    "readout": _Credit,
    "immediate": _Immediate,
    "window": _Window,
    "trace": _OwnTraces,
    "eprop": _OwnTraces,
    "rflo": _OwnTraces,
    "snap1": _OwnTraces,
    "rtrl": _Traces,
    "sparse_rtrl": _Traces,
    "uoro": _UORO,
}


# Optimisers: (its constants, θ (S, R, w), g, its arrays (S, R, slots, w), rate (S, 1, w), t (S, 1, 1)) → θ and arrays


def _sgd(constants: Any, theta: Tensor, g: Tensor, slots: Tensor, rate: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    return theta - rate * g, slots


def _sign(constants: Any, theta: Tensor, g: Tensor, slots: Tensor, rate: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    return theta - rate * torch.sign(g), slots


def _momentum(constants: Any, theta: Tensor, g: Tensor, slots: Tensor, rate: Tensor, t: Tensor):
    m = constants.momentum * slots[:, :, 0] + g
    return theta - rate * m, m[:, :, None]


def _rmsprop(constants: Any, theta: Tensor, g: Tensor, slots: Tensor, rate: Tensor, t: Tensor):
    v = constants.beta2 * slots[:, :, 0] + (1.0 - constants.beta2) * g.square()
    return theta - rate * g / (v.sqrt() + constants.epsilon), v[:, :, None]


def _adagrad(constants: Any, theta: Tensor, g: Tensor, slots: Tensor, rate: Tensor, t: Tensor):
    v = slots[:, :, 0] + g.square()
    return theta - rate * g / (v.sqrt() + constants.epsilon), v[:, :, None]


def _adam(constants: Any, theta: Tensor, g: Tensor, slots: Tensor, rate: Tensor, t: Tensor):
    m = constants.beta1 * slots[:, :, 0] + (1.0 - constants.beta1) * g
    v = constants.beta2 * slots[:, :, 1] + (1.0 - constants.beta2) * g.square()
    mean, mean_square = m, v
    if constants.bias_correction:
        mean, mean_square = m / (1.0 - constants.beta1**t), v / (1.0 - constants.beta2**t)
    return theta - rate * mean / (mean_square.sqrt() + constants.epsilon), torch.stack([m, v], 2)


_UPDATES: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {
    "sgd": _sgd,
    "sign": _sign,
    "momentum": _momentum,
    "rmsprop": _rmsprop,
    "adagrad": _adagrad,
    "adam": _adam,
    "lars": _momentum,
    "group_rmsprop": _sgd,
    "adafactor": _sgd,
}


# What an optimiser multiplies the gradient of each group by: (its constants, Σ θ² (S, n_groups), Σ g², number of
# weights, its arrays (S, n_groups, slots)) → factors (S, n_groups) and arrays.


def _lars(constants: Any, theta: Tensor, g: Tensor, counts: Tensor, slots: Tensor) -> tuple[Tensor, Tensor]:
    trust = constants.trust * theta.sqrt() / (g.sqrt() + constants.epsilon)
    return torch.where((theta > 0.0) & (g > 0.0), trust, 1.0), slots


def _group_rmsprop(constants: Any, theta: Tensor, g: Tensor, counts: Tensor, slots: Tensor) -> tuple[Tensor, Tensor]:
    there = counts > 0.0
    v = constants.beta2 * slots[..., 0] + (1.0 - constants.beta2) * g / counts.clamp(min=1.0)
    v = torch.where(there, v, slots[..., 0])
    return torch.where(there, 1.0 / (v.sqrt() + constants.epsilon), 1.0), v[..., None]


_RESCALES: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {"lars": _lars, "group_rmsprop": _group_rmsprop}


# What is done to the gradient of a whole matrix: (its constants, g (S, R, w), rows with a gradient (S, R), parts
# (n_parts, 2), what is kept of it (S, …), t (S, 1, 1)) → g and what is kept.


def _adafactor(constants: Any, g: Tensor, rows: Tensor, parts: np.ndarray, moments: Tensor, t: Tensor):
    S, R, _ = g.shape
    there, fresh = rows[..., None], t.clamp(min=1.0) ** -constants.decay_power
    by_row, by_column = moments[:, : R * len(parts)].view(S, R, -1), moments[:, R * len(parts) :]
    counted = there.sum(1, keepdim=True).clamp(min=1)
    changed, new_rows, new_columns = [], [], []
    for part, (start, width) in enumerate(parts.tolist()):
        here = slice(start, start + width)
        square = g[..., here].square() + constants.epsilon
        r, c = by_row[..., part : part + 1], by_column[:, None, here]
        r = torch.where(there, r + fresh * (square.mean(-1, keepdim=True) - r), r)
        mean = torch.where(there, square, 0.0).sum(1, keepdim=True) / counted
        c = torch.where(there.any(1, keepdim=True), c + fresh * (mean - c), c)
        u = torch.where(there, g[..., here] / (r * c / c.mean(-1, keepdim=True)).sqrt(), 0.0)
        if constants.update_clip > 0.0:
            size = (u.square().sum((1, 2), keepdim=True) / (counted * width)).sqrt()
            u = u / (size / constants.update_clip).clamp(min=1.0)
        changed.append(u)
        new_rows.append(r)
        new_columns.append(c[:, 0])
    return torch.cat(changed, -1), torch.cat([torch.cat(new_rows, -1).flatten(1), *new_columns], 1)


_PRECONDITIONS: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {"adafactor": _adafactor}


def _pace(schedule: Schedule, t: np.ndarray) -> np.ndarray:
    """Factor on the learning rate at updates t (S,)."""
    since = np.maximum(t - schedule.warm_up, 0.0) / schedule.length
    factor = {
        "constant": np.ones_like(since),
        "exponential": 0.5**since,
        "cosine": schedule.floor + (1.0 - schedule.floor) * 0.5 * (1.0 + np.cos(np.pi * np.minimum(since, 1.0))),
        "inverse_sqrt": (1.0 + since) ** -0.5,
    }[schedule.kind]
    return np.where(t <= schedule.warm_up, t / max(schedule.warm_up, 1.0), factor)


# The loop


def _device(name: str) -> torch.device:
    """The device called `name`; `InputError` where it is not there or cannot hold float64."""
    try:
        device = torch.device(name)
        torch.zeros(1, dtype=torch.float64, device=device)
    except (RuntimeError, TypeError, AssertionError) as error:
        raise InputError(f"device: cannot compute in float64 on {name!r}: {error}") from error
    return device


class _Loop:
    """The learner's arrays as tensors on its device, and one run over a stream."""

    def __init__(self, learner: Learner, arrays: Mapping[str, np.ndarray]):
        rule, optimizer, network = learner.rule, learner.optimizer, learner.network
        for what, name, known in (("rule", rule.name, _CREDIT), ("optimiser", optimizer.name, _UPDATES)):
            if name not in known:
                raise InputError(f"the torch backend does not know the {what} {name!r}; it has {', '.join(known)}")
        self.learner, self.device = learner, _device(learner.device)
        kept = ("W", "C", "B", "opt_W", "opt_C", "opt_groups", "state", "output")
        kept += ("mean_W", "mean_C", "mean_state", "mean_output")
        self.now = {name: self._tensor(arrays[name]) for name in kept}
        ring = {name.removeprefix("ring_"): array for name, array in arrays.items() if name.startswith("ring_")}
        # When labels arrive and whether there are any steers the loop, and so stays where Python runs.
        self.arrives = ring.pop("arrives")[0].copy()
        self.labelled = np.asarray((ring["weight"] > 0.0).any(-1))
        self.ring = {name: self._tensor(array) for name, array in ring.items()}
        self.counters = arrays["counters"].copy()
        self.dynamics = _Opaque(network) if isinstance(network, ModuleNetwork) else _Gated(network)
        credit = _CREDIT[rule.name]
        if credit is _OwnTraces and not self.dynamics.own:
            credit = _Traces
        self.credit = credit(learner, self.dynamics, arrays, self.device)
        rate_W, rate_C = learner.rates()
        self.learns = rule.learns_recurrent and bool(rate_W.any() or optimizer.learning_rate == 0.0)
        self.rates = {"W": self._tensor(rate_W), "C": self._tensor(rate_C)}
        groups = zip("WC", learner.groups(), strict=True)
        self.groups = {name: torch.tensor(numbers, device=self.device) for name, numbers in groups}
        self.learning_groups = self._tensor(learner.multipliers() != 0.0)

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.tensor(array, dtype=torch.float64, device=self.device)

    def write(self, arrays: dict[str, np.ndarray]) -> None:
        """Write what has changed back into `arrays`."""
        changed = self.now | {f"ring_{name}": tensor for name, tensor in self.ring.items()}
        changed["memory"] = self.credit.packed(self.processed)
        for name, tensor in changed.items():
            arrays[name][...] = tensor.cpu().numpy()
        arrays["ring_arrives"][...] = self.arrives
        arrays["generator"][:, 0] = np.array(self.credit.generator, np.uint64)
        arrays["counters"][...] = self.counters

    @property
    def processed(self) -> int:
        return int(self.counters[0, PROCESSED])

    @property
    def records(self) -> int:
        return int(self.counters[0, RECORDS])

    def run(self, stream: Stream) -> Tensor:
        """Predictions (S, T, M)."""
        S, T = len(self.now["W"]), len(stream.observed)
        X, Y, weight = (self._tensor(array).expand(S, -1, -1) for array in stream[:3])
        labelled = np.asarray((stream.weight > 0.0).any(-1))
        arrives = stream.arrives + self.counters[0, BIN]
        predictions = X.new_empty(S, T, self.learner.network.n_outputs)
        shown = "output" if self.learner.average is None else "mean_output"
        for t in range(T):
            if stream.reset[t]:
                self._reset()
            if stream.observed[t]:
                slot = self.records % len(self.arrives)
                self._predict(slot, X[:, t])
                self.ring["label"][:, slot], self.ring["weight"][:, slot] = Y[:, t], weight[:, t]
                self.labelled[:, slot], self.arrives[slot] = labelled[:, t], arrives[t]
                self.counters[:, RECORDS] += 1
            predictions[:, t] = self.now[shown]
            for _ in range(self.learner.max_updates_per_bin):
                slot = self.processed % len(self.arrives)
                if self.processed == self.records or self.arrives[slot] > self.counters[0, BIN]:
                    break
                self._learn(self.processed, slot)
                self.counters[:, PROCESSED] += 1
            self.counters[:, BIN] += 1
        return predictions

    def _reset(self) -> None:
        """Begin a stretch: nothing that was felt, predicted or is waiting crosses into it."""
        for name in ("state", "mean_state", "output", "mean_output"):
            self.now[name] = torch.zeros_like(self.now[name])
        self.credit.clear()
        for record in range(self.processed, self.records):
            self.counters[:, DROPPED] += self.labelled[:, record % len(self.arrives)]
        self.counters[:, PROCESSED] = self.counters[:, FIRST] = self.records

    def _predict(self, slot: int, x: Tensor) -> None:
        """One bin of the network, recorded at `slot` of the ring, and of the averaged one."""
        now, ring = self.now, self.ring
        before = now["state"]
        now["state"], a, v = self.dynamics.step(now["W"], x, before[:, 0], before)
        u, now["output"] = self.credit.readout(now["C"], now["state"], x)
        z = torch.cat([v, x, torch.ones_like(x[:, :1]), before[:, 0]], -1)
        made = {"z": z, "a": a, "before": before, "after": now["state"], "features": u, "prediction": now["output"]}
        for name, value in made.items():
            ring[name][:, slot] = value
        if self.learner.average is not None:
            mean = now["mean_state"]
            now["mean_state"] = self.dynamics.step(now["mean_W"], x, mean[:, 0], mean)[0]
            now["mean_output"] = self.credit.readout(now["mean_C"], now["mean_state"], x)[1]

    def _learn(self, record: int, slot: int) -> None:
        """Work off one record; only replicas with a label of it, and readout rows with one, move."""
        labelled = self.labelled[:, slot]
        if not (labelled.any() or self.learner.rule.advances):
            return
        W, C, B = (self.now[name] for name in "WCB")
        net = _Net(W, C, B if B.numel() else C)
        u, e, g = self.credit.learn(net, self.ring, int(self.counters[0, FIRST]), record, self.learns)
        if not labelled.any():
            return
        self.counters[:, UPDATES] += labelled
        gradients = {"C": e[..., None] * u[:, None]}
        rows = {"C": self.ring["weight"][:, slot] > 0.0}
        here = torch.tensor(labelled, device=self.device)
        if g is not None:
            gradients["W"], rows["W"] = g, here[:, None].expand(-1, W.shape[1])
        if self.learner.optimizer.gathers:
            self._rescale(gradients, rows)
        if self.learner.optimizer.name in _PRECONDITIONS:
            self._precondition(gradients, rows)
        self._update(gradients, rows)
        if self.learner.average is not None:
            for name in gradients:
                mean = self.now[f"mean_{name}"]
                moved = mean + (1.0 - self.learner.average) * (self.now[name] - mean)
                self.now[f"mean_{name}"] = torch.where(here[:, None, None], moved, mean)

    def _rescale(self, gradients: dict[str, Tensor], rows: Mapping[str, Tensor]) -> None:
        """Clip the whole gradient, then scale that of each weight group as the optimiser asks."""
        optimizer, S = self.learner.optimizer, len(self.counters)
        theta_squares, g_squares, counts = torch.zeros(3, S, len(GROUPS), dtype=torch.float64, device=self.device)
        for name, g in gradients.items():
            there = rows[name][..., None].to(g)
            for total, values in ((theta_squares, self.now[name]), (g_squares, g), (counts, torch.ones_like(g))):
                total.index_add_(1, self.groups[name], (there * values.square()).sum(1))
        factors = torch.ones_like(counts)
        if optimizer.clip > 0.0:
            norm = (g_squares * self.learning_groups).sum(1, keepdim=True).sqrt()
            factors = (optimizer.clip / (norm + 1e-6)).clamp(max=1.0).expand_as(counts)
        if optimizer.name in _RESCALES:
            clipped = g_squares * factors.square()
            more, self.now["opt_groups"] = _RESCALES[optimizer.name](
                optimizer, theta_squares, clipped, counts, self.now["opt_groups"]
            )
            factors = factors * more
        for name, g in gradients.items():
            gradients[name] = g * factors[:, self.groups[name]][:, None]

    def _precondition(self, gradients: dict[str, Tensor], rows: Mapping[str, Tensor]) -> None:
        """Change the gradient of every matrix as the optimiser asks."""
        network, W = self.learner.network, self.now["W"]
        parts = {"W": network.parts(), "C": network.readout_parts()}
        split = W.shape[1] * len(parts["W"]) + W.shape[2]
        moments = self.now["opt_groups"][:, 0]
        kept = {"W": moments[:, :split], "C": moments[:, split:]}
        number = self._tensor(self.counters[:, UPDATES].astype(float))[:, None, None]
        precondition = _PRECONDITIONS[self.learner.optimizer.name]
        for name, g in gradients.items():
            gradients[name], kept[name] = precondition(
                self.learner.optimizer, g, rows[name], parts[name], kept[name], number
            )
        self.now["opt_groups"] = torch.cat([kept["W"], kept["C"]], 1)[:, None]

    def _update(self, gradients: Mapping[str, Tensor], rows: Mapping[str, Tensor]) -> None:
        optimizer, t = self.learner.optimizer, self.counters[:, UPDATES].astype(float)
        number, pace = (self._tensor(v)[:, None, None] for v in (t, _pace(optimizer.schedule, t)))
        for name, g in gradients.items():
            theta, slots, rate = self.now[name], self.now[f"opt_{name}"], pace * self.rates[name]
            shrunk = theta * (1.0 - rate * optimizer.weight_decay)
            moved, new = _UPDATES[optimizer.name](optimizer, shrunk, g, slots, rate, number)
            self.now[name] = torch.where(rows[name][..., None], moved, theta)
            self.now[f"opt_{name}"] = torch.where(rows[name][..., None, None], new, slots)
