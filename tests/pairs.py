"""Parameters of a test by pairs: each value of each parameter meets each of every other, though not all meet at once.

Where faults come of one value or of two together this finds what all combinations find, in half the tests or fewer.
"""

from collections.abc import Sequence

import pytest
from allpairspy import AllPairs

BOTH_DATABASES = ("database", ("sqlite", "postgresql"))


def by_pairs(*parameters: tuple[str, Sequence[object]], indirect: Sequence[str] = ()) -> pytest.MarkDecorator:
    """Parametrize a test by three parameters or more, the same way in every run.

    Each is a name and its values, or names with commas in between and a tuple for each value. Of those that are
    `indirect` the fixture of that name gets the value.
    """
    rows = AllPairs([range(len(values)) for _, values in parameters])
    names = [name.strip() for name_or_names, _ in parameters for name in name_or_names.split(",")]
    return pytest.mark.parametrize(names, [_flat(parameters, row) for row in rows], indirect=indirect)


def _flat(parameters: Sequence[tuple[str, Sequence[object]]], row: Sequence[int]) -> list[object]:
    """Return the values of one test, those of tuples one by one."""
    flat: list[object] = []
    for (name, values), number in zip(parameters, row, strict=True):
        flat += values[number] if "," in name else [values[number]]
    return flat
