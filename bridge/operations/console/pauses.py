"""What a pause means for people, and what they should do."""

from __future__ import annotations

from typing import Any

#: reason → what happened, and what to do
_ADVICE = {
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
_OTHER = ("Delivery is paused.", "Nothing is lost; it is tried again by itself.")


def advised(pause: dict[str, Any]) -> dict[str, Any]:
    """The pause with what it means, what to do, and whether a person can end it here."""
    what, todo = _ADVICE.get(pause["reason"], _OTHER)
    return pause | {"what": what, "todo": todo, "by_person": pause["reason"] == "operator"}
