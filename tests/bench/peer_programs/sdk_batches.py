"""HubSpot's official SDK sends batches that were made before: `sdk_batches.py URL RECORDS THREADS PROPERTIES`."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor

from hubspot import HubSpot
from hubspot.crm.objects import BatchInputSimplePublicObjectBatchInput, SimplePublicObjectBatchInput

BATCH = 100


def main(url: str, records: int, threads: int, properties: int) -> None:
    client = HubSpot(access_token="token", host=url)
    batches = [
        BatchInputSimplePublicObjectBatchInput(
            inputs=[
                SimplePublicObjectBatchInput(
                    id=f"c{number}",
                    id_property="acme_client_id",
                    properties={f"p{place}": f"v{number}" for place in range(properties)},
                )
                for number in range(at, min(at + BATCH, records))
            ]
        )
        for at in range(0, records, BATCH)
    ]
    api = client.crm.objects.batch_api
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda batch: api.update("partner_clients", batch), batches))


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:5]))
