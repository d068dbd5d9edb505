"""What a team is handed with its token: addresses and a model, on the page and on a slip of paper."""

from dataclasses import dataclass
from typing import Any

from flask import request, url_for

from tokenrouter import runtime
from tokenrouter.database.tables import Team
from tokenrouter.qr import qr_code

USAGE_QR = "usage-qr"


@dataclass(frozen=True)
class Slip:
    """A slip for one team."""

    team: Team
    bearer_token: str
    model: str


def slip(team: Team, bearer_token: str) -> Slip:
    """Make a slip."""
    return Slip(team, bearer_token, runtime.current().example_model(team.model_patterns))


def base_url() -> str:
    """Return the values for programs."""
    return f"{request.host_url}v1"


def addresses() -> dict[str, Any]:
    """Return what all slips have alike; the QR code is drawn once, under its id, for all to show."""
    usage_url = url_for("site.usage", _external=True)
    drawn = qr_code(usage_url, "QR code of the page that shows a team its use", svg_id=USAGE_QR)
    return {"base_url": base_url(), "usage_url": usage_url, "usage_qr": drawn}
