"""Templates compiled once: what gunicorn's master compiled, its workers share, in place of some megabytes in each."""

from pathlib import Path
from typing import ClassVar

from flask import Flask
from jinja2 import BytecodeCache
from jinja2.bccache import Bucket

TEMPLATES = Path(__file__).parent.parent / "templates"


class SharedBytecode(BytecodeCache):
    """Compiled templates in the memory of the process, which copies of it begin with."""

    _compiled: ClassVar[dict[str, bytes]] = {}

    def load_bytecode(self, bucket: Bucket) -> None:
        """Fill the bucket where its template was compiled before."""
        if bucket.key in self._compiled:
            bucket.bytecode_from_string(self._compiled[bucket.key])

    def dump_bytecode(self, bucket: Bucket) -> None:
        """Keep what was compiled."""
        self._compiled[bucket.key] = bucket.bytecode_to_string()


def init_app(app: Flask) -> None:
    """Let the app's templates be compiled once."""
    app.jinja_env.bytecode_cache = SharedBytecode()


def compile_all(app: Flask) -> None:
    """Compile all our templates."""
    for path in TEMPLATES.rglob("*.html"):
        app.jinja_env.get_template(path.relative_to(TEMPLATES).as_posix())
