"""A local CRM that honours HubSpot's batch-update contract.

It stands in for HubSpot in `partner-bridge sandbox`, in the demo, in tests and in benchmarks: it answers as
the contract says, breaks down on demand, and remembers every call, every applied value and every breach of
the contract. Its memory is bounded (see `records`), its state is not kept over a restart.
"""

from bridge.sandbox.answers import Response, Wire
from bridge.sandbox.batch import Behaviour
from bridge.sandbox.crm import Crm
from bridge.sandbox.faults import KINDS, Fault
from bridge.sandbox.properties import PropertyDefinition
from bridge.sandbox.records import Applied, Call, Input, Violation, ViolationKind
from bridge.sandbox.server import SandboxAddressError, SandboxServer

__all__ = [
    "KINDS",
    "Applied",
    "Behaviour",
    "Call",
    "Crm",
    "Fault",
    "Input",
    "PropertyDefinition",
    "Response",
    "SandboxAddressError",
    "SandboxServer",
    "Violation",
    "ViolationKind",
    "Wire",
]
