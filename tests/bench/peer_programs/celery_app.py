"""What most teams build: Flask verifies a webhook and hands it to Celery, whose worker calls HubSpot by its SDK.

`PEER_WAY=single` sends one call for each event; `batch` gathers a hundred events and sends them as they are, neither
merged nor taken apart when HubSpot refuses one of them.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import logging
import os
import threading
from typing import Any

from celery import Celery
from flask import Flask, Response, request
from hubspot import HubSpot
from hubspot.crm.objects import BatchInputSimplePublicObjectBatchInput, SimplePublicObjectBatchInput
from hubspot.crm.objects.exceptions import ApiException

BATCH = 100
KEY = base64.b64decode(os.environ["PEER_SECRET"].removeprefix("whsec_"))

queue = Celery("peer", broker=os.environ["PEER_REDIS"])
queue.conf.update(task_ignore_result=True, worker_prefetch_multiplier=16, broker_connection_retry_on_startup=True)
web = Flask("peer")
crm = HubSpot(access_token="token", host=os.environ["PEER_CRM"]).crm.objects.batch_api
_gathered: list[dict[str, Any]] = []
_lock = threading.Lock()  # guards `_gathered`


@web.post("/webhooks/acme")
def webhook() -> Response:
    body = request.get_data()
    signed = f"{request.headers['webhook-id']}.{request.headers['webhook-timestamp']}.".encode() + body
    expected = base64.b64encode(hmac.new(KEY, signed, hashlib.sha256).digest()).decode()
    if not hmac.compare_digest(f"v1,{expected}", request.headers["webhook-signature"]):
        return Response(status=401)
    (gather if os.environ["PEER_WAY"] == "batch" else update).delay(json.loads(body))
    return Response("{}", 202, content_type="application/json")


@web.post("/flush")
def flush_now() -> Response:
    flush.delay()
    return Response(status=204)


@queue.task(bind=True, max_retries=None)
def update(task: Any, event: dict[str, Any]) -> None:
    send(task, [event])


@queue.task
def gather(event: dict[str, Any]) -> None:
    with _lock:
        _gathered.append(event)
        full = len(_gathered) >= BATCH
    if full:
        take_and_send()


@queue.task
def flush() -> None:
    take_and_send()


def take_and_send() -> None:
    with _lock:
        batch, _gathered[:BATCH] = _gathered[:BATCH], []
    if batch:
        send_batch.delay(batch)


@queue.task(bind=True, max_retries=None)
def send_batch(task: Any, events: list[dict[str, Any]]) -> None:
    send(task, events)


def send(task: Any, events: list[dict[str, Any]]) -> None:
    """One call. What HubSpot refuses is logged; what it is too busy for is tried again."""
    inputs = [as_input(event) for event in events]
    try:
        crm.update("partner_clients", BatchInputSimplePublicObjectBatchInput(inputs=inputs))
    except ApiException as error:
        if error.status == 429 or error.status >= 500:
            raise task.retry(exc=error, countdown=1) from error
        logging.getLogger(__name__).warning("HubSpot refused it: %s", error.status)


def as_input(event: dict[str, Any]) -> Any:
    properties = {
        "company_name": event["name"],
        "annual_revenue": str(event["revenue"]),
        "tier": event["tier"],
        "notes": event["notes"],
        "city": event["city"],
        "active": "true" if event["active"] else "false",
        "renewal_date": event["renews"],
        "contact_email": event["email"],
    }
    return SimplePublicObjectBatchInput(id=event["client"], id_property="acme_client_id", properties=properties)
