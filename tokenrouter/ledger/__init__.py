"""The ledger: the only code that moves a counter or writes a row of the log.

Every worker sends its reservations and settlements through one writer, which commits them in groups. Code that reads
a team's counters to decide, or changes them, has the team's row locked; several rows are locked in the order of their
ids, so that there is no deadlock. A settlement first takes the call's row from `pending`, which succeeds only once.
"""

from tokenrouter.ledger.books import add_extra, begin_due_periods, check_extras, recover, reset
from tokenrouter.ledger.corrections import Corrected, correct_costs
from tokenrouter.ledger.past_totals import sum_up
from tokenrouter.ledger.pruning import Pruned, first_day_kept, last_day_pruned, prune
from tokenrouter.ledger.repairs import repair
from tokenrouter.ledger.responses import Given, first_unknown_item, tokens_of_response
from tokenrouter.ledger.rules import CallerChanged, CallRequest, Outcome, Reservation
from tokenrouter.ledger.undoing import keep_corrections_out, undo_extra, undo_resets
from tokenrouter.ledger.verification import Verification, verify
from tokenrouter.ledger.worker import SETTLE_WAIT_S, Ledger

__all__ = [
    "SETTLE_WAIT_S",
    "CallRequest",
    "CallerChanged",
    "Corrected",
    "Given",
    "Ledger",
    "Outcome",
    "Pruned",
    "Reservation",
    "Verification",
    "add_extra",
    "begin_due_periods",
    "check_extras",
    "correct_costs",
    "first_day_kept",
    "first_unknown_item",
    "keep_corrections_out",
    "last_day_pruned",
    "prune",
    "recover",
    "repair",
    "reset",
    "sum_up",
    "tokens_of_response",
    "undo_extra",
    "undo_resets",
    "verify",
]
