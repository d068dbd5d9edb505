"""Play the provider on loopback: OpenAI's API in made-up words, with exact token counts and faults on demand.

`flask demo`, the tests and the benchmarks call it in place of a paid account. One thread runs one event loop. An answer
is decided at once, as a `Script` of waits and bytes, and the connection only plays it: a fault is a change of the
script. It is asked for in the text of the last message, `[[cut=3 gap=0.1]]`, or for all calls in `provider.defaults`;
the fields of `Faults` are the list. Any model name is served: refusing one is the proxy's task.
"""

from __future__ import annotations

from tokenrouter.standin.faults import Faults
from tokenrouter.standin.provider import StandInProvider
from tokenrouter.standin.values import Ending, Script
from tokenrouter.standin.words import prose

__all__ = ["Ending", "Faults", "Script", "StandInProvider", "prose"]
