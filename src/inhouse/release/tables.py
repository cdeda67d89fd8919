"""Tables of the registry. Change them together with a new migration in `migrations/versions`."""

from __future__ import annotations

from sqlalchemy import Boolean, Column, ForeignKey, Integer, MetaData, String, Table, Text, UniqueConstraint

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
    Column("release", Integer, ForeignKey("releases.id"), nullable=False),
    Column("previous", Integer, ForeignKey("releases.id"), nullable=True),
    Column("changed_at", String(40), nullable=False),
    Column("generation", Integer, nullable=False),
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
)
