"""HubSpot's official SDK sends one record at a time: `sdk_singles.py URL EVENTS`."""

from __future__ import annotations

import sys

from hubspot import HubSpot
from hubspot.crm.objects import BatchInputSimplePublicObjectBatchInput, SimplePublicObjectBatchInput


def main(url: str, events: int) -> None:
    api = HubSpot(access_token="token", host=url).crm.objects.batch_api
    for number in range(events):
        one = SimplePublicObjectBatchInput(
            id=f"c{number % 100}", id_property="acme_client_id", properties={"company_name": f"Company {number}"}
        )
        api.update("partner_clients", BatchInputSimplePublicObjectBatchInput(inputs=[one]))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
