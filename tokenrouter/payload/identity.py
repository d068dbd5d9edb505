"""By what the provider may tell teams apart without learning who they are."""

import hmac

PURPOSE = b"tokenrouter.team-ids"


def team_identity(secret_key: str | bytes, team_id: int) -> str:
    """Return a team's name for the provider: 64 hexadecimal digits, the same wherever the secret key is the same."""
    secret = secret_key.encode() if isinstance(secret_key, str) else secret_key
    key = hmac.digest(secret, PURPOSE, "sha256")
    return hmac.digest(key, str(team_id).encode(), "sha256").hex()
