"""The provider's endpoints that are served, a row each: all that is particular to them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tokenrouter.errors import InvalidRequest
from tokenrouter.metering import media
from tokenrouter.metering.prompts import Prompt, count_inputs, read_chat_prompt, read_inputs, read_response_prompt
from tokenrouter.metering.texts import AnswerTexts, answer_texts, response_texts
from tokenrouter.metering.typed_streams import NOTHING_LAST, LastEvents


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """What is particular to one of the provider's endpoints; adding one is adding a row."""

    path: str
    """Below the provider's root, and below /v1 here."""
    is_form: bool = False
    """Whether the model is in a part of a multipart body, which may have files, and not in JSON."""
    has_default_model: bool = False
    lists: tuple[str, ...] = ()
    """Fields that are lists if they are there at all."""
    refusals: tuple[Callable[[Mapping[str, Any]], None], ...] = ()
    """Checks of fields that reach into what belongs to the whole account; each raises InvalidRequest."""

    read_prompt: Callable[[Mapping[str, Any]], Prompt]
    file_kind: str = ""
    """Of which kind the files of a form are."""
    continued_by: str = ""
    """The field that names an earlier answer, which the model reads again."""

    names_user: bool = False
    """Whether providers take a field `user` that says for whom they answer."""

    limits: tuple[str, ...] = ()
    """The fields that limit the output; the last is written where the caller used none. None: the answer is no text."""
    choices: tuple[str, ...] = ()
    """The fields that say how many answers to make; of several the largest counts. `n` of them are shown."""
    count_prompts: Callable[[Mapping[str, Any]], int] | None = None

    may_stream: bool = False
    usage_must_be_requested: bool = False
    """Whether a stream reports usage only where `stream_options` ask for it."""
    last_events: LastEvents = NOTHING_LAST
    """The types of the events that end a stream; nothing if [DONE] ends it."""
    is_binary: bool = False
    text_formats: frozenset[str] = frozenset()
    """The values of `response_format` for which the answer is a text; all else is answered by JSON."""
    read_answer: Callable[[object], AnswerTexts] = answer_texts
    """Returns the texts to count where a JSON answer does not say what it cost."""
    is_free_without_usage: bool = False

    @property
    def answers_in_text(self) -> bool:
        """Whether what arrived of a broken answer is text, and neither numbers nor an image's letters."""
        return bool(self.limits or self.text_formats)

    @property
    def name(self) -> str:
        """Its path in the letters of a Python name."""
        return self.path.strip("/").replace("/", "_")


def _refuse_background(body: Mapping[str, Any]) -> None:
    if body.get("background"):
        raise InvalidRequest(
            "background is not served here: what runs on after the call could not be counted for a team.",
            param="background",
        )


CHAT = Endpoint(
    path="/chat/completions",
    has_default_model=True,
    lists=("messages", "tools"),
    read_prompt=read_chat_prompt,
    names_user=True,
    limits=("max_tokens", "max_completion_tokens"),
    choices=("n",),
    may_stream=True,
    usage_must_be_requested=True,
)
COMPLETIONS = Endpoint(
    path="/completions",
    has_default_model=True,
    read_prompt=read_inputs("prompt", "suffix"),
    names_user=True,
    limits=("max_tokens",),
    choices=("n", "best_of"),
    count_prompts=count_inputs("prompt"),
    may_stream=True,
    usage_must_be_requested=True,
)
RESPONSES = Endpoint(
    path="/responses",
    has_default_model=True,
    lists=("tools",),
    refusals=(_refuse_background,),
    read_prompt=read_response_prompt,
    continued_by="previous_response_id",
    names_user=True,
    limits=("max_output_tokens",),
    may_stream=True,
    last_events=LastEvents(
        good=frozenset(("response.completed", "response.incomplete", "response.done", "response.cancelled")),
        bad=frozenset(("response.failed", "error")),
    ),
    read_answer=response_texts,
)
EMBEDDINGS = Endpoint(path="/embeddings", read_prompt=read_inputs("input"), names_user=True)
MODERATIONS = Endpoint(path="/moderations", read_prompt=read_inputs("input"), is_free_without_usage=True)
IMAGES = Endpoint(
    path="/images/generations",
    read_prompt=read_inputs("prompt"),
    names_user=True,
    choices=("n",),
    may_stream=True,
    last_events=LastEvents(good=frozenset(("image_generation.completed",)), bad=frozenset(("error",))),
    is_free_without_usage=True,
)
IMAGE_EDITS = Endpoint(
    path="/images/edits",
    is_form=True,
    read_prompt=read_inputs("prompt", "images"),
    file_kind=media.IMAGE,
    choices=("n",),
    may_stream=True,
    last_events=LastEvents(good=frozenset(("image_edit.completed",)), bad=frozenset(("error",))),
    is_free_without_usage=True,
)
IMAGE_VARIATIONS = Endpoint(
    path="/images/variations",
    is_form=True,
    read_prompt=read_inputs(),
    file_kind=media.IMAGE,
    choices=("n",),
    is_free_without_usage=True,
)
SPEECH = Endpoint(
    path="/audio/speech",
    read_prompt=read_inputs("input", "instructions"),
    may_stream=True,
    last_events=LastEvents(good=frozenset(("speech.audio.done",)), bad=frozenset(("error",))),
    is_binary=True,
    is_free_without_usage=True,
)
TRANSCRIPTIONS = Endpoint(
    path="/audio/transcriptions",
    is_form=True,
    read_prompt=read_inputs("prompt"),
    file_kind=media.SOUND,
    may_stream=True,
    last_events=LastEvents(good=frozenset(("transcript.text.done",)), bad=frozenset(("error",))),
    text_formats=frozenset(("text", "srt", "vtt")),
    is_free_without_usage=True,
)
TRANSLATIONS = Endpoint(
    path="/audio/translations",
    is_form=True,
    read_prompt=read_inputs("prompt"),
    file_kind=media.SOUND,
    text_formats=frozenset(("text", "srt", "vtt")),
    is_free_without_usage=True,
)

ENDPOINTS = (
    CHAT,
    COMPLETIONS,
    RESPONSES,
    EMBEDDINGS,
    MODERATIONS,
    IMAGES,
    IMAGE_EDITS,
    IMAGE_VARIATIONS,
    SPEECH,
    TRANSCRIPTIONS,
    TRANSLATIONS,
)
