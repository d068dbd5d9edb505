"""What one worker process has: gunicorn's worker with its threads, slots for calls, and an eye on clients who leave."""
