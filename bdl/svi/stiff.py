"""Stiff ordinary differential equations in a story: SciPy's LSODA, with gradients by forward sensitivities."""

from __future__ import annotations

import contextlib
import functools
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import ops

from bdl.keras_internals import is_concrete
from bdl.random import Tensor
from bdl.svi.host_functions import on_host

Rates = Callable[[float, np.ndarray, np.ndarray], Any]
"""From time, states and parameters to the rates of change of the states."""

Jacobian = Callable[[float, np.ndarray, np.ndarray], tuple[Any, Any]]
"""From the same to their derivatives in the states and in the parameters."""

MAX_STEPS = 100_000
"""Steps of the solver from one time to the next, after which a solution has failed."""

_COMPLEX_STEP = 1e-30
_RELATIVE_STEP = 6e-6  # about the cube root of float64's precision, the best for central differences
_NEWTON_STEP = 1e-7  # relative, of one-sided differences in the solver's own iteration
_TOLERATED = 1e-3  # difference of derivatives, as a part of the greatest effect in their row
_ONE_AT_A_TIME = threading.Lock()  # ODEPACK keeps its state in one place
_checked: weakref.WeakSet[Any] = weakref.WeakSet()  # functions whose derivatives were compared with differences


def solve_stiff(
    rates_of_change: Rates,
    initial: Any,
    times: Any,
    parameters: Any,
    rtol: float = 1e-6,
    atol: Any = 1e-8,
    jacobian: Jacobian | None = None,
    on_failure: str = "raise",
) -> Tensor:
    """Solves ordinary differential equations, stiff ones among them, with a gradient in their parameters.

    It is for a story whose observations follow a path that has no closed form, as in chemical kinetics. SciPy's LSODA
    solves each row of parameters by itself, in float64, on the host. The gradient comes from forward sensitivities: the
    derivatives `S = dy/dp` follow `dS/dt = (df/dy) S + df/dp` and are solved together with the states, to the same
    tolerances. A value with its gradient costs one solution with sensitivities; on TensorFlow also one without where
    no `tf.GradientTape` sees the call, as in NUTS. A model whose story calls this is compiled without XLA on
    TensorFlow; there is nothing to set. `counting_solutions` tells what a fit has cost.

    Further derivatives take the sensitivities as constants: the Hessian of `start="map"` and `"laplace"` is that of
    Gauss and Newton, which leaves out the curvature of the solution in the parameters.

    Args:
        rates_of_change: Function of time, the states `(states,)` and the parameters `(parameters,)`, float64 NumPy
            arrays; it returns the rates `(states,)`. Without `jacobian` it must also take complex arrays, and be
            made of analytic functions: no `abs`, and no arrays of floats that are filled.
        initial: States at the first time: `(states,)`, or `(..., states)` with the leading axes of the parameters. A
            tensor has a gradient, which makes solutions dearer; a NumPy array or a list has none.
        times: Increasing, `(times,)`; the first is the time of `initial`. It has no gradient.
        parameters: Tensor, `(parameters,)` or `(..., parameters)`.
        rtol: Relative tolerance of the solver for each step.
        atol: Absolute tolerance, in the unit of the states, a number or `(states,)`. It should be well below the states
            that matter.
        jacobian: Function of the same arguments that returns the derivatives of the rates in the states,
            `(states, states)`, and in the parameters, `(states, parameters)`. None takes a complex step, which is as
            exact and takes an evaluation of the rates for each column. At the first gradient either is compared with
            finite differences.
        on_failure: What to do where the solver fails or the solution is not finite: `"raise"` an error that names the
            parameters, or give `"nan"` for that row, with a warning. NUTS and the search for a mode reject such a
            point; a training step would spoil the model.

    Returns:
        The states, `(..., times, states)`, in the dtype of the parameters.

    Raises:
        ValueError: if an argument has another shape or kind, the rates do, the derivatives differ from finite
            differences, or the solver fails. From within a compiled function it comes as the backend's own error, with
            the same message.

    Sources: Petzold 1983, "Automatic selection of methods for solving stiff and nonstiff systems"; Dickinson and
    Gelinas 1976, "Sensitivity analysis of ordinary differential equation systems"; Squire and Trapp 1998, "Using
    complex variables to estimate derivatives of real functions".

    Example:
    >>> def decay(t, y, p):
    ...     return [-p[0] * y[0]]
    >>> states = bdl.svi.solve_stiff(decay, [2.0], [0.0, 1.0], ops.array([0.5]))
    >>> np.round(ops.convert_to_numpy(states), 4)
    array([[2.    ],
           [1.2131]], dtype=float32)
    """
    if on_failure not in ("raise", "nan"):
        raise ValueError(f"`on_failure` must be 'raise' or 'nan', not {on_failure!r}.")
    parameters = _as_floats(parameters)
    dtype = keras.backend.standardize_dtype(parameters.dtype)
    has_gradient = ops.is_tensor(initial)
    start = initial if has_gradient else np.asarray(initial, "float64")
    if len(parameters.shape) < 1 or len(start.shape) < 1:
        raise ValueError(
            f"`parameters` and `initial` must be vectors, or rows of them, not of the shapes {tuple(parameters.shape)} "
            f"and {tuple(start.shape)}."
        )
    times = times if ops.is_tensor(times) else np.asarray(times, "float64")
    _check_times(times)
    num_states, num_times = int(start.shape[-1]), int(times.shape[0])
    problem = _Problem(
        rates_of_change, jacobian, rtol, np.broadcast_to(atol, (num_states,)), int(parameters.shape[-1]), on_failure
    )
    if is_concrete(parameters) and is_concrete(start):
        problem.check_rates(_first_row(start), _first_row(parameters), float(np.ravel(_first_row(times[None]))[0]))
    if has_gradient:
        start = ops.cast(start, dtype)
        lead = ops.shape(ops.zeros_like(parameters[..., :1]) + ops.zeros_like(start[..., :1]))[:-1]
        x = ops.concatenate([ops.broadcast_to(each, (*lead, each.shape[-1])) for each in (parameters, start)], axis=-1)
        known = None
    else:
        x, known = parameters, start
    # Times that are no tensor keep their 64 bits, which JAX's tensors may lack.
    when = None if ops.is_tensor(times) else times
    fixed = ops.zeros((1,), dtype=dtype) if when is not None else ops.cast(times, dtype)
    values = functools.partial(problem.values, known, when)
    both = functools.partial(problem.values_and_gradient, known, when)
    return on_host("solve_stiff", values, both, x, fixed, (num_times, num_states))


@dataclass(eq=False)
class Solutions:
    """How many differential equations `solve_stiff` has solved.

    Args:
        plain: Rows of parameters without a gradient.
        with_sensitivities: Rows with one.

    Example:
    >>> Solutions()
    Solutions(plain=0, with_sensitivities=0)
    """

    plain: int = 0
    with_sensitivities: int = 0


_counters: list[Solutions] = []


@contextlib.contextmanager
def counting_solutions() -> Iterator[Solutions]:
    """Counts the solutions of `solve_stiff` within this context: what a fit, or a sampler, has cost.

    Example:
    >>> def decay(t, y, p):
    ...     return [-p[0] * y[0]]
    >>> with bdl.svi.counting_solutions() as solutions:
    ...     states = ops.convert_to_numpy(bdl.svi.solve_stiff(decay, [2.0], [0.0, 1.0], ops.array([[0.5], [0.6]])))
    >>> solutions
    Solutions(plain=2, with_sensitivities=0)
    """
    counter = Solutions()
    _counters.append(counter)
    try:
        yield counter
    finally:
        _counters.remove(counter)


def _count(kind: str) -> None:
    with _ONE_AT_A_TIME:
        for counter in _counters:
            setattr(counter, kind, getattr(counter, kind) + 1)


@dataclass(frozen=True, eq=False)
class _Problem:
    """Equations and how they are solved, in NumPy.

    Args:
        rates: Of change.
        jacobian: Derivatives of the rates, or None.
        rtol: Relative tolerance.
        atol: Absolute tolerances, `(states,)`.
        num_parameters: Numbers of a row that are parameters; further ones are the states at the first time.
        on_failure: `"raise"` or `"nan"`.
    """

    rates: Rates
    jacobian: Jacobian | None
    rtol: float
    atol: np.ndarray
    num_parameters: int
    on_failure: str

    def values(self, known: np.ndarray | None, when: np.ndarray | None, x: Any, fixed: Any) -> np.ndarray:
        """Solutions of rows, `(..., times, states)`.

        Args:
            known: States at the first time; None where they are in the rows.
            when: Times; None where they are `fixed`.
            x: Rows of parameters, `(..., parameters)`, with the states at the first time behind them if not known.
            fixed: Times, `(..., times)`.
        """
        lead, rows = self._rows(known, when, x, fixed)
        found = np.stack([self._solve(*row) for row in rows])
        return found.reshape(*lead, *found.shape[1:])

    def values_and_gradient(
        self, known: np.ndarray | None, when: np.ndarray | None, x: Any, fixed: Any
    ) -> tuple[np.ndarray, np.ndarray]:
        """The same, and their derivatives in the numbers of each row, `(..., times, states, numbers)`."""
        lead, rows = self._rows(known, when, x, fixed)
        found = [self._sensitivities(p, start, times, known is not None) for p, start, times in rows]
        values, gradients = (np.stack(each) for each in zip(*found, strict=True))
        return values.reshape(*lead, *values.shape[1:]), gradients.reshape(*lead, *gradients.shape[1:])

    def check_rates(self, start: np.ndarray, p: np.ndarray, time: float) -> None:
        """Refuses rates of another shape than the states'."""
        with np.errstate(all="ignore"):
            shape = np.shape(self.rates(time, start, p))
        if shape != start.shape:
            raise ValueError(
                f"`rates_of_change` must return a rate for each of the {len(start)} states of `initial`, not the shape "
                f"{shape}."
            )

    def _rows(
        self, known: np.ndarray | None, when: np.ndarray | None, x: np.ndarray, fixed: np.ndarray
    ) -> tuple[tuple[int, ...], list[tuple[np.ndarray, np.ndarray, np.ndarray]]]:
        """The leading axes, and for each row its parameters, states at the first time, and times."""
        lead = x.shape[:-1]
        x = x.astype("float64")
        p, start = x[..., : self.num_parameters], x[..., self.num_parameters :] if known is None else known
        when = fixed.astype("float64") if when is None else when
        parts = [
            np.broadcast_to(each, (*lead, each.shape[-1])).reshape(-1, each.shape[-1]) for each in (p, start, when)
        ]
        p, start, when = parts
        return lead, list(zip(p, start, when, strict=True))

    def _solve(self, p: np.ndarray, start: np.ndarray, times: np.ndarray) -> np.ndarray:
        """The states at the times, `(times, states)`."""
        self.check_rates(start, p, times[0])
        _count("plain")
        jacobian = None if self.jacobian is None else (lambda t, y: np.asarray(self._derivatives(t, y, p)[0]))
        return self._integrate(lambda t, y: np.asarray(self.rates(t, y, p)), start, times, p, self.atol, Dfun=jacobian)

    def _sensitivities(
        self, p: np.ndarray, start: np.ndarray, times: np.ndarray, is_known: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """The states, and their derivatives in the parameters, and in the states at the first time if not known.

        Derivatives are solved for in units of the numbers that they are in, so that they have the unit of the states
        and share their tolerances. The solver's own iteration takes the whole system's Jacobian: `df/dy` along the
        diagonal, and what the sensitivities' rates owe to the states by differences, which need not be exact. Without
        the latter steps are smaller.
        """
        self._check_derivatives(p, start, times)
        _count("with_sensitivities")
        states, inputs = len(start), len(p)
        x = p if is_known else np.concatenate([p, start])
        scales = np.where(x == 0.0, 1.0, np.abs(x))
        columns = np.zeros((len(x), states))
        if not is_known:
            columns[inputs:] = np.diag(scales[inputs:])

        def along(t: float, y: np.ndarray, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            """df/dy, and the rates of change of the columns."""
            in_states, in_parameters = self._derivatives(t, y, p)
            change = columns @ in_states.T
            change[:inputs] += in_parameters.T * scales[:inputs, None]
            return in_states, change

        def rates(t: float, z: np.ndarray) -> np.ndarray:
            z = z.reshape(-1, states)
            return np.concatenate([self.rates(t, z[0], p), along(t, z[0], z[1:])[1].ravel()])

        def whole(t: float, z: np.ndarray) -> np.ndarray:
            y, columns = z[:states], z[states:].reshape(-1, states)
            in_states, change = along(t, y, columns)
            matrix = np.kron(np.eye(1 + len(x)), in_states)
            for state, step in enumerate(_NEWTON_STEP * _sizes(y)):
                moved = along(t, y + step * np.eye(states)[state], columns)[1]
                matrix[states:, state] = ((moved - change) / step).ravel()
            return matrix

        atol = np.tile(self.atol, 1 + len(x))
        begin = np.concatenate([start, columns.ravel()])
        found = self._integrate(rates, begin, times, p, atol, Dfun=whole)
        found = found.reshape(len(times), 1 + len(x), states)
        return found[:, 0], np.swapaxes(found[:, 1:] / scales[:, None], 1, 2)

    def _integrate(
        self, rates: Any, begin: np.ndarray, times: np.ndarray, p: np.ndarray, atol: np.ndarray, **settings: Any
    ) -> np.ndarray:
        from scipy.integrate import ODEintWarning, odeint

        _check_times(times)
        with _ONE_AT_A_TIME, np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore", ODEintWarning)
            found, told = odeint(
                rates,
                begin,
                times,
                tfirst=True,
                full_output=True,
                rtol=self.rtol,
                atol=atol,
                mxstep=MAX_STEPS,
                **settings,
            )
        is_done = told["message"] == "Integration successful."
        if is_done and np.isfinite(found).all():
            return found
        why = "The solution is not finite." if is_done else told["message"]
        message = f"`solve_stiff` must find a solution, and did not at the parameters {p.tolist()}: {why}"
        if self.on_failure == "raise":
            raise ValueError(f"{message} Give them a narrower prior, other tolerances, or on_failure='nan'.")
        warnings.warn(message, RuntimeWarning, stacklevel=2)
        return np.full_like(found, np.nan)

    def _derivatives(self, t: float, y: np.ndarray, p: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Derivatives of the rates in the states and in the parameters."""
        if self.jacobian is not None:
            in_states, in_parameters = self.jacobian(t, y, p)
            return np.asarray(in_states, "float64"), np.asarray(in_parameters, "float64")

        def step(y: np.ndarray, p: np.ndarray) -> np.ndarray:
            return np.asarray(self.rates(t, y, p)).imag / _COMPLEX_STEP

        in_states = [step(y + each, p) for each in 1j * _COMPLEX_STEP * np.eye(len(y))]
        in_parameters = [step(y, p + each) for each in 1j * _COMPLEX_STEP * np.eye(len(p))]
        return np.stack(in_states, -1), np.stack(in_parameters, -1)

    def _check_derivatives(self, p: np.ndarray, start: np.ndarray, times: np.ndarray) -> None:
        """Compares the derivatives with finite differences along a solution, once for each function."""
        told = self.rates if self.jacobian is None else self.jacobian
        if told in _checked:
            return
        path = self._solve(p, start, times)
        for place in {0, len(times) // 2, len(times) - 1}:
            if np.isfinite(path[place]).all():
                self._check_derivatives_at(times[place], path[place], p)
        _checked.add(told)

    def _check_derivatives_at(self, t: float, y: np.ndarray, p: np.ndarray) -> None:
        name = "rates_of_change" if self.jacobian is None else "jacobian"
        fix = (
            "take complex arrays and be made of analytic functions, without `abs` or arrays of floats that are filled"
            if self.jacobian is None
            else f"return derivatives in the states, {(len(y), len(y))}, and in the parameters, {(len(y), len(p))}"
        )
        try:
            with warnings.catch_warnings(), np.errstate(all="ignore"):
                warnings.simplefilter("ignore", np.exceptions.ComplexWarning)
                ours = np.concatenate(self._derivatives(t, y, p), axis=1)
        except (TypeError, ValueError) as error:
            raise ValueError(f"`{name}` must {fix}: {error}. Or give jacobian=.") from error
        sizes = np.concatenate([_sizes(y), np.where(p == 0.0, 1.0, np.abs(p))])  # each parameter has a unit of its own
        if ours.shape != (len(y), len(sizes)):
            raise ValueError(f"`{name}` must {fix}; together they have the shape {ours.shape}.")
        x = np.concatenate([y, p])

        def at(x: np.ndarray) -> np.ndarray:
            return np.asarray(self.rates(t, x[: len(y)], x[len(y) :]), "float64")

        steps = _RELATIVE_STEP * np.diag(sizes)
        with np.errstate(all="ignore"):
            theirs = np.stack([(at(x + each) - at(x - each)) / (2.0 * each.max()) for each in steps], -1)
        effects = np.maximum(np.abs(ours), np.abs(theirs)) * sizes
        wrong = np.abs(ours - theirs) * sizes > _TOLERATED * effects.max(axis=1, keepdims=True)
        if not wrong.any():
            return
        state, number = np.argwhere(wrong)[0]
        what = f"states[{number}]" if number < len(y) else f"parameters[{number - len(y)}]"
        raise ValueError(
            f"`{name}` must {fix}: the derivative of rate {state} in {what} is {ours[state, number]:.6g} by "
            f"{'a complex step' if self.jacobian is None else 'it'}, and {theirs[state, number]:.6g} by finite "
            "differences." + (" Or give jacobian=." if self.jacobian is None else "")
        )


def _sizes(x: np.ndarray) -> np.ndarray:
    """How large numbers are, those near zero taken to be a thousandth of the largest."""
    largest = np.abs(x).max(initial=0.0)
    return np.maximum(np.abs(x), 1e-3 * largest if largest else 1.0)


def _as_floats(parameters: Any) -> Tensor:
    parameters = ops.convert_to_tensor(parameters)
    dtype = keras.backend.standardize_dtype(parameters.dtype)
    return parameters if dtype in ("float32", "float64") else ops.cast(parameters, "float32")


def _first_row(values: Any) -> np.ndarray:
    array = ops.convert_to_numpy(values) if is_concrete(values) else np.zeros(values.shape)
    return array.reshape(-1, array.shape[-1])[0].astype("float64")


def _check_times(times: Any) -> None:
    if len(times.shape) != 1 or times.shape[0] is None:
        raise ValueError(f"`times` must be a vector of known length, not of the shape {tuple(times.shape)}.")
    if is_concrete(times):
        values = times if isinstance(times, np.ndarray) else ops.convert_to_numpy(times)
        if len(values) == 0 or not np.isfinite(values).all() or (np.diff(values) <= 0.0).any():
            raise ValueError(
                f"`times` must increase, from the time of `initial` on, not {np.array2string(values, threshold=6)}."
            )
