"""The alerts: whether anybody gets them, and what did not arrive."""

from collections.abc import Iterator

from tokenrouter.alerts import undelivered
from tokenrouter.doctor.findings import Finding, Installation, Mark


def alerts(place: Installation) -> Iterator[Finding]:
    """Check who gets alerts, and which of the last week were not delivered."""
    settings = place.settings
    has_mail = settings.smtp_url is not None and settings.alert_mail_to is not None
    if settings.alert_webhook_url is None and not has_mail:
        words = "They are shown in the panel alone."
        yield Finding("alerts", Mark.OK, words, "to get them, set ALERT_WEBHOOK_URL, or SMTP_URL and ALERT_MAIL_TO")
    failed = undelivered(place.engine)
    if failed.deliveries:
        words = f"Not delivered in the last week: {failed.deliveries:,}. The last answer: {failed.answer}."
        yield Finding("alerts", Mark.WARNING, words, "the panel’s page “Alerts” has each; `flask alerts test` tries it")
    elif settings.alert_webhook_url is not None or has_mail:
        yield Finding("alerts", Mark.OK, "All of the last week were delivered.")
