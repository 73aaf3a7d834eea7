"""Cells whose state is a bank of filters: each unit remembers itself alone."""

from dataclasses import replace

from bci_adapt.learning.cells.base import Cell, Gate


def _make_lru(xp):
    # λ = exp(−exp ν + i exp θ), γ = √(1 − |λ|²)
    def update(a, s):
        e, angle = xp.exp(a[0]), xp.exp(a[1])
        size, gain = xp.exp(-e), xp.sqrt(-xp.expm1(-2.0 * e))
        c, d = xp.cos(angle), xp.sin(angle)
        return size * (c * s[0] - d * s[1]) + gain * a[2], size * (d * s[0] + c * s[1]) + gain * a[3]

    def partials(a, s, new):
        e, angle = xp.exp(a[0]), xp.exp(a[1])
        size, gain = xp.exp(-e), xp.sqrt(-xp.expm1(-2.0 * e))
        c, d = size * xp.cos(angle), size * xp.sin(angle)
        re, im, none = c * s[0] - d * s[1], d * s[0] + c * s[1], 0.0 * e
        growth = e * size * size / gain  # ∂γ/∂ν
        by_re = growth * a[2] - e * re, -angle * im, gain, none
        by_im = growth * a[3] - e * im, angle * re, none, gain
        return (by_re, by_im), ((c, -d), (d, c))

    return update, partials


_SIZE = Gate("nu", "1", spread=(-4.6, -0.4), group="recurrent")  # |λ| from 0.51 to 0.99
_ANGLE = Gate("theta", "1", spread=(-3.5, 1.1), group="recurrent")  # from 0.03 to 3 radians a bin

lru = Cell(
    name="lru",
    slots=("re", "im"),
    gates=(_SIZE, _ANGLE, Gate("b_re", "x1"), Gate("b_im", "x1")),
    make=_make_lru,
    equations="h' = λ ⊙ h + γ ⊙ B [x|1], λ = exp(−exp ν + i exp θ), γ = √(1−|λ|²); y = Re(C h')"
    "  (LRU, Orvieto et al. 2023; γ follows λ)",
    output_bypass=False,
    nonlinear_state=False,
    features=(0, 1),
)

lru_skip = replace(
    lru,
    name="lru_skip",
    equations="the lru with y = Re(C h') + D x  (LRU, Orvieto et al. 2023)",
    output_bypass=True,
    skip=True,
)


def _make_lru_tanh(xp):
    def update(a, s):
        e, angle = xp.exp(a[0]), xp.exp(a[1])
        size, gain = xp.exp(-e), xp.sqrt(-xp.expm1(-2.0 * e))
        c, d = xp.cos(angle), xp.sin(angle)
        re, im = size * (c * s[0] - d * s[1]) + gain * a[2], size * (d * s[0] + c * s[1]) + gain * a[3]
        return xp.tanh(re), xp.tanh(im)

    def partials(a, s, new):
        e, angle = xp.exp(a[0]), xp.exp(a[1])
        size, gain = xp.exp(-e), xp.sqrt(-xp.expm1(-2.0 * e))
        c, d = size * xp.cos(angle), size * xp.sin(angle)
        re, im, none = c * s[0] - d * s[1], d * s[0] + c * s[1], 0.0 * e
        growth, p, q = e * size * size / gain, 1.0 - new[0] * new[0], 1.0 - new[1] * new[1]
        by_re = p * (growth * a[2] - e * re), -p * angle * im, p * gain, none
        by_im = q * (growth * a[3] - e * im), q * angle * re, none, q * gain
        return (by_re, by_im), ((p * c, -p * d), (q * d, q * c))

    return update, partials


lru_tanh = replace(
    lru,
    name="lru_tanh",
    make=_make_lru_tanh,
    equations="the lru with tanh on the real and imaginary part of its new state",
    nonlinear_state=True,
)


def _make_ssm(xp):
    # softplus as max(a, 0) + log(1 + exp(−|a|)), which cannot overflow
    def update(a, s):
        step = 0.5 * (a[0] + abs(a[0])) + xp.log1p(xp.exp(-abs(a[0])))
        h = xp.exp(-step * xp.exp(a[1])) * s[0] + step * a[2] * a[3]
        return h, (a[4] * h + a[5] * a[3]) * a[6] * (0.5 + 0.5 * xp.tanh(0.5 * a[6]))

    def partials(a, s, new):
        step = 0.5 * (a[0] + abs(a[0])) + xp.log1p(xp.exp(-abs(a[0])))
        rate, slope = xp.exp(a[1]), 0.5 + 0.5 * xp.tanh(0.5 * a[0])
        keep = xp.exp(-step * rate)
        share = 0.5 + 0.5 * xp.tanh(0.5 * a[6])
        gate, read, none = a[6] * share, a[4] * new[0] + a[5] * a[3], 0.0 * step
        by_step, by_rate = slope * (a[2] * a[3] - rate * keep * s[0]), -step * rate * keep * s[0]
        by_b, by_u, seen = step * a[3], step * a[2], gate * a[4]
        by_h = by_step, by_rate, by_b, by_u, none, none, none
        by_y = (
            seen * by_step,
            seen * by_rate,
            seen * by_b,
            seen * by_u + gate * a[5],
            gate * new[0],
            gate * a[3],
            read * share * (1.0 + a[6] * (1.0 - share)),
        )
        return (by_h, by_y), ((keep, none), (seen * keep, none))

    return update, partials


ssm = Cell(
    name="ssm",
    slots=("h", "y"),
    gates=(
        Gate("delta", "x1", initial=-1.0),
        Gate("A", "1", spread=(-3.0, 0.0), group="recurrent"),
        Gate("B", "x1", initial=1.0),
        Gate("u", "x1"),
        Gate("C", "x1", initial=1.0),
        Gate("D", "1", initial=1.0),
        Gate("gate", "x1", initial=1.0),
    ),
    make=_make_ssm,
    equations="Δ = softplus(W_Δ [x|1]); B, C, u, g affine in x; h' = exp(−Δ e^A) ⊙ h + Δ ⊙ B ⊙ u; "
    "y' = (C ⊙ h' + D ⊙ u) ⊙ silu(g)  (selective diagonal SSM with gate and skip after Mamba, Gu & Dao 2023: "
    "one state per channel, each channel with B and C of its own)",
    output_bypass=True,
    nonlinear_state=False,
    features=(1,),
)


def _make_s4d(xp):
    # A = −exp(a₀) + i a₁, Δ = exp(a₂); Ā = exp(ΔA), and B̄ = (Ā − 1)/A of an input held over the step.
    def update(a, s):
        rate, step = xp.exp(a[0]), xp.exp(a[2])
        size, angle = xp.exp(-step * rate), step * a[1]
        c, d, half = size * xp.cos(angle), size * xp.sin(angle), xp.sin(0.5 * angle)
        less = xp.expm1(-step * rate) * xp.cos(angle) - 2.0 * half * half  # Re Ā − 1
        norm = rate * rate + a[1] * a[1]
        gain_re, gain_im = (a[1] * d - rate * less) / norm, -(rate * d + a[1] * less) / norm
        return c * s[0] - d * s[1] + gain_re * a[3], d * s[0] + c * s[1] + gain_im * a[3]

    def partials(a, s, new):
        rate, step = xp.exp(a[0]), xp.exp(a[2])
        size, angle = xp.exp(-step * rate), step * a[1]
        c, d, half = size * xp.cos(angle), size * xp.sin(angle), xp.sin(0.5 * angle)
        less = xp.expm1(-step * rate) * xp.cos(angle) - 2.0 * half * half
        norm = rate * rate + a[1] * a[1]
        gain_re, gain_im = (a[1] * d - rate * less) / norm, -(rate * d + a[1] * less) / norm
        # s' = Ā s + B̄ u with ∂Ā/∂A = ΔĀ, ∂B̄/∂A = (ΔĀ − B̄)/A and ∂B̄/∂Δ = Ā
        move_re, move_im = c * s[0] - d * s[1], d * s[0] + c * s[1]
        rest_re, rest_im = step * c - gain_re, step * d - gain_im
        by_A_re = step * move_re + a[3] * (a[1] * rest_im - rate * rest_re) / norm
        by_A_im = step * move_im - a[3] * (rate * rest_im + a[1] * rest_re) / norm
        by_step_re = step * (a[3] * c - rate * move_re - a[1] * move_im)
        by_step_im = step * (a[3] * d - rate * move_im + a[1] * move_re)
        by_re = -rate * by_A_re, -by_A_im, by_step_re, gain_re
        by_im = -rate * by_A_im, by_A_re, by_step_im, gain_im
        return (by_re, by_im), ((c, -d), (d, c))

    return update, partials


s4d = Cell(
    name="s4d",
    slots=("re", "im"),
    gates=(
        Gate("rate", "1", initial=-0.7, group="recurrent"),  # −Re A = 1/2, as S4D-Lin starts
        Gate("frequency", "1", spread=(0.0, 6.3), group="recurrent"),
        Gate("step", "1", spread=(-3.9, -0.7), group="recurrent"),  # Δ from 0.02 to 0.5: memories of 4 to 100 bins
        Gate("u", "x1"),
    ),
    make=_make_s4d,
    equations="h' = Ā ⊙ h + B̄ ⊙ W_u [x|1], A = −exp a + iω, Ā = exp(ΔA), B̄ = (Ā−1)/A (zero-order hold); "
    "y = Re(C h') + D x  (after S4D, Gu et al. 2022: one complex state per channel, B = 1, Δ learned)",
    output_bypass=True,
    nonlinear_state=False,
    features=(0, 1),
    skip=True,
)


def _make_rwkv(xp):
    # The denominator never falls below zero by itself; |den| keeps a state that was given by hand away from a pole.
    def update(a, s):
        keep, weight, now = xp.exp(-xp.exp(a[0])), xp.exp(a[2]), xp.exp(a[1] + a[2])
        mean = (s[0] + now * a[3]) / (abs(s[1]) + now)
        return keep * s[0] + weight * a[3], keep * s[1] + weight, (0.5 + 0.5 * xp.tanh(0.5 * a[4])) * mean

    def partials(a, s, new):
        rate, weight, now = xp.exp(a[0]), xp.exp(a[2]), xp.exp(a[1] + a[2])
        keep, total, none = xp.exp(-rate), abs(s[1]) + now, 0.0 * now
        mean, share = (s[0] + now * a[3]) / total, 0.5 + 0.5 * xp.tanh(0.5 * a[4])
        by_now, seen = share * now * (a[3] - mean) / total, share / total
        by_num = -rate * keep * s[0], none, weight * a[3], weight, none
        by_den = -rate * keep * s[1], none, weight, none, none
        by_y = none, by_now, by_now, seen * now, mean * share * (1.0 - share)
        return (by_num, by_den, by_y), (
            (keep, none, none),
            (none, keep, none),
            (seen, -seen * mean * xp.sign(s[1]), none),
        )

    return update, partials


rwkv = Cell(
    name="rwkv",
    slots=("num", "den", "y"),
    gates=(
        Gate("w", "1", spread=(-5.0, 1.0), group="recurrent"),
        Gate("bonus", "1", initial=-1.2),
        Gate("k", "x1"),
        Gate("v", "x1"),
        Gate("r", "x1"),
    ),
    make=_make_rwkv,
    equations="k, v, r affine in x; num' = e^(−exp w) num + e^k v; den' = e^(−exp w) den + e^k; "
    "y' = σ(r) ⊙ (num + e^(b+k) v)/(den + e^(b+k))  (time mixing of RWKV-4, Peng et al. 2023, without token shift)",
    output_bypass=True,
    nonlinear_state=False,
    features=(2,),
)
