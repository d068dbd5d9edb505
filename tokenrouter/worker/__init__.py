"""Parts of a worker process: gunicorn's worker, threads, slots for calls, clients who leave, scheduled jobs."""
