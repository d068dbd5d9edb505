"""What TokenRouter is measured against: a forwarder written the plain way, which meters nothing and checks nothing."""

import os

import requests
from flask import Flask, Response, request, stream_with_context

PROVIDER_BASE_URL = os.environ["PROVIDER_BASE_URL"]
PROVIDER_API_KEY = os.environ["PROVIDER_API_KEY"]

app = Flask(__name__)
session = requests.Session()
session.mount("http://", requests.adapters.HTTPAdapter(pool_maxsize=2000))


@app.post("/v1/chat/completions")
def chat_completions() -> Response:
    """Forward the body with the provider's key, and stream whatever comes back."""
    reply = session.post(
        f"{PROVIDER_BASE_URL}/chat/completions",
        data=request.get_data(),
        headers={"Authorization": f"Bearer {PROVIDER_API_KEY}", "Content-Type": "application/json"},
        stream=True,
        timeout=(5, 600),
    )
    body = stream_with_context(reply.iter_content(chunk_size=None))
    return Response(body, reply.status_code, content_type=reply.headers["Content-Type"])
