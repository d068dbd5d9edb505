"""Multipart bodies: read while they come, kept on disk, forwarded byte for byte, and refused where two-faced."""

import hashlib
import http.client
import json
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from conftest import HELLO, Member, Server, eventually, running_server, stored
from flask.testing import FlaskClient
from hypothesis import given, settings
from hypothesis import strategies as st
from sending import FORMS, MODEL
from werkzeug.test import TestResponse

from tokenrouter import reports
from tokenrouter.errors import InvalidRequest
from tokenrouter.metering.media import IMAGE, tokens_of_files
from tokenrouter.relay import uploads
from tokenrouter.relay.uploads import Upload
from tokenrouter.standin import StandInProvider

BOUNDARY = "----WebKitFormBoundary7MA4YWxkTrZu0gW"
TYPE = f"multipart/form-data; boundary={BOUNDARY}"
FILE = b'name="file"; filename="a file.mp3"'
MODEL_PART = (b'name="model"', MODEL.encode())
MEGABYTE = 1024 * 1024


def part(disposition: bytes, value: bytes, more: bytes = b"") -> bytes:
    head = b"--" + BOUNDARY.encode() + b"\r\nContent-Disposition: form-data; " + disposition + b"\r\n"
    return head + more + b"\r\n" + value + b"\r\n"


def form(*parts: tuple[bytes, ...]) -> bytes:
    return b"".join(part(*each) for each in parts) + b"--" + BOUNDARY.encode() + b"--\r\n"


def received(data: bytes, content_type: str = TYPE, size: int = 65536) -> tuple[dict[str, str], int]:
    """Return what is read of a form that comes in pieces."""
    with Upload(content_type) as upload:
        upload.receive(data[at : at + size] for at in range(0, len(data), size))
        upload.file.seek(0)
        assert upload.file.read() == data
        return upload.fields, upload.files


def post(client: FlaskClient, team: Member, data: bytes, content_type: str = TYPE) -> TestResponse:
    return client.post("/v1/audio/transcriptions", data=data, content_type=content_type, headers=team.headers)


# What is read


@pytest.mark.parametrize("size", [1, 7, 65536])
def test_model_may_come_before_or_after_the_file(size: int):
    file = (FILE, b"\r\n--" + BOUNDARY[:-1].encode() + bytes(1000), b"Content-Type: audio/mpeg\r\n")
    for parts in ((file, MODEL_PART), (MODEL_PART, file)):
        assert received(form(*parts), size=size) == ({"model": MODEL}, 1)


def test_only_fields_that_decide_are_kept():
    fields = {"model": MODEL, "prompt": "Räuber", "n": "2", "stream": "true", "response_format": "srt"}
    parts = [(b'name="%s"' % name.encode(), value.encode()) for name, value in fields.items()]
    assert received(form(*parts, (b'name="language"', b"de"), (b'name="temperature"', b"0")))[0] == fields


@given(before=st.binary(max_size=300), after=st.binary(max_size=300), size=st.integers(1, 400))
@settings(max_examples=60, deadline=None)
def test_any_file_leaves_the_model_readable(before: bytes, after: bytes, size: int):
    data = form((FILE, before), MODEL_PART, (FILE, after))
    assert received(data, size=size) == ({"model": MODEL}, 2)


DISPOSITIONS = [
    b"name=file; filename=a.mp3",
    b'filename="a.mp3"; name="file"',
    b'name="file"; filename="a \\"quoted\\".mp3"',
    b'name="file"; filename="a.mp3"; filename*=UTF-8\'\'%c3%a4.mp3',
    'name="file"; filename="ä.mp3"'.encode(),
]


@pytest.mark.parametrize("disposition", DISPOSITIONS)
def test_usual_spellings_of_a_file_are_taken(disposition: bytes):
    assert received(form((disposition, b"sound"), MODEL_PART)) == ({"model": MODEL}, 1)


# What is refused


GOOD = form((FILE, b"sound"), MODEL_PART)
BROKEN = {
    "nothing": b"",
    "no boundary in it": b"model=GPT-5-nano",
    "cut in a file": GOOD[:150],
    "cut before its end": GOOD[:-6],
    "something after": GOOD + b"--" + BOUNDARY.encode() + b"\r\n" + part(b'name="model"', b"gpt-4"),
    "its boundary in a file, after a bare line feed": form(
        (FILE, b"\n--" + BOUNDARY.encode() + b'\nContent-Disposition: form-data; name="model"\n\ngpt-4\n'), MODEL_PART
    ),
    "its boundary in a file, with spaces after": form(
        (FILE, b"\r\n--" + BOUNDARY.encode() + b'  \r\nContent-Disposition: form-data; name="model"\r\n\r\ngpt-4\r\n'),
        MODEL_PART,
    ),
    "no disposition": b"--" + BOUNDARY.encode() + b"\r\nContent-Type: text/plain\r\n\r\nx\r\n" + GOOD,
    "two dispositions": form((FILE, b""), (b'name="a"', b"x", b'Content-Disposition: form-data; name="model"\r\n')),
    "no name": form((b'filename="a"', b"x"), MODEL_PART),
    "two names": form((b'name="a"; name="model"', b"gpt-4"), MODEL_PART),
    "an encoded name": form((b"name*=UTF-8''model", b"gpt-4"), MODEL_PART),
    "an escaped name": form((b'name="mo\\del"', b"gpt-4"), MODEL_PART),
    "a broken header": form((b'name="a"', b"x", b"X-\xff: 1\r\n"), MODEL_PART),
    "an endless header": form((b'name="a"; filename="' + b"x" * 300_000 + b'"', b"x"), MODEL_PART),
    "too many parts": form(*[(b'name="a"', b"")] * 1001, MODEL_PART),
}


@pytest.mark.parametrize("name", BROKEN)
def test_form_that_is_broken_or_two_faced_is_refused(
    client: FlaskClient, team: Member, provider: StandInProvider, name: str
):
    reply = post(client, team, BROKEN[name])
    assert (reply.status_code, reply.json["error"]["type"]) == (400, "invalid_request_error")
    assert (provider.calls, reports.newest_calls(None, 1)) == ([], [])


BAD_FIELDS = {
    "twice": (form((FILE, b""), MODEL_PART, MODEL_PART), "model"),
    "twice, and not the same": (form(MODEL_PART, (FILE, b""), (b'name="model"', b"gpt-4")), "model"),
    "a file": (form((b'name="model"; filename="a"', MODEL.encode())), "model"),
    "latin-1": (form((b'name="model"', b"\xe4")), "model"),
    "a megabyte": (form((b'name="prompt"', b"x" * (MEGABYTE + 1)), MODEL_PART), "prompt"),
    "a line more": (form((FILE, b""), (b'name="model"', b"GPT-5-nano\r\n")), "model"),
    "none": (form((FILE, b"")), "model"),
    "n twice": (form(MODEL_PART, (b'name="n"', b"1"), (b'name="n"', b"2")), "n"),
    "stream of another type": (form(MODEL_PART, (FILE, b""), (b'name="stream"', b"1")), "stream"),
}


@pytest.mark.parametrize("name", BAD_FIELDS)
def test_field_that_cannot_be_used_is_named(client: FlaskClient, team: Member, provider: StandInProvider, name: str):
    data, param = BAD_FIELDS[name]
    reply = post(client, team, data)
    assert (reply.status_code, reply.json["error"]["param"]) == (400, param)
    assert (provider.calls, reports.newest_calls(None, 1)) == ([], [])


TYPES = [
    "",
    "multipart/form-data",
    "multipart/form-data; boundary=",
    f"multipart/form-data; boundary={BOUNDARY}; boundary=other",
    f"multipart/form-data; boundary={BOUNDARY}; boundary*=UTF-8''other",
    "multipart/form-data; boundary=" + "x" * 71,
    'multipart/form-data; boundary="a\\"b"',
    f"multipart/mixed; boundary={BOUNDARY}",
    "application/x-www-form-urlencoded",
    "text/plain",
]


@pytest.mark.parametrize("content_type", TYPES)
def test_type_of_content_that_is_no_form_is_refused(content_type: str):
    with pytest.raises(InvalidRequest):
        Upload(content_type)


def test_form_endpoint_takes_json_too_and_the_provider_judges_it(
    client: FlaskClient, team: Member, provider: StandInProvider
):
    body = {"model": MODEL, "images": [{"image_url": "data:image/png;base64,AAAA"}], "prompt": "A cat"}
    client.post("/v1/images/edits", json=body, headers=team.headers)
    assert provider.calls[0].json == body
    assert reports.newest_calls(None, 1)[0].held_tokens < tokens_of_files(IMAGE, 1, 0) + 100


def test_json_endpoint_takes_no_form(client: FlaskClient, team: Member, provider: StandInProvider):
    reply = client.post("/v1/chat/completions", data=GOOD, content_type=TYPE, headers=team.headers)
    assert (reply.status_code, provider.calls) == (400, [])


# What is forwarded


@pytest.mark.parametrize("endpoint", FORMS)
@pytest.mark.parametrize("quoted", [False, True])
def test_form_arrives_byte_for_byte(
    client: FlaskClient, team: Member, provider: StandInProvider, endpoint: str, quoted: bool
):
    content_type = f'Multipart/Form-Data; charset=utf-8; boundary="{BOUNDARY}"' if quoted else TYPE
    name = b'name="%s"; filename="a"' % FORMS[endpoint].encode()
    data = form((name, bytes(range(256)) * 3000, b"Content-Type: x/y\r\n"), (b'name="unheard"', b"of"), MODEL_PART)
    reply = client.post(f"/v1/{endpoint}", data=data, content_type=content_type, headers=team.headers)
    assert reply.status_code == 200
    (call,) = provider.calls
    assert call.body == data
    assert call.headers["content-type"] == content_type
    assert call.headers["content-length"] == str(len(data))


def test_every_file_counts_to_the_prompt(client: FlaskClient, team: Member):
    images = [(b'name="image[]"; filename="a"', b"x")] * 3
    client.post("/v1/images/edits", data=form(*images, MODEL_PART), content_type=TYPE, headers=team.headers)
    assert reports.newest_calls(None, 1)[0].held_tokens == tokens_of_files(IMAGE, 3, 0) + 1


def test_upload_is_sent_again_after_a_connection_that_was_closed_meanwhile(
    client: FlaskClient, team: Member, provider: StandInProvider
):
    assert post(client, team, GOOD).status_code == 200
    provider.close_idle()
    assert post(client, team, GOOD).status_code == 200
    assert provider.calls[1].body == GOOD


def test_no_file_stays_open(client: FlaskClient, team: Member, monkeypatch: pytest.MonkeyPatch):
    opened = []
    make = uploads.SpooledTemporaryFile
    monkeypatch.setattr(uploads, "SpooledTemporaryFile", lambda **options: opened.append(make(**options)) or opened[-1])
    large = form((FILE, bytes(MEGABYTE)), MODEL_PART)
    for data in (large, large[:-6], BAD_FIELDS["twice"][0], form((FILE, b""), (b'name="prompt"', b"[[drop=1]]"))):
        post(client, team, data)
    assert [file.closed for file in opened] == [True] * 4
    assert stored(team).held_tokens == 0


# Size


@pytest.fixture
def large_server(settings: dict[str, str], tmp_path: Path) -> Iterator[Server]:
    large = {"MAX_REQUEST_BYTES": str(128 * MEGABYTE), "WEB_CONCURRENCY": "1", "PROVIDER_READ_TIMEOUT": "60"}
    with running_server(settings | large, tmp_path) as server:
        yield server


def memory_kb(pid: int, name: str) -> int:
    return int(re.search(rf"{name}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())[1])


def upload(server: Server, token: str, head: bytes, megabytes: int, tail: bytes, *, chunked: bool) -> tuple[int, dict]:
    """Send a form whose file is as many megabytes of zeros."""
    body = (head, *[bytes(MEGABYTE)] * megabytes, tail)
    headers = {"Authorization": f"Bearer {token}", "Content-Type": TYPE}
    if not chunked:
        headers["Content-Length"] = str(sum(map(len, body)))
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=60)
    try:
        connection.request("POST", "/v1/audio/transcriptions", iter(body), headers, encode_chunked=chunked)
        reply = connection.getresponse()
        return reply.status, json.loads(reply.read())
    finally:
        connection.close()


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the system does not tell a process's memory")
@pytest.mark.parametrize("chunked", [False, True])
def test_hundred_megabytes_pass_through_little_memory(large_server: Server, provider: StandInProvider, chunked: bool):
    provider.record_calls = False
    token = large_server.create_team()
    digests = []
    respond = provider.respond
    provider.respond = lambda call: digests.append(hashlib.sha256(call.body).digest()) or respond(call)
    head, tail = GOOD.split(b"sound")
    assert upload(large_server, token, head, 1, tail, chunked=chunked)[0] == 200
    (worker,) = large_server.worker_pids()
    before = memory_kb(worker, "VmRSS")
    Path(f"/proc/{worker}/clear_refs").write_text("5")  # the highest use is noted anew
    status, answer = upload(large_server, token, head, 100, tail, chunked=chunked)
    assert (status, "This is" in answer["text"]) == (200, True)
    assert memory_kb(worker, "VmHWM") - before < 20 * 1024
    expected = hashlib.sha256(head)
    for _ in range(100):
        expected.update(bytes(MEGABYTE))
    expected.update(tail)
    assert digests[1] == expected.digest()


def test_form_over_the_limit_is_refused_while_it_comes(large_server: Server, provider: StandInProvider):
    head, tail = GOOD.split(b"sound")
    status, answer = upload(large_server, large_server.create_team(), head, 129, tail, chunked=True)
    assert (status, answer["error"]["code"]) == (413, "request_too_large")
    assert provider.calls == []


def test_caller_who_leaves_in_the_middle_of_an_upload_leaves_nothing(large_server: Server, provider: StandInProvider):
    token = large_server.create_team()
    connection = http.client.HTTPConnection(large_server.url.removeprefix("http://"), timeout=10)
    connection.putrequest("POST", "/v1/audio/transcriptions")
    for name, value in (("Authorization", f"Bearer {token}"), ("Content-Type", TYPE), ("Content-Length", "1000000")):
        connection.putheader(name, value)
    connection.endheaders(GOOD.split(b"sound")[0] + bytes(400_000))
    (worker,) = large_server.worker_pids()
    assert eventually(lambda: open_deleted_files(worker) == 1)
    connection.close()
    assert eventually(lambda: open_deleted_files(worker) == 0)
    assert provider.calls == []
    body = json.dumps(HELLO)
    connection.request("POST", "/v1/chat/completions", body, {"Authorization": f"Bearer {token}"})
    assert connection.getresponse().status == 200
    connection.close()


def open_deleted_files(pid: int) -> int:
    """Count the spooled bodies: files without a name, beside those by which gunicorn, and an outage, know a worker."""
    targets = []
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed in this moment
            targets.append(str(link.readlink()))
    known = re.compile("wgunicorn|tokenrouter-outage")
    return sum(target.endswith("(deleted)") and not known.search(target) for target in targets)
