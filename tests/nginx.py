"""A real nginx in front of services, with the very lines of the README."""

import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import requests
from conftest import ROOT
from serving import eventually, free_port

NGINX = shutil.which("nginx") or "/usr/sbin/nginx"
IS_THERE = Path(NGINX).exists()
FRAME = """
daemon off;
{user}
worker_processes 1;
pid {folder}/nginx.pid;
error_log stderr;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    {upstream}
    server {{
        listen 127.0.0.1:{port};
        {location}
    }}
}}
"""


def lines_of_the_readme() -> tuple[str, str]:
    """Return its location, and its upstream."""
    location, upstream = re.findall(r"```nginx\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    return location, upstream


def configuration(ports: Sequence[int], folder: Path, port: int, is_root: bool) -> str:
    location, upstream = lines_of_the_readme()
    (options,) = set(re.findall(r"server [\d.:]+(.*);", upstream))
    servers = "\n".join(f"server 127.0.0.1:{each}{options};" for each in ports)
    upstream = re.sub(r"( *server .*;\n)+", servers + "\n", upstream)
    location = location.replace("proxy_pass http://127.0.0.1:8000;", "proxy_pass http://tokenrouter;")
    user = "user root;" if is_root else ""
    return FRAME.format(user=user, folder=folder, upstream=upstream, port=port, location=location)


@contextmanager
def running_nginx(ports: Sequence[int], folder: Path, *, is_root: bool) -> Iterator[str]:
    """Run it in front of what listens at these ports; yield its address."""
    port = free_port()
    path = folder / "nginx.conf"
    path.write_text(configuration(ports, folder, port, is_root))
    with (folder / "nginx.log").open("wb") as log:
        process = subprocess.Popen([NGINX, "-c", str(path), "-p", str(folder)], stderr=log, start_new_session=True)
    try:
        assert eventually(lambda: answers(f"http://127.0.0.1:{port}")), (folder / "nginx.log").read_text()
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)


def answers(url: str) -> bool:
    try:
        return requests.get(f"{url}/healthz", timeout=5).status_code == 200
    except requests.ConnectionError:
        return False
