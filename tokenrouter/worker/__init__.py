"""What one worker process has: the app that gunicorn's master made, threads, slots for calls, an eye on who leaves."""
