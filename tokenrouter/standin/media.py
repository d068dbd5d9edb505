"""Answer moderations, images, speech and transcriptions; what they show and sound like is not on offer here."""

import base64
import time
from typing import Any

import orjson

from tokenrouter.standin.answers import token_usage, typed_stream
from tokenrouter.standin.faults import Faults
from tokenrouter.standin.values import Answer, Question, Served
from tokenrouter.standin.words import new_id, prose

CATEGORIES = ("harassment", "hate", "illicit", "self-harm", "sexual", "violence")
# One grey pixel.
PICTURE = base64.b64decode(
    b"iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNoAAAAggCBd81ytgAAAABJRU5ErkJggg=="
)
PICTURE_TOKENS = 272
SOUND = bytes(range(256)) * 4
CLIP_SECONDS = 9
PLAIN = {
    "text": ("text/plain; charset=utf-8", "{}\n"),
    "srt": ("text/plain; charset=utf-8", "1\n00:00:00,000 --> 00:00:09,000\n{}\n\n"),
    "vtt": ("text/vtt; charset=utf-8", "WEBVTT\n\n00:00:00.000 --> 00:00:09.000\n{}\n\n"),
}


def answer_moderation(question: Question, faults: Faults) -> Answer:
    """Find nothing wrong with each input; it costs nothing."""
    result = {
        "flagged": False,
        "categories": dict.fromkeys(CATEGORIES, False),
        "category_scores": dict.fromkeys(CATEGORIES, 0.0001),
        "category_applied_input_types": {name: ["text"] for name in CATEGORIES},
    }
    served = free(question, "modr-")
    reply = {"id": served.response_id, "model": served.model, "results": [result] * question.prompts}
    return Answer([orjson.dumps(reply)], served)


def free(question: Question, prefix: str) -> Served:
    """Return the record of an answer without tokens."""
    return Served(new_id(prefix), question.body["model"], 0, 0)


def counted(question: Question, faults: Faults, prefix: str, completion: int) -> Served:
    """Return the record of an answer with tokens, none where it is not to report any."""
    if faults.usage in ("none", "duration"):
        return free(question, prefix)
    prompt = question.prompt_tokens if faults.prompt_tokens is None else faults.prompt_tokens
    return Served(new_id(prefix), question.body["model"], prompt, completion)


def answer_generation(question: Question, faults: Faults) -> Answer:
    """Answer with new images."""
    return pictures(question, faults, "image_generation")


def answer_edit(question: Question, faults: Faults) -> Answer:
    """Answer with images made of the form's."""
    return pictures(question, faults, "image_edit")


def pictures(question: Question, faults: Faults, kind: str) -> Answer:
    """Answer with as many images as were asked for, whole or bit by bit."""
    count = int(question.body.get("n") or 1)
    served = counted(question, faults, "img-", count * PICTURE_TOKENS)
    usage = token_usage(faults, served.prompt_tokens, served.completion_tokens)
    picture = base64.b64encode(PICTURE).decode()
    if question.body.get("stream") in (True, "true"):
        frame = {"b64_json": picture, "created_at": int(time.time()), "size": "1024x1024", "quality": "low"}
        frame |= {"background": "opaque", "output_format": "png"}
        partial = int(question.body.get("partial_images") or 0)
        events = [{"type": f"{kind}.partial_image", **frame, "partial_image_index": at} for at in range(partial)]
        return typed_stream([*events, {"type": f"{kind}.completed", **frame, **usage}], served, faults)
    reply = {"created": int(time.time()), "data": [{"b64_json": picture}] * count, **usage}
    return Answer([orjson.dumps(reply)], served)


def answer_variation(question: Question, faults: Faults) -> Answer:
    """Answer with images, which cost no tokens."""
    rows = [{"url": "http://127.0.0.1/picture.png"}] * int(question.body.get("n") or 1)
    return Answer([orjson.dumps({"created": int(time.time()), "data": rows})], free(question, "img-"))


def answer_speech(question: Question, faults: Faults) -> Answer:
    """Answer with a sound, a piece for each word, or with events that carry the pieces."""
    pieces = [SOUND] * (4 if faults.words is None else faults.words)
    if question.body.get("stream_format") != "sse":
        return Answer(pieces, free(question, "speech-"), content_type="audio/mpeg", is_stream=True)
    served = counted(question, faults, "speech-", 10 * len(pieces))
    usage = token_usage(faults, served.prompt_tokens, served.completion_tokens)
    events = [{"type": "speech.audio.delta", "audio": base64.b64encode(piece).decode()} for piece in pieces]
    return typed_stream([*events, {"type": "speech.audio.done", **usage}], served, faults)


def answer_transcription(question: Question, faults: Faults) -> Answer:
    """Answer with what a recording says, in the format asked for."""
    words = prose("", faults)
    served = counted(question, faults, "transcript-", len(words))
    usage = token_usage(faults, served.prompt_tokens, served.completion_tokens)
    if faults.usage == "duration":
        usage = {"usage": {"type": "duration", "seconds": CLIP_SECONDS}}
    elif usage.get("usage"):
        usage["usage"]["type"] = "tokens"
    if question.body.get("stream") == "true":
        events = [{"type": "transcript.text.delta", "delta": word} for word in words]
        return typed_stream(
            [*events, {"type": "transcript.text.done", "text": "".join(words), **usage}], served, faults
        )
    return written(question, "".join(words), usage, served)


def answer_translation(question: Question, faults: Faults) -> Answer:
    """Answer with a translation, which reports no tokens."""
    return written(question, "".join(prose("", faults)), {}, free(question, "transcript-"))


def written(question: Question, text: str, usage: dict[str, Any], served: Served) -> Answer:
    """Write a transcript in the format asked for."""
    wanted = question.body.get("response_format", "json")
    if wanted in PLAIN:
        content_type, frame = PLAIN[wanted]
        return Answer([frame.format(text).encode()], free(question, "transcript-"), content_type=content_type)
    details = {"task": "transcribe", "language": "english", "duration": CLIP_SECONDS, "segments": []}
    return Answer([orjson.dumps({"text": text, **(details if wanted == "verbose_json" else {}), **usage})], served)
