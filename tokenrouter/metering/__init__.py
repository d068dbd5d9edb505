"""What a call reads, writes and costs, worked out from bytes alone. Knows neither Flask nor the database."""
