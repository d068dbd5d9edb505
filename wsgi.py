"""The WSGI application: gunicorn and the `flask` command both find it here."""

from tokenrouter import create_app

app = create_app()
