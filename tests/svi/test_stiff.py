"""Stiff equations: closed forms, another solver, gradients, and stories that call the solver."""

import warnings

import keras
import numpy as np
import pytest
from keras import ops
from scipy.integrate import solve_ivp
from standard_errors import assert_within_standard_errors
from stories import Normal

from bdl.svi import SVI, Global, Observed, counting_solutions, nuts, solve_stiff
from bdl.svi.derivatives import hessian, value_and_gradient

TIMES = np.linspace(0.0, 3.0, 7)


def chain(t, y, p):
    """A decays to B, and B decays."""
    return [-p[0] * y[0], p[0] * y[0] - p[1] * y[1]]


def chain_jacobian(t, y, p):
    return [[-p[0], 0.0], [p[0], -p[1]]], [[-y[0], 0.0], [y[0], -y[1]]]


def closed_chain(a, b, first):
    decayed = np.exp(-a * TIMES)
    return np.stack([first * decayed, first * a / (b - a) * (decayed - np.exp(-b * TIMES))], -1)


def robertson(t, y, p):
    a, b, c = p
    slow, fast, middle = a * y[0], c * y[1] ** 2, b * y[1] * y[2]
    return [middle - slow, slow - middle - fast, fast]


def robertson_jacobian(y, p):
    a, b, c = p
    slow, fast = np.array([a, 0.0, 0.0]), np.array([0.0, 2.0 * c * y[1], 0.0])
    middle = np.array([0.0, b * y[2], b * y[1]])
    return np.stack([middle - slow, slow - middle - fast, fast])


def differences(function, x, step=1e-5):
    return np.stack([(function(x + h) - function(x - h)) / (2 * step) for h in step * np.eye(len(x))], -1)


def refusal(match):
    """On TensorFlow and JAX an error within a compiled function, or of an operation, is their own."""
    return pytest.raises(Exception, match=match)


@pytest.mark.core
@pytest.mark.parametrize("jacobian", [None, chain_jacobian])
def test_a_chain_of_decays_and_its_gradients_have_a_closed_form(jacobian):
    def solved(x):
        first = ops.stack([x[2], 0.0 * x[2]])
        return solve_stiff(chain, first, TIMES, x[:2], rtol=1e-8, atol=1e-10, jacobian=jacobian)

    x = np.array([0.7, 0.3, 2.0])
    states = ops.convert_to_numpy(solved(ops.convert_to_tensor(x, "float32")))
    np.testing.assert_allclose(states, closed_chain(*x), rtol=0, atol=2e-7 * 2.0)  # one digit of float32
    value, gradient = value_and_gradient(lambda x: ops.sum(solved(x) ** 2), "float32")(x)
    expected = differences(lambda x: (closed_chain(*x) ** 2).sum(), x)
    assert value == pytest.approx((closed_chain(*x) ** 2).sum(), rel=5e-7)
    np.testing.assert_allclose(gradient, expected, rtol=2e-6)


@pytest.mark.core
def test_the_hessian_is_that_of_gauss_and_newton():
    x = np.array([0.7, 0.3])

    def loss(x):
        return 0.5 * ops.sum(solve_stiff(chain, [2.0, 0.0], TIMES, x, rtol=1e-8, atol=1e-10) ** 2)

    jacobian = differences(lambda x: closed_chain(*x, 2.0).ravel(), x)
    np.testing.assert_allclose(hessian(loss, "float32")(x), jacobian.T @ jacobian, rtol=5e-6)


@pytest.mark.core
def test_rows_of_parameters_are_solved_one_by_one():
    rates = np.array([[0.7, 0.3], [1.1, 0.2], [0.5, 2.0]], "float32")
    first = np.array([[2.0, 0.0], [1.0, 0.0], [3.0, 0.0]])
    expected = np.stack([closed_chain(*p, y[0]) for p, y in zip(rates.astype("float64"), first, strict=True)])
    for initial in (first, ops.convert_to_tensor(first, "float32")):
        for times in (TIMES, ops.convert_to_tensor(TIMES, "float32")):
            states = solve_stiff(chain, initial, times, ops.convert_to_tensor(rates), rtol=1e-8, atol=1e-10)
            np.testing.assert_allclose(ops.convert_to_numpy(states), expected, rtol=0, atol=1e-6)
    shared = solve_stiff(chain, ops.array([2.0, 0.0]), TIMES, ops.convert_to_tensor(rates))
    assert tuple(shared.shape) == (3, 7, 2)


def test_robertsons_reaction_agrees_with_radau_and_its_sensitivities_with_differences():
    rates, times = np.array([0.04, 1e4, 3e7]), np.array([0.0, 0.4, 40.0, 4e3])
    first = np.array([1.0, 0.0, 0.0])

    def radau(p):
        settings = {"method": "Radau", "rtol": 1e-9, "atol": 1e-14, "jac": lambda t, y, p: robertson_jacobian(y, p)}
        return solve_ivp(robertson, (0.0, times[-1]), first, t_eval=times, args=(p,), **settings).y.T

    tolerances = {"rtol": 1e-9, "atol": np.array([1e-12, 1e-14, 1e-12])}
    parameters = ops.convert_to_tensor(rates, "float32")
    exact = ops.convert_to_numpy(parameters).astype("float64")  # 0.04 has an error in float32
    states = ops.convert_to_numpy(solve_stiff(robertson, first, times, parameters, **tolerances))
    np.testing.assert_allclose(states[1:], radau(exact)[1:], rtol=1e-6)
    weights = np.array([1.0, 1e4, 1.0])

    def total(logs):
        return ops.sum(solve_stiff(robertson, first, times, ops.exp(logs), **tolerances) * weights.astype("float32"))

    logs = np.log(rates).astype("float32").astype("float64")
    expected = differences(lambda logs: (radau(np.exp(logs)) * weights).sum(), logs, 1e-3)
    # exp of a number near 17 has an error of 2e-6 in float32; differences one of the step's square.
    np.testing.assert_allclose(value_and_gradient(total, "float32")(logs)[1], expected, rtol=1e-4, atol=1e-5)


@keras.saving.register_keras_serializable(package="tests")
def decay_story(data):
    log_rate = yield Global("log_rate", Normal(0.0, 1.0))
    path = solve_stiff(
        chain, [2.0, 0.0], TIMES, ops.stack([ops.exp(log_rate), ops.exp(log_rate) * 0.5]), jacobian=chain_jacobian
    )
    yield Observed("y", Normal(path[None, :, 1], 0.1), data["y"])


OBSERVED = {
    "y": (closed_chain(0.7, 0.35, 2.0)[None, :, 1] + np.random.default_rng(0).normal(0.0, 0.1, (1, 7))).astype(
        "float32"
    )
}


def exact_density():
    """A grid of log rates, and the log density there, in nats, up to a constant."""
    grid = np.linspace(-2.0, 1.0, 3001)
    misfit = [((OBSERVED["y"][0] - closed_chain(np.exp(u), 0.5 * np.exp(u), 2.0)[:, 1]) ** 2).sum() for u in grid]
    return grid, -0.5 * np.array(misfit) / 0.01 - 0.5 * grid**2


def exact_posterior():
    """Mean and standard deviation of the log rate."""
    grid, log_density = exact_density()
    weights = np.exp(log_density - log_density.max())
    weights /= weights.sum()
    mean = weights @ grid
    return mean, np.sqrt(weights @ (grid - mean) ** 2)


def fitted(**settings):
    model = SVI(decay_story, "full_rank", num_samples=2, seed=0)
    model.compile(keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(3e-2, 200)), **settings)
    model.fit(OBSERVED, batch_size="all", steps=200, verbose=0)
    return model


@pytest.mark.core
def test_a_fit_finds_the_posterior_of_a_rate_and_comes_back_from_a_file(tmp_path):
    with counting_solutions() as solutions:
        model = fitted(steps_per_execution=50)
    assert solutions.with_sensitivities == 2 * 200  # draws of each step
    assert solutions.plain <= 2  # of the trace, and along which the derivatives are checked
    mean, sd = exact_posterior()
    draws = model.posterior(num_samples=1000)["log_rate"]
    assert_within_standard_errors(draws.mean(), mean, sd / np.sqrt(1000))
    assert_within_standard_errors(draws.std(), sd, sd / np.sqrt(2000))
    assert model.k_hat(OBSERVED, num_samples=100).k < 0.7
    path = tmp_path / "decay.keras"
    model.save(path)
    loaded = keras.saving.load_model(path)
    assert np.isfinite(loaded.evaluate(OBSERVED, verbose=0, return_dict=True)["nll"])
    loaded.fit(OBSERVED, batch_size="all", steps=50, verbose=0)
    if keras.backend.backend() == "tensorflow":
        assert not model.jit_compile
        assert not loaded.jit_compile


def test_a_fit_may_begin_at_the_mode():
    model = SVI(decay_story, "delta", start="map", seed=0)
    model.compile(keras.optimizers.SGD(0.0), steps_per_execution=5)
    model.fit(OBSERVED, batch_size="all", steps=5, verbose=0)
    grid, log_density = exact_density()
    spacing = grid[1] - grid[0]
    assert abs(model.posterior(num_samples=1)["log_rate"][0] - grid[log_density.argmax()]) < spacing


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="elsewhere NUTS needs NumPyro, which is optional")
def test_nuts_runs_without_xla():
    reference = nuts(decay_story, OBSERVED, num_samples=40, num_warmup=20, num_chains=1, seed=0)
    mean, sd = exact_posterior()
    error = sd / np.sqrt(reference.chains.effective_sample_size[0])
    assert_within_standard_errors(reference["log_rate"].mean(), mean, error)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="XLA is the only compiler elsewhere")
def test_xla_that_was_asked_for_is_refused():
    with pytest.raises(ValueError, match="Call compile\\(jit_compile=False\\)"):
        fitted(steps_per_execution=50, jit_compile=True)


def explode(t, y, p):
    return [p[0] * y[0] ** 2]


def _without_other_warnings(*arguments):
    """Solutions with `nan`; NumPy deprecates how tensors of Torch become arrays."""
    warnings.simplefilter("ignore", DeprecationWarning)
    return ops.convert_to_numpy(solve_stiff(*arguments, on_failure="nan"))


@pytest.mark.core
def test_a_failure_names_the_parameters_or_gives_nan():
    times = [0.0, 0.5, 2.0]
    parameters = ops.convert_to_tensor(np.array([[-1.0], [1.0]], "float32"))  # 1 / (1 - t) ends at t = 1
    with refusal(r"did not at the parameters \[1.0\]"):
        ops.convert_to_numpy(solve_stiff(explode, [1.0], times, parameters))
    with pytest.warns(RuntimeWarning, match=r"parameters \[1.0\]"):
        states = _without_other_warnings(explode, [1.0], times, parameters)
    np.testing.assert_allclose(states[0, :, 0], 1.0 / (1.0 + np.array(times)), rtol=1e-5)
    assert np.isnan(states[1]).all()


def not_analytic(t, y, p):
    return [-np.abs(p[0]) * y[0]]


def in_floats(t, y, p):
    change = np.empty(1)
    change[0] = -p[0] * y[0]
    return change


def wrong_jacobian(t, y, p):
    return [[-p[0]]], [[y[0]]]


def a_decay(t, y, p):
    return [-p[0] * y[0]]


@pytest.mark.core
@pytest.mark.parametrize(
    ("rates", "jacobian", "name"),
    [
        (not_analytic, None, "rates_of_change"),
        (in_floats, None, "rates_of_change"),
        (a_decay, wrong_jacobian, "jacobian"),
    ],
)
def test_wrong_derivatives_are_refused(rates, jacobian, name):
    def total(x):
        return ops.sum(solve_stiff(rates, [1.0], [0.0, 1.0], x, jacobian=jacobian))

    with refusal(f"`{name}` must .*the derivative of rate 0 in "):
        value_and_gradient(total, "float32")(np.array([0.5]))


def test_arguments_are_checked():
    p = ops.convert_to_tensor(np.array([0.5], "float32"))
    with pytest.raises(ValueError, match="`on_failure` must be 'raise' or 'nan'"):
        solve_stiff(a_decay, [1.0], [0.0, 1.0], p, on_failure="ignore")
    for times in ([0.0, 0.0], [1.0, 0.0], []):
        with pytest.raises(ValueError, match="`times` must increase"):
            solve_stiff(a_decay, [1.0], times, p)
    with pytest.raises(ValueError, match="`times` must be a vector"):
        solve_stiff(a_decay, [1.0], [[0.0, 1.0]], p)
    with pytest.raises(ValueError, match="must be vectors, or rows of them"):
        solve_stiff(a_decay, 1.0, [0.0, 1.0], p)
    with pytest.raises(ValueError, match="a rate for each of the 2 states"):
        solve_stiff(a_decay, [1.0, 0.0], [0.0, 1.0], p)


def mixed_units(t, y, p):
    return [-p[0] * np.exp(-p[1] * t) * y[0]]


def test_parameters_of_very_different_sizes_have_derivatives():
    def total(x):
        return ops.sum(solve_stiff(mixed_units, [1.0], [0.0, 1e-5, 200.0], x))

    x = np.array([1e5, 0.03])  # a step of the first would be far too long for the second
    _, gradient = value_and_gradient(total, "float32")(x)

    def closed(x):
        return np.exp(-x[0] / x[1] * -np.expm1(-x[1] * np.array([1e-5, 200.0]))).sum()

    expected = [(closed(x + h) - closed(x - h)) / (2e-4) for h in 1e-4 * np.diag(x)]  # of relative changes
    np.testing.assert_allclose(gradient * x, expected, atol=1e-5)
