"""The receivers of alerts, as the settings name them."""

from functools import partial
from pathlib import Path

from flask import Flask

from tokenrouter.alerts.delivery import Receivers
from tokenrouter.alerts.kinds import Speaker
from tokenrouter.alerts.mail import Mail
from tokenrouter.alerts.webhook import Webhook, secret_from
from tokenrouter.config import Settings
from tokenrouter.first_start import generated_secret_key


def receivers_of(app: Flask, settings: Settings) -> Receivers:
    """Return who gets an app's alerts."""
    speaker = Speaker(settings.timezone, settings.currency)
    webhook = mail = None
    if settings.alert_webhook_url is not None:
        webhook = Webhook(settings.alert_webhook_url, partial(webhook_secret, app), speaker)
    if settings.smtp_url is not None:
        mail = Mail(settings.smtp_url, speaker)
    return Receivers(webhook, mail, settings.alert_mail_to or ())


def webhook_secret(app: Flask) -> str:
    """Return the secret with which receivers verify that a webhook is from this app.

    Raises ConfigError if the key cannot be read that it is made of.
    """
    return secret_from(app.config["SECRET_KEY"] or generated_secret_key(Path(app.instance_path)))
