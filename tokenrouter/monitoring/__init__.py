"""Metrics for Prometheus: tally.py counts, families.py reports.

Beside them stand a scrape configuration, rules of alerts and a dashboard for Grafana.
"""

from tokenrouter.monitoring.families import Families
from tokenrouter.monitoring.tally import Tally

__all__ = ["Families", "Tally"]
