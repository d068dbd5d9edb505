"""What our worker overrides of gunicorn or leans on is known by the hashes of its sources."""

import ast
import hashlib
import inspect
from collections.abc import Iterator
from importlib.metadata import version
from types import FunctionType

import pytest
from conftest import ROOT
from gunicorn.app.base import Application, BaseApplication
from gunicorn.arbiter import Arbiter
from gunicorn.http import wsgi
from gunicorn.http.body import Body, ChunkedReader, LengthReader
from gunicorn.http.message import Message, Request
from gunicorn.http.parser import Parser
from gunicorn.http.unreader import Unreader
from gunicorn.workers.gthread import PollableMethodQueue, ThreadWorker

from tokenrouter.worker import client_socket, connections, gunicorn_worker, threads

OURS = (gunicorn_worker, connections, client_socket, threads)

# Beside what our classes override or name.
LEANED_ON = (
    Arbiter.setup,  # preload.py: that the master reads the configuration, also on HUP, and makes no app
    Arbiter.reload,
    Arbiter.spawn_worker,
    Arbiter.signal,  # Worker.init_signals: where the master's handlers put signals
    BaseApplication.do_load_config,
    BaseApplication.reload,
    BaseApplication.wsgi,
    Application.get_config_from_filename,
    ThreadWorker.init_process,  # Worker: in which order all is called, and by which thread
    ThreadWorker.run,
    ThreadWorker.handle_exit,
    ThreadWorker.set_accept_enabled,
    ThreadWorker.on_client_socket_readable,
    ThreadWorker._keepalive_after,
    Parser.__next__,  # RequestReader: that a head can be read in part, and again from its start
    Message.__init__,
    Request.__init__,
    Request.get_data,
    Request.parse,
    Request._parse_python,
    Request.read_into,
    Request.read_line,
    Request.read_bytes,
    Unreader.read,
    Parser.finish_body,  # and that a body that ends early raises
    Body.read,
    LengthReader.read,
    ChunkedReader.read,
    wsgi.default_environ,  # relay/handler.py: the client's socket
)
HASHES = {
    "app.base.Application.get_config_from_filename": "05628a4ead635aeb",
    "app.base.BaseApplication.do_load_config": "502f5dc865f168c0",
    "app.base.BaseApplication.reload": "56122fa191291b30",
    "app.base.BaseApplication.wsgi": "4663ccc8ece60557",
    "arbiter.Arbiter.reload": "fec344d2f774ee32",
    "arbiter.Arbiter.setup": "9eb391c82c190108",
    "arbiter.Arbiter.signal": "8b193e95e16aa270",
    "arbiter.Arbiter.spawn_worker": "6abc0d90b0b9f80b",
    "http.body.Body.read": "c7bdfdd1c2c36fb2",
    "http.body.ChunkedReader.read": "1aa9df6c4dcb23a0",
    "http.body.LengthReader.read": "be99a0aa587fc555",
    "http.message.Message.__init__": "14b64a40f29fd0c4",
    "http.message.Request.__init__": "f1feb7cdea229ec5",
    "http.message.Request._parse_python": "ed07ffec51784055",
    "http.message.Request.get_data": "f4cd50d95851c82e",
    "http.message.Request.parse": "34c084607ae12d4f",
    "http.message.Request.read_bytes": "4868ea4973621e70",
    "http.message.Request.read_into": "3f959e4da304d883",
    "http.message.Request.read_line": "13bf2e83f72a5e0d",
    "http.parser.Parser.__init__": "604084ecb33b3dbd",
    "http.parser.Parser.__next__": "b8536520e95854d6",
    "http.parser.Parser.finish_body": "54c5d0d28c2626ea",
    "http.unreader.SocketUnreader.__init__": "e8f9de555670946f",
    "http.unreader.SocketUnreader.chunk": "9f62532259f8468e",
    "http.unreader.Unreader.__init__": "6219181af6ef67df",
    "http.unreader.Unreader.chunk": "29e0525ac3c7022c",
    "http.unreader.Unreader.read": "cbfeead6687ff48b",
    "http.unreader.Unreader.take_buffered": "89cef5e60e6f09e1",
    "http.unreader.Unreader.unread": "8e325744dfcaca7f",
    "http.wsgi.default_environ": "b7e18b84d829cb5a",
    "workers.base.Worker.__init__": "e0f1de2d60574066",
    "workers.base.Worker.handle_error": "75426448389bbac9",
    "workers.base.Worker.handle_exit": "e2f7159c426d379c",
    "workers.base.Worker.handle_quit": "2944b41327615dc6",
    "workers.base.Worker.init_signals": "65442e0602b05f37",
    "workers.gthread.PollableMethodQueue.__init__": "11ca6d35d9cbab4f",
    "workers.gthread.PollableMethodQueue.close": "076a6de04e52bd65",
    "workers.gthread.PollableMethodQueue.defer": "4d722900967b8ad2",
    "workers.gthread.PollableMethodQueue.fileno": "fd4ffde15b2d4721",
    "workers.gthread.PollableMethodQueue.init": "41e0b28738da4fa6",
    "workers.gthread.TConn.__init__": "c8763d7c65974e1b",
    "workers.gthread.TConn.close": "6d1c334ed1979fcb",
    "workers.gthread.TConn.init": "5ff3d4ba451cfdf3",
    "workers.gthread.ThreadWorker.__init__": "5681b8b542ea91bf",
    "workers.gthread.ThreadWorker._cap_keepalive": "745c8ac37108c74d",
    "workers.gthread.ThreadWorker._keepalive_after": "4ebdbbc8bf5aafa5",
    "workers.gthread.ThreadWorker.accept": "f8dcead3dce5c851",
    "workers.gthread.ThreadWorker.enqueue_req": "c9f428953d24acef",
    "workers.gthread.ThreadWorker.finish_request": "616e7bb15a009ff7",
    "workers.gthread.ThreadWorker.get_thread_pool": "003f3549a71b6d34",
    "workers.gthread.ThreadWorker.handle": "ca85c9be3df75da4",
    "workers.gthread.ThreadWorker.handle_exit": "b4e7decd4f9203ac",
    "workers.gthread.ThreadWorker.handle_quit": "36bd35a8dae5d2b5",
    "workers.gthread.ThreadWorker.handle_request": "6d0de5b919102efc",
    "workers.gthread.ThreadWorker.init_process": "e4fc63a1a68e4f48",
    "workers.gthread.ThreadWorker.is_parent_alive": "3517612f7763cc47",
    "workers.gthread.ThreadWorker.murder_pending": "7bf11f46454296e1",
    "workers.gthread.ThreadWorker.on_client_socket_readable": "aead1a3ea7b7daff",
    "workers.gthread.ThreadWorker.run": "f92c7394d85715a4",
    "workers.gthread.ThreadWorker.set_accept_enabled": "140150ebfd3cae34",
    "workers.gthread.ThreadWorker.wait_for_and_dispatch_events": "ea969b352482bd5c",
}


def subclasses_of_gunicorns() -> list[type]:
    classes = {value for module in OURS for value in vars(module).values() if inspect.isclass(value)}
    names = {module.__name__ for module in OURS}
    return [cls for cls in classes if cls.__module__ in names and gunicorns_above(cls)]


def gunicorns_above(cls: type) -> list[type]:
    return [base for base in cls.__mro__ if base.__module__.startswith("gunicorn.")]


def overridden() -> Iterator[FunctionType]:
    """Yield what our classes replace, and often call."""
    for cls in subclasses_of_gunicorns():
        for name in vars(cls):
            found = (vars(base).get(name) for base in gunicorns_above(cls))
            yield from (function for function in found if inspect.isfunction(function))


def named() -> Iterator[FunctionType]:
    """Yield the methods of gunicorn's classes that our code names, or names one like."""
    trees = [ast.parse(inspect.getsource(module)) for module in OURS]
    names = {node.attr for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    bases = (base for cls in subclasses_of_gunicorns() for base in gunicorns_above(cls))
    for base in (*bases, PollableMethodQueue):
        yield from (value for name, value in vars(base).items() if name in names and inspect.isfunction(value))


def name_of(function: FunctionType) -> str:
    return f"{function.__module__}.{function.__qualname__}".removeprefix("gunicorn.")


SOURCES = {name_of(function): function for function in (*overridden(), *named(), *LEANED_ON)}


def hash_of(function: FunctionType) -> str:
    return hashlib.sha256(inspect.getsource(function).encode()).hexdigest()[:16]


def test_exactly_what_we_override_or_lean_on_has_a_hash():
    missing = {name: hash_of(function) for name, function in SOURCES.items() if name not in HASHES}
    assert missing == {}, "read these of gunicorn's with our use of them in mind, and add them to HASHES"
    assert set(HASHES) - set(SOURCES) == set()


@pytest.mark.parametrize("name", sorted(HASHES.keys() & SOURCES.keys()))
def test_source_is_the_one_that_our_code_was_written_for(name: str):
    now = hash_of(SOURCES[name])
    assert now == HASHES[name], (
        f"gunicorn {version('gunicorn')} changed {name}: compare its source before and after with what overrides, "
        f"calls or relies on it in tokenrouter/worker, or where LEANED_ON says, and put {now} into HASHES"
    )


def test_gunicorn_is_required_in_the_version_whose_sources_these_are():
    assert f"gunicorn=={version('gunicorn')}" in (ROOT / "requirements.txt").read_text()
