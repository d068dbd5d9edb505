"""What pictures, sound, videos and files count in a prompt, by their kind and size, never by the length of base64.

Sources: OpenAI, "Images and vision" (patches of 32 pixels, 1,536 at the most, 2.46 tokens each for the smallest model)
and "PDF files"; Google, "Understand and count tokens" (sound 32 tokens a second, video 300). Where a size is not known,
that of a long message is taken: a minute of sound, half a minute of video, a page of a file.
"""

import binascii
import io
import math
import re
from typing import Any

import imagesize

IMAGE, SOUND, VIDEO, FILE = "image", "sound", "video", "file"
PATCH_PIXELS, MOST_PATCHES, TOKENS_PER_PATCH = 32, 1536, 2.46
SOUND_TOKENS_PER_S, SOUND_BYTES_PER_S, PCM_BYTES_PER_S, USUAL_SOUND_S = 32, 8_000, 48_000, 60
VIDEO_TOKENS_PER_S, VIDEO_BYTES_PER_S, USUAL_VIDEO_S = 300, 125_000, 30
PAGE_TOKENS, PAGE_BYTES, BYTES_PER_TEXT_TOKEN = 3_000, 50_000, 4
HEADER_BYTES = 96 * 1024  # in which a picture tells its size
KINDS = {
    "image": IMAGE,
    "image_url": IMAGE,
    "input_image": IMAGE,
    "computer_screenshot": IMAGE,
    "screenshot": IMAGE,
    "image_generation_call": IMAGE,
    "audio": SOUND,
    "audio_url": SOUND,
    "input_audio": SOUND,
    "video": VIDEO,
    "video_url": VIDEO,
    "input_video": VIDEO,
    "file": FILE,
    "input_file": FILE,
    "document": FILE,
}
"""By the type of a part."""
PAYLOADS = ("data", "file_data", "b64_json", "image_data", "bytes", "result", "url")
DATA_URL = re.compile(r"data:([\w.+-]+/[\w.+-]+)?((?:;[\w.=+-]+)*);base64,", re.ASCII | re.IGNORECASE)
TEXT_SOURCE = "text"


def kind_of(part: dict[str, Any]) -> str | None:
    """Return the kind of a part that is no text; None for all others."""
    kind = part.get("type")
    found = KINDS.get(kind) if isinstance(kind, str) else None
    if found is FILE:
        source = part.get("source")
        if isinstance(part.get("text"), str) or (isinstance(source, dict) and source.get("type") == TEXT_SOURCE):
            return None  # a document that is sent as text
    return found


def tokens(kind: str, part: dict[str, Any]) -> int:
    """Return what a part of this kind counts."""
    payload, is_raw = _payload(part)
    if is_data_url(payload):
        return tokens_of_data_url(payload, kind)
    return _tokens(kind, payload if is_raw else "", is_pcm=_format(part) in ("wav", "pcm16"))


def _format(part: dict[str, Any]) -> object:
    inner = part.get("input_audio")
    return inner.get("format") if isinstance(inner, dict) else part.get("format")


def is_data_url(text: str) -> bool:
    """Tell whether a text is a data: URL with base64."""
    return text.startswith(("data:", "DATA:", "Data:")) and DATA_URL.match(text) is not None


def tokens_of_data_url(url: str, kind: str | None = None) -> int:
    """Return what the content of a data: URL counts; its own type says of which kind it is."""
    match = DATA_URL.match(url)
    if match is None:
        return 0
    mime_type = (match[1] or "").lower()
    family = mime_type.partition("/")[0]
    of_family = {"image": IMAGE, "audio": SOUND, "video": VIDEO}.get(family)
    encoded = url[match.end() :]
    if family == "text" or mime_type.endswith("json"):
        return math.ceil(_size(encoded) / BYTES_PER_TEXT_TOKEN)
    return _tokens(of_family or kind or FILE, encoded, is_pcm="wav" in mime_type or "pcm" in mime_type)


def _payload(part: dict[str, Any]) -> tuple[str, bool]:
    """Return the longest text of a part that may be its content, and whether it is base64 by its place."""
    best, is_raw = "", False
    waiting: list[Any] = [part]
    while waiting:
        value = waiting.pop()
        if isinstance(value, list):
            waiting += value
        elif isinstance(value, dict):
            for name, member in value.items():
                if isinstance(member, str) and len(member) > len(best):
                    best, is_raw = member, name in PAYLOADS and "://" not in member[:64]
                elif not isinstance(member, str):
                    waiting.append(member)
    return best, is_raw


def _tokens(kind: str, encoded: str, *, is_pcm: bool) -> int:
    size = _size(encoded)
    if kind == IMAGE:
        return image_tokens(*_pixels(encoded))
    if kind == SOUND:
        seconds = size / (PCM_BYTES_PER_S if is_pcm else SOUND_BYTES_PER_S) if size else USUAL_SOUND_S
        return math.ceil(seconds * SOUND_TOKENS_PER_S)
    if kind == VIDEO:
        return math.ceil((size / VIDEO_BYTES_PER_S if size else USUAL_VIDEO_S) * VIDEO_TOKENS_PER_S)
    return PAGE_TOKENS * max(1, math.ceil(size / PAGE_BYTES))


def tokens_of_files(kind: str, files: int, size: int) -> int:
    """Return what files of a form count, which have so many bytes together."""
    if kind == SOUND:
        return math.ceil(size / SOUND_BYTES_PER_S * SOUND_TOKENS_PER_S)
    return files * image_tokens(0, 0)


def image_tokens(width: int, height: int) -> int:
    """Return what a picture of this size counts; the most that one does where the size is not known."""
    if width <= 0 or height <= 0:
        return math.ceil(MOST_PATCHES * TOKENS_PER_PATCH)
    patches = math.ceil(width / PATCH_PIXELS) * math.ceil(height / PATCH_PIXELS)
    return math.ceil(min(patches, MOST_PATCHES) * TOKENS_PER_PATCH)


def _size(encoded: str) -> int:
    return len(encoded) * 3 // 4


def _pixels(encoded: str) -> tuple[int, int]:
    try:
        header = binascii.a2b_base64(encoded[: HEADER_BYTES // 3 * 4])
    except (binascii.Error, ValueError):
        return 0, 0
    return imagesize.get(io.BytesIO(header)) if header else (0, 0)
