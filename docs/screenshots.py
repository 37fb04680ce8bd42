"""Takes the README's screenshots from a lab that is up and has migrated its guest.

    ./hyperflow demo
    apt-get install chromium chromium-driver
    python3 -m venv /tmp/shots && /tmp/shots/bin/pip install selenium
    /tmp/shots/bin/python docs/screenshots.py .lab/airflow.json .lab/images/web01

Everything on them is from that run; nothing is drawn.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

DAG = "migrate.lab.web01"
IMAGES = Path(__file__).parent / "images"
WIDTH, HEIGHT = 1500, 950  # pixels
PATIENCE = 60  # seconds for a page


def main(endpoint: Path, output: Path) -> None:
    """Take all pictures."""
    airflow = json.loads(endpoint.read_text())
    run_id = last_run(airflow)
    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as profile:
        browser = open_browser(profile)
        try:
            log_in(browser, airflow)
            page = f"{airflow['url']}/dags/{DAG}"
            show(browser, f"{page}/runs/{run_id}/tasks/export/mapped/0", "progress: download disk-0")
            take(browser, "log")
            show(browser, page, "Trigger")
            browser.find_element(By.XPATH, "//button[contains(., 'Trigger')]").click()
            wait_for(browser, "Skip the boot proof")
            take(browser, "form")
            show(browser, f"{page}/runs/{run_id}", "preflight")
            browser.find_element(By.XPATH, "//button[starts-with(@aria-label, 'Show Graph')]").click()
            time.sleep(4)
            take(browser, "graph")
        finally:
            browser.quit()
    shutil.copy(output / "boot" / "screenshot.png", IMAGES / "guest.png")


def open_browser(profile: str) -> webdriver.Chrome:
    """Start a headless Chromium that keeps to itself."""
    options = webdriver.ChromeOptions()
    options.binary_location = "/usr/bin/chromium"
    for argument in (
        *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
        *("--disable-background-networking", "--disable-component-update", f"--user-data-dir={profile}"),
        f"--window-size={WIDTH},{HEIGHT}",
    ):
        options.add_argument(argument)
    return webdriver.Chrome(options=options, service=webdriver.ChromeService("/usr/bin/chromedriver"))


def log_in(browser: webdriver.Chrome, airflow: dict[str, Any]) -> None:
    """Fill in Airflow's login page."""
    browser.get(f"{airflow['url']}/auth/login")
    WebDriverWait(browser, PATIENCE).until(lambda page: page.find_elements(By.NAME, "username"))
    browser.find_element(By.NAME, "username").send_keys(airflow["user"])
    browser.find_element(By.NAME, "password").send_keys(airflow["password"])
    browser.find_element(By.XPATH, "//button[@type='submit']").click()
    WebDriverWait(browser, PATIENCE).until(lambda page: "/auth/login" not in page.current_url)


def show(browser: webdriver.Chrome, url: str, text: str) -> None:
    """Open a page and wait until it holds a text."""
    browser.get(url)
    wait_for(browser, text)


def wait_for(browser: webdriver.Chrome, text: str) -> None:
    """Wait until the page holds a text, and a little longer for what moves."""
    WebDriverWait(browser, PATIENCE).until(lambda page: text in page.find_element(By.TAG_NAME, "body").text)
    time.sleep(2)


def take(browser: webdriver.Chrome, name: str) -> None:
    """Write what is shown as a PNG."""
    browser.save_screenshot(str(IMAGES / f"{name}.png"))


def last_run(airflow: dict[str, Any]) -> str:
    """Find the last run of the DAG."""
    body = json.dumps({"username": airflow["user"], "password": airflow["password"]}).encode()
    login = urllib.request.Request(f"{airflow['url']}/auth/token", body, {"Content-Type": "application/json"})  # noqa: S310 - the lab's own URL
    with urllib.request.urlopen(login) as answer:  # noqa: S310 - as above
        token = json.load(answer)["access_token"]
    path = f"/api/v2/dags/{DAG}/dagRuns?order_by=-start_date&limit=1"
    request = urllib.request.Request(airflow["url"] + path, headers={"Authorization": f"Bearer {token}"})  # noqa: S310 - as above
    with urllib.request.urlopen(request) as answer:  # noqa: S310 - as above
        return str(json.load(answer)["dag_runs"][0]["dag_run_id"])


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
