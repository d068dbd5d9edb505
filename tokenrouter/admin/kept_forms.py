"""Keep what was typed into a form whose session had ended: it is shown, and sent again by hand.

What is kept becomes a change only by a button on a page of ours, which says what was typed and sends a CSRF token of
the session that is open then. What a page of another site sends is not kept.
"""

from dataclasses import dataclass, field
from urllib.parse import urlencode

from flask import request
from werkzeug.exceptions import RequestEntityTooLarge

from tokenrouter.admin import own_pages
from tokenrouter.origins import is_from_another_site
from tokenrouter.request_body import MOST_PAGE_BYTES

PREFIX = "kept."  # of its fields in the sign-in form
PATH = "kept_path"
MOST_CARRIED_BYTES = MOST_PAGE_BYTES * 3 // 4  # the sign-in form has more to carry
NEVER_KEPT = frozenset(("csrf_token", "password", "confirmed"))  # what was confirmed is asked again
NOT_SHOWN = frozenset(("url",))
LABELS = {"rowid": "selected"}
MOST_SHOWN = 3  # values of one field; of more, their number


@dataclass(frozen=True)
class KeptForm:
    """The target of a form, and its fields in order, which are lost if they were too large to be read."""

    path: str
    fields: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    is_lost: bool = False

    @property
    def shown(self) -> dict[str, str]:
        """What was typed, by the words for its fields."""
        names = dict.fromkeys(name for name, value in self.fields if value and name not in NOT_SHOWN)
        return {LABELS.get(name, name.replace("_", " ")): self._values(name) for name in names}

    def _values(self, name: str) -> str:
        values = [value for key, value in self.fields if key == name]
        return ", ".join(values) if len(values) <= MOST_SHOWN else f"{len(values):,} in all"

    @property
    def page(self) -> str:
        """The address of the page on which the form stands."""
        return own_pages.page_of(self.path)

    def to_be_carried(self) -> "KeptForm":
        """Return the fields for the sign-in form to carry: all, or none if they are too large."""
        size = len(urlencode([(PREFIX + name, value) for name, value in self.fields]))
        return self if size <= MOST_CARRIED_BYTES else KeptForm(self.path, is_lost=True)


def sent_now() -> KeptForm | None:
    """Return the form sent by the current request; None if it is not one of the panel's."""
    if request.method != "POST" or is_from_another_site(request):
        return None
    path = request.full_path.rstrip("?")
    try:
        sent = list(request.form.items(multi=True))
    except RequestEntityTooLarge:
        return KeptForm(path, is_lost=True)
    if "csrf_token" not in request.form:
        return None
    return KeptForm(path, tuple((name, value) for name, value in sent if name not in NEVER_KEPT))


def carried() -> KeptForm | None:
    """Return the form carried by the sign-in form."""
    path = request.form.get(PATH, "")
    if not own_pages.is_own(path):
        return None
    sent = request.form.items(multi=True)
    fields = tuple((name.removeprefix(PREFIX), value) for name, value in sent if name.startswith(PREFIX))
    return KeptForm(path, fields, is_lost="kept_is_lost" in request.form)
