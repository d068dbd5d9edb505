"""The official SDK for Node through a real gunicorn: chat and responses, whole and as streams."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Server

pytestmark = pytest.mark.slow

SCRIPT = """
import OpenAI from "openai";

const client = new OpenAI({apiKey: process.env.TOKEN, baseURL: process.env.URL, maxRetries: 0});
const model = "GPT-5-nano";
const messages = [{role: "user", content: "Hello!"}];
const found = {};

const chat = await client.chat.completions.create({model, messages});
found.chat = chat.choices[0].message.content;
found.chatTokens = chat.usage.total_tokens;

found.streamedChat = "";
for await (const chunk of await client.chat.completions.create({model, messages, stream: true})) {
  found.streamedChat += chunk.choices[0].delta.content ?? "";
}

const response = await client.responses.create({model, input: "Hello!"});
found.response = response.output_text;

found.streamedResponse = "";
found.events = [];
for await (const event of await client.responses.create({model, input: "Hello!", stream: true})) {
  found.events.push(event.type);
  if (event.type === "response.output_text.delta") found.streamedResponse += event.delta;
}

const next = await client.responses.create({model, input: "And?", previous_response_id: response.id});
found.next = next.status;

try {
  await client.responses.create({model: "gpt-4", input: "Hello!"});
} catch (error) {
  found.error = [error.constructor.name, error.status, error.code];
}

try {
  const input = "[[failed=6 code=server_error]]";
  for await (const event of await client.responses.create({model, input, stream: true})) found.last = event.type;
} catch (error) {
  found.last = error.message;
}

console.log(JSON.stringify(found));
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the SDK in it."""
    for name in ("node", "npm"):
        if shutil.which(name) is None:
            pytest.skip(f"{name} is not installed here, and pip cannot bring it")
    folder = tmp_path_factory.mktemp("node")
    (folder / "package.json").write_text('{"private": true}')
    command = ["npm", "install", "openai", "--no-audit", "--no-fund", "--ignore-scripts", "--fetch-retries=0"]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)
    except subprocess.TimeoutExpired:
        pytest.skip("the SDK for Node could not be had within a minute")
    if done.returncode:
        pytest.skip(f"the SDK for Node could not be had: {done.stderr.strip()[-200:]}")
    (folder / "calls.mjs").write_text(SCRIPT)
    return folder


def test_sdk_for_node_gets_what_it_knows_from_openai(folder: Path, server: Server):
    token = server.create_team("node", 1_000_000)
    environment = {"TOKEN": token, "URL": f"{server.url}/v1", "PATH": str(Path(shutil.which("node")).parent)}
    command = [shutil.which("node"), "calls.mjs"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    for name in ("chat", "streamedChat", "response", "streamedResponse"):
        assert "TokenRouter demo" in found[name]
    assert (found["events"][0], found["events"][-1]) == ("response.created", "response.completed")
    assert found["next"] == "completed"
    assert found["error"] == ["NotFoundError", 404, "model_not_found"]
    assert found["last"] == "response.failed"
    rows = json.loads(server.flask("logs", "list", "--json").stdout)
    statuses = ["provider_error", "rejected", "ok", "ok", "ok", "ok", "ok"]
    assert [row["status"] for row in rows] == statuses
    assert rows[-1]["charged_tokens"] == found["chatTokens"]
