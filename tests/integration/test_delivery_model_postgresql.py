"""The model-based test of delivery with the journal in a real PostgreSQL: the same rules, the same end."""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, settings

from tests.integration.test_delivery_model import DeliveryMachine
from tests.postgres import fresh_database, shared

FEW = int(os.environ.get("MODEL_EXAMPLES_POSTGRESQL", "3"))
MANY = int(os.environ.get("MODEL_EXAMPLES_POSTGRESQL", "60"))


class PostgresMachine(DeliveryMachine):
    """Every example in a database of its own."""

    def make_journal(self) -> str:
        return fresh_database()

    def remove_journal(self) -> None:
        shared().drop(self.url)


TestDelivery = PostgresMachine.TestCase
TestDelivery.settings = settings(
    max_examples=FEW,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    print_blob=True,
)


class ManyMachine(PostgresMachine):
    pass


TestManyDeliveries = pytest.mark.heavy(pytest.mark.timeout(900)(ManyMachine.TestCase))
TestManyDeliveries.settings = settings(TestDelivery.settings, max_examples=MANY)
