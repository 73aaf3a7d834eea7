"""Networks as the torch backend sees them: a shipped cell, or any torch module, and its derivatives by autograd.

Of a shipped cell only the update (and ``v = ρ(a, s)``) is used. Derivatives are those of

    s' = f(θ, h, s)      at the input of one record, with h = s[0] given apart,

so that what a unit remembers by itself (∂f/∂s) can be told from what it hears through weights (∂f/∂h).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp, vjp, vmap

from bci_adapt.errors import InputError
from bci_adapt.learning.cells.base import Cell, Network
from bci_adapt.learning.optimizers import GROUPS

Step = Callable[[Tensor, Tensor, Tensor], Tensor]


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
        """Shape of what the rule's torch counterpart carries from record to record."""
        return rule.torch_counterpart(self).memory_shape(self)

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
        f = Opaque(self).at(theta[:, None], Record(x, x[:, :0], s[:, :0], s))
        by_weights, _, _ = derivatives(f, theta[:, None], s, every_state(k, n, theta.device))
        return (by_weights != 0.0).view(k, n, len(theta), -1).any(2).any(0).repeat(k, 1)


def module_of(cell: Cell, network: Network, W: np.ndarray | None = None) -> nn.Module:
    """A shipped cell as a module for `ModuleNetwork`, with the sizes of `network`.

    Its parameters are one matrix (n_hidden, width) per gate: the columns of W (n_hidden, row_width), which is what they
    start from; `network`'s initial weights of seed 0 when None.
    """
    sized = replace(network, cell=cell)
    W = sized.initial_weights(0)[0] if W is None else W
    return _GatedModule(Gated(sized), np.split(W, sized.blocks[1:, 2], axis=1))


# One bin, and its derivatives


class Record(NamedTuple):
    """What one bin left behind: x (S, m), v (S, n_mid), gate activations a (S, G, n), the state before it (S, k, n)."""

    x: Tensor
    v: Tensor
    a: Tensor
    before: Tensor


class Gated:
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

    def at(self, W: Tensor, record: Record, own: bool = False) -> Step:
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

    def __init__(self, gated: Gated, weights: list[np.ndarray]):
        super().__init__()
        self.gated = gated
        self.weights = nn.ParameterList(torch.tensor(part) for part in weights)

    def forward(self, x: Tensor, h: Tensor, s: Tensor) -> Tensor:
        return self.gated.step(torch.cat(list(self.weights), -1), x, h, s)[0]


class Opaque:
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

    def at(self, W: Tensor, record: Record, own: bool = False) -> Step:
        """f(θ, h, s) at the input of one record."""
        return lambda W, h, s: self.step(W, record.x, h, s)[0]


def backward(f: Callable[..., Tensor], *at: Tensor) -> Any:
    """f there, and the function that pulls a signal back to each argument (torch.func.vjp without auxiliary output)."""
    return vjp(f, *at)


def directional(f: Callable[[Tensor], Tensor], at: Tensor, along: Tensor) -> Tensor:
    """How f moves there, along a direction (torch.func.jvp without its value)."""
    moved: Any = jvp(f, (at,), (along,))
    return moved[1]


def derivatives(f: Step, W: Tensor, s: Tensor, signals: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Signals (B, k, n) pulled back through f at state s (S, k, n): to θ (B, S, R, w), h (B, S, n), s (B, S, k, n)."""
    _, pull = backward(f, W, s[:, 0], s)
    return vmap(pull)(signals[:, None].expand(-1, len(s), -1, -1))


def every_state(k: int, n: int, device: torch.device) -> Tensor:
    """One signal per component of the state (k n, k, n)."""
    return torch.eye(k * n, dtype=torch.float64, device=device).view(k * n, k, n)
