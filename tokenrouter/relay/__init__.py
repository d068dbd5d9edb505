"""One call, from its body to its response: check, reserve, send, relay, settle."""
