"""Requests that are signed in Node.js by packages of npm: a second implementation, in another language.

The packages are looked for in the folder that `BRIDGE_NODE_FOLDER` names (its `node_modules`), outside the tree.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from bridge.intake.signatures import SignedRequest, Unverified, Verified, Verifier, sign
from bridge.settings import Scheme, Secret, Verify
from tests.senders import BODY, hexed, whsec

NOW = 1_800_000_000
FOLDER = Path(os.environ.get("BRIDGE_NODE_FOLDER", "/nowhere"))

#: Each reads {secret, body, now, headers} from standard input. It prints headers of its own making, and
#: whether it believes those that it was given.
GITHUB = """
import { sign, verify } from "@octokit/webhooks-methods";
const given = JSON.parse(await new Response(process.stdin).text());
const signature = await sign(given.secret, given.body);
const believed = await verify(given.secret, given.body, given.headers["X-Hub-Signature-256"]);
console.log(JSON.stringify({ headers: { "X-Hub-Signature-256": signature, "X-GitHub-Delivery": "d-1" }, believed }));
"""
STANDARD = """
import { Webhook } from "standardwebhooks";
const given = JSON.parse(await new Response(process.stdin).text());
const webhook = new Webhook(given.secret);
const at = new Date(given.now * 1000);
const headers = {
  "webhook-id": "msg_1",
  "webhook-timestamp": String(given.now),
  "webhook-signature": webhook.sign("msg_1", at, given.body),
};
Date.now = () => given.now * 1000;
let believed = true;
try { webhook.verify(given.body, given.headers); } catch { believed = false; }
console.log(JSON.stringify({ headers, believed }));
"""


def node(package: str, script: str, given: object) -> dict[str, object]:
    """What the script answers; skips where Node.js or the package is not there."""
    program = shutil.which("node")
    if program is None:
        pytest.skip("node is not installed")
    if not (FOLDER / "node_modules" / package).is_dir():
        pytest.skip(f"the npm package {package} is not in the folder that BRIDGE_NODE_FOLDER names")
    ended = subprocess.run(
        [program, "--input-type=module", "--eval", script],
        cwd=FOLDER,
        input=json.dumps(given).encode(),
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr.decode()
    answer: dict[str, object] = json.loads(ended.stdout)
    return answer


@pytest.mark.parametrize(
    "scheme, package, script, secret",
    [
        ("github", "@octokit/webhooks-methods", GITHUB, hexed("github")),
        ("standard-webhooks", "standardwebhooks", STANDARD, whsec("standard")),
    ],
)
def test_what_node_signs_is_believed_and_what_we_sign_is_believed_there(
    scheme: Scheme, package: str, script: str, secret: str
) -> None:
    """Both ways, over text beyond ASCII; and neither believes a changed body."""
    verify = Verify(scheme, (Secret(env="UNSET_IN_TESTS", default=secret),))
    ours = sign(verify, body=BODY, now=NOW, delivery_id="msg_2")
    given = {"secret": secret, "body": BODY.decode(), "now": NOW, "headers": ours}

    answer = node(package, script, given)
    wrong = node(package, script, {**given, "body": BODY.decode() + " "})

    assert answer["believed"] is True
    assert wrong["believed"] is False
    headers = answer["headers"]
    assert isinstance(headers, dict)
    request = SignedRequest("POST", f"/webhooks/{scheme}", list(headers.items()), BODY)
    assert isinstance(Verifier(verify).verify(request, NOW), Verified)
    altered = SignedRequest("POST", f"/webhooks/{scheme}", list(headers.items()), BODY + b" ")
    assert isinstance(Verifier(verify).verify(altered, NOW), Unverified)
