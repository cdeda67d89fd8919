"""Arms and rules of deployments, limits of keys, feedback, arm results, and what OpenAI's stored objects need."""

from __future__ import annotations

import json

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

SCOPES = '["chat", "embed", "files", "metrics"]'


def upgrade() -> None:
    """Add what serving needs; every deployment keeps the release that it points at, as its only arm."""
    _arms()
    _keys()
    _results()
    _objects()
    _batches()


def _arms() -> None:
    op.add_column("deployments", sa.Column("before", sa.Text, nullable=False, server_default="[]"))
    op.add_column("deployments", sa.Column("rules", sa.Text, nullable=False, server_default="{}"))
    arms = op.create_table(
        "arms",
        sa.Column("deployment", sa.String(64), sa.ForeignKey("deployments.name"), primary_key=True),
        sa.Column("release", sa.Integer, sa.ForeignKey("releases.id"), primary_key=True, autoincrement=False),
        sa.Column("weight", sa.Integer, nullable=False),
        sa.Column("role", sa.String(8), nullable=False),
        sa.Column("since", sa.String(40), nullable=False),
    )
    connection = op.get_bind()
    old = sa.text("SELECT name, release, previous, changed_at FROM deployments ORDER BY name")
    for name, release, previous, changed_at in connection.execute(old).all():
        row = {"deployment": name, "release": release, "weight": 1000, "role": "live", "since": changed_at}
        connection.execute(sa.insert(arms).values(row))
        if previous is not None:
            before = json.dumps([{"release": previous, "weight": 1000}])
            change = sa.text("UPDATE deployments SET before = :before WHERE name = :name")
            connection.execute(change, {"before": before, "name": name})


def _keys() -> None:
    for column in (
        sa.Column("scopes", sa.Text, nullable=False, server_default=SCOPES),
        sa.Column("models", sa.Text, nullable=False, server_default="[]"),
        sa.Column("requests_per_minute", sa.Integer, nullable=True),
        sa.Column("tokens_per_minute", sa.BigInteger, nullable=True),
        sa.Column("tokens_per_day", sa.BigInteger, nullable=True),
        sa.Column("old_hash", sa.String(64), nullable=True),
        sa.Column("old_expires", sa.String(40), nullable=True),
    ):
        op.add_column("api_keys", column)
    op.create_table(
        "key_usage",
        sa.Column("key", sa.Integer, sa.ForeignKey("api_keys.id"), primary_key=True, autoincrement=False),
        sa.Column("day", sa.String(10), primary_key=True),
        sa.Column("requests", sa.BigInteger, nullable=False),
        sa.Column("tokens", sa.BigInteger, nullable=False),
    )


def _results() -> None:
    op.create_table(
        "arm_results",
        sa.Column("deployment", sa.String(64), sa.ForeignKey("deployments.name"), primary_key=True),
        sa.Column("release", sa.Integer, sa.ForeignKey("releases.id"), primary_key=True, autoincrement=False),
        sa.Column("role", sa.String(8), primary_key=True),
        sa.Column("since", sa.String(40), primary_key=True),
        sa.Column("requests", sa.BigInteger, nullable=False),
        sa.Column("errors", sa.BigInteger, nullable=False),
        sa.Column("alarms", sa.BigInteger, nullable=False),
        sa.Column("latency_s", sa.Float, nullable=False),
        sa.Column("histogram", sa.Text, nullable=False),
        sa.Column("prompt_tokens", sa.BigInteger, nullable=False),
        sa.Column("answer_tokens", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "feedback",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("request_id", sa.String(64), nullable=False),
        sa.Column("key", sa.Integer, sa.ForeignKey("api_keys.id"), nullable=False),
        sa.Column("deployment", sa.String(64), nullable=False),
        sa.Column("release", sa.Integer, sa.ForeignKey("releases.id"), nullable=False),
        sa.Column("role", sa.String(8), nullable=False),
        sa.Column("score", sa.Float, nullable=False),
        sa.Column("comment", sa.Text, nullable=True),
        sa.Column("at", sa.String(40), nullable=False),
        sa.UniqueConstraint("key", "request_id", name="feedback_key_request"),
    )
    op.create_index("feedback_arm", "feedback", ["deployment", "release", "role"])


def _objects() -> None:
    op.create_table(
        "files",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("key", sa.Integer, sa.ForeignKey("api_keys.id"), nullable=False),
        sa.Column("purpose", sa.String(32), nullable=False),
        sa.Column("filename", sa.Text, nullable=False),
        sa.Column("bytes", sa.BigInteger, nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("created", sa.BigInteger, nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("expires", sa.BigInteger, nullable=True),
    )
    op.create_index("files_key", "files", ["key", "created", "id"])
    op.create_table(
        "responses",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("key", sa.Integer, sa.ForeignKey("api_keys.id"), nullable=False),
        sa.Column("model", sa.String(256), nullable=False),
        sa.Column("created", sa.BigInteger, nullable=False),
        sa.Column("previous", sa.String(64), nullable=True),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("body", sa.Text, nullable=False),
        sa.Column("expires", sa.BigInteger, nullable=True),
    )
    op.create_index("responses_expires", "responses", ["expires"])


def _batches() -> None:
    op.create_table(
        "batches",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("key", sa.Integer, sa.ForeignKey("api_keys.id"), nullable=False),
        sa.Column("endpoint", sa.String(64), nullable=False),
        sa.Column("input_file", sa.String(64), nullable=False),
        sa.Column("output_file", sa.String(64), nullable=True),
        sa.Column("error_file", sa.String(64), nullable=True),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("window", sa.String(16), nullable=False),
        sa.Column("created", sa.BigInteger, nullable=False),
        sa.Column("expires", sa.BigInteger, nullable=False),
        sa.Column("moments", sa.Text, nullable=False),
        sa.Column("metadata", sa.Text, nullable=False),
        sa.Column("errors", sa.Text, nullable=False),
    )
    op.create_index("batches_key", "batches", ["key", "created", "id"])
    op.create_table(
        "batch_items",
        sa.Column("batch", sa.String(64), sa.ForeignKey("batches.id"), primary_key=True),
        sa.Column("line", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("custom_id", sa.Text, nullable=False),
        sa.Column("custom_hash", sa.String(64), nullable=False),
        sa.Column("start", sa.BigInteger, nullable=False),
        sa.Column("size", sa.BigInteger, nullable=False),
        sa.Column("status", sa.String(8), nullable=False),
        sa.Column("worker", sa.String(255), nullable=True),
        sa.Column("lease", sa.BigInteger, nullable=True),
        sa.Column("failed", sa.Boolean, nullable=True),
        sa.Column("response", sa.Text, nullable=True),
        sa.UniqueConstraint("batch", "custom_hash", name="batch_items_custom"),
    )
    op.create_index("batch_items_status", "batch_items", ["batch", "status", "line"])
