# TokenRouter in a container: data, the key that signs sessions, and an SQLite database are kept in /data.
FROM python:3.13-slim-trixie AS build
RUN python3 -m venv /venv
COPY requirements.txt /
RUN /venv/bin/pip install --no-cache-dir --requirement /requirements.txt

FROM python:3.13-slim-trixie
# pg_dump and pg_restore, for backups of a PostgreSQL: of version 17, as compose.yaml has it
RUN apt-get update \
    && apt-get install --yes --no-install-recommends postgresql-client \
    && rm -rf /var/lib/apt/lists/*
RUN useradd --no-create-home --uid 10001 --home-dir /data --shell /usr/sbin/nologin tokenrouter \
    && install --directory --owner tokenrouter --mode 0700 /data
COPY --from=build /venv /venv
WORKDIR /app
COPY wsgi.py gunicorn.conf.py ./
COPY tokenrouter tokenrouter
RUN ln --symbolic /data instance \
    && /venv/bin/python -m compileall -q tokenrouter
USER tokenrouter
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1
VOLUME /data
EXPOSE 8000
# What is under way may end for 60 seconds: give it more than those, as compose.yaml does.
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=15s --timeout=5s --start-period=60s \
    CMD ["python3", "-c", "import os, urllib.request as r; r.urlopen(f'http://127.0.0.1:{os.getenv(\"PORT\", \"8000\")}/readyz')"]
CMD ["gunicorn", "wsgi:app"]
