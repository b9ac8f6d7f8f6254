"""Any valid spec compiles, and its package keeps every property that the shipped ones keep."""

import json
import zlib

import pytest
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from strategies import EMPTY, LONG, ONE, Case, Length, examples, specs

from vashista_gen import spec

from . import properties
from .certificate_properties import check_certificate
from .conftest import on_device
from .sketch_properties import check_sketches
from .summary_properties import check_summaries

pytestmark = pytest.mark.xdist_group("random_specs")

CASES = (
    Case((EMPTY, ONE, LONG), seed=1),
    Case((Length(eighths=14, tokens=-1), Length(eighths=8), Length(pages=1)), seed=2, family="outliers"),
    Case((LONG,), seed=3, family="duplicates"),
    Case((Length(eighths=23, tokens=7), ONE), seed=4, family="huge"),
)


# no shrinking: each attempt would compile a package, and the failing spec is printed whole
@settings(
    examples(6),
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)
@given(drawn=specs())
def test_random_spec(packages, drawn):
    name = f"random_{zlib.crc32(json.dumps(drawn, sort_keys=True).encode()):08x}"
    text = yaml.safe_dump({"name": name, **drawn}, sort_keys=False)
    subject = on_device(packages(spec.loads(text, f"{name}.yaml")), "cpu")
    for case in CASES:
        properties.check_dense(subject, case)
        properties.check_decode(subject, case)
        properties.check_decode(subject, case, budgets=case.seed, pins=2)
        properties.check_equals_dense(subject, case)
        properties.check_selection(subject, case)
        properties.check_physical_pages(subject, case)
        properties.check_rows_alone(subject, case)
        properties.check_page_lists(subject, case)
        properties.check_merge(subject, case, parts=3)
        check_summaries(subject, case)
        if subject.sketched:
            check_sketches(subject, case, calibrated=case.seed % 2 == 1)
        if subject.certificate != "none":
            check_certificate(subject, case, listed=case.seed % 2 == 0)
