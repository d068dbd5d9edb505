"""Alerts: when to tell whom, and telling once.

The ledger writes an alert in the transaction that crosses a share of a quota; `watch` looks for all else by the clock.
`delivery` hands each to its receivers, claims and sends what is due, and tries for a day.
"""

from tokenrouter.alerts.delivery import Receivers, Sender, send_test
from tokenrouter.alerts.kinds import AlertRecord, Speaker, Words
from tokenrouter.alerts.listing import (
    AlertsPage,
    Shown,
    Undelivered,
    alert_view,
    alerts_page,
    count_unseen,
    undelivered,
)
from tokenrouter.alerts.mail import Mail
from tokenrouter.alerts.message import Answer, Message
from tokenrouter.alerts.outage import OutageWatch
from tokenrouter.alerts.outbox import see
from tokenrouter.alerts.setting import receivers_of, webhook_secret
from tokenrouter.alerts.watch import LOOK_AHEAD_S, LOOK_S, check_books, look, look_ahead
from tokenrouter.alerts.webhook import Webhook, secret_from

__all__ = [
    "LOOK_AHEAD_S",
    "LOOK_S",
    "AlertRecord",
    "AlertsPage",
    "Answer",
    "Mail",
    "Message",
    "OutageWatch",
    "Receivers",
    "Sender",
    "Shown",
    "Speaker",
    "Undelivered",
    "Webhook",
    "Words",
    "alert_view",
    "alerts_page",
    "check_books",
    "count_unseen",
    "look",
    "look_ahead",
    "receivers_of",
    "secret_from",
    "see",
    "send_test",
    "undelivered",
    "webhook_secret",
]
