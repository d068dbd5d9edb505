"""The account behind the stand-in: what its answers cost, and how Poe, OpenRouter and DeepSeek tell what is left."""

from dataclasses import dataclass, field
from typing import Any

import orjson

from tokenrouter.standin.values import Answer

PATHS = {"/usage/current_balance": "poe", "/v1/key": "openrouter", "/user/balance": "deepseek"}
POINTS_A_DOLLAR = 25_000


@dataclass
class StandInAccount:
    """An account of one kind, with its points at the beginning; each token that is served takes one."""

    kind: str = "poe"
    points: int = 1_000_000
    faults: dict[str, str] = field(default_factory=dict)
    """Directives for what is answered here, as `defaults` are for calls."""
    document: Any = None
    """What is answered in place of the truth, whatever its shape."""

    def answers(self, path: str) -> bool:
        """Tell whether this account's balance stands at the path."""
        return PATHS.get(path) == self.kind

    def answer(self, served_tokens: int) -> Answer:
        """Tell what is left."""
        left = self.points - served_tokens
        dollars = f"{left / POINTS_A_DOLLAR:.2f}"
        documents = {
            "poe": {"current_point_balance": left, "total_balance_usd": dollars},
            "openrouter": {"data": {"label": "demo", "limit_remaining": left / POINTS_A_DOLLAR, "is_free_tier": False}},
            "deepseek": {"is_available": left > 0, "balance_infos": [{"currency": "USD", "total_balance": dollars}]},
        }
        return Answer([orjson.dumps(documents[self.kind] if self.document is None else self.document)])
