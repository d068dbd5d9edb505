"""The account behind the stand-in: what its answers cost, and how Poe, OpenRouter and DeepSeek tell what is left."""

import time
from collections.abc import Callable, Sequence
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
DAY_S = 86_400
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
    grant: tuple[int, float] | None = None
    """The next monthly grant: its points, and when it comes, in seconds since 1970."""
    charges_broken: bool = False
    """Whether answers are paid for that were cut, or never sent, as providers do."""
    clock: Callable[[], float] = time.time
    """Seconds since 1970; by it the day of OpenRouter begins."""

    def answers(self, path: str) -> bool:
        """Tell whether this account has something at the path."""
        return PATHS.get(path) == self.kind

    def answer(self, call: Call, finished: Sequence[Served], broken: Sequence[Served]) -> Answer:
        """Tell what is left, or what was paid for."""
        if self.document is not None:
            return Answer([orjson.dumps(self.document)])
        served = sorted((*finished, *(broken if self.charges_broken else ())), key=lambda each: each.at)
        history = call.path == "/usage/points_history"
        return Answer([orjson.dumps(self._history(call, served) if history else self._balance(served))])

    def _balance(self, served: Sequence[Served]) -> dict[str, Any]:
        if self.kind == "openrouter":
            return {"data": self._key(served)}
        left = self.points - sum(each.total_tokens for each in served)
        dollars = f"{left / POINTS_A_DOLLAR:.2f}"
        if self.kind == "deepseek":
            return {"is_available": left > 0, "balance_infos": [{"currency": "USD", "total_balance": dollars}]}
        grant = {}
        if self.grant is not None:
            points, at = self.grant
            grant = {"next_monthly_grant_amount": points, "next_monthly_grant_time": int(at * 10**6)}
        return {"current_point_balance": left, "total_balance_usd": dollars, **grant}

    def _key(self, served: Sequence[Served]) -> dict[str, Any]:
        """Return what OpenRouter tells of a key: what it spent ever, and today, which begins at midnight in UTC."""
        midnight = self.clock() // DAY_S * DAY_S
        used = sum(each.total_tokens for each in served)
        used_today = sum(each.total_tokens for each in served if each.at >= midnight)
        return {
            "label": self.key_name,
            "limit_remaining": (self.points - used) / POINTS_A_DOLLAR,
            "usage": used / POINTS_A_DOLLAR,
            "usage_daily": used_today / POINTS_A_DOLLAR,
            "is_free_tier": False,
        }

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
