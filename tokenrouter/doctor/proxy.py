"""Check the proxy in front of the service, from outside, for what proxies most often break."""

from collections.abc import Iterator

import requests

from tokenrouter.doctor.findings import Finding, Installation, Mark

ASK_S = 10.0
CAUSES: tuple[tuple[type[requests.RequestException], str], ...] = (
    (requests.exceptions.SSLError, "its certificate is not trusted, or it speaks no TLS there"),
    (requests.Timeout, f"there was no answer within {ASK_S:.0f} s"),
    (requests.ConnectionError, "nothing answers there"),
    (requests.RequestException, "it is no address, or what answers there is no HTTP"),
)
LARGE_BODY = 2 * 2**20  # nginx takes 1 MiB unless told otherwise


def proxy(place: Installation, url: str | None) -> Iterator[Finding]:
    """Check from outside what a proxy most often breaks: addresses, large bodies, our own errors, https."""
    if url is None:
        if place.settings.trusted_proxies:
            words = "TRUSTED_PROXIES says that a proxy stands in front, which was not looked at."
            yield Finding("proxy", Mark.OK, words, "give its address: flask doctor --url https://…")
        return
    try:
        yield from _seen_from_outside(url.rstrip("/"), place.settings.trusted_proxies)
    except requests.RequestException as error:
        words = next(words for kind, words in CAUSES if isinstance(error, kind))
        yield Finding("proxy", Mark.WRONG, f"{url} cannot be asked: {words}.", "check its address, and the proxy's log")


def _seen_from_outside(url: str, trusted_proxies: int) -> Iterator[Finding]:
    health = requests.get(f"{url}/healthz", timeout=ASK_S, allow_redirects=False)
    if health.status_code != 200 or "ok" not in health.text:
        words = f"{url}/healthz answers {health.status_code}, which is not this service's answer."
        yield Finding("proxy", Mark.WRONG, words, "have it pass every path on as it is")
        return
    yield Finding("proxy", Mark.OK, f"{url} leads to this service.")
    body = b'{"model": "' + b"x" * LARGE_BODY + b'"}'
    refusal = requests.post(f"{url}/v1/chat/completions", data=body, timeout=ASK_S, allow_redirects=False)
    if refusal.status_code == 413:
        yield Finding("proxy", Mark.WRONG, "It refuses bodies of 2 MB.", "nginx: client_max_body_size 32m;")
    elif refusal.status_code != 401 or "invalid_api_key" not in refusal.text:
        words = f"A call without a token is answered {refusal.status_code}, not with the 401 of this service."
        yield Finding("proxy", Mark.WRONG, words, "have it pass errors on (nginx: proxy_intercept_errors off;)")
    else:
        yield Finding("proxy", Mark.OK, "Large bodies and errors pass as they are.")
    yield from _cookies(url, trusted_proxies)


def _cookies(url: str, trusted_proxies: int) -> Iterator[Finding]:
    if not url.startswith("https:"):
        words = "Passwords and tokens cross it unencrypted."
        yield Finding("proxy", Mark.WARNING, words, "serve https:// there, unless nobody else can listen")
        return
    page = requests.get(f"{url}/admin/login", timeout=ASK_S, allow_redirects=False)
    if not all(cookie.secure for cookie in page.cookies):
        advice = (
            "set TRUSTED_PROXIES=1" if not trusted_proxies else "nginx: proxy_set_header X-Forwarded-Proto $scheme;"
        )
        yield Finding("proxy", Mark.WRONG, "The service does not know that browsers use https.", advice)
    else:
        yield Finding("proxy", Mark.OK, "Cookies are kept to https.")
