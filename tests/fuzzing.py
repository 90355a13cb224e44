"""How the command is tried on damaged files: many of them, the same in every run, none for long."""

from datetime import timedelta

from hypothesis import HealthCheck, settings

fuzzed = settings(
    max_examples=80,
    deadline=timedelta(seconds=10),
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
