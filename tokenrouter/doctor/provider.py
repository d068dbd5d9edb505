"""The provider: whether it answers and takes the key, what is left, and whether it has the allowed models."""

from collections.abc import Iterator

from tokenrouter.doctor.findings import Finding, Installation, Mark
from tokenrouter.provider.catalogue import lacking

RECENT_S = 5.0  # the check of the account may just have read the models


def provider(place: Installation) -> Iterator[Finding]:
    """Ask the provider, as calls would."""
    if not place.settings.provider_api_key:
        return
    found = place.account.check()
    if not found.state.is_good:
        yield Finding("provider", Mark.WRONG, found.words, "calls fail until then; see Troubleshooting in the README")
        return
    yield Finding("provider", Mark.OK, found.words)
    if found.balance is not None:
        amounts = [
            "" if found.balance.points is None else f"{found.balance.points:,} points",
            "" if found.balance.money is None else f"{found.balance.money / 10**9:,.2f} {found.balance.currency}",
        ]
        yield Finding("provider", Mark.OK, f"Left of the account: {', '.join(filter(None, amounts)) or 'no bound'}.")
    yield from _models(place)


def _models(place: Installation) -> Iterator[Finding]:
    listed = place.catalogue.check(within_s=RECENT_S)
    if listed.models is None:
        yield Finding("provider", Mark.WARNING, f"It does not list its models: {listed.problem}")
    elif absent := lacking(place.settings.allowed_models, listed.models):
        words = f"It has no model that ALLOWED_MODELS names so: {', '.join(absent)}."
        yield Finding("provider", Mark.WARNING, words, "correct ALLOWED_MODELS")
    else:
        yield Finding("provider", Mark.OK, f"It has what ALLOWED_MODELS names, among {len(listed.models):,} models.")
