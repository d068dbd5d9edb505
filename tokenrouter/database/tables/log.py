"""The log of calls, what teams were given by them, and who was turned away before the log."""

from datetime import date, datetime

from sqlalchemy import BigInteger, ForeignKey, Index, String, select, text
from sqlalchemy.orm import Mapped, column_property, mapped_column

from tokenrouter.database.columns import RowId, UtcDateTime
from tokenrouter.database.log_status import RARE_STATUSES
from tokenrouter.database.tables.base import NAME_LENGTH, REASON_LENGTH, Base
from tokenrouter.database.tables.teams import Group

# written like this, since SQLite uses a partial index only if a term of the query is one of the index
IS_RARE = " OR ".join(f"status = '{status}'" for status in RARE_STATUSES)

BY_PROVIDER = "provider"
ESTIMATED = "estimated"
NOT_COUNTED = "none"

BY_PRICE = "price"
NO_COST = "none"


class RequestLog(Base):
    """One call. It is written as `pending` when its tokens are reserved and completed when it is settled.

    While it is pending, `prompt_tokens` is the estimate and `completion_tokens` what has arrived so far.
    """

    __tablename__ = "request_logs"

    id: Mapped[int] = mapped_column(RowId, primary_key=True)
    request_id: Mapped[str] = mapped_column(String(36), unique=True)
    team_id: Mapped[int] = mapped_column(ForeignKey("teams.id"))
    team_name: Mapped[str] = mapped_column(String(NAME_LENGTH))
    group_id: Mapped[int | None] = mapped_column(BigInteger)  # that held it as well
    token_id: Mapped[int] = mapped_column(BigInteger)
    token_prefix: Mapped[str] = mapped_column(String(8))
    worker_id: Mapped[int | None] = mapped_column(BigInteger)
    model: Mapped[str]
    endpoint: Mapped[str]
    status: Mapped[str] = mapped_column(String(16))
    status_code: Mapped[int | None]
    error_code: Mapped[str | None]
    repeats: Mapped[int] = mapped_column(default=1, server_default="1")  # how many calls the row stands for
    stream: Mapped[bool]
    held_tokens: Mapped[int] = mapped_column(BigInteger)
    held_cost: Mapped[int] = mapped_column(BigInteger, default=0, server_default="0")
    prompt_tokens: Mapped[int] = mapped_column(BigInteger)
    completion_tokens: Mapped[int] = mapped_column(BigInteger)
    total_tokens: Mapped[int] = mapped_column(BigInteger)
    cached_tokens: Mapped[int] = mapped_column(BigInteger, default=0, server_default="0")  # of the prompt
    charged_tokens: Mapped[int] = mapped_column(BigInteger)
    cost: Mapped[int | None] = mapped_column(BigInteger)  # billionths of CURRENCY; none where it is not known
    cost_source: Mapped[str] = mapped_column(String(16), default=NO_COST, server_default=NO_COST)
    usage_source: Mapped[str] = mapped_column(String(16))
    latency_ms: Mapped[int | None]
    first_byte_ms: Mapped[int | None]
    provider_request_id: Mapped[str | None]
    reason: Mapped[str | None] = mapped_column(String(REASON_LENGTH))  # why it was refused, or failed; never content
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    day: Mapped[date | None]  # to which it counts; of calls from before that was kept, the one in UTC
    group_name: Mapped[str | None] = column_property(
        select(Group.name).where(Group.id == group_id).correlate_except(Group).scalar_subquery()
    )

    __table_args__ = (
        Index("ix_request_logs_team_id_id", "team_id", "id"),
        Index(
            "ix_request_logs_group_id_id",
            "group_id",
            "id",
            sqlite_where=text("group_id IS NOT NULL"),
            postgresql_where=text("group_id IS NOT NULL"),
        ),
        Index(
            "ix_request_logs_pending",
            "worker_id",
            sqlite_where=text("status = 'pending'"),
            postgresql_where=text("status = 'pending'"),
        ),
        # for the newest failures; successful calls, nearly all, do not touch it
        Index("ix_request_logs_rare", "status", "id", sqlite_where=text(IS_RARE), postgresql_where=text(IS_RARE)),
    )


class GivenResponse(Base):
    """A response that a team was given, and may continue; at the provider it belongs to the whole account."""

    __tablename__ = "responses"

    team_id: Mapped[int] = mapped_column(ForeignKey("teams.id"), primary_key=True)
    response_hash: Mapped[str] = mapped_column(String(64), primary_key=True)  # SHA-256 of its id, in hexadecimal
    total_tokens: Mapped[int] = mapped_column(BigInteger)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)


class GivenItem(Base):
    """An item of a response that a team was given, and may name: at the provider it belongs to the whole account."""

    __tablename__ = "response_items"

    team_id: Mapped[int] = mapped_column(ForeignKey("teams.id"), primary_key=True)
    item_hash: Mapped[str] = mapped_column(String(64), primary_key=True)  # SHA-256 of its id, in hexadecimal
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)


class DoorRefusal(Base):
    """How many requests of an address were turned away in a minute, before they became calls of the log."""

    __tablename__ = "door_refusals"

    minute: Mapped[int] = mapped_column(BigInteger, primary_key=True)  # since 1970
    address: Mapped[str] = mapped_column(String(64), primary_key=True)
    reason: Mapped[str] = mapped_column(String(32), primary_key=True)
    token_id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)  # 0 where it never was one
    requests: Mapped[int] = mapped_column(BigInteger)
