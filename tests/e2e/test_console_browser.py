"""The console in a real browser: every page, the charts, an act until it is delivered, nothing from elsewhere; for
people who use a screen reader, a keyboard, a phone, or no scripts.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import orjson
import pytest
import requests
from selenium import webdriver
from selenium.common.exceptions import NoSuchElementException, StaleElementReferenceException
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from bridge.journal.control import Act
from bridge.model import to_us
from bridge.sandbox import Crm, SandboxServer
from tests.running import Running, eventually

SCREENSHOTS = Path(__file__).parents[2] / ".artifacts" / "console"
HOSTILE = "<script>document.title='stolen'</script><img src=x onerror=\"document.title='stolen'\">"
TOKEN = "an-admin-token-of-sixteen-or-more"
SIZES = {"wide": (1280, 900), "phone": (390, 844)}


@pytest.fixture(scope="module")
def browser() -> Iterator[webdriver.Chrome]:
    axe()  # a test that found out halfway would leave its traces to the others
    with chromium() as made:
        yield made


@contextmanager
def chromium(*, scripts: bool = True) -> Iterator[webdriver.Chrome]:
    """A headless Chromium that can only reach this machine."""
    binary, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if binary is None or driver is None:
        pytest.skip("chromium and chromedriver are not installed (Debian: chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for argument in (
        "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-default-apps",
        "--disable-extensions", "--no-proxy-server", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    ):  # fmt: skip
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    if not scripts:
        options.add_experimental_option("prefs", {"profile.managed_default_content_settings.javascript": 2})
    made = webdriver.Chrome(options, webdriver.ChromeService(driver))
    made.implicitly_wait(3)
    made.set_window_size(*SIZES["wide"])
    try:
        yield made
    finally:
        made.quit()


@pytest.fixture(scope="module")
def crm() -> Iterator[tuple[Crm, str]]:
    crm = Crm(open_properties=False)
    with SandboxServer(crm) as server:
        yield crm, server.url


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, crm: tuple[Crm, str]) -> Iterator[Running]:
    """Two workers with a day's work behind them: delivered, refused, unmappable and unknown."""
    folder = tmp_path_factory.mktemp("console")
    (folder / "admin.token").write_text(TOKEN + "\n", encoding="utf-8")
    (folder / "admin.token").chmod(0o600)
    made = Running(folder, crm[1], workers=2)
    text = made.config.read_text(encoding="utf-8")
    assert "server:\n" in text
    made.config.write_text(text.replace("server:\n", "server:\n  admin_token: {file: admin.token}\n"), encoding="utf-8")
    try:
        made.start()
        payloads: list[object] = [
            {"id": f"evt_{number}", "client": f"c{number}", "at": 1_700_000_000 + number, "name": f"Client {number}"}
            for number in range(60)
        ]
        payloads += [{"id": f"lost_{number}", "client": f"unknown-{number}", "name": "Nobody"} for number in range(3)]
        payloads += [{"id": "nameless", "name": HOSTILE}]
        assert {answer and answer.status_code for answer in made.post_all(payloads)} == {202}
        assert made.post({"id": "forged"}, secret=_forged(folder)).status_code == 401
        assert eventually(lambda: made.idle() and len(made.entries()) >= 4)
        yield made
    finally:
        if made.process is not None:
            made.stop()


def _forged(folder: Path) -> Path:
    secret = folder / "forged.secret"
    secret.write_text("whsec_c2VjcmV0IG9mIHR3ZW50eSBmb3VyIGJ5dGVz\n", encoding="utf-8")
    secret.chmod(0o600)
    return secret


def test_the_console_in_a_browser(browser: webdriver.Chrome, service: Running, crm: tuple[Crm, str]) -> None:  # noqa: PLR0915 (one visit)
    """Log in; look at every page; try a hostile payload; replay a group until it is delivered; discard; log out."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    url = service.admin_url
    browser.get(f"{url}/retries")
    assert browser.current_url == f"{url}/login"
    shoot(browser, "login")
    browser.find_element(By.ID, "token").send_keys("not the token", Keys.ENTER)
    assert shows(browser, "[role=alert]", "not the admin token")
    logged(browser, "browser")  # Chromium reports the 401 that we asked for
    browser.find_element(By.ID, "token").send_keys(TOKEN, Keys.ENTER)

    assert shows(browser, "h1", "Flow")
    assert len(browser.find_elements(By.CSS_SELECTOR, ".plot canvas")) == 6
    browser.find_element(By.XPATH, "//summary[text()='Stop delivery']").click()
    browser.find_element(By.ID, "reason").send_keys("a new portal is set up", Keys.ENTER)
    assert shows(browser, ".banner", "a new portal is set up")
    shoot(browser, "flow")
    browser.find_element(By.XPATH, "//button[text()='Resume']").click()
    assert eventually(lambda: not service.status()["pauses"])

    browser.find_element(By.LINK_TEXT, "Sources").click()
    assert shows(browser, "h1", "Sources")
    shoot(browser, "sources")
    browser.find_element(By.LINK_TEXT, "acme").click()
    assert shows(browser, "h1", "acme")
    payload = orjson.dumps({"id": "try_1", "client": "c1", "at": 1_700_000_000, "name": HOSTILE}).decode()
    browser.find_element(By.ID, "payload").send_keys(payload)
    browser.find_element(By.XPATH, "//button[text()='Try it']").click()
    assert shows(browser, "#try pre", "<script>")
    shoot(browser, "source")

    browser.get(f"{url}/retries")
    shoot(browser, "retries")
    browser.find_element(By.ID, "search").send_keys("UNKNOWN-1", Keys.ENTER)
    assert shows(browser, ".heading", "1 match")
    browser.find_element(By.ID, "search").send_keys("x", Keys.ENTER)
    assert shows(browser, ".empty", "Nothing matches")
    shoot(browser, "nothing")
    browser.get(f"{url}/retries/record-4711")
    assert shows(browser, "h1", "There is nothing here")
    shoot(browser, "error")
    logged(browser, "browser")  # Chromium reports the 404 that we asked for
    browser.get(f"{url}/retries")
    browser.find_element(By.LINK_TEXT, service.entries()[0].id).click()
    assert shows(browser, "h1", service.entries()[0].id)
    shoot(browser, "entry")
    browser.get(f"{url}/trace")
    shoot(browser, "recent")
    browser.get(f"{url}/trace?id=evt_7")
    assert shows(browser, "main", "delivered")
    shoot(browser, "event")
    browser.get(f"{url}/trace?id=c7")
    shoot(browser, "trace")

    found = [f"unknown-{number}" for number in range(3)]
    crm[0].records.add("partner_clients", *found, id_property="acme_client_id")
    browser.get(f"{url}/retries?category=OBJECT_NOT_FOUND")
    browser.find_element(By.XPATH, "//button[starts-with(text(), 'Replay 3')]").click()
    assert shows(browser, "h1", "Replay 3 entries?")
    shoot(browser, "confirm")
    browser.find_element(By.XPATH, "//button[text()='Replay 3']").click()
    assert shows(browser, "[role=status]", "3 of 3 replayed")
    assert eventually(lambda: not [e for e in service.entries() if e.category == "OBJECT_NOT_FOUND"])

    browser.get(f"{url}/retries?category=UNMAPPABLE")
    browser.find_element(By.CSS_SELECTOR, "[name=ids]").send_keys(Keys.SPACE)
    browser.find_element(By.XPATH, "//button[starts-with(text(), 'Discard selected')]").click()
    browser.find_element(By.XPATH, "//button[text()='Discard 1']").click()
    assert shows(browser, "[role=status]", "1 of 1 discarded")
    assert service.entries() == []

    browser.find_element(By.XPATH, "//button[text()='Sign out']").click()
    assert shows(browser, "h1", "Sign in")
    assert "stolen" not in browser.title
    assert [entry for entry in logged(browser, "browser") if entry["level"] != "DEBUG"] == []
    assert {host for host in asked_hosts(browser) if host != f"127.0.0.1:{service.admin_port}"} == set()


def test_every_worker_tells_the_same(service: Running) -> None:
    """Counts, figures, sessions and forms: whichever answers."""

    def same(path: str, told: str) -> bool:
        return len({tuple(re.findall(told, asked(service, path))) for _ in range(12)}) == 1

    for path, told in (("/", r"<dd>(.*?)</dd>"), ("/sources/acme", r'"right">(.*?)<'), ("/retries", r">(\w+-\d+)<")):
        assert eventually(lambda: same(path, told)), path  # noqa: B023 (called at once)
    cookies = requests.Session()
    form = re.search(r'name="form_token" value="(\w+)"', cookies.get(f"{service.admin_url}/login", timeout=9).text)
    assert form
    sent = {"form_token": form[1], "token": TOKEN}
    cookies.post(f"{service.admin_url}/login", data=sent, headers={"Connection": "close"}, timeout=9)
    answers = [
        cookies.get(f"{service.admin_url}/trace", headers={"Connection": "close"}, timeout=9).url for _ in range(12)
    ]
    assert {url.rpartition("/")[2] for url in answers} == {"trace"}


def asked(service: Running, path: str) -> str:
    """A page, from whichever worker takes the connection."""
    headers = {"Authorization": f"Bearer {TOKEN}", "Connection": "close", "Accept": "text/html"}
    answer = requests.get(service.admin_url + path, headers=headers, timeout=9)
    assert answer.status_code == 200
    return answer.text


def test_progress_reads_itself_anew(browser: webdriver.Chrome, service: Running) -> None:
    """An act that another process works at, and its end, on a page that needs no script for that."""
    sign_in(browser, service)
    now = to_us(time.time())
    act = Act("a1", "replay", "session", {"category": "OBJECT_NOT_FOUND"}, 4_000, began_us=now, told_us=now, done=1_234)
    with service.journal() as journal:
        assert journal.begin_act(act)
        browser.get(f"{service.admin_url}/retries")
        browser.find_element(By.LINK_TEXT, "Watch the progress").click()
        assert shows(browser, "[role=status]", "1\u202f234 of 4\u202f000 done")
        browser.execute_script("stop()")  # not while it is looked at
        shoot(browser, "progress")
        browser.get(f"{service.admin_url}/retries/act/a1")
        journal.tell_act(replace(act, done=4_000, ended=True, result={"entries": 4_000, "events": 3_999}))
        assert shows(browser, "[role=status]", "4\u202f000 of 4\u202f000 replayed")
    assert "category=OBJECT_NOT_FOUND" in browser.current_url


def test_the_keyboard_suffices(browser: webdriver.Chrome, service: Running) -> None:
    """The first stop leads past the menu; every stop is seen, and in the order of the page."""
    sign_in(browser, service)
    browser.get(f"{service.admin_url}/trace?id=nobody")
    press(browser, Keys.TAB)
    skip = browser.switch_to.active_element
    assert skip.text == "Skip to the content"
    assert skip.rect["x"] >= 0
    stops = []
    for _ in range(6):
        press(browser, Keys.TAB)
        stop = browser.switch_to.active_element
        assert browser.execute_script("return getComputedStyle(arguments[0]).outlineStyle", stop) == "solid"
        stops.append(stop.text.split("\n")[0].split(" ")[0])
    assert stops == ["Partner", "Flow", "Sources", "Retry", "Trace", "Sign"]
    press(browser, Keys.TAB, *"c7", Keys.ENTER)
    assert shows(browser, "h2", "partner_clients c7")


def test_everything_works_without_scripts(service: Running) -> None:
    """But for the charts, whose figures stand in a table."""
    with chromium(scripts=False) as browser:
        sign_in(browser, service)
        assert browser.find_elements(By.TAG_NAME, "canvas") == []
        assert "Charts need JavaScript" in browser.find_element(By.CSS_SELECTOR, ".chart").text
        browser.find_element(By.XPATH, "//summary[text()='The same as a table']").click()
        assert shows(browser, ".numbers thead", "Oldest waited")
        browser.find_element(By.XPATH, "//summary[text()='Stop delivery']").click()
        browser.find_element(By.ID, "object_type").send_keys("companies", Keys.ENTER)
        assert shows(browser, ".banner", "companies")
        browser.find_element(By.XPATH, "//button[text()='Resume']").click()
        assert eventually(lambda: not service.status()["pauses"])
        browser.get(f"{service.admin_url}/sources/acme")
        browser.find_element(By.ID, "payload").send_keys('{"id": "t", "client": "c1", "name": "N"}')
        browser.find_element(By.XPATH, "//button[text()='Try it']").click()
        assert shows(browser, "#try pre", "company_name")
        service.post({"id": "nameless-2", "name": "Nobody"})
        browser.get(f"{service.admin_url}/retries?search=nameless-2")
        browser.find_element(By.XPATH, "//button[starts-with(text(), 'Discard all 1')]").click()
        browser.find_element(By.XPATH, "//button[text()='Discard 1']").click()
        assert shows(browser, "[role=status]", "1 of 1 discarded")


def sign_in(browser: webdriver.Chrome, service: Running) -> None:
    browser.get(f"{service.admin_url}/login")
    if browser.find_elements(By.ID, "token"):
        browser.find_element(By.ID, "token").send_keys(TOKEN, Keys.ENTER)
    assert shows(browser, "h1", "Flow")


def press(browser: webdriver.Chrome, *keys: str) -> None:
    webdriver.ActionChains(browser).send_keys(*keys).perform()


def shows(browser: webdriver.Chrome, selector: str, text: str) -> bool:
    """Whether the page that is loading comes to show a text there."""

    def does() -> bool:
        try:
            return text in browser.find_element(By.CSS_SELECTOR, selector).text
        except (NoSuchElementException, StaleElementReferenceException):
            return False

    return eventually(does)


def logged(browser: webdriver.Chrome, kind: str) -> list[dict[str, Any]]:
    """What the browser logged since this was last asked."""
    entries: list[dict[str, Any]] = browser.get_log(kind)  # type: ignore[no-untyped-call]  # Selenium types only a part
    return entries


def asked_hosts(browser: webdriver.Chrome) -> set[str]:
    """Every host that a page asked for something."""
    found = set()
    for entry in logged(browser, "performance"):
        message = orjson.loads(entry["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            asked = message["params"]["request"]["url"]
            if asked.startswith(("http:", "https:", "ws:")):
                found.add(asked.split("/")[2])
    return found


def shoot(browser: webdriver.Chrome, name: str) -> None:
    """Look at a page as it is, light and dark, on a wide screen and on a phone: a picture is kept of each, axe finds no
    fault, and none is wider than its screen.
    """
    browser.execute_script(axe())
    for size, (width, height) in SIZES.items():
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": size == "phone"}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        for scheme in ("light", "dark"):
            features = [{"name": "prefers-color-scheme", "value": scheme}]
            browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
            if browser.execute_script("return document.querySelector('.plot') !== null"):
                browser.execute_async_script("setTimeout(arguments[0], 200)")  # the charts follow the width
            browser.save_screenshot(str(SCREENSHOTS / f"{name}-{size}-{scheme}.png"))
            # Structure does not depend on colours: all rules on one scheme of each size, contrast on both.
            assert faults(browser, everything=(size == "phone") == (scheme == "dark")) == [], (name, size, scheme)
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width, (name, size)
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


@cache
def axe() -> str:
    """axe-core, the checker of accessibility, as its source; skips where it is not there."""
    file = Path(os.environ.get("BRIDGE_NODE_FOLDER", "/nowhere")) / "node_modules/axe-core/axe.min.js"
    if not file.is_file():
        pytest.skip("the npm package axe-core is not in the folder that BRIDGE_NODE_FOLDER names")
    return file.read_text(encoding="utf-8")


def faults(browser: webdriver.Chrome, *, everything: bool) -> list[str]:
    """What axe finds wrong with the page, whatever its impact."""
    options: dict[str, Any] = {"resultTypes": ["violations"]}
    if not everything:
        options["runOnly"] = ["color-contrast"]
    found = browser.execute_async_script(
        """const [options, done] = arguments;
           axe.run(document, options).then((found) => done([
             found.passes.length,
             found.violations.map((each) => `${each.id}: ${each.nodes.map((node) => node.target).join(" ")}`),
           ]));""",
        options,
    )
    passes, violations = found
    assert passes  # it has looked
    return list(violations)
