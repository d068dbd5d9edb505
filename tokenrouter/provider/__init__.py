"""The one paid account: HTTP as it is spoken with it, its errors as ours, and its models."""
