"""What a fork server loads (see warm.py): the service, its templates once compiled, and the tables of the tokenizer.

What starts a program is loaded too, and the worker: each of hundreds of processes would load them anew. gunicorn's own
start is not: its configuration is for the folder where it is loaded, and by its arbiter the service knows what runs it.
"""

import gc

import compiled
import flask_migrate  # noqa: F401
import warm  # noqa: F401

from tokenrouter.metering import counting
from tokenrouter.worker import gunicorn_log, gunicorn_worker  # noqa: F401

compiled.remember_rules()
compiled.remember_templates()
counting.load_tables()
gc.collect()
gc.freeze()
