"""Read the requests."""

from typing import Any

from tokenrouter.standin.values import Question, Refusal

FILE_TOKENS = 50


def texts(content: Any) -> list[str]:
    """Return the text parts of a message's content."""
    if isinstance(content, str):
        return [content]
    parts = content if isinstance(content, list) else []
    return [part["text"] for part in parts if isinstance(part, dict) and isinstance(part.get("text"), str)]


def read_chat(body: dict[str, Any]) -> Question:
    """Read the messages; 3 tokens a message and 3 for the answer's start are added, as OpenAI counts."""
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages or not all(isinstance(message, dict) for message in messages):
        raise Refusal(400, "'messages' must be an array of messages.", param="messages")
    spoken = [texts(message.get("content")) for message in messages]
    characters = sum(len(text) for each in spoken for text in each)
    tokens = max(1, characters // 4) + 3 * len(messages) + 3
    return Question(body, "\n".join(spoken[-1]), tokens, is_chat=True)


def read_prompts(field_name: str, body: dict[str, Any]) -> Question:
    """Read a string, strings, a token array or token arrays."""
    value = body.get(field_name)
    prompts = value if isinstance(value, list) and value and not isinstance(value[0], int) else [value]
    if not all(isinstance(prompt, str | list) for prompt in prompts):
        raise Refusal(400, f"'{field_name}' must be text or tokens.", param=field_name)
    written = [prompt for prompt in prompts if isinstance(prompt, str)]
    tokens = sum(map(len, written)) // 4 + sum(len(prompt) for prompt in prompts if isinstance(prompt, list))
    return Question(body, "\n".join(written), max(1, tokens), len(prompts))


def read_response(body: dict[str, Any]) -> Question:
    """Read the input: a text or items, of which the last, if it is a message, is the question."""
    given = body.get("input")
    items = given if isinstance(given, list) else [{"role": "user", "content": given}]
    if given is None or not items or not all(isinstance(item, dict) for item in items):
        raise Refusal(400, "'input' must be a text or items.", param="input")
    spoken = [texts(item.get("content")) + texts(item.get("output")) for item in items]
    characters = sum(len(text) for each in [*spoken, texts(body.get("instructions"))] for text in each)
    asks = items[-1].get("role") == "user"
    tokens = max(1, characters // 4) + 3 * len(items) + 3
    return Question(body, "\n".join(spoken[-1]) if asks else "", tokens)


def read_form_prompt(body: dict[str, Any]) -> Question:
    """Read a form with a file, and perhaps a prompt."""
    if not body.get("files"):
        raise Refusal(400, "A file is missing.", param="file")
    text = body.get("prompt", "")
    return Question(body, text, max(1, len(text) // 4) + FILE_TOKENS * len(body["files"]))


def whole(body: dict[str, Any], name: str) -> int:
    """Return a positive integer of the request, or 0 where there is none."""
    value = body.get(name) or 0
    if not isinstance(value, int):
        raise Refusal(400, f"'{name}' must be an integer.", param=name)
    return max(0, value)
