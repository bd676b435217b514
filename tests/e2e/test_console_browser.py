"""The console in a real browser: every page, the charts, an act until it is delivered, and nothing from elsewhere."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from selenium import webdriver
from selenium.common.exceptions import NoSuchElementException, StaleElementReferenceException
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from bridge.sandbox import Crm, SandboxServer
from tests.running import Running, eventually

SCREENSHOTS = Path(__file__).parents[2] / ".artifacts" / "console"
HOSTILE = "<script>document.title='stolen'</script><img src=x onerror=\"document.title='stolen'\">"
TOKEN = "an-admin-token-of-sixteen-or-more"
SIZES = {"wide": (1280, 900), "phone": (390, 844)}


@pytest.fixture(scope="module")
def browser() -> Iterator[webdriver.Chrome]:
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("chromium and chromedriver are not installed (Debian: chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in (
        "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-default-apps",
        "--disable-extensions", "--no-proxy-server", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    ):  # fmt: skip
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    made = webdriver.Chrome(options, webdriver.ChromeService(driver))
    made.implicitly_wait(3)
    yield made
    made.quit()


@pytest.fixture(scope="module")
def crm() -> Iterator[tuple[Crm, str]]:
    crm = Crm(open_properties=False)
    with SandboxServer(crm) as server:
        yield crm, server.url


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, crm: tuple[Crm, str]) -> Iterator[Running]:
    """A service with a day's work behind it: delivered, refused, unmappable and unknown."""
    folder = tmp_path_factory.mktemp("console")
    (folder / "admin.token").write_text(TOKEN + "\n", encoding="utf-8")
    (folder / "admin.token").chmod(0o600)
    made = Running(folder, crm[1])
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
    browser.set_window_size(*SIZES["wide"])
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
    browser.find_element(By.LINK_TEXT, service.entries()[0].id).click()
    assert shows(browser, "h1", service.entries()[0].id)
    shoot(browser, "entry")
    browser.get(f"{url}/trace?id=evt_7")
    assert shows(browser, "main", "delivered")
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


def shows(browser: webdriver.Chrome, selector: str, text: str) -> bool:
    """Whether the page that is loading comes to show a text there."""

    def does() -> bool:
        try:
            return text in browser.find_element(By.CSS_SELECTOR, selector).text
        except (NoSuchElementException, StaleElementReferenceException):
            return False

    return eventually(does, within_s=10)


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
    """Pictures of a page as it is, light and dark, on a wide screen and on a phone: none is wider than its screen."""
    for size, (width, height) in SIZES.items():
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": size == "phone"}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        for scheme in ("light", "dark"):
            features = [{"name": "prefers-color-scheme", "value": scheme}]
            browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
            if browser.execute_script("return document.querySelector('.plot') !== null"):
                browser.execute_async_script("setTimeout(arguments[0], 300)")
            browser.save_screenshot(str(SCREENSHOTS / f"{name}-{size}-{scheme}.png"))
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width, (name, size)
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
