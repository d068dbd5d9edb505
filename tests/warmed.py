"""What a fork server loads (see warm.py): the service, its templates once compiled, and the tables of the tokenizer."""

import compiled

import tokenrouter  # noqa: F401
from tokenrouter.metering import counting

compiled.remember_rules()
compiled.remember_templates()
counting.load_tables()
