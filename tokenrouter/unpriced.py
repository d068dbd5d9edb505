"""Say beside an answer of JSON, whose keys are fixed, how many of the tokens that it sums up have no price."""

from flask import Response, after_this_request

HEADER = "x-tokenrouter-unpriced-tokens"


def tell(tokens: int) -> None:
    """Have the answer to this request say that its costs leave out so many tokens; nothing if that is none."""
    if not tokens:
        return

    @after_this_request
    def add(response: Response) -> Response:
        response.headers[HEADER] = str(tokens)
        return response
