"""A script that looks up models in a public list of prices: names as JSON on standard input, prices on output.

It is run as a separate process, since loading the list takes some 30 MB, which no serving worker should keep.
"""

import json
import sys

from genai_prices import Usage, calc_price

SAMPLE = 1_000  # tokens; large prompts cost more per token at some models
SAMPLES_A_MILLION = 1_000
USAGES = {
    "input": Usage(input_tokens=SAMPLE),
    "cached_input": Usage(input_tokens=SAMPLE, cache_read_tokens=SAMPLE),
    "output": Usage(input_tokens=0, output_tokens=SAMPLE),
}


def proposal(model: str) -> dict[str, str] | None:
    """Return dollars per million tokens, as decimals; None if the list does not have the model."""
    try:
        prices = {name: calc_price(usage, model_ref=model.lower()).total_price for name, usage in USAGES.items()}
    except LookupError:
        return None
    return {name: f"{(price * SAMPLES_A_MILLION).normalize():f}" for name, price in prices.items()}


if __name__ == "__main__":
    found = {model: proposal(model) for model in json.load(sys.stdin)}
    json.dump({model: prices for model, prices in found.items() if prices is not None}, sys.stdout)
