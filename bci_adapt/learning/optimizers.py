"""Optimisers: one in-place update per weight row, each with torch.optim's definition where torch has it.

An optimiser is a frozen set of constants. Its ``make()`` returns ``update(theta, g, state, rate, hyper, t)``, which
changes one row of weights: theta (w,), its gradient g (w,), the optimiser's arrays for that row state (n_slots, w),
the learning rate of every column rate (w,), the constants hyper, and t ≥ 1, the number of this update. An optimiser
whose step depends on the size of whole weight groups (`GROUPS`) says so (``whole``) and gives ``make_rescale()``; the
loop then forms all gradients before the first row moves, which takes one array of the weights' size more. One that also
needs whole matrices says ``preconditions`` and gives ``make_precondition()``.

Weight decay, clipping and schedules are the base's, so that every optimiser has them. Longer than 500 lines: each
of the nine stands here whole, with its kernel and its counterpart in torch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from bci_adapt.errors import InputError
from bci_adapt.ground.catalog import pick, variants
from bci_adapt.learning.schedules import Schedule

if TYPE_CHECKING:
    from bci_adapt.learning.backends.torch_optimizers import Counterpart

# The first three are columns of W; `output_bias` is the constant's column of C, `readout` its other ones.
GROUPS = ("input", "bias", "recurrent", "readout", "output_bias")


def shrink(theta, rate, decay):
    """theta ← (1 − rate · decay) theta: decay beside the gradient, not in it (Loshchilov & Hutter 2019)."""
    for j in range(theta.shape[0]):
        theta[j] *= 1.0 - rate[j] * decay


def gather_squares(values, groups, squares, counts):
    """Add the squares of a row (w,) and the number of its columns to the sums of their groups."""
    for j in range(values.shape[0]):
        squares[groups[j]] += values[j] * values[j]
        counts[groups[j]] += 1.0


def stretch(g, groups, factors):
    """Multiply a row (w,) by the factors of its groups."""
    for j in range(g.shape[0]):
        g[j] *= factors[groups[j]]


def _leave(G, there, parts, moments, hyper, t):
    """No preconditioning."""


def _keep(theta_squares, g_squares, counts, state, hyper, t, factors):
    """No rescaling."""


@dataclass(frozen=True)
class Optimizer(ABC):
    """Base of all optimisers.

    Parameters
    ----------
    learning_rate : step size of every weight group without a multiplier of its own.
    weight_decay : decoupled from the gradient: θ ← (1 − η · weight_decay) θ before each update of a row, as
        torch.optim.AdamW has it.
    clip : largest Frobenius norm of the gradient over all weights that learn (0 for none), as clip_grad_norm_ of torch.
    schedule : of the learning rate.
    """

    name: ClassVar[str]
    n_slots: ClassVar[int]
    description: ClassVar[str]
    whole: ClassVar[bool] = False
    n_group_slots: ClassVar[int] = 0
    preconditions: ClassVar[bool] = False

    learning_rate: float = 1e-3
    weight_decay: float = field(default=0.0, kw_only=True)
    clip: float = field(default=0.0, kw_only=True)
    schedule: Schedule = field(default_factory=Schedule, kw_only=True)

    def __post_init__(self):
        for name in ("learning_rate", "weight_decay", "clip"):
            value = getattr(self, name)
            if not (np.isfinite(value) and value >= 0.0):
                raise InputError(f"{self.name}: {name} must be finite and ≥ 0, got {value}")
        for name in ("beta1", "beta2", "momentum"):
            if hasattr(self, name) and not 0.0 <= getattr(self, name) < 1.0:
                raise InputError(f"{self.name}: {name} must lie in [0, 1), got {getattr(self, name)}")

    @property
    def gathers(self) -> bool:
        """Whether all gradients must be known before the first row moves."""
        return self.whole or self.clip > 0.0

    def hyper(self) -> np.ndarray:
        """Constants as the kernel reads them (n_constants,)."""
        return np.zeros(1)

    @abstractmethod
    def make(self) -> Callable:
        """Return the update of one row, in plain Python that also compiles."""

    def torch_counterpart(self) -> Counterpart | None:
        """The same formulas in torch (backends.torch_optimizers), torch imported inside. None where there are none: the
        torch backend then refuses the optimiser.
        """
        return None

    @classmethod
    def examples(cls) -> tuple[Optimizer, ...]:
        """The optimiser as the tests run it: constants other than torch's defaults."""
        return (cls(0.1),)

    def torch_optim(self, parameters: list[Any]) -> Any:
        """The same of torch.optim with these constants, on these tensors, which the update of a row is held to; None
        where torch has none.
        """
        return None

    def make_rescale(self) -> Callable:
        """Return ``rescale(theta_squares, g_squares, counts, state, hyper, t, factors)``: from the sums of squares and
        the number of weights of each group (n_groups,) and the optimiser's arrays for them (n_groups, n_group_slots),
        multiply `factors` (n_groups,) by what the group's gradient is multiplied with.
        """
        return _keep

    def whole_shape(self, network: Any) -> tuple[int, int]:
        """Shape of what is kept beside the arrays of each row."""
        return len(GROUPS), self.n_group_slots

    def make_precondition(self) -> Callable:
        """Return ``precondition(G, there, parts, moments, hyper, t)``: change the gradient G (n_rows, width) of W or C
        in place, after clipping and before `update`. Rows whose `there` (n_rows,) is 0 have none. `parts` (n_parts, 2)
        has the first column and the width of everything that is a matrix of its own; `moments` is what is kept.
        """
        return _leave


@dataclass(frozen=True)
class SGD(Optimizer):
    """θ ← θ − η g."""

    name: ClassVar[str] = "sgd"
    n_slots: ClassVar[int] = 0
    description: ClassVar[str] = "θ ← θ − η g"

    def torch_optim(self, parameters):
        import torch

        return torch.optim.SGD(parameters, lr=self.learning_rate)

    def make(self):
        def update(theta, g, state, rate, hyper, t):
            for j in range(theta.shape[0]):
                theta[j] -= rate[j] * g[j]

        return update

    def torch_counterpart(self):
        from bci_adapt.learning.backends.torch_optimizers import Counterpart

        def update(theta, g, slots, rate, t):
            return theta - rate * g, slots

        return Counterpart(update)


@dataclass(frozen=True)
class Momentum(Optimizer):
    """m ← μ m + g;  θ ← θ − η m  (Polyak 1964; torch.optim.SGD with momentum)."""

    name: ClassVar[str] = "momentum"
    n_slots: ClassVar[int] = 1
    description: ClassVar[str] = "m ← μ m + g; θ ← θ − η m  (Polyak 1964)"
    momentum: float = 0.9

    def hyper(self):
        return np.array([self.momentum])

    @classmethod
    def examples(cls):
        return (cls(0.1, 0.8),)

    def torch_optim(self, parameters):
        import torch

        return torch.optim.SGD(parameters, lr=self.learning_rate, momentum=self.momentum)

    def make(self):
        def update(theta, g, state, rate, hyper, t):
            m = state[0]
            for j in range(theta.shape[0]):
                m[j] = hyper[0] * m[j] + g[j]
                theta[j] -= rate[j] * m[j]

        return update

    def torch_counterpart(self):
        from bci_adapt.learning.backends.torch_optimizers import Counterpart

        def update(theta, g, slots, rate, t):
            m = self.momentum * slots[:, :, 0] + g
            return theta - rate * m, m[:, :, None]

        return Counterpart(update)


@dataclass(frozen=True)
class RMSprop(Optimizer):
    """v ← β₂ v + (1 − β₂) g²;  θ ← θ − η g / (√v + ε)  (Hinton 2012; torch.optim.RMSprop)."""

    name: ClassVar[str] = "rmsprop"
    n_slots: ClassVar[int] = 1
    description: ClassVar[str] = "v ← β₂ v + (1−β₂) g²; θ ← θ − η g/(√v + ε)  (Hinton 2012)"
    beta2: float = 0.99
    epsilon: float = 1e-8

    def hyper(self):
        return np.array([self.beta2, self.epsilon])

    @classmethod
    def examples(cls):
        return (cls(0.1, beta2=0.95, epsilon=1e-6),)

    def torch_optim(self, parameters):
        import torch

        return torch.optim.RMSprop(parameters, lr=self.learning_rate, alpha=self.beta2, eps=self.epsilon)

    def make(self):
        def update(theta, g, state, rate, hyper, t):
            beta2, epsilon = hyper[0], hyper[1]
            v = state[0]
            for j in range(theta.shape[0]):
                v[j] = beta2 * v[j] + (1.0 - beta2) * (g[j] * g[j])
                theta[j] -= rate[j] * g[j] / (np.sqrt(v[j]) + epsilon)

        return update

    def torch_counterpart(self):
        from bci_adapt.learning.backends.torch_optimizers import Counterpart

        def update(theta, g, slots, rate, t):
            v = self.beta2 * slots[:, :, 0] + (1.0 - self.beta2) * g.square()
            return theta - rate * g / (v.sqrt() + self.epsilon), v[:, :, None]

        return Counterpart(update)


@dataclass(frozen=True)
class Adam(Optimizer):
    """Kingma & Ba 2015, as torch.optim.Adam; β₁ = 0 leaves out momentum, β₂ = 0 the memory of squares.

    Parameters
    ----------
    bias_correction : divide the means by 1 − βᵗ, which they lack at the start.
    """

    name: ClassVar[str] = "adam"
    n_slots: ClassVar[int] = 2
    description: ClassVar[str] = "m, v exponential means of g, g²; θ ← θ − η m̂/(√v̂ + ε)  (Kingma & Ba 2015)"
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    bias_correction: bool = True

    def hyper(self):
        return np.array([self.beta1, self.beta2, self.epsilon, float(self.bias_correction)])

    @classmethod
    def examples(cls):
        return cls(0.1, 0.8, 0.97, 1e-7), cls(0.1, 0.0, 0.97), cls(0.1, 0.9, 0.0)

    def torch_optim(self, parameters):
        import torch

        return torch.optim.Adam(parameters, self.learning_rate, (self.beta1, self.beta2), self.epsilon)

    def make(self):
        def update(theta, g, state, rate, hyper, t):
            beta1, beta2, epsilon = hyper[0], hyper[1], hyper[2]
            m, v = state[0], state[1]
            scale, root = 1.0, 1.0
            if hyper[3] != 0.0:
                scale, root = 1.0 / (1.0 - beta1**t), np.sqrt(1.0 - beta2**t)
            for j in range(theta.shape[0]):
                m[j] = beta1 * m[j] + (1.0 - beta1) * g[j]
                v[j] = beta2 * v[j] + (1.0 - beta2) * (g[j] * g[j])
                theta[j] -= rate[j] * scale * m[j] / (np.sqrt(v[j]) / root + epsilon)

        return update

    def torch_counterpart(self):
        import torch

        from bci_adapt.learning.backends.torch_optimizers import Counterpart

        def update(theta, g, slots, rate, t):
            m = self.beta1 * slots[:, :, 0] + (1.0 - self.beta1) * g
            v = self.beta2 * slots[:, :, 1] + (1.0 - self.beta2) * g.square()
            mean, mean_square = m, v
            if self.bias_correction:
                mean, mean_square = m / (1.0 - self.beta1**t), v / (1.0 - self.beta2**t)
            return theta - rate * mean / (mean_square.sqrt() + self.epsilon), torch.stack([m, v], 2)

        return Counterpart(update)


@dataclass(frozen=True)
class AdaGrad(Optimizer):
    """v ← v + g²;  θ ← θ − η g / (√v + ε)  (Duchi et al. 2011; torch.optim.Adagrad)."""

    name: ClassVar[str] = "adagrad"
    n_slots: ClassVar[int] = 1
    description: ClassVar[str] = "v ← v + g²; θ ← θ − η g/(√v + ε)  (Duchi et al. 2011)"
    epsilon: float = 1e-10

    def hyper(self):
        return np.array([self.epsilon])

    def torch_optim(self, parameters):
        import torch

        return torch.optim.Adagrad(parameters, lr=self.learning_rate, eps=self.epsilon)

    def make(self):
        def update(theta, g, state, rate, hyper, t):
            v = state[0]
            for j in range(theta.shape[0]):
                v[j] += g[j] * g[j]
                theta[j] -= rate[j] * g[j] / (np.sqrt(v[j]) + hyper[0])

        return update

    def torch_counterpart(self):
        from bci_adapt.learning.backends.torch_optimizers import Counterpart

        def update(theta, g, slots, rate, t):
            v = slots[:, :, 0] + g.square()
            return theta - rate * g / (v.sqrt() + self.epsilon), v[:, :, None]

        return Counterpart(update)


@dataclass(frozen=True)
class Sign(Optimizer):
    """θ ← θ − η sign(g)  (signSGD, Bernstein et al. 2018): RMSprop without any memory."""

    name: ClassVar[str] = "sign"
    n_slots: ClassVar[int] = 0
    description: ClassVar[str] = "θ ← θ − η sign(g)  (Bernstein et al. 2018)"

    def make(self):
        def update(theta, g, state, rate, hyper, t):
            for j in range(theta.shape[0]):
                theta[j] -= rate[j] * np.sign(g[j])

        return update

    def torch_counterpart(self):
        from bci_adapt.learning.backends.torch_optimizers import Counterpart

        def update(theta, g, slots, rate, t):
            return theta - rate * g.sign(), slots

        return Counterpart(update)


@dataclass(frozen=True)
class LARS(Optimizer):
    """m ← μ m + γ g, γ = τ ‖θ‖ / (‖g‖ + ε) per weight group;  θ ← θ − η m  (You et al. 2017).

    A group of weights that are all zero (biases at the start) or without a gradient keeps γ = 1, as the usual
    implementations do.
    """

    name: ClassVar[str] = "lars"
    n_slots: ClassVar[int] = 1
    whole: ClassVar[bool] = True
    description: ClassVar[str] = "m ← μ m + τ‖θ‖/‖g‖ g per weight group; θ ← θ − η m  (You et al. 2017)"
    momentum: float = 0.9
    trust: float = 1e-3
    epsilon: float = 1e-9

    def hyper(self):
        return np.array([self.momentum, self.trust, self.epsilon])

    def make(self):
        return Momentum.make(self)  # type: ignore[arg-type]

    def make_rescale(self):
        def rescale(theta_squares, g_squares, counts, state, hyper, t, factors):
            for group in range(factors.shape[0]):
                theta, g = np.sqrt(theta_squares[group]), np.sqrt(g_squares[group])
                if theta > 0.0 and g > 0.0:
                    factors[group] *= hyper[1] * theta / (g + hyper[2])

        return rescale

    def torch_counterpart(self):
        import torch

        def rescale(theta_squares, g_squares, counts, slots):
            trust = self.trust * theta_squares.sqrt() / (g_squares.sqrt() + self.epsilon)
            return torch.where((theta_squares > 0.0) & (g_squares > 0.0), trust, 1.0), slots

        return Momentum.torch_counterpart(self)._replace(rescale=rescale)  # type: ignore[arg-type]


@dataclass(frozen=True)
class GroupRMSprop(Optimizer):
    """v ← β₂ v + (1 − β₂) mean(g²), one number per weight group;  θ ← θ − η g / (√v + ε): second-moment normalisation
    of whole groups, which sets the balance between readout and recurrent weights and nothing inside them.
    """

    name: ClassVar[str] = "group_rmsprop"
    n_slots: ClassVar[int] = 0
    n_group_slots: ClassVar[int] = 1
    whole: ClassVar[bool] = True
    description: ClassVar[str] = (
        "RMSprop with one second moment per weight group (W: input, bias, recurrent; C: readout, output bias)"
    )
    beta2: float = 0.99
    epsilon: float = 1e-8

    def hyper(self):
        return np.array([self.beta2, self.epsilon])

    def make(self):
        return SGD.make(self)  # type: ignore[arg-type]

    def make_rescale(self):
        def rescale(theta_squares, g_squares, counts, state, hyper, t, factors):
            for group in range(factors.shape[0]):
                if counts[group] > 0.0:
                    mean = g_squares[group] / counts[group]
                    state[group, 0] = hyper[0] * state[group, 0] + (1.0 - hyper[0]) * mean
                    factors[group] *= 1.0 / (np.sqrt(state[group, 0]) + hyper[1])

        return rescale

    def torch_counterpart(self):
        import torch

        def rescale(theta_squares, g_squares, counts, slots):
            there = counts > 0.0
            v = self.beta2 * slots[..., 0] + (1.0 - self.beta2) * g_squares / counts.clamp(min=1.0)
            v = torch.where(there, v, slots[..., 0])
            return torch.where(there, 1.0 / (v.sqrt() + self.epsilon), 1.0), v[..., None]

        return SGD.torch_counterpart(self)._replace(rescale=rescale)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Adafactor(Optimizer):
    """Second moments of a matrix from those of its rows and columns (Shazeer & Stern 2018, algorithms 4 and 5):

        R ← β R + (1 − β) row means of (g² + ε),   C ← β C + (1 − β) column means,   β = 1 − t^−decay_power,
        u = g / √(R Cᵀ / mean C),   θ ← θ − η u / max(1, RMS(u) / update_clip)

    A matrix is what a gate reads of one kind – inputs, constant, recurrent – and in the readout the features, the
    constant and the skipped inputs; where it has one column, the moments are those of each weight. η is the learning
    rate as it is: no relative step, no factor RMS(θ). Where only some rows of the readout have a label, C is the mean
    over those. The parameters of a torch module lie in one row, and are not factored.

    Parameters
    ----------
    update_clip : largest root mean square of u in a matrix (0 for none).
    """

    name: ClassVar[str] = "adafactor"
    n_slots: ClassVar[int] = 0
    whole: ClassVar[bool] = True
    preconditions: ClassVar[bool] = True
    description: ClassVar[str] = "RMSprop with second moments factored into rows and columns  (Shazeer & Stern 2018)"
    decay_power: float = 0.8
    epsilon: float = 1e-30
    update_clip: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        if not (0.0 < self.decay_power <= 1.0 and self.update_clip >= 0.0):
            raise InputError(
                "adafactor: expected decay_power in (0, 1] and update_clip ≥ 0, got "
                f"{self.decay_power}, {self.update_clip}"
            )

    def hyper(self):
        return np.array([self.decay_power, self.epsilon, self.update_clip])

    def whole_shape(self, network):
        """R (n_rows, n_parts) of W, then its C (row_width,); then the same of the readout."""
        W = network.n_rows * len(network.parts()) + network.row_width
        return 1, W + network.n_outputs * len(network.readout_parts()) + network.readout_width

    def make(self):
        return SGD.make(self)  # type: ignore[arg-type]

    def make_precondition(self):
        def precondition(G, there, parts, moments, hyper, t):
            n, n_parts = G.shape[0], parts.shape[0]
            fresh = t ** -hyper[0]
            labelled = 0.0
            for i in range(n):
                labelled += 1.0 if there[i] > 0.0 else 0.0
            for part in range(n_parts):
                start, width = parts[part, 0], parts[part, 1]
                columns = moments[n * n_parts + start : n * n_parts + start + width]
                for j in range(width):
                    columns[j] *= 1.0 - fresh
                for i in range(n):
                    if there[i] > 0.0:
                        g, total = G[i, start : start + width], 0.0
                        for j in range(width):
                            square = g[j] * g[j] + hyper[1]
                            columns[j] += fresh / labelled * square
                            total += square
                        row = i * n_parts + part
                        moments[row] = (1.0 - fresh) * moments[row] + fresh / width * total
                mean = 0.0
                for j in range(width):
                    mean += columns[j] / width
                squares = 0.0
                for i in range(n):
                    if there[i] > 0.0:
                        g, scale = G[i, start : start + width], moments[i * n_parts + part] / mean
                        for j in range(width):
                            g[j] /= np.sqrt(scale * columns[j])
                            squares += g[j] * g[j]
                size = np.sqrt(squares / (labelled * width))
                if hyper[2] > 0.0 and size > hyper[2]:
                    for i in range(n):
                        if there[i] > 0.0:
                            g = G[i, start : start + width]
                            for j in range(width):
                                g[j] *= hyper[2] / size

        return precondition

    def torch_counterpart(self):
        import torch

        def precondition(g, rows, parts, moments, t):
            S, R, _ = g.shape
            there, fresh = rows[..., None], t.clamp(min=1.0) ** -self.decay_power
            by_row, by_column = moments[:, : R * len(parts)].view(S, R, -1), moments[:, R * len(parts) :]
            counted = there.sum(1, keepdim=True).clamp(min=1)
            changed, new_rows, new_columns = [], [], []
            for part, (start, width) in enumerate(parts.tolist()):
                here = slice(start, start + width)
                square = g[..., here].square() + self.epsilon
                r, c = by_row[..., part : part + 1], by_column[:, None, here]
                r = torch.where(there, r + fresh * (square.mean(-1, keepdim=True) - r), r)
                mean = torch.where(there, square, 0.0).sum(1, keepdim=True) / counted
                c = torch.where(there.any(1, keepdim=True), c + fresh * (mean - c), c)
                u = torch.where(there, g[..., here] / (r * c / c.mean(-1, keepdim=True)).sqrt(), 0.0)
                if self.update_clip > 0.0:
                    size = (u.square().sum((1, 2), keepdim=True) / (counted * width)).sqrt()
                    u = u / (size / self.update_clip).clamp(min=1.0)
                changed.append(u)
                new_rows.append(r)
                new_columns.append(c[:, 0])
            return torch.cat(changed, -1), torch.cat([torch.cat(new_rows, -1).flatten(1), *new_columns], 1)

        return SGD.torch_counterpart(self)._replace(precondition=precondition)  # type: ignore[arg-type]


def optimizers() -> dict[str, type[Optimizer]]:
    """Every optimiser, by name."""
    return variants("bci_adapt.learning.optimizers", Optimizer)


def optimizer(name: str, **constants: float) -> Optimizer:
    """Build the optimiser called `name`; `InputError` when there is none."""
    return pick("bci_adapt.learning.optimizers", Optimizer, name)(**constants)
