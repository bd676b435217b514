"""What pauses and failures mean for people, and what they should do: in the console and on the command line."""

from __future__ import annotations

from typing import Any

#: A pause: reason → what happened, and what to do.
_PAUSES = {
    "operator": (
        "Delivery was stopped by a person.",
        "Webhooks are still taken and wait in the journal. Resume when the reason is gone.",
    ),
    "unauthorized": (
        "HubSpot does not accept the credential.",
        "Put a valid token where the configuration points to; delivery goes on within seconds, without a restart.",
    ),
    "forbidden": (
        "The credential lacks a permission.",
        "Give the app the scopes of this object type in HubSpot; delivery is tried again by itself.",
    ),
    "misconfigured": (
        "HubSpot refuses every record of this kind.",
        "Compare the mapping with the portal (partner-bridge check --portal); delivery is tried again by itself.",
    ),
    "daily_limit": (
        "The day's calls are spent.",
        "Delivery goes on by itself at the portal's midnight; raise crm.rate_limit.daily if HubSpot grants more.",
    ),
    "rate_limited": ("HubSpot asks for patience.", "Nothing to do: delivery goes on by itself at the time it named."),
    "outage": ("HubSpot cannot be reached, or answers with errors.", "Look at its status page; it is tried again."),
    "migrating": ("HubSpot moves this account to another data centre.", "Nothing to do: it ends within a day."),
}
_OTHER_PAUSE = ("Delivery is paused.", "Nothing is lost; it is tried again by itself.")

#: An entry of the retry log: category → what to do.
_FAILURES = {
    "OBJECT_NOT_FOUND": "Make the record in HubSpot, or correct its id, then replay. The source's on_unknown says what "
    "becomes of such changes from now on.",
    "VALIDATION_ERROR": "Mend the property in HubSpot, or the source's mapping, then replay.",
    "UNMAPPABLE": "Mend the source's mapping, then replay: what was kept is mapped again. Discard what the partner "
    "should not have sent.",
    "UNCONFIRMED": "HubSpot never told what became of it. Look at the record there, then replay: the same value twice "
    "does no harm.",
    "GAVE_UP": "It failed for all of retry.give_up_after. Mend what the message tells, then replay.",
}
_OTHER_FAILURE = "Mend what the message tells, in HubSpot or in the source's mapping, then replay."
_RETRYING = "Nothing to do: it is sent again by itself. A replay sends it now."


def advised(pause: dict[str, Any]) -> dict[str, Any]:
    """The pause with what it means, what to do, and whether a person can end it here."""
    what, todo = _PAUSES.get(pause["reason"], _OTHER_PAUSE)
    return pause | {"what": what, "todo": todo, "by_person": pause["reason"] == "operator"}


def remedy(category: str, state: str = "parked") -> str:
    """What to do about an entry of the retry log, or about all of a category. A newer value is never overwritten."""
    return _RETRYING if state == "retrying" else _FAILURES.get(category, _OTHER_FAILURE)
