"""Hypothesis profiles: dev; ci (derandomised, the default where CI=true); deep (HYPOTHESIS_PROFILE=deep)."""

import os

from hypothesis import HealthCheck, settings

# an example may compile kernels, so its time says nothing; no test asserts a time
SLOW = (HealthCheck.too_slow, HealthCheck.data_too_large)

settings.register_profile("dev", deadline=None, suppress_health_check=SLOW)
settings.register_profile("ci", settings.get_profile("dev"), derandomize=True, database=None, print_blob=True)
settings.register_profile("deep", settings.get_profile("dev"), max_examples=2000)
settings.load_profile(
    os.environ.get("HYPOTHESIS_PROFILE") or ("ci" if os.environ.get("CI") == "true" else "dev")
)
