"""The database: its tables, the statements of every call, and its schema. Nothing here decides."""
