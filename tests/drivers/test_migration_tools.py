"""Alembic autogenerate and Django's migrations, against the bare engine and RustyDB."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.target import Target

pytestmark = [pytest.mark.integration, pytest.mark.timeout(60, method="signal")]

DJANGO_SETTINGS = """
SECRET_KEY = "test"
INSTALLED_APPS = ["django.contrib.contenttypes", "django.contrib.auth", "django.contrib.admin",
                  "django.contrib.messages", "django.contrib.sessions", "django.contrib.postgres", "shop"]
DATABASES = {{"default": {{"ENGINE": "django.db.backends.postgresql", "NAME": "{database}", "USER": "{user}",
              "PASSWORD": "{password}", "HOST": "{host}", "PORT": "{port}", "CONN_MAX_AGE": 60}}}}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
USE_TZ = True
"""
DJANGO_MODELS = """
from django.contrib.postgres.fields import ArrayField
from django.contrib.postgres.indexes import GinIndex
from django.db import models

class Customer(models.Model):
    name = models.CharField(max_length=100, unique=True)
    tags = ArrayField(models.CharField(max_length=20), default=list)
    data = models.JSONField(default=dict)
    class Meta:
        indexes = [GinIndex(fields=["tags"])]

class Order(models.Model):
    customer = models.ForeignKey(Customer, on_delete=models.CASCADE, related_name="orders")
    total = models.DecimalField(max_digits=10, decimal_places=2)
    at = models.DateTimeField(auto_now_add=True)
    class Meta:
        constraints = [models.CheckConstraint(condition=models.Q(total__gt=0), name="total_positive")]
"""
DJANGO_SCRIPT = """
import django
django.setup()
from django.core.management import call_command
from django.db import connection, transaction
from django.db.models import Sum
call_command("makemigrations", "shop", verbosity=0)
call_command("migrate", verbosity=0)
call_command("migrate", "shop", "zero", verbosity=0)
call_command("migrate", verbosity=0)
from shop.models import Customer, Order
with transaction.atomic():
    ada = Customer.objects.create(name="Ada", tags=["a", "b"], data={"k": [1]})
    Order.objects.bulk_create([Order(customer=ada, total=n + 1) for n in range(300)])
assert Customer.objects.filter(tags__contains=["a"], data__k__0=1).count() == 1
assert Order.objects.aggregate(Sum("total"))["total__sum"] == sum(range(1, 301))
assert len([order for order in Order.objects.iterator(chunk_size=50)]) == 300   # server-side cursor
with transaction.atomic():
    assert Customer.objects.select_for_update().get(name="Ada").orders.count() == 300
call_command("inspectdb", stdout=open("inspected.py", "w"))
call_command("flush", interactive=False, verbosity=0)
assert Customer.objects.count() == 0
assert "shop_order" in connection.introspection.table_names()
print("done")
"""


def test_django_migrates_and_works(database: Target, tmp_path: Path) -> None:
    pytest.importorskip("django", reason="the package django is not installed")
    shop = tmp_path / "shop"
    shop.mkdir()
    (shop / "__init__.py").touch()
    (shop / "models.py").write_text(DJANGO_MODELS)
    fields = {name: getattr(database, name) for name in ("database", "user", "password", "host", "port")}
    (tmp_path / "shop_settings.py").write_text(DJANGO_SETTINGS.format(**fields))
    environment = {**os.environ, "DJANGO_SETTINGS_MODULE": "shop_settings", "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-c", DJANGO_SCRIPT]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.endswith("done\n"), done.stdout + done.stderr
    assert "class ShopOrder" in (tmp_path / "inspected.py").read_text()


def test_alembic_autogenerate_sees_every_difference_and_none_after(database: Target) -> None:
    sa: Any = pytest.importorskip("sqlalchemy", reason="the package sqlalchemy is not installed")
    pytest.importorskip("alembic", reason="the package alembic is not installed")
    from alembic import autogenerate
    from alembic.migration import MigrationContext
    from alembic.operations import Operations

    metadata = sa.MetaData()
    sa.Table(
        "item",
        metadata,
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("name", sa.String(40), nullable=False, index=True),
        sa.Column("kind", sa.Enum("a", "b", name="item_kind")),
        sa.Column("parent", sa.ForeignKey("item.id")),
    )
    engine = sa.create_engine(database.url_for("postgresql+psycopg"))
    with engine.begin() as connection:
        connection.execute(
            sa.text("CREATE TABLE item (id int PRIMARY KEY, name text, gone int); CREATE TABLE old (a int)")
        )
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "target_metadata": metadata})
        upgrade: Any = autogenerate.produce_migrations(context, metadata).upgrade_ops
        steps = [step for group in upgrade.ops for step in getattr(group, "ops", [group])]
        kinds = {type(step).__name__ for step in steps}
        assert {"AddColumnOp", "DropColumnOp", "DropTableOp", "CreateIndexOp", "AlterColumnOp"} <= kinds
        sa.Enum("a", "b", name="item_kind").create(connection)
        operations = Operations(context)
        for step in steps:
            operations.invoke(step)
        connection.commit()
        assert autogenerate.compare_metadata(context, metadata) == []
    engine.dispose()
