"""The account behind the stand-in: what its answers cost, and how Poe, OpenRouter and DeepSeek tell what is left."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs

import orjson

from tokenrouter.standin.values import Answer, Call, Served

PATHS = {
    "/usage/current_balance": "poe",
    "/usage/points_history": "poe",
    "/v1/key": "openrouter",
    "/user/balance": "deepseek",
}
POINTS_A_DOLLAR = 25_000
PAGE, MOST_PAGE = 20, 100


@dataclass
class StandInAccount:
    """An account of one kind, with its points at the beginning; each token that is served takes one."""

    kind: str = "poe"
    points: int = 1_000_000
    key_name: str = "demo"
    faults: dict[str, str] = field(default_factory=dict)
    """Directives for what is answered here, as `defaults` are for calls."""
    document: Any = None
    """What is answered in place of the truth, whatever its shape."""

    def answers(self, path: str) -> bool:
        """Tell whether this account has something at the path."""
        return PATHS.get(path) == self.kind

    def answer(self, call: Call, served: Sequence[Served]) -> Answer:
        """Tell what is left, or what was paid for."""
        if self.document is not None:
            return Answer([orjson.dumps(self.document)])
        history = call.path == "/usage/points_history"
        document = self._history(call, served) if history else self._balance(sum(each.total_tokens for each in served))
        return Answer([orjson.dumps(document)])

    def _balance(self, served_tokens: int) -> dict[str, Any]:
        left = self.points - served_tokens
        dollars = f"{left / POINTS_A_DOLLAR:.2f}"
        documents: dict[str, dict[str, Any]] = {
            "poe": {"current_point_balance": left, "total_balance_usd": dollars},
            "openrouter": {"data": {"label": "demo", "limit_remaining": left / POINTS_A_DOLLAR, "is_free_tier": False}},
            "deepseek": {"is_available": left > 0, "balance_infos": [{"currency": "USD", "total_balance": dollars}]},
        }
        return documents[self.kind]

    def _history(self, call: Call, served: Sequence[Served]) -> dict[str, Any]:
        """Return a page of what was paid for, newest first, as Poe does."""
        query = parse_qs(call.query)
        limit = min(int(query.get("limit", [str(PAGE)])[0]), MOST_PAGE)
        entries = [self._entry(each) for each in reversed(served)]
        after = query.get("starting_after", [None])[0]
        first = next((at + 1 for at, entry in enumerate(entries) if entry["query_id"] == after), 0)
        page = entries[first : first + limit]
        return {"has_more": first + limit < len(entries), "length": len(page), "data": page}

    def _entry(self, served: Served) -> dict[str, Any]:
        return {
            "bot_name": served.model,
            "creation_time": int(served.at * 10**6),
            "query_id": served.response_id,
            "cost_usd": f"{served.total_tokens / POINTS_A_DOLLAR:.6f}",
            "cost_points": served.total_tokens,
            "cost_breakdown_in_points": {
                "Input": f"{served.prompt_tokens} points ({served.prompt_tokens} tokens)",
                "Output": f"{served.completion_tokens} points ({served.completion_tokens} tokens)",
                "Total": f"{served.total_tokens} points",
            },
            "usage_type": "API",
            "api_key_name": self.key_name,
        }
