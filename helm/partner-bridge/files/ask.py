"""`helm test`: asks URL, by POST if there is a BODY, until the status is EXPECT; a minute at most."""

# ruff: noqa: INP001 (a script)

import os
import sys
import time
import urllib.error
import urllib.request

url, body, expected = os.environ["URL"], os.environ["BODY"].encode(), int(os.environ["EXPECT"])
request = urllib.request.Request(url, data=body or None, headers={"Content-Type": "application/json"})  # noqa: S310
deadline = time.monotonic() + 60
while True:
    try:
        with urllib.request.urlopen(request, timeout=10) as response:  # noqa: S310 (the chart's own URL)
            seen = response.status
    except urllib.error.HTTPError as error:
        seen = error.code
    except OSError as error:
        seen = error
    if seen == expected or time.monotonic() > deadline:
        sys.exit(None if seen == expected else f"{url} answered {seen}, not {expected}")
    time.sleep(2)
