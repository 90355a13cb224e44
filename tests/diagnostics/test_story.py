"""Models of a story: what the callback, `diagnose` and a record say of them, and what they say does not apply."""

import dataclasses
import warnings

import keras
import numpy as np
import pytest
from standard_errors import assert_within_standard_errors
from stories import Normal, groups, level, level_at_the_posterior, level_posterior
from typer.testing import CliRunner

from bdl.diagnostics import (
    VERDICTS,
    HealthReport,
    Quantities,
    SiteHealth,
    StoryHealth,
    TrainingHealth,
    diagnose,
    diagnose_record,
    judge,
)
from bdl.diagnostics.remedies import remedies_of
from bdl.diagnostics.story import Iterate, measure_story, movement, sites_in_logs
from bdl.diagnostics.story_remedies import STORY_REMEDIES
from bdl.elbo import LinearWarmup
from bdl.svi import SVI, Amortized, Global, Local, Observed
from bdl_cli import app

Y = np.random.default_rng(0).normal(2.0, 1.0, size=12).astype("float32")
DATA = {"y": Y}
REST = StoryHealth(
    (SiteHealth("mean", "global", "FullRank", 2.0),),
    start="prior",
    is_point=False,
    num_iterates=40,
    r_hat=1.02,
    moved=0.01,
    moved_site="mean",
    k_hat=0.3,
    k_hat_threshold=0.7,
)


def quantities(**changes):
    return Quantities(
        epoch=40, is_over=True, num_examples=100, temperature=1.0, story=dataclasses.replace(REST, **changes)
    )


def at_the_posterior():
    return level_at_the_posterior(Y)


# Rules on recorded quantities


def test_a_guide_at_rest_that_is_the_posterior_is_healthy():
    finding = judge(quantities())
    assert (finding.verdict, finding.confidence) == ("healthy", "probable")
    assert "k-hat 0.30, below 0.7" in finding.evidence[0]
    assert "a twin" in finding.evidence[-1]  # which does not apply
    mean_field = judge(quantities(sites=(SiteHealth("mean", "global", "MeanField"),)))
    assert mean_field.confidence == "possible"  # k-hat does not see all that such a guide leaves out
    assert any("leaves correlations out" in sentence for sentence in mean_field.evidence)


@pytest.mark.parametrize(
    ("r_hat", "moved", "verdict"),
    [(2.0, 0.5, "still_training"), (2.0, 0.09, "healthy"), (1.05, 0.5, "healthy"), (None, None, "healthy")],
)
def test_a_guide_is_still_training_if_it_drifts_by_what_a_user_would_notice(r_hat, moved, verdict):
    assert judge(quantities(r_hat=r_hat, moved=moved)).verdict == verdict


@pytest.mark.parametrize(
    ("guide", "start", "kind", "names"),
    [
        ("MeanField", "prior", "global", ["full-rank", "mode", "NUTS"]),
        ("FullRank", "prior", "global", ["mode", "flow", "NUTS"]),
        ("MeanField", "laplace", "global", ["full-rank", "NUTS"]),
        ("FullRank", "laplace", "global", ["flow", "NUTS"]),
        ("Flow", "laplace", "global", ["NUTS"]),
        ("Amortized", "prior", "local", ["full-rank", "NUTS"]),
    ],
)
def test_a_bad_k_hat_asks_for_what_the_model_does_not_have_yet(guide, start, kind, names):
    sites = (
        SiteHealth("mean", "global", "MeanField" if kind == "local" else guide),
        SiteHealth("code", kind, guide, 1.0),
    )
    q = quantities(sites=sites, start=start, k_hat=1.2)
    finding = judge(q)
    assert finding.verdict == "inconclusive"
    assert "the guide misses part of the posterior" in finding.evidence[0]
    remedies = remedies_of(finding.verdict, q)
    assert all(name in remedy.name for name, remedy in zip(names, remedies, strict=True))


def test_a_heavy_tail_of_weights_that_hardly_differ_is_no_miss():
    finding = judge(quantities(k_hat=0.85, effective_share=0.99))
    assert finding.verdict == "healthy"
    assert "nearly equal (99% of the draws are effective)" in finding.evidence[0]
    assert judge(quantities(k_hat=0.85, effective_share=0.5)).verdict == "inconclusive"
    assert judge(quantities(k_hat=1.2, effective_share=0.99)).verdict == "inconclusive"


def test_chains_that_disagree_leave_a_verdict_open():
    q = quantities(chains="The chains disagree.", chains_agree=False)
    finding = judge(q)
    assert finding.verdict == "inconclusive"
    assert finding.evidence[0] == "The chains disagree."
    assert "k-hat 0.30" in finding.evidence[2]
    assert [remedy.name for remedy in remedies_of("inconclusive", q)] == [
        "a rate that falls to zero",
        "more steps",
        "compare with NUTS",
    ]
    agreed = judge(quantities(chains="The 2 chains agree.", chains_agree=True))
    assert agreed.verdict == "healthy"
    assert "The 2 chains agree." in agreed.evidence


def test_diagnose_measures_the_agreement_of_chains():
    model = SVI(level, "full_rank", num_chains=2, seed=0)
    model.trace_on(DATA)
    apart = measure_story(model, DATA, len(Y), num_samples=2, seed=0).story
    assert apart.chains_agree is False
    mean, sd, _ = level_posterior(Y.astype("float64"))
    for chain in range(2):
        model.guide_of("mean", chain).start_at(np.array([mean]), np.array([[sd]]))
    found = measure_story(model, DATA, len(Y), num_samples=2, seed=0).story
    assert (found.chains, found.chains_agree) == ("The 2 chains agree.", True)


def test_few_draws_lower_the_line_below_which_a_k_hat_is_good():
    assert judge(quantities(k_hat=0.6, k_hat_threshold=0.5)).verdict == "inconclusive"
    assert judge(quantities(k_hat=0.6)).verdict == "healthy"


def test_codes_that_carry_nothing_are_named():
    sites = (SiteHealth("mean", "global", kl=2.0), SiteHealth("a", "local", kl=1e-3), SiteHealth("b", "local", kl=0.5))
    finding = judge(quantities(sites=sites))
    assert finding.verdict == "collapsed"
    assert "a 0.001" in finding.evidence[0]
    assert "b 0" not in finding.evidence[0]


def test_t_and_divergence_come_before_anything_else():
    q = quantities()
    assert judge(dataclasses.replace(q, finite=False)).verdict == "diverged"
    assert judge(dataclasses.replace(q, temperature=10.0)).verdict == "mis_scaled_kl"
    cold = dataclasses.replace(q, temperature=0.01, declared_temperature=0.01)
    assert judge(cold).verdict == "near_deterministic"


def test_what_is_not_known_is_said():
    blank = judge(quantities(k_hat=None, r_hat=None, num_iterates=3))
    assert blank.verdict == "inconclusive"
    assert "read after 3 epochs" in blank.evidence[0]
    assert "diagnose(model, data)" in blank.evidence[1]
    assert judge(quantities(is_point=True)).evidence[0].startswith("Every guide is a point")
    assert judge(quantities(k_hat=None)).confidence == "possible"


def test_every_verdict_on_a_story_has_a_meaning_and_remedies_without_a_network():
    assert set(STORY_REMEDIES) <= set(VERDICTS)
    for verdict in ("diverged", "mis_scaled_kl", "still_training", "collapsed", "near_deterministic"):
        for remedy in remedies_of(verdict, quantities()):
            with pytest.raises(ValueError, match="needs a change in your code"):
                remedy.apply(None)


def test_a_report_has_the_sites_in_a_table_and_reads_back():
    q = quantities()
    assert Quantities.from_dict(q.to_dict()) == q
    text = HealthReport.of(judge(q), q).page().sections[1].blocks
    assert ("k-hat", ["0.3"]) in [(row.name, list(row.cells)) for row in text[0].rows]
    assert [list(row.cells) for row in text[1].rows] == [["global", "FullRank", "2"]]


# Iterates


def test_movement_is_in_the_guides_own_units():
    model = at_the_posterior()
    means = np.concatenate([np.zeros(20), np.linspace(0.0, 0.9, 10), np.full(10, 0.9)])
    means += 1e-3 * np.random.default_rng(0).normal(size=40)
    found = movement([Iterate(np.array([mean]), np.array([np.log(0.5)])) for mean in means], model)
    assert found["moved"] == pytest.approx(np.mean(means[30:] - means[20:30]) / 0.5)
    assert (found["moved_site"], found["num_iterates"]) == ("mean", 40)
    assert found["r_hat"] > 1.1
    noise = np.random.default_rng(1).normal(size=(80, 1))
    still = movement([Iterate(0.05 * each, np.zeros(1)) for each in noise], model)
    assert still["r_hat"] < 1.1
    assert movement([Iterate(np.zeros(1), np.zeros(1))] * 19, model) == {"num_iterates": 19}


# Real models


@pytest.mark.core
def test_the_callback_and_the_record_tell_what_diagnose_tells(tmp_path):
    path = tmp_path / "run.jsonl"
    model = at_the_posterior()
    model.compile(keras.optimizers.Adam(1e-3))
    health = TrainingHealth(record=path, on_verdict="record", max_cost=1.0)
    model.fit(DATA, batch_size="all", steps=80, epochs=40, verbose=0, callbacks=[health])
    assert health.quantities.story.num_iterates == 40
    assert health.finding.verdict == "healthy"
    (recorded,) = diagnose_record(path).values()
    assert recorded.verdict == "healthy"
    assert {site.name: site.kind for site in recorded.quantities.story.sites} == {"mean": "global"}
    shown = CliRunner().invoke(app, ["diagnose", str(path), "--output", str(tmp_path / "report.html")])
    assert shown.exit_code == 0, shown.output
    assert "MeanField" not in (page := (tmp_path / "report.html").read_text(encoding="utf-8"))
    assert "FullRank" in page
    report = diagnose(model, DATA, record=health)
    assert report.quantities.story.r_hat == health.quantities.story.r_hat
    assert report.quantities.temperature == 1.0


@pytest.mark.core
def test_k_hat_and_divergences_are_those_of_the_model():
    mean, sd, _ = level_posterior(Y.astype("float64"))
    found = measure_story(at_the_posterior(), DATA, len(Y), num_samples=60, seed=0)
    (site,) = found.story.sites
    exact = np.log(3 / sd) + (sd**2 + (mean - 0.5) ** 2) / 18 - 0.5
    # Half the square of the noise is all that varies, and is one for both of a mirrored pair.
    assert_within_standard_errors(site.kl, exact, np.sqrt(0.5 / 30))
    assert found.story.k_hat < 0.5
    assert found.story.effective_share > 0.99
    part = measure_story(at_the_posterior(), {"y": Y[:5]}, len(Y), num_samples=4, seed=0).story
    assert part.k_hat is None
    assert "all 12 rows, and `x` has 5" in part.k_hat_unknown


def test_an_infinite_k_hat_is_a_bad_one_and_can_be_recorded():
    model = at_the_posterior()
    model.guide_of("mean").start_at(np.array([1000.0]), np.array([[1e-3]]))  # one draw has all the weight
    story = measure_story(model, DATA, len(Y), num_samples=2, seed=0).story
    assert judge(quantities(k_hat=story.k_hat)).verdict == "inconclusive"
    assert Quantities.from_dict(Quantities(story=story).to_dict()).story == story


def test_a_silent_site_is_found_in_the_logs_and_on_the_data():
    def deaf(data):
        mean = yield Global("mean", Normal(0.0, 5.0))
        code = yield Local("code", Normal(0.0, 1.0))
        yield Observed("y", Normal(mean + 0.0 * code, 1.0), data["y"])

    model = SVI(deaf, {"code": Amortized(keras.layers.Dense(3), ["y"])}, seed=0)
    model.compile("adam")
    health = TrainingHealth(on_verdict="record", max_cost=1.0)
    model.fit(DATA, batch_size="all", steps=2, verbose=0, callbacks=[health])
    assert health.finding.verdict == "collapsed"  # a recognition network begins at the prior
    assert diagnose(model, DATA, record=health).verdict == "collapsed"
    logs = {"kl_code": 24.0, "kl_mean": 3.0}
    sites = [SiteHealth("mean", "global"), SiteHealth("code", "local")]
    assert [site.kl for site in sites_in_logs(sites, logs, 12)] == [3.0, 2.0]


def test_wrong_weights_of_the_divergence_are_named_before_the_first_epoch():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = SVI(level, num_examples=120, seed=0)
        model.compile("adam")
        health = TrainingHealth()
        model.fit(DATA, batch_size="all", steps=1, verbose=0, callbacks=[health])
    assert health.verdicts[0][:2] == (0, "mis_scaled_kl")
    assert "num_examples=120, and fit was given 12" in health.finding.evidence[1]


def test_a_warmup_is_on_its_way_and_a_loss_that_is_no_number_is_divergence():
    class Poison(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            self.model.guide_of("mean").shift.assign([np.nan])

    model = SVI(level, kl_weight=LinearWarmup(steps=100), seed=0)
    model.compile("adam")
    health = TrainingHealth(on_verdict="record")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that T has not come to 1
        model.fit(DATA, batch_size="all", steps=2, verbose=0, callbacks=[health])
        assert any("should end at 1" in sentence for sentence in health.finding.evidence)
        model.fit(DATA, batch_size="all", steps=1, verbose=0, callbacks=[Poison(), health])
    assert health.finding.verdict == "diverged"


def test_what_a_story_has_no_use_for_is_refused():
    model = at_the_posterior()
    with pytest.raises(ValueError, match="`y` must be None for a model of a story"):
        diagnose(model, DATA, Y)
    with pytest.raises(ValueError, match="`twin` must be None for a model of a story"):
        diagnose(model, DATA, twin="auto")
    with pytest.raises(ValueError, match="`x` must be the data of the story"):
        diagnose(model)


def test_a_local_site_of_many_rows_has_no_k_hat():
    model = SVI(groups, {"code": Amortized(keras.layers.Dense(3), ["y"])}, seed=0)
    many = {"y": np.zeros(1000, "float32")}
    model.trace_on(many)
    assert (
        "it grows with the latent numbers, which are 1001" in measure_story(model, many, 1000, 2, 0).story.k_hat_unknown
    )
