"""A provider and a load that take almost no CPU, nginx and wrk, so that the workers have the cores to themselves."""

import json
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from load import Load
from serving import eventually, free_port

ALL_CORES = ["taskset", "-c", f"0-{os.cpu_count() - 1}"]
"""What comes before a command that may run where it likes, whoever starts it."""
ANSWER = {
    "id": "chatcmpl-benchmark",
    "object": "chat.completion",
    "created": 1760000000,
    "model": "GPT-5-nano",
    "choices": [
        {"index": 0, "message": {"role": "assistant", "content": "word " * 20}, "finish_reason": "stop"},
    ],
    "usage": {"prompt_tokens": 12, "completion_tokens": 21, "total_tokens": 33},
}
CONFIGURATION = """
daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/nginx.log;
events {{ worker_connections 2048; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
    keepalive_requests 100000000;
    default_type application/json;
    server {{
        listen 127.0.0.1:{port};
        location = /v1/models {{ return 200 '{{"object": "list", "data": []}}'; }}
        location / {{ return 200 '{answer}'; }}
    }}
}}
"""
SCRIPT = """
local requests, at = {}, 0
function init(tokens)
  for number, token in ipairs(tokens) do
    local headers = {["Authorization"] = "Bearer " .. token, ["Content-Type"] = "application/json"}
    requests[number] = wrk.format("POST", nil, headers, %(body)s)
  end
end
function request()
  at = at %% #requests + 1
  return requests[at]
end
function done(summary, latency)
  local errors = summary.errors
  io.write("found ", summary.requests, " ", summary.duration, " ",
    errors.connect + errors.read + errors.write + errors.status + errors.timeout)
  for permille = 0, 999 do io.write(" ", latency:percentile(math.max(permille / 10, 0.001))) end
  io.write("\\n")
end
"""


def lacking() -> list[str]:
    """Return which of the two are not installed."""
    path = f"{os.environ.get('PATH', '')}:/usr/sbin"
    return [program for program in ("nginx", "wrk") if shutil.which(program, path=path) is None]


@contextmanager
def provider(folder: Path) -> Iterator[str]:
    """Answer each call with the same document; yield the base URL."""
    folder.mkdir()
    port = free_port()
    configuration = folder / "nginx.conf"
    configuration.write_text(CONFIGURATION.format(folder=folder, port=port, answer=json.dumps(ANSWER)))
    program = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    process = subprocess.Popen([*ALL_CORES, program, "-p", folder, "-c", configuration], stderr=subprocess.DEVNULL)
    try:
        if not eventually(partial(_listens, port)):
            raise SystemExit("nginx does not answer")
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(30)


def _listens(port: int) -> bool:
    with socket.socket() as there:
        return there.connect_ex(("127.0.0.1", port)) == 0


def run(
    url: str, tokens: list[str], body: dict[str, object], *, connections: int, seconds: float, folder: Path
) -> Load:
    """Call from so many connections at once, by turns with one of the tokens each, for so long.

    The latencies of the result are the thousandths of all calls', from the quickest on.
    """
    script = folder / "load.lua"
    script.write_text(SCRIPT % {"body": json.dumps(json.dumps(body))})
    options = ["--threads", "1", "--connections", str(connections), "--duration", f"{seconds:.0f}s", "--timeout", "30s"]
    command = [*ALL_CORES, "wrk", *options, "--script", str(script), f"{url}/v1/chat/completions", "--", *tokens]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = printed.partition("found ")[2].split()
    calls, elapsed_us, failures, *latencies_us = map(float, found)
    return Load(
        calls=int(calls),
        failures=int(failures),
        elapsed_s=elapsed_us / 1e6,
        latencies_s=[latency / 1e6 for latency in latencies_us],
    )
