"""A header of JSON answers, whose keys are fixed: how many of the summed tokens have no price."""

from flask import Response, after_this_request

HEADER = "x-tokenrouter-unpriced-tokens"


def note(tokens: int) -> None:
    """Add the header to the answer of this request, unless there are no such tokens."""
    if not tokens:
        return

    @after_this_request
    def add(response: Response) -> Response:
        response.headers[HEADER] = str(tokens)
        return response
