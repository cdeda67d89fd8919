"""How many answers of an arm guards looked at: alarms are told out of these."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the count; of arms that were counted before, nobody knows it, and it stays unknown."""
    op.add_column("arm_results", sa.Column("looked_at", sa.BigInteger, nullable=True))
