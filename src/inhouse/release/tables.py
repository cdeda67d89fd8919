"""Tables of the registry. Change them together with a new migration in `migrations/versions`."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

metadata = MetaData()

releases = Table(
    "releases",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", String(64), nullable=False),
    Column("version", Integer, nullable=False),
    Column("artifact", String(64), nullable=False),
    Column("passed", Boolean, nullable=False),
    Column("created", String(40), nullable=False),
    UniqueConstraint("name", "version", name="releases_name_version"),
    UniqueConstraint("name", "artifact", name="releases_name_artifact"),
)
deployments = Table(
    "deployments",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("release", Integer, ForeignKey("releases.id"), nullable=False),  # the live arm with the greatest weight
    Column("previous", Integer, ForeignKey("releases.id"), nullable=True),  # the same of `before`
    Column("changed_at", String(40), nullable=False),
    Column("generation", Integer, nullable=False),
    Column("before", Text, nullable=False, server_default="[]"),  # JSON: live arms that a rollback returns to
    Column("rules", Text, nullable=False, server_default="{}"),  # JSON: release/rules.py
)
arms = Table(
    "arms",
    metadata,
    Column("deployment", String(64), ForeignKey("deployments.name"), primary_key=True),
    Column("release", Integer, ForeignKey("releases.id"), primary_key=True, autoincrement=False),
    # Per mille. Live arms share 1000 among themselves; a canary takes its part of everything first.
    Column("weight", Integer, nullable=False),
    Column("role", String(8), nullable=False),
    Column("since", String(40), nullable=False),
)
audit = Table(
    "audit",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("at", String(40), nullable=False),
    Column("actor", String(128), nullable=False),
    Column("action", String(64), nullable=False),
    Column("subject", String(128), nullable=False),
    Column("detail", Text, nullable=False),
)
api_keys = Table(
    "api_keys",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", String(64), nullable=False),
    Column("prefix", String(16), nullable=False),
    Column("hash", String(64), nullable=False, unique=True),
    Column("created", String(40), nullable=False),
    Column("expires", String(40), nullable=True),
    Column("revoked", String(40), nullable=True),
    Column("scopes", Text, nullable=False, server_default='["chat", "embed", "files", "metrics"]'),  # JSON list
    Column("models", Text, nullable=False, server_default="[]"),  # JSON list; empty: every deployment
    Column("requests_per_minute", Integer, nullable=True),
    Column("tokens_per_minute", BigInteger, nullable=True),
    Column("tokens_per_day", BigInteger, nullable=True),
    Column("old_hash", String(64), nullable=True),  # of the token before a rotation
    Column("old_expires", String(40), nullable=True),
)
key_usage = Table(
    "key_usage",
    metadata,
    Column("key", Integer, ForeignKey("api_keys.id"), primary_key=True, autoincrement=False),
    Column("day", String(10), primary_key=True),  # UTC
    Column("requests", BigInteger, nullable=False),
    Column("tokens", BigInteger, nullable=False),
)
arm_results = Table(
    "arm_results",
    metadata,
    Column("deployment", String(64), ForeignKey("deployments.name"), primary_key=True),
    Column("release", Integer, ForeignKey("releases.id"), primary_key=True, autoincrement=False),
    Column("role", String(8), primary_key=True),
    Column("since", String(40), primary_key=True),  # when the arm was added
    Column("requests", BigInteger, nullable=False),
    Column("errors", BigInteger, nullable=False),
    Column("alarms", BigInteger, nullable=False),
    Column("latency_s", Float, nullable=False),
    Column("histogram", Text, nullable=False),  # JSON list of counts: release/results.py
    Column("prompt_tokens", BigInteger, nullable=False),
    Column("answer_tokens", BigInteger, nullable=False),
    Column("looked_at", BigInteger, nullable=True),  # by guards; NULL: counted before this was
)
feedback = Table(
    "feedback",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("request_id", String(64), nullable=False),
    Column("key", Integer, ForeignKey("api_keys.id"), nullable=False),
    Column("deployment", String(64), nullable=False),
    Column("release", Integer, ForeignKey("releases.id"), nullable=False),
    Column("role", String(8), nullable=False),
    Column("score", Float, nullable=False),
    Column("comment", Text, nullable=True),
    Column("at", String(40), nullable=False),
    UniqueConstraint("key", "request_id", name="feedback_key_request"),
    Index("feedback_arm", "deployment", "release", "role"),
)
files = Table(
    "files",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("key", Integer, ForeignKey("api_keys.id"), nullable=False),
    Column("purpose", String(32), nullable=False),
    Column("filename", Text, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("created", BigInteger, nullable=False),  # seconds since 1970, as OpenAI's objects have it
    Column("status", String(16), nullable=False),
    Column("expires", BigInteger, nullable=True),
    Index("files_key", "key", "created", "id"),
)
responses = Table(
    "responses",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("key", Integer, ForeignKey("api_keys.id"), nullable=False),
    Column("model", String(256), nullable=False),
    Column("created", BigInteger, nullable=False),
    Column("previous", String(64), nullable=True),
    Column("status", String(16), nullable=False),
    Column("body", Text, nullable=False),  # JSON
    Column("expires", BigInteger, nullable=True),
    Index("responses_expires", "expires"),
)
batches = Table(
    "batches",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("key", Integer, ForeignKey("api_keys.id"), nullable=False),
    Column("endpoint", String(64), nullable=False),
    Column("input_file", String(64), nullable=False),
    Column("output_file", String(64), nullable=True),
    Column("error_file", String(64), nullable=True),
    Column("status", String(16), nullable=False),
    Column("window", String(16), nullable=False),
    Column("created", BigInteger, nullable=False),
    Column("expires", BigInteger, nullable=False),
    Column("moments", Text, nullable=False),  # JSON: status -> seconds since 1970
    Column("metadata", Text, nullable=False),  # JSON object of the client
    Column("errors", Text, nullable=False),  # JSON list
    Index("batches_key", "key", "created", "id"),
)
batch_items = Table(
    "batch_items",
    metadata,
    Column("batch", String(64), ForeignKey("batches.id"), primary_key=True),
    Column("line", Integer, primary_key=True, autoincrement=False),  # of the input file, from 1
    Column("custom_id", Text, nullable=False),  # as a JSON string: a database's text holds no NUL and no surrogate
    Column("custom_hash", String(64), nullable=False),
    Column("start", BigInteger, nullable=False),  # where the line lies in the input file
    Column("size", BigInteger, nullable=False),
    Column("status", String(8), nullable=False),
    Column("worker", String(255), nullable=True),
    Column("lease", BigInteger, nullable=True),  # seconds since 1970
    Column("failed", Boolean, nullable=True),
    Column("response", Text, nullable=True),  # JSON
    UniqueConstraint("batch", "custom_hash", name="batch_items_custom"),
    Index("batch_items_status", "batch", "status", "line"),
)
